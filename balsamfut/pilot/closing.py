"""The end of a pilot: what is started no more, who is told to stop and when, and when nothing may be left.

A part of the pilot's brain between the lives of attempts (`ledger`, `sliced`) and the core, which hears; pure.

`Planner.ends` is when a block's tasks have to be over; a little after that the block itself ends.  Each task is told to
stop as long before that as it asks for (`stop_grace`), and no sooner: with different wishes there are several rounds.
What would not be over in time is not started here but handed back, while there is time to start it elsewhere.  A pilot
that is told to stop (Stop) takes the same course in the time that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from typing import Any, ClassVar, Final

from balsamfut.messages import Expelled, Fault, Stop, TooLate
from balsamfut.model import Options
from balsamfut.pilot.events import Again, Effect, End, Halt, Send, Steal
from balsamfut.pilot.queue import Attempt, Group
from balsamfut.pilot.sliced import Sliced

LOOK: Final = 1.0
"""Seconds between looks for what has become too late."""
USUAL: Final = Options().stop_grace
"""Seconds before its end at which a pilot takes on nothing more, unless something that it has asks for less."""


class Closing(Sliced):
    """See the module."""

    reason = "stopped"           # why the pilot stops
    hook_time = 0.0              # seconds for hooks after everything else is over
    alarm = math.inf             # when `wind_up` has something to do, but for looking
    _told = math.inf             # those that ask for this many seconds or more have been told to stop
    _until = math.inf            # when nothing may be left, once it stops ...
    _forced = False              # ... which has come
    _parted = False              # the interchange knows that we stop
    _looked = 0.0
    _graces: tuple[float, ...] = (USUAL,)     # seconds that groups ask for, in order
    _closed: Set[int] = frozenset()    # classes that it is too late for, as the interchange was told
    _grouped = 0                 # groups when we last looked which

    @property
    def hooking(self) -> bool:
        return not self.stopping or (self.block and self._now < self._until)

    def wind_up(self, now: float) -> list[Effect]:
        """What is to be done because the end comes nearer.  Called at the end of each turn, before `plan`."""
        self._now = now
        if self.stopping and now >= self._until and self.attempts and not self._forced:
            self._forced = True
            self._begin(Halt(0.0, force=True))
        elif self.planner.ends and not self.stopping:
            self._watch_clock(self.planner.ends - now)
        if self.stopping and not self._parted:       # it would send what we hand back to us again
            self._parted = True
            self._effects.append(Send(TooLate(sorted(self._closed), True)))
        self._set_alarm()
        effects, self._effects = self._effects, []
        return effects

    def _set_alarm(self) -> None:
        ends = self.planner.ends
        if self.stopping:
            self.alarm = self._until if self.attempts and not self._forced else math.inf
        elif ends:
            self.alarm = ends - max((grace for grace in self._graces if grace < self._told), default=0.0)

    def _watch_clock(self, left: float) -> None:
        """left: seconds until all tasks have to be over."""
        if self._now - self._looked >= LOOK:
            self._looked = self._now
            self._hand_back()
        if len(self._groups) != self._grouped:
            self._grouped = len(self._groups)
            groups = [group for group in self._groups.values() if isinstance(group, Group)]
            self._graces = tuple(sorted({USUAL, *(group.task_class.options.stop_grace for group in groups)}))
        due = max((grace for grace in self._graces if left <= grace < self._told), default=None)
        if left <= self._graces[0]:
            self.stopping, self.reason = True, "its block has come to its end"
            self._until = self.planner.ends + self.hook_time
            self._begin(Halt(max(left, 0.0), over_by=self.planner.ends))
        elif due is not None:
            self._told = due
            self._begin(Halt(left, least=due, over_by=self.planner.ends))

    def _hand_back(self) -> None:
        """What would not be over in time goes to others, and the interchange is to send no more of it."""
        late, left = self.planner.late(self._now), self.planner.ends - self._now
        closed = {group.cls for group in self._groups.values() if isinstance(group, Group) and not group.fits(left)}
        if late or closed != self._closed:
            self._closed = closed
            self._effects.append(Send(TooLate(sorted(closed))))
        for attempt in late:
            self._queue.remove(attempt)
            self._over(attempt, Fault.RETURNED)

    # ---- telling them

    def _stop(self, message: Stop | Expelled) -> None:
        grace = message.grace if type(message) is Stop else 0.0
        self.stopping = True
        until = self._now + grace + (self.hook_time if grace else 0.0)
        self._until = min(self._until, until, (self.planner.ends or math.inf) + self.hook_time)
        self._begin(Halt(grace))

    def _begin(self, halt: Halt) -> None:
        """In two steps: what lies unread in hands is taken back first."""
        self._effects.extend(Steal(worker.id) for worker in self._crew.workers.values() if worker.hand)
        self._effects.append(Again(halt))

    def _halt(self, halt: Halt) -> None:
        for attempt in list(self.attempts.values()):
            own = attempt.group.task_class.options.stop_grace
            if halt.force:
                self._make_end(attempt)
            elif own < halt.least or (attempt.group.hooks and self.hooking) or self._over_by(attempt, halt.over_by):
                continue
            elif attempt.cause is Fault.NONE:
                self._end(End(attempt.key, self._cause, stolen=True), min(own, halt.grace))
            else:                                # told before, when there was more time
                self._remind(self._now + min(own, halt.grace), attempt, Fault.KILLED)

    @property
    def _cause(self) -> Fault:
        return Fault.BLOCK if self.block else Fault.PILOT

    def _make_end(self, attempt: Attempt) -> None:
        if attempt.cause is Fault.NONE:
            self._end(End(attempt.key, self._cause, stolen=True), 0.0)
        else:
            self._due(attempt.key, Fault.KILLED)

    def _over_by(self, attempt: Attempt, when: float) -> bool:
        """Its own walltime ends it by then."""
        limit = attempt.group.task_class.options.walltime
        return bool(limit) and (attempt.started or self._now) + limit <= when

    CLOSING_HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {Stop: _stop, Expelled: _stop, Halt: _halt}
