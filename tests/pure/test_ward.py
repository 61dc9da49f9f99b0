"""What a pilot does about its nodes, in a small world of four: what goes where, what is said, what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from balsamfut import platforms
from balsamfut.messages import Enrolled, Exited, Fault, Item, Launch, NodeNews, NodeState, Spent
from balsamfut.model import AppKind, AppSpec, Extra, Options, Pool, Resources, TaskClass, TaskSpec
from balsamfut.pilot.events import (
    Again,
    Commanded,
    Effect,
    EndWorker,
    Hand,
    Heard,
    NodeGone,
    Send,
    Slot,
    StartCommand,
    StartWorker,
    Steal,
    Stolen,
    Tick,
    WorkerGone,
)
from balsamfut.pilot.hand import Ready, Result, Running
from balsamfut.pilot.launching import Launching
from balsamfut.pilot.queue import Attempt, Group
from balsamfut.pilot.slicenews import CallDone, SliceGone
from balsamfut.pilot.slices import Slice
from balsamfut.pilot.ward import Ward
from balsamfut.placement import NodeShare, Packer, Placement
from balsamfut.platforms import Launcher

APPS = [AppSpec("shell", AppKind.TEMPLATE, b"s" * 16), AppSpec("call", AppKind.PYTHON, b"c" * 16),
        AppSpec("other", AppKind.TEMPLATE, b"o" * 16)]
CLASSES = [TaskClass(APPS[0].digest, b"p" * 16, Resources(ranks_per_node=2, num_nodes=1, mpi=True), Options()),
           TaskClass(APPS[1].digest, b"p" * 16, Resources(), Options()),
           TaskClass(APPS[0].digest, b"p" * 16, Resources(num_nodes=4), Options()),
           TaskClass(APPS[2].digest, b"p" * 16, Resources(ranks_per_node=2, num_nodes=1, mpi=True), Options()),
           TaskClass(APPS[0].digest, b"p" * 16, Resources(mpi=True), Options())]
SHELL, CALL, WIDE, OTHER, HALF = range(5)


class World:
    """Four nodes of two cores, each a host; performs nothing by itself."""

    def __init__(self, nodes: int = 4, enrolled: bool = True) -> None:
        self.names = [f"n{index}" for index in range(nodes)]
        self.now = 1000.0
        self.ward = Ward(
            Packer(platforms.workstation(2).node, self.names),
            lambda resources, placement: ((), None, placement.nodes[0].node), lambda exc: str(exc).encode(),
            cores=2 * nodes)
        self.commands: dict[int, Attempt] = {}       # by task
        self.workers: dict[int, list[Attempt]] = {}  # what each has in its hand
        self.sent: list[Any] = []
        self.exits: dict[int, Exited] = {}
        self.tasks = 0
        if enrolled:
            self.handle(Enrolled(0, []))
        self.handle(Launch([], list(enumerate(CLASSES)), APPS, [], [(b"p" * 16, Pool("python", (), "/"))]))

    def launch(self, cls: int, count: int = 1) -> list[int]:
        numbers = list(range(self.tasks + 1, self.tasks + count + 1))
        self.tasks += count
        extra = None if cls == CALL else Extra(command="true")
        self.handle(Launch([Item(task, 1, cls, TaskSpec(task, cls, extra=extra)) for task in numbers]))
        self.plan()
        return numbers

    def handle(self, event: Any) -> None:
        self.perform(self.ward.handle(event, self.now))

    def plan(self) -> None:
        self.perform(self.ward.plan(self.now))
        message = self.ward.outbox.pack()
        for report in message.reports if message is not None else []:
            if isinstance(report, Exited):
                self.exits[report.task] = report

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartCommand():
                    self.commands[effect.attempt.item.task] = effect.attempt
                case StartWorker():
                    self.workers[effect.worker] = []
                case Hand():
                    self.workers[effect.worker] += effect.attempts
                case Steal():
                    hand = self.workers[effect.worker]
                    back, hand[1:] = [attempt.key for attempt in hand[1:]], []
                    self.handle(Stolen(effect.worker, back, hand[0].key if hand else None))
                case Send():
                    self.sent.append(effect.message)
                case Again():
                    self.handle(effect.event)
                case EndWorker():
                    pass

    def node(self, task: int) -> int:
        slot = self.commands[task].slot
        assert slot is not None
        return slot.placement.nodes[0].node

    def ends(self, task: int, fault: Fault = Fault.NONE, error: str = "", blamed: str = "", took: float = 1.0) -> None:
        attempt = self.commands.pop(task)
        self.handle(Commanded(attempt.key, 0 if fault is Fault.NONE else 1, self.now - took, fault, b"", error, None,
                              blamed))
        self.plan()

    def warm_up(self, cls: int = SHELL, rounds: int = 30) -> None:
        """Tasks of a class succeed everywhere."""
        for _ in range(rounds):
            for task in self.launch(cls, len(self.names)):
                self.ends(task)

    def news(self) -> list[tuple[str, NodeState, bool]]:
        return [(message.name, message.state, message.again) for message in self.sent if isinstance(message, NodeNews)]

    def break_node(self, bad: int, fault: Fault = Fault.LAUNCHER, most: int = 60) -> int:
        """Tasks fail on one node and succeed on others until it is out; returns how many it had."""
        eaten = 0
        while not self.news() and eaten < most:
            for task in self.launch(SHELL, len(self.names)):
                if self.node(task) == bad:
                    eaten += 1
                    self.ends(task, fault, "it broke")
                else:
                    self.ends(task)
        return eaten


def test_a_node_on_which_launches_fail_is_given_nothing_more_and_the_interchange_is_told() -> None:
    world = World()
    world.warm_up()
    assert world.break_node(2) == 3
    assert world.news() == [("n2", NodeState.QUARANTINED, False)]
    assert "3 different tasks in a row failed here" in world.sent[-1].reason
    nodes = [world.node(task) for task in world.launch(SHELL, 8) if task in world.commands]
    assert sorted(nodes) == [0, 1, 3]


@pytest.mark.parametrize("fault, most", [(Fault.TASK, 9), (Fault.NODE, 4)])
def test_other_ways_to_fail_take_longer_or_not(fault: Fault, most: int) -> None:
    world = World()
    world.warm_up()
    assert 3 <= world.break_node(1, fault) <= most
    assert world.news() == [("n1", NodeState.QUARANTINED, False)]


def test_what_failed_on_a_node_that_is_out_is_not_charged_to_its_task() -> None:
    world = World()
    world.warm_up(rounds=40)
    world.launch(HALF, 8)
    bad, late = [task for task in world.commands if world.node(task) == 2]
    [innocent, _] = [task for task in world.commands if world.node(task) == 1]
    for task in (5001, 5002):      # whose failures were reported before
        world.ward._health.failed(APPS[0].digest, task, [2], hard=True)
    world.ends(bad, Fault.LAUNCHER, "it broke")
    assert world.news() == [("n2", NodeState.QUARANTINED, False)]
    assert world.sent[-1].tasks == [5001, 5002], "the third was not reported yet"
    world.ends(late, Fault.TASK, "exit code 1")
    world.ends(innocent, Fault.TASK, "exit code 1")
    assert world.exits[late].fault is Fault.NODE
    assert world.exits[late].error == "exit code 1 (on a node that is not well)"
    assert world.exits[innocent].fault is Fault.TASK


def test_one_node_is_kept_whatever_fails_there() -> None:
    world = World(nodes=1)
    world.warm_up()
    assert world.break_node(0) == 60 and world.news() == []


def test_what_fails_everywhere_puts_no_node_out() -> None:
    world = World()
    for _ in range(30):
        for task in world.launch(OTHER, 4):
            world.ends(task, Fault.TASK, "ImportError")
    assert world.news() == []


def test_the_node_that_a_launcher_names_is_out_at_once_by_whichever_of_its_names() -> None:
    world = World()
    [task] = world.launch(SHELL)
    assert world.node(task) == 0
    world.ends(task, Fault.NODE, "n3.hsn: shepherd died from signal 9", blamed="n3.hsn")
    assert world.news() == [("n3", NodeState.QUARANTINED, False)]
    assert world.sent[-1].reason == "the launcher says: n3.hsn: shepherd died from signal 9"


def test_a_node_that_is_not_fit_is_used_only_where_there_is_no_other() -> None:
    world = World(nodes=2)
    world.perform(world.ward.unfit(0, "/tmp is full"))
    assert world.news() == [("n0", NodeState.QUARANTINED, False)]
    assert world.ward.unfit(1, "/tmp is full, too") == []
    assert [world.node(task) for task in world.launch(SHELL, 2) if task in world.commands] == [1]


def test_a_node_that_is_lent_is_given_nothing_and_nobody_hears_of_it() -> None:
    world = World(nodes=3, enrolled=False)
    world.ward.lend(0)
    world.handle(Enrolled(0, []))
    assert {world.node(task) for task in world.launch(SHELL, 6) if task in world.commands} == {1, 2}
    world.launch(CALL, 6)
    assert {attempt.slot.placement.nodes[0].node for hand in world.workers.values() for attempt in hand[:1]
            if attempt.slot is not None} <= {1, 2}
    world.perform(world.ward.unfit(1, "/tmp is full"))
    assert world.news() == [("n1", NodeState.QUARANTINED, False)]
    assert world.ward.unfit(2, "/tmp is full, too") == [], "it is the last"


def test_a_machine_that_is_busy_is_no_nodes_fault() -> None:
    world = World()
    world.warm_up()
    for _ in range(40):
        for task in world.launch(SHELL, 4):
            world.ends(task, Fault.LAUNCHER, "launch failed on n1: Couldn't forward RPC launch to child n2")
    assert world.news() == []


def test_tasks_that_run_elsewhere_for_longer_count_as_not_failing() -> None:
    world = World(nodes=40)
    tasks = world.launch(SHELL, 40)
    on_two = [task for task in tasks if world.node(task) == 2]
    world.now += 60.0
    eaten = 0
    while not world.news() and eaten < 20:
        eaten += 1
        world.ends(on_two.pop(), Fault.LAUNCHER, "no")
        on_two = world.launch(SHELL)
    assert world.news() == [("n2", NodeState.QUARANTINED, False)]
    assert eaten <= 5, "nothing had succeeded yet, but 39 ran well"


def test_only_older_tasks_of_the_app_on_other_nodes_count_as_running_well() -> None:
    world = World()
    tasks = world.launch(HALF, 8)
    group = world.commands[tasks[0]].group
    assert world.ward._survivors(group, [2], 1.0) == 0, "they have only begun"
    world.now += 2.0
    world.handle(Tick())
    assert world.ward._survivors(group, [2], 1.0) == 6
    world.ends(tasks[0])
    world.launch(OTHER)
    assert world.ward._survivors(group, [2, 3], 1.0) == 3


def test_what_a_lost_host_took_with_it_says_nothing_about_other_nodes() -> None:
    world = World()
    world.warm_up()
    for _ in range(20):
        for task in world.launch(SHELL, 4):
            if world.node(task) == 2:
                attempt = world.commands.pop(task)
                world.handle(Commanded(attempt.key, None, world.now - 1.0, Fault.NODE, None, "its agent has gone"))
                world.plan()
            else:
                world.ends(task)
    assert world.news() == []


def test_what_was_ended_by_order_says_nothing_about_its_node() -> None:
    world = World()
    world.warm_up()
    for _ in range(20):
        for task in world.launch(SHELL, 4):
            if world.node(task) == 2:
                world.commands[task].cause = Fault.KILLED
                world.ends(task, Fault.TASK)
            else:
                world.ends(task)
    assert world.news() == []


# ---- workers


def results(world: World, worker: int, ok: bool) -> None:
    """The worker runs its whole hand."""
    hand, world.workers[worker] = world.workers[worker], []
    world.handle(Heard(worker, [Result(*attempt.key, ok, world.now - 0.001, world.now, b"", "" if ok else "no")
                                for attempt in hand]))
    world.plan()


def calling() -> World:
    """Eight workers that have run hundreds of short calls, and have full hands."""
    world = World()
    world.launch(CALL, 800)
    for _ in range(4):
        for number in list(world.workers):
            if world.workers[number]:
                world.handle(Heard(number, [Ready()])) if not world.ward._crew.workers[number].ready else None
                results(world, number, True)
    return world


def on_node(world: World, node: int) -> list[int]:
    return [number for number, worker in world.ward._crew.workers.items()
            if worker.slot is not None and worker.slot.placement.nodes[0].node == node]


def test_hands_on_a_node_that_is_out_are_taken_back_and_run_elsewhere() -> None:
    world = calling()
    failing, other = on_node(world, 2)
    while not world.news() and world.workers[failing]:
        assert len(world.workers[other]) > 1
        results(world, failing, False)       # quick exceptions of calls that do not raise elsewhere
    assert world.news() == [("n2", NodeState.QUARANTINED, False)]
    assert len(world.workers[other]) == 1 and not world.workers[failing], "one goes on, the others are elsewhere"
    results(world, other, True)
    assert on_node(world, 2) == [], "a free worker there gets nothing"
    while any(world.workers.values()):
        for number in [number for number, hand in world.workers.items() if hand]:
            assert number not in (failing, other)
            results(world, number, True)
    assert len(world.exits) == 800 and sum(end.fault is Fault.TASK for end in world.exits.values()) <= 20


def test_workers_that_die_under_different_tasks_put_their_node_out() -> None:
    world = calling()
    eaten = 0
    while not world.news() and eaten < 20:
        [number, *_] = on_node(world, 2) or [0]
        if not number or not world.workers[number]:
            world.launch(CALL, 50)
            continue
        attempt = world.workers.pop(number)[0]
        world.handle(WorkerGone(number, Running(*attempt.key, world.now, 0, 0), "signal 11 ended it"))
        world.plan()
        eaten += 1
    assert world.news() == [("n2", NodeState.QUARANTINED, False)] and eaten <= 4


# ---- what the interchange is told


def test_news_wait_until_an_interchange_knows_the_pilot_and_are_told_again_to_the_next() -> None:
    world = World(enrolled=False)
    world.handle(NodeGone(1, "/tmp is full"))
    assert world.news() == []
    world.handle(Enrolled(0, []))
    assert world.news() == [("n1", NodeState.LOST, False)]
    world.sent.clear()
    world.handle(Enrolled(0, []))
    assert world.news() == [("n1", NodeState.LOST, True)]


def test_what_fits_no_more_is_handed_back_after_the_news() -> None:
    world = World()
    busy = world.launch(SHELL, 4)
    wide = world.launch(WIDE)
    assert not set(wide) & world.commands.keys()
    world.handle(NodeGone(0, "the agent has not been heard of for 20 s"))
    world.plan()
    assert world.news() == [("n0", NodeState.LOST, False)]
    assert world.exits[wide[0]].fault is Fault.RETURNED
    assert world.exits[busy[0]].fault is Fault.NODE and len(world.exits) == 2
    [late] = world.launch(WIDE)       # it was on its way
    assert world.exits[late].fault is Fault.RETURNED


def test_a_node_that_is_used_again_is_told_and_gets_work() -> None:
    world = World()
    world.warm_up(rounds=5)
    world.break_node(2)
    world.sent.clear()
    for _ in range(60):
        for task in world.launch(SHELL, 3):
            world.ends(task, Fault.LAUNCHER, "it broke")
        if world.news():
            break
    assert world.news()[0] == ("n2", NodeState.UP, False)
    world.commands.clear()
    assert 2 in [world.node(task) for task in world.launch(SHELL, 4) if task in world.commands]
    world.sent.clear()
    world.handle(Enrolled(0, []))
    assert world.news() == [], "there is nothing to tell the next interchange"


# ---- slices


def sliced(world: World, node: int) -> tuple[Slice, list[Attempt]]:
    """A slice of two ranks on a node, with as many calls."""
    slot = Slot(Placement((NodeShare(node, ()),)), f"{node}:", (), None, 0)
    number = len(world.ward.planner.slices.all) + 1
    made = Slice(number, object(), slot, 2)  # type: ignore[arg-type]
    group = Group(CALL, CLASSES[CALL], APPS[CALL], Resources(), False)
    calls = [Attempt(Item(10_000 + 2 * number + rank, 1, CALL, TaskSpec(1, CALL)), group, rank) for rank in (0, 1)]
    made.calls = {attempt.key: (attempt, (rank,)) for rank, attempt in enumerate(calls)}
    world.ward.planner.slices.all[number] = made
    return made, calls


def test_the_ends_of_calls_in_slices_count_and_the_innocent_calls_of_a_slice_that_dies_do_not() -> None:
    world = World()
    told: list[tuple[object, ...]] = []
    world.ward._health.succeeded = lambda *end: told.append(end) or []  # type: ignore[method-assign,assignment]
    world.ward._health.failed = lambda *end, **how: told.append((*end, how["hard"])) or []  # type: ignore[method-assign,assignment]
    made, (first, second) = sliced(world, 2)
    kind = APPS[CALL].digest
    world.ward._called(CallDone(made.id, first.key, True, b"", "", 1.0, 3.0))
    world.ward._called(CallDone(made.id, second.key, False, b"", "no", 1.0, 3.0))
    world.ward._called(CallDone(made.id, (5, 5), True, b"", "", 1.0, 3.0))
    world.ward._slice_lost(SliceGone(made.id, 1, "signal 11 ended rank 1"))
    assert told == [(kind, first.item.task, [2], 2.0), (kind, second.item.task, [2], False),
                    (kind, second.item.task, [2], True)]


def test_a_slice_on_a_node_that_is_out_is_given_no_more_calls() -> None:
    world = World()
    here, there = sliced(world, 2)[0], sliced(world, 3)[0]
    world.perform(world.ward.unfit(2, "no memory"))
    assert here.leaving and not there.leaving


# ---- launches that are counted


def test_what_would_need_a_launch_that_is_not_allowed_any_more_is_handed_back_and_told_once() -> None:
    w = World(nodes=1)
    w.ward.planner.launching = Launching(Launcher("pals", launch_budget=2))
    first = w.launch(SHELL, 1)
    w.ends(first[0])
    assert not [each for each in w.sent if isinstance(each, Spent)]
    second, third = w.launch(SHELL, 2)
    assert [each for each in w.sent if isinstance(each, Spent)] == [
        Spent("all 2 launches that its platform allows in a block are used")]
    w.plan()
    assert w.exits[third].fault is Fault.RETURNED and second in w.commands, "what runs goes on"
    fourth, = w.launch(SHELL)
    assert w.exits[fourth].fault is Fault.RETURNED, "it was on its way"
    w.ends(second)
    w.handle(Enrolled(0, []))
    w.plan()
    assert [each.again for each in w.sent if isinstance(each, Spent)] == [False, True], "the next interchange hears it"


def test_serial_tasks_need_no_launch_and_go_on() -> None:
    w = World(nodes=1)
    w.ward.planner.launching = Launching(Launcher("pals", launch_budget=1))
    w.ends(w.launch(SHELL)[0])
    w.launch(CALL, 3)
    assert not [task for task, exited in w.exits.items() if exited.fault is Fault.RETURNED]
