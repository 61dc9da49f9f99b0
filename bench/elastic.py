"""What the elastic queue reaches, simulated with a virtual clock: no process and no batch system.

    python bench/elastic.py [--tasks N] [--seeds N] [--first SEED] [--json] [--verbose]
    python bench/elastic.py --same-order        against fixed shapes whose tasks have the elastic queue's order
    python bench/elastic.py --vary [CASE...]    what becomes of it where things are otherwise

A campaign of --tasks tasks, all ready at the beginning, on Aurora's queue table with queue waits that grow with width
and length (simulated_pbs.py).  By count 70 % are one-tile tasks, 25 % one-node, 5 % of 8 to 64 nodes; run times are
log-normal (median 600 s, sigma 1, at most 2000 s); what they declare is 1.5 times as long, rounded up to 5, 10, 20, 30
or 50 minutes, and nobody but the simulation knows more.  The elastic queue starts without any history of waits.

Against it: five fixed shapes.  Each asks for as many blocks of its shape as the work that is left needs, as soon as the
queue takes them, withdraws those that wait when nothing is left and lets idle blocks go, as the elastic queue does.
They have the same luck in the queues, and the same packing in the blocks, but for the end of the work, where blocks of
the elastic queue take what is longest first; with --same-order those of the fixed shapes do so, too.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from simulated_pbs import HOUR, SimulatedPbs  # noqa: E402

from balsamfut import platforms  # noqa: E402
from balsamfut.interchange.backlog import STARTUP, Block, Cover, Demand, Phase  # noqa: E402
from balsamfut.interchange.elastic import FILL, Decision, Plan, Release, Submit, View, counted, decide  # noqa: E402
from balsamfut.interchange.ending import near  # noqa: E402
from balsamfut.interchange.waits import Wait  # noqa: E402
from balsamfut.platforms import queues  # noqa: E402
from balsamfut.settings import Elastic  # noqa: E402

TILES = 12
DECLARED = tuple(60.0 * minutes for minutes in (5, 10, 20, 30, 50))
ENDS = 30.0                      # seconds at the end of a block in which nothing runs
PERIOD = 60.0                   # seconds between two looks at the queues
FIXED = {
    "debug-scaling 256 x 1 h": ("debug-scaling", 256, HOUR), "prod 256 x 6 h": ("prod", 256, 6 * HOUR),
    "prod 256 x 12 h": ("prod", 256, 12 * HOUR), "prod 512 x 6 h": ("prod", 512, 6 * HOUR),
    "prod 1024 x 6 h": ("prod", 1024, 6 * HOUR)}


@dataclass
class Kind:
    """Tasks of one width and one declared walltime."""

    nodes: int
    tiles: int               # on each node
    declared: float
    runs: deque[float] = field(default_factory=deque)     # seconds, truly, of those that wait
    typical: float = -1.0

    def demand(self) -> Demand:
        seconds = self.typical if self.typical >= 0.0 else self.declared
        return Demand(f"{self.nodes}x{self.tiles}", self.nodes, TILES // self.tiles, seconds, self.declared,
                      len(self.runs))

    def learn(self, seconds: float) -> None:
        self.typical = seconds if self.typical < 0.0 else self.typical + 0.2 * (seconds - self.typical)


@dataclass(frozen=True)
class Case:
    """What is otherwise."""

    tasks: int = 50_000
    waits: float = 1.0               # times as long
    tiles: float = 0.7               # part of the tasks that take one tile ...
    whole: float = 0.25              # ... and one node
    declared: float = 0.0            # seconds that all tasks declare; 0.0: as their run time is
    queues: str = ""                 # that may be used
    seen: int = 0                    # earlier waits that the elastic queue knows of


CASES = {
    "waits x 0.3": Case(waits=0.3), "waits x 3": Case(waits=3.0), "5,000 tasks": Case(5_000),
    "200,000 tasks": Case(200_000), "one-tile tasks only": Case(tiles=1.0, whole=0.0),
    "wide tasks only": Case(10_000, tiles=0.0, whole=0.0), "all declare 50 min": Case(declared=3000.0),
    "only prod": Case(queues="prod"), "60 earlier waits": Case(seen=60)}


def campaign(seed: int, case: Case) -> list[Kind]:
    dice = random.Random(seed)
    kinds: dict[tuple[int, int, float], Kind] = {}
    for _ in range(case.tasks):
        which = dice.random()
        nodes, tiles = (1, 1) if which < case.tiles else (1, TILES) if which < case.tiles + case.whole else (
            dice.choice((8, 16, 32, 64)), TILES)
        runs = math.inf
        while runs > 2000.0:
            runs = dice.lognormvariate(0.0, 1.0) * 600.0
        declared = case.declared or next(each for each in DECLARED if each >= 1.5 * runs)
        kinds.setdefault((nodes, tiles, declared), Kind(nodes, tiles, declared)).runs.append(runs)
    return sorted(kinds.values(), key=first_order)


def first_order(kind: Kind) -> tuple[float, ...]:
    """Widest first."""
    return -kind.nodes, -kind.tiles, -kind.declared


def last_order(kind: Kind) -> tuple[float, ...]:
    """Those of several nodes first, then what takes longest."""
    return -kind.nodes, -kind.declared, -kind.tiles


class Running:
    """A block that runs: which nodes have how many tiles free."""

    def __init__(self, number: int, nodes: int, start: float, end: float) -> None:
        self.number, self.nodes, self.start, self.end = number, nodes, start, end
        self.free = [TILES] * nodes
        self.by_free: list[set[int]] = [set() for _ in range(TILES)] + [set(range(nodes))]
        self.tasks = 0
        self.idle_since = start

    def place(self, kind: Kind) -> list[int] | None:
        if kind.tiles == TILES:
            empty = self.by_free[TILES]
            if len(empty) < kind.nodes:
                return None
            return self._take([empty.pop() for _ in range(kind.nodes)], TILES)
        for free in range(kind.tiles, TILES + 1):
            if self.by_free[free]:
                return self._take([self.by_free[free].pop()], kind.tiles)
        return None

    def _take(self, nodes: list[int], tiles: int) -> list[int]:
        for node in nodes:
            self.free[node] -= tiles
            self.by_free[self.free[node]].add(node)
        self.tasks += 1
        return nodes

    def give_back(self, nodes: list[int], tiles: int) -> None:
        for node in nodes:
            self.by_free[self.free[node]].discard(node)
            self.free[node] += tiles
            self.by_free[self.free[node]].add(node)
        self.tasks -= 1

    def fill(self, kinds: list[Kind], now: float) -> Iterator[tuple[Kind, float, list[int]]]:
        """In the order of `kinds`, of what may end in time; empty nodes are kept for a wide task that waits."""
        left = self.end - now - ENDS
        for kind in kinds:
            if not kind.runs or kind.declared > left or kind.nodes > self.nodes:
                continue
            while kind.runs and (nodes := self.place(kind)) is not None:
                yield kind, kind.runs.popleft(), nodes
            if kind.runs and kind.nodes > 1:
                return


Policy = Callable[[View], Plan]


def elastic() -> Policy:
    surplus: Mapping[str, float] = {}

    def policy(view: View) -> Plan:
        nonlocal surplus
        plan = decide(view, surplus)
        surplus = plan.surplus
        return plan

    return policy


def fixed(queue: str, nodes: int, wall: float, same_order: bool) -> Policy:
    """As many blocks of one shape as the work needs.  same_order: the end of the work is as with the elastic queue."""

    def policy(view: View) -> Plan:
        table = next(each for each in view.queues if each.name == queue)
        found: list[Decision] = [Release(block.token, "idle") for block in view.blocks if block.idle_since
                                 and view.now - block.idle_since >= view.settings.idle]
        if not any(demand.count for demand in view.demands):
            found += [Release(block.token, "done") for block in view.blocks if block.phase is Phase.QUEUED]
            return Plan(tuple(found), ())
        cover = Cover(view.demands, view.blocks, view.now, FILL)
        for _ in range(table.room(counted(table, view.blocks, view.taken))):
            if cover.left <= 0.0:
                break
            cover.add(nodes, wall - STARTUP, 1.0)
            found.append(Submit(queue, nodes, wall, "needed"))
        return Plan(tuple(found), (), longest_first=same_order and near(view.demands, view.blocks, view.now))

    return policy


@dataclass
class Outcome:
    makespan: float          # seconds
    node_hours: float
    blocks: int              # that ran
    withdrawn: int
    refused: list[str]
    late: int                # blocks asked for when nothing was left to do
    story: list[str]


class World:
    """The campaign, the batch system, and one who asks for blocks."""

    def __init__(self, kinds: list[Kind], pbs: SimulatedPbs, policy: Policy, settings: Elastic) -> None:
        self.kinds, self.pbs, self.policy, self.settings = kinds, pbs, policy, settings
        self.left = sum(len(kind.runs) for kind in kinds)
        self.running: dict[int, Running] = {}
        self.seen: list[Wait] = []
        self.ends: list[tuple[float, int, int, Kind, float, list[int]]] = []
        self.count = self.late = 0
        self.longest_first = False
        self.done = 0.0
        self.story: list[str] = []

    def run(self) -> Outcome:
        now, look = 0.0, 0.0
        while self.left or self.pbs.jobs:
            now = min(look, self.pbs.due(), self.ends[0][0] if self.ends else math.inf)
            if now > 60 * 24 * HOUR:
                raise RuntimeError(f"{self.left} tasks are left after two months")
            self._tasks(now)
            self.pbs.advance(now)
            self._blocks(now)
            if now >= look:
                self._ask(now)
                idle = [block.idle_since + self.settings.idle for block in self.running.values() if block.idle_since]
                look = min([now + PERIOD, *(each for each in idle if each > now)])
        ran = [job for job in self.pbs.over if job.start >= 0]
        hours = sum(job.nodes * (job.over - job.start) for job in ran) / HOUR
        return Outcome(self.done, hours, len(ran), len(self.pbs.over) - len(ran), self.pbs.refused, self.late,
                       self.story)

    def _tasks(self, now: float) -> None:
        touched: dict[int, Running] = {}
        while self.ends and self.ends[0][0] <= now:
            _, _, number, kind, runs, nodes = heapq.heappop(self.ends)
            block = self.running[number]
            block.give_back(nodes, kind.tiles)
            kind.learn(runs)
            self.left -= 1
            self.done = now
            touched[number] = block
        for block in touched.values():
            self._fill(block, now)

    def _fill(self, block: Running, now: float) -> None:
        for kind, runs, nodes in block.fill(self.kinds, now):
            self.count += 1
            heapq.heappush(self.ends, (now + runs, self.count, block.number, kind, runs, nodes))
        block.idle_since = 0.0 if block.tasks else block.idle_since or now

    def _blocks(self, now: float) -> None:
        for number, job in self.pbs.jobs.items():
            if job.start >= 0 and number not in self.running:
                block = self.running[number] = Running(number, job.nodes, now, job.end)
                self.seen.append(Wait(job.queue, job.nodes, job.wall, now - job.submitted, now))
                self._tell(now, f"block {number} starts")
                self._fill(block, now)
        for number in [number for number in self.running if number not in self.pbs.jobs]:
            block = self.running.pop(number)
            assert not block.tasks, "a block ended under its tasks"
            self._tell(now, f"block {number} is over, {self.left} tasks are left")

    def _ask(self, now: float) -> None:
        view = self.view(now)
        plan = self.policy(view)
        if plan.longest_first != self.longest_first:
            self.longest_first = plan.longest_first
            self.kinds.sort(key=last_order if self.longest_first else first_order)
        for decision in plan.decisions:
            self._tell(now, str(decision))
            if isinstance(decision, Submit):
                self.late += not self.left
                self.pbs.submit(now, decision.queue, decision.nodes, decision.wall)
            else:
                self.pbs.cancel(now, int(decision.token))
        self._blocks(now)
        for block in self.running.values():
            self._fill(block, now)

    def _tell(self, now: float, text: str) -> None:
        self.story.append(f"{now / HOUR:8.2f} h  {text}")

    def view(self, now: float) -> View:
        busy = dict.fromkeys(self.running, 0.0)
        for end, _, number, kind, runs, _ in self.ends:
            typical = kind.typical if kind.typical >= 0.0 else kind.declared
            busy[number] += max(0.1 * typical, typical - (now - end + runs)) * kind.nodes * kind.tiles / TILES
        blocks = tuple(Block(
            str(job.id), job.queue, job.nodes, job.wall, Phase.RUNNING if job.id in self.running else Phase.QUEUED,
            job.start if job.start >= 0 else job.submitted, job.end, busy.get(job.id, 0.0),
            self.running[job.id].idle_since if job.id in self.running else 0.0) for job in self.pbs.jobs.values())
        spent = sum(job.nodes * (job.over - job.start) for job in self.pbs.over if job.start >= 0)
        spent += sum(block.nodes * (now - block.start) for block in self.running.values())
        taken = {queue.name: self.pbs.taken(queue.name, ours=False) for queue in self.pbs.queues}
        return View(now, tuple(kind.demand() for kind in self.kinds if kind.runs), blocks, self.pbs.queues,
                    self.settings, taken, tuple(self.seen), spent=spent)


def history(count: int, seed: int) -> list[Wait]:
    """How long so many earlier blocks of this site waited, of whatever shapes its people asked for."""
    dice = random.Random(f"history {seed}")
    pbs = SimulatedPbs(queues.tables(platforms.load("aurora")), -seed)
    found = []
    for number in range(count):
        queue = dice.choice(pbs.queues)
        widths = [width for power in range(14) if queue.longest(width := 1 << power) and width <= 2048]
        nodes = dice.choice(widths)
        wall = dice.choice([HOUR * hours for hours in (1, 2, 3, 6, 12) if queue.takes(nodes, HOUR * hours)])
        found.append(Wait(queue.name, nodes, wall, pbs.wait(queue.name, nodes, wall), -number * 12 * HOUR - 1.0))
    return found


def simulate(policy: Policy, seed: int, case: Case) -> Outcome:
    pbs = SimulatedPbs(queues.tables(platforms.load("aurora")), seed)
    pbs.medians = {queue: case.waits * median for queue, median in pbs.medians.items()}
    world = World(campaign(seed, case), pbs, policy, Elastic(enabled=True, queues=case.queues))
    world.seen += history(case.seen, seed)
    return world.run()


def compare(case: Case, seeds: range, same_order: bool = False) -> list[dict[str, object]]:
    makers: dict[str, Callable[[], Policy]] = {"elastic": elastic}
    makers |= {name: lambda shape=shape: fixed(*shape, same_order) for name, shape in FIXED.items()}   # type: ignore[misc]
    rows: list[dict[str, object]] = []
    for seed in seeds:
        outcomes = {name: simulate(make(), seed, case) for name, make in makers.items()}
        best = min(FIXED, key=lambda name: outcomes[name].makespan)
        for name, mine in outcomes.items():
            rows.append({"seed": seed, "who": name, "hours": mine.makespan / HOUR, "node_hours": mine.node_hours,
                         "blocks": mine.blocks, "withdrawn": mine.withdrawn, "refused": len(mine.refused),
                         "late": mine.late, "to_best": mine.makespan / outcomes[best].makespan,
                         "node_hours_to_best": mine.node_hours / outcomes[best].node_hours, "best": name == best})
    return rows


def mean(rows: list[dict[str, object]], name: str) -> float:
    """Of the elastic queue's rows."""
    return statistics.fmean(float(str(row[name])) for row in rows if row["who"] == "elastic")


