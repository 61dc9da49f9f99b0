"""How the followers of a pilot come to be: one file to join by, one archive of what an agent needs, one launch.

Thousands of Python interpreters that import from a shared file system at once can bring it down, so what an agent
needs is one archive, which each host unpacks on its own disk; the interpreter's own library is that of the machine.
Starts nothing itself: it says what is to be started.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from balsamfut.errors import SiteError
from balsamfut.pilot import dialects
from balsamfut.platforms import Launcher

PACKAGES: Final = ("balsamfut", "msgspec", "zmq", "pyzmq.libs", "psutil")
"""What an agent imports beside the standard library."""

_RANKS: Final = ("PALS_NODEID", "SLURM_NODEID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PALS_RANKID")
"""Where a process that is alone on its host finds the host's number in the list that the launcher was given."""

_BOOTSTRAP: Final = """\
#!/bin/sh
# Started once on each host of a pilot: unpacks the agent on this host's own disk and becomes it.
run={run}
dir=$(mktemp -d "${{TMPDIR:-/tmp}}/balsamfut-XXXXXXXX") || exit 1
tar -xf "$run/agent.tar" -C "$dir" || {{ rm -rf "$dir"; exit 1; }}
export PYTHONPATH="$dir" PYTHONDONTWRITEBYTECODE=1
exec {python} -S -P -m balsamfut.pilot.follower --join "$run/join" --remove "$dir" ${{1:+--host "$1"}}
"""


class Join(msgspec.Struct, array_like=True):
    """What a follower has to know.  The file is private: who reads it may join."""

    address: str
    leader: bytes            # public key of the leader's door
    public: bytes            # the followers' pair
    secret: bytes
    token: str               # of the pilot
    pilot: int
    site: str
    hosts: list[str]         # by index; the leader's own is the first
    platform: str
    cores: int               # of a workstation; 0: as many as there are
    pretend: bool
    mpiexec: str
    ends: float = 0.0        # when the pilot's tasks have to be over (Unix time)


def read_join(path: Path) -> Join:
    """Raises SiteError where it is not there or cannot be read."""
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Join)
    except (OSError, msgspec.DecodeError) as error:
        raise SiteError(f"{path} is no file to join a pilot by: {error}") from None


def named(hosts: Sequence[str], name: str) -> int:
    """Which of the hosts has this name, with or without a domain; -1: none, or several."""
    short = name.partition(".")[0]
    for known in (name, short):
        found = [index for index, host in enumerate(hosts) if host == known or host.partition(".")[0] == known]
        if len(found) == 1:
            return found[0]
    return -1


def follower_of(hosts: Sequence[str], name: str, environ: Mapping[str, str]) -> int:
    """Which of the hosts this is, which is not the first: by its name, else by what the launcher says; -1: neither
    tells."""
    others = hosts[1:]
    found = named(others, name)
    for variable in _RANKS if found < 0 else ():
        if environ.get(variable, "").isdigit() and int(environ[variable]) < len(others):
            return int(environ[variable]) + 1
    return found + 1 if found >= 0 else -1


def order_hosts(hosts: Sequence[str], name: str, *, first: bool = False) -> list[str]:
    """The hosts, each once, this one first.  first: it is the first of them by whatever name.

    Raises SiteError where it is none of them.
    """
    once = list(dict.fromkeys(hosts))
    own = named(once, name)
    if own < 0 and first:
        own = 0
    if own < 0:
        some = ", ".join(once[:5]) + (" ..." if len(once) > 5 else "")
        raise SiteError(f"the agent that leads runs on {name}, which is none of this pilot's hosts: {some}")
    return [once[own], *once[:own], *once[own + 1:]]


def prepare(run: Path, join: Join, python: str = sys.executable) -> None:
    """Write what followers are started with into `run`, which all hosts can read.  Raises OSError."""
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(run / "join", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(msgspec.msgpack.encode(join))
    with tarfile.open(run / "agent.tar", "w") as archive:
        for name in PACKAGES:
            found = _where(name)
            if found is not None:
                archive.add(found, name, filter=_wanted)
    (run / "start.sh").write_text(_BOOTSTRAP.format(run=shlex.quote(str(run)), python=shlex.quote(python)))


def _where(name: str) -> Path | None:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    beside = importlib.util.find_spec("zmq")
    assert beside is not None and beside.origin is not None
    libraries = Path(beside.origin).parents[1] / name        # shared libraries that a wheel brings
    return libraries if libraries.is_dir() else None


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    skipped = ("__pycache__", "/tests", ".pyx", ".pxd", ".pyi", ".c", ".h")
    return None if any(part in entry.name for part in skipped[:2]) or entry.name.endswith(skipped[2:]) else entry


def launches(launcher: Launcher, hosts: Sequence[str], run: Path, index: int = 0,
             params: Mapping[str, str] = {}) -> list[list[str]]:
    """The commands that start a follower on each of these hosts; their files are written into `run`.

    index: of the host, where it is a single one; 0: followers find out which they are.  params: as launch_params.
    """
    commands, files = dialects.agents(launcher, hosts, str(run), params=params)
    for name, content in files.items():
        (run / name).write_bytes(content)
    told = [str(index)] if index else []
    return [[*command, "/bin/sh", str(run / "start.sh"), *told] for command in commands]


