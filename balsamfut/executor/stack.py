"""Which Executor an app that is called now belongs to: the innermost open one of the process, or the task's own.

Executors are held weakly: one that nobody holds any more is no longer open.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

from balsamfut import context
from balsamfut.errors import NoExecutor

if TYPE_CHECKING:
    from balsamfut.executor.executor import Executor

_open: list[weakref.ref[Executor]] = []
_own: dict[context.TaskContext, Executor] = {}
_lock = threading.Lock()


def push(executor: Executor) -> None:
    """It is the innermost one from now on."""
    with _lock:
        _open.append(weakref.ref(executor, _open.remove))


def pop(executor: Executor) -> None:
    """It is not open any more (or its newest `with` is over).  What is not there is no error."""
    with _lock:
        for index in range(len(_open) - 1, -1, -1):
            if _open[index]() is executor:
                del _open[index]
                return


def left(executor: Executor) -> None:
    """The task whose session it was is over."""
    pop(executor)
    with _lock:
        if executor.task is not None and _own.get(executor.task) is executor:
            del _own[executor.task]


def innermost() -> Executor:
    """The Executor that calls go to: the innermost open one; inside a task, one that the task opened, else its own.

    Raises NoExecutor.
    """
    task = context.current()
    for ref in reversed(_open):
        executor = ref()
        if executor is not None and executor.takes_calls and executor.task is task:
            return executor
    if task is None:
        raise NoExecutor("an app was called while no Executor is open; open one: `with Executor() as ex:`")
    with _lock:
        own = _own.get(task)
        if own is None:
            from balsamfut.executor.executor import Executor

            own = _own[task] = Executor.of_task(task)
    return own


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)
