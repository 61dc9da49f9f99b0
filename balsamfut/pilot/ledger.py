"""The lives of a pilot's attempts: how each is taken on, ended and reported.  The lower half of the pilot's brain.

Pure, like the upper half (core.py), which knows messages and events; this one knows what an attempt is.

An attempt that has to be ended while a worker may have it is ended in two steps: Steal takes back what is not read, and
`Again(End(stolen=True))` then knows for certain whether the attempt has started.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from balsamfut import errors
from balsamfut.messages import Exited, Fault, Item, Ran, Started
from balsamfut.model import AppKind, AppSpec, Hook, Payload, Pool, Resources, TaskClass
from balsamfut.pilot import planner
from balsamfut.pilot.attempts import first_stage, needs_finish
from balsamfut.pilot.events import Again, Commanded, Effect, End, EndWorker, Key, SignalCommand, Steal
from balsamfut.pilot.hand import Result, Stage
from balsamfut.pilot.outbox import Outbox
from balsamfut.pilot.queue import Attempt, Group, Where

KILL: Final = 9

_CLASSES: Final[dict[Fault, type[BaseException]]] = {
    Fault.WALLTIME: errors.WalltimeExceeded,
    Fault.MEMORY: errors.OutOfMemory,
    Fault.KILLED: errors.TaskKilled,
    Fault.WORKER: errors.WorkerLost,
}


class Ledger:
    """All attempts that this pilot has."""

    def __init__(self, packer: planner.Packs, binding: planner.Binding, pickler: Callable[[BaseException], bytes], *,
                 cores: int) -> None:
        self.attempts: dict[int, Attempt] = {}          # by task: what this pilot has
        self.planner = planner.Planner(packer, binding, cores)
        self.outbox = Outbox()
        self.apps: dict[bytes, AppSpec] = {}
        self.codes: dict[bytes, Payload] = {}
        self.pools: dict[bytes, Pool] = {}
        self.stopping = False
        self.block = False                              # nodes of a batch system: tasks go on in the next block
        self.limited: dict[Key, int] = {}               # bytes that running attempts may use
        self._pickle = pickler
        self._queue = self.planner.queue
        self._crew = self.planner.crew
        self._classes: dict[int, TaskClass] = {}
        self._groups: dict[tuple[int, Resources | None, bool], Group | str] = {}
        self._timers: list[tuple[float, Key, Fault]] = []    # KILLED: the time to stop has come to its end
        self._successors: dict[int, Item] = {}               # attempts that take the place of ones that must end first
        self._effects: list[Effect] = []
        self._now = 0.0

    def _accept(self, item: Item) -> None:
        known = self.attempts.get(item.task)
        if known is not None:
            before = self._successors.get(item.task, known.item)
            if before.attempt < item.attempt:            # else: sent twice
                if before is not known.item:
                    self._say(before, Fault.RETURNED)
                self._successors[item.task] = item
                self._end(End(known.key, Fault.KILLED))
            return
        if self.stopping:
            self._say(item, Fault.RETURNED)
            return
        group = self._group(item, item.ran is not None)
        if isinstance(group, str):
            self._say(item, Fault.LAUNCHER, self._pickle(errors.LaunchFailed(group)), group)
            return
        broken = self._crew.broken.get(group.task_class.pool)
        if broken is not None:
            self._say(item, Fault.POOL, *broken)
            return
        attempt = self.attempts[item.task] = Attempt(item, group, self._queue.next_seq())
        attempt.stage = first_stage(attempt)
        self._queue.append(attempt)

    def _group(self, item: Item, hooks: bool) -> Group | str:
        """The group of an attempt, or a sentence about why it cannot be run here."""
        key = (item.cls, None if hooks else item.again, hooks)
        group = self._groups.get(key)
        if group is None:
            task_class = self._classes.get(item.cls)
            if task_class is None or task_class.app not in self.apps or task_class.pool not in self.pools:
                return f"the pilot was not told what task class {item.cls} is"
            resources = Resources() if hooks else item.again or task_class.resources
            if self.planner.impossible(resources):
                return f"no node of this pilot can hold {resources}"
            group = self._groups[key] = Group(item.cls, task_class, self.apps[task_class.app], resources, hooks)
            self._queue.add_group(group, self.planner.wide(resources))
        return group

    # ---- ends

    def _end(self, order: End, grace: float | None = None) -> None:
        """End an attempt wherever it is; its end is reported when nothing of it is left."""
        attempt = self.attempts.get(order.key[0])
        successor = self._successors.get(order.key[0])
        if successor is not None and successor.attempt == order.key[1]:
            del self._successors[successor.task]
            self._say(successor, order.cause)
            return
        if attempt is None or attempt.key != order.key or attempt.cause is not Fault.NONE:
            return
        options = attempt.group.task_class.options
        if attempt.where is Where.QUEUED:
            self._queue.remove(attempt)
            leaves = order.cause in (Fault.PILOT, Fault.BLOCK)
            self._over(attempt, Fault.RETURNED if leaves and not attempt.begun else order.cause)
        elif attempt.where is Where.COMMAND:
            attempt.cause = order.cause
            grace = options.stop_grace if grace is None else grace
            now = KILL if order.cause is Fault.MEMORY or grace <= 0 else options.stop_signal
            self._effects.append(SignalCommand(attempt.key, now))
            self._remind(self._now + grace, attempt, Fault.KILLED)
        elif not order.stolen:
            self._effects += Steal(attempt.worker), Again(End(order.key, order.cause, stolen=True))
        elif self._crew.workers[attempt.worker].running not in (None, attempt.key):
            pass                     # it is over, and its worker has begun another: the result is on its way
        else:
            attempt.cause = order.cause
            self._crew.workers[attempt.worker].victim = attempt
            self._effects.append(EndWorker(attempt.worker, options.stop_signal if grace else KILL))
            if grace:
                self._remind(self._now + grace, attempt, Fault.KILLED)

    def _remind(self, when: float, attempt: Attempt, what: Fault) -> None:
        heapq.heappush(self._timers, (when, attempt.key, what))

    def _say(self, item: Item, fault: Fault, payload: Payload | None = None, error: str = "") -> None:
        """Report an attempt that never began."""
        self.outbox.waiting.append(Exited(item.task, item.attempt, fault, payload, 0.0, 0.0, "", error))

    def _over(self, attempt: Attempt, fault: Fault, payload: Payload | None = None, error: str = "", *,
              ended: float | None = None, result: Result | None = None) -> None:
        """Report an attempt's end, and forget it."""
        del self.attempts[attempt.item.task]
        self.limited.pop(attempt.key, None)
        if payload is None and fault in _CLASSES:
            error = error or self._sentence(attempt, fault)
            payload = self._pickle(_CLASSES[fault](error))
        self.outbox.waiting.append(Exited(
            attempt.item.task, attempt.item.attempt, fault, payload, attempt.started,
            self._now if ended is None and attempt.started else ended or 0.0, attempt.place, error,
            list(result.joins) if result is not None else [], result.again if result is not None else None,
            (result.detail if result is not None else None) or attempt.detail))
        successor = self._successors.pop(attempt.item.task, None)
        if successor is not None:
            self._accept(successor)

    def _sentence(self, attempt: Attempt, fault: Fault) -> str:
        who = f"task {attempt.item.task} ({attempt.group.app.name})"
        if fault is Fault.WALLTIME:
            limit = attempt.group.task_class.options.walltime
            return f"{who} ran longer than its walltime of {limit:g} s and was ended"
        if fault is Fault.MEMORY:
            limit = attempt.group.resources.memory
            return f"{who} used more than the {limit} bytes per node that it asked for and was ended"
        return f"{who} was killed"

    def _failed(self, attempt: Attempt, fault: Fault, payload: Payload | None, error: str) -> None:
        """An attempt failed by its own fault, other than in a worker that could run its hooks: run them, or report."""
        if payload is None:
            error = error or self._sentence(attempt, fault)
            payload = self._pickle(_CLASSES[fault](error))
        if (attempt.group.hooks or not self.hooking
                or not needs_finish(attempt, False, fault is Fault.WALLTIME)):
            self._over(attempt, fault, payload, error)
            return
        attempt.failure, attempt.fault, attempt.error = payload, fault, error
        self._hooks(attempt, Stage.ABORTED if attempt.stage is Stage.CALL else Stage.FINISH)

    @property
    def hooking(self) -> bool:
        """There is time for hooks."""
        return not self.stopping

    def _cut_off(self, attempt: Attempt) -> None:
        """The pilot has ended what ran, for itself comes to its end: uncharged.  A hook may say how it is to go on."""
        cause, group = Fault.BLOCK if self.block else Fault.PILOT, attempt.group
        error = "its block ended while it ran" if self.block else ""
        asks = group.app.hooks & Hook.ON_TIMEOUT and not group.hooks and attempt.stage in (None, Stage.CALL)
        if not (asks and self.block and self.hooking):
            self._over(attempt, cause, error=error)
            return
        text = f"the block ended while task {attempt.item.task} ({group.app.name}) ran"
        attempt.failure, attempt.fault, attempt.error = self._pickle(errors.BlockEnded(text)), cause, error
        self._hooks(attempt, Stage.ABORTED if attempt.stage is Stage.CALL else Stage.FINISH)

    def _then_hooks(self, attempt: Attempt, event: Commanded, returncode: int) -> None:
        """Its command has run, and hooks of it have not."""
        if attempt.group.app.kind is not AppKind.PYTHON:      # whose exception only this pilot has
            attempt.ran = returncode
            self.outbox.waiting.append(Ran(*attempt.key, returncode, self._now))
        if not self.hooking:
            self._over(attempt, Fault.PILOT)     # whoever gets it next runs the hooks alone
        elif event.fault is Fault.NONE:
            self._hooks(attempt, Stage.FINISH)
        else:
            self._failed(attempt, event.fault, event.payload, event.error)

    def _hooks(self, attempt: Attempt, stage: Stage) -> None:
        group = self._group(attempt.item, True)
        assert isinstance(group, Group)      # the attempt has run in a group of its class
        attempt.group, attempt.stage, attempt.cause = group, stage, Fault.NONE
        attempt.seq = self._queue.next_seq()     # hooks run in the order in which their commands ended
        self._queue.append(attempt)

    def _break(self, pool: bytes, payload: bytes, error: str) -> None:
        """Everything that needs a worker of this pool fails, and nothing of it is tried again."""
        self._crew.broken[pool] = (payload, error)
        for attempt in list(self.attempts.values()):
            if (attempt.where is Where.QUEUED and attempt.group.task_class.pool == pool
                    and attempt.stage is not None):
                self._queue.remove(attempt)
                self._over(attempt, Fault.POOL, payload, error)

    # ---- what time brings

    def _announce(self, attempt: Attempt, started: float) -> None:
        if not attempt.announced and not attempt.group.hooks:
            attempt.started = attempt.started or started
            self.outbox.waiting.append(Started(*attempt.key, attempt.started, attempt.place))
        attempt.announced = True
        options, memory = attempt.group.task_class.options, attempt.group.resources.memory
        if options.walltime and attempt.stage in (None, Stage.CALL):
            self._remind(started + options.walltime, attempt, Fault.WALLTIME)
        if memory:
            self.limited[attempt.key] = memory

    def _due(self, key: Key, what: Fault) -> None:
        attempt = self.attempts.get(key[0])
        if attempt is None or attempt.key != key or attempt.where is Where.QUEUED:
            return
        if what is Fault.WALLTIME:
            if attempt.stage in (None, Stage.CALL):
                self._end(End(key, what))
        elif attempt.cause is not Fault.NONE:    # it was asked to stop, and has had its time
            self._effects.append(SignalCommand(key, KILL) if attempt.where is Where.COMMAND
                                 else EndWorker(attempt.worker, KILL))
