"""Who waits for whom.  Pure: tasks in, tasks out; it changes only the links and counts between tasks.

A task that is not over keeps a list of its dependents; a dependent keeps its dependencies (whose values it will need)
and counts those that are missing.  Both ends let go when the upstream task is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from balsamfut.interchange.records import Task
from balsamfut.model import CLOSED, TaskState


def link(task: Task, upstream: Sequence[Task]) -> Task | None:
    """Make a new task wait for what it needs.  Returns an upstream task that is over without success, if any."""
    task.deps = tuple(upstream)
    return wait_for(task, upstream)


def wait_for(task: Task, upstream: Iterable[Task]) -> Task | None:
    """Count what is missing of `upstream`, and be told of each; returns one that is over without success, if any."""
    broken: Task | None = None
    missing = 0
    for dep in dict.fromkeys(upstream):
        if dep.state is TaskState.DONE:
            continue
        if dep.state in CLOSED:
            broken = broken or dep
            continue
        missing += 1
        if dep.dependents is None:
            dep.dependents = [task]
        elif not (task.stored and task in dep.dependents):   # a task that is revived may still be in the list
            dep.dependents.append(task)
    task.missing = missing
    return broken


def released(task: Task) -> list[Task]:
    """The dependents of a task that is over; each counts it no longer.  The links are gone afterwards."""
    dependents = task.dependents
    if not dependents:
        return []
    task.dependents = None
    for dependent in dependents:
        dependent.missing -= 1
    return dependents


def root_of(task: Task) -> int:
    """The id of the task where a failure that reached `task` began."""
    return task.root or task.id
