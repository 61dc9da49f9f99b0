"""What is measured: each case runs one contestant in a process of its own, checks every result, and prints figures.

    python bench/cases.py noop balsamfut          {"noop": 21345.6, "cpu script": 6.1, "cpu interchange": 18.5, ...}
    python bench/cases.py noop processpool

A number after them is how many calls the case makes.  balsamfut is `Executor(max_workers=2)` with everything at its
default, in an empty directory: an interchange, a pilot and two workers, and each task recorded in SQLite, which is
looked at afterwards.  This module does not know how figures are gathered, compared or shown (run.py).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import operator
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

import balsamfut
from balsamfut import TaskState, app

WORKERS = 2
Pool = concurrent.futures.Executor
Figures = dict[str, float]
ROLES = {"cases.py": "script", "interchange.server": "interchange", "pilot.agent": "pilot", "pilot.worker": "workers",
         "guardian": "guardian"}
"""What a process is, by a part of its command line."""
cpu: Figures = {}
"""Microseconds on a CPU of one call, by ROLES: what the case took of each, without starting up."""


def noop(i: int) -> int:
    return i


def increment(i: int) -> int:
    return i + 1


def pause(seconds: float) -> None:
    time.sleep(seconds)


def backwards(data: bytes) -> bytes:
    return data[::-1]


def until_exists(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


@app.shell("true")
def by_bash() -> None: ...


@app.shell
def as_argv() -> list[str]:
    return ["true"]


# ---- surroundings


@contextlib.contextmanager
def workers(contestant: str, calls: int) -> Iterator[Pool]:
    """A pool of two workers, both awake.  calls: how many the case makes; all must be in the database afterwards."""
    if contestant == "processpool":
        with concurrent.futures.ProcessPoolExecutor(WORKERS) as pool:
            wake(pool)
            yield pool
        return
    with directory() as place:
        with balsamfut.Executor(max_workers=WORKERS) as executor:
            warm = wake(executor)
            interchange = interchange_pid(executor)
            before = spent(interchange)
            yield executor
            cpu.update({role: 1e6 * (seconds - before.get(role, 0.0)) / calls
                        for role, seconds in spent(interchange).items()})
        ended(interchange)
        recorded(place, warm + calls)


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """An empty working directory, removed afterwards."""
    before = Path.cwd()
    place = Path(tempfile.mkdtemp(prefix="balsamfut-bench-"))
    os.chdir(place)
    try:
        yield place
    finally:
        os.chdir(before)
        shutil.rmtree(place, ignore_errors=True)


def wake(pool: Pool) -> int:
    """Have each worker started, and the path to it warm: returns how many calls that took."""
    calls = [pool.submit(pause, 0.1) for _ in range(2 * WORKERS)] + [pool.submit(noop, i) for i in range(200)]
    for call in calls:
        call.result()
    return len(calls)


def spent(interchange: int) -> dict[str, float]:
    """Seconds on a CPU until now, by what a process is; `commands`: of all processes that are over."""
    top = psutil.Process(interchange)
    seconds = Counter[str]()
    for process in (psutil.Process(), top, *top.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            line, times = " ".join(process.cmdline()), process.cpu_times()
            role = next((role for mark, role in ROLES.items() if mark in line), "commands")
            seconds[role] += times.user + times.system
            if role == "pilot":
                seconds["commands"] += times.children_user + times.children_system
    return dict(seconds)


def interchange_pid(executor: balsamfut.Executor) -> int:
    return int(json.loads((executor.site / "interchange.json").read_text())["pid"])


def ended(pid: int) -> None:
    """Wait until the interchange has gone: what it still does must not disturb what is measured next."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(30)


def recorded(place: Path, calls: int) -> None:
    """Check that the database has all calls, done."""
    with contextlib.closing(sqlite3.connect(place / ".balsamfut" / "balsamfut.db")) as database:
        done, = database.execute("SELECT count(*) FROM tasks WHERE state = ?", (int(TaskState.DONE),)).fetchone()
    check(done, calls)


def check(got: object, expected: object) -> None:
    if got != expected:
        raise AssertionError(f"wrong result: {str(got)[:200]}, expected {str(expected)[:200]}")


# ---- the cases


def case_noop(contestant: str, n: int = 10_000) -> Figures:
    """Tasks a second: submit all, then take all results."""
    with workers(contestant, n) as pool:
        start = time.perf_counter()
        calls = [pool.submit(noop, i) for i in range(n)]
        results = [call.result() for call in calls]
        took = time.perf_counter() - start
        check(results, list(range(n)))
    return {"noop": n / took}


def case_latency(contestant: str, n: int = 1_000) -> Figures:
    """Milliseconds from submit to result, one call after the other."""
    took = []
    with workers(contestant, n) as pool:
        for i in range(n):
            start = time.perf_counter()
            result = pool.submit(noop, i).result()
            took.append(time.perf_counter() - start)
            check(result, i)
    return {"latency p50": 1e3 * statistics.median(took), "latency p99": 1e3 * statistics.quantiles(took, n=100)[98]}


def case_chain(contestant: str, n: int = 500) -> Figures:
    """Milliseconds a link.  Where a pool takes no futures as arguments the script waits for each value."""
    with workers(contestant, n) as pool:
        start = time.perf_counter()
        value: Any = 0
        for _ in range(n):
            call = pool.submit(increment, value)
            value = call if contestant == "balsamfut" else call.result()
        result = call.result()
        took = time.perf_counter() - start
        check(result, n)
    return {"chain": 1e3 * took / n}


