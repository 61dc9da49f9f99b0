"""The queues of a batch system as data, and what they say to a block before anybody submits it.  Pure.

The tables are the `[[scheduler.queues]]` of the platform files (a site's settings may override them).  A batch system
that refuses says little (`Job violates queue and/or server resource limits`), and a routing queue drops without a word
what none of its destinations takes; so everything is checked here first, and said in one sentence: what was asked,
where, what would be right, and which queue would take it.  This module submits nothing and knows no batch system.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from balsamfut.errors import SettingsError
from balsamfut.platforms import Platform, checking

NO_LIMIT: Final = 1 << 30
MAX_NODES: Final = 1 << 16
MAX_WALL: Final = 366 * 86400.0     # seconds


class Band(msgspec.Struct, frozen=True):
    """Blocks of so many nodes may be so long."""

    min_nodes: int
    max_nodes: int
    max_wall: float          # seconds


class Queue(msgspec.Struct, frozen=True):
    """A queue of PBS, or a partition of Slurm, and its limits."""

    name: str
    min_nodes: int
    max_nodes: int
    min_wall: float          # seconds
    max_wall: float          # of the longest band
    max_queued: int = 0      # blocks there at a time, those that run among them; 0: no limit
    max_running: int = 0     # blocks that run at a time; 0: no limit
    per: Literal["user", "project"] = "user"    # whose blocks count together
    bands: tuple[Band, ...] = ()
    routing: bool = False        # it hands blocks on, by their size; what no band takes is dropped without a word
    preemptable: bool = False    # blocks may be ended without a warning
    shared_node: bool = False    # `nodes` counts parts of one node

    def longest(self, nodes: int) -> float:
        """Seconds that a block of so many nodes may ask for; 0.0: it takes none of that size."""
        if not self.min_nodes <= nodes <= self.max_nodes:
            return 0.0
        if not self.bands:
            return self.max_wall
        return max((band.max_wall for band in self.bands if band.min_nodes <= nodes <= band.max_nodes), default=0.0)

    def takes(self, nodes: int, wall: float) -> bool:
        """Whether a block of this shape may ever run there."""
        return self.min_wall <= wall <= self.longest(nodes)

    def room(self, taken: Taken) -> int:
        """How many more blocks it takes beside those of the user or project that are there."""
        return max(0, self.max_queued - taken.queued - taken.running) if self.max_queued else NO_LIMIT


class Taken(msgspec.Struct, frozen=True):
    """Blocks that count against a queue's limits: of the user, or of everybody in the project (`Queue.per`)."""

    queued: int = 0
    running: int = 0


class _BandFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    nodes: tuple[int, int]
    walltime_min: float


class _QueueFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    nodes: tuple[int, int]
    walltime_min: tuple[float, float]
    max_queued: int = 0
    max_running: int = 0
    per: Literal["user", "project"] = "user"
    bands: tuple[_BandFile, ...] = ()
    routing: bool = False
    preemptable: bool = False
    shared_node: bool = False


def tables(platform: Platform) -> tuple[Queue, ...]:
    """The platform's queues, in the order of its file.  Raises SettingsError for what is not understood."""
    found = []
    for number, raw in enumerate(platform.scheduler.get("queues", ()), 1):
        where = f"platform {platform.name!r}: scheduler.queues, {_named(raw, number)}"
        try:
            checking.check_names(raw if isinstance(raw, Mapping) else {}, _QueueFile, "scheduler.queues")
            found.append(_queue(msgspec.convert(raw, _QueueFile)))
        except (msgspec.ValidationError, ValueError) as error:
            raise SettingsError(f"{where}: {checking.plain(error)}") from None
    twice = [queue.name for index, queue in enumerate(found) if queue.name in {q.name for q in found[:index]}]
    if twice:
        raise SettingsError(f"platform {platform.name!r}: scheduler.queues has two queues with the name {twice[0]!r}")
    return tuple(found)


def _named(raw: Any, number: int) -> str:
    name = raw.get("name") if isinstance(raw, Mapping) else None
    return repr(name) if name else f"the entry {number}"


def _queue(file: _QueueFile) -> Queue:
    for what, (low, high) in (("nodes", file.nodes), ("walltime_min", file.walltime_min),
                              *(("nodes of a band", band.nodes) for band in file.bands)):
        if low < 1 or high < low:
            raise ValueError(f"{what} goes from the least to the most, both at least 1, not [{low:g}, {high:g}]")
    if file.max_queued < 0 or file.max_running < 0:
        raise ValueError("max_queued and max_running are numbers of blocks, 0 for no limit")
    least, most = (60.0 * minutes for minutes in file.walltime_min)
    bands = tuple(Band(*band.nodes, min(60.0 * band.walltime_min, most)) for band in file.bands)
    if bands:
        most = max(band.max_wall for band in bands)
    return Queue(file.name, *file.nodes, least, most, file.max_queued, file.max_running, file.per, bands, file.routing,
                 file.preemptable, file.shared_node)


