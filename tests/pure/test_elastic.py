"""The elastic queue: what it asks for, what it lets go, and that it never breaks a limit."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from balsamfut import platforms
from balsamfut.interchange.backlog import MANY, Block, Cover, Demand, Phase, demand, gathered
from balsamfut.interchange.elastic import Failure, Plan, Release, Submit, View, decide
from balsamfut.interchange.waits import Wait, Waits
from balsamfut.model import TILE, Resources
from balsamfut.placement import Packer
from balsamfut.platforms.queues import Taken, tables
from balsamfut.settings import Elastic

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from simulated_pbs import SimulatedPbs

HOUR = 3600.0
NOW = 1_000_000.0
AURORA = tables(platforms.load("aurora"))
PACKER = Packer(platforms.load("aurora").node, ("",))


def tiles(count: int, seconds: float = 600.0, **more: Any) -> Demand:
    return Demand("tile", 1, 12, seconds, 1.5 * seconds, count, **more)


def wide(count: int, nodes: int, seconds: float = 600.0) -> Demand:
    return Demand("wide", nodes, 1, seconds, 1.5 * seconds, count)


def queued(token: str = "q", queue: str = "prod", nodes: int = 256, wall: float = 6 * HOUR, age: float = 60.0,
           **more: Any) -> Block:
    return Block(token, queue, nodes, wall, Phase.QUEUED, NOW - age, **more)


def running(token: str = "r", queue: str = "prod", nodes: int = 256, left: float = 6 * HOUR, **more: Any) -> Block:
    return Block(token, queue, nodes, 12 * HOUR, Phase.RUNNING, NOW + left - 12 * HOUR, NOW + left, **more)


def view(*demands: Demand, blocks: tuple[Block, ...] = (), now: float = NOW, settings: dict[str, Any] | None = None,
         **more: Any) -> View:
    return View(now, demands, blocks, AURORA, Elastic(enabled=True, **settings or {}), **more)


def submits(plan: Plan) -> list[Submit]:
    return [decision for decision in plan.decisions if isinstance(decision, Submit)]


def released(plan: Plan) -> list[str]:
    return [decision.token for decision in plan.decisions if isinstance(decision, Release)]


# ---- the backlog


def test_what_a_node_holds_is_asked_of_the_packer() -> None:
    tile = demand("t", Resources(gpu_shares=TILE, threads_per_rank=8), 0.0, 300.0, 24, 0, PACKER)
    assert tile is not None and (tile.per_node, tile.useful, tile.work(24)) == (12, 2, 600.0)
    mpi = demand("m", Resources(num_nodes=4, ranks_per_node=12, gpu_shares=TILE), 1200.0, -1.0, 3, 0, PACKER)
    assert mpi is not None and (mpi.per_node, mpi.useful, mpi.work(3), mpi.span) == (1, 12, 14400.0, 1200.0)
    assert demand("x", Resources(gpu_shares=100 * TILE), 0.0, 1.0, 1, 0, PACKER) is None


def test_work_goes_only_to_blocks_that_are_wide_and_long_enough() -> None:
    blocks = (running("narrow", nodes=4), running("short", nodes=64, left=300.0))
    cover = Cover([wide(10, 8)], blocks, NOW, 0.9)
    assert cover.left == wide(10, 8).work(10) and cover.homeless == [True]
    assert Cover([wide(10, 8)], (*blocks, running("both", nodes=64)), NOW, 0.9).left == 0.0


def test_what_runs_on_a_block_is_taken_off_its_time() -> None:
    idle, busy = running(nodes=1, left=HOUR), running(nodes=1, left=HOUR, busy=HOUR)
    assert Cover([tiles(12)], (idle,), NOW, 0.9).left == 0.0
    assert Cover([tiles(12)], (busy,), NOW, 0.9).left > 0.0


# ---- waits


def test_waits_are_learnt_for_shapes_like_those_that_were_seen() -> None:
    seen = [Wait("prod", 256, 6 * HOUR, 20 * HOUR, NOW - k) for k in range(10)]
    before, after = Waits((), (), NOW), Waits(seen, (), NOW)
    assert 12 * HOUR < after.expected("prod", 256, 6 * HOUR) < 24 * HOUR
    assert after.expected("prod", 512, 6 * HOUR) > 3 * before.expected("prod", 512, 6 * HOUR)
    far = after.expected("debug", 1, 300.0) / before.expected("debug", 1, 300.0)
    near = after.expected("prod", 512, 6 * HOUR) / before.expected("prod", 512, 6 * HOUR)
    assert far < near


def test_a_block_that_waits_longer_than_was_expected_is_a_lesson_before_it_starts() -> None:
    late = Wait("prod", 256, 6 * HOUR, 30 * HOUR, NOW)
    assert Waits((), [late], NOW).expected("prod", 256, 6 * HOUR) > 2 * Waits((), (), NOW).expected(
        "prod", 256, 6 * HOUR)
    assert all(left >= 15 * HOUR for left, _ in Waits((), (), NOW).left("prod", 256, 6 * HOUR, 30 * HOUR))


# ---- asking


def test_a_few_short_tasks_get_a_small_short_block_and_a_reason() -> None:
    plan = decide(view(tiles(20, 60.0)))
    (asked,) = submits(plan)
    assert asked.nodes <= 2 and asked.wall <= HOUR
    assert "node-hours are ready for which there is no block" in asked.why
    assert any(line.startswith(f"submit {asked.nodes} node") for line in plan.lines)
    assert 0.0 < plan.finish < 4 * HOUR


def test_the_block_is_as_wide_and_as_long_as_its_tasks_need() -> None:
    (asked, *_) = submits(decide(view(wide(1, 100, 2000.0))))
    assert asked.nodes >= 100 and asked.wall >= 3000.0
    (asked, *_) = submits(decide(view(tiles(5, 5 * HOUR))))
    assert asked.queue == "capacity" and asked.wall >= 7.5 * HOUR


def test_much_work_is_asked_of_several_queues_at_once() -> None:
    state = view(tiles(300_000))
    asked: list[Submit] = []
    for turn in range(8):
        blocks = tuple(queued(str(n), each.queue, each.nodes, each.wall) for n, each in enumerate(asked))
        new = submits(decide(msgspec.structs.replace(state, blocks=blocks, now=NOW + turn)))
        assert len(new) <= 4
        asked += new
    assert "prod" in {each.queue for each in asked} and len({each.queue for each in asked}) > 1
    assert sum(each.queue == "prod" for each in asked) <= 10


def test_what_a_block_that_waits_will_take_is_not_asked_for_twice() -> None:
    first = decide(view(tiles(2000)))
    blocks = tuple(queued(str(n), each.queue, each.nodes, each.wall, 1.0) for n, each in enumerate(submits(first)))
    assert blocks
    plan = decide(view(tiles(2000), blocks=blocks))
    assert plan.decisions == ()
    assert any("will do what is ready" in line for line in plan.lines)


def test_a_block_that_takes_only_some_tags_is_not_counted_on() -> None:
    assert submits(decide(view(tiles(100), blocks=(running(serves=False),))))


def test_tasks_that_no_running_block_can_hold_get_one_though_the_blocks_are_large() -> None:
    plan = decide(view(tiles(10), wide(1, 64), blocks=(running(nodes=16, queue="capacity"),)))
    (asked,) = submits(plan)
    assert asked.nodes >= 64 and "no block that there is could run wide (64 nodes" in asked.why


def test_tasks_that_fit_no_queue_are_said_and_the_others_get_their_block() -> None:
    plan = decide(view(tiles(10), wide(1, 32, 3 * HOUR), settings={"queues": "debug debug-scaling"}))
    assert submits(plan)
    assert any("wide (32 nodes, 4 h 30 min each) fits no further block: " in line for line in plan.lines)


def test_nothing_is_asked_for_once_the_work_is_gone() -> None:
    paused = decide(view(paused=True)).lines
    assert paused == ("nothing is ready, so no block is asked for; and the elastic queue is paused",)
    for demands in ((), (tiles(0, later=50),)):
        plan = decide(view(*demands))
        assert plan.decisions == () and plan.lines == ("nothing is ready, so no block is asked for",)


# ---- the user's settings


@pytest.mark.parametrize(("settings", "more", "says"), [
    ({}, {"paused": True}, "paused"),
    ({"max_blocks": 1}, {}, "elastic.max_blocks is 1"),
    ({"node_hours": 10.0}, {"spent": 10 * HOUR}, "the budget of 10 node-hours is used or promised"),
    ({"total_nodes": 2}, {}, "elastic.total_nodes, 2, is used"),
])
def test_what_the_user_forbids_is_not_done_and_is_said(settings: dict[str, Any], more: dict[str, Any],
                                                       says: str) -> None:
    mine = (running(nodes=2, left=600.0, queue="capacity"),)
    plan = decide(view(tiles(10_000), blocks=mine, settings=settings, **more))
    assert submits(plan) == [] and any(says in line for line in plan.lines)
    assert submits(decide(view(tiles(10_000), blocks=mine)))


def test_shapes_keep_to_the_users_bounds() -> None:
    settings = {"min_nodes": 8, "max_nodes": 12, "max_hours": 2.0, "queues": "capacity debug-scaling"}
    asked = submits(decide(view(tiles(10_000), settings=settings)))
    assert asked and all(8 <= each.nodes <= 12 and each.wall <= 2 * HOUR for each in asked)
    assert {each.queue for each in asked} <= {"capacity", "debug-scaling"}


def test_min_blocks_are_there_as_long_as_there_is_work() -> None:
    plan = decide(view(tiles(10), blocks=(running(),), settings={"min_blocks": 2}))
    assert len(submits(plan)) == 1 and "at least 2 blocks" in plan.lines[-1]
    assert decide(view(blocks=(running(),), settings={"min_blocks": 2})).decisions == ()


def test_a_queue_that_refused_is_left_alone_for_longer_each_time_and_the_others_are_used() -> None:
    failures = {"prod": Failure(3, NOW - 100.0, "Connection refused")}
    state = view(tiles(300_000), failures=failures)
    assert "prod" not in {each.queue for each in submits(decide(state))}
    only = view(tiles(300_000), failures=failures, settings={"queues": "prod"})
    plan = decide(only)
    assert submits(plan) == [] and "prod refused (Connection refused): it is tried again in 2 min" in plan.lines[-1]
    assert submits(decide(msgspec.structs.replace(only, now=NOW + 141.0)))


def test_what_colleagues_have_in_a_queue_counts() -> None:
    full = {"prod": Taken(queued=4, running=6), "debug": Taken(1), "debug-scaling": Taken(1), "capacity": Taken(0, 2)}
    plan = decide(view(tiles(300_000), taken=full))
    assert plan.decisions == () and "prod takes no more: 4 queued and 6 running are there" in plan.lines[-1]


# ---- letting go


def test_an_idle_block_is_let_go_after_its_time_unless_something_that_is_ready_fits() -> None:
    idle = running(idle_since=NOW - 61.0)
    assert released(decide(view(blocks=(idle,)))) == ["r"]
    assert released(decide(view(blocks=(running(idle_since=NOW - 59.0),)))) == []
    assert released(decide(view(tiles(1), blocks=(idle,)))) == []
    assert released(decide(view(wide(1, 257), blocks=(idle,)))) == ["r"]
    assert released(decide(view(blocks=(running(idle_since=NOW - 999.0, ours=False),)))) == []


def test_a_block_that_waits_for_nothing_is_withdrawn_once_that_has_lasted() -> None:
    state = view(blocks=(queued(),))
    first = decide(state)
    assert released(first) == [] and first.surplus == {"q": NOW}
    later = msgspec.structs.replace(state, now=NOW + 60.0)
    assert released(decide(later, first.surplus)) == ["q"]
    back = decide(msgspec.structs.replace(later, demands=(tiles(30_000),)), first.surplus)
    assert released(back) == [] and back.surplus == {}


def test_a_block_that_a_person_asked_for_is_never_withdrawn() -> None:
    state = view(blocks=(queued(ours=False),), now=NOW)
    assert released(decide(msgspec.structs.replace(state, now=NOW + 999.0), {"q": NOW})) == []


def test_blocks_are_kept_for_tasks_that_wait_for_others() -> None:
    state = view(tiles(0, later=100_000), blocks=(queued(),), now=NOW + 9 * HOUR)
    assert released(decide(state, {"q": NOW})) == []


def test_estimates_that_waver_make_nothing_flap() -> None:
    blocks: tuple[Block, ...] = ()
    surplus: Mapping[str, float] = {}
    asked = withdrawn = 0
    for turn in range(60):
        wavering = tiles(40_000, 600.0 * (1.0 + 0.12 * math.sin(turn)))
        now = NOW + 30.0 * turn
        plan = decide(view(wavering, blocks=blocks, now=now), surplus)
        surplus = plan.surplus
        for each in submits(plan):
            asked += 1
            blocks += (Block(str(asked), each.queue, each.nodes, each.wall, Phase.QUEUED, now),)
        gone = released(plan)
        withdrawn += len(gone)
        blocks = tuple(block for block in blocks if block.token not in gone)
    assert asked <= 16 and withdrawn == 0


# ---- against a simulated batch system


class Site:
    """Work that is done as blocks run, others who use the queues, and a clock."""

    def __init__(self, settings: Elastic, seed: int) -> None:
        self.settings = settings
        self.pbs = SimulatedPbs(AURORA, seed)
        self.now = 0.0
        self.demands: dict[str, Demand] = {}
        self.surplus: Mapping[str, float] = {}
        self.blocks: tuple[Block, ...] = ()
        self.ours: set[int] = set()

    def look(self) -> View:
        self.blocks = tuple(Block(
            str(job.id), job.queue, job.nodes, job.wall, Phase.RUNNING if job.start >= 0 else Phase.QUEUED,
            max(job.start, job.submitted), job.end) for job in self.pbs.jobs.values() if job.ours)
        taken = {queue.name: self.pbs.taken(queue.name, ours=False) for queue in AURORA}
        return View(self.now, tuple(self.demands.values()), self.blocks, AURORA, self.settings, taken,
                    spent=self.spent())

    def spent(self) -> float:
        jobs = [job for job in (*self.pbs.over, *self.pbs.jobs.values()) if job.ours and job.start >= 0]
        return sum(job.nodes * ((job.over if job.over >= 0 else self.now) - job.start) for job in jobs)

    def turn(self) -> None:
        ready = sum(each.count for each in self.demands.values())
        plan = decide(self.look(), self.surplus)
        self.surplus = plan.surplus
        assert ready or not submits(plan), "nothing is ready"
        assert plan.lines
        for each in submits(plan):
            assert any(d.usable(each.nodes, each.wall) for d in self.demands.values() if d.count), "for nobody"
            self.pbs.submit(self.now, each.queue, each.nodes, each.wall)
        for token in released(plan):
            self.pbs.cancel(self.now, int(token))
        self.check()

    def check(self) -> None:
        mine = [job for job in self.pbs.jobs.values() if job.ours]
        limits = self.settings
        assert self.pbs.refused == []
        assert len(mine) <= limits.max_blocks
        assert not limits.total_nodes or sum(job.nodes for job in mine) <= limits.total_nodes
        assert all(limits.min_nodes <= job.nodes and (not limits.max_nodes or job.nodes <= limits.max_nodes)
                   for job in mine)
        promised = sum(job.nodes * (job.end - self.now if job.start >= 0 else job.wall) for job in mine)
        assert not limits.node_hours or self.spent() + promised <= limits.node_hours * HOUR * 1.000001

    def work(self, seconds: float) -> None:
        """Blocks do what they can; then the next hour has come."""
        able = sum(job.nodes for job in self.pbs.jobs.values() if job.ours and job.start >= 0) * seconds
        for name, each in self.demands.items():
            done = min(each.count, int(able / max(each.work(1), 1.0)))
            able -= each.work(done)
            self.demands[name] = msgspec.structs.replace(each, count=each.count - done)
        self.now += seconds
        self.pbs.advance(self.now)


SETTINGS = st.builds(
    Elastic, enabled=st.just(True), max_blocks=st.integers(1, 20), total_nodes=st.sampled_from([0, 3, 300, 5000]),
    max_nodes=st.sampled_from([0, 16, 600]), min_nodes=st.sampled_from([1, 4]), min_blocks=st.integers(0, 2),
    node_hours=st.sampled_from([0.0, 0.5, 100.0, 20_000.0]), queues=st.sampled_from(["", "prod", "debug capacity"]))
ARRIVALS = st.tuples(st.sampled_from([1, 1, 1, 2, 16, 300, 1500]), st.sampled_from([12, 1]),
                     st.sampled_from([1.0, 60.0, 900.0, 4 * HOUR]), st.integers(0, 20_000))
STEPS = st.lists(st.one_of(
    st.tuples(st.just("work"), ARRIVALS), st.tuples(st.just("pass"), st.integers(1, 4 * 3600)),
    st.tuples(st.just("other"), st.sampled_from(["debug", "debug-scaling", "capacity", "prod"]))), max_size=14)


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SETTINGS, STEPS, st.integers(0, 1000))
def test_no_limit_is_ever_broken(settings: Elastic, steps: list[tuple[str, Any]], seed: int) -> None:
    site = Site(settings, seed)
    for what, value in steps:
        if what == "work":
            nodes, per_node, seconds, count = value
            name = f"{nodes} {per_node} {seconds:g}"
            site.demands[name] = Demand(name, nodes, per_node, seconds, 1.5 * seconds, count)
        elif what == "pass":
            site.work(float(value))
        elif site.pbs.taken(value).queued < 1 and {q.name: q for q in AURORA}[value].room(site.pbs.taken(value)):
            table = {q.name: q for q in AURORA}[value]
            site.pbs.submit(site.now, value, table.min_nodes, HOUR, ours=False)
        site.turn()
    site.demands.clear()
    for _ in range(8):       # what waits is withdrawn, and nothing is asked for
        before = {job.id for job in site.pbs.jobs.values() if job.ours}
        site.work(61.0)
        site.turn()
        assert {job.id for job in site.pbs.jobs.values() if job.ours} <= before
    assert not any(job.ours and job.start < 0 for job in site.pbs.jobs.values())


def test_the_simulated_batch_system_refuses_what_breaks_its_limits() -> None:
    pbs = SimulatedPbs(AURORA, 1)
    assert pbs.submit(0.0, "debug", 1, HOUR) and pbs.submit(0.0, "debug", 1, HOUR) is None
    assert pbs.submit(0.0, "capacity", 17, HOUR) is None
    vanished = pbs.submit(0.0, "prod", 256, 20 * HOUR)
    assert vanished is not None and vanished not in pbs.jobs
    assert len(pbs.refused) == 3
    pbs.advance(10 * HOUR)
    assert [job.over - job.start for job in pbs.over] == [pytest.approx(HOUR)]


def test_thousands_of_kinds_of_tasks_are_taken_together_and_stay_the_same_work() -> None:
    rng = random.Random(7)
    demands = [Demand(f"app {cls}", rng.choice([1, 1, 2, 4, 64]), rng.choice([1, 12, 104]), rng.uniform(0.01, 3000.0),
                      rng.uniform(10.0, 7200.0), rng.randrange(3), 1 + rng.randrange(3), cls) for cls in range(5000)]
    less = Block("less", "q", 64, 7200.0, Phase.RUNNING, 0.0, 9000.0, refuses=frozenset(range(0, 5000, 2)))
    found = gathered(demands, [less])
    assert len(found) <= 200
    for much in (lambda d: d.count, lambda d: d.later, lambda d: d.work(d.count + d.later)):
        assert sum(map(much, found)) == pytest.approx(sum(map(much, demands)))
    refused = [sum(d.count for d in some if d.cls in less.refuses) for some in (found, demands)]
    assert refused[0] == refused[1]
    for measure in (lambda d: d.nodes, lambda d: d.span):
        assert max(map(measure, found)) == max(map(measure, demands))
    few = demands[:MANY]
    assert gathered(few, [less]) == few
