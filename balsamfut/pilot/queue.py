"""What a pilot has not started: attempts in groups, groups on shelves, in the order in which they are to run.

A group holds attempts that differ in nothing that matters here (one task class, the same resources, the same stage), so
everything is decided per group.  A shelf holds the groups that ask for equal resources: what does not fit for one does
not fit for another.  Order: higher priority first, first come first served within equal priority.  Pure.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Iterable
from typing import Final

from balsamfut.messages import Detail, Fault, Item
from balsamfut.model import AppKind, AppSpec, Hook, Payload, Resources, TaskClass
from balsamfut.pilot.events import Key, Slot
from balsamfut.pilot.hand import Stage

HORIZON: Final = 0.005
"""Seconds of work that a worker may have in its hand."""

DEEPEST: Final = 160
"""Tasks that a worker may have in its hand."""

Rank = tuple[bool, int, int]


class Where(enum.Enum):
    QUEUED = enum.auto()
    HAND = enum.auto()       # a worker has it, read or not
    COMMAND = enum.auto()    # its command runs


class Attempt:
    """One attempt that this pilot was told to make, until its end is reported."""

    __slots__ = ("item", "group", "seq", "stage", "where", "slot", "worker", "started", "announced", "cause",
                 "ran", "failure", "fault", "error", "command", "detail", "place")

    def __init__(self, item: Item, group: Group, seq: int) -> None:
        self.item = item
        self.group = group
        self.seq = seq
        self.stage: Stage | None = None        # what a worker is to do; None: the command is to be run as it stands
        self.where = Where.QUEUED
        self.slot: Slot | None = None          # of a command; Python tasks share their worker's
        self.worker = 0
        self.started = 0.0
        self.announced = False                 # Started is reported
        self.cause = Fault.NONE                # why we are ending it
        self.ran = item.ran                    # the command's code
        self.failure: Payload | None = None    # what it failed with, while hooks are still to be run
        self.fault = Fault.NONE                # ... and whose fault that was
        self.error = ""
        self.command: str | list[str] | None = None    # what PREPARE made
        self.detail: Detail | None = None
        self.place = ""                        # for people, once it has started

    @property
    def key(self) -> Key:
        return self.item.task, self.item.attempt

    @property
    def begun(self) -> bool:
        """Something of it has run, so it cannot be handed back.  That its command is known means nothing yet."""
        made = self.command is not None and bool(self.group.app.hooks & Hook.PREPROCESS)
        return made or self.ran is not None or self.failure is not None or self.where is not Where.QUEUED


class Group:
    """Attempts that are alike."""

    __slots__ = ("cls", "task_class", "app", "resources", "priority", "hooks", "queue", "shelf", "cost", "busy")

    def __init__(self, cls: int, task_class: TaskClass, app: AppSpec, resources: Resources, hooks: bool) -> None:
        self.cls = cls
        self.task_class = task_class
        self.app = app
        self.resources = resources       # what is placed; for hooks: one core
        self.priority = task_class.options.priority
        self.hooks = hooks               # these attempts need only the hooks after their command: they go first
        self.queue: deque[Attempt] = deque()
        self.shelf: Shelf
        self.cost: float | None = None   # seconds of an attempt, smoothed; None: not known
        self.busy = 0                    # workers that have some of it

    @property
    def rank(self) -> Rank:
        return (not self.hooks, -self.priority, self.queue[0].seq)

    @property
    def in_worker(self) -> bool:
        """A Python function for one rank: attempts that can follow each other in a worker's hand."""
        return self.app.kind is AppKind.PYTHON and self.resources.serial and not self.hooks

    @property
    def makes(self) -> bool:
        """Commands that functions or templates make, without anything of the user's to be done before."""
        return not self.hooks and self.app.kind is not AppKind.PYTHON and not self.app.hooks & Hook.PREPROCESS

    def learn(self, seconds: float) -> None:
        """A longer run is believed at once, shorter ones slowly: work stuck behind a long task is what must not be."""
        # One that stood still for want of a core says little, so a slow one counts for at most four times the usual;
        # what is put into a hand wrongly can be taken out again.
        cost = self.cost
        self.cost = seconds if cost is None else cost + (min(seconds, 4.0 * cost + 1e-6) - cost) * 0.25

    def depth(self) -> int:
        """How many attempts a worker should have in its hand, the one that runs included."""
        if self.cost is None or self.cost * 2 > HORIZON:
            return 1
        return min(DEEPEST, int(HORIZON / max(self.cost, 1e-6)))


