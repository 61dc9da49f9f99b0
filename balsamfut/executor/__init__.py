"""In the user's process: the Executor, its session with the interchange, and how that is found or started."""

from __future__ import annotations

from balsamfut.executor.executor import Executor
from balsamfut.executor.stack import innermost

__all__ = ["Executor", "innermost"]
