"""What the pilot's packing reaches and costs, simulated with a virtual clock: no process is started.

    python bench/packing.py [--nodes N] [--tasks N] [--seeds N] [--scales N ...] [--plot FILE] [--json]

First a campaign on a block of --nodes nodes of Aurora (12 tiles each), all of it ready at the beginning: by count 70 %
one-tile tasks, 25 % one-node, 5 % of 8 to 64 nodes; run times are log-normal, a declared walltime is 1.5 times the
true run time.  The pilot's own planner, queue and packer against EASY (the first request that does not fit has its
nodes reserved, anew at each event; what ends before may start), plain first-fit and strict order, on the same packer.

Then placements per second on blocks of each of --scales nodes, in a full block where tasks end and others take their
place: through the packer alone, and through the planner with 100,000 tasks queued.  --plot: their cost, as an SVG.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import os
import platform as host
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from simulated_block import (  # noqa: E402
    AURORA,
    CONTESTANTS,
    MEDIAN,
    ONE_TILE,
    TILES,
    Ours,
    Outcome,
    Task,
    campaign,
    simulate,
    whole,
)

from balsamfut import __version__ as VERSION  # noqa: E402  # the one beside this directory
from balsamfut.model import Resources  # noqa: E402
from balsamfut.placement import Packer, Placement  # noqa: E402


def compare(nodes: int, count: int, seeds: int) -> list[dict[str, Any]]:
    """A row for each contestant: means over the seeds, and the worst of them."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in CONTESTANTS}
    for seed in range(1, seeds + 1):
        for name, make in CONTESTANTS.items():
            progress(f"seed {seed} of {seeds}: {name}")
            outcomes[name].append(simulate(make(nodes), campaign(count, seed, nodes), nodes))
    progress("")
    rows: list[dict[str, Any]] = []
    for name, mine in outcomes.items():
        pairs = list(zip(mine, outcomes["strict order"], strict=True))
        worst = [ours / theirs for one, strict in pairs for ours, theirs in zip(one.waits, strict.waits, strict=True)
                 if theirs > MEDIAN]
        rows.append({
            "who": name,
            "used": statistics.fmean(one.used for one in mine),
            "used_least": min(one.used for one in mine),
            "wait_mean": statistics.fmean(statistics.fmean(one.waits) for one in mine),
            "wait_max": max(max(one.waits) for one in mine),
            "mean_to_strict": max(sum(one.waits) / sum(strict.waits) for one, strict in pairs),
            "max_to_strict": max(max(one.waits) / max(strict.waits) for one, strict in pairs),
            "over_twice": sum(ratio > 2.0 for ratio in worst) / max(1, len(worst)),
            "worst_to_strict": max(worst, default=0.0),
            "makespan": statistics.fmean(one.makespan for one in mine),
            "cost": statistics.fmean(one.cost for one in mine)})
    return rows


# ---- what a placement costs


def packed(nodes: int, resources: Resources, rounds: int) -> float:
    """Microseconds of a placement and its end, in a full block, through the packer alone."""
    packer = Packer(AURORA, [""] * nodes)
    there: list[Placement] = []
    while (placement := packer.place(resources)) is not None:
        there.append(placement)
    dice = random.Random(1)
    spent = 0.0
    for _ in range(rounds):
        at = dice.randrange(len(there))
        began = time.perf_counter()
        packer.free(there[at])
        placement = packer.place(resources)
        spent += time.perf_counter() - began
        assert placement is not None
        there[at] = placement
    return spent / rounds * 1e6


def planned(nodes: int, tasks: list[Task], rounds: int, turn: int) -> float:
    """Microseconds of a start and its end, through the planner, `turn` ends at a time; what runs longest stays."""
    ours = Ours(nodes)
    ours.submit(tasks)
    dice, now, spent, count = random.Random(1), 0.0, 0.0, 0
    there = list(ours.started(now))
    left = len(tasks) - len(there)
    gc.collect()                 # as the agent does
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    while count < rounds and left > 0:
        now += 0.05
        ending = [there.pop(dice.randrange(len(there))) for _ in range(min(turn, len(there)))]
        began = time.perf_counter()
        for number in ending:
            ours.ended(number, now)
        fresh = list(ours.started(now))
        spent += time.perf_counter() - began
        there += fresh
        left -= len(fresh)
        count += len(fresh)
    return spent / max(1, count) * 1e6


def alike(resources: Resources, count: int) -> list[Task]:
    return [Task(number, resources, MEDIAN) for number in range(count)]


