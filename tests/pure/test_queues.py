"""Queue tables, and what they say to a block before it is submitted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsamfut import platforms
from balsamfut.errors import SettingsError
from balsamfut.platforms.queues import NO_LIMIT, Taken, refusal, span, tables

HOUR = 3600.0
AURORA = tables(platforms.load("aurora"))
BY_NAME = {queue.name: queue for queue in AURORA}


def said(queue: str, nodes: int, wall: float, taken: dict[str, Taken] | None = None) -> str:
    text = refusal(AURORA, queue, nodes, wall, taken, machine="aurora")
    assert text is not None and "\n" not in text
    return text


def with_queues(*queues: dict[str, Any]) -> platforms.Platform:
    return platforms.load("aurora", {"scheduler": {"queues": list(queues)}})


# ---- the tables


@pytest.mark.parametrize("name", platforms.names())
def test_the_queues_of_every_platform_are_understood_and_take_what_they_say(name: str) -> None:
    for queue in tables(platforms.load(name)):
        assert queue.takes(queue.min_nodes, queue.min_wall)
        assert queue.longest(queue.max_nodes) <= queue.max_wall
        assert not queue.longest(queue.max_nodes + 1)


def test_aurora_has_its_bands() -> None:
    prod = BY_NAME["prod"]
    assert [prod.longest(nodes) / HOUR for nodes in (255, 256, 1024, 1025, 1999, 2000, 10624)] == [
        0, 12, 12, 18, 18, 24, 24]
    assert prod.routing and prod.per == "project"


def test_a_block_that_runs_counts_against_the_queue_too() -> None:
    assert BY_NAME["capacity"].room(Taken(queued=2, running=2)) == 1
    assert BY_NAME["debug"].room(Taken(running=1)) == 0
    assert tables(platforms.load("polaris"))[0].room(Taken(queued=50)) == NO_LIMIT


@pytest.mark.parametrize(("queue", "says"), [
    ({"name": "x", "nodes": [1, 2]}, "scheduler.queues, 'x': Object missing required field `walltime_min`"),
    ({"nodes": [1, 2], "walltime_min": [5, 60]}, "the entry 1: Object missing required field `name`"),
    ({"name": "x", "nodes": [4, 2], "walltime_min": [5, 60]}, "nodes goes from the least to the most, both"),
    ({"name": "x", "nodes": [1, 2], "walltime_min": [5, 60], "max_queud": 1}, "did you mean max_queued"),
    ({"name": "x", "nodes": [1, 2], "walltime_min": [5, 60], "per": "group"}, "'group'"),
    ({"name": "x", "nodes": [1, 2], "walltime_min": [5, 60], "max_queued": -1}, "0 for no limit"),
])
def test_a_table_that_is_not_understood_is_refused_with_its_queue(queue: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        tables(with_queues(queue))
    assert "platform 'aurora'" in str(caught.value) and says in str(caught.value)


def test_two_queues_of_one_name_are_refused() -> None:
    queue = {"name": "x", "nodes": [1, 2], "walltime_min": [5, 60]}
    with pytest.raises(SettingsError, match="two queues with the name 'x'"):
        tables(with_queues(queue, queue))


# ---- the checks


@pytest.mark.parametrize(("queue", "nodes", "wall", "says"), [
    ("debug", 4, HOUR, "4 nodes for 1 h was asked, but debug takes 1 to 2 nodes; debug-scaling or capacity"),
    ("debug-scaling", 256, 2 * HOUR, "debug-scaling takes at most 1 h; prod would take it"),
    ("prod", 128, HOUR, "prod takes 256 to 10624 nodes; debug-scaling would take it"),
    ("prod", 300, 15 * HOUR, "prod takes blocks of 300 nodes at most 12 h"),
    ("capacity", 20, 3 * HOUR, "capacity takes 1 to 16 nodes; the longest for 20 nodes is 1 h, in debug-scaling"),
    ("prod", 20_000, HOUR, "no queue takes that many: debug 1 to 2 nodes, debug-scaling 2 to 256"),
    ("debug", 1, 60.0, "1 node for 1 min was asked, but debug takes at least 5 min"),
    ("prd", 300, HOUR, "there is no queue 'prd'; did you mean prod?"),
    ("night", 2, 600.0, "there is no queue 'night'; aurora has debug, debug-scaling, capacity, prod"),
    ("", 2, 600.0, "no queue was named; aurora has debug"),
    ("debug", 0, 600.0, "0 nodes was asked; a block has 1 to 65536"),
])
def test_a_refusal_says_what_was_asked_where_and_what_would_be_right(
        queue: str, nodes: int, wall: float, says: str) -> None:
    assert says in said(queue, nodes, wall)


def test_a_full_queue_says_so_and_which_other_one_has_room() -> None:
    full = {"debug": Taken(running=1)}
    assert said("debug", 1, 600.0, full) == (
        "debug takes at most 1 block of one user at a time, and 0 queued and 1 running are there; "
        "capacity would take it")
    full["capacity"] = Taken(queued=5)
    assert said("debug", 1, 600.0, full).endswith("no other queue would take it now")


def test_a_machine_whose_queues_are_not_described_refuses_nothing() -> None:
    assert refusal((), "whatever", 3, HOUR) is None


@pytest.mark.parametrize(("nodes", "wall", "says"), [
    (1, float("nan"), "a block's walltime is above 0 min and at most 366 days, not nan min"),
    (1, float("inf"), "not inf min"),
    (1, 6e301, "not 1e+300 min"),
    (1, -60.0, "not -1 min"),
    (1 << 70, HOUR, "nodes was asked; a block has 1 to 65536"),
])
def test_what_no_machine_could_give_is_refused_without_a_table_too(nodes: int, wall: float, says: str) -> None:
    for table in ((), AURORA):
        assert says in (refusal(table, "debug", nodes, wall) or "")


@given(st.sampled_from([*BY_NAME]), st.integers(1, 12_000), st.integers(1, 11_000))
def test_what_is_not_refused_is_within_every_limit_and_what_is_names_only_queues_that_would_take_it(
        name: str, nodes: int, minutes: int) -> None:
    text = refusal(AURORA, name, nodes, 60.0 * minutes)
    queue = BY_NAME[name]
    assert (text is None) == queue.takes(nodes, 60.0 * minutes)
    if text is not None and "would take it" in text:
        others = text.rpartition("; ")[2].removesuffix(" would take it").split(" or ")
        assert others and all(BY_NAME[other].takes(nodes, 60.0 * minutes) for other in others)


@pytest.mark.parametrize(("seconds", "text"), [(300, "5 min"), (5400, "1 h 30 min"), (86400, "1 day"), (20, "20 s"),
                                               (604800, "7 days"), (43200, "12 h")])
def test_walltimes_read_as_people_say_them(seconds: float, text: str) -> None:
    assert span(seconds) == text
