"""What runs in this process: the task whose code is being executed, and what a hook is told about a task.

The Python worker enters a TaskContext around each task; an Executor that is used inside a task reads it, from any
thread, with `current()`.  This module knows neither sockets nor workers: `block` and `unblock` are given to it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from balsamfut.model import Pool, Resources

BLOCK_END: Final = "BALSAMFUT_BLOCK_END"
"""In the environment of all that runs in a block: when it has to be over (Unix time, seconds)."""


def time_left() -> float:
    """Seconds until the task that asks has to be over because its block ends; it is told to stop `stop_grace` seconds
    before that.  math.inf where no end is known: outside of tasks, and where no batch system ends anything."""
    return float(os.environ.get(BLOCK_END, math.inf)) - time.time()


class TaskContext:
    """The task that this worker is running: who it is, and how its calls reach the interchange."""

    def __init__(self, task: int, attempt: int, *, address: str = "", site: str = "", workdir: str = "", name: str = "",
                 tags: tuple[tuple[str, str], ...] = (), block: Callable[[], None] | None = None,
                 unblock: Callable[[], None] | None = None, pool: Pool | None = None) -> None:
        self.task = task
        self.attempt = attempt
        self.address = address        # the clients' door of the interchange
        self.site = site              # absolute path of the site directory
        self.workdir = workdir        # "": the task has none of its own
        self.name = name
        self.tags = tags
        self.pool = pool              # of this worker: the calls of the task go to workers like it
        self.at_end: list[Callable[[], None]] = []   # called by `close`, in the task's main thread
        self._block = block
        self._unblock = unblock
        self._waiting = 0
        self._over = False
        self._lock = threading.Lock()

    def block(self) -> None:
        """The task's code is about to wait for another task: its slot is free for others until `unblock`.

        Any thread of the task may call it, several at a time; the slot is given back by the first.
        """
        with self._lock:
            self._waiting += 1
            if self._waiting == 1 and not self._over and self._block is not None:
                self._block()

    def unblock(self) -> None:
        """The wait is over: returns when the task has a slot again.  Once for each `block`."""
        with self._lock:
            self._waiting -= 1
            if self._waiting == 0 and not self._over and self._unblock is not None:
                self._unblock()

    def close(self) -> None:
        """The task is over, and its result not sent yet: what it opened ends (its calls are recorded then), and
        threads that it left behind no longer have a slot to give back."""
        while self.at_end:
            self.at_end.pop()()
        with self._lock:
            self._over = True


_current: TaskContext | None = None


def current() -> TaskContext | None:
    """The task that this process is running; None in a user's script."""
    return _current


def enter(context: TaskContext | None) -> None:
    """Called by the worker as a task begins, and with None as it ends."""
    global _current
    _current = context


@dataclass(frozen=True)
class Retry:
    """What `task.retry()` returns: on_error returns it to ask for another attempt."""

    changes: dict[str, Any]        # by the names of model.Resources

    def resources(self, before: Resources) -> Resources:
        values = {name: getattr(before, name) for name in Resources.__struct_fields__}
        return Resources(**(values | self.changes))


@dataclass
class TaskView:
    """The task that a hook is about."""

    id: int
    attempt: int
    name: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)   # the call's arguments by name, defaults included
    tags: Mapping[str, str] = field(default_factory=dict)
    workdir: Path = Path()
    returncode: int | None = None             # of a command that has ended; negative: -signal
    result: Any = None                        # postprocess: what the function returned; of a command its ShellResult
    exception: BaseException | None = None    # on_error, on_timeout: why the attempt ended
    stdout: Path | None = None
    stderr: Path | None = None
    failures: int = 0                         # earlier attempts that were charged

    @property
    def error(self) -> str:
        """The exception's text; empty where there is none."""
        return "" if self.exception is None else str(self.exception)

    def retry(self, **changes: Any) -> Retry:
        """What on_error returns to have the task tried again, with changed resources (`memory="8GB"`, `num_nodes=2`).

        Raises InvalidOption for a name that is not a resource and for a value that it does not take.
        """
        from balsamfut.errors import InvalidOption
        from balsamfut.options import RESOURCES, normalise

        given = dict(normalise(changes, "task.retry").given)
        for name in given:
            if name not in RESOURCES:
                raise InvalidOption(f"task.retry: {name} cannot be changed for another attempt; "
                                    "resources can (num_nodes, ranks_per_node, memory, gpus_per_rank ...)")
        return Retry(given)
