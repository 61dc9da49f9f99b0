"""What `balsamfut doctor` looks at: each check says in one sentence how something is, and what to do where it is wrong.

Nothing is changed, and nothing that takes long is asked; what does not answer in time is said not to.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import msgspec

from balsamfut import __version__, connection, platforms, settings, sites
from balsamfut.cli import output
from balsamfut.errors import BalsamfutError
from balsamfut.platforms import Platform
from balsamfut.settings import Settings

Level = Literal["ok", "warning", "error"]
PACKAGES: Final = ("msgspec", "pyzmq", "SQLAlchemy", "cloudpickle", "tblib", "click", "Jinja2", "psutil", "rich")
LITTLE: Final = 500 << 20
"""Bytes that are free, below which it is said."""


class Check(msgspec.Struct, frozen=True):
    check: str       # what was looked at
    level: Level
    text: str        # one sentence


def ok(check: str, text: str) -> Check:
    return Check(check, "ok", text)


def warning(check: str, text: str) -> Check:
    return Check(check, "warning", text)


def error(check: str, text: str) -> Check:
    return Check(check, "error", text)


class Subject(msgspec.Struct, frozen=True):
    """What is looked at."""

    site: Path | None            # None: there is no site here
    settings: Settings
    platform: Platform
    detected: str                # the platform that this host looks like

    @property
    def provider(self) -> str:
        return self.settings.pilot.provider or str(self.platform.scheduler.get("kind") or "local")


def guarded(name: str, check: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks; what raises is an error that the check has found."""
    try:
        yield from check()
    except (BalsamfutError, OSError) as problem:
        yield error(name, str(problem))


def software(chosen: Settings) -> Iterator[Check]:
    yield ok("python", f"Python {sys.version.split()[0]}, balsamfut {__version__} ({sys.executable})")
    wanted = [*PACKAGES, *(["psycopg"] if chosen.database.url.startswith("postgres") else [])]
    found, missing = [], []
    for name in wanted:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        extra = "'balsamfut[postgres]'" if missing == ["psycopg"] else "balsamfut"
        yield error("packages", f"{', '.join(missing)} not there: pip install {extra}")
    else:
        yield ok("packages", ", ".join(found))


# ---- the site


def site(subject: Subject) -> Iterator[Check]:
    place = subject.site
    if place is None:
        yield ok("site", "there is none here; `balsamfut site init PATH` makes one, a script makes its own")
        return
    kept = sites.read(place)
    why = sites.moved(place, kept) if kept is not None else None
    if why is not None:
        yield error("site", why)
    elif not os.access(place, os.W_OK | os.X_OK):
        yield error("site", f"{place} cannot be written: it has to be yours, and its file system writable")
    elif place.stat().st_mode & 0o022:
        yield warning("site", f"others may write in {place}: chmod go-w {place}")
    else:
        yield ok("site", f"{kept.name if kept else 'a script’s own'}, in {place}")
    yield from disk(place, subject.settings)


def disk(place: Path, chosen: Settings) -> Iterator[Check]:
    from balsamfut.interchange import mounts

    kind = mounts.here(place)
    room = os.statvfs(place)
    free = room.f_bavail * room.f_frsize
    sqlite = "://" not in chosen.database.url
    if free < LITTLE:
        yield warning("disk", f"{free >> 20} MB are free on the file system of {place}: make room before it is "
                      "full; nothing is lost then, but nothing goes on")
    elif kind in ("tmpfs", "ramfs"):
        yield warning("disk", f"{place} is in memory ({kind}): it is gone when this machine restarts")
    elif mounts.network(kind) and sqlite:
        yield ok("disk", f"{kind}, shared between hosts: SQLite works there without a write-ahead log, with "
                 "slower commits; for thousands of tasks a minute set database.url to PostgreSQL")
    else:
        yield ok("disk", f"{kind or 'of a kind that this system does not tell'}, {free >> 30} GB free")


def database(subject: Subject) -> Iterator[Check]:
    from balsamfut import schema
    from balsamfut.query import open_site

    place = subject.site
    if place is None:
        return
    url = schema.database_url(subject.settings.database_url(place))
    file = Path(str(url.database)) if url.get_backend_name() == "sqlite" else None
    if file is not None and not file.exists():
        yield ok("database", f"{file} is made by the first start")
        return
    try:
        with open_site(place) as reader:
            counts, owner = reader.count(), reader.owner()
    except BalsamfutError as problem:
        yield error("database", str(problem))
        return
    size = f", {sum(each.stat().st_size for each in file.parent.glob(file.name + '*')) / 1e6:.1f} MB" if file else ""
    yield ok("database", f"{schema.name_of(url)}, tables of version {schema.VERSION}{size}, "
             f"{output.counted(counts) or 'no task'}")
    yield from interchange(subject, place, owner.text if owner.pid else "")