class Shelf:
    """Groups that ask for equal resources."""

    __slots__ = ("resources", "heap", "full", "since", "wide", "_entries")

    def __init__(self, resources: Resources, wide: bool) -> None:
        self.resources = resources
        self.heap: list[tuple[Rank, int, Group]] = []   # lazily: an entry counts while it tells its group's rank
        self.full = False                # there was no place when we last asked, and nothing was freed since
        self.since = 0.0                 # when it became full; 0.0: it is not
        self._entries = 0
        self.wide = wide                 # asks for so much that smaller requests could keep it waiting for ever

    def push(self, group: Group) -> None:
        self._entries += 1               # groups do not compare
        heapq.heappush(self.heap, (group.rank, self._entries, group))

    def top(self) -> Group | None:
        heap = self.heap
        while heap:
            rank, _, group = heap[0]
            if group.queue and group.queue[0].seq == rank[2]:
                return group
            heapq.heappop(heap)
        return None


class Queue:
    """All that waits, in order."""

    def __init__(self) -> None:
        self.shelves: dict[Resources, Shelf] = {}
        self._seq = 0

    def add_group(self, group: Group, wide: bool) -> None:
        shelf = self.shelves.get(group.resources)
        if shelf is None:
            shelf = self.shelves[group.resources] = Shelf(group.resources, wide)
        group.shelf = shelf

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def append(self, attempt: Attempt) -> None:
        group = attempt.group
        attempt.where = Where.QUEUED
        group.queue.append(attempt)
        if len(group.queue) == 1:
            group.shelf.push(group)

    def put_back(self, attempts: Iterable[Attempt]) -> None:
        """To where they were in the order: before everything of their group that came later."""
        back = sorted(attempts, key=lambda attempt: attempt.seq, reverse=True)
        for group in {id(attempt.group): attempt.group for attempt in back}.values():
            mine = [attempt for attempt in back if attempt.group is group]
            queue, earlier = group.queue, []
            while queue and queue[0].seq < mine[0].seq:      # of another hand that was taken back just before
                earlier.append(queue.popleft())
            for attempt in sorted(mine + earlier, key=lambda attempt: attempt.seq, reverse=True):
                attempt.where = Where.QUEUED
                queue.appendleft(attempt)
            group.shelf.push(group)

    def remove(self, attempt: Attempt) -> None:
        group = attempt.group
        group.queue.remove(attempt)
        if group.queue:
            group.shelf.push(group)

    def take(self, group: Group, most: int, before: int | None) -> list[Attempt]:
        """Up to `most` attempts, at least one; further ones only where they came before `before`."""
        queue = group.queue
        taken = [queue.popleft()]
        while queue and len(taken) < most and (before is None or queue[0].seq < before):
            taken.append(queue.popleft())
        if queue:
            group.shelf.push(group)
        return taken

    def best(self, also: Shelf | None = None) -> Group | None:
        """The group that is to run next, of those that may fit (and of the shelf `also`, full or not)."""
        best: Group | None = None
        for shelf in self.shelves.values():
            if (shelf.full and shelf is not also) or not shelf.heap:
                continue
            group = shelf.top()
            if group is not None and (best is None or group.rank < best.rank):
                best = group
        return best

    def take_unmade(self, group: Group, most: int) -> list[Attempt]:
        """The next attempts whose commands are still to be made, so that `most` are made or in the making."""
        queue = group.queue
        made: list[Attempt] = []
        while queue and queue[0].stage is None and len(made) < most:
            made.append(queue.popleft())
        taken: list[Attempt] = []
        while queue and queue[0].stage is not None and len(made) + len(taken) < most:
            taken.append(queue.popleft())
        queue.extendleft(reversed(made))
        if taken and queue:
            group.shelf.push(group)
        return taken

    def few_made(self, group: Group, few: int) -> bool:
        """Fewer commands than this are made, and there are others."""
        queue = group.queue
        return bool(queue) and queue[min(few, len(queue)) - 1].stage is not None

    def limit(self, group: Group) -> int | None:
        """Where in the order the next attempt of another group is that may fit too; None: there is none."""
        rank, found = group.rank[:2], None
        for shelf in self.shelves.values():
            if shelf.full and shelf is not group.shelf:
                continue
            # The smallest entry of a heap that is not its first is its second or third.
            for other_rank, _, other in shelf.heap[:3]:
                if other is not group and other.queue and other_rank[:2] == rank:
                    found = other_rank[2] if found is None else min(found, other_rank[2])
        return found

    def starving(self, now: float, patience: float) -> Group | None:
        """A wide request that has waited so long that nothing that ranks behind it may start."""
        found: Group | None = None
        for shelf in self.shelves.values():
            if not (shelf.wide and shelf.since and now - shelf.since > patience):
                continue
            group = shelf.top()
            if group is None:
                shelf.since = 0.0        # it was killed or given back
            elif found is None or group.rank < found.rank:
                found = group
        return found

    def reopen(self) -> None:
        """Something was freed."""
        for shelf in self.shelves.values():
            shelf.full = False
