"""Why tasks wait that are READY, as the interchange that runs here says, for the commands that show tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from balsamfut.errors import BalsamfutError
from balsamfut.infos import TaskInfo
from balsamfut.queuemessages import Waiting

MOST: Final = 20_000
"""So many tasks are asked for one by one, the newest: the interchange has other things to do."""


def of_site(site: Path, ready: int, tasks: Sequence[int] = ()) -> list[Waiting]:
    """What the tasks that are READY wait for; where nobody can tell, that is what they all wait for.

    ready: how many there are.  tasks: the answer names these.
    """
    from balsamfut.executor import asking

    if not ready:
        return []
    try:
        return asking.why_waiting(site, tasks)
    except BalsamfutError as error:
        return [Waiting("", str(error), ready, list(tasks))]


def explained(site: Path, tasks: Sequence[TaskInfo]) -> list[TaskInfo]:
    """The tasks, with a reason for those that are READY."""
    ready = [task.id for task in tasks if task.state == "READY"][-MOST:]
    why = {number: each.why for each in of_site(site, len(ready), ready) for number in each.tasks}
    return [msgspec.structs.replace(task, reason=why.get(task.id, task.reason)) if why else task for task in tasks]


def lines(waiting: Sequence[Waiting]) -> list[str]:
    """One for each reason."""
    return [f"{each.count} {f'of {each.app} ' if each.app else ''}ready: {each.why}"
            for each in sorted(waiting, key=lambda each: -each.count)]