def interchange(subject: Subject, place: Path, owner: str) -> Iterator[Check]:
    from balsamfut.executor import keeping

    found = connection.read(place)
    start = f"balsamfut site start {place}"
    if found is None or not found.alive:
        if owner and found is None and f" {os.uname().nodename}," not in owner:
            yield warning("interchange", f"the database belongs to {owner}, and says not where it listens: "
                          f"`{start}` takes its place if it is gone")
        else:
            yield ok("interchange", "none runs")
    elif connection.stopped(found):
        yield error("interchange", f"{found.text}, is stopped by a signal: kill -CONT {found.pid}, or "
                    f"`{start} --take-over`")
    elif keeping.lives(place, found):
        yield ok("interchange", found.text)
    else:
        yield warning("interchange", f"{found.text}, does not answer from here: `{start}` takes its place if it "
                      "gives no sign of life")


# ---- the machine


def machine(subject: Subject) -> Iterator[Check]:
    platform, detected = subject.platform, subject.detected
    source = subject.settings.sources.get("pilot.platform", "nowhere: the default")
    facts = "" if platform.name == "workstation" else f", by its documentation of {platform.verified_on}"
    if platform.name == detected:
        yield ok("platform", f"{platform.name}, and this host looks like it{facts}")
    elif detected == "workstation":
        yield warning("platform", f"pilot.platform is {platform.name} (set in {source}), and nothing here looks "
                      f"like it{facts}: right if its nodes are pretended, or this is another of its hosts")
    elif subject.site is None:
        yield ok("platform", f"this host looks like {detected}; a site made here is for that")
    else:
        yield warning("platform", f"pilot.platform is {platform.name} (set in {source}), and this host looks like "
                      f"{detected}: set platform = \"{detected}\" under [pilot] in settings.toml")


def network(subject: Subject) -> Iterator[Check]:
    from balsamfut.network import interfaces, own_address

    wanted = subject.settings.interchange.interface or str(subject.platform.network.get("callback_interface", ""))
    address = own_address(wanted)
    if wanted and wanted not in interfaces():
        yield warning("network", f"this host has no interface {wanted}, so pilots are told {address}: set interface "
                      f"under [interchange] to one that nodes reach ({', '.join(interfaces())})")
    elif address.startswith("127.") and subject.provider != "local":
        yield error("network", f"the address of this host is {address}, which no node reaches: set interface "
                    "under [interchange]")
    else:
        yield ok("network", f"pilots on nodes come to {address}" + (f" ({wanted})" if wanted else ""))


def launcher(subject: Subject) -> Iterator[Check]:
    from balsamfut.platforms import probe

    set_one, known = subject.settings.pilot.mpiexec, subject.platform.launcher
    usual = known.exe or known.flavour if known.flavour else ""
    if usual and not set_one and shutil.which(usual) is None:
        yield warning("mpi", f"{usual} ({known.flavour}), which starts MPI programs on {subject.platform.name}, is not "
                      "on PATH here: if it comes with a module, name that in preamble under [pilot]")
        return
    found = probe.launcher(os.environ, set_one or usual)
    if isinstance(found, str):
        yield warning("mpi", f"{found}; only tasks of several ranks need it")
        return
    real = os.path.realpath(found.exe)
    path = found.exe if real == found.exe else f"{found.exe} ({real})"
    if known.flavour and found.flavour != known.flavour:
        yield warning("mpi", f"{path} is {found.flavour}, and {subject.platform.name} starts MPI programs by "
                      f"{known.flavour}: load its module, or set mpiexec under [pilot]")
    else:
        yield ok("mpi", f"{path}, {found.flavour}")


def subject_of(place: Path | None, detected: str) -> Subject:
    """Raises SettingsError."""
    chosen = settings.load(place) if place is not None else settings.load(Path.cwd() / sites.EMBEDDED)
    name = chosen.pilot.platform
    if place is None and "pilot.platform" not in chosen.sources:
        name = detected
    return Subject(place, chosen, platforms.at(place or Path("/nonexistent"), name), detected)
