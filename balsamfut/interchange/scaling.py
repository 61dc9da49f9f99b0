"""The elastic queue at work: what is known is put before its brain (elastic.py), and what that decides is done.

Part of the interchange's brain: pure.  It counts what waits, knows which blocks there are and how they stand, asks for
blocks through batch.py and lets those go that run nothing.  Why a block was asked for is recorded with it, and whether
the elastic queue is paused in a file of the site, by the loop; what else it remembers may be forgotten without harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from balsamfut.interchange.backlog import Block, Demand, Phase, demand, gathered
from balsamfut.interchange.batch import Batch
from balsamfut.interchange.book import Book, Pilot
from balsamfut.interchange.elastic import Decision, Plan, Submit, View, decide, usable
from balsamfut.interchange.matcher import ReadyQueues
from balsamfut.interchange.records import BlockRow, Task
from balsamfut.interchange.shapes import Bounds, longest
from balsamfut.interchange.waits import HOUR
from balsamfut.messages import ElasticAnswer, ElasticOrder
from balsamfut.model import TaskState
from balsamfut.placement import Packer
from balsamfut.platforms.queues import NO_LIMIT, Queue
from balsamfut.provider.base import BlockState
from balsamfut.queuemessages import Step
from balsamfut.settings import Elastic

PERIOD: Final = 10.0
"""Seconds between two looks ..."""
SOON: Final = 2.0
"""... but when something is ready after a time without, and while more and more is, it is looked so soon again."""
SETTLES: Final = 60.0
"""Seconds that a growing backlog is waited for at most: a block for its beginning would be too small."""
END: Final = 7200.0
"""Seconds that the end of the work may take: where it is near for longer more work keeps coming, and the oldest goes
first again."""
DAY: Final = 86400.0


class Scaling:
    """The part of the brain that asks for blocks by itself."""

    def __init__(self, book: Book, queues: ReadyQueues, batch: Batch, settings: Elastic, paused: bool) -> None:
        self.book = book
        self.queues = queues
        self.batch = batch
        self.settings = settings
        self.paused = paused
        node = batch.recipe.platform.node
        self._extra = pairs(settings.extra)
        self._packer = Packer(node, [f"n{index}" for index in range(min(batch.recipe.platform.max_nodes, 2))])
        self._offers = offers(batch.recipe.queues, batch.recipe.provider, batch.recipe.platform.max_nodes, settings)
        self._longest_for: dict[int, float] = {}     # nodes of a task -> seconds in the longest block for it
        self._hopeless: list[int] = []               # classes that are ready and fit no node, at the last look
        self._idle: dict[int, float] = {}        # pilot -> since when it has run nothing
        self._surplus: dict[str, float] = {}     # of the plan before
        self._next = self._looked = 0.0
        self._growing = 0.0                      # since when more and more is ready
        self._ready = 0
        self._near_since = 0.0                   # since when the end of the work is near

    # ---- what people ask

    def order(self, peer: bytes, message: ElasticOrder, now: float) -> None:
        """Answer what somebody wants to know, or to be done."""
        error = ""
        if self.batch.sessions.config.embedded:
            error = ("the interchange that runs here belongs to a script and has its own machine alone; the elastic "
                     "queue is for sites that are kept: `balsamfut site init`")
        elif message.order in ("pause", "resume"):
            self.paused = message.order == "pause"
            self.book.event(now, "elastic", "paused" if self.paused else "goes on")
        elif message.order != "plan":
            error = f"there is no order {message.order!r} for the elastic queue; there are plan, pause and resume"
        answer = ElasticAnswer(message.request, self.settings.enabled, self.paused, error=error)
        if message.order == "plan" and not error:
            plan = self.think(now)
            answer = ElasticAnswer(message.request, self.settings.enabled, self.paused, list(plan.lines),
                                   [self._step(decision) for decision in plan.decisions], plan.finish)
        self.book.out.clients.setdefault(peer, []).append(answer)

    def _step(self, decision: Decision) -> Step:
        if isinstance(decision, Submit):
            return Step("submit", decision.why, decision.queue, decision.nodes, decision.wall)
        row = self._row(decision.token)
        return Step("release", decision.why, row.queue, row.nodes, row.walltime, row.id)

    # ---- what it does

    def look(self, now: float, token: Callable[[], str]) -> None:
        """Ask for blocks and let blocks go, if it is time to.  token: a new one, unique for ever."""
        sessions = self.batch.sessions
        if not self.settings.enabled or sessions.config.embedded or sessions.stopping:
            return
        self._watch(now)
        if not self._ready and self.queues.size:
            self._next = min(self._next, now + SOON)
            self._ready = 1
        idle = min(self._idle.values(), default=now) + self.settings.idle
        if now < self._next and not (idle <= now and now - self._looked >= SOON):
            return
        self._looked = now
        self._next = now + PERIOD
        plan = self.think(now)
        self._surplus = dict(plan.surplus)
        self._near_since = (self._near_since or now) if plan.longest_first else 0.0
        self.queues.longest_first = plan.longest_first and now - self._near_since < END
        unsettled = self._unsettled(now)
        for decision in plan.decisions:
            if not isinstance(decision, Submit):
                self._release(self._row(decision.token), decision.why, now)
            elif not unsettled:
                row = self.batch.want(token(), decision.queue, decision.nodes, decision.wall, now, why=decision.why,
                                      project=self.settings.project, params=self._extra)
                self.book.event(now, "elastic", f"block {row.id} is asked for: {decision.why}", pilot=row.id)

    def think(self, now: float) -> Plan:
        """What is to be done, and why."""
        view = self.view(now)
        plan = decide(view, self._surplus)
        return msgspec.structs.replace(plan, lines=(*self._before(), *plan.lines))

    def _hindrance(self, now: float) -> str:
        """Why nothing can be asked for, whatever waits."""
        machine = self.batch.recipe.platform
        if self.batch.troubled:
            return self.batch.troubled
        if not self._offers:
            return (f"the queues of {machine.name} are not described; [elastic] max_nodes and max_hours in "
                    "settings.toml say what may be asked for")
        if machine.scheduler.get("account_required") and not self.settings.project:
            return f"{machine.name} wants to know which project pays: [elastic] project in settings.toml"
        return self.batch.arrivals.hindrance(self.settings.backoff, now)

    def _before(self) -> list[str]:
        lines = []
        if not self.settings.enabled:
            lines.append("[elastic] enabled is false in settings.toml: nothing of this is done")
        return [*lines, *map(self._too_much, self._hopeless)]

    def hopeless(self, cls: int) -> str:
        """Why no block of this machine could run tasks of a class; "": one could."""
        return "" if self._demand(cls) is not None else self._too_much(cls)

    def _too_much(self, cls: int) -> str:
        return (f"{self.book.classes[cls].app.name} asks for more than any node of {self.batch.recipe.platform.name} "
                "has: no block is asked for it")

    def _unsettled(self, now: float) -> bool:
        """Calls are still coming."""
        before, self._ready = self._ready, self.queues.size
        if self._ready <= 1.1 * before:
            self._growing = 0.0
            return False
        self._growing = self._growing or now
        if now - self._growing < SETTLES:
            self._next = min(self._next, now + SOON)
            return True
        return False

    def _watch(self, now: float) -> None:
        """What runs nothing, and since when."""
        for number in self.book.blocks:
            pilot = self.book.pilots.get(number)
            if pilot is not None and pilot.enrolled and not pilot.held:
                self._idle.setdefault(number, now)
            else:
                self._idle.pop(number, None)
        self._idle = {number: since for number, since in self._idle.items() if number in self.book.blocks}

    def _release(self, row: BlockRow, why: str, now: float) -> None:
        pilot = self.book.pilots.get(row.id)
        if pilot is not None and pilot.held:
            return                   # it was given something meanwhile
        self.book.event(now, "elastic", f"block {row.id} is let go: {why}", pilot=row.id)
        self.batch.end(row, now)

    def _row(self, token: str) -> BlockRow:
        return next(row for row in self.book.blocks.values() if row.token == token)

    # ---- what it sees

    def view(self, now: float) -> View:
        """All that is known."""
        ready, later = self.book.counts.ready, self.book.counts.later
        each = {cls: self._demand(cls, ready.get(cls, 0), later.get(cls, 0)) for cls in ready.keys() | later.keys()}
        self._hopeless = sorted(cls for cls in ready if each[cls] is None)
        blocks = tuple(self._block(row, now, ready) for row in self.book.blocks.values())
        demands = gathered([demand for demand in each.values() if demand is not None], blocks)
        past = self.batch.past
        running = sum(row.nodes * (now - row.started) for row in self.book.blocks.values() if row.started)
        return View(
            now, tuple(demands), blocks, self._offers, self.settings, seen=tuple(past.waits),
            failures=self.batch.failures, spent=past.spent + running, paused=self.paused,
            hindrance=self._hindrance(now))

    def _demand(self, cls: int, ready: int = 0, later: int = 0) -> Demand | None:
        info = self.book.classes[cls]
        options = info.spec.options
        walltime = 0.0 if options.checkpoint else options.walltime
        return demand(info.app.name, info.spec.resources, walltime, info.typical, ready, later, self._packer,
                      longest=self._longest(info.spec.resources.num_nodes), cut=options.checkpoint, cls=cls)

    def _longest(self, nodes: int) -> float:
        """Seconds that the longest block for tasks of so many nodes would have for them."""
        if nodes not in self._longest_for:
            settings = self.settings
            bounds = Bounds(settings.min_nodes, min(settings.max_nodes or NO_LIMIT, settings.total_nodes or NO_LIMIT),
                            settings.max_hours * HOUR or math.inf)
            self._longest_for[nodes] = longest(usable(self._offers, settings), bounds, nodes)
        return self._longest_for[nodes]

    def _block(self, row: BlockRow, now: float, ready: Iterable[int]) -> Block:
        pilot = self.book.pilots.get(row.id)
        phase = Phase.QUEUED
        if row.removal or pilot is None or pilot.stopping:
            phase = Phase.LEAVING
        elif pilot.enrolled or row.state == BlockState.RUNNING:
            phase = Phase.RUNNING
        started = row.started or (pilot.row.started if pilot is not None else 0.0)
        end = 0.0 if phase is Phase.QUEUED else started + (row.walltime or DAY)
        if pilot is not None and pilot.enrolled:
            end = min(end, pilot.ends)           # by which its tasks have to be over
        return Block(
            row.token, row.queue, row.nodes, row.walltime or DAY, phase, started or row.submitted, end,
            self._busy(pilot, now) if pilot is not None else 0.0, self._idle.get(row.id, 0.0), bool(row.why),
            row.takes_everything and not row.note,
            self._refused(pilot, ready) if pilot is not None else frozenset())

    def _refused(self, pilot: Pilot, ready: Iterable[int]) -> frozenset[int]:
        """The classes that it has become too little for, or too late.  Where it is all there and does not take one, no
        other block would: that is no reason to ask for one."""
        if not (pilot.enrolled and (pilot.out or pilot.spent)):
            return frozenset(pilot.closed)
        capacity = self.batch.pilots.attempts.capacity
        return frozenset(pilot.closed).union(cls for cls in ready if not capacity(pilot, cls))

    def _busy(self, pilot: Pilot, now: float) -> float:
        """Node-seconds that what a pilot has will still take."""
        known: dict[int, Demand | None] = {}
        total = 0.0
        for task in pilot.held.values():
            if task.cls not in known:
                known[task.cls] = self._demand(task.cls)
            each = known[task.cls]
            if each is not None:
                total += _left(task, each.seconds, now) * each.nodes / each.per_node
        return total


def _left(task: Task, seconds: float, now: float) -> float:
    if task.state is not TaskState.RUNNING or not task.started:
        return seconds
    return max(0.1 * seconds, seconds - max(0.0, now - task.started))


def pairs(text: str) -> dict[str, str]:
    """`a=1 b=2` as a dict."""
    return dict(word.split("=", 1) for word in text.split())


def offers(queues: tuple[Queue, ...], provider: str, most: int, settings: Elastic) -> tuple[Queue, ...]:
    """The queues that blocks may be asked of.  Where none is described: this machine takes one block at a time, and
    another batch system what the settings say, which then have to."""
    if queues:
        return queues
    if provider == "local":
        return (Queue("", 1, most, 60.0, 7 * DAY, max_queued=1, max_running=1),)
    if not (settings.max_nodes and settings.max_hours):
        return ()
    return tuple(Queue(name, 1, settings.max_nodes, 60.0, 3600.0 * settings.max_hours)
                 for name in settings.queues.split() or [""])

