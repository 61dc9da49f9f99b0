"""A world for the pilot's brain: workers, commands and hardware that do what they are told, and a model of what was
promised, which is told everything that really happens and compares it with what the brain reports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from balsamfut import platforms
from balsamfut.messages import (
    Declined,
    Exited,
    Fault,
    Item,
    Launch,
    Ran,
    Started,
    TooLate,
)
from balsamfut.model import AppKind, AppSpec, Extra, Hook, Options, Pool, Resources, TaskClass, TaskSpec
from balsamfut.pilot.core import Core
from balsamfut.pilot.events import (
    Again,
    Commanded,
    Effect,
    EndWorker,
    Finish,
    GrantSlot,
    Hand,
    Heard,
    Key,
    Send,
    SignalCommand,
    StartCommand,
    StartWorker,
    Steal,
    Stolen,
    Tick,
    WorkerGone,
)
from balsamfut.pilot.hand import Blocked, FromWorker, Prepared, Ready, Result, Running, Stage, Unblocked
from balsamfut.pilot.queue import Attempt, Where
from balsamfut.placement import Packer, Placement

CORES = 4
POOL = b"p" * 16
HOOKED = Hook.POSTPROCESS | Hook.ON_ERROR | Hook.ON_TIMEOUT


def app(number: int, kind: AppKind, hooks: Hook = Hook(0)) -> AppSpec:
    return AppSpec(f"app{number}", kind, bytes([number]) * 16, hooks)


APPS = [app(1, AppKind.PYTHON), app(2, AppKind.TEMPLATE),
        app(3, AppKind.COMMAND, HOOKED), app(4, AppKind.PYTHON, HOOKED)]
CLASSES = [
    TaskClass(APPS[0].digest, POOL, Resources(), Options()),
    TaskClass(APPS[0].digest, POOL, Resources(), Options(priority=5)),
    TaskClass(APPS[0].digest, POOL, Resources(threads_per_rank=3), Options(walltime=1.0)),
    TaskClass(APPS[1].digest, POOL, Resources(), Options(walltime=1.0)),
    TaskClass(APPS[2].digest, POOL, Resources(threads_per_rank=2), Options()),
    TaskClass(APPS[3].digest, POOL, Resources(), Options(walltime=1.0, priority=-1)),
    TaskClass(APPS[0].digest, POOL, Resources(), Options(stop_grace=12.0)),
    TaskClass(APPS[2].digest, POOL, Resources(), Options(walltime=1000.0, checkpoint=True)),
]
SPECS = {spec.digest: spec for spec in APPS}


class Machine(Packer):
    """One node with some cores; notices what is given back twice."""

    def __init__(self) -> None:
        super().__init__(platforms.workstation(CORES).node, ("here",))
        self.out: list[Placement] = []

    def place(self, resources: Resources, into: bool = False) -> Placement | None:
        placement = super().place(resources, into)
        if placement is not None:
            self.out.append(placement)
        return placement

    def retake(self, placement: Placement) -> bool:
        taken = super().retake(placement)
        if taken:
            self.out.append(placement)
        return taken

    def free(self, placement: Placement) -> None:
        self.out.remove(placement)       # raises where it was not given out
        super().free(placement)

    @property
    def free_cores(self) -> int:
        return self._cores[0].bit_count()


@dataclass
class FakeWorker:
    unread: list[Attempt] = field(default_factory=list)
    current: Attempt | None = None
    since: float = 0.0
    blocked: bool = False
    asking: bool = False             # it wants a slot again
    said: list[FromWorker] = field(default_factory=list)    # not heard yet
    ready: bool = False
    ending: int = -1                 # the last signal; 0: it may leave
    killed: bool = False             # ... and not only asked to end


class World:
    """Performs effects at once, as the agent does, and keeps the books that the tests compare."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.machine = Machine()
        self.core = Core(self.machine, lambda resources, placement: ((), None, 0), lambda exc: str(exc).encode(),
                         cores=CORES)
        self.workers: dict[int, FakeWorker] = {}
        self.commands: dict[Key, Attempt] = {}
        self.finished = False
        self.racing = False              # workers read on while their queues are emptied
        self.declined: list[Declined] = []
        self.closed: set[int] = set()    # classes that are to be sent no more
        # ---- the model
        self.items: dict[Key, Item] = {}
        self.bodies: Counter[tuple[Key, Stage | None]] = Counter()    # what of the user's has begun
        self.worked: set[Key] = set()            # the function, or the command, ended well
        self.died_under: set[Key] = set()        # its worker died by itself
        self.ordered: dict[Key, set[Fault]] = {}    # ends that somebody asked for, or that time asked for
        self.forbidden: set[Key] = set()         # it must not begin any more
        self.signalled: set[Key] = set()         # commands that were told to end
        self.killed: set[Key] = set()            # ... and not asked
        self.exits: dict[Key, Exited] = {}
        self.started: Counter[Key] = Counter()
        self.told = False

    # ---- driving

    def launch(self, items: list[Item]) -> None:
        first = not self.told
        self.told = True
        if first:
            self.handle(Launch(items, list(enumerate(CLASSES)), APPS, [], [(POOL, Pool("python", (), "/"))]))
        else:
            self.handle(Launch(items))

    def make(self, task: int, cls: int, attempt: int = 1) -> Item:
        extra = Extra(command="true") if SPECS[CLASSES[cls].app].kind is AppKind.TEMPLATE else None
        item = Item(task, attempt, cls, TaskSpec(task, cls, extra=extra))
        self.items[item.task, item.attempt] = item
        return item

    def handle(self, event: Any) -> None:
        self.perform(self.core.handle(event, self.now))

    def plan(self) -> None:
        """The end of a turn."""
        self.perform(self.core.wind_up(self.now))
        self.perform(self.core.plan(self.now))
        if self.ends:
            self.never([key for key in self.items if key not in self.exits and self.told_to_stop(key)])
        message = self.core.outbox.pack()
        for report in message.reports if message is not None else []:
            self.read(report)

    @property
    def ends(self) -> float:
        """When all tasks have to be over; 0.0: it is no block."""
        return self.core.planner.ends

    def told_to_stop(self, key: Key) -> bool:
        """The block's end is as near as the task wants to know of it."""
        return self.ends - self.now <= CLASSES[self.items[key].cls].options.stop_grace

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartWorker():
                    assert effect.worker not in self.workers
                    self.workers[effect.worker] = FakeWorker()
                case Hand():
                    self.hand(effect)
                case Steal():
                    worker = self.workers[effect.worker]
                    self.race(worker)
                    keys = [attempt.key for attempt in worker.unread]
                    worker.unread.clear()
                    running = None if worker.current is None else worker.current.key
                    self.handle(Stolen(effect.worker, keys, running))
                case GrantSlot():
                    worker = self.workers[effect.worker]
                    assert worker.blocked and worker.asking
                    worker.blocked = worker.asking = False
                case EndWorker():
                    worker = self.workers[effect.worker]
                    if effect.signal == 0:
                        assert not worker.unread and worker.current is None, "a worker that is busy was told to leave"
                    worker.ending = max(worker.ending, effect.signal)
                    worker.killed |= effect.signal == 9
                case StartCommand():
                    self.command(effect.attempt)
                case SignalCommand():
                    self.signalled.add(effect.key)
                    if effect.signal == 9:
                        self.killed.add(effect.key)
                case Again():
                    self.handle(effect.event)
                case Send(TooLate(classes)):
                    self.closed |= set(classes)
                case Send():
                    assert isinstance(effect.message, Declined)
                    self.declined.append(effect.message)
                case Finish():
                    assert not self.finished
                    self.finished = True

    def race(self, worker: FakeWorker) -> None:
        """A worker may read on while its queue is being emptied: then it gets what was still there."""
        if not self.racing or not worker.unread or worker.ending >= 9 or worker.blocked:
            return
        if worker.current is not None:
            self.finishes(worker, True, 1e-5)
        worker.unread.insert(0, worker.unread.pop())
        self.reads(worker)

    def hand(self, effect: Hand) -> None:
        worker = self.workers[effect.worker]
        assert worker.ending < 0, "work for a worker that was told to end"
        assert effect.attempts
        worker.unread += effect.attempts
        order = [attempt.seq for attempt in effect.attempts]
        assert order == sorted(order), "out of order in a hand"
        lowest = min(attempt.group.priority for attempt in effect.attempts)
        group = effect.attempts[0].group
        for other in self.core.attempts.values():   # nothing that could run there in their place ranks before them
            if other.where is Where.QUEUED and not group.hooks and other.group.resources == group.resources:
                # What takes longer may have to wait where what takes less ends before a reservation's time.
                assert other.group.priority <= lowest or other.group.level > group.level

    def command(self, attempt: Attempt) -> None:
        assert attempt.key not in self.commands
        self.commands[attempt.key] = attempt
        self.bodies[attempt.key, None] += 1

    # ---- what workers and commands do

    def reads(self, worker: FakeWorker) -> None:
        if not worker.ready:
            worker.ready = True
            worker.said.append(Ready())
        worker.current = worker.unread.pop(0)
        worker.since = self.now
        assert worker.current.stage is not None
        self.bodies[worker.current.key, worker.current.stage] += 1

    def finishes(self, worker: FakeWorker, ok: bool, took: float) -> None:
        attempt, worker.current = worker.current, None
        assert attempt is not None and not worker.asking
        worker.blocked = False           # a thread of it may be waiting still: it no longer counts
        key = attempt.key
        if ok and attempt.stage is Stage.PREPARE:
            worker.said.append(Prepared(*key, "true", took))
            return
        if attempt.stage is Stage.ABORTED or (attempt.stage is Stage.FINISH and attempt.failure is not None):
            if attempt.fault is Fault.BLOCK and ok:      # its hook lets it go on
                worker.said.append(Result(*key, False, self.now - took, self.now, None))
                return
            ok = False
        elif ok and attempt.stage is Stage.CALL:
            self.worked.add(key)
        worker.said.append(Result(*key, ok, self.now - took, self.now, b"value" if ok else b"error"))

    def hears(self, number: int) -> None:
        worker = self.workers[number]
        said, worker.said = worker.said, []
        if said:
            self.handle(Heard(number, said))

    def dies(self, number: int) -> None:
        """A worker ends: by itself, or because it was told to."""
        worker = self.workers[number]
        self.hears(number)
        current = worker.current
        if current is not None and worker.ending <= 0:
            self.died_under.add(current.key)
        running = None if current is None else Running(*current.key, worker.since, 0, 0)
        self.handle(WorkerGone(number, running, "it died"))
        del self.workers[number]

    def command_ends(self, key: Key, fault: Fault) -> None:
        del self.commands[key]
        if fault is Fault.NONE and key not in self.signalled:
            self.worked.add(key)
        code = {Fault.NONE: 0, Fault.TASK: 3}.get(fault, 1)
        payload = None if fault is Fault.PILOT else b"result"
        self.handle(Commanded(key, code, self.now - 0.1, fault, payload))

    def blocks(self, worker: FakeWorker) -> None:
        assert worker.current is not None
        worker.blocked = True
        worker.said.append(Blocked(worker.current.item.task))

    def wants_back(self, worker: FakeWorker) -> None:
        assert worker.current is not None
        worker.asking = True
        worker.said.append(Unblocked(worker.current.item.task))

    def passes(self, seconds: float) -> None:
        self.now += seconds
        for key, attempt in [(each.key, each) for each in self.core.attempts.values()]:
            if attempt.group.task_class.options.walltime and attempt.where is not Where.QUEUED:
                self.ordered.setdefault(key, set()).add(Fault.WALLTIME)
        seen = [(number, Running(*worker.current.key, worker.since, 0, 0)) for number, worker in self.workers.items()
                if worker.current is not None and number in self.core.planner.watched]
        self.handle(Tick(seen))

    def never(self, keys: list[Key]) -> None:
        """From now on these must not begin, if they have not."""
        begun = {key for key, _ in self.bodies}
        self.forbidden |= {key for key in keys if key not in begun}

    # ---- comparing

    def read(self, report: Started | Exited | Ran) -> None:
        """Compare a report with what happened."""
        key = (report.task, report.attempt)
        assert key in self.items, "a report about something that was never launched"
        assert key not in self.exits, "a report after the end"
        bodies = {stage: count for (each, stage), count in self.bodies.items() if each == key}
        if isinstance(report, Ran):
            assert bodies.get(None) == 1
            return
        if isinstance(report, Started):
            self.started[key] += 1
            assert self.started[key] == 1 and bodies
            return
        self.exits[key] = report
        self.check_end(key, report, bodies)

    def check_end(self, key: Key, report: Exited, bodies: dict[Stage | None, int]) -> None:
        asked = self.ordered.get(key, set())
        match report.fault:
            case Fault.NONE:
                assert key in self.worked, "success without a run"
                assert report.payload is not None
                assert set(bodies) == self.stages(key), "a stage was left out"
            case Fault.TASK:
                assert bodies and report.payload is not None
            case Fault.WORKER:
                assert key in self.died_under, "charged for a death that was not under it"
            case Fault.RETURNED:
                assert bodies.keys() <= {Stage.PREPARE}, "handed back though it had started"
                assert asked & {Fault.RETURNED, Fault.PILOT} or self.ends
            case Fault.PILOT:
                assert Fault.PILOT in asked and (not self.core.block or set(bodies) == {None, Stage.PREPARE})
            case Fault.BLOCK:
                assert self.core.block and (Fault.PILOT in asked or self.told_to_stop(key)), "cut off before its time"
            case _:
                assert report.fault in asked or report.fault is Fault.LAUNCHER
        hooked = SPECS[CLASSES[self.items[key].cls].app].hooks
        if hooked and report.fault in (Fault.WALLTIME, Fault.WORKER) and not self.core.stopping:
            assert bodies.keys() & {Stage.ABORTED, Stage.FINISH}, "on_error or on_timeout was not asked"

    def stages(self, key: Key) -> set[Stage | None]:
        """What an attempt goes through that succeeds."""
        app = SPECS[CLASSES[self.items[key].cls].app]
        if app.kind is AppKind.PYTHON:
            return {Stage.CALL}
        return {Stage.PREPARE, None, Stage.FINISH} if app.kind is AppKind.COMMAND else {None}

    def check(self) -> None:
        """What holds after each turn."""
        open_keys = {key for key in self.items if key not in self.exits}
        held = {attempt.key for attempt in self.core.attempts.values()}
        held |= {(item.task, item.attempt) for item in self.core._successors.values()}
        assert held == open_keys, "what the brain has is not what it owes"
        for (key, stage), count in self.bodies.items():
            assert count <= 1, f"{stage} of {key} began twice"
            assert key not in self.forbidden, f"{stage} of {key} began though it was ended before"
        in_use = sum(len(each.nodes[0].ranks[0].cores) for each in self.machine.out)
        assert in_use + self.machine.free_cores == CORES
        for group in {id(each.group): each.group for each in self.core.attempts.values()}.values():
            order = [each.seq for each in group.queue]
            assert order == sorted(order), "out of order in the queue"
        running = [each.group.resources for each in self.commands.values()]
        for number, worker in self.workers.items():
            ahead = self.core._crew.workers[number].slot is None      # it only makes commands, in no time
            if worker.current is not None and worker.blocked:
                assert not worker.unread or worker.said, "work behind a task that waits"
            elif worker.current is not None and not (ahead and worker.current.stage is Stage.PREPARE):
                running.append(worker.current.group.resources)
        assert sum(each.ranks * each.cores_per_rank for each in running) <= CORES, "two on one core"
        workers = self.core._crew.workers.values()
        assert self.core._crew.blocked == sum(worker.blocked for worker in workers)
        assert {worker.id for worker in self.core.planner.returning} <= {each.id for each in workers if each.blocked}
        self.check_not_idle()
        if self.ends and self.now >= self.ends + self.core.hook_time:
            assert self.killed >= set(self.commands), "a command outlives its block"
            assert all(worker.killed for worker in self.workers.values() if worker.current is not None)

    def check_not_idle(self) -> None:
        """Nothing waits that would fit, but for the sake of what ranks before it and has a reservation."""
        planner = self.core.planner
        queued = [attempt for attempt in self.core.attempts.values() if attempt.where is Where.QUEUED]
        head = next((each for each in self.core.attempts.values() if each.seq == planner.reserve.holder), None)
        assert (head is None) == (planner.reserve.holder == 0), "something is held for nobody"
        if head is not None and head.where is Where.QUEUED:
            assert self.needs(head) > self.machine.free_cores, "it waits though there is room"
        elif head is not None:
            assert head.where is Where.HAND and head.stage is Stage.PREPARE, "it has its place"
        first = None if head is None else (not head.group.hooks, -head.group.priority, head.seq)
        for each in queued:
            if (first is None or each.group.rank < first) and (not self.ends or each.group.fits(self.ends - self.now)):
                # While a worker makes a command ahead, all may wait for it: the command takes the place in no time.
                assert (self.needs(each) > self.machine.free_cores
                        or self.makes_ahead()), "something waits though there is room"

    def makes_ahead(self) -> bool:
        return any(worker.slot is None and worker.hand and not worker.blocked
                   for worker in self.core._crew.workers.values())

    def needs(self, attempt: Attempt) -> int:
        return attempt.group.resources.ranks * attempt.group.resources.cores_per_rank