def case_tree(contestant: str, leaves: int = 2_048) -> Figures:
    """Tasks a second of a sum by pairs.  Where a pool takes no futures as arguments the script waits for each level."""
    tasks = 2 * leaves - 1
    with workers(contestant, tasks) as pool:
        start = time.perf_counter()
        level: list[Any] = [pool.submit(noop, i) for i in range(leaves)]
        while len(level) > 1:
            values = level if contestant == "balsamfut" else [call.result() for call in level]
            level = [pool.submit(operator.add, *values[i:i + 2]) for i in range(0, len(values), 2)]
        result = level[0].result()
        took = time.perf_counter() - start
        check(result, sum(range(leaves)))
    return {"tree": tasks / took}


def case_megabyte(contestant: str, n: int = 100) -> Figures:
    """Tasks a second that take 1 MB and return another one, all different."""
    sent = [os.urandom(1_000_000) for _ in range(n)]
    with workers(contestant, n) as pool:
        start = time.perf_counter()
        calls = [pool.submit(backwards, data) for data in sent]
        results = [call.result() for call in calls]
        took = time.perf_counter() - start
        check(results == [data[::-1] for data in sent], True)
    return {"megabyte": n / took}


def case_shell(contestant: str, n: int = 2_000) -> Figures:
    """Commands a second: `true`, by bash and as argv; of the spawn loop: /bin/true, one and two at a time."""
    if contestant == "spawn":
        return {"one": n / spawn_loop(n, 1), "two": n / spawn_loop(n, 2)}
    figures = {}
    commands: dict[str, Callable[[], Any]] = {"bash": by_bash, "argv": as_argv}
    with workers(contestant, 2 * n + 4) as pool:
        for name, command in commands.items():
            for call in [pool.submit(command) for _ in range(2)]:
                call.result()
            start = time.perf_counter()
            calls = [pool.submit(command) for _ in range(n)]
            results = [call.result().returncode for call in calls]
            figures[name] = n / (time.perf_counter() - start)
            check(results.count(0), n)
    return figures


def spawn_loop(n: int, at_once: int) -> float:
    """Seconds that n /bin/true take, by nothing but posix_spawn and wait."""
    start = time.perf_counter()
    running = 0
    for _ in range(n):
        if running == at_once:
            check(os.wait()[1], 0)
            running -= 1
        os.posix_spawn("/bin/true", ["true"], os.environ)
        running += 1
    for _ in range(running):
        check(os.wait()[1], 0)
    return time.perf_counter() - start


SCRIPTS = {
    "balsamfut": "from balsamfut import Executor\n"
                 "with Executor(max_workers=2) as executor:\n"
                 "    print(executor.submit(pow, 2, 8).result(), flush=True)\n",
    "processpool": "from concurrent.futures import ProcessPoolExecutor\n"
                   "if __name__ == '__main__':\n"
                   "    with ProcessPoolExecutor(2) as executor:\n"
                   "        print(executor.submit(pow, 2, 8).result(), flush=True)\n",
}


def case_cold(contestant: str, _: int = 1) -> Figures:
    """Milliseconds from the start of `python script.py` to its first result, and to its end."""
    with directory() as place:
        (place / "script.py").write_text(SCRIPTS[contestant])
        start = time.perf_counter()
        with subprocess.Popen([sys.executable, "script.py"], stdout=subprocess.PIPE) as script:
            assert script.stdout is not None
            check(script.stdout.readline(), b"256\n")
            first = time.perf_counter()
            check(script.wait(), 0)
        end = time.perf_counter()
        if contestant == "balsamfut":
            said = place / ".balsamfut" / "interchange.json"
            with contextlib.suppress(FileNotFoundError):
                ended(json.loads(said.read_text())["pid"])
            recorded(place, 1)
    return {"first result": 1e3 * (first - start), "whole script": 1e3 * (end - start)}


def case_memory(contestant: str, n: int = 100_000) -> Figures:
    """Bytes of resident memory that a queued call costs: in the interchange, and in the script."""
    figures = {}
    with workers(contestant, n + 2 * WORKERS) as pool:
        own = psutil.Process()
        gate = Path(tempfile.mkdtemp(prefix="balsamfut-bench-")) / "open"
        try:
            blocked = [pool.submit(until_exists, str(gate)) for _ in range(2 * WORKERS)]
            peer = psutil.Process(interchange_pid(pool)) if isinstance(pool, balsamfut.Executor) else None
            before = own.memory_info().rss, peer.memory_info().rss if peer else 0
            calls = [pool.submit(noop, i) for i in range(n)]
            if peer is not None:
                check(bool(calls[-1].task_id), True)   # type: ignore[attr-defined]  # waits until it is recorded
                figures["interchange"] = (peer.memory_info().rss - before[1]) / n
            figures["script"] = (own.memory_info().rss - before[0]) / n
            gate.touch()
            check([call.result() for call in calls], list(range(n)))
            check([call.result() for call in blocked], [None] * len(blocked))
        finally:
            gate.touch()
            shutil.rmtree(gate.parent, ignore_errors=True)
    return figures


CASES: dict[str, Callable[..., Figures]] = {
    name.removeprefix("case_"): case for name, case in list(globals().items()) if name.startswith("case_")}


def main() -> None:
    case, contestant, *calls = sys.argv[1:]
    signal.alarm(600)   # a case that hangs shall not hang the whole run
    figures = CASES[case](contestant, *map(int, calls))
    print(json.dumps(figures | {f"cpu {role}": value for role, value in cpu.items()}))


if __name__ == "__main__":
    main()
