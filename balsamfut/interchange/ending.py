"""When the work comes to its end: from then on what takes longest goes first, not what is oldest.  Pure.

At the end every node that is there waits for the longest of the last tasks; if those are the short ones, that is a
matter of minutes on thousands of nodes instead of half an hour.  Before, the order is that in which people asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from balsamfut.interchange.backlog import Block, Demand, Phase

ROUNDS: Final = 2.0
"""The end is when all may be done within so many times what the longest task that is ready may take."""


def near(demands: Sequence[Demand], blocks: Sequence[Block], now: float) -> bool:
    """Whether the blocks that run will soon have done all that waits."""
    there = [block for block in blocks if block.phase is Phase.RUNNING and block.serves]
    longest = max((each.span for each in demands if each.count), default=0.0)
    work = sum(each.work(each.count + each.later) for each in demands) + sum(block.busy for block in there)
    done = _done_in(work, there, now) if longest else None
    return done is not None and done < ROUNDS * longest


def _done_in(work: float, there: Sequence[Block], now: float) -> float | None:
    """Seconds in which blocks do so many node-seconds; None: they have not the time."""
    nodes = sum(block.nodes for block in there)
    at = 0.0
    for block in sorted(there, key=lambda block: block.left(now)):
        left = block.left(now)
        if (left - at) * nodes >= work:
            return at + work / nodes
        work -= (left - at) * nodes
        at, nodes = left, nodes - block.nodes
    return None
