"""`balsamfut logs`: `balsamfut task logs`, for those who look at output all day."""

from __future__ import annotations

from balsamfut.cli.task_logs import command

__all__ = ["command"]
