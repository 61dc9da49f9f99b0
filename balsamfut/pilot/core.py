"""The brain of a pilot: what becomes of each attempt, from the order to make it until its end is recorded.

`handle(event, now)` takes a message of the interchange or an event of the agent and returns effects, to be performed in
their order, at once; events that they bring (Stolen, Again) are handled before anything else.  At the end of a turn
come `wind_up(now)`, and `plan(now)`, which fills what is free.  Pure: no socket, process, file, clock or randomness;
exceptions are pickled by a function that is given.  It knows workers and commands by number, and never looks into a
payload."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final

from balsamfut import errors
from balsamfut.messages import (
    BeatAck,
    Declined,
    Enrolled,
    Exited,
    Fault,
    Kill,
    Launch,
    Received,
    Return,
)
from balsamfut.pilot.attempts import needs_finish, whole
from balsamfut.pilot.closing import Closing
from balsamfut.pilot.crew import Worker
from balsamfut.pilot.events import (
    Again,
    Commanded,
    Effect,
    End,
    EndWorker,
    Event,
    Finish,
    GiveBack,
    Heard,
    Key,
    NodeGone,
    Send,
    SignalCommand,
    Steal,
    Stolen,
    Tick,
    WorkerGone,
)
from balsamfut.pilot.hand import Blocked, Broken, Prepared, Ready, Result, Running, Stage, Unblocked
from balsamfut.pilot.queue import HORIZON, Attempt, Group, Where
from balsamfut.pilot.sliced import KILL, Sliced

LONG: Final = 0.005
"""Seconds: what runs longer is reported as Started; and what is in a hand behind it is taken back."""


class Core(Closing):
    """See the module."""

    _finished = False

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in a message or an event; what is to be done about it, in order."""
        self._now = now
        self._HANDLERS[type(event)](self, event)
        effects, self._effects = self._effects, []
        return effects

    def plan(self, now: float) -> list[Effect]:
        """Give work to what is free.  Called at the end of each turn."""
        effects = self.planner.plan(now)
        effects.extend(EndWorker(worker.id) for worker in self._crew.surplus())
        if self.stopping and not self.attempts and not self._finished:
            self._finished = True
            effects.append(Finish(self.reason))
        return effects

    def held(self) -> list[Key]:
        """What this pilot answers for: what it has, and what it has ended without being told that this is recorded."""
        waiting = [(item.task, item.attempt) for item in self._successors.values()]
        return [attempt.key for attempt in self.attempts.values()] + waiting + self.outbox.ended()

    def next_timer(self) -> float:
        """When a Tick is due for a deadline's sake (Unix time); inf: never."""
        return min(self.planner.launching.due, self._timers[0][0] if self._timers else math.inf, self.alarm)

    # ---- orders

    def _launch(self, message: Launch) -> None:
        self._classes.update(message.classes)
        self.apps.update((app.digest, app) for app in message.apps)
        self.codes.update(message.codes)
        self.pools.update(message.pools)
        for digest, _ in message.pools if not message.items else ():
            self.planner.wake(digest)
        for item in message.items:
            self._accept(item)
        groups = [group for group in self._groups.values() if isinstance(group, Group)]
        highest = max((group.priority for group in groups if group.queue), default=0)
        if all(group.priority >= highest for group in groups):
            return
        for worker in self.planner.watched.values():
            # Nothing of lower priority is to run before what waits, only because it lies in a hand.
            if len(worker.hand) > 1 and worker.hand[-1].group.priority < highest:
                self._effects.append(Steal(worker.id))

    def _give_back(self, message: Return | GiveBack) -> None:
        """In two steps: what lies unread in hands is taken back first."""
        attempts = [self.attempts.get(task) for task in message.tasks]
        if type(message) is Return:
            workers = {attempt.worker for attempt in attempts if attempt is not None and attempt.where is Where.HAND}
            self._effects.extend(Steal(worker) for worker in sorted(workers))
            self._effects.append(Again(GiveBack(message.request, message.tasks)))
            return
        declined: list[int] = []
        for task, attempt in zip(message.tasks, attempts, strict=True):
            successor = self._successors.pop(task, None)
            if successor is not None:
                self._say(successor, Fault.RETURNED)
            elif attempt is None or attempt.begun:
                declined.append(task)
            else:
                self._queue.remove(attempt)
                self._over(attempt, Fault.RETURNED)
        self._effects.append(Send(Declined(message.request, declined)))

    def _kill(self, message: Kill | Enrolled) -> None:
        self._parted &= isinstance(message, Kill)
        for key in message.attempts if isinstance(message, Kill) else message.drop:
            self._end(End(key, Fault.KILLED))

    def _received(self, message: Received | BeatAck) -> None:
        if type(message) is Received:     # that the other arrived is all it says
            self.outbox.received(message.seq)

    # ---- what the agent tells

    def _commanded(self, event: Commanded) -> None:
        attempt = self.planner.commands.pop(event.key)
        self.planner.fresh.pop(event.key, None)
        assert attempt.slot is not None
        self.planner.release(attempt.slot)
        attempt.slot, attempt.started, attempt.detail = None, event.started, event.detail
        self.limited.pop(attempt.key, None)
        fault = event.fault
        refused = None if event.returncode is None else fault is Fault.LAUNCHER
        self.planner.launching.ended(event.key, refused, self._now)
        if fault is Fault.NONE:
            attempt.group.ran(self._now - event.started)
        if attempt.cause in (Fault.PILOT, Fault.BLOCK) and not (fault is Fault.NONE and whole(attempt)):
            self._cut_off(attempt)
        elif attempt.cause in (Fault.KILLED, Fault.NODE):
            self._over(attempt, attempt.cause, error=attempt.error)
        elif attempt.cause in (Fault.WALLTIME, Fault.MEMORY):
            self._failed(attempt, attempt.cause, None, "")
        elif fault not in (Fault.NONE, Fault.TASK) or event.returncode is None:
            self._over(attempt, fault, event.payload, event.error)
        elif needs_finish(attempt, fault is Fault.NONE, False):
            self._then_hooks(attempt, event, event.returncode)
        else:
            self._over(attempt, fault, event.payload, event.error)

    def _heard(self, event: Heard) -> None:
        worker = self._crew.workers[event.worker]
        for message in event.messages:
            if type(message) is Result:
                self._result(worker, message)
            elif isinstance(message, Prepared):
                self._prepared(worker, message)
            elif isinstance(message, Ready):
                self.planner.ready(worker)
            elif isinstance(message, Broken):
                self._broken(worker, message)
            elif isinstance(message, Blocked):
                self._blocked(worker)
            elif isinstance(message, Unblocked) and worker.blocked:
                self.planner.returning.append(worker)

    def _result(self, worker: Worker, result: Result) -> None:
        attempt = worker.hand[0] if worker.hand else None
        if attempt is None or attempt.item.task != result.task or attempt.item.attempt != result.attempt:
            self._effects.append(EndWorker(worker.id, KILL))    # somebody writes there who should not
            return
        worker.hand.popleft()
        if worker.victim is attempt:             # it did not end as it was told, but its task did
            self._effects.append(EndWorker(worker.id, KILL))
        if attempt.stage is Stage.CALL and not result.ok and attempt.cause in (Fault.PILOT, Fault.BLOCK):
            attempt.started, attempt.place, attempt.detail = result.started, worker.place, result.detail
            self._cut_off(attempt)
        elif attempt.stage is Stage.CALL:
            group = attempt.group
            group.learn(result.ended - result.started)
            del self.attempts[result.task]
            if self.limited:
                self.limited.pop(attempt.key, None)
            self.outbox.waiting.append(Exited(
                result.task, result.attempt, Fault.NONE if result.ok else Fault.TASK, result.payload, result.started,
                result.ended, worker.place, result.error, list(result.joins), result.again, result.detail))
            if self._successors and result.task in self._successors:
                self._accept(self._successors.pop(result.task))
        else:
            attempt.place = attempt.place or worker.place
            attempt.started = attempt.started or result.started
            fault = Fault.NONE if result.ok else attempt.fault or Fault.TASK
            payload = attempt.failure if result.payload is None else result.payload
            if fault is Fault.BLOCK:             # what its hook said counts, and what that raised
                fault, payload = Fault.TASK if result.payload is not None else fault, result.payload
            self._over(attempt, fault, payload, result.error or attempt.error, ended=result.ended, result=result)
        self._lighter(worker)

    def _lighter(self, worker: Worker) -> None:
        """The hand of a worker went down by one."""
        if worker.blocked:                       # its task ended while another thread of it was waiting
            self._unblock(worker)
        if worker.slot is None and not worker.hand:
            self.planner.makers[worker.id] = worker
        else:
            self.planner.hungry[worker.id] = worker
            if worker.hand:
                self.planner.watched[worker.id] = worker

    def _unblock(self, worker: Worker) -> None:
        worker.blocked = False
        self._crew.blocked -= 1
        if worker in self.planner.returning:
            self.planner.returning.remove(worker)

    def _prepared(self, worker: Worker, message: Prepared) -> None:
        attempt = worker.hand.popleft()
        attempt.command, attempt.stage = message.command, None
        attempt.group.learn(message.took)
        slot, worker.slot = worker.slot, None
        self._lighter(worker)
        if slot is not None and attempt.cause is Fault.NONE and not self.stopping:
            attempt.started = 0.0
            self.planner.command(attempt, slot)
            return
        if slot is not None:
            self.planner.release(slot)
        if attempt.cause is not Fault.NONE:
            self._over(attempt, attempt.cause)
        elif self.stopping:
            self._cut_off(attempt)
        else:                                    # it was made ahead, or gave its slot back meanwhile
            self._queue.put_back([attempt])
            self._queue.reopen()

    def _blocked(self, worker: Worker) -> None:
        """The task waits for another: its slot, and what is queued behind it, are for others."""
        if worker.blocked or not worker.hand:
            return
        worker.blocked = True
        self._crew.blocked += 1
        worker.seat, worker.slot = worker.slot, None
        if worker.seat is not None:
            self.planner.release(worker.seat)
        if len(worker.hand) > 1:
            self._effects.append(Steal(worker.id))

    def _stolen(self, event: Stolen) -> None:
        worker = self._crew.workers[event.worker]
        keys = set(event.keys)
        back = [attempt for attempt in worker.hand if attempt.key in keys]
        worker.hand = deque(attempt for attempt in worker.hand if attempt.key not in keys)
        worker.running = event.running
        self._queue.put_back(back)
        if back and not worker.hand:
            self.planner.hungry[worker.id] = worker

    def _broken(self, worker: Worker, message: Broken) -> None:
        """Its initializer raised: it runs nothing, and neither will another of its pool."""
        hand, worker.retiring = list(worker.hand), True
        worker.hand.clear()
        for attempt in hand:
            self._over(attempt, Fault.POOL, message.payload, message.error)
        self._break(worker.kind[0], message.payload, message.error)
        self._effects.append(EndWorker(worker.id, KILL))

    def _worker_gone(self, event: WorkerGone) -> None:
        worker = self._crew.workers[event.worker]
        self._dismiss(worker)
        running = event.running
        current = None
        if worker.hand and (worker.hand[0].cause is not Fault.NONE
                            or (running is not None and worker.hand[0].key == (running.task, running.attempt))):
            current = worker.hand.popleft()
        for attempt in worker.hand if self.stopping else ():    # of what has begun, it is a hook that waited
            self._over(attempt, self._cause if attempt.begun else Fault.RETURNED)
        if not self.stopping:
            self._queue.put_back(worker.hand)
        if current is not None:
            self._lost(current, worker, event)
        elif not worker.ready and not worker.retiring and worker.victim is None and self._crew.stillborn(worker):
            text = f"Python workers end before they can run anything: {event.lost}"
            self._break(worker.kind[0], self._pickle(errors.InitializerFailed(text)), text)

    def _node_gone(self, event: NodeGone) -> None:
        """A host is lost: nothing that it had will be heard of again, and any of it may have begun."""
        self.planner.lose(event.host)
        self._slices_lost(event)
        for worker in [worker for worker in self._crew.workers.values() if worker.kind[2] == event.host]:
            hand = list(worker.hand)
            worker.hand.clear()
            self._dismiss(worker)
            for attempt in hand:
                attempt.place = attempt.place or worker.place
                self._over(attempt, attempt.cause or Fault.NODE, error="" if attempt.cause else event.reason)
        for attempt in list(self.planner.commands.values()):
            assert attempt.slot is not None
            if event.host not in [share.node for share in attempt.slot.placement.nodes]:
                continue
            if attempt.slot.host == event.host:
                self._commanded(Commanded(attempt.key, None, attempt.started, Fault.NODE, None, event.reason))
            elif attempt.cause is Fault.NONE:
                attempt.cause, attempt.error = Fault.NODE, event.reason
                self._effects.append(SignalCommand(attempt.key, KILL))

    def _dismiss(self, worker: Worker) -> None:
        """Forget a worker of which nothing is left."""
        self._crew.lose(worker)
        if worker.slot is not None:
            self.planner.release(worker.slot)
        else:
            self._queue.reopen()
        if worker.group is not None:
            worker.group.busy -= 1
        if worker in self.planner.returning:
            self.planner.returning.remove(worker)
        self.planner.watched.pop(worker.id, None)
        self.planner.hungry.pop(worker.id, None)
        self.planner.makers.pop(worker.id, None)

    def _lost(self, attempt: Attempt, worker: Worker, event: WorkerGone) -> None:
        """What becomes of the attempt that a worker was running when it died."""
        running = event.running
        attempt.place, attempt.detail = attempt.place or worker.place, event.detail
        if not attempt.started:
            attempt.started = running.started if running is not None else self._now
        if worker.victim is not None and worker.victim is not attempt:
            # It began between the order to end another and that one's end: innocent, but it did begin.
            self._over(attempt, Fault.PILOT, error="the worker was ended for another task's sake")
        elif attempt.cause is Fault.KILLED:
            self._over(attempt, attempt.cause)
        elif event.fault is Fault.PILOT or attempt.cause in (Fault.PILOT, Fault.BLOCK):
            self._cut_off(attempt)
        elif attempt.cause is not Fault.NONE:
            self._failed(attempt, attempt.cause, None, "")
        else:
            error = errors.OutOfMemory(event.lost) if event.fault is Fault.MEMORY else errors.WorkerLost(event.lost)
            self._failed(attempt, event.fault, self._pickle(error), event.lost)

    def _tick(self, event: Tick) -> None:
        for number, running in event.seen:
            worker = self._crew.workers.get(number)
            if worker is not None and worker.hand and worker.hand[0].key == (running.task, running.attempt):
                self._seen(worker, running)
        for key, attempt in list(self.planner.fresh.items()):
            if self._now - attempt.started > LONG:
                del self.planner.fresh[key]
                self._announce(attempt, attempt.started)
        for key, used in event.memory:
            if used > self.limited.get(key, used):
                self._end(End(key, Fault.MEMORY))
        while self._timers and self._timers[0][0] <= self._now:
            _, key, what = heapq.heappop(self._timers)
            self._due(key, what)

    def _seen(self, worker: Worker, running: Running) -> None:
        """A worker runs the first attempt of its hand."""
        attempt = worker.hand[0]
        age = self._now - running.started
        if age > LONG:
            attempt.place = attempt.place or worker.place
            if not attempt.announced:
                self._announce(attempt, running.started)
        if len(worker.hand) == 1:
            if attempt.announced:
                self.planner.watched.pop(worker.id, None)
            return
        group = attempt.group
        if age > 2 * LONG or (group.cost or 0.0) * len(worker.hand) > 2 * HORIZON:
            if age > 2 * LONG:
                group.learn(age)
            self._effects.append(Steal(worker.id))

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        Launch: _launch, Return: _give_back, GiveBack: _give_back, Kill: _kill, Enrolled: _kill,
        Received: _received, BeatAck: _received, End: Sliced._end,
        Commanded: _commanded, Heard: _heard, Stolen: _stolen, WorkerGone: _worker_gone, NodeGone: _node_gone,
        Tick: _tick, **Sliced.SLICE_HANDLERS, **Closing.CLOSING_HANDLERS,
    }
