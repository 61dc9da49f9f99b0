"""Tasks under which workers fell on several nodes that are well otherwise: it is the task.  Part of the brain: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from balsamfut.interchange.book import Pilot
from balsamfut.platforms import cpu_list

FALLEN: Final = 3
"""On so many different nodes a task may have taken its worker with it before it is given to no other."""
_REMEMBERED: Final = 10_000


class Fallen:
    """Under which tasks workers fell, and where.  It lasts as long as this process; `retries` bound it anyway."""

    def __init__(self) -> None:
        self._where: dict[int, dict[tuple[int, str], None]] = {}    # task -> (pilot, node), in order

    def note(self, task: int, pilot: Pilot, place: str) -> None:
        """A worker, or a node, fell under an attempt at this place (of Exited)."""
        if task not in self._where and len(self._where) >= _REMEMBERED:
            del self._where[next(iter(self._where))]
        self._where.setdefault(task, {}).update(((pilot.id, name), None) for name in nodes_of(place, pilot))

    def well(self, task: int, pilots: Mapping[int, Pilot]) -> list[str]:
        """The names of those nodes that nothing else is wrong with."""
        return [name for number, name in self._where.get(task, ())
                if (pilot := pilots.get(number)) is None or name not in pilot.out]

    def forget(self, task: int) -> None:
        self._where.pop(task, None)


def nodes_of(place: str, pilot: Pilot) -> list[str]:
    """The names of the nodes of a place, `0-3,7:cores/tiles 4:cores`; none where it does not tell."""
    found = []
    for part in place.split():
        try:
            found += [pilot.nodes[index] for index in cpu_list(part.partition(":")[0])]
        except (ValueError, IndexError):     # it was too long for people, and cut off
            continue
    return found
