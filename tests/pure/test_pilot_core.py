"""The pilot's brain against a model of what it promised, in a world that misbehaves in every way that worlds do."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pilot_world import CLASSES, CORES, POOL, World

from balsamfut.messages import Enrolled, Fault, Kill, Launch, Received, Return, Stop, TooLate
from balsamfut.model import Resources
from balsamfut.pilot.events import Heard, Send
from balsamfut.pilot.hand import Broken
from balsamfut.pilot.planner import AHEAD
from balsamfut.pilot.queue import DEEPEST, Where


class Pilot(RuleBasedStateMachine):
    """Each rule is one thing that happens, and a turn after it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.task = 0
        self.stopped = False
        self.steps = 0

    @initialize(warm=st.booleans(), classes=st.lists(st.integers(0, len(CLASSES) - 1), min_size=1, max_size=6))
    def begin(self, warm: bool, classes: list[int]) -> None:
        """In the middle of things: with `warm`, some are known to be short, so hands are deep, and workers run."""
        self.world.launch([])
        if warm:
            for cls in (0, 5, 0):
                self.launch(cls, 8)
                self.world.plan()
                ran(self.world, 1e-5, 5)
        for cls in classes:
            self.launch(cls, 5)
        self.world.plan()
        for number in self.workers(unread=True):
            self.world.reads(self.world.workers[number])

    def pick(self, data: st.DataObject, things: list[Any]) -> Any:
        return data.draw(st.sampled_from(sorted(things)))

    def open(self) -> list[tuple[int, int]]:
        return [key for key in self.world.items if key not in self.world.exits]

    def order(self, keys: list[tuple[int, int]], fault: Fault) -> None:
        for key in keys:
            self.world.ordered.setdefault(key, set()).add(fault)

    # ---- the interchange

    @rule(cls=st.integers(0, len(CLASSES) - 1), count=st.integers(1, 12))
    def launch(self, cls: int, count: int) -> None:
        items = [self.world.make(self.task + number + 1, cls) for number in range(count)]
        self.task += count
        if self.stopped:
            self.order([(item.task, item.attempt) for item in items], Fault.RETURNED)
            self.world.never([(item.task, item.attempt) for item in items])
        self.world.launch(items)

    @rule(data=st.data())
    @precondition(lambda self: self.open())
    def launch_again_what_was_launched(self, data: st.DataObject) -> None:
        self.world.launch([self.world.items[self.pick(data, self.open())]])

    @rule(data=st.data())
    @precondition(lambda self: self.open() and not self.stopped)
    def launch_a_newer_attempt(self, data: st.DataObject) -> None:
        task, attempt = self.pick(data, self.open())
        if (task, attempt + 1) in self.world.items:
            return
        self.order([(task, attempt)], Fault.KILLED)
        self.order([(task, attempt)], Fault.RETURNED)    # it may itself be waiting for an older one to end
        item = self.world.make(task, self.world.items[task, attempt].cls, attempt + 1)
        self.world.launch([item])

    @rule(data=st.data())
    @precondition(lambda self: self.open())
    def kill(self, data: st.DataObject) -> None:
        key = self.pick(data, self.open())
        self.order([key], Fault.KILLED)
        self.world.handle(Kill([key]))
        self.world.never([key])

    @rule(data=st.data())
    @precondition(lambda self: self.open())
    def drop_at_enrolment(self, data: st.DataObject) -> None:
        key = self.pick(data, self.open())
        self.order([key], Fault.KILLED)
        self.world.handle(Enrolled(1, [key, (999_999, 1)]))

    @rule(data=st.data())
    @precondition(lambda self: self.open())
    def ask_for_return(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(st.sampled_from(sorted(self.open())), min_size=1, max_size=8, unique=True))
        tasks = sorted({key[0] for key in keys})
        self.order([key for key in self.open() if key[0] in tasks], Fault.RETURNED)
        self.world.handle(Return(1, [*tasks, 999_999]))
        begun = {key[0] for key, _ in self.world.bodies}
        declined = self.world.declined[-1].started
        assert 999_999 in declined
        for task in tasks:
            if task not in begun:        # that its command was made is no beginning, but need not be taken back
                assert task not in self.world.core.attempts and task not in declined, "kept what never began"

    @rule()
    def acknowledge(self) -> None:
        unacknowledged = self.world.core.outbox.unacknowledged
        if unacknowledged:
            self.world.handle(Received(min(unacknowledged)))

    @rule(grace=st.sampled_from([0.0, 2.0]))
    @precondition(lambda self: self.steps > 12 and not self.stopped)
    def stop(self, grace: float) -> None:
        self.stopped = True
        self.order(self.open(), Fault.PILOT)
        self.world.handle(Stop(grace))
        self.world.never(self.open())

    # ---- workers

    def workers(self, *, busy: bool | None = None, unread: bool = False) -> list[int]:
        return [number for number, worker in self.world.workers.items()
                if (busy is None or (worker.current is not None and not worker.blocked) == busy)
                and (not unread or (worker.unread and worker.current is None and worker.ending < 9))]

    @rule(data=st.data(), count=st.integers(1, 20), ok=st.booleans(), took=st.sampled_from([0.00001, 0.001, 1.0]))
    @precondition(lambda self: self.workers(unread=True))
    def run_tasks(self, data: st.DataObject, count: int, ok: bool, took: float) -> None:
        """A worker reads and finishes some tasks; the agent may hear of it later."""
        worker = self.world.workers[self.pick(data, self.workers(unread=True))]
        while count and worker.unread:
            self.world.reads(worker)
            count -= 1
            if count or ok:
                self.world.finishes(worker, ok or count > 1, took)

    @rule(data=st.data(), ok=st.booleans())
    @precondition(lambda self: self.workers(busy=True))
    def finish(self, data: st.DataObject, ok: bool) -> None:
        self.world.finishes(self.world.workers[self.pick(data, self.workers(busy=True))], ok, 0.1)

    @rule(data=st.data())
    @precondition(lambda self: any(worker.said for worker in self.world.workers.values()))
    def hear(self, data: st.DataObject) -> None:
        self.world.hears(self.pick(data, [number for number, worker in self.world.workers.items() if worker.said]))

    @rule(data=st.data())
    @precondition(lambda self: self.workers(busy=True))
    def block(self, data: st.DataObject) -> None:
        self.world.blocks(self.world.workers[self.pick(data, self.workers(busy=True))])

    @rule(data=st.data(), ok=st.booleans())
    @precondition(lambda self: self.waiting())
    def finish_while_a_thread_waits(self, data: st.DataObject, ok: bool) -> None:
        self.world.finishes(self.world.workers[self.pick(data, self.waiting())], ok, 0.1)

    def waiting(self) -> list[int]:
        return [number for number, worker in self.world.workers.items() if worker.blocked and not worker.asking]

    @rule(data=st.data())
    @precondition(lambda self: self.waiting())
    def want_back(self, data: st.DataObject) -> None:
        self.world.wants_back(self.world.workers[self.pick(data, self.waiting())])

    @rule(data=st.data())
    @precondition(lambda self: self.world.workers)
    def worker_dies(self, data: st.DataObject) -> None:
        number = self.pick(data, list(self.world.workers))
        if self.world.workers[number].ready or self.world.workers[number].ending >= 0:
            self.world.dies(number)

    @rule()
    def bury(self) -> None:
        """Those that were told to end do so."""
        for number in [number for number, worker in self.world.workers.items() if worker.ending >= 0]:
            self.world.dies(number)

    # ---- commands and time

    @rule(data=st.data(), fault=st.sampled_from([Fault.NONE, Fault.NONE, Fault.TASK, Fault.LAUNCHER]))
    @precondition(lambda self: self.world.commands)
    def command_ends(self, data: st.DataObject, fault: Fault) -> None:
        self.world.command_ends(self.pick(data, list(self.world.commands)), fault)

    @rule(racing=st.booleans())
    def workers_race(self, racing: bool) -> None:
        self.world.racing = racing

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.passes(seconds)

    # ---- what must hold

    @invariant()
    def turn_ends(self) -> None:
        self.steps += 1
        self.world.plan()
        self.world.check()

    def teardown(self) -> None:
        """Whatever happened, everything comes to an end when workers and commands do what they should."""
        world = self.world
        for _ in range(10_000):
            if not self.open():
                break
            for number, worker in list(world.workers.items()):
                if worker.ending > 0 or (worker.ending == 0 and worker.current is None):
                    world.dies(number)
                    continue
                if worker.blocked and not worker.asking:
                    world.wants_back(worker)
                if worker.current is not None and not worker.blocked:
                    world.finishes(worker, True, 0.01)
                if worker.unread and worker.current is None:
                    world.reads(worker)
                world.hears(number)
            for key in list(world.commands):
                world.command_ends(key, Fault.NONE)
            world.passes(0.01)
            world.plan()
            world.check()
        assert not self.open(), "something never ended"
        assert not any(worker.unread for worker in world.workers.values())
        assert world.finished == world.core.stopping == (self.stopped or world.core.stopping)