# ---- what they say to a block


def absurd(nodes: int, wall: float) -> str | None:
    """Why there is no such block on any machine; None: there may be."""
    if not 1 <= nodes <= MAX_NODES:
        return f"a block of {_nodes(nodes)} was asked; a block has 1 to {MAX_NODES}"
    if not 0.0 < wall <= MAX_WALL:      # nan, too, is not
        return f"a block's walltime is above 0 min and at most {span(MAX_WALL)}, not {wall / 60.0:g} min"
    return None


def refusal(queues: Sequence[Queue], where: str, nodes: int, wall: float, taken: Mapping[str, Taken] | None = None, *,
            machine: str = "this machine") -> str | None:
    """Why the queue `where` would not take a block of so many nodes and so many seconds; None where it would.

    taken: by queue, what counts against its limits already.  No table (a machine whose queues are not described, as
    under a batch system of one's own) refuses nothing that could be right somewhere.
    """
    if (why := absurd(nodes, wall)) is not None:
        return why
    asked = f"{_nodes(nodes)} for {span(wall)}"
    if not queues:
        return None
    queue = next((queue for queue in queues if queue.name == where), None)
    if queue is None:
        close = difflib.get_close_matches(where, [queue.name for queue in queues], n=2)
        meant = f"did you mean {' or '.join(close)}?" if close else (
            f"{machine} has {', '.join(queue.name for queue in queues)}")
        problem = f"there is no queue {where!r}" if where else "no queue was named"
        return f"{problem}; {meant}{'' if close else _instead(queues, '', nodes, wall)}"
    longest = queue.longest(nodes)
    if not longest:
        return (f"{asked} was asked, but {queue.name} takes {_range(queue)}"
                f"{_instead(queues, queue.name, nodes, wall)}")
    if wall > longest:
        size = f" blocks of {_nodes(nodes)}" if queue.bands else ""
        return (f"{asked} was asked, but {queue.name} takes{size} at most {span(longest)}"
                f"{_instead(queues, queue.name, nodes, wall)}")
    if wall < queue.min_wall:
        return f"{asked} was asked, but {queue.name} takes at least {span(queue.min_wall)}"
    return _full(queues, queue, nodes, wall, taken or {})


def _full(queues: Sequence[Queue], queue: Queue, nodes: int, wall: float, taken: Mapping[str, Taken]) -> str | None:
    there = taken.get(queue.name, Taken())
    if queue.room(there) > 0:
        return None
    free = [other.name for other in queues
            if other.takes(nodes, wall) and other.room(taken.get(other.name, Taken())) > 0]
    return (f"{queue.name} takes at most {_blocks(queue.max_queued)} of one {queue.per} at a time, and {there.queued} "
            f"queued and {there.running} running are there; "
            + (f"{' or '.join(free)} would take it" if free else "no other queue would take it now"))


def _instead(queues: Sequence[Queue], but: str, nodes: int, wall: float) -> str:
    """Which queue would take it, or the most that there is for that many nodes."""
    able = [queue.name for queue in queues if queue.name != but and queue.takes(nodes, wall)]
    if able:
        return f"; {' or '.join(able)} would take it"
    best = max((queue for queue in queues if queue.longest(nodes)), key=lambda q: q.longest(nodes), default=None)
    if best is None:
        return f"; no queue takes that many: {', '.join(f'{queue.name} {_range(queue)}' for queue in queues)}"
    if best.name != but and wall > best.longest(nodes):
        return f"; the longest for {_nodes(nodes)} is {span(best.longest(nodes))}, in {best.name}"
    return "" if wall > best.longest(nodes) else f"; {best.name} takes at least {span(best.min_wall)}"


def span(seconds: float) -> str:
    """A walltime for people: `45 min`, `1 h 30 min`, `7 days`."""
    minutes = round(seconds / 60.0)
    if minutes < 1:
        return f"{seconds:.3g} s"
    if minutes % 1440 == 0:
        return f"{minutes // 1440} day{'' if minutes == 1440 else 's'}"
    hours, rest = divmod(minutes, 60)
    return " ".join(filter(None, (f"{hours} h" if hours else "", f"{rest} min" if rest else "")))


def _nodes(nodes: int) -> str:
    return f"{nodes} node{'' if nodes == 1 else 's'}"


def _blocks(blocks: int) -> str:
    return f"{blocks} block{'' if blocks == 1 else 's'}"


def _range(queue: Queue) -> str:
    if queue.min_nodes == queue.max_nodes:
        return _nodes(queue.min_nodes)
    return f"{queue.min_nodes} to {queue.max_nodes} nodes"
