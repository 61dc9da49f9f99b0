"""The contestants of packing.py and the block that they pack, with a virtual clock: no process is started.

It does not know what is measured, compared or shown.
"""

from __future__ import annotations

import heapq
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from balsamfut import platforms
from balsamfut.messages import Item
from balsamfut.model import TILE, AppKind, AppSpec, Extra, Options, Resources, TaskClass, TaskSpec
from balsamfut.pilot.events import StartCommand
from balsamfut.pilot.planner import Planner
from balsamfut.pilot.queue import Attempt, Group
from balsamfut.pilot.reserve import Outlook, Tenant
from balsamfut.placement import Packer, Placement

AURORA = platforms.load("aurora").node
TILES = len(AURORA.tiles)
ONE_TILE = Resources(gpu_shares=TILE, threads_per_rank=8)
DECLARED = 1.5
MEDIAN, SIGMA = 600.0, 1.0     # seconds; of the logarithm
APP = AppSpec("task", AppKind.TEMPLATE, b"a" * 16)
EXTRA = Extra(command="true")


def whole(nodes: int) -> Resources:
    return Resources(num_nodes=nodes, ranks_per_node=TILES, gpu_shares=TILE, threads_per_rank=8)


@dataclass
class Task:
    number: int
    resources: Resources
    runs: float             # seconds, truly
    start: float = -1.0

    @property
    def tiles(self) -> int:
        return self.resources.ranks

    @property
    def wide(self) -> bool:
        return self.resources.num_nodes > 1

    @property
    def walltime(self) -> float:
        return DECLARED * self.runs


def campaign(count: int, seed: int, widest: int) -> list[Task]:
    """Tasks in the order in which they were submitted."""
    dice = random.Random(seed)
    tasks = []
    for number in range(count):
        kind = dice.random()
        if kind < 0.70:
            resources = ONE_TILE
        else:
            resources = whole(1 if kind < 0.95 else min(dice.randint(8, 64), widest))
        tasks.append(Task(number, resources, dice.lognormvariate(0.0, SIGMA) * MEDIAN))
    return tasks


# ---- who packs


class Ours:
    """The pilot's own."""

    def __init__(self, nodes: int) -> None:
        self.planner = Planner(Packer(AURORA, [""] * nodes), lambda resources, placement: ((), None, 0), 1)
        self._running: dict[int, tuple[Attempt, float]] = {}

    def submit(self, tasks: list[Task]) -> None:
        queue = self.planner.queue
        groups: dict[tuple[Resources, float], Group] = {}
        for task in tasks:
            key = task.resources, task.walltime
            group = groups.get(key)
            if group is None:
                kind = TaskClass(APP.digest, b"", task.resources, Options(walltime=task.walltime))
                group = groups[key] = Group(len(groups), kind, APP, task.resources, False)
                queue.add_group(group, self.planner.wide(task.resources))
            item = Item(task.number, 1, group.cls, TaskSpec(task.number, group.cls, extra=EXTRA))
            queue.append(Attempt(item, group, queue.next_seq()))

    def ended(self, number: int, now: float) -> None:
        attempt, started = self._running.pop(number)
        planner = self.planner
        del planner.commands[attempt.key], planner.fresh[attempt.key]
        assert attempt.slot is not None
        planner.release(attempt.slot)
        attempt.group.ran(now - started)

    def started(self, now: float) -> Iterator[int]:
        """The tasks that begin now."""
        for effect in self.planner.plan(now):
            if isinstance(effect, StartCommand):
                number = effect.attempt.item.task
                self._running[number] = effect.attempt, now
                yield number


class Scan:
    """Goes through all that waits, in order, each time that something has ended."""

    def __init__(self, nodes: int) -> None:
        self.packer = Packer(AURORA, [""] * nodes)
        self.outlook = Outlook(self.packer, nodes)
        self.waiting: dict[int, Task] = {}
        self._running: dict[int, tuple[Placement, Tenant]] = {}

    def submit(self, tasks: list[Task]) -> None:
        self.waiting.update((task.number, task) for task in tasks)

    def ended(self, number: int, now: float) -> None:
        placement, tenant = self._running.pop(number)
        self.packer.free(placement)
        self.outlook.leave(tenant)

    def start(self, task: Task, now: float, into: bool = True) -> bool:
        placement = self.packer.place(task.resources, into)
        if placement is None:
            return False
        self._running[task.number] = placement, self.outlook.enter(placement, now, now + task.walltime)
        return True

    def started(self, now: float) -> Iterator[int]:
        begun = list(self.choose(now))
        for number in begun:
            del self.waiting[number]
        return iter(begun)

    def choose(self, now: float) -> Iterator[int]:
        raise NotImplementedError


class Strict(Scan):
    """Nothing overtakes."""

    def choose(self, now: float) -> Iterator[int]:
        for task in self.waiting.values():
            if not self.start(task, now):
                return
            yield task.number


class FirstFit(Scan):
    """Whatever fits."""

    def choose(self, now: float) -> Iterator[int]:
        full: set[Resources] = set()
        for task in self.waiting.values():
            if task.resources not in full:
                if self.start(task, now):
                    yield task.number
                else:
                    full.add(task.resources)


class Easy(Scan):
    """Whatever does not delay the first that does not fit."""

    def choose(self, now: float) -> Iterator[int]:
        self.packer.hold(ONE_TILE, ())
        limit: float | None = None
        full: set[tuple[Resources, bool]] = set()
        for task in self.waiting.values():
            into = limit is None or now + task.walltime <= limit
            if (task.resources, into) in full:
                continue
            if self.start(task, now, into):
                yield task.number
                continue
            full |= {(task.resources, into), (task.resources, False)}
            if limit is None:
                choice = self.outlook.choose(task.resources, now, True)
                assert choice is not None
                limit = choice.when
                self.packer.hold(task.resources, choice.where)


CONTESTANTS: dict[str, Callable[[int], Ours | Scan]] = {
    "balsamfut": Ours, "EASY": Easy, "first-fit": FirstFit, "strict order": Strict}


# ---- the campaign


@dataclass
class Outcome:
    """Of one contestant.  Times in seconds."""

    used: float          # part of the tile-seconds until the last task began
    all_started: float
    makespan: float
    waits: list[float]   # of the wide ones, by number
    cost: float          # real seconds


def simulate(contestant: Ours | Scan, tasks: list[Task], nodes: int) -> Outcome:
    began = time.perf_counter()
    contestant.submit(tasks)
    ends: list[tuple[float, int]] = []
    now, left = 0.0, len(tasks)
    spans: list[tuple[float, float, int]] = []
    while True:
        for number in contestant.started(now):
            task = tasks[number]
            assert task.start < 0, "started twice"
            task.start = now
            spans.append((now, now + task.runs, task.tiles))
            heapq.heappush(ends, (now + task.runs, number))
            left -= 1
        if not ends:
            break
        now = ends[0][0]
        while ends and ends[0][0] == now:
            contestant.ended(heapq.heappop(ends)[1], now)
    assert not left, f"{left} tasks were never started"
    last = max(start for start, _, _ in spans)
    busy = sum((min(end, last) - start) * tiles for start, end, tiles in spans)
    return Outcome(busy / (last * nodes * TILES), last, now, [task.start for task in tasks if task.wide],
                   time.perf_counter() - began)
