"""When the work would be done with these blocks, and for how many node-hours.  Pure.

Work is a fluid here: so many node-seconds, which running blocks take away; that of the longest and widest tasks (the
hard ones) apart, since blocks that are narrow or near their end take only the rest.  A block that waits starts when its
luck will have it, so there are several scenarios, in each of which the blocks that wait are lucky by turns.  A place in
a queue goes on at its average pace when its block is over, as if another such block were asked for.  At the end every
node that is there waits for the longest of the last tasks: that is what many nodes cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Final

from balsamfut.interchange.backlog import LAST, STARTUP, Block, Demand, Phase
from balsamfut.interchange.waits import HOUR, Waits

SCENARIOS: Final = 6
SIGMA: Final = 0.7       # of the logarithm of a wait
DEAR: Final = 2.0        # one per cent of the node-hours is worth so many per cent of the time
ENDS: Final = 240.0      # seconds of a block in which it is not full, since nothing fits its last minutes
HARD: Final = 0.5        # tasks longer or wider than this part of the longest and widest
_GOLDEN: Final = 0.618034
_NORMAL: Final = NormalDist()
_SURE: Final = 0.005     # luck that is not counted on, and misfortune that is not feared
_AT_LEAST: Final = 60.0  # seconds until a block that waits starts

Event = tuple[float, float, float, float]   # at, nodes more, of them for any work more, for work that is not hard more


class Forecast:
    """What is to be expected of some blocks.

    later: tasks that wait for others count, too; dear: what node-hours are worth, DEAR if not given.
    """

    def __init__(self, demands: Sequence[Demand], blocks: Sequence[Block], waits: Waits, now: float, *,
                 later: bool = False, dear: float = -1.0) -> None:
        self._waits = waits
        self._now = now
        self._dear = DEAR if dear < 0.0 else dear
        work = [(d, d.work(d.count + later * d.later)) for d in demands if d.count or (later and d.later)]
        self._span = max((d.span for d, _ in work), default=0.0)
        self._least = min((d.span for d, _ in work), default=0.0)
        self._wide = max((d.nodes for d, _ in work), default=0)
        self._narrow = min((d.nodes for d, _ in work), default=0)
        self.tail = max((d.seconds for d, _ in work), default=0.0)
        self._dead = max((d.span - LAST * d.seconds for d, _ in work), default=0.0)
        self._hard = sum(w for d, w in work if d.span > HARD * self._span or d.nodes > HARD * self._wide)
        self._soft = sum(w for _, w in work) - self._hard
        self._share = self._hard / (self._hard + self._soft) if work else 0.0
        self._soft += sum(block.busy for block in blocks)
        self._count = 0
        self._events: list[list[Event]] = [[] for _ in range(SCENARIOS)]
        self._of_block: dict[str, list[list[Event]]] = {}
        self.add(blocks)

    def add(self, blocks: Iterable[Block]) -> None:
        """These are there, too."""
        for block in blocks:
            own = self._of([block])
            self._count += block.phase is Phase.QUEUED
            self._of_block[block.token] = own
            for events, more in zip(self._events, own, strict=True):
                events += more
        for events in self._events:
            events.sort()

    def _of(self, blocks: Iterable[Block]) -> list[list[Event]]:
        found: list[list[Event]] = [[] for _ in range(SCENARIOS)]
        count = self._count
        for block in blocks:
            left = block.left(self._now)
            if left <= 0.0:
                continue
            expected = self._waits.expected(block.queue, block.nodes, block.wall)
            if block.phase is Phase.RUNNING:
                for events in found:
                    events += self._life(0.0, left, block, expected)
                continue
            age = self._now - block.since
            least = _NORMAL.cdf(math.log(age / expected) / SIGMA) if age > 0.0 else 0.0
            for number, events in enumerate(found):
                luck = (count * _GOLDEN + (number + 0.5) / SCENARIOS) % 1.0
                luck = min(1.0 - _SURE, max(_SURE, least + luck * (1.0 - least)))
                start = max(_AT_LEAST, expected * math.exp(SIGMA * _NORMAL.inv_cdf(luck)) - age)
                events += self._life(start, left, block, expected)
            count += 1
        return found

    def _life(self, start: float, left: float, block: Block, wait: float) -> tuple[Event, ...]:
        """A block that takes all at first, and only short tasks at last; then what follows it in its place."""
        nodes, stop = block.nodes, start + left
        if nodes < self._narrow:
            return ((start, nodes, 0.0, 0.0), (stop, -nodes, 0.0, 0.0))
        hard = max(0.0, left - self._dead) if nodes >= self._wide and left >= self._span else 0.0
        soft = max(hard, left - ENDS) if left >= self._least else 0.0
        after = nodes * block.wall / (block.wall + wait)
        usable = block.wall >= self._span + STARTUP and nodes >= self._wide
        return ((start, nodes, nodes, 0.0), (start + hard, 0.0, -nodes, nodes), (start + soft, 0.0, 0.0, -nodes),
                (stop, -nodes, 0.0, 0.0), (stop + wait, after, after if usable else 0.0, 0.0 if usable else after))

    def outcome(self, more: Iterable[Block] = ()) -> tuple[float, float]:
        """Seconds until all is done, and node-seconds that it takes; the mean of the scenarios."""
        return self._mean(sorted(events + new) if new else events
                          for events, new in zip(self._events, self._of(more), strict=True))

    def score(self, more: Iterable[Block] = ()) -> float:
        """The less the better."""
        return self._score(self.outcome(more))

    def score_without(self, token: str) -> float:
        """What it would be if that block were not there."""
        return self._score(self._mean(_without(events, its)
                                      for events, its in zip(self._events, self._of_block[token], strict=True)))

    def _score(self, outcome: tuple[float, float]) -> float:
        time, cost = outcome
        return time * (cost / HOUR) ** self._dear if time < math.inf else math.inf

    def _mean(self, scenarios: Iterable[list[Event]]) -> tuple[float, float]:
        time = cost = 0.0
        for events in scenarios:
            its_time, its_cost = self._run(events)
            time += its_time
            cost += its_cost
        return time / SCENARIOS, cost / SCENARIOS

    def _run(self, events: list[Event]) -> tuple[float, float]:
        """One scenario: when all is done, and the node-seconds until then."""
        at = nodes = normal = ending = cost = 0.0
        hard, soft, share = self._hard, self._soft, self._share
        for when, more_nodes, more_normal, more_ending in (*events, (math.inf, 0.0, 0.0, 0.0)):
            while at < when:
                if hard > 0.0 and soft > 0.0:
                    takes_hard = normal * share
                    takes_soft = normal - takes_hard + ending
                elif hard > 0.0:
                    takes_hard, takes_soft = normal, 0.0
                else:
                    takes_hard, takes_soft = 0.0, normal + ending
                step = when - at
                end = 0
                if takes_hard > 1e-6 and hard <= takes_hard * step:
                    step = hard / takes_hard
                    end = 1
                if takes_soft > 1e-6 and soft <= takes_soft * step:
                    step = soft / takes_soft
                    end = 2
                if step == math.inf:
                    return math.inf, math.inf
                hard = hard - takes_hard * step if end != 1 else 0.0
                soft = soft - takes_soft * step if end != 2 else 0.0
                cost += nodes * step
                at = at + step if end else when
                if hard <= 0.0 and soft <= 0.0:
                    return at + self.tail, cost + nodes * self.tail
            nodes += more_nodes
            normal += more_normal
            ending += more_ending
        return math.inf, math.inf


def _without(events: list[Event], some: list[Event]) -> list[Event]:
    rest = list(events)
    for event in some:
        rest.remove(event)
    return rest
