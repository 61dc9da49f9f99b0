"""The lives of attempts that run in slices: their ends, and what the end of a slice means for each of them.

A part of the pilot's brain between the ledger, which knows what an attempt is, and the core, which hears; pure.

Ranks cannot be taken out of an MPI job one by one.  So a call that has to be ended, or one of whose ranks raised while
the others wait for it, takes its slice with it if it does not end by itself; the other calls of the slice run again,
and nobody is charged for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from balsamfut import errors
from balsamfut.messages import Fault
from balsamfut.pilot.attempts import pooled
from balsamfut.pilot.events import End, Key, NodeGone
from balsamfut.pilot.ledger import KILL as KILL
from balsamfut.pilot.ledger import Ledger
from balsamfut.pilot.queue import Attempt, Where
from balsamfut.pilot.slicenews import CallDone, CallFaltered, SignalCall, SliceBroken, SliceGone, SliceReady
from balsamfut.pilot.slices import Slice

LEEWAY: Final = 1.0
"""Seconds that the other ranks of a call have to end, too, when one has raised."""


class Sliced(Ledger):
    """See the module."""

    def _slice_ready(self, event: SliceReady) -> None:
        self.planner.slices.ready(event.slice, self._now)

    def _slice_broken(self, event: SliceBroken) -> None:
        """Whatever would run in such a slice fails."""
        slice = self.planner.slices.all[event.slice]
        self._effects.append(self.planner.slices.end(slice, True))
        if event.fault is Fault.POOL:
            self._break(slice.kind.pool, event.payload, event.error)
            return
        for attempt in self._queued_for(slice):
            self._queue.remove(attempt)
            self._failed(attempt, Fault.TASK, event.payload, event.error)

    def _queued_for(self, slice: Slice) -> list[Attempt]:
        return [attempt for attempt in self.attempts.values()
                if attempt.where is Where.QUEUED and pooled(attempt.group)
                and self.planner.slices.kind(attempt.group) == slice.kind]

    def _call_done(self, event: CallDone) -> None:
        attempt = self.planner.slices.done(event.slice, event.key, self._now)
        if attempt is None:
            return
        attempt.group.ran(event.ended - event.started)
        attempt.started, attempt.detail = event.started, event.detail
        self.limited.pop(attempt.key, None)
        if event.ok:
            self._over(attempt, Fault.NONE, event.payload, ended=event.ended)
        elif attempt.cause is not Fault.NONE:
            self._ended(attempt)
        else:
            self._failed(attempt, Fault.TASK, event.payload, event.error)

    def _call_faltered(self, event: CallFaltered) -> None:
        attempt = self.attempts.get(event.key[0])
        if attempt is None or attempt.key != event.key or attempt.where is not Where.SLICE or attempt.failure:
            return
        attempt.failure, attempt.error = event.payload, event.error
        self._remind(self._now + LEEWAY, attempt, Fault.TASK)

    def _slice_gone(self, event: SliceGone) -> None:
        slices = self.planner.slices
        slice, blamed, rest = slices.gone(event)
        details = dict(event.details)
        self.planner.release(slice.slot)
        for attempt in (*blamed, *rest):
            self.limited.pop(attempt.key, None)
            if attempt.cause is not Fault.NONE or attempt.failure is not None:
                attempt.detail = details.get(attempt.key)
                self._ended(attempt)
            elif attempt in blamed:
                attempt.detail = details.get(attempt.key)
                text = f"task {attempt.item.task}: {event.lost}"
                self._failed(attempt, Fault.WORKER, self._pickle(errors.WorkerLost(text)), text)
            elif self.stopping:
                self._cut_off(attempt)
            else:
                self._queue.put_back([attempt])
        if slices.stillborn(slice):
            text = f"MPI ranks end before they can run anything: {event.lost}"
            for attempt in self._queued_for(slice):
                self._queue.remove(attempt)
                self._over(attempt, Fault.LAUNCHER, self._pickle(errors.LaunchFailed(text)), text)

    def _slices_lost(self, event: NodeGone) -> None:
        """A host is lost, and with it its slices and what ran there, uncharged."""
        slices = self.planner.slices
        for slice in [each for each in slices.all.values() if each.slot.host == event.host]:
            slices.end(slice, True)
            _, _, rest = slices.gone(SliceGone(slice.id, None, event.reason))
            self.planner.release(slice.slot)
            for attempt in rest:
                self._over(attempt, attempt.cause or Fault.NODE, error="" if attempt.cause else event.reason)

    def _ended(self, attempt: Attempt) -> None:
        """Nothing is left of an attempt that we were ending, or of which one rank raised."""
        payload, attempt.failure = attempt.failure, None
        if attempt.cause in (Fault.PILOT, Fault.BLOCK):
            self._cut_off(attempt)
        elif attempt.cause is Fault.KILLED:
            self._over(attempt, attempt.cause)
        elif attempt.cause is not Fault.NONE:
            self._failed(attempt, attempt.cause, None, "")
        else:
            self._failed(attempt, Fault.TASK, payload, attempt.error)

    # ---- what is to be ended

    def _end(self, order: End, grace: float | None = None) -> None:
        attempt = self.attempts.get(order.key[0])
        if attempt is None or attempt.key != order.key or attempt.where is not Where.SLICE:
            super()._end(order, grace)
        elif attempt.cause is Fault.NONE:
            options = attempt.group.task_class.options
            attempt.cause = order.cause
            grace = options.stop_grace if grace is None else grace
            if order.cause is Fault.MEMORY or grace <= 0:
                self._kill_slice(attempt)
            else:
                self._effects.append(SignalCall(attempt.worker, attempt.key, options.stop_signal))
                self._remind(self._now + grace, attempt, Fault.KILLED)

    def _kill_slice(self, attempt: Attempt) -> None:
        slice = self.planner.slices.all[attempt.worker]
        self._effects.append(self.planner.slices.end(slice, True))

    def _due(self, key: Key, what: Fault) -> None:
        attempt = self.attempts.get(key[0])
        if attempt is None or attempt.key != key or attempt.where is not Where.SLICE:
            super()._due(key, what)
        elif what is Fault.WALLTIME:
            limit = attempt.group.task_class.options.walltime
            if attempt.started + limit <= self._now:     # else it was begun anew since
                self._end(End(key, what))
        elif attempt.cause is not Fault.NONE or attempt.failure is not None:
            self._kill_slice(attempt)

    SLICE_HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        SliceReady: _slice_ready, SliceBroken: _slice_broken, CallDone: _call_done, CallFaltered: _call_faltered,
        SliceGone: _slice_gone,
    }
