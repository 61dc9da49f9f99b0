"""Asking the interchange that runs here for something that it answers at once."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from balsamfut import connection, settings, sites
from balsamfut.errors import InterchangeLost, SiteError, UsageError
from balsamfut.executor import local
from balsamfut.executor.line import Line
from balsamfut.messages import (
    PROTOCOL,
    BlockAnswer,
    ElasticAnswer,
    ElasticOrder,
    Hello,
    Message,
    Notice,
    Refused,
    RemoveBlock,
    SubmitBlock,
)
from balsamfut.platforms.queues import absurd
from balsamfut.wire import Poller

A = TypeVar("A", bound=Message)



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
        return f"no interchange runs for {site}, which belongs to the scripts that work there: it comes with them"
    return f"the site {kept.name} ({site}) is not running: `balsamfut site start {kept.name}`"


def _preview(site: Path, message: SubmitBlock) -> BlockAnswer:
    from balsamfut.provider.recipe import Recipe
    from balsamfut.query import open_site

    if sites.read(site) is None:
        raise UsageError(f"{site} is no site that is kept, so it has no blocks; `balsamfut site init` makes one")
    recipe = Recipe.of(site, settings.load(site).pilot)
    number, taken = 1, []
    try:
        with open_site(site) as reader:
            number += max((pilot.id for pilot in reader.pilots()), default=0)
            taken = [(block.queue, block.state == "running") for block in reader.blocks()]
    except SiteError:      # none has run yet: there is no database
        pass
    return recipe.preview(message.request, message, number, taken)