class Block(Pilot):
    """A pilot whose block comes to its end."""

    @initialize(left=st.sampled_from([3.0, 14.0, 30.0]))
    def ends(self, left: float) -> None:
        core = self.world.core
        core.block, core.hook_time, core.planner.ends = True, 1.0, self.world.now + left

    @rule()
    def its_end_comes_near(self) -> None:
        left = self.world.ends - self.world.now
        self.world.passes(max(0.0, left - 13.0 if left > 13.0 else left - 6.0 if left > 6.0 else left))


Pilot.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPilot = Pilot.TestCase
Block.TestCase.settings = Pilot.TestCase.settings
TestBlock = Block.TestCase


def ran(world: World, seconds: float, rounds: int = 3) -> None:
    """Let every worker run what it has, each task for so long."""
    for _ in range(rounds):
        for number, worker in list(world.workers.items()):
            while worker.unread:
                world.reads(worker)
                world.finishes(worker, True, seconds)
            world.hears(number)
        world.plan()


def test_short_tasks_are_queued_ahead_and_long_ones_are_not() -> None:
    for seconds, deepest in ((1e-5, DEEPEST), (0.001, 5), (0.004, 1), (1.0, 1)):
        world = World()
        world.launch([world.make(number, 0) for number in range(1, 4000)])
        world.plan()
        assert [len(worker.unread) for worker in world.workers.values()] == [1] * CORES   # nothing is known yet
        ran(world, seconds)
        assert max(len(worker.unread) for worker in world.workers.values()) == deepest


