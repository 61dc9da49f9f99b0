"""Reservations with backfill: what waits is not starved, what fills the holes ends in time, nothing is booked twice."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from balsamfut import platforms
from balsamfut.messages import Item
from balsamfut.model import TILE, AppKind, AppSpec, Extra, Options, Resources, TaskClass, TaskSpec
from balsamfut.pilot.attempts import LAST, Attempt, Group, Where, highest, level
from balsamfut.pilot.events import StartCommand
from balsamfut.pilot.planner import PATIENCE, Planner
from balsamfut.pilot.reserve import UNKNOWN, Outlook, Reserve, unknown
from balsamfut.placement import Packer, Placement

AURORA = platforms.load("aurora").node
TILES = len(AURORA.tiles)
APP = AppSpec("task", AppKind.TEMPLATE, b"a" * 16)


def whole(nodes: int = 1) -> Resources:
    return Resources(num_nodes=nodes, ranks_per_node=TILES, gpu_shares=TILE, threads_per_rank=8)


TILE_TASK = Resources(gpu_shares=TILE, threads_per_rank=8)
SIX_TILES = Resources(ranks_per_node=6, gpu_shares=TILE, threads_per_rank=8)
ONE_CORE = Resources()


class Block:
    """The planner on so many nodes, with commands that take as long as they are told to."""

    def __init__(self, nodes: int) -> None:
        self.now = 1000.0
        self.packer = Packer(AURORA, [f"n{node}" for node in range(nodes)])
        self.planner = Planner(self.packer, lambda resources, placement: ((), None, 0), 1)
        self.running: dict[int, tuple[Attempt, float]] = {}      # with when it ends
        self.began: dict[int, float] = {}
        self.groups: dict[tuple[Resources, float, int], Group] = {}
        self.runs: dict[int, float] = {}

    def submit(self, resources: Resources, runs: float, walltime: float = 0.0, priority: int = 0) -> int:
        """A command that truly takes `runs` seconds; its number."""
        number = len(self.runs) + 1
        key = resources, walltime, priority
        group = self.groups.get(key)
        if group is None:
            kind = TaskClass(APP.digest, b"", resources, Options(walltime=walltime, priority=priority))
            group = self.groups[key] = Group(len(self.groups), kind, APP, resources, False)
            self.planner.queue.add_group(group, self.planner.wide(resources))
        item = Item(number, 1, group.cls, TaskSpec(number, group.cls, extra=Extra(command="true")))
        self.runs[number] = runs
        self.planner.queue.append(Attempt(item, group, self.planner.queue.next_seq()))
        return number

    def plan(self) -> list[int]:
        """The end of a turn; what was started."""
        fresh = []
        for effect in self.planner.plan(self.now):
            assert isinstance(effect, StartCommand)
            number = effect.attempt.item.task
            assert number not in self.began, "started twice"
            self.began[number] = self.now
            self.running[number] = effect.attempt, self.now + self.runs[number]
            fresh.append(number)
        return fresh

    def end(self, number: int) -> None:
        attempt, _ = self.running.pop(number)
        del self.planner.commands[attempt.key], self.planner.fresh[attempt.key]
        assert attempt.slot is not None
        self.planner.release(attempt.slot)
        attempt.group.ran(self.now - self.began[number])

    def step(self) -> list[int]:
        """Until the next end, and the turn after it."""
        self.now = min(when for _, when in self.running.values())
        for number in [number for number, (_, when) in self.running.items() if when <= self.now]:
            self.end(number)
        return self.plan()

    def finish(self) -> None:
        while self.running:
            self.step()


# ---- the order of things


def test_two_wide_sizes_again_and_again_on_four_nodes_all_finish() -> None:
    block = Block(4)
    dice = random.Random(3)
    for _ in range(40):
        for nodes in (2, 2, 4):
            runs = dice.uniform(1.0, 20.0)
            block.submit(whole(nodes), runs, dice.choice([0.0, 1.5 * runs]))
    block.plan()
    block.finish()
    assert len(block.began) == 120


def test_a_wide_request_waits_no_longer_than_what_ran_when_it_came() -> None:
    block = Block(4)
    for _ in range(4):
        block.submit(whole(), 100.0, 150.0)
    block.plan()
    wide = block.submit(whole(4), 10.0, 15.0)
    for _ in range(50):
        block.submit(whole(), 100.0, 150.0)
    block.plan()
    block.finish()
    assert block.began[wide] == 1100.0
    assert len(block.began) == 55


def test_what_ends_in_time_goes_ahead_and_what_does_not_waits() -> None:
    block = Block(2)
    block.submit(whole(), 100.0, 100.0)
    block.plan()
    wide = block.submit(whole(2), 10.0, 15.0)
    long = block.submit(whole(), 200.0, 200.0)
    unknown_time = block.submit(TILE_TASK, 1.0)
    short = block.submit(whole(), 50.0, 60.0)
    assert block.plan() == [short]
    block.finish()
    assert block.began[wide] == 1100.0
    assert min(block.began[long], block.began[unknown_time]) >= 1110.0


def test_nodes_that_are_not_reserved_are_for_whoever_comes() -> None:
    block = Block(4)
    for runs in (100.0, 100.0, 500.0):
        block.submit(whole(), runs, runs)
    block.plan()
    wide = block.submit(whole(2), 10.0, 15.0)
    long = block.submit(whole(), 1000.0, 1000.0)
    assert block.plan() == [long]            # two others are free at 1100
    block.finish()
    assert block.began[wide] == 1100.0


def test_what_a_reserved_node_has_beside_what_is_reserved_is_used() -> None:
    block = Block(1)
    block.submit(SIX_TILES, 100.0, 100.0)
    block.submit(TILE_TASK, 50.0, 50.0)
    block.submit(TILE_TASK, 1000.0, 1000.0)
    block.plan()
    wide = block.submit(SIX_TILES, 10.0, 15.0)
    cores = [block.submit(ONE_CORE, 1000.0, 1000.0) for _ in range(3)]
    tiles = [block.submit(TILE_TASK, 1000.0, 1000.0) for _ in range(5)]
    started = block.plan()
    assert set(cores) <= set(started)
    assert len(set(tiles) & set(started)) == 4      # five are free: one of them is needed
    block.finish()
    assert block.began[wide] <= 1100.0


def test_higher_priority_goes_before_a_reservation() -> None:
    block = Block(2)
    block.submit(whole(), 100.0, 100.0)
    block.plan()
    wide = block.submit(whole(2), 10.0, 15.0)
    block.plan()
    urgent = block.submit(whole(), 300.0, 300.0, priority=1)
    assert block.plan() == [urgent]
    block.finish()
    assert block.began[wide] == 1300.0


def test_what_was_seen_to_take_long_is_no_filling() -> None:
    block = Block(2)
    first = block.submit(TILE_TASK, 30.0)
    block.plan()
    block.step()                                     # its kind takes 30 s, so it is expected to take 60
    assert first in block.began
    block.submit(whole(), 100.0, 100.0)
    block.plan()
    wide = block.submit(whole(2), 10.0, 15.0)
    seen = block.submit(TILE_TASK, 30.0)
    assert block.plan() == [seen]
    block.step()
    block.now += 20.0                                # 50 are left
    late = block.submit(TILE_TASK, 30.0)
    assert block.plan() == []
    block.finish()
    assert block.began[wide] < block.began[late]


@pytest.mark.parametrize("declared", [True, False])
def test_a_request_that_is_not_wide_is_not_starved_either(declared: bool) -> None:
    block = Block(1)
    half = Resources(gpu_shares=TILE // 2)
    for number in range(24):
        block.submit(half, 20.0 + number, 60.0 if declared else 0.0)
    block.plan()
    tile = block.submit(TILE_TASK, 1.0, 2.0)
    for _ in range(1000):
        block.submit(half, 20.0 + len(block.runs) % 24, 60.0 if declared else 0.0)
    while tile not in block.began:
        block.step()
        assert block.now < 1000.0 + PATIENCE + 400.0, "it waits for ever"


def test_work_that_always_takes_longer_than_it_used_to_does_not_starve_what_waits() -> None:
    block = Block(2)
    block.submit(whole(), 1.0)
    block.plan()
    block.finish()
    for number in range(2):
        block.submit(whole(), 50.0 + 25 * number)
    block.plan()
    wide = block.submit(whole(2), 1.0)
    while wide not in block.began:
        block.submit(whole(), 50.0)
        for group in block.groups.values():
            group.run = 1.0                          # nobody learns
        block.step()
        assert block.now < 2000.0, "it waits for ever"


def test_a_task_that_hangs_does_not_keep_others_for_ever() -> None:
    block = Block(3)
    block.submit(whole(), 1e9)
    block.submit(whole(), 100.0)
    block.submit(whole(), 120.0)
    block.plan()
    wide = block.submit(whole(2), 1.0)
    for _ in range(400):
        block.submit(TILE_TASK, 7.0)
    while wide not in block.began:
        block.step()
        assert block.now < 3000.0, "it waits for ever"


def test_a_reservation_of_what_is_killed_is_the_next_ones() -> None:
    block = Block(2)
    block.submit(whole(), 100.0, 100.0)
    block.plan()
    block.submit(whole(2), 10.0, 15.0)
    long = block.submit(whole(), 500.0, 500.0)
    assert block.plan() == []
    block.planner.queue.remove(block.groups[whole(2), 15.0, 0].queue[0])
    assert block.plan() == [long]
    assert not block.planner.reserve.holder


def test_a_lost_node_is_no_part_of_a_reservation() -> None:
    block = Block(3)
    for runs in (100.0, 200.0, 300.0):
        block.submit(whole(), runs, runs)
    block.plan()
    wide = block.submit(whole(2), 10.0, 15.0)
    block.submit(TILE_TASK, 1000.0, 1000.0)
    block.plan()
    block.planner.lose(0)
    block.finish()
    assert block.began[wide] == 1300.0


# ---- the end of the block


def test_what_cannot_end_before_the_block_does_is_not_started_and_is_told() -> None:
    block = Block(1)
    block.planner.ends = block.now + 100.0
    long = block.submit(TILE_TASK, 50.0, 101.0)
    short = block.submit(TILE_TASK, 50.0, 99.0)
    unsaid = block.submit(TILE_TASK, 10.0)
    assert block.plan() == [short, unsaid]
    block.step()
    block.now = 1091.0
    seen = block.submit(TILE_TASK, 10.0)             # its kind took 10 s, which do not fit into 9
    assert block.plan() == []
    assert [attempt.item.task for attempt in block.planner.late(block.now)] == [long, seen]
    block.planner.ends = 0.0
    assert block.planner.late(block.now) == []
    assert block.plan() == [long, seen]


def test_nothing_is_reserved_for_what_would_come_too_late() -> None:
    block = Block(2)
    block.planner.ends = block.now + 100.0
    block.submit(whole(), 80.0, 80.0)
    block.plan()
    wide = block.submit(whole(2), 30.0, 30.0)
    other = block.submit(whole(), 90.0, 95.0)
    assert block.plan() == [other]
    block.finish()
    assert wide not in block.began
    assert [attempt.item.task for attempt in block.planner.late(block.now)] == [wide]


def test_levels_round_up_and_what_is_allowed_rounds_down() -> None:
    for seconds in (0.002, 0.5, 1.0, 59.0, 60.0, 61.0, 86400.0):
        assert level(seconds) <= highest(1.2 * seconds + 0.001)
        assert level(seconds) > highest(0.99 * seconds)
    assert level(float("inf")) == LAST > highest(1e9)


# ---- the outlook


def place(packer: Packer, resources: Resources) -> Placement:
    placement = packer.place(resources)
    assert placement is not None
    return placement


def test_the_nodes_that_are_ready_first_are_chosen_and_of_those_the_last() -> None:
    packer = Packer(AURORA, [""] * 5)
    outlook = Outlook(packer, 5)
    for ends in (50.0, 30.0, 30.0, 90.0):
        outlook.enter(place(packer, whole()), 0.0, ends)
    choice = outlook.choose(whole(2), 0.0, True)
    assert choice is not None and choice.when == 30.0
    assert sorted(node for node, _ in choice.where) == [1, 2]       # the free one is left to others
    choice = outlook.choose(whole(4), 0.0, True)
    assert choice is not None and choice.when == 50.0
    assert outlook.choose(whole(6), 0.0, True) is None


def test_an_outlook_follows_what_comes_and_goes() -> None:
    """Against one that is made anew."""
    dice = random.Random(7)
    packer = Packer(AURORA, [""] * 6)
    outlook = Outlook(packer, 6)
    kinds = [TILE_TASK, SIX_TILES, whole(), whole(2), ONE_CORE, Resources(node_packing_count=2),
             Resources(memory=10**11)]
    there = []
    for _ in range(150):
        if there and dice.random() < 0.5:
            tenant = there.pop(dice.randrange(len(there)))
            packer.free(tenant.placement)
            outlook.leave(tenant)
        else:
            placement = packer.place(dice.choice(kinds))
            if placement is not None:
                ends = unknown(0.0) if dice.random() < 0.1 else dice.uniform(1, 100)
                there.append(outlook.enter(placement, 0.0, ends))
        anew = Outlook(packer, 6)
        for tenant in there:
            anew.enter(tenant.placement, 0.0, tenant.ends)
        asked = dice.choice([whole(3), SIX_TILES, whole(1), Resources(gpu_shares=2 * TILE)])
        choice, truth = outlook.choose(asked, 0.0, True), anew.choose(asked, 0.0, True)
        assert choice is not None and truth is not None
        assert choice.when == truth.when
        # When what is said to leave has left, it fits.
        for node, leaving in choice.where:
            assert packer.when(asked, node, leaving) in (None, *range(len(leaving) + 1))


def test_time_without_knowledge_lets_nothing_in_until_something_is_known() -> None:
    packer = Packer(AURORA, [""] * 2)
    reserve = Reserve(packer, 2)
    first = reserve.outlook.enter(place(packer, whole()), 0.0, unknown(0.0))
    assert reserve.keep(1, whole(2), 1.0)
    assert reserve.limit < 1.0
    reserve.outlook.stay(first, 50.0)
    assert reserve.keep(1, whole(2), 2.0)
    assert reserve.limit == 50.0 < UNKNOWN
    reserve.outlook.stay(first, 70.0)
    assert reserve.keep(1, whole(2), 3.0)
    assert reserve.limit == 50.0, "a reservation's time moved away"


# ---- the machine


class Reservations(RuleBasedStateMachine):
    """Tasks come, end and are killed; a naive book of what is where is kept beside."""

    NODES = 4

    @initialize()
    def start(self) -> None:
        self.block = Block(self.NODES)
        self.came: dict[int, float] = {}
        self.priorities: dict[int, int] = {}
        self.killed: set[int] = set()
        self.longest = 0.0

    @rule(kind=st.sampled_from([TILE_TASK, TILE_TASK, SIX_TILES, whole(1), whole(2), whole(3), whole(4), ONE_CORE]),
          runs=st.sampled_from([1.0, 5.0, 20.0, 80.0]), count=st.integers(1, 6), priority=st.sampled_from([0, 0, 0, 1]))
    def submit(self, kind: Resources, runs: float, count: int, priority: int) -> None:
        for _ in range(count):
            number = self.block.submit(kind, runs, 1.5 * runs, priority)
            self.came[number], self.priorities[number] = self.block.now, priority
            self.longest = max(self.longest, 1.5 * runs)
        self.block.plan()

    @precondition(lambda self: self.block.running)
    @rule()
    def time_passes(self) -> None:
        self.block.step()

    @precondition(lambda self: any(group.queue for group in self.block.groups.values()))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        queued = sorted(each.item.task for group in self.block.groups.values() for each in group.queue)
        number = data.draw(st.sampled_from(queued))
        attempt = next(each for group in self.block.groups.values() for each in group.queue if each.item.task == number)
        self.block.planner.queue.remove(attempt)
        self.killed.add(number)
        self.block.plan()

    @invariant()
    def nothing_is_booked_twice_or_lost(self) -> None:
        if not hasattr(self, "block"):
            return
        used: set[tuple[int, str, int]] = set()
        for attempt, _ in self.block.running.values():
            assert attempt.slot is not None and attempt.where is Where.COMMAND
            for share in attempt.slot.placement.nodes:
                for rank in share.ranks:
                    mine = {(share.node, "core", core) for core in rank.cores}
                    mine |= {(share.node, "tile", tile) for tile in rank.tiles}
                    assert not mine & used, "booked twice"
                    used |= mine
        queued = {each.item.task for group in self.block.groups.values() for each in group.queue}
        assert queued | set(self.block.began) | self.killed == set(self.came)
        assert not queued & set(self.block.began)

    @invariant()
    def what_is_reserved_comes_in_time(self) -> None:
        """What runs longer than the time of the reservation is not in its way, unless it ranks before it."""
        reserve = getattr(self, "block", None) and self.block.planner.reserve
        if not reserve or not reserve.holder or any(self.priorities.values()):
            return
        assert reserve.limit >= self.block.now, "all run as declared, and yet it is late"
        for attempt, _ in self.block.running.values():
            walltime = attempt.group.task_class.options.walltime
            assert attempt.slot is not None
            if attempt.started + walltime > reserve.limit + 1e-6:
                assert not self.block.packer.in_the_way(attempt.slot.placement)

    def teardown(self) -> None:
        """Everything is started; each no later than all before it could have been, one after the other."""
        if not hasattr(self, "block"):
            return
        block = self.block
        block.finish()
        assert set(block.began) | self.killed == set(self.came), "something never began"
        for number, came in self.came.items():
            if number in block.began:
                ahead = [other for other in self.came if other != number and other not in self.killed
                         and (self.priorities[other] > self.priorities[number] or other < number)]
                bound = came + (len(ahead) + 2) * self.longest
                assert block.began[number] <= bound, "starved"


TestReservations = Reservations.TestCase
TestReservations.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_a_long_campaign_keeps_the_nodes_busy_and_wide_tasks_do_not_wait_longer_than_in_strict_order() -> None:
    dice = random.Random(5)
    tasks = []
    for _ in range(300):
        kind = dice.random()
        resources = TILE_TASK if kind < 0.7 else whole(1 if kind < 0.9 else dice.randint(3, 8))
        tasks.append((resources, dice.lognormvariate(0.0, 1.0) * 100.0))
    block = Block(16)
    numbers = [block.submit(resources, runs, 1.5 * runs) for resources, runs in tasks]
    block.plan()
    block.finish()
    last = max(block.began.values())
    busy = sum((min(last, block.began[number] + runs) - block.began[number]) * resources.ranks
               for number, (resources, runs) in zip(numbers, tasks, strict=True))
    assert busy / ((last - 1000.0) * 16 * TILES) > 0.8
    strict = in_strict_order(tasks, 16)
    wide = [index for index, (resources, _) in enumerate(tasks) if resources.num_nodes > 1]
    assert sum(block.began[numbers[index]] for index in wide) <= sum(strict[index] for index in wide) * 1.05


def in_strict_order(tasks: list[tuple[Resources, float]], nodes: int) -> list[float]:
    packer, now, ends = Packer(AURORA, [""] * nodes), 1000.0, list[tuple[float, int, Placement]]()
    began = []
    for index, (resources, runs) in enumerate(tasks):
        while (placement := packer.place(resources)) is None:
            now, _, gone = heapq.heappop(ends)
            packer.free(gone)
        heapq.heappush(ends, (now + runs, index, placement))
        began.append(now)
    return began
