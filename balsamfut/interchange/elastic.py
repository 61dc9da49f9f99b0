"""Which blocks to ask for, and which to let go: a function of the work that waits, the blocks, the queues and the time.

Everything that is known goes in (`View`), everything that is to be done comes out (`Plan`), with the reason in one
sentence, which is also what `balsamfut queue plan` shows.  What a block that waits will take is never asked for twice.
To ask and to let go have different thresholds, and surplus has to last, so that neither follows from the other.  Pure:
it submits nothing, reads no clock, and knows no batch system.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from balsamfut.interchange import ending
from balsamfut.interchange.backlog import STARTUP, Block, Cover, Demand, Phase
from balsamfut.interchange.hedging import one_more, too_late
from balsamfut.interchange.shapes import FOREVER, Bounds, Market, Shape, part_by, shapes, starts_in
from balsamfut.interchange.waits import HOUR, Wait, Waits
from balsamfut.platforms.queues import NO_LIMIT, Queue, Taken, refusal, span
from balsamfut.settings import Elastic

FILL: Final = 0.85
"""Work is asked a block for up to this part of what it could do ..."""
SPARE: Final = 0.7
"""... and one that waits is withdrawn when the others have to do no more than this."""
LITTLE: Final = 0.02     # of the work that is ready: no block is asked for that much while others are there
LASTS: Final = 300.0     # seconds that a surplus has to last
ROWS: Final = 6          # tasks in a row on each place, so that few places are idle while the last ones run ...
ANYWAY: Final = 64       # ... but so many nodes are asked for whatever that costs
AT_ONCE: Final = 4       # blocks asked for in one turn: a mistake shows before it is made a hundred times
LONGEST_PAUSE: Final = HOUR


class Failure(msgspec.Struct, frozen=True):
    """A queue refused blocks, or they vanished or ended before their pilots were there, one after the other."""

    count: int
    at: float                # the last time, Unix time
    text: str = ""           # in the batch system's words


class View(msgspec.Struct, frozen=True):
    """What is known.  Times are Unix time, seconds."""

    now: float
    demands: tuple[Demand, ...]
    blocks: tuple[Block, ...]                # those of this site that are not over
    queues: tuple[Queue, ...]
    settings: Elastic
    taken: Mapping[str, Taken] = {}          # by queue: blocks and jobs that count there and are not in `blocks`
    seen: tuple[Wait, ...] = ()              # how long earlier blocks of this site waited
    failures: Mapping[str, Failure] = {}     # by queue; none after a block was accepted
    spent: float = 0.0                       # node-seconds that blocks have used, those that run until now
    paused: bool = False
    hindrance: str = ""                      # why nothing can be asked for at the moment


class Submit(msgspec.Struct, frozen=True, tag=True):
    queue: str
    nodes: int
    wall: float              # seconds
    why: str


class Release(msgspec.Struct, frozen=True, tag=True):
    """End a block that runs, or withdraw one that waits."""

    token: str
    why: str


Decision = Submit | Release


class Plan(msgspec.Struct, frozen=True):
    """What to do now, and what to remember until the next time (nothing is lost if it is forgotten, but time)."""

    decisions: tuple[Decision, ...]
    lines: tuple[str, ...]                   # for people: what is done, or why nothing is
    surplus: Mapping[str, float] = {}        # block that waits for nothing -> since when
    finish: float = 0.0                      # seconds until the work that is ready may be done; 0.0: not known
    longest_first: bool = False              # the end is near: what takes longest is given out first
    homeless: Mapping[int, str] = {}         # class of tasks that no further block could run -> why
    shut: str = ""                           # why no further block is asked for, where none is


def decide(view: View, surplus: Mapping[str, float] | None = None) -> Plan:
    """What to do.  surplus: of the Plan before."""
    lines: list[str] = []
    released = _idle(view)
    gone = {release.token for release in released}
    held = [block for block in view.blocks if block.token not in gone and block.phase is not Phase.LEAVING]
    ready = sum(demand.count for demand in view.demands)
    submits: list[Submit] = []
    finish = 0.0
    if ready:
        planner = _Planner(view, held)
        lines.append(planner.situation())
        submits, finish = planner.submits(lines)
        counts, homeless, shut = planner.counts, planner.homeless, "" if submits else lines[-1]
    else:
        also = "; and the elastic queue is paused" if view.paused else ""
        lines.append(f"nothing is ready, so no block is asked for{also}")
        counts, homeless, shut = {}, {}, lines[-1]
    lasting: dict[str, float] = {}
    if not submits:
        withdrawn = _surplus(view, held, counts, surplus or {}, lasting)
        released += withdrawn
    decisions: tuple[Decision, ...] = (*submits, *released)
    return Plan(decisions, (*lines, *(_said(decision) for decision in decisions)), lasting, finish,
                ending.near(view.demands, held, view.now), homeless, shut)


def _said(decision: Decision) -> str:
    if isinstance(decision, Submit):
        where = f" to {decision.queue}" if decision.queue else ""      # a machine without queues
        return f"submit {_nodes(decision.nodes)} for {span(decision.wall)}{where}: {decision.why}"
    return f"let block {decision.token} go: {decision.why}"


# ---- letting go


def _idle(view: View) -> list[Release]:
    """Blocks that run nothing, and on which nothing that is ready could run: at once where that is for want of time."""
    found = []
    keep = view.settings.min_blocks if any(demand.count for demand in view.demands) else 0
    there = sum(1 for block in view.blocks if block.phase is not Phase.LEAVING and block.serves)
    for block in view.blocks:
        if block.phase is not Phase.RUNNING or not block.ours or not block.idle_since:
            continue
        idle = view.now - block.idle_since
        left = block.left(view.now)
        late = any(demand.count and demand.nodes <= block.nodes and demand.span > left for demand in view.demands)
        if (idle < view.settings.idle and not late) or there <= keep:
            continue
        if not any(demand.count and demand.usable(block.nodes, left) for demand in view.demands
                   if demand.cls not in block.refuses):
            found.append(Release(block.token, f"it has run nothing for {span(idle)}, and nothing that is ready fits"))
            there -= 1
    return found


def _surplus(view: View, held: Sequence[Block], counts: Mapping[str, float], before: Mapping[str, float],
             lasting: dict[str, float]) -> list[Release]:
    """Blocks that wait, though the others are enough; one at a time, the newest first."""
    waiting = sorted((block for block in held if block.phase is Phase.QUEUED and block.ours and block.serves),
                     key=lambda block: -block.since)
    wanted = any(demand.count or demand.later for demand in view.demands)
    keep = view.settings.min_blocks if wanted else 0
    patience = max(LASTS, view.settings.idle) if wanted else view.settings.idle
    large = Cover(view.demands, (), view.now, FILL, later=True).useful() // ROWS > ANYWAY
    released: list[Release] = []
    rest = [block for block in held if block.serves]
    for block in waiting:
        others = [other for other in rest if other is not block]
        if len(others) < keep:
            break
        if large:
            needed = not too_late(view.demands, rest, block, view.seen, view.now)
        else:
            needed = Cover(view.demands, others, view.now, SPARE, counts=counts, later=True).left > 0.0
        if needed:
            continue
        lasting[block.token] = before.get(block.token, view.now)
        if view.now - lasting[block.token] >= patience and not (released and wanted):
            del lasting[block.token]
            released.append(Release(block.token, "the other blocks will do all that waits" if wanted
                                    else "there is no work left"))
        rest = others
    return released


# ---- asking


class _Planner:
    """One turn's thoughts about new blocks."""

    def __init__(self, view: View, held: Sequence[Block]) -> None:
        self.view = view
        self._held = [block for block in held if block.serves]
        self._all = Cover(view.demands, (), view.now, FILL)
        self._need = self._all.left
        self._large = self._all.useful() // ROWS > ANYWAY     # it is worth while that many blocks try their luck
        pending = [Wait(block.queue, block.nodes, block.wall, view.now - block.since, view.now)
                   for block in held if block.phase is Phase.QUEUED]
        self._waits = Waits(view.seen, pending, view.now)
        self.homeless: dict[int, str] = {}   # class that no further block could run -> why
        self.shut: list[str] = []            # queues that take nothing now, and why
        self.counts: dict[str, float] = {}   # part of each block's time that is before the end of the work

    def situation(self) -> str:
        ready = sum(demand.count for demand in self.view.demands)
        waiting = sum(block.phase is Phase.QUEUED for block in self._held)
        return (f"{ready} task{' is' if ready == 1 else 's are'} ready, {self._need / HOUR:.3g} node-hours; "
                f"{len(self._held) - waiting} blocks run, {waiting} wait")

    def submits(self, lines: list[str]) -> tuple[list[Submit], float]:
        """The blocks to ask for, and in how many seconds the work may be done; why there are none goes to `lines`."""
        view = self.view
        market = self._market()
        earliest = market.earliest(self._all, self._held, self._waits, view.now)
        for block in self._held:
            left = block.left(view.now)
            if block.phase is Phase.RUNNING or self._large:
                may = starts_in(block, self._waits, view.now)
                self.counts[block.token] = part_by(earliest, left, may) / max(left, 1.0)
        cover = Cover(view.demands, self._held, view.now, FILL, counts=self.counts)
        if view.paused or view.hindrance:
            lines.append(f"no block is asked for: {view.hindrance or 'the elastic queue is paused'}")
            return [], 0.0
        lacking = view.settings.min_blocks - len(self._held)
        found: list[Submit] = []
        placeless: set[int] = set()
        while len(found) < AT_ONCE:
            homeless = next((i for i, is_so in enumerate(cover.homeless) if is_so and i not in placeless), None)
            over = sum(left for i, left in enumerate(cover.over) if i not in placeless)
            if homeless is None and (over <= (LITTLE * self._need if self._held or found else 0.0)) and lacking <= 0:
                shape = self._hedge(market) if self._large and not found else None
                if shape is None:
                    break
                market.take(shape)
                found.append(self._submit(shape, cover, homeless, over, lacking, earliest))
                break
            if over > 0.0:
                shape = market.choose(cover, earliest, homeless)
            else:
                shape = market.choose(self._all, earliest, 0)
            if shape is not None:
                market.take(shape)
                found.append(self._submit(shape, cover, homeless, over, lacking, earliest))
                lacking -= 1
            elif homeless is None:
                break
            else:
                placeless.add(homeless)
                lines.append(self._no_place(cover.demands[homeless]))
                hard = cover.demands[homeless]
                self.homeless |= dict.fromkeys((hard.cls, *hard.others), lines[-1])
        if not found:
            lines += self._why_none(cover)
        return found, earliest if earliest < FOREVER else 0.0

    def _hedge(self, market: Market) -> Shape | None:
        if not self._held:
            return None
        return one_more(self.view.demands, self._all.useful(), self._held, market, self._waits, self.view.now)

    def _submit(self, shape: Shape, cover: Cover, homeless: int | None, over: float, lacking: int,
                earliest: float) -> Submit:
        if homeless is not None and self._held:
            hard = cover.demands[homeless]
            why = f"no block that there is could run {hard.name} ({_nodes(hard.nodes)}, {span(hard.span)} each)"
        elif over > LITTLE * self._need or not self._held:
            why = f"{over / HOUR:.3g} node-hours are ready for which there is no block"
        elif lacking <= 0:
            why = "those that wait may be late"
        else:
            why = f"there are to be at least {self.view.settings.min_blocks} blocks"
        left = shape.wall - STARTUP
        may = self._waits.left(shape.queue, shape.nodes, shape.wall, 0.0)
        cover.add(shape.nodes, left, part_by(earliest, left, may) / left if self._large else 1.0)
        return Submit(shape.queue, shape.nodes, shape.wall, f"{why}; it may wait {span(shape.wait)}")

    # ---- limits

    def _market(self) -> Market:
        view, settings = self.view, self.view.settings
        there = list(view.blocks)
        nodes = settings.total_nodes - sum(block.nodes for block in there) if settings.total_nodes else NO_LIMIT
        budget = math.inf
        if settings.node_hours:
            promised = sum(block.nodes * (block.wall if block.phase is Phase.QUEUED else max(0.0, block.end - view.now))
                           for block in there)
            budget = settings.node_hours * HOUR - view.spent - promised
            if budget <= 0.0:
                self.shut.append(f"the budget of {settings.node_hours:g} node-hours is used or promised")
        blocks = settings.max_blocks - len(there)
        if blocks <= 0:
            self.shut.append(f"there are {len(there)} blocks, and elastic.max_blocks is {settings.max_blocks}")
        if nodes <= 0:
            self.shut.append(f"elastic.total_nodes, {settings.total_nodes}, is used")
        bounds = Bounds(settings.min_nodes, min(settings.max_nodes or NO_LIMIT, max(nodes, 0)),
                        settings.max_hours * HOUR or math.inf)
        places = {queue.name: self._room(queue) for queue in usable(view.queues, settings)}
        offers = {queue.name: shapes(queue, bounds, self._waits) for queue in view.queues if places.get(queue.name)}
        return Market(self._all, offers, places, max(blocks, 0), max(nodes, 0), max(budget, 0.0),
                      max(ANYWAY, self._all.useful() // ROWS) - sum(block.nodes for block in self._held))

    def _room(self, queue: Queue) -> int:
        """Blocks that may be added there: no more than may run, since those behind them gain nothing by being there."""
        view = self.view
        failure = view.failures.get(queue.name)
        if failure is not None:
            left = failure.at + pause(failure, view.settings.backoff) - view.now
            if left > 0.0:
                said = f" ({failure.text})" if failure.text else ""
                self.shut.append(f"{queue.name} refused{said}: it is tried again in {span(left)}")
                return 0
        taken = counted(queue, view.blocks, view.taken)
        room = queue.room(taken)
        if queue.max_running:
            room = min(room, queue.max_running - taken.queued - taken.running)
        if room <= 0:
            self.shut.append(f"{queue.name} takes no more: {taken.queued} queued and {taken.running} running are there")
        return max(0, room)

    # ---- saying why not

    def _why_none(self, cover: Cover) -> Iterable[str]:
        if cover.left <= LITTLE * self._need and self._held:
            yield "the blocks that there are will do what is ready: no further one is asked for"
        elif self.shut:
            yield "no further block is asked for: " + "; ".join(self.shut)
        else:
            yield "no further block is asked for: what is left is too little, or fits no block that may be asked for"

    def _no_place(self, demand: Demand) -> str:
        view = self.view
        asked = max(demand.span + STARTUP, min((queue.min_wall for queue in view.queues), default=0.0))
        named = usable(view.queues, view.settings)
        some = ("; ".join(self.shut) or "the settings of [elastic] leave no block for them") if any(
            queue.takes(demand.nodes, asked) for queue in named) else (
            refusal(named, named[0].name, demand.nodes, asked) or "" if named else "there is no queue")
        return f"{demand.name} ({_nodes(demand.nodes)}, {span(demand.span)} each) fits no further block: {some}"


def pause(failure: Failure, backoff: float) -> float:
    """Seconds that nothing is tried after a series of failures.  backoff: after the first one."""
    return min(LONGEST_PAUSE, backoff * 2.0 ** min(failure.count - 1, 30))


def usable(queues: Sequence[Queue], settings: Elastic) -> list[Queue]:
    """The queues that the settings name; if none, all that neither end blocks without a warning nor share nodes."""
    named = settings.queues.split()
    if named:
        return [queue for queue in queues if queue.name in named]
    return [queue for queue in queues if not queue.preemptable and not queue.shared_node]


def counted(queue: Queue, blocks: Iterable[Block], taken: Mapping[str, Taken]) -> Taken:
    """What counts against a queue's limits: the blocks of this site, and what else is there."""
    others = taken.get(queue.name, Taken())
    mine = [block.phase for block in blocks if block.queue == queue.name]
    waiting = sum(phase is Phase.QUEUED for phase in mine)
    return Taken(others.queued + waiting, others.running + len(mine) - waiting)


def _nodes(nodes: int) -> str:
    return f"{nodes} node{'' if nodes == 1 else 's'}"
