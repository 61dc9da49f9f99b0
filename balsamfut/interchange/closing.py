"""Pilots whose blocks come to an end: what they are sent no more, and what people are told.  Part of the brain: pure.

How much time a pilot has left it says itself, in seconds, when it enrols; from then on our own clock counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Final

from balsamfut.interchange.attempts import Attempts
from balsamfut.interchange.book import Book, ClassInfo, Pilot
from balsamfut.interchange.matcher import ReadyQueues
from balsamfut.interchange.records import Task
from balsamfut.interchange.sessions import Sessions
from balsamfut.messages import Notice
from balsamfut.model import Hook

CUTS: Final = 3
"""So many times a task is cut off by the end of its block before people are told."""
LOOK: Final = 1.0
"""Seconds between looks for tasks that no block has the time for."""
_REMEMBERED: Final = 10_000


def needs(info: ClassInfo) -> float:
    """Seconds that must be left of a block for a task of this class to be sent there: what it asks for, else what it
    usually takes; for one that goes on where it was stopped, as long as it takes to be stopped."""
    options = info.spec.options
    length = 0.0 if options.checkpoint else options.walltime or info.typical
    return max(length, options.stop_grace)


class Closing:
    """See the module."""

    def __init__(self, book: Book, queues: ReadyQueues, attempts: Attempts, sessions: Sessions) -> None:
        self.book = book
        self.queues = queues
        self.attempts = attempts
        self.sessions = sessions
        self._cuts: dict[int, int] = {}      # task -> how often; as long as this process lives
        self._told: set[int] = set()         # classes of which people know that no block has the time for them
        self._looked = 0.0

    def mark(self, pilots: Iterable[Pilot], classes: Collection[int], now: float) -> None:
        """Note which of these classes it is too late for in which pilot."""
        for pilot in pilots:
            if pilot.ends < math.inf:
                pilot.late = pilot.closed | {cls for cls in classes if self._too_late(pilot, cls, now)}

    def room(self, pilot: Pilot, cls: int, now: float) -> int:
        """How many tasks of a class an empty pilot could begin to run now."""
        late = cls in pilot.closed or self._too_late(pilot, cls, now)
        return 0 if late else self.attempts.capacity(pilot, cls)

    def _too_late(self, pilot: Pilot, cls: int, now: float) -> bool:
        return pilot.ends - now <= needs(self.book.classes[cls])

    def forget_others(self, classes: Collection[int]) -> None:
        """There are no others than these any more."""
        self._told.intersection_update(classes)

    # ---- what people are told

    def tick(self, now: float, alone: bool) -> None:
        """alone: nobody asks for blocks but people."""
        cut, self.attempts.cut = self.attempts.cut, []
        for number in cut:
            task = self.book.tasks.get(number)
            if task is not None:
                self._was_cut(task, now)
        if alone and now - self._looked >= LOOK:
            self._looked = now
            self._tell_too_long(now)

    def _was_cut(self, task: Task, now: float) -> None:
        """One that goes on where it was stopped may span any number of blocks; another may be at it for ever."""
        info = self.book.classes[task.cls]
        if info.spec.options.checkpoint or info.app.hooks & Hook.ON_TIMEOUT:
            return
        if len(self._cuts) >= _REMEMBERED:
            del self._cuts[next(iter(self._cuts))]
        count = self._cuts[task.id] = self._cuts.get(task.id, 0) + 1
        if count == CUTS:
            text = (f"task {task.id} ({info.app.name}) was cut off by the end of its block {count} times; if it begins "
                    "anew each time it needs a block with more time (checkpoint=True says that it goes on)")
            self.book.event(now, "cut-off", text, task.id)
            self._say(text)

    def _tell_too_long(self, now: float) -> None:
        """Say once which tasks wait that no block has the time for, of those that run or wait."""
        most = self._most(now)
        for cls in {line[0] for line in self.queues.lines()} - self._told:
            if why := self._too_long(cls, most):
                self._told.add(cls)
                self._say(f"tasks of {self.book.classes[cls].app.name} wait: {why}; `balsamfut queue submit` asks for "
                          "another")

    def too_long(self, cls: int, now: float) -> str:
        """Why no block that there is has the time for tasks of a class; "": one has."""
        return self._too_long(cls, self._most(now))

    def _too_long(self, cls: int, most: float) -> str:
        info = self.book.classes[cls]
        if needs(info) <= max(most, info.spec.options.stop_grace):
            return ""
        takes, left = _minutes(needs(info)), _minutes(max(0.0, most))
        return f"they take {takes}, and the blocks that there are have at most {left} left"

    def _most(self, now: float) -> float:
        """Seconds that the longest block has left, of those that run or wait."""
        blocks = self.book.blocks
        if not blocks or any(pilot.enrolled and pilot.ends == math.inf for pilot in self.book.pilots.values()):
            return math.inf
        coming = [row.walltime or math.inf for row in blocks.values()
                  if not row.note and not any((pilot := self.book.pilots.get(number)) is not None and pilot.enrolled
                             for number, _ in row.pilots())]
        here = [pilot.ends - now for pilot in self.book.pilots.values() if pilot.enrolled and not pilot.stopping]
        return max(coming + here, default=0.0)

    def _say(self, text: str) -> None:
        for session in self.sessions.alive():
            self.book.send_client(session, Notice(text))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60.0:.0f} min" if seconds >= 120.0 else f"{seconds:.0f} s"
