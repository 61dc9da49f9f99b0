"""Where the microseconds of a case go: the CPU time of each process, and the functions that py-spy sees it in.

    python bench/hotspots.py noop [--calls 50000] [--lines 12]

Needs py-spy on PATH (`pip install py-spy`).  What each process takes is the kernel's account of the calls alone; the
samples have starting up in them too, and system calls that wait a little, so they tell shares rather than times, and a
case is best given more calls than it has in the table.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from run import HERE, ROWS, environment, measure

RATE = 250   # samples a second
ROLES = {"interchange.server": "interchange", "pilot.agent": "pilot", "pilot.worker": "worker", "guardian": "guardian",
         "cases.py": "script"}
Stacks = dict[str, Counter[tuple[str, ...]]]   # by role: samples by stack


def record(case: str, calls: int) -> str:
    """Run the case under py-spy; the stacks that it saw, one a line."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise SystemExit("hotspots: there is no py-spy on PATH; `pip install py-spy` brings it")
    with tempfile.TemporaryDirectory() as place:
        raw = Path(place) / "stacks"
        done = subprocess.run(
            [spy, "record", "--subprocesses", "--format", "raw", "--rate", str(RATE), "--nolineno",
             "--output", str(raw), "--", sys.executable, str(HERE / "cases.py"), case, "balsamfut", str(calls)],
            env=environment(), text=True, capture_output=True, check=False)
        if not raw.exists():
            raise SystemExit(f"hotspots: {case} could not be sampled:\n{done.stderr}")
        return raw.read_text()


def by_role(raw: str) -> Stacks:
    stacks: Stacks = defaultdict(Counter)
    for line in raw.splitlines():
        text, _, count = line.rpartition(" ")
        frames = text.split(";")
        command = max((i for i, frame in enumerate(frames) if frame.startswith("process ")), default=-1)
        label = ";".join(frames[max(command, 0):])   # a worker's command line has semicolons of its own
        role = next((role for mark, role in ROLES.items() if mark in label), "other")
        own = [re.sub(r"\(.*/(\w+/\w+\.py)\)", r"(\1)", frame) for frame in frames[command + 1:]]
        stacks[role][tuple(own)] += int(count)
    return stacks


def show(stacks: Stacks, calls: int, lines: int) -> None:
    unit = 1e6 / RATE / calls   # microseconds of one call that one sample stands for
    for role, counts in sorted(stacks.items(), key=lambda item: -sum(item[1].values())):
        print(f"\n{role}: {sum(counts.values()) * unit:.1f} us a call by its samples")
        own: Counter[str] = Counter()
        below: Counter[str] = Counter()
        for frames, count in counts.items():
            own[frames[-1] if frames else "?"] += count
            for frame in set(frames):
                below[frame] += count
        print(f"    {'itself':>8} {'with its callees':>17}")
        for frame, count in own.most_common(lines):
            print(f"    {count * unit:8.2f} {below[frame] * unit:17.2f}  {frame}")
        print("    and most with callees:")
        for frame, count in below.most_common(lines):
            print(f"    {own[frame] * unit:8.2f} {count * unit:17.2f}  {frame}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the microseconds of a case go.")
    parser.add_argument("case", choices=sorted({row.case for row in ROWS}))
    parser.add_argument("--calls", type=int, default=50_000, help="how many calls (default: 50,000)")
    parser.add_argument("--lines", type=int, default=12, help="functions to show for each process (default: 12)")
    args = parser.parse_args()
    figures = measure(args.case, "balsamfut", args.calls)
    cpu = {name.removeprefix("cpu "): value for name, value in figures.items() if name.startswith("cpu ")}
    print(f"{sum(cpu.values()):.1f} us of CPU a call: "
          + ", ".join(f"{role} {value:.1f}" for role, value in sorted(cpu.items(), key=lambda item: -item[1])))
    show(by_role(record(args.case, args.calls)), args.calls, args.lines)


if __name__ == "__main__":
    main()
