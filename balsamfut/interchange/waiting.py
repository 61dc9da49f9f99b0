"""Why tasks that are READY wait: what people are told who ask.  Part of the brain: pure.

Nothing is decided here.  Each part of the brain that may keep a task from its place is asked, and the first that does
is the reason.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

from balsamfut.interchange import unfit
from balsamfut.interchange.attempts import Attempts
from balsamfut.interchange.book import Book, Pilot, Session
from balsamfut.interchange.closing import Closing, needs
from balsamfut.interchange.elastic import Plan, Submit
from balsamfut.interchange.matcher import QueueKey, ReadyQueues
from balsamfut.interchange.records import BlockRow, Task
from balsamfut.interchange.scaling import Scaling
from balsamfut.messages import AskWhy, WhyAnswer
from balsamfut.model import TaskState
from balsamfut.platforms.queues import span
from balsamfut.provider.base import BlockState
from balsamfut.queuemessages import Waiting

FULL: Final = "all places that they fit are taken"
LATE: Final = "the blocks that run have too little time left for them"
AGAIN: Final = "they could not be started (`balsamfut task show` says why), and are tried again in a moment"
NOBODY: Final = "nobody runs their campaign now: run its script again, or `balsamfut resume`"
STARTING: Final = "the pilot of this machine is starting"
NONE: Final = "there is no block"
ASK: Final = "`balsamfut queue submit` asks for one"
FEW: Final = 2
"""So many blocks are named that would not take a task."""


class Reasons:
    """See the module."""

    def __init__(self, book: Book, queues: ReadyQueues, attempts: Attempts, closing: Closing,
                 scaling: Scaling) -> None:
        self.book = book
        self.queues = queues
        self.attempts = attempts
        self.closing = closing
        self.scaling = scaling

    def answer(self, session: Session, message: AskWhy, now: float) -> None:
        """Tell what every READY task waits for."""
        book, look = self.book, _Look(self, now)
        found: dict[tuple[str, str], list[int]] = {}
        for key, tasks in self.queues.waiting():
            app = book.classes[key[0]].app.name
            for task in tasks:
                found.setdefault((app, look.why(key, task)), []).append(task.id)
        for _, number in self.attempts.later:
            refused = book.tasks.get(number)
            if refused is not None and refused.state is TaskState.READY:
                found.setdefault((book.classes[refused.cls].app.name, AGAIN), []).append(number)
        for number in message.tasks:      # of campaigns that nobody runs, most are not even at hand
            known = book.find(number)
            if known is None or (known.state is TaskState.READY and known.campaign not in book.active):
                found.setdefault(("" if known is None else book.classes[known.cls].app.name, NOBODY), []).append(number)
        asked = set(message.tasks)
        book.send_client(session, WhyAnswer(message.request, [
            Waiting(app, why, len(tasks), [task for task in tasks if task in asked])
            for (app, why), tasks in found.items()]))


class _Look:
    """One look at everything: what is the same for many tasks is found out once."""

    def __init__(self, reasons: Reasons, now: float) -> None:
        self._all = reasons
        self._book = reasons.book
        self._now = now
        self._known: dict[tuple[QueueKey, tuple[int, ...]], str] = {}
        pilots = self._book.pilots.values()
        self._here = [pilot for pilot in pilots if pilot.enrolled and not pilot.stopping]
        self._coming = [pilot for pilot in pilots if not pilot.enrolled and not pilot.stopping]
        self._divided = any(pilot.filter for pilot in self._coming)

    def why(self, key: QueueKey, task: Task) -> str:
        """Of one of the tasks of a line."""
        passes = tuple(pilot.id for pilot in self._coming if pilot.takes(task)) if self._divided else ()
        if (key, passes) not in self._known:
            self._known[key, passes] = self._why(key, task)
        return self._known[key, passes]

    def _why(self, key: QueueKey, task: Task) -> str:
        cls, limited, passes = key
        session = self._book.sessions.get(limited)
        if session is not None and session.assigned >= session.limit:
            return f"max_workers of their Executor is {session.limit}, and so many run"
        closing, here = self._all.closing, [pilot for pilot in self._here if not pilot.only or pilot.only & passes]
        if any(closing.room(pilot, cls, self._now) for pilot in here):
            return FULL
        refused = []
        for pilot in self._coming:
            if not (why := self._refuses(pilot, task)):
                return self._is_coming(pilot)
            refused.append(why)
        kept = ""
        if self._here:
            kept = unfit.reason(self._all.attempts, self._here, cls, passes) or closing.too_long(cls, self._now) or LATE
        return "; ".join(filter(None, (kept, *list(dict.fromkeys(refused))[:FEW], self._more(cls))))

    def _refuses(self, pilot: Pilot, task: Task) -> str:
        """Why a pilot that is to come would not take a task; "": it would."""
        info, part = self._book.classes[task.cls], pilot.part
        block = f"block {pilot.block}" if pilot.block else "the pilot of this machine"
        resources = task.again or info.spec.resources
        if part.mode not in ("any", "serial" if resources.serial else "mpi") or not pilot.takes(task):
            return f"{block} takes only {part.describe()}"
        if part.nodes < resources.num_nodes:
            return f"{block} has too few nodes: {part.nodes}, and they ask for {resources.num_nodes}"
        row = self._book.blocks.get(pilot.block)
        if row is not None and row.walltime and needs(info) >= row.walltime:
            return f"{block} is too short: {span(row.walltime)}, and they take {span(needs(info))}"
        return ""

    def _is_coming(self, pilot: Pilot) -> str:
        row = self._book.blocks.get(pilot.block)
        return STARTING if row is None else _stands(row)

    # ---- more blocks

    def _more(self, cls: int) -> str:
        """Why there is no further block."""
        scaling = self._all.scaling
        if scaling.batch.sessions.config.embedded:
            return "" if self._here else STARTING
        none = "" if self._book.blocks else NONE
        if not scaling.settings.enabled:
            return f"{none}: {ASK}" if none else ""
        hopeless = scaling.hopeless(cls)
        return "; ".join(filter(None, (none, hopeless or self._plan.homeless.get(cls) or self._elastic)))

    @cached_property
    def _plan(self) -> Plan:
        return self._all.scaling.think(self._now)

    @property
    def _elastic(self) -> str:
        """What the elastic queue does about it."""
        asks = any(isinstance(decision, Submit) for decision in self._plan.decisions)
        paused = " (`balsamfut queue resume`)" if self._all.scaling.paused else ""
        return "the elastic queue is about to ask for one" if asks else f"{self._plan.shut}{paused}"


def _stands(row: BlockRow) -> str:
    """Of a block that has no pilot yet."""
    if row.note:
        return f"block {row.id} runs, but {row.note}"
    if row.state == BlockState.RUNNING:
        return f"block {row.id} has begun, and its pilot is starting"
    where = f" of queue {row.queue}" if row.queue else ""
    said = f": {row.text}" if row.text else ""
    if row.state == BlockState.SUBMITTING:
        return f"block {row.id}{where} is being asked for{said}"
    return f"block {row.id} waits for its nodes{where and ' in' + where[3:]}{said}"