def test_work_is_shared_out_before_hands_are_filled() -> None:
    world = World()
    world.launch([world.make(number, 0) for number in range(1, 5)])
    world.plan()
    ran(world, 1e-5)
    world.launch([world.make(number, 0) for number in range(11, 19)])
    world.plan()
    hands = sorted(len(worker.unread) for worker in world.workers.values())
    assert sum(hands) == 8 and hands[0] >= 1


def test_commands_are_made_ahead_once_that_is_known_to_be_quick() -> None:
    world = World()
    world.launch([world.make(number, 4) for number in range(1, 50)])     # of two cores each: two at a time
    world.plan()
    ran(world, 1e-4, 1)
    assert len(world.commands) == 2
    ran(world, 1e-4, 3)
    made = [each for each in world.core.attempts.values() if each.command is not None]
    assert 2 + AHEAD <= len(made) <= 2 + 2 * AHEAD and len(world.commands) == 2
    before = world.bodies.copy()
    world.command_ends(next(iter(world.commands)), Fault.LAUNCHER)
    world.plan()
    assert len(world.commands) == 2
    assert [stage for _, stage in (world.bodies - before)] == [None]     # nobody had to wait for it to be made
    for _ in range(100):
        for key in list(world.commands):
            world.command_ends(key, Fault.NONE)
        ran(world, 1e-4, 1)
    assert len(world.exits) == 49


def test_making_commands_ahead_starts_no_more_workers_than_there_are_cores() -> None:
    world = World()
    world.launch([world.make(number, 4) for number in range(1, 400)])
    world.plan()
    started = set(world.workers)
    ran(world, 1e-4, 1)
    while len(world.exits) < 399:
        for key in list(world.commands):         # faster than a worker says what it has made
            world.command_ends(key, Fault.NONE)
            world.plan()
            started |= set(world.workers)
        ran(world, 1e-4, 1)
    assert len(started) <= world.core._crew.cores


