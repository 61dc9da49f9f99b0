"""By when a block is to be done, though it has more time: so that not all blocks wait for the last long tasks.  Pure.

At the end of the work every node that is there waits for the longest of the last tasks.  So the long ones are left to
as few blocks as will do, the narrowest first; the others are given only what ends by the time at which the work may be
done, and can be let go then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from balsamfut.interchange.backlog import Block, Demand, Phase

LONGER: Final = 1200.0
"""Seconds that the blocks with the long tasks may take longer than it would take with all of them."""


def ends(demands: Sequence[Demand], blocks: Sequence[Block], now: float) -> dict[str, float]:
    """Block -> Unix time by which what it is given from now on has to end; others take whatever ends with them."""
    there = [block for block in blocks if block.phase is Phase.RUNNING and block.serves]
    work = [(each, each.work(each.count + each.later)) for each in demands if each.count or each.later]
    done = _done_in(sum(some for _, some in work) + sum(block.busy for block in there), there, now) if work else None
    if done is None:
        return {}
    long = [(each, some) for each, some in work if each.span > done]
    if not long:
        return {}
    left = sum(some for _, some in long)
    span, wide = max(each.span for each, _ in long), max(each.nodes for each, _ in long)
    last = set()
    for block in sorted(there, key=lambda block: (block.ours, block.nodes, -block.end)):
        if block.left(now) >= done + span and (not block.ours or left > 0.0 or wide):
            last.add(block.token)
            left -= max(0.0, block.nodes * (done + LONGER) - block.busy)
            wide = wide if block.nodes < wide else 0
    if not last:
        return {}
    return {block.token: now + done for block in there
            if block.ours and block.token not in last and block.left(now) > done}


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
