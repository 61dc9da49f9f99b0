"""Which blocks could be asked for, and by when the work would be done with them.  Pure.

The question behind every block is: what is the earliest time by which the blocks that there are, and those that the
queues would take now, do all of the work?  A wider or longer block does more and waits longer; a queue with room for
one block at a time does its part in rounds.  The shape that does the most by that time is the one to ask for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from balsamfut.interchange.backlog import STARTUP, Block, Cover, Demand, Phase
from balsamfut.interchange.waits import HOUR, LUCK, Waits
from balsamfut.platforms.queues import Queue

WALLS: Final = tuple(60.0 * minutes for minutes in (
    5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 360, 480, 600, 720, 900, 1080, 1440, 2160, 2880, 4320, 7200,
    10080))
"""Walltimes that are asked for; few, so that what was seen of their waits adds up."""
FOREVER: Final = 365 * 24 * HOUR
GOOD: Final = 0.92       # part of a block's time that it has work for: less is wasteful where more is to be had
NEARLY: Final = 0.87     # shapes that do this part of what the best one does are as good, and the cheapest is taken
SPARE_TIME: Final = 1.0
"""A block asks for so many times the walltime that is planned for: when others are late it can go on, and what it does
not need it gives back."""


class Bounds(msgspec.Struct, frozen=True):
    """What one more block may be, whatever the queues say."""

    min_nodes: int
    max_nodes: int
    max_wall: float


class Shape(msgspec.Struct, frozen=True):
    """A block that could be asked for."""

    queue: str
    nodes: int
    wall: float              # seconds
    wait: float              # that it is expected to wait

    @property
    def cost(self) -> float:
        """Node-seconds, if it is used to its end."""
        return self.nodes * self.wall


def part_by(horizon: float, wall: float, starts: Sequence[tuple[float, float]]) -> float:
    """Seconds of a block that are expected to be over by then; starts: in how many seconds, with what probability."""
    return sum(part * min(wall, max(0.0, horizon - start)) for start, part in starts)


def shapes(queue: Queue, bounds: Bounds, waits: Waits) -> list[Shape]:
    """What may be asked of a queue: widths by powers of two and what it ends with, walltimes of the ladder."""
    return [Shape(queue.name, nodes, wall, waits.expected(queue.name, nodes, wall))
            for nodes, wall in _sizes(queue, bounds)]


def _sizes(queue: Queue, bounds: Bounds) -> Iterator[tuple[int, float]]:
    low, high = max(queue.min_nodes, bounds.min_nodes), min(queue.max_nodes, bounds.max_nodes)
    widths = {1 << power for power in range(20)} | {low, high}
    for nodes in sorted(width for width in widths if low <= width <= high):
        longest = min(queue.longest(nodes), bounds.max_wall)
        yield from ((nodes, wall) for wall in WALLS if queue.min_wall <= wall <= longest)


def longest(queues: Iterable[Queue], bounds: Bounds, nodes: int) -> float:
    """Seconds for tasks in the longest block of at least so many nodes that may be asked for; inf: there is none."""
    walls = [wall for queue in queues for width, wall in _sizes(queue, bounds) if width >= nodes]
    return max(walls) - STARTUP if walls else math.inf


def by(horizon: float, shape: Shape, does: float) -> float:
    """What a place in a queue may be expected to do by then, with such blocks one after the other, if each does so
    much."""
    total = 0.0
    for times, weight in LUCK:
        wait = times * shape.wait
        rounds, rest = divmod(horizon, wait + shape.wall)
        total += weight * (rounds + max(0.0, rest - wait) / shape.wall)
    return does * total


class Market:
    """What the queues that have room offer for the work of a backlog.

    places: queue -> how many more blocks may be there; blocks, nodes, budget (node-seconds): of all of them together;
    thrift: nodes that the work keeps busy for several tasks in a row, of which those that are there are taken off.
    """

    def __init__(self, work: Cover, offers: dict[str, list[Shape]], places: dict[str, int], blocks: int, nodes: int,
                 budget: float, thrift: int) -> None:
        self.places = places
        self.blocks = blocks
        self.nodes = nodes
        self.budget = budget
        self.thrift = thrift
        self._work = work
        self._fair = {queue: thrift // max(1, min(places.get(queue, 0), blocks)) for queue in offers}
        self._offers = offers
        self._known: dict[tuple[int, float], float] = {}

    def _does(self, shape: Shape) -> float:
        """Node-seconds of all the work that a block of this shape does in its time."""
        key = shape.nodes, shape.wall
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._work.yields(shape.nodes, shape.wall - STARTUP)
        return known

    def earliest(self, work: Cover, held: Sequence[Block], waits: Waits, now: float) -> float:
        """Seconds until the work is done, with these blocks and what the queues take; FOREVER if it never is."""
        starts = [(work.yields(block.nodes, left) / left, left, starts_in(block, waits, now))
                  for block in held if (left := block.left(now)) > 0.0]
        need = work.left
        able = {queue: self._able(queue) for queue in self._offers}

        def done(horizon: float) -> float:
            there = sum(pace * part_by(horizon, left, may) for pace, left, may in starts)
            return there + self._by(horizon, able)

        low, high = 0.0, HOUR
        while done(high) < need:
            low, high = high, 2.0 * high
            if high > FOREVER:
                return FOREVER
        while high - low > max(60.0, 0.02 * high):
            middle = (low + high) / 2.0
            low, high = (low, middle) if done(middle) >= need else (middle, high)
        return high

    def _by(self, horizon: float, able: dict[str, list[Shape]]) -> float:
        """What new blocks do by then."""
        best = []
        for queue, found in able.items():
            most, nodes = max(((by(horizon, shape, self._does(shape)), shape.nodes) for shape in found),
                              default=(0.0, 0))
            best.append((most, nodes, self.places.get(queue, 0)))
        total, blocks, room = 0.0, self.blocks, min(self.nodes, self.thrift)
        for most, nodes, places in sorted(best, reverse=True):
            count = min(places, blocks, max(1, room // nodes) if nodes else 0)
            total, blocks, room = total + count * most, blocks - count, max(0, room - count * nodes)
        return total

    def _able(self, queue: str) -> list[Shape]:
        """What may be asked of a queue: not so wide that the nodes would not do for all of its places, since several
        blocks start sooner than one, and their luck differs."""
        places = min(self.places.get(queue, 0), self.blocks)
        able = [shape for shape in self._offers[queue] if places and shape.nodes <= min(self.nodes, self.thrift)
                and shape.cost <= self.budget]
        fair = max(min((shape.nodes for shape in able), default=0), self._fair[queue])
        return [shape for shape in able if shape.nodes <= fair and self._does(shape) > 0.0]

    def choose(self, work: Cover, horizon: float, homeless: int | None) -> Shape | None:
        """The block to ask for, of those that do most by then; homeless: the class that it has to take."""
        able = [shape for queue in self._offers for shape in self._able(queue)]
        if homeless is not None:
            hard = work.demands[homeless]
            able = [shape for shape in able if hard.usable(shape.nodes, shape.wall - STARTUP)]
            if not able:     # none is thrifty, so the narrowest
                able = self._whatever(hard)
            horizon = max(horizon, min((shape.wait + shape.wall for shape in able), default=0.0))
        does = {shape: work.yields(shape.nodes, shape.wall - STARTUP) for shape in able}
        good = [shape for shape in able if does[shape] >= GOOD * work.fill * shape.cost]
        for some in (good, able):
            gains = {shape: min(work.left, by(horizon, shape, does[shape])) for shape in some}
            most = max(gains.values(), default=0.0)
            if most > 0.0:
                best = min((shape for shape in some if gains[shape] >= NEARLY * most),
                           key=lambda shape: (shape.cost, shape.wait))
                return self._longer(best)
        return None

    def _longer(self, best: Shape) -> Shape:
        """The same with some time to spare."""
        return max((shape for shape in self._offers[best.queue] if shape.nodes == best.nodes
                    and shape.cost <= self.budget and shape.wall <= SPARE_TIME * best.wall), key=lambda s: s.wall)

    def _whatever(self, hard: Demand) -> list[Shape]:
        able = [shape for queue, found in self._offers.items() if self.places.get(queue, 0) > 0 and self.blocks > 0
                for shape in found if shape.nodes <= self.nodes and shape.cost <= self.budget
                and hard.usable(shape.nodes, shape.wall - STARTUP)]
        least = min((shape.nodes for shape in able), default=0)
        return [shape for shape in able if shape.nodes == least]

    def within(self, nodes: int) -> list[tuple[Shape, int]]:
        """The shapes of at most so many nodes that may be asked for now, and how many of each."""
        found = []
        for queue, some in self._offers.items():
            places = min(self.places.get(queue, 0), self.blocks)
            found += [(shape, places) for shape in some
                      if places > 0 and shape.nodes <= min(self.nodes, nodes) and shape.cost <= self.budget]
        return found

    def take(self, shape: Shape) -> None:
        """A block of this shape is asked for."""
        self.places[shape.queue] -= 1
        self.blocks -= 1
        self.nodes -= shape.nodes
        self.thrift -= shape.nodes
        self.budget -= shape.cost


def starts_in(block: Block, waits: Waits, now: float) -> tuple[tuple[float, float], ...]:
    """In how many seconds a block may start, with what probability."""
    if block.phase is Phase.RUNNING:
        return ((0.0, 1.0),)
    return waits.left(block.queue, block.nodes, block.wall, now - block.since)
