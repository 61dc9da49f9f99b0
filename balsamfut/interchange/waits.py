"""How long a block will wait in a queue, from how long our own blocks waited.  Pure.

A guess that grows with width and length, corrected by what was seen: each wait counts for shapes like its own, newer
ones more than older, those of other queues a little.  A block that waits longer than was expected is a lesson before it
starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

HOUR: Final = 3600.0
LATEST: Final = 500
"""Waits that are remembered: those of long ago say little."""
LUCK: Final = ((0.4, 0.3), (1.0, 0.4), (2.5, 0.3))
"""How waits differ from what is expected: so many times as long, with what probability."""
_DAY: Final = 86400.0
_RECENT: Final = 100                 # waits of a queue that are looked at
_HALVES_IN: Final = 14 * _DAY        # what was seen counts half as much after so long
_OTHER_QUEUE: Final = 0.1            # what a wait in one queue says about another
_OVERDUE: Final = 1.5                # a block that is late is expected to wait so many times as long as it has


class Wait(msgspec.Struct, frozen=True):
    """How long one block waited."""

    queue: str
    nodes: int
    wall: float              # seconds that it asked for
    seconds: float           # from its submission to its start
    at: float = 0.0          # when it started, Unix time


def guess(nodes: int, wall: float) -> float:
    """Seconds that a block waits on a machine of which nothing is known."""
    return 60.0 + 1800.0 * math.sqrt(nodes / 100.0) * math.sqrt(wall / HOUR)


class Waits:
    """What is expected of the queues.  seen: waits that are over; pending: blocks that wait, with their ages."""

    def __init__(self, seen: Iterable[Wait], pending: Iterable[Wait], now: float) -> None:
        self._now = now
        self._lessons: dict[str, list[tuple[float, float, float, float]]] = {}   # ln nodes, ln wall, ln ratio, weight
        self._known: dict[tuple[str, int, float], float] = {}
        for wait in sorted(seen, key=lambda wait: -wait.at):
            self._learn(wait, wait.seconds)
        late = [wait for wait in pending if wait.seconds > self.expected(wait.queue, wait.nodes, wait.wall)]
        for wait in late:
            self._learn(wait, _OVERDUE * wait.seconds)
        self._known.clear()

    def _learn(self, wait: Wait, seconds: float) -> None:
        lessons = self._lessons.setdefault(wait.queue, [])
        if len(lessons) < _RECENT and wait.nodes > 0 and wait.wall > 0.0:
            ratio = math.log(max(seconds, 1.0) / guess(wait.nodes, wait.wall))
            weight = 0.5 ** (max(0.0, self._now - wait.at) / _HALVES_IN) if wait.at else 1.0
            lessons.append((math.log(wait.nodes), math.log(wait.wall), ratio, weight))

    def expected(self, queue: str, nodes: int, wall: float) -> float:
        """Seconds from submission to start."""
        key = queue, nodes, wall
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = guess(nodes, wall) * math.exp(self._correction(queue, nodes, wall))
        return known

    def _correction(self, queue: str, nodes: int, wall: float) -> float:
        x, y = math.log(nodes), math.log(wall)
        total, weights = 0.0, 1.0        # the guess counts as one wait that was as guessed
        for name, lessons in self._lessons.items():
            near = 1.0 if name == queue else _OTHER_QUEUE
            for its_x, its_y, ratio, weight in lessons:
                weight *= near * (0.1 + math.exp(-0.5 * ((x - its_x) ** 2 + (y - its_y) ** 2)))
                total += weight * ratio
                weights += weight
        return total / weights

    def left(self, queue: str, nodes: int, wall: float, age: float) -> tuple[tuple[float, float], ...]:
        """Seconds that a block which has waited `age` seconds may wait further, each with its probability."""
        wait = self.expected(queue, nodes, wall)
        may = [(times * wait - age, part) for times, part in LUCK if times * wait > age]
        total = sum(part for _, part in may)
        return tuple((left, part / total) for left, part in may) or (((_OVERDUE - 1.0) * age, 1.0),)
