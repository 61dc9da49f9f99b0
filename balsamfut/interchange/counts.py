"""How many tasks are ready and queued, and how many wait for others, by class: counted as they come and go.

So that nobody who wants to know what there is to do has to look at a million tasks.  Pure.
"""

from __future__ import annotations

from balsamfut.interchange.records import Task
from balsamfut.model import TaskState


class Counts:
    """ready, later: tasks by class, classes with none left out; size: all that are ready and queued."""

    __slots__ = ("ready", "later", "size")

    def __init__(self) -> None:
        self.ready: dict[int, int] = {}
        self.later: dict[int, int] = {}
        self.size = 0

    def queued(self, task: Task) -> None:
        """A task that is READY is in a queue now."""
        if not task.queued:
            task.queued = True
            self.size += 1
            self.ready[task.cls] = self.ready.get(task.cls, 0) + 1

    def waits(self, task: Task) -> None:
        """A task is WAITING now; those that returned futures have run."""
        if task.joins is None:
            self.later[task.cls] = self.later.get(task.cls, 0) + 1

    def leaves(self, task: Task) -> None:
        """A task is about to get another state."""
        if task.queued:
            task.queued = False
            self.size -= 1
            _less(self.ready, task.cls)
        elif task.state is TaskState.WAITING and task.joins is None:
            _less(self.later, task.cls)


def _less(counts: dict[int, int], cls: int) -> None:
    left = counts[cls] - 1
    if left:
        counts[cls] = left
    else:
        del counts[cls]
