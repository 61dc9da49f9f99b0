"""Waiting for conditions, for tests that look at what other processes do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def until(condition: Callable[[], object], what: str = "", seconds: float = 20.0) -> None:
    """Return when the condition is true; fail, naming what was waited for, when it is not for so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {seconds:g} s: {what or condition}")
        time.sleep(0.005)


def open_gate(gate: Path) -> None:
    """Let the tasks go on that wait in pass_gate."""
    gate.touch()


def pass_gate(gate: Path, seconds: float = 30.0) -> None:
    """In a task: wait until the test opens the gate.  Says that it waits by a file beside it."""
    gate.with_name(f"{gate.name}.waiting").touch()
    deadline = time.monotonic() + seconds
    while not gate.exists():
        if time.monotonic() > deadline:
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
