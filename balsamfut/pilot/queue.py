"""What a pilot has not started: groups of attempts on shelves, in the order in which they are to run.

A shelf holds the groups that ask for equal resources, sorted into levels by how long they are expected to run: what
does not fit for one does not fit for another, but what does not fit beside what is held for a wide request may still
fit there for a time (`balsamfut.pilot.reserve`).  Order: higher priority first, first come first served within equal
priority.  Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from balsamfut.model import Resources
from balsamfut.pilot.attempts import DEEPEST as DEEPEST
from balsamfut.pilot.attempts import HORIZON as HORIZON
from balsamfut.pilot.attempts import LAST as LAST
from balsamfut.pilot.attempts import Attempt as Attempt
from balsamfut.pilot.attempts import Group as Group
from balsamfut.pilot.attempts import Rank, level
from balsamfut.pilot.attempts import Where as Where
from balsamfut.pilot.attempts import highest as highest


class Shelf:
    """Groups that ask for equal resources."""

    __slots__ = ("resources", "levels", "full", "closed", "since", "wide", "offered", "_entries", "_first")

    def __init__(self, resources: Resources, wide: bool) -> None:
        self.resources = resources
        self.levels: dict[int, list[tuple[Rank, int, Group]]] = {}   # lazily: an entry counts while it is its group's
        self.full = False                # there was no place when we last asked, and nothing was freed since
        self.closed = False              # ... beside what is held
        self.since = 0.0                 # when it became so; 0.0: it is not
        self.wide = wide                 # asks for so much that smaller requests could keep it waiting for ever
        self.offered: Rank | None = None    # with which it is in the queue's order
        self._entries = 0
        self._first: tuple[Rank, Group] | None = None    # the first in order as it was when we last looked

    def push(self, group: Group) -> None:
        group.level, rank = level(group.expected), group.rank
        self._entries += 1               # groups do not compare
        heapq.heappush(self.levels.setdefault(group.level, []), (rank, self._entries, group))
        if self._first is not None and rank < self._first[0]:
            self._first = rank, group

    def first(self) -> Group | None:
        """The first in order."""
        if self._first is not None:
            (_, _, seq), group = self._first
            if group.queue and group.queue[0].seq == seq and not group.aside:
                return group
        closed, self.closed = self.closed, False
        group_or_none = self.top()
        self.closed = closed
        self._first = None if group_or_none is None else (group_or_none.rank, group_or_none)
        return group_or_none

    def top(self, short: int = LAST, before: Rank | None = None) -> Group | None:
        """The first in order; of a closed shelf only what is of a `short` level, or ranks before `before`."""
        best: Group | None = None
        rank: Rank | None = None
        for at in list(self.levels):
            heap = self.levels[at]
            while heap:
                first, _, group = heap[0]
                if group.queue and group.queue[0].seq == first[2] and group.level == at and not group.aside:
                    break
                heapq.heappop(heap)
            else:
                del self.levels[at]
                continue
            if (rank is None or first < rank) and (not self.closed or at <= short
                                                   or (before is not None and first <= before)):
                best, rank = group, first
        return best

    def groups(self, most: int | None = None) -> Iterator[Group]:
        """The groups that wait, some of them twice; `most` of each level, in no order."""
        for heap in self.levels.values():
            for _, _, group in heap[:most]:
                if group.queue and not group.aside:
                    yield group


Room = Callable[[Resources], tuple[int, int]]
"""On how many nodes, at most, a request's part may fit beside what is held, and on how many in all."""