def price(scales: list[int], rounds: int) -> dict[str, dict[int, float]]:
    """Microseconds a placement: by the number of nodes, by what is queued, by the width of the request."""
    largest = max(scales)
    figures: dict[str, dict[int, float]] = {}

    def measure(what: str, at: int, cost: Callable[[], float]) -> None:
        progress(f"{what}: {at}")
        gc.collect()
        figures.setdefault(what, {})[at] = cost()

    for nodes in scales:
        measure("one tile, packer, by nodes", nodes, lambda nodes=nodes: packed(nodes, ONE_TILE, rounds))
        measure("one node, packer, by nodes", nodes, lambda nodes=nodes: packed(nodes, whole(1), rounds))
        measure("one tile, planner, by nodes", nodes,
                lambda nodes=nodes: planned(nodes, alike(ONE_TILE, TILES * nodes + rounds), rounds, min(nodes, 64)))
    for queued in (100, 10_000, 100_000):
        measure("one node, planner, by queue", queued,
                lambda queued=queued: planned(64, alike(whole(1), queued + 64), rounds, 8))
    for width in (1, 4, 16, 64, 256, 1024, 4096):
        if width <= largest:
            measure("wide, packer, by width", width,
                    lambda width=width: packed(largest, whole(width), max(20, rounds // width)))
    measure("mixed campaign, planner, by nodes", largest,
            lambda: planned(largest, campaign(3 * rounds + largest, 1, largest), 2 * rounds, 64))
    progress("")
    return figures


def svg(figures: dict[str, dict[int, float]]) -> str:
    """Cost against size, both by powers of ten."""
    width, height, edge = 760, 460, 60
    colours = ("#1b6ca8", "#c0392b", "#27864d", "#8e44ad", "#b9770e", "#333333")
    top = max(value for line in figures.values() for value in line.values())
    decades_x, decades_y = 5.0, max(3.0, math.ceil(math.log10(top)))

    def at(x: float, y: float) -> tuple[float, float]:
        return (edge + math.log10(max(x, 1.0)) / decades_x * (width - 2 * edge),
                height - edge - math.log10(max(y, 1.0)) / decades_y * (height - 2 * edge))

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
             f'<g font-size="12"><rect width="{width}" height="{height}" fill="white"/>']
    for power in range(int(decades_x) + 1):
        x, y = at(10.0 ** power, 1)
        parts.append(f'<path d="M{x:.0f} {y:.0f}V{edge}" stroke="#ddd"/><text x="{x:.0f}" y="{y + 18:.0f}" '
                     f'text-anchor="middle">{10 ** power:,}</text>')
    for power in range(int(decades_y) + 1):
        x, y = at(1, 10.0 ** power)
        parts.append(f'<path d="M{x:.0f} {y:.0f}H{width - edge}" stroke="#ddd"/><text x="{x - 8:.0f}" '
                     f'y="{y + 4:.0f}" text-anchor="end">{10 ** power:,}</text>')
    for number, (name, line) in enumerate(figures.items()):
        colour = colours[number % len(colours)]
        points = [at(x, y) for x, y in sorted(line.items())]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(f'<text x="{edge + 12}" y="{edge - 8 + 16 * number}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 14}" text-anchor="middle">nodes, queued tasks, or nodes of the '
                 'request</text><text x="16" y="20">microseconds a placement and its end</text></g></svg>')
    return "\n".join(parts) + "\n"


# ---- what is shown


def surroundings() -> dict[str, str]:
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{host.system()} {host.release()}, {len(os.sched_getaffinity(0))} cores",
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": host.python_version(),
        "balsamfut": VERSION,
    }


def show(lines: list[tuple[str, ...]]) -> None:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(text.rjust(width) if column else text.ljust(width)
                        for column, (text, width) in enumerate(zip(line, widths, strict=True))).rstrip())


def show_campaign(rows: list[dict[str, Any]]) -> None:
    head = ("", "tiles used", "least", "mean wait of wide", "longest", "mean to strict's", "longest to strict's",
            "over twice", "makespan", "simulated in")
    show([head] + [
        (r["who"], f"{r['used']:.1%}", f"{r['used_least']:.1%}", f"{r['wait_mean']:,.0f} s", f"{r['wait_max']:,.0f} s",
         f"{r['mean_to_strict']:.2f}", f"{r['max_to_strict']:.2f}", f"{r['over_twice']:.1%}",
         f"{r['makespan']:,.0f} s", f"{r['cost']:.1f} s") for r in rows])


def show_prices(figures: dict[str, dict[int, float]]) -> None:
    for name, line in figures.items():
        print(f"{name:36}" + "  ".join(f"{at:,}: {cost:.1f} us ({1e6 / cost:,.0f}/s)" for at, cost in line.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description="What the pilot's packing reaches and costs, simulated.")
    parser.add_argument("--nodes", type=int, default=256, help="of the block of the campaign (default: 256)")
    parser.add_argument("--tasks", type=int, default=10_000, help="of the campaign (default: 10,000)")
    parser.add_argument("--seeds", type=int, default=3, help="campaigns; means are shown (default: 3)")
    parser.add_argument("--scales", type=int, nargs="*", default=[1, 64, 1024, 10_624], metavar="N",
                        help="nodes of the blocks whose placements are timed (default: 1 64 1024 10624)")
    parser.add_argument("--rounds", type=int, default=5000, help="placements that are timed (default: 5,000)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write what placements cost as an SVG")
    parser.add_argument("--json", action="store_true", help="everything that was measured, as JSON")
    args = parser.parse_args()
    if min(args.nodes, args.seeds, args.rounds, *args.scales) < 1 or args.tasks < 0:
        parser.error("nodes, seeds, rounds and scales are numbers from 1 on, tasks from 0")
    about = surroundings()
    rows = compare(args.nodes, args.tasks, args.seeds) if args.tasks else []
    figures = price(args.scales, args.rounds) if args.scales else {}
    about["load average after"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
    if args.plot is not None:
        args.plot.write_text(svg(figures))
    if args.json:
        print(json.dumps({"about": about, "campaign": rows, "microseconds": figures}, indent=2))
        return
    print("  ".join(f"{name}: {value}" for name, value in about.items()))
    if rows:
        print(f"\n{args.tasks:,} tasks, {args.nodes} nodes, {args.seeds} campaigns; tiles used until the last start\n")
        show_campaign(rows)
    if figures:
        print("\na placement and its end, in a full block\n")
        show_prices(figures)


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
