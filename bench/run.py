"""One table of what balsamfut costs, beside ProcessPoolExecutor(2) and a bare spawn loop in the same run.

    python bench/run.py [--only NAME ...] [--runs N] [--json]

Each figure is the median of several runs; the contestants take turns, so that what else the machine does meets all of
them alike.  What is measured is in cases.py.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from balsamfut import __version__ as VERSION  # noqa: E402  # the one beside this directory

PACKAGES = ("cloudpickle", "msgspec", "pyzmq", "sqlalchemy")
CONTESTANTS = {"shell": ("spawn", "balsamfut")}
USUAL = ("processpool", "balsamfut")
CALLED = {"processpool": "ProcessPoolExecutor(2)", "spawn": "posix_spawn loop"}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    case: str
    figure: str
    unit: str
    peer: tuple[str, str] = ("", "")   # contestant, and which of its figures; "": nothing to compare with
    more_is_better: bool = True
    ratio_target: float = 0.0          # at least so many times the peer's; 0: none
    limit: float = 0.0                 # at most so much; 0: none

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times as good as the peer's."""
        return ours / theirs if self.more_is_better else theirs / ours

    def verdict(self, ours: float, ratio: float | None) -> str:
        if self.ratio_target and ratio is not None:
            return f">= {self.ratio_target:g}x: {'yes' if ratio >= self.ratio_target else 'NO'}"
        if self.limit:
            return f"< {self.limit:g}: {'yes' if ours < self.limit else 'NO'}"
        return ""


def _versus(what: str, case: str, figure: str, unit: str, *, more: bool = True, target: float = 0.0,
            limit: float = 0.0) -> Row:
    return Row(what, case, figure, unit, ("processpool", figure), more, target, limit)


ROWS = (
    _versus("no-op throughput, 10,000 calls", "noop", "noop", "tasks/s", target=3.0),
    _versus("sequential latency, p50", "latency", "latency p50", "ms", more=False, limit=1.0),
    _versus("sequential latency, p99", "latency", "latency p99", "ms", more=False),
    _versus("chain of 500 [1]", "chain", "chain", "ms/link", more=False, limit=1.2),
    _versus("tree of 2,048 leaves [1]", "tree", "tree", "tasks/s"),
    _versus("1 MB in, 1 MB out", "megabyte", "megabyte", "tasks/s"),
    Row("2,000 x true by bash, against two at a time", "shell", "bash", "tasks/s", ("spawn", "two")),
    Row("2,000 x true as argv, against one at a time", "shell", "argv", "tasks/s", ("spawn", "one")),
    Row("2,000 x true as argv, against two at a time", "shell", "argv", "tasks/s", ("spawn", "two"), ratio_target=0.5),
    _versus("cold start to first result", "cold", "first result", "ms", more=False, limit=1000.0),
    _versus("the whole of that script", "cold", "whole script", "ms", more=False),
    Row("interchange's memory, 100,000 queued", "memory", "interchange", "B/task", limit=1500.0),
    _versus("script's memory, 100,000 queued", "memory", "script", "B/task", more=False),
)
NOTE = "[1] futures as arguments; for ProcessPoolExecutor, which takes none, the script waits for the values"
Samples = dict[tuple[str, str, str], list[float]]   # (case, contestant, figure)


def environment() -> dict[str, str]:
    """Our own, in which the balsamfut beside this directory is the one that is imported."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def measure(case: str, contestant: str, *calls: int) -> dict[str, float]:
    """The figures of one run, in a process of its own.  Raises SystemExit where it fails or a result is wrong."""
    done = subprocess.run([sys.executable, str(HERE / "cases.py"), case, contestant, *map(str, calls)],
                          env=environment(), text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: {case} of {contestant} failed (code {done.returncode}):\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def gather(cases: list[str], runs: int) -> Samples:
    samples: Samples = defaultdict(list)
    for run in range(runs):
        for case in cases:
            contestants = CONTESTANTS.get(case, USUAL)
            for contestant in contestants[::-1] if run % 2 else contestants:
                progress(f"run {run + 1} of {runs}: {case}, {contestant}")
                for figure, value in measure(case, contestant).items():
                    samples[case, contestant, figure].append(value)
    progress("")
    return samples


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:60}\r", end="", file=sys.stderr, flush=True)


def surroundings() -> dict[str, str]:
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.release()}, {len(os.sched_getaffinity(0))} cores",
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "balsamfut": VERSION,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def table(samples: Samples) -> list[dict[str, object]]:
    """A record for each row that was measured."""
    records: list[dict[str, object]] = []
    for row in ROWS:
        values = samples.get((row.case, "balsamfut", row.figure))
        if values is None:
            continue
        ours = statistics.median(values)
        other = samples.get((row.case, *row.peer))
        theirs = statistics.median(other) if other else None
        ratio = row.ratio(ours, theirs) if theirs is not None else None
        records.append({
            "what": row.what, "case": row.case, "unit": row.unit, "balsamfut": ours, "runs": values,
            "peer": CALLED.get(row.peer[0]), "theirs": theirs, "peer_runs": other, "ratio": ratio,
            "target": row.verdict(ours, ratio)})
    return records


def show(records: list[dict[str, object]]) -> None:
    head = ("", "balsamfut", "", "beside it", "", "times as good", "target")
    lines = [head] + [
        (str(r["what"]), number(r["balsamfut"]), str(r["unit"]), number(r["theirs"]), str(r["peer"] or ""),
         "" if r["ratio"] is None else f"{r['ratio']:.2f}", str(r["target"])) for r in records]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (text.rjust(width) if column in (1, 3, 5) else text.ljust(width)
                 for column, (text, width) in enumerate(zip(line, widths, strict=True)))
        print("  ".join(cells).rstrip())
    print(NOTE)


def number(value: object) -> str:
    if not isinstance(value, float):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    cases = list(dict.fromkeys(row.case for row in ROWS))
    parser = argparse.ArgumentParser(description="What balsamfut costs, beside ProcessPoolExecutor(2).")
    parser.add_argument("--only", nargs="+", choices=cases, default=cases, metavar="NAME", help=", ".join(cases))
    parser.add_argument("--runs", type=int, default=3, help="of each case; the medians are shown (default: 3)")
    parser.add_argument("--json", action="store_true", help="everything that was measured, as JSON")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error(f"--runs takes a number from 1 on, not {args.runs}")
    about = surroundings()
    samples = gather(args.only, args.runs)
    about["load average after"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
    records = table(samples)
    if args.json:
        print(json.dumps({"about": about, "runs": args.runs, "rows": records}, indent=2))
        return
    print("  ".join(f"{name}: {value}" for name, value in about.items()))
    print(f"medians of {args.runs}; every result was checked, and every task of balsamfut's is in its database\n")
    show(records)


if __name__ == "__main__":
    main()