def vary(names: list[str], seeds: range) -> None:
    """How the elastic queue stands to the best fixed shape, case by case."""
    print(f"{'case':24}{'seeds':>6}{'time to best':>14}{'node-h to best':>16}{'blocks':>8}{'withdrawn':>11}"
          f"{'refused':>9}{'late':>6}", flush=True)
    for name in names:
        rows = compare(CASES[name], seeds)
        print(f"{name:24}{len(seeds):6}{mean(rows, 'to_best'):14.3f}{mean(rows, 'node_hours_to_best'):16.3f}"
              f"{mean(rows, 'blocks'):8.1f}{mean(rows, 'withdrawn'):11.1f}{mean(rows, 'refused'):9g}"
              f"{mean(rows, 'late'):6g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--same-order", action="store_true", help="fixed shapes end as the elastic queue does")
    parser.add_argument("--verbose", action="store_true", help="what the elastic queue did, of the first seed")
    parser.add_argument("--vary", nargs="*", metavar="CASE", help=f"all of, or some of: {', '.join(CASES)}")
    chosen = parser.parse_args()
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    if chosen.vary is not None:
        vary(chosen.vary or list(CASES), seeds)
        return
    case = Case(chosen.tasks)
    if chosen.verbose:
        print("\n".join(simulate(elastic(), chosen.first, case).story))
        return
    rows = compare(case, seeds, chosen.same_order)
    if chosen.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    print(f"{'seed':>4}  {'who':26}{'hours':>8}{'node-h':>9}{'blocks':>8}{'withdrawn':>11}{'time to best':>14}"
          f"{'node-h to best':>16}")
    for row in rows:
        print("{seed:4}  {who:26}{hours:8.2f}{node_hours:9.0f}{blocks:8}{withdrawn:11}{to_best:14.3f}"
              "{node_hours_to_best:16.3f}".format(**row) + ("  best" if row["best"] else ""))
    print(f"elastic, mean of {chosen.seeds} seeds: {mean(rows, 'to_best'):.3f} of the best fixed shape's makespan, "
          f"{mean(rows, 'node_hours_to_best'):.3f} of its node-hours; {mean(rows, 'refused'):g} blocks refused, "
          f"{mean(rows, 'late'):g} asked for when nothing was left")


if __name__ == "__main__":
    main()
