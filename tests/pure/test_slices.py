"""Pool mode's brain: which call goes on which ranks, when a slice is launched or ended, whose fault a death is."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balsamfut import platforms, serialize
from balsamfut.messages import Exited, Fault, Item, Kill, Launch, Stop
from balsamfut.model import AppKind, AppSpec, Hook, Options, Pool, Resources, TaskClass, TaskSpec
from balsamfut.pilot.core import Core
from balsamfut.pilot.events import Again, Effect, Finish, Hand, Key, NodeGone, StartCommand, StartWorker, Tick
from balsamfut.pilot.hand import Stage
from balsamfut.pilot.mpicall import gathered, with_comm
from balsamfut.pilot.slicenews import (
    CallDone,
    CallFaltered,
    EndSlice,
    GiveCall,
    SignalCall,
    SliceBroken,
    SliceGone,
    SliceReady,
    StartSlice,
)
from balsamfut.pilot.slices import FALLS, HOLD, LINGER, PATIENCE, STILLBORN, sizes
from balsamfut.placement import Packer

POOL = b"p" * 16
FUNCTION = AppSpec("f", AppKind.PYTHON, b"f" * 16)
RESCUED = AppSpec("g", AppKind.PYTHON, b"g" * 16, Hook.ON_ERROR)
COMMAND = AppSpec("c", AppKind.COMMAND, b"c" * 16)


def pooled(ranks: int, **more: Any) -> Resources:
    return Resources(ranks_per_node=ranks, mpi=True, pooled=True, **more)


CLASSES = [
    *(TaskClass(FUNCTION.digest, POOL, pooled(ranks), Options()) for ranks in (1, 2, 3, 4)),       # 0-3
    TaskClass(FUNCTION.digest, POOL, pooled(2), Options(walltime=10.0, stop_grace=1.0)),           # 4
    TaskClass(FUNCTION.digest, POOL, Resources(), Options()),                                      # 5: a worker's
    TaskClass(FUNCTION.digest, POOL, Resources(threads_per_rank=3), Options(priority=1)),          # 6
    TaskClass(FUNCTION.digest, POOL, pooled(2, node_packing_count=2), Options()),                  # 7
    TaskClass(COMMAND.digest, POOL, pooled(2), Options()),                                         # 8
    TaskClass(RESCUED.digest, POOL, pooled(2), Options()),                                         # 9
    TaskClass(FUNCTION.digest, POOL, pooled(2), Options(environment=(("A", "1"),))),               # 10
]


class Side:
    """The side of the agent: slices that do what they are told."""

    def __init__(self, cores: int = 4, nodes: int = 1) -> None:
        self.now = 1000.0
        self.core = Core(Packer(platforms.workstation(cores).node, [f"n{node}" for node in range(nodes)]),
                         lambda _, placement: ((), None, placement.nodes[0].node),
                         lambda exc: f"{type(exc).__name__}: {exc}".encode(), cores=cores * nodes)
        self.slices: dict[int, int] = {}          # those that run -> ranks
        self.ready: set[int] = set()
        self.leaving: set[int] = set()
        self.killed: set[int] = set()
        self.calls: dict[Key, tuple[int, tuple[int, ...]]] = {}
        self.begun: dict[Key, int] = {}
        self.signals: list[tuple[Key, int]] = []
        self.others: list[Effect] = []            # what is not about slices
        self.exits: dict[Key, Exited] = {}
        self.launches: list[StartSlice] = []
        self.finished = False
        self._tasks = itertools.count(1)
        self.handle(Launch([], list(enumerate(CLASSES)), [FUNCTION, RESCUED, COMMAND], [],
                           [(POOL, Pool("python", (), "/"))]))
        self.others.clear()

    def launch(self, *classes: int) -> list[Key]:
        items = [Item(task, 1, cls, TaskSpec(task, cls)) for cls in classes for task in [next(self._tasks)]]
        self.handle(Launch(items))
        return [(item.task, item.attempt) for item in items]

    def handle(self, event: Any) -> None:
        self.perform(self.core.handle(event, self.now))

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        if seconds:
            self.handle(Tick())
        self.perform(self.core.plan(self.now))
        message = self.core.outbox.pack()
        for report in message.reports if message is not None else []:
            if isinstance(report, Exited):
                assert (report.task, report.attempt) not in self.exits, "reported twice"
                self.exits[report.task, report.attempt] = report

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartSlice():
                    assert effect.slice not in self.slices
                    self.slices[effect.slice] = effect.resources.ranks_per_node
                    self.launches.append(effect)
                case GiveCall():
                    self.give(effect)
                case EndSlice():
                    assert effect.slice in self.slices
                    (self.killed if effect.now else self.leaving).add(effect.slice)
                    assert effect.now or effect.slice not in {number for number, _ in self.calls.values()}
                case SignalCall():
                    assert self.calls[effect.key][0] == effect.slice
                    self.signals.append((effect.key, effect.signal))
                case Again():
                    self.handle(effect.event)
                case Finish():
                    self.finished = True
                case _:
                    self.others.append(effect)

    def give(self, effect: GiveCall) -> None:
        key, size = effect.attempt.key, self.slices[effect.slice]
        assert effect.slice in self.ready and effect.slice not in self.leaving | self.killed
        assert key not in self.calls and key not in self.exits
        taken = {rank for number, ranks in self.calls.values() if number == effect.slice for rank in ranks}
        assert len(set(effect.ranks)) == len(effect.ranks) == effect.attempt.group.resources.ranks_per_node
        assert taken.isdisjoint(effect.ranks) and set(effect.ranks) <= set(range(size))
        self.calls[key] = effect.slice, effect.ranks
        self.begun[key] = self.begun.get(key, 0) + 1

    # ---- what the slices do

    def comes(self, number: int | None = None) -> None:
        """A slice (the only one that is not) is ready."""
        number = number or next(each for each in self.slices if each not in self.ready)
        self.ready.add(number)
        self.handle(SliceReady(number))
        self.turn()

    def ends(self, key: Key, ok: bool = True) -> None:
        number, _ = self.calls.pop(key)
        payload = b"value" if ok else b"RuntimeError"
        self.handle(CallDone(number, key, ok, payload, "" if ok else "bad", self.now - 0.01, self.now))
        self.turn()

    def dies(self, number: int, first: int | None) -> None:
        del self.slices[number]
        self.ready.discard(number)
        self.leaving.discard(number)
        self.killed.discard(number)
        for key in [key for key, (where, _) in self.calls.items() if where == number]:
            del self.calls[key]
        self.handle(SliceGone(number, first, f"rank {first} died"))
        self.turn()

    def fault(self, key: Key) -> Fault | None:
        return self.exits[key].fault if key in self.exits else None


@pytest.fixture
def side() -> Side:
    return Side()


def test_many_calls_cost_one_launch_of_a_size_for_all_of_them(side: Side) -> None:
    keys = side.launch(*[0, 1, 2, 3] * 25)
    side.turn()
    assert [launch.resources.ranks_per_node for launch in side.launches] == [4]
    side.comes()
    while side.calls:
        side.ends(next(iter(side.calls)))
        side.turn(0.01)
    assert [side.fault(key) for key in keys] == [Fault.NONE] * 100
    assert len(side.launches) == 1


def test_slices_on_several_nodes_are_launched_at_once_if_there_is_work_for_all() -> None:
    side = Side(nodes=3)
    side.launch(*[3] * 2)
    side.turn()
    assert side.slices == {1: 4, 2: 4}
    side.launch(*[0] * 2)
    side.turn()
    assert side.slices == {1: 4, 2: 4, 3: 4}


def test_the_calls_of_a_lost_node_are_over_uncharged_and_others_go_on() -> None:
    side = Side(nodes=2)
    first, second = side.launch(3, 3)
    side.turn()
    side.comes(1)
    side.comes(2)
    place = {key: number for key, (number, _) in side.calls.items()}
    del side.slices[place[second]], side.calls[second]
    side.handle(NodeGone(side.launches[place[second] - 1].placement.nodes[0].node, "it burns"))
    side.turn()
    assert (side.fault(second), side.exits[second].error) == (Fault.NODE, "it burns")
    side.ends(first)
    assert side.fault(first) is Fault.NONE


def test_a_lonely_call_takes_no_more_ranks_than_it_asked_for_and_the_next_slice_has_learnt(side: Side) -> None:
    side.launch(1)
    side.turn()
    assert side.slices == {1: 2}
    side.comes()
    side.ends((1, 1))
    side.launch(3)
    side.turn()
    side.turn(LINGER)
    assert side.leaving == {1}
    side.dies(1, None)
    assert side.slices == {2: 4}
    side.comes()
    side.ends((2, 1))
    side.launch(0)
    side.turn()
    assert side.calls[3, 1] == (2, (0,))


def test_ranks_that_are_free_are_used_and_no_others(side: Side) -> None:
    side.launch(1, 0, 1)
    side.turn()
    side.comes()
    assert side.calls == {(1, 1): (1, (0, 1)), (2, 1): (1, (2,))}
    side.ends((1, 1))
    assert side.calls == {(2, 1): (1, (2,)), (3, 1): (1, (0, 1))}


def test_a_wide_call_is_not_kept_waiting_for_ever_by_narrow_ones(side: Side) -> None:
    narrow = side.launch(0, 0, 0, 0)
    wide, = side.launch(3)
    narrow += side.launch(*[0] * 50)
    side.turn()
    side.comes()
    side.turn(2 * HOLD)
    for _ in range(4):
        side.ends(next(iter(side.calls)))
        side.turn(0.01)
    assert list(side.calls) == [wide]
    assert len(side.exits) == 4


def test_only_the_calls_of_the_rank_that_died_are_charged_and_the_others_run_again(side: Side) -> None:
    guilty, innocent, queued = side.launch(1, 1, 1)
    side.turn()
    side.comes()
    side.dies(1, side.calls[guilty][1][1])
    assert side.fault(guilty) is Fault.WORKER
    assert side.exits[guilty].payload == b"WorkerLost: task 1: rank 1 died"
    assert side.fault(innocent) is None and len(side.launches) == 2
    side.comes()
    assert set(side.calls) == {innocent, queued}
    side.ends(innocent)
    side.ends(queued)
    assert side.fault(innocent) is side.fault(queued) is Fault.NONE


def test_the_death_of_an_idle_rank_is_nobodys_fault(side: Side) -> None:
    side.launch(0, 0, 0, 0)
    side.turn()
    side.comes()
    side.ends((4, 1))
    side.dies(1, 3)
    assert set(side.exits) == {(4, 1)}


def test_calls_with_which_slices_fall_for_unknown_reasons_are_held_to_account_in_the_end(side: Side) -> None:
    keys = side.launch(1, 1)
    side.turn()
    for fall in range(FALLS):
        assert not side.exits
        side.comes()
        side.dies(fall + 1, None)
    assert [side.fault(key) for key in keys] == [Fault.WORKER] * 2


def test_a_call_over_its_walltime_is_asked_to_end_and_then_takes_its_slice_with_it(side: Side) -> None:
    late, other = side.launch(4, 1)
    side.turn()
    side.comes()
    side.turn(0.1)                        # it is known to be a long one
    side.turn(10.1)
    assert side.signals == [(late, 15)] and not side.killed
    side.turn(1.1)
    assert side.killed == {1}
    side.dies(1, None)
    assert side.fault(late) is Fault.WALLTIME
    side.comes()
    side.ends(other)
    assert side.fault(other) is Fault.NONE


def test_the_walltime_of_a_call_that_runs_again_begins_anew(side: Side) -> None:
    late, other = side.launch(4, 1)
    side.turn()
    side.comes()
    side.turn(6.0)
    side.dies(1, side.calls[other][1][0])
    side.comes()
    side.turn(0.1)
    side.turn(6.0)
    assert not side.signals and late in side.calls
    side.turn(4.5)
    assert side.signals == [(late, 15)]


def test_a_call_that_is_killed_by_a_user_is_reported_so_and_its_neighbours_are_not(side: Side) -> None:
    killed, other = side.launch(1, 1)
    side.turn()
    side.comes()
    side.handle(Kill([killed]))
    assert side.signals == [(killed, 15)]
    side.dies(1, side.calls[killed][1][0])
    assert side.fault(killed) is Fault.KILLED and side.fault(other) is None


def test_a_result_that_comes_although_the_call_was_to_be_killed_counts(side: Side) -> None:
    killed, = side.launch(1)
    side.turn()
    side.comes()
    side.handle(Kill([killed]))
    side.ends(killed)
    assert side.fault(killed) is Fault.NONE


def test_a_call_that_waits_is_killed_without_any_harm_to_slices(side: Side) -> None:
    _, waiting = side.launch(3, 3)
    side.turn()
    side.comes()
    side.handle(Kill([waiting]))
    side.turn()
    assert side.fault(waiting) is Fault.KILLED and not side.signals and not side.killed


def test_when_one_rank_raises_the_others_have_a_moment_and_then_the_slice_ends(side: Side) -> None:
    bad, other = side.launch(1, 1)
    side.turn()
    side.comes()
    side.handle(CallFaltered(1, bad, b"ValueError", "ValueError: bad"))
    side.turn(0.5)
    assert not side.killed
    side.turn(0.6)
    assert side.killed == {1}
    side.dies(1, None)
    assert (side.fault(bad), side.exits[bad].payload) == (Fault.TASK, b"ValueError")
    side.comes()
    assert set(side.calls) == {other}


def test_when_all_ranks_have_come_to_the_end_of_a_call_that_raised_the_slice_lives_on(side: Side) -> None:
    bad, = side.launch(1)
    side.turn()
    side.comes()
    side.handle(CallFaltered(1, bad, b"ValueError", "ValueError: bad"))
    side.ends(bad, ok=False)
    side.turn(5.0)
    assert side.fault(bad) is Fault.TASK and side.slices == {1: 2} and not side.killed


def test_hooks_of_a_failed_call_run_in_a_worker(side: Side) -> None:
    bad, = side.launch(9)
    side.turn()
    side.comes()
    side.ends(bad, ok=False)
    side.turn(LINGER)
    hands = [effect for effect in side.others if isinstance(effect, Hand)]
    assert [attempt.stage for hand in hands for attempt in hand.attempts] == [Stage.ABORTED]
    assert bad not in side.exits


def test_a_slice_that_rests_makes_room_for_whatever_waits_but_not_at_once(side: Side) -> None:
    side.launch(3)
    side.turn()
    side.comes()
    side.ends((1, 1))
    side.turn(60.0)
    assert not side.leaving               # nobody wants its place
    side.launch(3)
    side.turn()
    side.ends((2, 1))
    side.launch(5)
    side.turn(LINGER / 2)
    assert not side.leaving
    side.turn(LINGER)
    assert side.leaving == {1}
    side.dies(1, None)
    assert any(isinstance(effect, StartWorker | Hand) for effect in side.others)


def test_a_busy_slice_makes_room_for_work_that_ranks_before_its_calls(side: Side) -> None:
    side.launch(*[1] * 40)
    side.turn()
    side.comes()
    side.launch(6)
    side.turn()
    for _ in range(3):
        side.ends(next(iter(side.calls)))
    assert len(side.calls) == 2           # not yet
    side.turn(PATIENCE + 0.1)
    for _ in range(2):
        side.ends(next(iter(side.calls)))
    assert not side.calls and side.leaving == {1}
    side.dies(1, None)
    assert any(isinstance(effect, Hand) for effect in side.others)


def test_a_smaller_slice_is_not_launched_in_the_place_of_the_larger_one_that_waits(side: Side) -> None:
    side.launch(6)                        # three of four cores
    side.turn()
    side.launch(3, 0)
    side.turn()
    assert not side.launches


def test_slices_that_never_become_ready_are_given_up(side: Side) -> None:
    key, = side.launch(1)
    side.turn()
    for number in range(1, STILLBORN + 1):
        assert not side.exits
        side.dies(number, None)
    assert side.fault(key) is Fault.LAUNCHER and not side.slices


@pytest.mark.parametrize(("fault", "later"), [(Fault.POOL, Fault.POOL), (Fault.TASK, None)])
def test_a_rank_that_can_run_nothing_fails_what_would_run_there(side: Side, fault: Fault, later: Fault | None) -> None:
    keys = side.launch(1, 3)
    side.turn()
    side.handle(SliceBroken(1, fault, b"why", "because"))
    side.turn()
    assert [(side.fault(key), side.exits[key].payload) for key in keys] == [(fault, b"why")] * 2
    assert side.killed == {1}
    side.dies(1, 0)
    again, = side.launch(1)
    side.turn()
    assert side.fault(again) is later


def test_calls_with_other_surroundings_have_slices_of_their_own(side: Side) -> None:
    side.launch(1, 10)
    side.turn()
    assert [(launch.resources.ranks_per_node, launch.environment) for launch in side.launches] \
        == [(2, ()), (2, (("A", "1"),))]


@pytest.mark.parametrize("cls", [7, 8])
def test_what_cannot_be_pooled_has_a_launch_of_its_own(side: Side, cls: int) -> None:
    side.launch(cls)
    side.turn()
    assert not side.launches
    assert any(isinstance(effect, StartCommand | StartWorker) for effect in side.others)


def test_a_pilot_that_stops_ends_its_calls_and_waits_for_no_slice(side: Side) -> None:
    running, queued = side.launch(3, 3)
    side.turn()
    side.comes()
    side.handle(Stop(0.0))
    side.turn()
    assert side.killed == {1} and side.fault(queued) is Fault.RETURNED
    side.dies(1, None)
    assert side.fault(running) is Fault.PILOT and side.finished


@pytest.mark.parametrize(("most", "least", "tried"), [
    (12, 1, [12, 6, 3, 1]), (12, 4, [12, 6, 4]), (4, 4, [4]), (5, 4, [5, 4])])
def test_sizes_are_tried_from_the_largest(most: int, least: int, tried: list[int]) -> None:
    assert list(sizes(most, least)) == tried


# ---- the ranks' side of a call


def test_a_parameter_named_comm_is_filled_where_the_call_leaves_it_open() -> None:
    def last(n: int, comm: Any = None) -> None: ...
    def first(comm: Any, n: int) -> None: ...
    def needed(n: int, comm: Any) -> None: ...
    def rest(n: int, **comm: Any) -> None: ...
    def none(n: int) -> None: ...

    def filled(func: Any, *args: Any, **kwargs: Any) -> Any:
        return with_comm(func, args, kwargs, lambda: "COMM")

    assert filled(last, 1) == ((1, "COMM"), {})
    assert filled(last, n=1) == ((1, "COMM"), {})
    assert filled(last, 1, comm="mine") == ((1,), {"comm": "mine"})
    assert filled(first, None, 1) == (("COMM", 1), {})
    assert filled(first, n=1) == (("COMM", 1), {})
    assert filled(needed, 1) == ((1, "COMM"), {})
    assert filled(rest, 1) == filled(none, 1) == filled(dict.get, 1) == ((1,), {})


def test_what_is_gathered_is_one_list_and_nothing_was_looked_into() -> None:
    values = [serialize.dumps_result(value)[0] for value in ({"a": 1}, None, [2])]
    assert serialize.loads(gathered(values), lambda blob: b"") == [{"a": 1}, None, [2]]
    assert isinstance(Future(), Future)


# ---- whatever happens


class Slicing(RuleBasedStateMachine):
    """Calls of all widths, deaths, kills and other work in any order: nothing is lost, doubled or forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.side = Side()
        self.keys: list[Key] = []
        self.deaths = 0

    @rule(classes=st.lists(st.sampled_from([0, 1, 2, 3, 4, 10]), min_size=1, max_size=6))
    def calls(self, classes: list[int]) -> None:
        self.keys += self.side.launch(*classes)
        self.side.turn()

    @rule(seconds=st.sampled_from([0.001, 0.2, 1.5, 12.0]))
    def time(self, seconds: float) -> None:
        self.side.turn(seconds)

    @precondition(lambda self: set(self.side.slices) - self.side.ready)
    @rule()
    def comes(self) -> None:
        self.side.comes()

    @precondition(lambda self: self.side.calls)
    @rule(data=st.data(), ok=st.booleans())
    def ends(self, data: st.DataObject, ok: bool) -> None:
        self.side.ends(data.draw(st.sampled_from(sorted(self.side.calls))), ok)

    @precondition(lambda self: self.side.calls)
    @rule(data=st.data())
    def falters(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.side.calls)))
        self.side.handle(CallFaltered(self.side.calls[key][0], key, b"E", "E"))

    @precondition(lambda self: self.side.slices)
    @rule(data=st.data(), known=st.booleans())
    def dies(self, data: st.DataObject, known: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.side.slices)))
        self.side.dies(number, data.draw(st.integers(0, self.side.slices[number] - 1)) if known else None)

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.side.handle(Kill([data.draw(st.sampled_from(self.keys))]))
        self.side.turn()

    @invariant()
    def slices_fit(self) -> None:
        assert sum(self.side.slices.values()) <= 4

    def teardown(self) -> None:
        """Left in peace, everything ends."""
        side = self.side
        for _ in range(40 + 8 * len(self.keys)):
            side.turn(1.1)
            for number in sorted(side.killed | side.leaving):
                side.dies(number, None)
            for number in sorted(set(side.slices) - side.ready):
                side.comes(number)
            for key in sorted(side.calls):
                if side.calls[key][0] not in side.killed:
                    side.ends(key)
            if len(side.exits) == len(self.keys):
                break
        assert set(side.exits) == set(self.keys)
        assert not side.core.attempts and not side.calls


Slicing.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSlicing = Slicing.TestCase
