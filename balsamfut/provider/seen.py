"""What a batch system itself says of its queues, and where a platform's table says otherwise.  Pure.

PBS is asked by `qstat -Q -f -F json`, Slurm by `scontrol show partition`.  A limit that it does not name may still be
there, in a hook or for the whole server, so only what both name is compared.  Starts nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from balsamfut.platforms.queues import Queue, span

ASK: Final[dict[str, tuple[str, ...]]] = {
    "pbs": ("qstat", "-Q", "-f", "-F", "json"), "slurm": ("scontrol", "--oneliner", "show", "partition")}
"""The question, by kind of batch system."""

_ENTITY: Final = re.compile(r"\[?([ugpo]):(PBS_GENERIC|PBS_ALL)=(\d+)\]?")


class Seen(msgspec.Struct, frozen=True):
    """A queue of PBS or a partition of Slurm, as it is set up.  None: nothing is said of that."""

    name: str
    min_nodes: int | None = None
    max_nodes: int | None = None
    min_wall: float | None = None       # seconds
    max_wall: float | None = None
    max_queued: tuple[int, str] | None = None     # blocks, and of whom: user or project
    max_running: tuple[int, str] | None = None
    routes: tuple[str, ...] = ()        # the queues that it hands blocks on to; none: blocks run in it
    routed: bool = False                # blocks come there from such a queue alone
    enabled: bool = True                # blocks can be submitted
    started: bool = True                # blocks that wait there may start


class Difference(msgspec.Struct, frozen=True):
    queue: str
    text: str
    wrong: bool                         # what the table promises is not so; else it is so at the moment


def read(kind: str, text: str) -> dict[str, Seen]:
    """The queues by name.  Raises ValueError for an answer that cannot be understood."""
    found = _pbs(text) if kind == "pbs" else _slurm(text)
    return {queue.name: queue for queue in found}


def _pbs(text: str) -> Iterable[Seen]:
    try:
        listed = json.loads(text, strict=False)["Queue"]
        return [_pbs_queue(str(name), dict(said)) for name, said in listed.items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no list of queues: {error}") from None


def _pbs_queue(name: str, said: Mapping[str, Any]) -> Seen:
    most, least = dict(said.get("resources_max", {})), dict(said.get("resources_min", {}))
    routes = str(said.get("route_destinations", ""))
    return Seen(
        name, _number(least.get("nodect")), _number(most.get("nodect")), _seconds(least.get("walltime")),
        _seconds(most.get("walltime")), _limit(said.get("max_queued")), _limit(said.get("max_run")),
        tuple(each.partition("@")[0] for each in routes.split(",") if each),
        _is(said, "from_route_only"), _is(said, "enabled", True), _is(said, "started", True))


def _is(said: Mapping[str, Any], key: str, default: bool = False) -> bool:
    return str(said.get(key, default)).lower() == "true"


def _limit(text: object) -> tuple[int, str] | None:
    """`[u:PBS_GENERIC=1]`: one of each user."""
    for letter, who, number in _ENTITY.findall(str(text)):
        if who == "PBS_GENERIC" and letter in "up":
            return int(number), {"u": "user", "p": "project"}[letter]
    return None


def _slurm(text: str) -> Iterable[Seen]:
    found = []
    for line in text.splitlines():
        said = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if name := said.get("PartitionName"):
            state = said.get("State", "UP")
            total = _number(said.get("TotalNodes"))
            most = _number(said.get("MaxNodes")) or total
            found.append(Seen(name, _number(said.get("MinNodes")) or None, most, None, _seconds(said.get("MaxTime")),
                              enabled=state in ("UP", "DOWN"), started=state in ("UP", "DRAIN")))
    if not found:
        raise ValueError("no partition is in it")
    return found


def _number(text: object) -> int | None:
    return int(str(text)) if str(text).isdigit() else None


def _seconds(text: object) -> float | None:
    """`12:00:00`, `7-00:00:00`, `60` (PBS: seconds); None where there is no limit."""
    days, dash, clock = str(text).rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or (dash and not days.isdigit()):
        return None
    total = 0
    for part in parts:
        total = 60 * total + int(part)
    return 86400.0 * int(days or 0) + total


# ---- the comparison


def compare(table: Sequence[Queue], seen: Mapping[str, Seen], system: str) -> list[Difference]:
    """Where the batch system says otherwise than the table, queue by queue.  system: its name, for people."""
    found: list[Difference] = []
    for queue in table:
        real = seen.get(queue.name)
        if real is None:
            found.append(Difference(queue.name, f"{system} has no such queue", True))
            continue
        if not real.enabled:
            found.append(Difference(queue.name, "it is disabled: nothing can be submitted to it now", False))
        if not real.started:
            found.append(Difference(queue.name, "it is stopped: blocks there do not start now", False))
        texts = [*_shapes(queue, real, seen, system), *_counts(queue, real, system)]
        found += [Difference(queue.name, text, True) for text in texts]
    return found


def _shapes(queue: Queue, real: Seen, seen: Mapping[str, Seen], system: str) -> Iterable[str]:
    if bool(real.routes) != queue.routing:
        yield (f"{system} routes what comes there to {', '.join(real.routes)}, and the table does not say so"
               if real.routes else f"the table says that it routes, and in {system} blocks run in it")
    elif real.routes and queue.bands:       # without bands the table knows nothing of where it leads
        yield from _bands(queue, real, seen, system)
    elif not real.routes:
        yield from _range(queue, real, system)


def _range(queue: Queue, real: Seen, system: str) -> Iterable[str]:
    if real.max_nodes is not None and real.max_nodes != queue.max_nodes and not queue.shared_node:
        yield f"the table says at most {queue.max_nodes} nodes, {system} {real.max_nodes}"
    if real.min_nodes is not None and real.min_nodes > queue.min_nodes:
        yield f"the table says at least {queue.min_nodes} nodes, {system} {real.min_nodes}"
    if real.max_wall is not None and real.max_wall != queue.max_wall:
        yield f"the table says at most {span(queue.max_wall)}, {system} {span(real.max_wall)}"
    if real.min_wall is not None and real.min_wall > queue.min_wall:
        yield f"the table says at least {span(queue.min_wall)}, {system} {span(real.min_wall)}"


def _bands(queue: Queue, real: Seen, seen: Mapping[str, Seen], system: str) -> Iterable[str]:
    """A band of the table is the queue that takes it; a queue that none of the bands is would never be asked for."""
    left = {name: seen[name] for name in real.routes if name in seen}
    for band in queue.bands:
        match = next((name for name, each in left.items() if (each.min_nodes or 1) <= band.min_nodes
                      and (each.max_nodes or band.max_nodes) >= band.max_nodes), None)
        text = f"{band.min_nodes} to {band.max_nodes} nodes"
        if match is None:
            yield f"the table says that it takes {text}, and none of {', '.join(real.routes)} does"
            continue
        most = left.pop(match).max_wall
        if most is not None and most != band.max_wall:
            yield f"the table says at most {span(band.max_wall)} for {text}, {system} {span(most)} (in {match})"
    for name, each in left.items():
        if each.enabled:
            yield (f"{system} routes to {name} too, for {each.min_nodes or 1} to {each.max_nodes or 'any number of'} "
                   "nodes, which the table does not have")


def _counts(queue: Queue, real: Seen, system: str) -> Iterable[str]:
    for what, mine, theirs in (("there at a time", queue.max_queued, real.max_queued),
                               ("that run at a time", queue.max_running, real.max_running)):
        if theirs is not None and (mine, queue.per) != theirs:
            said = f"at most {mine} of a {queue.per}" if mine else "no limit"
            yield f"of blocks {what} the table says {said}, {system} at most {theirs[0]} of a {theirs[1]}"
