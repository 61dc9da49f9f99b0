"""Everything that runs on one host for a pilot: workers, commands, and the guardian that ends them if their agent dies.

Obeys orders and tells events; the agent that leads the pilot and those that follow it have one each.  Decides nothing.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

from balsamfut.messages import Fault
from balsamfut.pilot import slicehand
from balsamfut.pilot.commands import Commands
from balsamfut.pilot.desk import Desk
from balsamfut.pilot.events import Commanded, Event, Key, Tick, WorkerGone
from balsamfut.pilot.guarded import start_guardian
from balsamfut.pilot.hand import Running
from balsamfut.pilot.orders import Dismiss, Give, GrantPlace, Hire, Run, Signal, Take
from balsamfut.pilot.process import Exit, Processes, sweep_mark
from balsamfut.pilot.slicehand import SliceHand
from balsamfut.pilot.slicenews import EndSlice, HaveMade, SignalCall, SliceOrder, StartSlice
from balsamfut.pilot.squad import Squad

log = logging.getLogger("balsamfut.pilot")

_SIGNALLED: Final = {sign * number + base for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
                     for sign, base in ((-1, 0), (1, 128))}
SAMPLE: Final = 0.5
"""Seconds between looks at the memory of tasks that are limited."""

Order = Hire | Give | Take | GrantPlace | Dismiss | Run | Signal | SliceOrder


class Staff:
    """See the module.  pilot: the token of the pilot, where everything of it on this host is to end with this agent."""

    def __init__(self, desk: Desk, pilot: str = "") -> None:
        self.guardian = start_guardian(pilot or desk.token)
        self.processes = Processes()
        if not desk.pretend:
            self.processes.keep_to(desk.platform.node.agent)
        self.squad = Squad(desk, self.processes)
        self.commands = Commands(desk, self.processes)
        self.slices = SliceHand(desk, self.processes)
        self.other: Callable[[Exit], None] = lambda exit: None     # is told of the ends of what is neither
        self._sampled = 0.0
        # A batch system tells every process of a block to end, this agent among them: the deaths of others are then no
        # task's own doing.
        self.told_to_end = False

    def fds(self) -> Iterable[int]:
        """Readable when `listen` has something."""
        return self.squad.fileno(), self.slices.fileno(), *self.processes.fds()

    # ---- orders

    def obey(self, order: Order, now: float) -> list[Event]:
        """Do what is ordered; what there is to tell about it at once."""
        return self._OBEY[type(order)](self, order, now)

    def _hire(self, order: Hire, now: float) -> list[Event]:
        self.squad.start(order.worker, order.pool, order.env)
        return []

    def _give(self, order: Give, now: float) -> list[Event]:
        self.squad.give(order)
        return []

    def _take(self, order: Take, now: float) -> list[Event]:
        stolen = self.squad.steal(order.worker)
        return [stolen] if stolen is not None else []

    def _grant(self, order: GrantPlace, now: float) -> list[Event]:
        self.squad.grant(order.worker, order.task)
        return []

    def _dismiss(self, order: Dismiss, now: float) -> list[Event]:
        self.squad.end(order.worker, order.signal)
        return []

    def _run(self, order: Run, now: float) -> list[Event]:
        failed = self.commands.start(order.job, now)
        return [failed] if failed is not None else []

    def _signal(self, order: Signal, now: float) -> list[Event]:
        self.commands.signal(order.key, order.signal)
        return []

    def _slice(self, order: SliceOrder, now: float) -> list[Event]:
        self.slices.obey(order, now)
        return []

    _OBEY: ClassVar[dict[type, Callable[[Any, Any, float], list[Event]]]] = {
        Hire: _hire, Give: _give, Take: _take, GrantPlace: _grant, Dismiss: _dismiss, Run: _run, Signal: _signal,
        StartSlice: _slice, HaveMade: _slice, SignalCall: _slice, EndSlice: _slice}

    def clean(self, mark: str) -> list[int]:
        """Kill what carries this mark; the pids that could not be killed."""
        return sweep_mark(mark)

    # ---- events

    def listen(self, now: float) -> list[Event]:
        """What workers have said, and what has ended."""
        events = self._listen(now)
        return [_uncharged(event) for event in events] if self.told_to_end else events

    def _listen(self, now: float) -> list[Event]:
        """What workers have said, and what has ended."""
        events = [*self.squad.listen(), *self.slices.listen(now)]
        for exit in self.processes.reap():
            if isinstance(exit.key, tuple) and exit.key[0] == "worker":
                events += self.squad.buried(exit)
            elif isinstance(exit.key, tuple) and exit.key[0] == slicehand.KEY:
                events += self.slices.buried(exit, now)
            elif isinstance(exit.key, tuple):
                events += self.commands.ended(exit, now)
            else:
                self.other(exit)
        return events

    @property
    def busy(self) -> bool:
        """Something is to be done at each tick."""
        return self.squad.busy or self.commands.busy or self.slices.busy

    def tick(self, now: float, watched: list[int]) -> list[Event]:
        """What nobody tells: of these workers, what they are running, and what memory is in use."""
        events: list[Event] = [*self.squad.push(), *self.commands.linger(), *self.slices.tick(now)]
        seen: list[tuple[int, Running]] = self.squad.running(watched)
        memory: list[tuple[Key, int]] = []
        if now - self._sampled >= SAMPLE:
            self._sampled = now
            memory = self._memory()
        return [*events, Tick(seen, memory)]

    def _memory(self) -> list[tuple[Key, int]]:
        owners: dict[Key, Any] = {key: key for key in self.commands.limited()}
        for number, running, _ in self.squad.limited():
            owners[running.task, running.attempt] = self.squad.key(number)
        if not owners:
            return []
        used = self.processes.memory(owners.values())
        return [(key, used[owner]) for key, owner in owners.items()]

    # ---- the end

    def end(self) -> None:
        """End everything that was started here."""
        left = self.processes.end()
        if left:
            log.warning("processes that cannot be killed: %s", left)
        self.commands.close()
        self.guardian.goodbye()
        self.squad.close()
        self.slices.close()


def _uncharged(event: Event) -> Event:
    """The end of something by a signal that was meant for all of the block."""
    if isinstance(event, WorkerGone):
        event.fault = Fault.PILOT
    if isinstance(event, Commanded) and event.fault is Fault.TASK and event.returncode in _SIGNALLED:
        event.fault = Fault.PILOT
    return event
