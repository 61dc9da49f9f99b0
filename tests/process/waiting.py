"""Waiting for conditions, for tests that look at what other processes do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def unhurried(seconds: float) -> float:
    """What takes so long on an idle machine: longer, up to four times, where more processes want cores than there are.

    For the walltime of what has to be started before it ends, and for how long is waited for something at most.
    """
    load, _, _, running, *_ = Path("/proc/loadavg").read_text().replace("/", " ").split()
    crowd = max(float(load), float(running)) / (os.cpu_count() or 1)
    return seconds * min(max(1.0, crowd), 4.0)


def over(began: float, seconds: float) -> bool:
    """Whether it is too late for what began then, by time.monotonic(), and may take so long on an idle machine."""
    waited = time.monotonic() - began
    return waited > seconds and waited > unhurried(seconds)


def until(condition: Callable[[], object], what: str = "", seconds: float = 20.0) -> None:
    """Return when the condition is true; fail, naming what was waited for, when it is not for so long."""
    began = time.monotonic()
    while not condition():
        if over(began, seconds):
            raise AssertionError(f"not so after {time.monotonic() - began:g} s: {what or condition}")
        time.sleep(0.005)


def open_gate(gate: Path) -> None:
    """Let the tasks go on that wait in pass_gate."""
    gate.touch()


def pass_gate(gate: Path, seconds: float = 30.0) -> None:
    """In a task: wait until the test opens the gate.  Says that it waits by a file beside it."""
    gate.with_name(f"{gate.name}.waiting").touch()
    began = time.monotonic()
    while not gate.exists():
        if over(began, seconds):
            raise TimeoutError(f"nobody opened {gate}")
        time.sleep(0.005)


def reached(gate: Path) -> bool:
    """A task waits at the gate, or has."""
    return gate.with_name(f"{gate.name}.waiting").exists()


def gone(pid: int) -> bool:
    """The process is over; a zombie is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def append(path: Path, text: str) -> None:
    """Add a line in one write, so that several processes may do it: the side effect that tests count."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
