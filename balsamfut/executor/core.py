"""What a session knows of its calls: the bookkeeping between an Executor's calls and an interchange's messages.

Calls are numbered when they are first put into a Submit; they stay here, ready to be sent again, until the interchange
has acknowledged them, and their futures until it has told how they ended.  This module knows neither sockets nor
threads, and never unpickles: `handle` returns what is to be delivered, and somebody else does it.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from balsamfut.futures import TaskFuture
from balsamfut.messages import (
    Accepted,
    Answer,
    Cancel,
    Ending,
    Keep,
    KillTasks,
    Message,
    Rejected,
    Running,
    Settled,
    Submit,
    Watch,
)
from balsamfut.model import AppSpec, Payload, Pool, TaskClass, TaskSpec

BATCH = 512
"""Calls in one Submit: enough that a message's cost is spread thin, few enough that the first ones do not wait long."""

Future = TaskFuture[Any]


class Call(tuple[Future, int, "Payload | None", Sequence[Future]]):
    """A call on its way: (future, class number, pickled arguments, futures found in them).  A tuple: many are made."""

    __slots__ = ()


@dataclass(slots=True)
class Definition:
    """What calls refer to; a new interchange is told all of them again."""

    classes: list[tuple[int, TaskClass]] = field(default_factory=list)
    apps: list[AppSpec] = field(default_factory=list)
    codes: list[tuple[bytes, Payload]] = field(default_factory=list)
    pools: list[tuple[bytes, Pool]] = field(default_factory=list)

    def add(self, other: Definition) -> None:
        self.classes += other.classes
        self.apps += other.apps
        self.codes += other.codes
        self.pools += other.pools

    def __bool__(self) -> bool:
        return bool(self.classes or self.apps or self.codes or self.pools)


class Wish(enum.Enum):
    CANCEL = 1
    KILL = 2


class Ask:
    """A question about some futures.  Once `answered` is set, `results` says what became of each."""

    __slots__ = ("wish", "futures", "answered", "results", "sent")

    def __init__(self, wish: Wish, futures: Sequence[Future]) -> None:
        self.wish = wish
        self.futures = futures
        self.answered = threading.Event()
        self.results: list[bool] = []
        self.sent: list[Future] = []   # those of the futures that the question was about when it was sent

    def fill(self, results: dict[int, bool]) -> None:
        self.results = [results.get(id(future), False) for future in self.futures]


@dataclass(slots=True)
class Kept:
    """How a foreign future ended: what Keep says of the promise."""

    promise: Future
    ok: bool
    payload: Payload
    error: str = ""


Entry = Call | Definition | Ask | Kept
"""What an Executor's threads hand to the session, in the order in which it must be told."""

@dataclass(slots=True)
class Refusal:
    """A call that was not recorded, and the futures that it needed."""

    rejected: Rejected
    needs: Sequence[Future]


Delivery = tuple[Future, Ending | Refusal | None] | Ask
"""A future and how it ended (None: it was cancelled); or a question that has its answer, after the futures in it."""


