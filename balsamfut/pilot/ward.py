"""The brain of a pilot that looks after its nodes: the core, and what the ends of attempts say about where they ran.

Looks at each event before the core handles it, tells `health` what ended where and how, and does what that decides: a
node that is out gets nothing more, what waits on it goes elsewhere, what no longer fits into this pilot is handed back,
and the interchange is told.  Pure, like the core, which knows nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, ClassVar, Final

import msgspec

from balsamfut.messages import Enrolled, Exited, Fault, Item, NodeNews, NodeState, Spent
from balsamfut.pilot import planner
from balsamfut.pilot.core import Core
from balsamfut.pilot.crew import Worker
from balsamfut.pilot.events import Commanded, Effect, Event, Heard, NodeGone, Send, Slot, Steal, WorkerGone
from balsamfut.pilot.hand import Prepared, Ready, Result, Stage
from balsamfut.pilot.health import Health, Quarantine, Verdict
from balsamfut.pilot.launching import named
from balsamfut.pilot.queue import Attempt, Group
from balsamfut.pilot.slicenews import CallDone, SliceGone
from balsamfut.platforms import cpu_list

_LOOK: Final = 256
"""So many of the attempts that run are looked at, the oldest first, when one has failed."""
_NOBODYS: Final = ("Couldn't forward RPC", "No VNIs available")
"""What launchers say when the machine is busy as a whole: no node's fault, and no task's."""
_PLAIN: Final = frozenset({Fault.TASK, Fault.WALLTIME, Fault.MEMORY})
_HARD: Final = frozenset({Fault.WORKER, Fault.LAUNCHER, Fault.NODE})


class Ward(Core):
    """See the module.  `packer.names` are the nodes'."""

    def __init__(self, packer: planner.Packs, binding: planner.Binding, pickler: Callable[[BaseException], bytes], *,
                 cores: int) -> None:
        super().__init__(packer, binding, pickler, cores=cores)
        self._names = packer.names
        self._health = Health(packer.names)
        self._verdicts: list[Verdict] = []
        self._news: dict[int, NodeNews] = {}      # of nodes that are out
        self._enrolled = False                    # some interchange knows us
        self._spent = False                       # no launch is left, and some interchange was told ...
        self._spent_told = False                  # ... the present one

    def handle(self, event: Event, now: float) -> list[Effect]:
        """As the core does, and with what follows for the nodes."""
        if type(event) is Enrolled:
            self._enrolled, self._spent_told = True, False
        look = self._LOOKS.get(type(event)) if len(self._names) > 1 else None
        if look is None:
            return super().handle(event, now)
        self._now = now
        look(self, event)
        effects = super().handle(event, now)
        if self._verdicts:
            verdicts, self._verdicts = self._verdicts, []
            for verdict in verdicts:
                effects += self._obey(verdict)
        if type(event) is NodeGone:
            for verdict in self._health.lost(event.host):
                effects += self._obey(verdict)
            effects += self._put_out(event.host, NodeState.LOST, event.reason)
        elif type(event) is Enrolled:
            effects += [Send(news) for news in self._news.values()]
            self._news = {node: NodeNews(news.name, news.state, news.reason, news.time, True)
                          for node, news in self._news.items()}
        return effects

    def plan(self, now: float) -> list[Effect]:
        """As the core does; and what failed on a node that is out was not the task's fault."""
        effects = super().plan(now)
        if self.planner.launching.left <= 0 and self._enrolled and not self._spent_told:
            effects += self._spend()
        if self._news:
            waiting = self.outbox.waiting
            for index, report in enumerate(waiting):
                if (type(report) is Exited and report.fault in (Fault.TASK, Fault.WORKER) and report.again is None
                        and any(node in self._news for node in _nodes_of(report.place))):
                    error = f"{report.error} (on a node that is not well)"
                    waiting[index] = msgspec.structs.replace(report, fault=Fault.NODE, error=error)
        return effects

    def _spend(self) -> list[Effect]:
        """The last launch has begun: what would need another one is somebody else's."""
        reason = f"all {self.planner.launching.budget} launches that its platform allows in a block are used"
        news = Spent(reason, self._spent)
        self._spent = self._spent_told = True
        self._return_unbegun(lambda group: not group.hooks and not group.resources.serial)
        return [Send(news)]

    def _return_unbegun(self, wanted: Callable[[Group], bool]) -> None:
        """What has not begun of these goes to others."""
        for group in list(self._groups.values()):
            if isinstance(group, Group) and group.queue and wanted(group):
                for attempt in [each for each in group.queue if not each.begun]:
                    self._queue.remove(attempt)
                    self._over(attempt, Fault.RETURNED)

    def unfit(self, node: int, why: str) -> list[Effect]:
        """A node lacks what its platform promises: nothing is given to it, unless it is the last."""
        return [effect for verdict in self._health.blame(node, why) for effect in self._obey(verdict)]

    def lend(self, node: int) -> None:
        """This node is another pilot's: our agent leads from there, and gives it nothing."""
        self._health.lost(node)
        self.planner.lose(node)

    def _accept(self, item: Item) -> None:
        """What was sent before the interchange knew that a node is out may not fit any more: somebody else's, then."""
        known = self._classes.get(item.cls)
        if known is None or item.ran is not None or item.task in self.attempts:
            super()._accept(item)
        elif ((self._news and self.planner.impossible(item.again or known.resources))
                or (self._spent and not (item.again or known.resources).serial)):
            self._say(item, Fault.RETURNED)
        else:
            super()._accept(item)

    # ---- looking

    def _heard_of(self, event: Heard) -> None:
        worker = self._crew.workers[event.worker]
        nodes = _home(worker)
        done = 0
        for message in event.messages:
            if type(message) is Result:
                attempt = worker.hand[done] if done < len(worker.hand) else None
                done += 1
                if attempt is None or attempt.stage is not Stage.CALL or attempt.item.task != message.task:
                    continue
                took = message.ended - message.started
                if message.ok:
                    self._well(attempt.group.app.digest, message.task, nodes, took)
                elif attempt.cause is Fault.NONE:
                    self._ill(attempt.group, message.task, nodes, Fault.TASK, took, message.error)
            elif isinstance(message, Prepared):
                done += 1
            elif isinstance(message, Ready):
                self._well(worker.kind[0], -worker.id, nodes, 0.0)

    def _lost_with(self, event: WorkerGone) -> None:
        worker = self._crew.workers[event.worker]
        if worker.victim is not None:
            return
        running, nodes = event.running, _home(worker)
        if running is not None and worker.hand and worker.hand[0].key == (running.task, running.attempt):
            attempt = worker.hand[0]
            if attempt.cause is Fault.NONE and attempt.stage is Stage.CALL:
                self._ill(attempt.group, running.task, nodes, event.fault, self._now - running.started, event.lost)
        elif not worker.ready and not worker.retiring:       # it could not even start
            self._verdicts += self._health.failed(worker.kind[0], -worker.id, nodes, hard=True, what=event.lost)

    def _commanded_there(self, event: Commanded) -> None:
        attempt = self.planner.commands[event.key]
        assert attempt.slot is not None
        nodes, took = _nodes(attempt.slot), self._now - event.started
        if attempt.cause in (Fault.WALLTIME, Fault.MEMORY):
            self._ill(attempt.group, event.key[0], nodes, attempt.cause, took, self._sentence(attempt, attempt.cause))
        elif attempt.cause is not Fault.NONE or (event.fault is Fault.NODE and event.returncode is None):
            return               # it was ended; or a host has gone, of which we hear apart
        elif event.fault is Fault.NONE:
            self._well(attempt.group.app.digest, event.key[0], nodes, took)
        else:
            blamed = named(event.blamed, self._names) if event.blamed else None
            if blamed is not None:
                self._verdicts += self._health.blame(blamed, f"the launcher says: {event.error}")
            elif not any(text in event.error for text in _NOBODYS):
                self._ill(attempt.group, event.key[0], nodes, event.fault, took, event.error)

    def _called(self, event: CallDone) -> None:
        found = self.planner.slices.all.get(event.slice)
        attempt, _ = found.calls.get(event.key, (None, ())) if found is not None else (None, ())
        if found is None or attempt is None or attempt.cause is not Fault.NONE:
            return
        took = event.ended - event.started
        if event.ok:
            self._well(attempt.group.app.digest, event.key[0], _nodes(found.slot), took)
        else:
            self._ill(attempt.group, event.key[0], _nodes(found.slot), Fault.TASK, took, event.error)

    def _slice_lost(self, event: SliceGone) -> None:
        found = self.planner.slices.all[event.slice]
        for attempt, ranks in found.calls.values() if not found.ended else ():
            if event.first in ranks and attempt.cause is Fault.NONE:
                self._ill(attempt.group, attempt.item.task, _nodes(found.slot), Fault.WORKER, 0.0, event.lost)

    def _nothing(self, event: object) -> None:
        """What it says about nodes is done when the core has handled it."""

    def _well(self, kind: bytes, task: int, nodes: Sequence[int], took: float) -> None:
        verdicts = self._health.succeeded(kind, task, nodes, took)
        if verdicts:
            self._verdicts += verdicts

    def _ill(self, group: Group, task: int, nodes: Sequence[int], fault: Fault, took: float, what: str) -> None:
        if fault in _HARD or fault in _PLAIN:
            self._verdicts += self._health.failed(
                group.app.digest, task, nodes, hard=fault in _HARD, what=what,
                seconds=0.0 if fault is Fault.WALLTIME else took, survivors=self._survivors(group, nodes, took))

    def _survivors(self, group: Group, nodes: Sequence[int], took: float) -> int:
        """Attempts of the same app that have been running elsewhere for longer."""
        return sum(1 for attempt, slot in self._running()
                   if attempt.group.app is group.app and 0.0 < attempt.started < self._now - took
                   and all(share.node not in nodes for share in slot.placement.nodes))

    def _running(self) -> list[tuple[Attempt, Slot]]:
        commands = [(attempt, attempt.slot) for attempt in islice(self.planner.commands.values(), _LOOK)]
        calls = [(worker.hand[0], worker.slot) for worker in islice(self._crew.workers.values(), _LOOK) if worker.hand]
        return [(attempt, slot) for attempt, slot in commands + calls if slot is not None]

    # ---- acting

    def _obey(self, verdict: Verdict) -> list[Effect]:
        if isinstance(verdict, Quarantine):
            told = {report.task for report in self.outbox.waiting if type(report) is Exited}    # that is, not yet
            return self._put_out(verdict.node, NodeState.QUARANTINED, verdict.why,
                                 [task for task in verdict.tasks if task > 0 and task not in told])
        self._news.pop(verdict.node, None)
        self.planner.regain(verdict.node)
        return [Send(NodeNews(self._names[verdict.node], NodeState.UP, verdict.why, self._now))]

    def _put_out(self, node: int, state: NodeState, reason: str, charged: Sequence[int] = ()) -> list[Effect]:
        """Nothing more goes to this node.  charged: tasks whose failures there were reported as their own."""
        self.planner.lose(node)
        news = self._news[node] = NodeNews(self._names[node], state, reason, self._now, tasks=list(charged))
        effects: list[Effect] = []
        if self._enrolled:
            effects.append(Send(news))
            self._news[node] = NodeNews(news.name, state, reason, self._now, True)
        effects += [Steal(worker.id) for worker in self._crew.workers.values()
                    if len(worker.hand) > 1 and node in _home(worker)]
        for each in self.planner.slices.all.values():
            each.leaving |= node in _nodes(each.slot)
        self._return_unbegun(lambda group: bool(self.planner.impossible(group.resources)))
        return effects

    _LOOKS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        Heard: _heard_of, WorkerGone: _lost_with, Commanded: _commanded_there, CallDone: _called,
        SliceGone: _slice_lost, NodeGone: _nothing, Enrolled: _nothing}


def _nodes_of(place: str) -> list[int]:
    """The nodes of a place, as far as it tells."""
    found: list[int] = []
    for part in place.split():
        try:
            found += cpu_list(part.partition(":")[0])
        except ValueError:       # it was too long for people, and cut off
            continue
    return found


def _home(worker: Worker) -> list[int]:
    """Where a worker is: on its slot's node, unless that was found on another host for a task that had been blocked."""
    slot, host = worker.slot, worker.kind[2]
    return [] if slot is None else _nodes(slot) if slot.host == host else [host]


def _nodes(slot: Slot) -> list[int]:
    return [share.node for share in slot.placement.nodes]
