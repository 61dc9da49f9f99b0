"""Ready tasks x pilots: which tasks go to which pilot next.  Pure.

Ready tasks queue by class (and by session, where one limits how many of its tasks run at a time), never in one long
list: the next task is the one with the highest priority, and among equals the oldest, of the heads of a few queues.
A pilot is given work ahead of what it can start (prefill), as much as keeps it busy for a tenth of a second, so that a
freed slot never waits for the interchange; unstarted work can be asked back.

Where a pilot takes only tasks with some tags, tasks that have them queue apart from those that have not, so that nobody
looks at a task to find out who takes it.  What makes a queue is which of the pilots' filters a task passes, not its
tags, which may be different for each task; while no pilot has a filter, nobody looks at tags at all.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from operator import attrgetter
from typing import Final

from balsamfut.interchange.book import Book, ClassInfo, Pilot
from balsamfut.interchange.counts import Counts
from balsamfut.interchange.records import Task
from balsamfut.model import TaskState

AHEAD_SECONDS: Final = 0.1
AHEAD_MOST: Final = 1024
LONG_SECONDS: Final = 5.0
"""Tasks that take longer than this are not sent ahead: another pilot might start them sooner."""

QueueKey = tuple[int, int, int]
"""Class; limited session or 0; a bit for each filter that the task passes."""
Rank = tuple[float, ...]
Filter = frozenset[tuple[str, str]]
"""Tags that a task must have, all of them."""


class ReadyQueues:
    """The tasks that are READY, by class."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self._queues: dict[QueueKey, deque[Task]] = {}
        self._filters: list[Filter] = []
        self._entries = 0                # with those that are not READY any more
        self.longest_first = False       # what takes longest goes before what is oldest
        self.unfit: set[tuple[int, int]] = set()     # class and filters of those that no pilot takes that is here ...
        self.told: set[tuple[int, int]] = set()      # ... or was, as people know

    def push(self, task: Task, limited: int = 0, *, first: bool = False) -> None:
        """Queue a task: behind its class, or (one that comes back) before it."""
        key = (task.cls, limited, self._passes(task) if self._filters else 0)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        if first:
            queue.appendleft(task)
        else:
            queue.append(task)
        self._entries += 1
        self.counts.queued(task)

    @property
    def size(self) -> int:
        """How many tasks are queued and still READY."""
        return self.counts.size

    def _passes(self, task: Task) -> int:
        tags = task.spec.extra.tags if task.spec.extra is not None else ()
        return sum(1 << bit for bit, wanted in enumerate(self._filters) if wanted.issubset(tags)) if tags else 0

    def divide(self, pilots: Collection[Pilot]) -> None:
        """Have a queue for each way of passing the filters of these pilots.  Where nothing changes for anybody, as when
        pilots without filters come and go, no task is looked at."""
        filters = sorted({pilot.filter for pilot in pilots if pilot.filter}, key=sorted)
        for pilot in pilots:
            pilot.only = 1 << filters.index(pilot.filter) if pilot.filter else 0
        if filters == self._filters:
            return
        self._filters = filters
        self.unfit.clear()
        self.told.clear()
        old, self._queues = self._queues, {}
        for (cls, limited, _), queue in old.items():
            for task in queue:
                if task.state is TaskState.READY and task.cls == cls:
                    key = (cls, limited, self._passes(task) if filters else 0)
                    self._queues.setdefault(key, deque()).append(task)
        for key, queue in self._queues.items():      # several may have become one: the oldest first
            self._queues[key] = deque(sorted(dict.fromkeys(queue), key=_age))
        self._entries = sum(map(len, self._queues.values()))

    def sweep(self, most: int = 0) -> None:
        """Let go of the tasks that are not READY any more, if there are more than so many."""
        if self._entries - self.size <= most:
            return
        for key, queue in list(self._queues.items()):
            left = dict.fromkeys(task for task in queue if task.state is TaskState.READY and task.cls == key[0])
            if left:
                self._queues[key] = deque(left)
            else:
                del self._queues[key]
        self._entries = sum(map(len, self._queues.values()))

    def head(self, key: QueueKey) -> Task | None:
        """The next task of a queue; those that are not READY any more (cancelled), or were queued again with another
        class, are dropped on the way."""
        queue = self._queues[key]
        while queue:
            if queue[0].state is TaskState.READY and queue[0].cls == key[0]:
                return queue[0]
            queue.popleft()
            self._entries -= 1
        del self._queues[key]
        return None

    def pop(self, key: QueueKey) -> Task:
        self._entries -= 1
        return self._queues[key].popleft()

    def lines(self) -> list[QueueKey]:
        return list(self._queues)

    def waiting(self) -> Iterator[tuple[QueueKey, list[Task]]]:
        """Each line, and those in it whose turn is to come, each once."""
        for key, queue in self._queues.items():
            ready = {task.id: task for task in queue if task.state is TaskState.READY and task.cls == key[0]}
            if ready:
                yield key, list(ready.values())

    def tasks(self) -> list[Task]:
        """All that are queued and still READY."""
        return [task for queue in self._queues.values() for task in queue if task.state is TaskState.READY]


