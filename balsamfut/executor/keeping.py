"""Starting the interchange of a site that is kept, whichever host had the last one.

An interchange of this host is looked at by its process.  One of another host is asked: if it answers, the site runs.
If it does not, a new one is started here, which looks for itself whether the old one still lives.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Final

from balsamfut import connection
from balsamfut.connection import Connection
from balsamfut.errors import BalsamfutError
from balsamfut.executor import local
from balsamfut.executor.line import Line
from balsamfut.messages import PROTOCOL, Hello
from balsamfut.wire import Poller

ANSWER: Final = 5.0
"""Seconds that an interchange on another host has to answer."""


def start_site(site: Path, *, take_over: bool = False) -> tuple[Connection, bool]:
    """Have the interchange of a site that is kept running; the second value says that it was not before.

    take_over: one that runs on another host, or is stopped on this one, is replaced without a question.  Raises
    SiteTaken where one lives on another host that cannot be reached, else as local.find_or_start does.
    """
    with local.turn(site):
        found = connection.read(site)
        if found is not None and not (take_over and _may_be_replaced(found)) and lives(site, found):
            return local.checked(site, found), False
        return local.start(site, ["--take-over"] if take_over else []), True


def _may_be_replaced(found: Connection) -> bool:
    """It is on another host, or does not answer on this one."""
    return not found.here or connection.stopped(found.pid)


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
    except BalsamfutError:
        return False
    finally:
        line.drop()