class Queue:
    """All that waits, in order."""

    def __init__(self, room: Room) -> None:
        self.moved = False               # something became full, or is so no more
        self._room = room
        self._freed = False
        self._terms: tuple[int, Rank | None] = (LAST, None)     # short and before, when shelves were opened last
        self.shelves: dict[Resources, Shelf] = {}
        self.short = LAST                # the highest level of what may go where something is held
        self.before: Rank | None = None  # ... and whatever ranks before this
        self._groups: list[Group] = []
        self._seq = 0
        self._order: list[tuple[Rank, int, Shelf]] = []    # lazily: shelves by the rank of their first
        self._entries = 0

    def add_group(self, group: Group, wide: bool) -> None:
        shelf = self.shelves.get(group.resources)
        if shelf is None:
            shelf = self.shelves[group.resources] = Shelf(group.resources, wide)
        group.shelf = shelf
        self._groups.append(group)

    def _push(self, group: Group) -> None:
        if not group.aside:
            group.shelf.push(group)
            self._offer(group.shelf)

    def _offer(self, shelf: Shelf) -> None:
        """Make the shelf's first one of those that may be the best."""
        group = None if shelf.full else shelf.top(self.short, self.before)
        rank = None if group is None else group.rank
        if rank == shelf.offered:
            return
        shelf.offered = rank
        if rank is not None:
            if len(self._order) > 4 * len(self.shelves) + 64:
                self._order = [entry for entry in self._order if entry[2].offered == entry[0]]
                heapq.heapify(self._order)
            self._entries += 1           # shelves do not compare
            heapq.heappush(self._order, (rank, self._entries, shelf))

    def next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def append(self, attempt: Attempt) -> None:
        group = attempt.group
        attempt.where = Where.QUEUED
        group.queue.append(attempt)
        if len(group.queue) == 1:
            self._push(group)

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
            self._push(group)

    def remove(self, attempt: Attempt) -> None:
        group = attempt.group
        group.queue.remove(attempt)
        if group.queue:
            self._push(group)

    def take(self, group: Group, most: int, before: int | None) -> list[Attempt]:
        """Up to `most` attempts, at least one; further ones only where they came before `before`."""
        queue = group.queue
        taken = [queue.popleft()]
        while queue and len(taken) < most and (before is None or queue[0].seq < before):
            taken.append(queue.popleft())
        if queue:
            self._push(group)
        return taken

    def best(self, also: Shelf | None = None) -> Group | None:
        """The group that is to run next, of those that may fit (and of the shelf `also`, whether or not it may)."""
        if self._freed:
            self._reopen()
        best: Group | None = None
        while order := self._order:
            rank, _, shelf = order[0]
            if shelf.offered == rank and not shelf.full:
                best = shelf.top(self.short, self.before)
                if best is not None and best.rank == rank:
                    break
                best, shelf.offered = None, None
                heapq.heappop(order)
                self._offer(shelf)
            else:
                heapq.heappop(order)
        if also is not None and (also.full or also.closed):
            other = also.top(LAST)
            if other is not None and (best is None or other.rank < best.rank):
                return other
        return best

    def shut(self, shelf: Shelf, *, full: bool) -> None:
        """There is no place for it; or, not full, none beside what is held."""
        shelf.closed, shelf.full, self.moved = True, full, True
        self._offer(shelf)

    def blocked(self, now: float, patience: float) -> Group | None:
        """The first of those that do not fit, and could be kept waiting for ever or have waited so long."""
        best: Group | None = None
        for shelf in self.shelves.values():
            # What is pooled and was not refused a place waits for ranks, not for nodes.
            wide = shelf.wide and (shelf.since or not shelf.resources.pooled)
            if shelf.full and (wide or (shelf.since and now - shelf.since > patience)):
                group = shelf.first()
                if group is not None and (best is None or group.rank < best.rank):
                    best = group
        return best

    def reopen(self, pooled: bool = False) -> None:
        """Something was freed; `pooled`: for calls in slices only."""
        if not pooled:
            self._freed = True
            return
        for shelf in self.shelves.values():
            if shelf.resources.pooled:
                shelf.full = shelf.closed = False
                self._offer(shelf)

    def _reopen(self) -> None:
        """Those that are to be asked again: not those for which there are not even enough nodes to ask."""
        self._freed, self.moved = False, True
        terms, self._terms = self._terms, (self.short, self.before)
        for shelf in self.shelves.values():
            if shelf.full or shelf.closed:
                open_nodes, all_nodes = self._room(shelf.resources)
                nodes, before = shelf.resources.num_nodes, (shelf.full, shelf.closed)
                shelf.full, shelf.closed = nodes > all_nodes, nodes > open_nodes
                if (shelf.full, shelf.closed) != before or (shelf.closed and terms != self._terms):
                    self._offer(shelf)

    def put_aside(self, group: Group) -> None:
        """It is not to be started."""
        group.aside = True
        self._offer(group.shelf)

    def late(self, remaining: float) -> list[Attempt]:
        """What is not expected to be over in that time, in order; what is put aside, and is, is so no more."""
        found: list[Attempt] = []
        for group in self._groups:
            if group.queue and not group.fits(remaining):
                found.extend(attempt for attempt in group.queue if not attempt.begun)
            elif group.aside:
                group.aside = False
                if group.queue:
                    self._push(group)
        return sorted(found, key=lambda attempt: (attempt.group.rank[:2], attempt.seq))

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
            self._push(group)
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
            for other in shelf.groups(3):    # the second of a heap is its second or third entry
                if other is not group and other.rank[:2] == rank:
                    found = other.queue[0].seq if found is None else min(found, other.queue[0].seq)
        return found