def test_what_lies_behind_a_long_task_is_taken_back() -> None:
    world = World()
    world.launch([world.make(number, 0) for number in range(1, 5)])
    world.plan()
    ran(world, 1e-5)
    world.launch([world.make(number, 0) for number in range(11, 200)])
    world.plan()
    worker = next(worker for worker in world.workers.values() if len(worker.unread) > 3)
    world.reads(worker)
    world.passes(0.02)
    world.plan()
    assert worker.unread == []
    assert world.core.attempts[worker.current.item.task].announced  # type: ignore[union-attr]


def warm_world(queued: int) -> World:
    """Short tasks in deep hands, and each worker has read one."""
    world = World()
    world.launch([world.make(number, 0) for number in range(1, 9)])
    world.plan()
    ran(world, 1e-5)
    world.launch([world.make(number, 0) for number in range(11, 11 + queued)])
    world.plan()
    for worker in world.workers.values():
        world.reads(worker)
    return world


def test_a_task_that_waits_gives_back_its_slot_and_what_lies_behind_it() -> None:
    world = warm_world(60)
    number, worker = next((number, worker) for number, worker in world.workers.items() if worker.unread)
    world.blocks(worker)
    world.hears(number)
    assert worker.unread == []
    world.plan()
    world.check()
    assert len(world.workers) == CORES + 1            # its core has another worker now
    world.wants_back(worker)
    world.hears(number)
    world.plan()
    assert worker.blocked                             # there is no core free
    other = next(other for other in world.workers if other != number and world.workers[other].current is not None)
    while world.workers[other].current is not None or world.workers[other].unread:
        if world.workers[other].current is None:
            world.reads(world.workers[other])
        world.finishes(world.workers[other], True, 1e-5)
        world.hears(other)
        world.plan()
    assert not worker.blocked, "queued work went before a task that wants to go on"


def test_a_task_may_end_or_die_while_it_waits() -> None:
    for how in ("ends", "dies"):
        world = warm_world(60)
        number, worker = next((number, worker) for number, worker in world.workers.items() if worker.unread)
        world.blocks(worker)
        world.hears(number)
        world.plan()
        if how == "ends":
            world.finishes(worker, True, 1.0)
            world.hears(number)
        else:
            world.wants_back(worker)
            world.hears(number)
            world.plan()
            world.dies(number)
        world.plan()
        world.check()
        for _ in range(5):
            ran(world, 1e-5, 10)
            world.check()


def test_a_result_that_crosses_the_order_to_kill_counts_and_its_worker_gets_no_more() -> None:
    world = warm_world(60)
    number, worker = next((number, worker) for number, worker in world.workers.items() if worker.unread)
    assert worker.current is not None
    task = worker.current.item.task
    world.finishes(worker, True, 1e-5)
    world.handle(Kill([(task, 1)]))
    world.hears(number)
    world.plan()                                      # World.hand would complain
    assert worker.ending == 9 and world.exits[task, 1].fault is Fault.NONE
    world.dies(number)
    world.plan()
    world.check()


def test_a_walltime_ends_one_task_of_a_hand_and_no_other() -> None:
    world = World()
    for cls in (5, 5):
        world.launch([world.make(100 * cls + len(world.items), cls) for _ in range(20)])
        world.plan()
        ran(world, 1e-5, 10)
    world.launch([world.make(number, 5) for number in range(1000, 1040)])
    world.plan()
    number, worker = next((number, worker) for number, worker in world.workers.items() if len(worker.unread) > 2)
    world.reads(worker)
    assert worker.current is not None
    slow, key = worker.current, worker.current.key
    while not world.workers[number].ending > 0:
        world.passes(0.3)
        world.plan()
    world.dies(number)
    world.plan()
    assert slow.failure is not None and key not in world.exits       # on_timeout is to be asked
    for _ in range(20):
        ran(world, 1e-5)
    assert world.exits[key].fault is Fault.WALLTIME
    assert {report.fault for each, report in world.exits.items() if each != key} == {Fault.NONE}


def test_higher_priority_takes_hands_back() -> None:
    world = World()
    world.launch([world.make(number, 0) for number in range(1, 5)])
    world.plan()
    ran(world, 1e-5)
    world.launch([world.make(number, 0) for number in range(11, 200)])
    world.plan()
    for worker in world.workers.values():
        world.reads(worker)
    world.launch([world.make(1000, 1)])
    world.plan()
    assert all(not worker.unread for worker in world.workers.values())
    first = next(number for number, worker in world.workers.items() if worker.current is not None)
    world.finishes(world.workers[first], True, 1e-5)
    world.hears(first)
    world.plan()
    assert world.workers[first].unread[0].item.task == 1000