class Session:
    """The calls of one session that are not over."""

    def __init__(self) -> None:
        self._last = 0                                             # number of the newest call
        self._defined = Definition()
        self._unacked: dict[int, tuple[TaskSpec, Future, Sequence[Future]]] = {}     # by number, ascending
        self._open: dict[int, Future | list[Future]] = {}          # by task id; equal calls may share a task
        self._asked: dict[int, Ask] = {}
        self._requests = 0
        self._kept: dict[Future, Kept] = {}                        # by the promise, until it is recorded as over

    @property
    def outstanding(self) -> int:
        """Calls whose end is not known."""
        return len(self._unacked) + len(self._open)

    @property
    def unacknowledged(self) -> int:
        return len(self._unacked)

    def futures(self) -> list[Future]:
        """The futures of all calls that are not over."""
        found = [future for _, future, _ in self._unacked.values()]
        for entry in self._open.values():
            found.extend(entry if isinstance(entry, list) else (entry,))
        return found

    def questions(self) -> list[Ask]:
        return list(self._asked.values())

    # ---- out

    def take(self, entries: Iterable[Entry]) -> list[Message]:
        """What to send for these entries, in order."""
        out: list[Message] = []
        specs: list[TaskSpec] = []
        news = Definition()
        for entry in entries:
            if type(entry) is Call:
                specs.append(self._number(entry))
            elif isinstance(entry, Definition):
                self._defined.add(entry)
                news.add(entry)
            else:
                if specs or news:
                    out.append(self._submit(specs, news))
                    specs, news = [], Definition()
                message = self._ask(entry) if isinstance(entry, Ask) else self._keep(entry)  # type: ignore[arg-type]
                if message is not None:
                    out.append(message)
        if specs or news:
            out.append(self._submit(specs, news))
        return out

    def _number(self, call: Call) -> TaskSpec:
        future, cls, args, found = call
        n = self._last = self._last + 1
        future._n = n
        needs = tuple([need._id or -need._n for need in found]) if found else ()
        spec = TaskSpec(n, cls, args, needs, future.key, future.occurrence, future._extra)
        self._unacked[n] = spec, future, found
        return spec

    def _submit(self, specs: list[TaskSpec], news: Definition, resent: bool = False) -> Submit:
        first = next(iter(self._unacked), self._last + 1)
        return Submit(specs, news.classes, news.apps, news.codes, news.pools, first - 1, resent)

    def _ask(self, ask: Ask) -> Message | None:
        ask.sent = [future for future in ask.futures if not future.done()]
        if not ask.sent:
            ask.fill({id(future): ask.wish is Wish.CANCEL and future.cancelled() for future in ask.futures})
            ask.answered.set()
            return None
        self._requests += 1
        self._asked[self._requests] = ask
        refs = [future._id or -future._n for future in ask.sent]
        return (Cancel if ask.wish is Wish.CANCEL else KillTasks)(self._requests, refs)

    def _keep(self, kept: Kept) -> Keep | None:
        if kept.promise.done():
            return None
        self._kept[kept.promise] = kept
        return Keep(kept.promise._n, kept.ok, kept.payload, kept.error)

    def resend(self) -> list[Message]:
        """What a new interchange has to be told: it may know some of it, all of it, or nothing."""
        out: list[Message] = []
        calls = list(self._unacked.values())
        news = self._defined
        for start in range(0, max(len(calls), 1), BATCH):
            specs = [self._renewed(spec, found) for spec, _, found in calls[start:start + BATCH]]
            if specs or news:
                out.append(self._submit(specs, news, resent=True))
            news = Definition()
        if self._open:
            out.append(Watch(list(self._open)))
        out.extend(Keep(kept.promise._n, kept.ok, kept.payload, kept.error) for kept in self._kept.values())
        asked, self._asked = self._asked, {}
        out.extend(message for message in map(self._ask, asked.values()) if message is not None)
        return out

    def _renewed(self, spec: TaskSpec, found: Sequence[Future]) -> TaskSpec:
        """The spec with the ids of those needs that have one by now: the new interchange may not know their numbers."""
        if not found:
            return spec
        return msgspec.structs.replace(spec, needs=tuple([need._id or -need._n for need in found]))

    # ---- in

    def handle(self, message: Message) -> list[Delivery]:
        """Take note of a message; what futures are to be told of it."""
        if isinstance(message, Settled):
            return [(future, ending) for ending in message.endings for future in self._close(ending.task)]
        if isinstance(message, Accepted):
            for n, task, state, known in message.calls:
                self._accept(n, task, state, known)
        elif isinstance(message, Running):
            for task, running in message.tasks:
                for future in self._at(task):
                    future.set_running(running)
        elif isinstance(message, Rejected):
            entry = self._unacked.pop(message.n, None)
            return [(entry[1], Refusal(message, entry[2]))] if entry is not None else []
        elif isinstance(message, Answer):
            return self._answer(message)
        return []

    def _at(self, task: int) -> Sequence[Future]:
        entry = self._open.get(task)
        return () if entry is None else entry if isinstance(entry, list) else (entry,)

    def _close(self, task: int) -> Sequence[Future]:
        entry = self._open.pop(task, None)
        if entry is None:
            return ()
        futures = entry if isinstance(entry, list) else (entry,)
        if self._kept:
            for future in futures:
                self._kept.pop(future, None)
        return futures

    def _accept(self, n: int, task: int, state: Any, known: bool) -> None:
        entry = self._unacked.pop(n, None)
        if entry is None:
            return
        future = entry[1]
        future._task_state = state
        future.from_cache = known
        future._id = task
        there = self._open.setdefault(task, future)
        if there is not future:
            self._open[task] = [*(there if isinstance(there, list) else (there,)), future]

    def _answer(self, message: Answer) -> list[Delivery]:
        ask = self._asked.pop(message.request, None)
        if ask is None:
            return []
        became = dict(zip(map(id, ask.sent), message.results, strict=False))
        gone: list[Delivery] = []
        for future in ask.futures:
            if id(future) not in became:
                became[id(future)] = ask.wish is Wish.CANCEL and future.cancelled()
            elif ask.wish is Wish.CANCEL and became[id(future)]:
                self._forget(future)
                gone.append((future, None))
        ask.fill(became)
        return [*gone, ask]

    def _forget(self, future: Future) -> None:
        self._unacked.pop(future._n, None)
        rest = [other for other in self._at(future._id) if other is not future]
        if rest:
            self._open[future._id] = rest
        else:
            self._open.pop(future._id, None)
