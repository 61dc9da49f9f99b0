"""Slices: MPI launches whose ranks live on, so that thousands of small calls cost a handful of launches.

What is here is which ranks are free, which call goes on which of them, when another slice is launched or one makes room
for other work, and which call a slice's end is the fault of.  Pure.  A part of the pilot's brain: the planner asks it
to start calls, `sliced` tells it what became of them; it neither reports anything nor knows how a slice is launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from balsamfut.model import Resources
from balsamfut.pilot.attempts import pooled
from balsamfut.pilot.events import Key, Slot
from balsamfut.pilot.queue import Attempt, Group, Queue, Where
from balsamfut.pilot.slicenews import EndSlice, GiveCall, SliceEffect, SliceGone, StartSlice


class Kind(msgspec.Struct, frozen=True):
    """Slices that can stand in for each other: these are equal."""

    pool: bytes                 # digest of the Pool
    resources: Resources        # of one rank
    preamble: str
    environment: tuple[tuple[str, str], ...]

    def ranks(self, number: int) -> Resources:
        """What so many ranks ask for."""
        return msgspec.structs.replace(self.resources, ranks_per_node=number, memory=self.resources.memory * number)


HOLD: Final = 0.1
"""Seconds that a call waits for enough ranks before smaller ones behind it have to wait, too."""
LINGER: Final = 1.0
"""Seconds that a slice without a call keeps its place from others: a launch takes about as long."""
PATIENCE: Final = 2.0
"""Seconds that work waits which ranks before the calls that keep a slice busy, before that slice makes room."""
STILLBORN: Final = 3
"""So many slices of a kind in a row that died before they were ready mean that the next one will, too."""
FALLS: Final = 3
"""So many times a slice falls with a call, and nobody knows by which, before the call is held to account."""


class Slice:
    """One launch, from the order to make it until nothing of it is left."""

    __slots__ = ("id", "kind", "slot", "size", "ready", "leaving", "ended", "free", "calls", "rested")

    def __init__(self, id: int, kind: Kind, slot: Slot, size: int) -> None:
        self.id = id
        self.kind = kind
        self.slot = slot
        self.size = size                  # ranks
        self.ready = False
        self.leaving = False              # no further call is given to it
        self.ended = False                # we have ordered its end: it says nothing about a call
        self.free = list(range(size))     # sorted
        self.calls: dict[Key, tuple[Attempt, tuple[int, ...]]] = {}
        self.rested = 0.0                 # since when it has had no call


class Slices:
    """All slices of a pilot.

    place: a place for this request, or None.  capacity: how many of a request fit when all is
    empty.  fresh: where attempts are put that have just begun.
    """

    def __init__(self, queue: Queue, place: Callable[[Resources], Slot | None], capacity: Callable[[Resources], int],
                 fresh: dict[Key, Attempt]) -> None:
        self.all: dict[int, Slice] = {}
        self.launches = 0
        self._queue = queue
        self._place = place
        self._capacity = capacity
        self._fresh = fresh
        self._kinds: dict[int, Kind] = {}                        # by the group's identity
        self._most: dict[Kind, int] = {}                         # ranks of such a kind that one node can have
        self._largest: dict[Kind, int] = {}                      # call that there has been
        self._held: dict[Kind, tuple[Group, float]] = {}         # who waits for ranks, and since when
        self._deaths: dict[Kind, int] = {}                       # of slices that were never ready, in a row
        self._falls: dict[Key, int] = {}                         # see FALLS

    def kind(self, group: Group) -> Kind:
        kind = self._kinds.get(id(group))        # groups stay as long as the pilot does
        if kind is None:
            resources, options = group.resources, group.task_class.options
            share = -(-resources.memory // resources.ranks_per_node)
            kind = self._kinds[id(group)] = Kind(
                group.task_class.pool, msgspec.structs.replace(resources, ranks_per_node=1, memory=share),
                options.shell_preamble, options.environment)
        return kind

    # ---- calls

    def fill(self, group: Group, now: float) -> list[SliceEffect]:
        """Start a group's next call, or have a place made for it; or that of another group of its shelf, which may need
        slices of another kind.  Where there is no place for any of them, the shelf is full."""
        tried: set[Kind] = set()
        for each in (group, *sorted(group.shelf.groups(), key=lambda other: other.rank)):
            kind = self.kind(each)
            if kind not in tried:
                tried.add(kind)
                effect = self._start(each, kind, now)
                if effect is not None:
                    group.shelf.since = 0.0
                    return [effect]
        self._queue.shut(group.shelf, full=True)
        return []

    def _start(self, group: Group, kind: Kind, now: float) -> SliceEffect | None:
        ranks, shelf = group.resources.ranks_per_node, group.shelf
        self._largest[kind] = max(ranks, self._largest.get(kind, 0))
        held, since = self._held.get(kind, (group, now))
        if held is not group and held.queue and held.rank < group.rank and now - since > HOLD:
            return None
        slice = self._seat(kind, ranks)
        if slice is not None:
            if held is group:
                self._held.pop(kind, None)
            return self._give(slice, group, ranks, now)
        if held is group or not held.queue or group.rank < held.rank:
            self._held[kind] = group, (since if held is group else now)
        order = self._launch(kind, ranks)
        if order is None and not any(each.size >= ranks for each in self._of(kind)):
            shelf.since = shelf.since or now
        return order

    def _of(self, kind: Kind) -> Iterator[Slice]:
        return (each for each in self.all.values() if each.kind == kind and not each.leaving)

    def _seat(self, kind: Kind, ranks: int) -> Slice | None:
        """Where so many ranks are free: of several slices the one that has the fewest of them."""
        able = [each for each in self._of(kind) if each.ready and len(each.free) >= ranks]
        return min(able, key=lambda each: len(each.free)) if able else None

    def _give(self, slice: Slice, group: Group, ranks: int, now: float) -> GiveCall:
        attempt = self._queue.take(group, 1, None)[0]
        numbers, slice.free = tuple(slice.free[:ranks]), slice.free[ranks:]
        slice.calls[attempt.key] = attempt, numbers
        attempt.where, attempt.worker, attempt.place = Where.SLICE, slice.id, slice.slot.place
        attempt.started = now
        self._fresh[attempt.key] = attempt
        return GiveCall(slice.id, attempt, numbers)

    def done(self, number: int, key: Key, now: float) -> Attempt | None:
        """A call is over: its ranks are free.  None: it was not this slice's."""
        slice = self.all.get(number)
        found = slice.calls.pop(key, None) if slice is not None else None
        if slice is None or found is None:
            return None
        attempt, numbers = found
        slice.free = sorted((*slice.free, *numbers))
        slice.rested = now
        self._forget(attempt)
        self._falls.pop(key, None)
        self._queue.reopen(pooled=True)
        return attempt

    def _forget(self, attempt: Attempt) -> None:
        self._fresh.pop(attempt.key, None)

    # ---- launches

    def _launch(self, kind: Kind, ranks: int) -> StartSlice | None:
        """A slice for what waits, if those that are being launched are not enough for it; no smaller than the largest
        call that waits, whose place it would take."""
        waiting = [group for shelf in self._queue.shelves.values() if shelf.resources.pooled
                   for group in shelf.groups() if pooled(group) and self.kind(group) == kind]
        groups = {id(group): group for group in waiting}.values()
        coming = sum(each.size for each in self._of(kind) if not each.ready and each.size >= ranks)
        missing = sum(group.resources.ranks_per_node * len(group.queue) for group in groups) - coming
        if coming and missing <= 0:
            return None
        least = max(group.resources.ranks_per_node for group in groups)
        want = max(self._largest[kind], missing)
        for size in sizes(min(want, self._at_most(kind)), least):
            resources = kind.ranks(size)
            slot = self._place(resources)
            if slot is not None:
                self.launches += 1
                self.all[self.launches] = Slice(self.launches, kind, slot, size)
                return StartSlice(self.launches, kind.pool, resources, slot.placement, kind.preamble,
                                  kind.environment)
        return None

    def _at_most(self, kind: Kind) -> int:
        """Ranks that the largest slice of this kind could have."""
        known = self._most.get(kind)
        if known is None:
            def fits(size: int) -> bool:
                return self._capacity(kind.ranks(size)) > 0

            low, high = 1, 2                # fits, and (once the loop is over) does not
            while fits(high):
                low, high = high, 2 * high
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if fits(middle) else (low, middle)
            known = self._most[kind] = low
        return known

    def ready(self, number: int, now: float) -> None:
        slice = self.all[number]
        slice.ready, slice.rested = True, now
        self._deaths[slice.kind] = 0
        self._queue.reopen(pooled=True)

    # ---- ends

    def tend(self, now: float) -> list[SliceEffect]:
        """Have slices make room: those that rest for whatever waits, a busy one for what has waited long before it."""
        effects: list[SliceEffect] = []
        waiting = [group for shelf in self._queue.shelves.values() if (shelf.full or shelf.closed)
                   and (group := shelf.top()) is not None]
        for slice in self.all.values():
            others = [group for group in waiting if not self._serves(slice, group)]
            if not slice.ready or slice.ended:
                continue
            if not slice.calls and (slice.leaving or (others and now - slice.rested >= LINGER)):
                effects.append(self.end(slice, False))
            elif others and not slice.leaving and not any(each.leaving for each in self.all.values()):
                mine = [group.rank for group in self._waiting(slice)]
                slice.leaving = any(group.shelf.since and now - group.shelf.since > PATIENCE
                                    and (not mine or group.rank < min(mine)) for group in others)
        return effects

    def _serves(self, slice: Slice, group: Group) -> bool:
        return (pooled(group) and self.kind(group) == slice.kind and group.resources.ranks_per_node <= slice.size)

    def _waiting(self, slice: Slice) -> Iterator[Group]:
        """The next groups that this slice could serve."""
        return (group for shelf in self._queue.shelves.values() if shelf.resources.pooled
                and (group := shelf.top()) is not None and self._serves(slice, group))

    def end(self, slice: Slice, now: bool) -> EndSlice:
        slice.leaving = slice.ended = True
        return EndSlice(slice.id, now)

    def gone(self, event: SliceGone) -> tuple[Slice, list[Attempt], list[Attempt]]:
        """Nothing is left of a slice: which of its calls are to blame, and which are not.  Its slot is free."""
        slice = self.all.pop(event.slice)
        self._queue.reopen(pooled=True)
        for attempt, _ in slice.calls.values():
            self._forget(attempt)
        blamed: list[Attempt] = []
        rest: list[Attempt] = []
        for key, (attempt, numbers) in slice.calls.items():
            guilty = event.first in numbers
            if event.first is None and not slice.ended:
                self._falls[key] = self._falls.get(key, 0) + 1
                guilty = self._falls[key] >= FALLS
            if guilty:
                self._falls.pop(key, None)
            (blamed if guilty else rest).append(attempt)
        if not slice.ready and not slice.ended:
            self._deaths[slice.kind] = self._deaths.get(slice.kind, 0) + 1
        return slice, blamed, rest

    def stillborn(self, slice: Slice) -> bool:
        """Too many slices of this kind have died before they were ready; the count begins anew."""
        if self._deaths.get(slice.kind, 0) < STILLBORN:
            return False
        self._deaths[slice.kind] = 0
        return True


def sizes(most: int, least: int) -> Iterator[int]:
    """Numbers of ranks to try, from the largest: halves, and the least of all at the end."""
    size = most
    while size > least:
        yield size
        size //= 2
    yield least
