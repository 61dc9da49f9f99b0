"""Asking the interchange that runs here for something that it answers at once."""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from balsamfut import connection, settings, sites
from balsamfut.errors import InterchangeLost, SiteError, UsageError
from balsamfut.executor import local
from balsamfut.executor.line import BEAT, Line
from balsamfut.messages import (
    PROTOCOL,
    AskWhy,
    BlockAnswer,
    ElasticAnswer,
    ElasticOrder,
    Hello,
    Message,
    Notice,
    Refused,
    RemoveBlock,
    SubmitBlock,
    WhyAnswer,
)
from balsamfut.platforms.queues import absurd
from balsamfut.queuemessages import Waiting
from balsamfut.wire import Poller

A = TypeVar("A", bound=Message)
PATIENCE: Final = 5.0
"""Seconds that an interchange has to say why tasks wait: what else is known of them is not kept back for longer."""

def ask(site: Path, message: Message, answer: type[A], *, nobody: str, lost: str = "",
        notice: Callable[[str], None] = lambda text: None, seconds: float = 0.0) -> A:
    """The interchange's answer of this type.

    nobody: the sentence where none runs.  lost: what more to say where it goes away before it answers.  notice: is told
    what else it has for people.  seconds: that it has to answer; 0.0: as long as it lives.  Raises InterchangeLost
    in all these cases, and where it refuses us.
    """
    found = connection.read(site)
    if found is None or not found.alive:
        raise InterchangeLost(nobody)
    poller = Poller()
    hello = Hello(PROTOCOL, uuid.uuid4().hex, None, os.getpid(), os.uname().nodename, observer=True)
    line = Line(site, hello, local.Wanted(), poller)
    deadline = time.monotonic() + (seconds or math.inf)
    try:
        if seconds:
            line.meet(local.checked(site, found), seconds)
        else:
            line.connect()
        line.send(message)
        line.next_beat = time.monotonic() + BEAT
        while True:
            if time.monotonic() > deadline:
                raise InterchangeLost(f"the interchange of {site} did not answer in {seconds:g} s")
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


def why_waiting(site: Path, tasks: Sequence[int]) -> list[Waiting]:
    """Why tasks that are READY wait: these, and how many there are of all.  Raises as ask does."""
    found = connection.read(site)
    if found is not None and connection.stopped(found):
        raise InterchangeLost(f"the interchange, {found.text}, is stopped by a signal: kill -CONT {found.pid}")
    return ask(site, AskWhy(1, list(tasks)), WhyAnswer, nobody=_nobody(site), seconds=PATIENCE).waiting


def order_elastic(site: Path, order: str) -> ElasticAnswer:
    """plan, pause or resume.  Raises as ask does, and UsageError with why it is refused."""
    answer = ask(site, ElasticOrder(1, order), ElasticAnswer, nobody=_nobody(site))
    if answer.error:
        raise UsageError(answer.error)
    return answer


def ask_for_block(site: Path, message: SubmitBlock | RemoveBlock) -> BlockAnswer:
    """The answer, of which block it is.  Raises as ask does, and UsageError with why it is refused.

    A dry run needs no interchange: where none runs, it is what one that were started now would submit.
    """
    if isinstance(message, SubmitBlock) and (why := absurd(message.nodes, message.walltime)) is not None:
        raise UsageError(why)       # numbers that a message cannot hold are among these
    found = connection.read(site)
    if isinstance(message, SubmitBlock) and message.dry_run and (found is None or not found.alive):
        answer = _preview(site, message)
    else:
        answer = ask(site, message, BlockAnswer, nobody=_nobody(site))
    if answer.error:
        raise UsageError(answer.error)
    return answer


def _nobody(site: Path) -> str:
    """Said where no interchange runs."""
    kept = sites.read(site)
    if kept is None:
        return (f"no interchange runs for {site}, which belongs to the scripts that work there: it comes with them, or "
                "with `balsamfut resume`")
    return f"the site {kept.name} ({site}) is not running: `balsamfut site start {kept.name}`"


def _preview(site: Path, message: SubmitBlock) -> BlockAnswer:
    from balsamfut.provider.recipe import Recipe
    from balsamfut.query import open_site

    if sites.read(site) is None:
        raise UsageError(f"{site} is no site that is kept, so it has no blocks; `balsamfut site init` makes one")
    recipe = Recipe.of(site, settings.load(site))
    number, taken = 1, []
    try:
        with open_site(site) as reader:
            number += max((pilot.id for pilot in reader.pilots()), default=0)
            taken = [(block.queue, block.started is not None) for block in reader.blocks()]
    except SiteError:      # none has run yet: there is no database
        pass
    return recipe.preview(message.request, message, number, taken)