def test_a_wide_request_is_not_starved_by_small_ones() -> None:
    world = World()
    world.launch([world.make(number, 0) for number in range(1, CORES + 1)])
    world.plan()
    world.launch([world.make(100, 2)])            # three of four cores
    number, begun = 1000, 0.0
    while world.core.attempts[100].where is Where.QUEUED:
        number += 1
        world.launch([world.make(number, 0)])
        worker_number = number % len(world.workers) + 1
        worker = world.workers[worker_number]
        if worker.unread:
            world.reads(worker)
            world.finishes(worker, True, 1.0)
            world.hears(worker_number)
        world.passes(1.0)
        world.plan()
        begun += 1.0
        assert begun < 60, "it waits for ever"


def test_equal_launches_are_taken_once_and_older_attempts_give_way() -> None:
    world = World()
    first, second = world.make(1, 0), world.make(1, 0, 2)
    world.launch([first, first])
    world.ordered[1, 1] = {Fault.KILLED}
    world.launch([second, first])
    world.plan()
    assert world.exits[1, 1].fault is Fault.KILLED
    ran(world, 0.1)
    assert world.exits[1, 2].fault is Fault.NONE and world.core.attempts == {}


def test_a_pool_whose_initializer_fails_takes_its_tasks_with_it_and_no_others() -> None:
    world = World()
    world.ordered = {(number, 1): {Fault.POOL} for number in range(1, 20)}
    world.launch([*[world.make(number, 0) for number in range(1, 10)], world.make(50, 3)])
    world.plan()
    number, worker = next(iter(world.workers.items()))
    worker.unread.clear()
    world.handle(Heard(number, [Broken(b"pickled", "no licence")]))
    world.plan()
    lost = [key for key, report in world.exits.items() if report.fault is Fault.POOL]
    assert len(lost) == 9 - (CORES - 1) and all(world.exits[key].error == "no licence" for key in lost)
    world.launch([world.make(15, 0)])
    world.plan()
    assert world.exits[15, 1].fault is Fault.POOL and world.exits[15, 1].payload == b"pickled"
    assert POOL in world.core._crew.broken and (50, 1) not in world.exits


def test_workers_that_die_before_they_can_run_anything_break_the_pool() -> None:
    world = World()
    world.ordered = {(1, 1): {Fault.POOL}}
    world.launch([world.make(1, 0)])
    for _ in range(3):
        world.plan()
        assert (1, 1) not in world.exits
        world.dies(max(world.workers))
    world.plan()
    assert world.exits[1, 1].fault is Fault.POOL and "it died" in world.exits[1, 1].error
    assert not world.workers


def test_what_cannot_be_placed_at_all_is_refused() -> None:
    world = World()
    item = world.make(1, 0)
    world.launch([])
    wide = type(item)(1, 1, 0, item.spec, again=Resources(threads_per_rank=CORES + 1))
    world.handle(Launch([wide]))
    world.plan()
    assert world.exits[1, 1].fault is Fault.LAUNCHER and str(CORES + 1) in world.exits[1, 1].error


def test_what_is_held_includes_ends_that_are_not_acknowledged() -> None:
    world = World()
    world.launch([world.make(1, 0), world.make(2, 0)])
    world.plan()
    worker = world.workers[1]
    world.reads(worker)
    world.finishes(worker, True, 0.1)
    world.hears(1)
    world.plan()
    assert sorted(world.core.held()) == [(1, 1), (2, 1)]
    world.handle(Received(99))
    assert sorted(world.core.held()) == [(2, 1)]


def test_a_pilot_that_stops_says_so_to_each_interchange_before_it_hands_anything_back() -> None:
    world = World()
    world.launch([world.make(task, 0) for task in range(1, 4)])
    world.handle(Stop(5.0))
    assert [effect for effect in world.core.wind_up(world.now) if isinstance(effect, Send)] == [
        Send(TooLate([], stops=True))]
    assert world.core.wind_up(world.now) == []
    world.handle(Enrolled(2, []))
    assert world.core.wind_up(world.now) == [Send(TooLate([], stops=True))]
