"""Find the interchange of a site, or start one on this machine.

A running interchange says where it is in the site's connection file; starters take turns by a lock on a file.  This
module knows no messages, and nothing of what an interchange does.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from balsamfut import connection, settings, sites
from balsamfut.connection import Connection, runs
from balsamfut.errors import BalsamfutError, InterchangeLost, ProtocolMismatch, SiteError, SiteStopped
from balsamfut.executor.deliver import error_named
from balsamfut.messages import PROTOCOL

PATIENCE: Final = 60.0
"""Seconds that a starting interchange may take: loading a large database on a busy file system is slow."""

LEASE: Final = 60.0
"""Seconds more that are waited for somebody else's, which may have to watch an owner on another host."""

STARTS: Final = 3
"""So often an interchange is started that a signal ended before it was ready."""

_children: set[int] = set()
"""Interchanges that this process started, and has to reap."""


class Wanted(msgspec.Struct, frozen=True):
    """What an Executor asks of an interchange that it has to start."""

    platform: str = ""
    nodes: int = 0
    cores: int = 0

    def arguments(self) -> list[str]:
        given = (("--platform", self.platform), ("--nodes", self.nodes), ("--cores", self.cores))
        return [word for name, value in given if value for word in (name, str(value))]


_killed: set[int] = set()
"""Those of them that a signal ended."""


class _Killed(InterchangeLost):
    pass


def _there(pid: int) -> bool:
    """A process that we may have started is there; if it is not, and we did, what ended it is known from now on."""
    if pid not in _children:
        return runs(pid)
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:     # somebody else in this process has waited for it
        _children.discard(pid)
        return runs(pid)
    if ended != pid:
        return True
    _children.discard(pid)
    if os.WIFSIGNALED(status):
        _killed.add(pid)
    return False


def find(site: Path) -> Connection:
    """The site's interchange, waiting for somebody to start it if there is none.  Raises as find_or_start() does."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = connection.read(site)
        if found is not None and found.alive and found.near:
            return checked(site, found)
        if time.monotonic() > deadline:
            raise InterchangeLost(f"nobody has started an interchange for {site} in {PATIENCE:.0f} s")
        time.sleep(0.05)


def find_or_start(site: Path, wanted: Wanted) -> Connection:
    """The site's interchange, started if there is none.

    Raises InterchangeLost where none can be reached or started, or the error that it said it could not start for
    (DatabaseTooNew, SettingsError, SiteTaken ...); ProtocolMismatch for one of another version.
    """
    for child in list(_children):
        _there(child)
    found = connection.read(site)
    if found is None or not found.alive or not found.near:
        make(site)
        with turn(site):
            found = connection.read(site)  # somebody may have been faster
            if found is None or not found.alive or not found.near:
                kept = sites.read(site)
                if kept is not None:
                    raise SiteStopped(
                        f"the site {kept.name} ({site}) is not running: `balsamfut site start {kept.name}`")
                found = start(site, ["--embedded", *wanted.arguments()])
    return checked(site, found)


def checked(site: Path, found: Connection) -> Connection:
    if found.protocol != PROTOCOL:
        raise ProtocolMismatch(f"the interchange of {site} (process {found.pid}) speaks protocol {found.protocol}, "
                               f"this balsamfut {PROTOCOL}: use the same version, or end that process first")
    return found


def say(text: str) -> None:
    """One line for the user."""
    try:
        print(f"balsamfut: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):  # no stderr
        pass


def make(site: Path) -> None:
    """The site's directory, made if it is not there.  Raises SiteError where it cannot be."""
    try:
        site.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        why = "it is not a directory" if isinstance(exc, FileExistsError) else exc.strerror
        raise SiteError(f"{site} cannot be the site's directory: {why}; work elsewhere, or name another with site=... "
                        "or $BALSAMFUT_SITE") from None


def tell_unused(site: Path, wanted: Wanted) -> None:
    """A site that is kept has blocks for nodes: what an Executor asks of its own pilot is for nothing there, and
    people are told."""
    given = [f"{name}={value!r}" for name, value in (("platform", wanted.platform), ("nodes", wanted.nodes)) if value]
    if given and (kept := sites.read(site)) is not None:
        verb = "is" if len(given) == 1 else "are"
        say(f"{' and '.join(given)} of the Executor {verb} not used: the site {kept.name} has the nodes of its "
            "blocks (`balsamfut queue submit`), and its platform is in its settings.toml")


