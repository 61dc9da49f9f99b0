"""Asking the interchange that runs here for something that it answers at once."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Final

from balsamfut import connection
from balsamfut.errors import InterchangeLost, UsageError
from balsamfut.executor import local
from balsamfut.executor.line import Line
from balsamfut.messages import PROTOCOL, BlockAnswer, Hello, Message
from balsamfut.wire import Poller

PATIENCE: Final = 30.0
"""Seconds for the answer."""


def ask(site: Path, message: Message) -> int:
    """The number of the block that the interchange's answer is about.

    Raises InterchangeLost where none runs or answers, UsageError with what it says where it refuses.
    """
    found = connection.read(site)
    if found is None or not found.alive:
        raise InterchangeLost(f"no interchange runs for {site}: `balsamfut site start` starts one")
    poller = Poller()
    hello = Hello(PROTOCOL, uuid.uuid4().hex, None, os.getpid(), os.uname().nodename, observer=True)
    line = Line(site, hello, local.Wanted(), poller)
    line.connect()
    deadline = time.monotonic() + PATIENCE
    try:
        line.send(message)
        while time.monotonic() < deadline:
            readable = poller.poll(0.5)
            for answer in line.receive():
                if isinstance(answer, BlockAnswer):
                    if answer.error:
                        raise UsageError(answer.error)
                    return answer.block
            if line.ended(readable):
                break
    finally:
        line.drop(1.0)
    raise InterchangeLost(f"the interchange of {site} did not answer; see {site / 'log' / 'interchange.log'}")
