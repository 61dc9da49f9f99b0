"""Whether one more block is worth while though the others would do in the mean, and when one is not any more.  Pure.

Blocks that wait cost nothing, so for much work more of them are asked for than are needed in the mean: the first to
start do it.  When those that run will do the rest soon, what still waits would cost more than it saves, and is
withdrawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from balsamfut.interchange.backlog import Block, Demand, Phase
from balsamfut.interchange.forecast import Forecast
from balsamfut.interchange.shapes import Market, Shape
from balsamfut.interchange.waits import HOUR, Wait, Waits

GAIN: Final = 0.04       # how much better it has to be with one more block
MOST: Final = 3.0        # blocks are asked for up to so many times the work ...
DEEP: Final = 2          # ... and so that each place has so many tasks in a row, if all of them started now
SOON: Final = 1.5 * HOUR
"""No block is withdrawn unless those that run could start all that is left within this, in time for the longest ..."""
MARGIN: Final = 1.2      # ... even if it were so many times as much
DEARER: Final = 4.0      # what one per cent of the node-hours is worth then, as `forecast.DEAR`


def one_more(demands: Sequence[Demand], useful: int, held: Sequence[Block], market: Market, waits: Waits,
             now: float) -> Shape | None:
    """A block that makes the end likely to come earlier, for what it costs.  useful: nodes on which all would run."""
    nodes = useful // DEEP - sum(block.nodes for block in held)
    area = MOST * sum(each.work(each.count) for each in demands) - sum(block.nodes * block.left(now) for block in held)
    if nodes <= 0 or area <= 0.0:
        return None
    forecast = Forecast(demands, held, waits, now)
    least = forecast.score() * (1.0 - GAIN)
    time = forecast.outcome()[0]
    best = None
    for shape, places in market.within(nodes):
        if shape.wait >= time:
            continue
        count = max(1, min(places, nodes // shape.nodes, int(area / shape.cost)))
        score = forecast.score([Block("", shape.queue, shape.nodes, shape.wall, Phase.QUEUED, now)] * count)
        if score < least:
            best, least = shape, score
    return best


def too_late(demands: Iterable[Demand], there: Sequence[Block], block: Block, seen: Iterable[Wait], now: float) -> bool:
    """Whether the work is so nearly done that this block, which waits, would cost more than it saves."""
    there = [each for each in there if each.serves]
    wanted = [each for each in demands if each.count or each.later]
    work = MARGIN * sum(each.work(each.count + each.later) for each in wanted)
    longest, widest = max(each.span for each in wanted), max(each.nodes for each in wanted)
    able = sum(each.nodes * max(0.0, min(SOON, each.left(now) - longest)) - each.busy for each in there
               if each.phase is Phase.RUNNING and each.nodes >= widest)
    if able < work:
        return False
    pending = [Wait(each.queue, each.nodes, each.wall, now - each.since, now) for each in there
               if each.phase is Phase.QUEUED]
    forecast = Forecast(wanted, there, Waits(seen, pending, now), now, later=True, dear=DEARER)
    return forecast.score_without(block.token) <= forecast.score()
