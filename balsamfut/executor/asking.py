"""Asking the interchange that runs here for something that it answers at once."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from balsamfut import connection
from balsamfut.errors import InterchangeLost, UsageError
from balsamfut.executor import local
from balsamfut.executor.line import Line
from balsamfut.messages import PROTOCOL, BlockAnswer, ElasticAnswer, ElasticOrder, Hello, Message, Notice, Refused
from balsamfut.wire import Poller

A = TypeVar("A", bound=Message)

_NOBODY: Final = "no interchange runs for {site}: `balsamfut site start` starts one"


def ask(site: Path, message: Message, answer: type[A], *, nobody: str, lost: str = "",
        notice: Callable[[str], None] = lambda text: None) -> A:
    """The interchange's answer of this type.

    nobody: the sentence where none runs.  lost: what more to say where it goes away before it answers.  notice: is told
    what else it has for people.  Raises InterchangeLost in both cases, and where it refuses us.
    """
    found = connection.read(site)
    if found is None or not found.alive:
        raise InterchangeLost(nobody)
    poller = Poller()
    hello = Hello(PROTOCOL, uuid.uuid4().hex, None, os.getpid(), os.uname().nodename, observer=True)
    line = Line(site, hello, local.Wanted(), poller)
    line.connect()
    try:
        line.send(message)
        while True:
            readable = poller.poll(0.5)
            for said in line.receive():
                if isinstance(said, answer):
                    return said
                if isinstance(said, Notice):
                    notice(said.text)
                elif isinstance(said, Refused):
                    raise InterchangeLost(said.text)
            if line.ended(readable) or (time.monotonic() >= line.next_beat and not line.beat()):
                raise InterchangeLost(f"the interchange of {site} ended before it answered{lost}")
    finally:
        line.drop(0.5)


def order_elastic(site: Path, order: str) -> ElasticAnswer:
    """plan, pause or resume.  Raises as ask does, and UsageError with why it is refused."""
    answer = ask(site, ElasticOrder(1, order), ElasticAnswer, nobody=_NOBODY.format(site=site))
    if answer.error:
        raise UsageError(answer.error)
    return answer


def ask_for_block(site: Path, message: Message) -> int:
    """The number of the block that the answer is about.  Raises as ask does, and UsageError with why it is refused."""
    answer = ask(site, message, BlockAnswer, nobody=_NOBODY.format(site=site))
    if answer.error:
        raise UsageError(answer.error)
    return answer.block