@contextmanager
def turn(site: Path) -> Iterator[None]:
    try:
        lock = os.open(site / "interchange.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise InterchangeLost(f"no interchange can be started for {site}: {exc}") from None
    deadline = time.monotonic() + PATIENCE + LEASE
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InterchangeLost(f"somebody, on this host or another, has been starting an interchange for "
                                          f"{site} for {PATIENCE + LEASE:.0f} s") from None
                time.sleep(0.01)
            except OSError:     # a file system without locks: the owners of the database take turns
                break
        yield
    finally:
        os.close(lock)


def start(site: Path, arguments: list[str]) -> Connection:
    """Start an interchange; it may have to watch for some time whether the last one, on another host, still lives.

    Raises as find_or_start does.
    """
    last = connection.read(site)
    if last is not None and last.here:
        (site / connection.NAME).unlink(missing_ok=True)
    elif last is not None and "--take-over" not in arguments:
        say(f"the interchange of {site} was last seen on another host ({last.text}); one here takes its place unless "
            f"that gives a sign of life within {settings.load(site).interchange.lease:g} s")
    (site / "interchange.error").unlink(missing_ok=True)
    (site / "log").mkdir(mode=0o700, exist_ok=True)
    log = site / "log" / "interchange.log"
    begin = log.stat().st_size if log.exists() else 0
    # -P: the working directory, which may hold a queue.py of the user's, is not on the module path.
    argv = [sys.executable, "-P", "-m", "balsamfut.interchange.server", "--site", str(site), *arguments]
    for attempt in range(1, STARTS + 1):
        pid = _spawn(argv, log)
        try:
            return _await_start(site, pid, log, begin)
        except _Killed:
            # Somebody's kill -9, or the kernel's for want of memory: nothing that it said of itself.
            if attempt == STARTS:
                raise
    raise AssertionError


def _spawn(argv: list[str], log: Path) -> int:
    pid = os.posix_spawn(
        sys.executable, argv, _environment(), setsid=True,
        setsigmask=(), setsigdef=(), file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ])
    _children.add(pid)
    return pid


def _environment() -> dict[str, str]:
    """Our own, with what this process imports from made importable: it may be on sys.path alone."""
    own = str(Path(__file__).resolve().parents[2])
    packages = [path for path in sys.path if path.rstrip("/").endswith(("site-packages", "dist-packages"))]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = dict.fromkeys(path for path in (own, *given, *packages) if path)
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _await_start(site: Path, pid: int, log: Path, start: int) -> Connection:
    patience = PATIENCE + settings.load(site).interchange.lease
    deadline = time.monotonic() + patience
    pause = 0.002
    while True:
        running = _there(pid)
        found = connection.read(site)
        if found is not None and found.here and found.pid == pid:
            return found
        if not running:
            raise _failure(site, pid, log, start)
        if time.monotonic() > deadline:
            raise InterchangeLost(f"the interchange that was started for {site} (process {pid}) is not ready after "
                                  f"{patience:.0f} s; see {log}")
        time.sleep(pause)
        pause = min(pause * 1.1, 0.05)


class _Failure(msgspec.Struct):
    error: str
    text: str


def _failure(site: Path, pid: int, log: Path, start: int) -> BalsamfutError:
    """What the interchange left behind about why it did not start."""
    try:
        said = msgspec.json.decode((site / "interchange.error").read_bytes(), type=_Failure)
        return error_named(said.error, said.text)
    except (OSError, msgspec.DecodeError):
        pass
    try:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").strip().splitlines()[-12:]
    except OSError:
        lines = []
    tail = "".join(f"\n  {line}" for line in lines)
    if pid in _killed:
        return _Killed(f"the interchange of {site} was killed by a signal before it was ready, {STARTS} times")
    return InterchangeLost(f"the interchange of {site} ended before it was ready"
                           + (f"; the end of its log:{tail}" if tail else f" and wrote nothing to {log}"))
