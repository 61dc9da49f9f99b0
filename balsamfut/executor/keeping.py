"""Starting the interchange of a site that is kept, whichever host had the last one.

An interchange of this host is looked at by its process.  One of another host is asked: if it answers, the site runs.
If it does not, a new one is started here, which looks for itself whether the old one still lives.
"""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import Final, TypeGuard

from balsamfut import connection, settings
from balsamfut.connection import Connection
from balsamfut.errors import BalsamfutError, ProtocolMismatch, SiteError
from balsamfut.executor import local
from balsamfut.executor.line import Line
from balsamfut.messages import PROTOCOL, Hello
from balsamfut.wire import Poller

ROOM: Final = 1 << 18
"""Bytes that there must be room for; a new database and its log take less."""

ANSWER: Final = 5.0
"""Seconds that an interchange on another host has to answer."""


def start_site(site: Path, *, take_over: bool = False) -> tuple[Connection, bool]:
    """Have the interchange of a site that is kept running; the second value says that it was not before.

    take_over: one that runs on another host is replaced, and one that is stopped on this host killed, without a
    question.  Raises SiteTaken where one lives on another host that cannot be reached, else as find_or_start does.
    """
    settings.load(site)     # what is wrong is told before anything is made
    found = connection.read(site)
    if _serves(found, site, take_over):
        return local.checked(site, found), False
    _check_room(site)
    with local.turn(site):
        now = connection.read(site)         # somebody may have been faster
        if now != found and _serves(now, site, take_over):
            return local.checked(site, now), False
        if take_over and now is not None and now.here and connection.stopped(now):
            os.kill(now.pid, signal.SIGKILL)    # it may hang in the middle of a transaction, and hold a lock
        return local.start(site, ["--take-over"] if take_over else []), True


def _serves(found: Connection | None, site: Path, take_over: bool) -> TypeGuard[Connection]:
    """It lives, and is not one that is to be replaced: on another host, or stopped on this one."""
    if found is None or (take_over and (not found.here or connection.stopped(found))):
        return False
    return lives(site, found)


def lives(site: Path, found: Connection) -> bool:
    """The interchange is there: of this host's the process, another host's answers."""
    return found.alive and (found.here or (found.near and answers(site, found)))


def answers(site: Path, found: Connection, seconds: float = ANSWER) -> bool:
    """Whether an interchange answers within so many seconds."""
    hello = Hello(PROTOCOL, uuid.uuid4().hex, None, os.getpid(), os.uname().nodename, observer=True)
    line = Line(site, hello, None, Poller())
    try:
        line.meet(found, seconds)
        return True
    except ProtocolMismatch:    # so it answers
        return True
    except BalsamfutError:
        return False
    finally:
        line.drop()


def _check_room(site: Path) -> None:
    """Raise SiteError, and leave nothing behind, where no file can be written: full, a quota, not ours, read-only."""
    probe = site / f".room.{os.getpid()}"
    try:
        try:
            with open(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(b"0" * ROOM)
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise SiteError(f"no interchange can be started for {site}: a file of {ROOM >> 10} KiB cannot be written "
                        f"there, {error.strerror}") from None