def allowance(book: Book, pilot: Pilot, cls: int) -> int:
    """How many tasks of a class a pilot may hold: what it can run at once, and some ahead."""
    fits = pilot.capacity.get(cls, 0)
    if fits <= 0 or cls in pilot.late:
        return 0
    typical = book.classes[cls].typical
    if typical < 0.0:
        return 2 * fits
    if typical > LONG_SECONDS:
        return fits
    return fits + max(fits, min(AHEAD_MOST, int(AHEAD_SECONDS * fits / max(typical, 1e-6))))


def match(book: Book, queues: ReadyQueues, pilots: Iterable[Pilot]) -> Iterator[tuple[Pilot, Task]]:
    """Take tasks off the queues for as long as a pilot has room for them, in the order of priority and age; near the
    end of the work, of priority, width and length.

    Each has to be assigned before the next is asked for: a task that was cancelled and is wanted again is queued twice,
    and its state tells that its turn has been.
    """
    able = [pilot for pilot in pilots if pilot.enrolled and not pilot.stopping]
    if not able or not queues.size:
        return
    heads: list[tuple[Rank, int, QueueKey]] = []
    for key in queues.lines():
        head = queues.head(key)
        if head is not None:
            heads.append((_rank(book.classes[key[0]], queues.longest_first), head.id, key))
    heapq.heapify(heads)
    while heads:
        rank, _, key = heads[0]
        cls, limited, passes = key
        room, pilot = _next(book, able, cls, passes)
        session = book.sessions.get(limited) if limited else None
        if session is not None:
            room = min(room, session.limit - session.assigned)
        if pilot is None or room <= 0:
            heapq.heappop(heads)
            continue
        # Up to the head of the next queue this one may go on without asking again.
        bound = _second(heads)
        head = queues.head(key)
        while head is not None and room > 0 and (rank, head.id, key) <= bound:
            queues.pop(key)
            pilot.counts[cls] = pilot.counts.get(cls, 0) + 1
            if session is not None:
                session.assigned += 1
            room -= 1
            yield pilot, head
            head = queues.head(key)
        if head is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (rank, head.id, key))


def _rank(info: ClassInfo, longest_first: bool) -> Rank:
    """What is before the age in the order."""
    options = info.spec.options
    if not longest_first:
        return (-options.priority,)
    return -options.priority, 1 - info.spec.resources.num_nodes, -(options.walltime or info.typical)


_LAST: Final[tuple[Rank, float, QueueKey]] = ((float("inf"),), float("inf"), (0, 0, 0))
_age: Final = attrgetter("id")


def _second(heads: list[tuple[Rank, int, QueueKey]]) -> tuple[Rank, float, QueueKey]:
    rest = heads[1:3]
    return min(rest) if rest else _LAST


def _next(book: Book, pilots: list[Pilot], cls: int, passes: int) -> tuple[int, Pilot | None]:
    """The pilot that is to be given tasks of a class that pass these filters, and how many before it is asked again.

    All are given what they can start before one is given work ahead; then the one that is least loaded comes first.
    """
    if len(pilots) == 1:
        pilot, = pilots
        if pilot.only and not pilot.only & passes:
            return 0, None
        return allowance(book, pilot, cls) - pilot.counts.get(cls, 0), pilot
    best: Pilot | None = None
    least, most = 0.0, 0
    for pilot in pilots:
        if pilot.only and not pilot.only & passes:
            continue
        room = allowance(book, pilot, cls) - pilot.counts.get(cls, 0)
        if room > 0 and (best is None or (busy := load(pilot)) < least or (busy == least and room > most)):
            best, least, most = pilot, load(pilot), room
    if best is None:
        return 0, None
    free = int((1.0 - least) * best.capacity[cls])
    return min(most, max(1, free) if least < 1.0 else most // 2 + 1), best


def load(pilot: Pilot) -> float:
    """What a pilot has, in parts of what it can run at once: above 1, some of it waits there."""
    return sum(count / max(1, pilot.capacity.get(cls, 0)) for cls, count in pilot.counts.items() if count)
