"""What is expected of blocks, which of them are to be done first, and that what is asked for is used."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from balsamfut import platforms
from balsamfut.interchange.backlog import Block, Demand, Phase
from balsamfut.interchange.elastic import Submit, View, decide
from balsamfut.interchange.ending import near
from balsamfut.interchange.forecast import Forecast
from balsamfut.interchange.hedging import too_late
from balsamfut.interchange.waits import Waits
from balsamfut.platforms.queues import tables
from balsamfut.settings import Elastic

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import elastic as bench
from simulated_pbs import SimulatedPbs

HOUR = 3600.0
NOW = 1_000_000.0
AURORA = tables(platforms.load("aurora"))
NOTHING = Waits((), (), NOW)


def nodes_hours(hours: float, *, nodes: int = 1, seconds: float = 600.0, span: float = 0.0, later: int = 0) -> Demand:
    """Tasks that fill whole nodes, of so many node-hours together."""
    return Demand(f"{nodes}", nodes, 1, seconds, span or 1.5 * seconds, round(hours * HOUR / seconds / nodes), later)


def queued(token: str, nodes: int = 256, wall: float = 3 * HOUR, age: float = 60.0) -> Block:
    return Block(token, "prod", nodes, wall, Phase.QUEUED, NOW - age)


def running(token: str, nodes: int = 256, left: float = 6 * HOUR, **more: Any) -> Block:
    return Block(token, "prod", nodes, 12 * HOUR, Phase.RUNNING, NOW + left - 12 * HOUR, NOW + left, **more)


# ---- what is to be expected


def test_running_blocks_do_the_work_at_once_and_every_node_waits_for_the_last_tasks() -> None:
    time, cost = Forecast([nodes_hours(256)], [running("a")], NOTHING, NOW).outcome()
    assert time == pytest.approx(HOUR + 600.0, rel=0.01) and cost == pytest.approx(256 * time, rel=0.01)
    half, more = Forecast([nodes_hours(256)], [running("a"), running("b")], NOTHING, NOW).outcome()
    assert half == pytest.approx(HOUR / 2 + 600.0, rel=0.01) and more > cost


def test_without_a_block_that_could_do_it_the_work_is_never_done() -> None:
    assert Forecast([nodes_hours(1)], [], NOTHING, NOW).outcome()[0] == math.inf
    wide = nodes_hours(64, nodes=64)
    assert Forecast([wide], [running("a", 32)], NOTHING, NOW).score() == math.inf
    assert Forecast([wide], [running("a", 64)], NOTHING, NOW).score() < math.inf


def test_long_tasks_are_not_expected_of_blocks_that_are_near_their_end() -> None:
    long, short = nodes_hours(100, seconds=3000.0), nodes_hours(100, seconds=60.0)
    near = running("near", left=HOUR)
    only_short, _ = Forecast([short], [near], NOTHING, NOW).outcome()
    both, _ = Forecast([long, short], [near], NOTHING, NOW).outcome()
    assert only_short < HOUR < both


def test_more_blocks_that_wait_bring_an_earlier_end_and_one_can_be_thought_away() -> None:
    three = [queued("a"), queued("b"), queued("c")]
    work = [nodes_hours(1500)]
    forecast = Forecast(work, three, NOTHING, NOW)
    assert forecast.outcome()[0] < Forecast(work, three[:2], NOTHING, NOW).outcome()[0]
    assert forecast.score_without("c") == pytest.approx(Forecast(work, three[:2], NOTHING, NOW).score())
    assert forecast.score_without("c") != pytest.approx(forecast.score())


# ---- the end of the work


def test_a_block_that_waits_is_too_late_when_those_that_run_will_be_done_soon() -> None:
    there = [running("a", 1024), running("b", 1024), queued("q", 1024)]
    assert too_late([nodes_hours(300)], there, there[-1], (), NOW)
    assert not too_late([nodes_hours(8000)], there, there[-1], (), NOW)


def test_no_block_is_too_late_while_those_that_run_have_not_the_time_for_the_longest_tasks() -> None:
    there = [running("a", 1024, left=2000.0), queued("q", 1024)]
    assert not too_late([nodes_hours(100, seconds=1500.0)], there, there[-1], (), NOW)


def test_the_end_is_near_when_the_blocks_that_run_do_all_within_two_of_the_longest_tasks() -> None:
    blocks = [running("a", 512), running("b", 512), queued("q", 4096)]
    assert near([nodes_hours(900, seconds=1800.0), nodes_hours(100, seconds=60.0)], blocks, NOW)
    assert not near([nodes_hours(1700, seconds=1800.0)], blocks, NOW), "what waits in a queue does not count"
    assert not near([nodes_hours(100, seconds=60.0)], blocks, NOW), "many short tasks in a row on each place"


def test_no_end_is_near_without_work_or_without_the_time_for_it() -> None:
    assert not near([], [running("a", 64)], NOW)
    assert not near([nodes_hours(10, seconds=600.0)], [], NOW)
    assert not near([nodes_hours(500, seconds=7200.0)], [running("a", 64, left=3600.0)], NOW)


# ---- what is asked for is used


WORK = st.lists(st.tuples(st.sampled_from([(1, 12), (1, 1), (8, 1), (64, 1), (300, 1)]),
                          st.sampled_from([60.0, 600.0, 2000.0]), st.floats(1.0, 3000.0)), min_size=1, max_size=3)


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(WORK, st.integers(0, 1000), st.sampled_from(["", "prod", "debug-scaling capacity"]))
def test_work_that_does_not_change_is_done_with_few_more_blocks_than_are_used(
        work: list[tuple[tuple[int, int], float, float]], seed: int, queues: str) -> None:
    settings = Elastic(enabled=True, queues=queues)
    kinds = []
    for (nodes, per_node), seconds, hours in work:
        if queues != "debug-scaling capacity" or nodes <= 16:
            count = max(1, round(hours * HOUR * per_node / nodes / seconds / 10.0))
            kinds.append(bench.Kind(nodes, 12 // per_node, 1.5 * seconds))
            kinds[-1].runs.extend([seconds] * min(count, 3000))
    world = bench.World(kinds, SimulatedPbs(AURORA, seed), bench.elastic(), settings)
    outcome = world.run()
    assert outcome.refused == [] and outcome.late == 0
    assert not any(kind.runs for kind in kinds)
    assert outcome.withdrawn <= 2 * outcome.blocks + 10


def test_nothing_is_asked_for_again_in_place_of_what_was_withdrawn() -> None:
    work = nodes_hours(600)
    blocks: tuple[Block, ...] = (running("a", 1024), running("b", 1024), queued("q", 1024))
    surplus: Mapping[str, float] = {}
    for turn in range(30):
        plan = decide(View(NOW + 30.0 * turn, (work,), blocks, AURORA, Elastic(enabled=True, queues="prod")), surplus)
        surplus = plan.surplus
        assert not any(isinstance(decision, Submit) for decision in plan.decisions)
        gone = {decision.token for decision in plan.decisions if not isinstance(decision, Submit)}
        blocks = tuple(block for block in blocks if block.token not in gone)
    assert [block.token for block in blocks] == ["a", "b"]
