"""Work that waits in one pilot while another has room for it: it is asked back.  Pure.

A pilot is sent some tasks ahead of what it can start.  When others come, or have done theirs, what is long and has not
been started there goes to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from balsamfut.interchange.book import Book, Pilot
from balsamfut.interchange.matcher import load
from balsamfut.model import TaskState

LONG: Final = 1.0
"""Seconds: tasks that are shorter are started where they are before they would be elsewhere."""


def spare(book: Book, pilots: Sequence[Pilot], capacity: Callable[[Pilot, int], int],
          queued: Collection[int]) -> Iterator[tuple[Pilot, list[int]]]:
    """From whom to ask back which tasks.  capacity: of an empty pilot for a class; queued: classes of which more is
    ready, which goes first."""
    able = [pilot for pilot in pilots if pilot.enrolled and not pilot.stopping]
    if len(able) < 2:
        return
    free = {pilot.id: 1.0 - load(pilot) for pilot in able if load(pilot) < 1.0 and not _waits(pilot)}
    if not free:
        return
    for donor in sorted(able, key=load, reverse=True):
        over = load(donor) - 1.0
        if over <= 0.0:
            return
        for cls in donor.counts.keys() - set(queued):
            fits = donor.capacity.get(cls, 0)
            if donor.counts[cls] <= 0 or fits <= 0 or 0.0 <= book.classes[cls].typical < LONG:
                continue
            room = {pilot: int(part * capacity(pilot, cls) + 1e-9) for pilot in able
                    if (part := free.get(pilot.id, 0.0))}
            tasks = _unstarted(donor, cls, room, math.ceil(over * fits - 1e-9), free)
            if tasks:
                over -= len(tasks) / fits
                yield donor, tasks


def _waits(pilot: Pilot) -> bool:
    """It has something that it has not started: it would not start more."""
    return any(task.state is TaskState.ASSIGNED for task in pilot.held.values())


def _unstarted(donor: Pilot, cls: int, room: dict[Pilot, int], count: int, free: dict[int, float]) -> list[int]:
    """The newest of its tasks that it has not started, as far as is known, and that others have room for and take."""
    found: list[int] = []
    for task in reversed(donor.held.values()):
        if len(found) >= count or not any(room.values()):
            break
        if task.state is not TaskState.ASSIGNED or task.cls != cls:
            continue
        taker = next((pilot for pilot, left in room.items() if left and pilot.takes(task)), None)
        if taker is not None:
            room[taker] -= 1
            free[taker.id] -= 1.0 / taker.capacity[cls]
            found.append(task.id)
    return found
