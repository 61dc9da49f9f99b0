"""MPI functions in pool mode against a launch for each: calls per second, launches, and ranks killed under way.

    python bench/mpipool.py                            # 500 calls in pool mode, 20 with launches of their own
    python bench/mpipool.py --calls 5000 --kills 10    # a rank is killed at random every 500 calls

Every result is looked at; with kills, the calls of the rank that died are tried again (retries=20), and more launches
than one slice and the kills are an error.  Needs mpi4py and the launcher of its MPI in PATH.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from balsamfut import Executor, app

WIDTHS = (1, 2, 3, 4)


@app
def ring(number: int, comm: Any = None) -> tuple[int, int, int]:
    """Each rank adds its share, and the sum goes round."""
    total = comm.allreduce(number * (comm.rank + 1))
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    passed = comm.sendrecv(comm.rank, dest=right, source=left)
    return number, total, comm.allreduce(passed)


def expected(number: int, width: int) -> tuple[int, int, int]:
    return number, number * width * (width + 1) // 2, width * (width - 1) // 2


def slice_folders() -> list[Path]:
    return sorted(Path(".balsamfut/log").glob("pilot-*/slice-*"))


def ranks() -> list[int]:
    """Processes of this script's slices."""
    here = os.path.realpath(".")
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes()
                if b"poolrank" in words and b"mpiexec" not in words.split(b"\0")[0] \
                        and re.search(rb"python[0-9.]*$", words.split(b"\0")[0]) \
                        and os.path.realpath(f"/proc/{entry}/cwd") == here:
                    found.append(int(entry))
            except OSError:
                pass
    return found


def run(make: Callable[[int, int], Future[Any]], calls: int, kills: int, rng: random.Random) -> tuple[int, float]:
    """Make calls, a few hundred at a time; the number of kills, and seconds."""
    started = time.monotonic()
    every = calls // kills if kills else calls + 1
    numbers: Iterator[int] = iter(range(calls))
    open_calls: dict[Future[Any], tuple[int, int]] = {}
    done = killed = 0
    while done < calls:
        for number in numbers:
            width = rng.choice(WIDTHS)
            open_calls[make(number, width)] = number, width
            if len(open_calls) >= 256:
                break
        finished, _ = wait(open_calls, timeout=120, return_when=FIRST_COMPLETED)
        if not finished:
            sys.exit(f"nothing has ended for two minutes; {done} of {calls} calls are done")
        for future in finished:
            number, width = open_calls.pop(future)
            if future.result() != expected(number, width):
                sys.exit(f"call {number} with {width} ranks returned {future.result()}")
        done += len(finished)
        if killed < kills and done >= (killed + 1) * every - every // 2:
            victims = ranks()
            if victims:
                os.kill(rng.choice(victims), signal.SIGKILL)
                killed += 1
    return killed, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--alone", type=int, default=20, help="calls with a launch of their own; 0: none")
    parser.add_argument("--ranks", type=int, default=4, help="cores of the pretended workstation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with Executor(max_workers=options.ranks) as ex:
            def pooled(number: int, width: int) -> Future[Any]:
                return ex.submit(ring.options(ranks_per_node=width, mpi="pool", retries=20), number)

            def alone(number: int, width: int) -> Future[Any]:
                return ex.submit(ring.options(ranks_per_node=width, mpi=True), number)

            killed, seconds = run(pooled, options.calls, options.kills, rng)
            launches = len(slice_folders())
            print(f"pool:  {options.calls} calls of 1-4 ranks in {seconds:.1f} s, {options.calls / seconds:.0f}/s; "
                  f"{launches} launches, {killed} ranks killed, all results right")
            if options.alone:
                _, apart = run(alone, options.alone, 0, rng)
                print(f"alone: {options.alone} calls in {apart:.1f} s, {options.alone / apart:.1f} a second, "
                      f"{options.alone} launches")
            if launches > 1 + killed:
                sys.exit(f"{launches} launches are more than one slice and {killed} kills")
        os.chdir("/")


if __name__ == "__main__":
    main()
