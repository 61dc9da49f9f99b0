"""Ensembles of Python functions, shell commands and MPI programs: calling an app returns a future.

    from balsamfut import Executor, app

The public names are here and nothing else.  They are imported when they are first used, so that `import balsamfut`
costs next to nothing.  Every exception is in balsamfut.errors; their base, BalsamfutError, is here as well.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balsamfut.apps import app
    from balsamfut.context import time_left
    from balsamfut.errors import BalsamfutError
    from balsamfut.executor import Executor
    from balsamfut.executor.site import Site
    from balsamfut.futures import TaskFuture
    from balsamfut.model import ShellResult, TaskState

__version__ = "0.1.0"
__all__ = ["BalsamfutError", "Executor", "ShellResult", "Site", "TaskFuture", "TaskState", "__version__", "app",
           "time_left"]

_HOME = {
    "app": "apps",
    "time_left": "context",
    "BalsamfutError": "errors",
    "Executor": "executor",
    "Site": "executor.site",
    "TaskFuture": "futures",
    "ShellResult": "model",
    "TaskState": "model",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'balsamfut' has no attribute {name!r}; its names are {', '.join(sorted(_HOME))}")
    value = getattr(importlib.import_module(f"balsamfut.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
