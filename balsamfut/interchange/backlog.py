"""The work that waits, by class, and how far the blocks that there are will take it.  Pure.

A class is a few numbers (`Demand`), however many tasks it has; a block is its shape, and the time that it has left.
What one node holds is asked of the same packer that the pilots use.  Work is in node-seconds: a one-tile task of a
minute on a node of twelve is five of them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from balsamfut.model import Resources
from balsamfut.placement import Packer

STARTUP: Final = 120.0
"""Seconds of a block in which nothing runs yet, or nothing may any more."""
UNKNOWN: Final = 600.0
"""Seconds that a task is taken for of which nothing is said and nothing was seen."""
DOUBT: Final = 2.0
"""A task that declares no walltime is given to blocks that have so many times its typical run time left."""
MANY: Final = 60
"""Kinds of tasks that are looked at one by one; a look with all these takes a tenth of a second."""
STEPS: Final = (1.1, 1.3, 2.0, 4.0, 16.0)
"""What differs by less than such a factor is alike."""
LAST: Final = 0.75      # part of its run time that the last task of a place runs when there is no time for another


class Demand(msgspec.Struct, frozen=True):
    """Tasks of a class that wait."""

    name: str                # for people
    nodes: int               # that one task spans
    per_node: int            # how many of them (of their parts) one node runs at a time
    seconds: float           # of one task, typically
    span: float              # seconds that a block must have left for it to be given one
    count: int               # that are ready
    later: int = 0           # that wait for others: no block is asked for them, but none that they will need is let go
    cls: int = 0             # the site's number of the class
    others: tuple[int, ...] = ()     # ... of those that are taken together with it

    def work(self, tasks: int) -> float:
        """Node-seconds."""
        return tasks * self.seconds * self.nodes / self.per_node

    @property
    def useful(self) -> int:
        """Nodes on which all that is ready would run at once."""
        return self.nodes * -(-self.count // self.per_node) if self.count else 0

    def usable(self, nodes: int, left: float) -> float:
        """Node-seconds of such tasks that so many nodes do in the seconds that are left."""
        if left < self.span or nodes < self.nodes:
            return 0.0
        return nodes // self.nodes * self.nodes * min(left, max(self.seconds, left - self.span + LAST * self.seconds))


class Phase(enum.IntEnum):
    QUEUED = 1      # from the moment at which it was decided on
    RUNNING = 2
    LEAVING = 3     # it was told to end, and is given nothing


class Block(msgspec.Struct, frozen=True):
    """A block of this site.  Times are Unix time, seconds."""

    token: str
    queue: str
    nodes: int
    wall: float               # seconds that it asked for
    phase: Phase
    since: float              # when it was submitted, or (running) when it started
    end: float = 0.0          # running: when its walltime is over
    busy: float = 0.0         # running: node-seconds that what runs there will still take
    idle_since: float = 0.0   # running: nothing has run there since; 0.0: something does
    ours: bool = True         # the elastic queue asked for it; blocks of a person are never withdrawn or released
    serves: bool = True       # it takes whatever is ready; not one that is limited to some tags, or has no pilot ...
    refuses: Container[int] = ()    # ... but for these classes, which its pilot can run no more: nodes are out, say

    def left(self, now: float) -> float:
        """Seconds in which it will run tasks, from now or from its start on."""
        if not self.serves or self.phase is Phase.LEAVING:
            return 0.0
        return self.wall - STARTUP if self.phase is Phase.QUEUED else max(0.0, self.end - now)


def demand(name: str, resources: Resources, walltime: float, typical: float, count: int, later: int,
           packer: Packer, *, longest: float = math.inf, cut: bool = False, cls: int = 0) -> Demand | None:
    """The demand of a class.  walltime: as declared, 0.0 for none; typical: seconds, < 0.0 for not known; packer: of
    any number of the nodes that blocks have; longest: seconds that the longest block for it would have; cut: it goes on
    where the end of a block has cut it off.  None: no node of them can run it."""
    per_node = packer.on_one_node(resources)
    if not per_node:
        return None
    seconds = typical if typical >= 0.0 else walltime or UNKNOWN
    # Doubts about how long it takes are no reason to give it to no block at all.
    span = walltime or max(0.0 if cut else seconds, min(DOUBT * max(seconds, 1.0), longest))
    return Demand(name, resources.num_nodes, per_node, max(seconds, 0.001), span, count, later, cls)


def gathered(demands: Sequence[Demand], blocks: Sequence[Block], most: int = MANY) -> Sequence[Demand]:
    """The same work as not many more than so many demands: those that are alike are taken together, the more roughly
    the more there are.  It stays what has to be done, for how wide and how long a block, and in which blocks not."""
    if len(demands) <= most:
        return demands
    refusals = {block.token: block.refuses for block in blocks if block.refuses}
    where = {each.cls: tuple(token for token, classes in refusals.items() if each.cls in classes) for each in demands}
    for step in STEPS:
        alike: dict[tuple[object, ...], list[Demand]] = {}
        for each in demands:
            sizes = [int(math.log(max(size, 1.0), step) + 1e-9) for size in (each.nodes, each.seconds, each.span)]
            alike.setdefault((each.count > 0, each.per_node, where[each.cls], *sizes), []).append(each)
        if len(alike) <= most:
            break
    return [_together(some) for some in alike.values()]


def _together(some: Sequence[Demand]) -> Demand:
    """As one demand, for blocks that can run all of them."""
    if len(some) == 1:
        return some[0]
    first = max(some, key=lambda each: each.work(each.count + each.later))
    nodes, count, later = max(each.nodes for each in some), sum(each.count for each in some), sum(e.later for e in some)
    work = sum(each.work(each.count + each.later) for each in some)
    return Demand(f"{first.name} and others", nodes, first.per_node, work * first.per_node / (nodes * (count + later)),
                  max(each.span for each in some), count, later, first.cls, tuple(each.cls for each in some))


class Cover:
    """Who does which work: what is ready, given out to blocks, the hardest to place first.

    A block is never given more than `fill` of what it could do in its time, or in the part of it that counts; what no
    block takes is left over.
    """

    def __init__(self, demands: Iterable[Demand], blocks: Iterable[Block], now: float, fill: float, *,
                 counts: Mapping[str, float] | None = None, later: bool = False) -> None:
        self.fill = fill
        self.demands = sorted((d for d in demands if d.count or (later and d.later)),
                              key=lambda d: (d.nodes, d.span), reverse=True)
        self.over = [d.work(d.count + d.later * later) for d in self.demands]     # that no block takes, yet
        self.homeless = [True] * len(self.demands)                                # no block could take any of it
        self._places = [_Place(block, block.left(now), (counts or {}).get(block.token, 1.0) * fill)
                        for block in blocks]
        for index in range(len(self.demands)):
            self._give(index, self._places)

    @property
    def left(self) -> float:
        """Node-seconds that no block takes."""
        return sum(self.over)

    def useful(self) -> int:
        """Nodes on which all that is left over would run at once."""
        return sum(d.useful for d, over in zip(self.demands, self.over, strict=True) if over > 0.0)

    def add(self, nodes: int, left: float, counts: float) -> None:
        """One more block with so many seconds, of which this part counts; it is given what is left over."""
        place = _Place(Block("", "", nodes, left, Phase.QUEUED, 0.0), left, counts * self.fill)
        for index in range(len(self.demands)):
            self._give(index, [place])

    def yields(self, nodes: int, left: float) -> float:
        """Node-seconds that such a block does of a mixture such as what is left over, of what it can take of it."""
        work = time = 0.0
        for each, over in zip(self.demands, self.over, strict=True):
            usable = each.usable(nodes, left) if over > 0.0 else 0.0
            if usable:
                work += over
                time += over / usable
        return self.fill * work / time if time else 0.0

    def _give(self, index: int, places: Sequence[_Place]) -> None:
        each = self.demands[index]
        able = [(each.usable(place.nodes, place.left), place) for place in places if each.cls not in place.refuses]
        able = [(usable, place) for usable, place in able if usable > 0.0]
        if able:
            self.homeless[index] = False
        # Where it does not matter much where it goes it goes where there is a place already.
        able.sort(key=lambda pair: (-round(5.0 * pair[0] / (pair[1].nodes * pair[1].left)), pair[1].queued))
        for usable, place in able:
            if self.over[index] <= 0.0:
                return
            wanted = self.over[index] / usable
            self.over[index] = 0.0 if wanted <= place.room else self.over[index] - place.room * usable
            place.room -= min(place.room, wanted)


class _Place:
    """A block, and the part of its time that nothing is planned for."""

    __slots__ = ("nodes", "left", "room", "queued", "refuses")

    def __init__(self, block: Block, left: float, room: float) -> None:
        self.nodes = block.nodes
        self.left = left
        self.queued = block.phase is Phase.QUEUED
        self.refuses = block.refuses
        self.room = max(0.0, room - block.busy / (self.nodes * left)) if left > 0.0 else 0.0
