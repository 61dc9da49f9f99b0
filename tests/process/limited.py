"""Apps with a short walltime.  A worker that was ended imports them anew, within the limit: so this imports little."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from waiting import append, lines

from balsamfut import app

LIMIT: Final = 2.0
"""Seconds: enough for a busy machine to begin: importing the function's module counts, and it may not be compiled."""


@app(walltime=LIMIT)
def busy(path: Path) -> None:
    append(path, str(os.getpid()))
    while True:
        pass


@app(walltime=LIMIT)
def sleepy(path: Path) -> None:
    append(path, str(os.getpid()))
    time.sleep(600)


@app(walltime=LIMIT, stop_grace=0.2)
def deaf(path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    append(path, str(os.getpid()))
    time.sleep(600)


@app(walltime=LIMIT)
def has_a_child(path: Path) -> None:
    child = subprocess.Popen(["setsid", "sleep", "600"])
    append(path, str(child.pid))
    child.wait()


@app.shell("echo $$ > {{ path }}; sleep 600", walltime=LIMIT)
def sleeps_in_a_shell(path: Path) -> None: ...


@app(walltime=LIMIT)
def quick(fails: bool) -> int:
    if fails:
        raise ValueError("quick")
    return os.getpid()


@app(walltime=LIMIT, retries=1)
def slow_at_first(path: Path) -> str:
    append(path, "run")
    if len(lines(path)) == 1:
        time.sleep(600)
    return "in time"


@app(walltime=LIMIT)
def outruns(path: Path) -> str:
    append(path, "run")
    if len(lines(path)) == 1:
        time.sleep(600)
    return "in time"


@outruns.on_timeout
def once_more(task: Any) -> Any:
    return task.retry() if task.attempt == 1 else None
