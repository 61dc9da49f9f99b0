"""What checks the pilot on many nodes finds each of the things that it is there to find."""

from __future__ import annotations

from dataclasses import replace

import pytest
from recording import Asked, Record, misplaced, parse_place, shared

from balsamfut import platforms
from balsamfut.model import TILE, Resources

AURORA = platforms.load("aurora")
HOSTS = ["n1", "n2"]
TWO = Resources(num_nodes=2, ranks_per_node=2, threads_per_rank=2, gpu_shares=TILE)
ASKED = {"a": Asked(TWO, "0-1:1-2,9-10/0.0,0.1")}


def ranks() -> list[Record]:
    """What the ranks of `a` write when all is well."""
    places = [((1, 2), ("0.0",)), ((9, 10), ("0.1",))]
    return [Record("a", 1, rank, HOSTS[rank // 2], 10.0, 11.0, (0, 1), *places[rank % 2], "COMPOSITE")
            for rank in range(4)]


def test_a_task_that_is_where_it_was_planned_is_not_complained_of() -> None:
    assert misplaced(ranks(), ASKED, AURORA, HOSTS) == []
    assert shared(ranks(), ASKED) == []


@pytest.mark.parametrize(("change", "complaint"), [
    ({"host": "n2"}, "a: the ranks [1] were not on n1"),
    ({"cores": (9, 11)}, "a: its ranks on node 0 have [(1, 2), (9, 11)] of the cores"),
    ({"cores": (9,)}, "a, rank 1: it has 1 CPUs and asked for 2"),
    ({"mask": ("1.0",)}, "a: its ranks on node 0 have the masks"),
    ({"mask": None}, "a, rank 1: it asked for 1 tiles and has None"),
    ({"mask": ("0.0", "0.1")}, "a, rank 1: it asked for 1 tiles and has ('0.0', '0.1')"),
    ({"mode": "FLAT"}, "a, rank 1: it asked for 1 tiles and has ('0.1',) in the mode 'FLAT'"),
    ({"cores": (9, 53)}, "a, rank 1: its cores [53] are not on the side of its tiles ('0.1',)"),
    ({"rank": 2}, "a has the ranks [0, 2, 2, 3] of 4"),
    ({"attempt": 2}, "a ran in 2 attempts"),
    ({"label": "b"}, "b ran and was not asked for"),
])
def test_a_rank_that_is_not_as_planned_is_told(change: dict, complaint: str) -> None:
    records = ranks()
    records[1] = replace(records[1], **change)
    assert any(found.startswith(complaint) for found in misplaced(records, ASKED, AURORA, HOSTS))


def test_a_rank_whose_tiles_lie_on_two_gpus_or_that_is_not_bound_is_told() -> None:
    asked = {"a": Asked(Resources(gpu_shares=2 * TILE), "0:9/0.1,1.0")}
    torn = [Record("a", 1, 0, "n1", 1.0, 2.0, (9,), (9,), ("0.1", "1.0"), "COMPOSITE")]
    assert misplaced(torn, asked, AURORA, HOSTS) == ["a, rank 0: its 2 tiles are on the GPUs [0, 1]"]
    whole = [replace(torn[0], mask=("0.0", "0.1"), allowed=(0, 1))]
    asked = {"a": Asked(Resources(gpu_shares=2 * TILE), "0:9/0.0,0.1")}
    assert misplaced(whole, asked, AURORA, HOSTS) == []
    assert misplaced(whole, asked, AURORA, HOSTS, bound=True) == ["a, rank 0: it may run on (0, 1) and has (9,)"]


def test_a_task_that_never_ran_is_told() -> None:
    assert misplaced([], ASKED, AURORA, HOSTS) == ["a ran in 0 attempts"]


def test_cores_and_tiles_that_two_have_at_a_time_are_told_and_those_handed_on_are_not() -> None:
    first, *rest = ranks()
    asked = ASKED | {"b": Asked(Resources(gpu_shares=TILE), "0:3/0.0")}
    later = Record("b", 1, 0, "n1", 11.0, 12.0, (0, 1), (3,), ("0.0",), "COMPOSITE")
    assert shared([first, *rest, later], asked) == []
    assert shared([first, *rest, replace(later, host="n3", start=10.5)], asked) == []
    assert shared([first, *rest, replace(later, start=10.5)], asked) == [
        "tile 0.0 of n1 belonged to a.0 and b.0 at 10.5"]
    assert shared([first, *rest, replace(later, start=10.5, mask=None, cores=(2,))], asked) == [
        "core 2 of n1 belonged to a.0 and b.0 at 10.5"]


def test_parts_of_a_tile_may_be_used_together_up_to_the_whole() -> None:
    asked = {name: Asked(Resources(gpu_shares=TILE // 2), "0:1/0.0") for name in "abc"}
    records = [Record(name, 1, 0, "n1", 1.0, 2.0, (0,), (core,), ("0.0",), "COMPOSITE")
               for core, name in enumerate("abc", 1)]
    assert shared(records[:2], asked) == []
    assert shared(records, asked) == ["tile 0.0 of n1 belonged to a.0 and b.0 and c.0 at 1.0"]


def test_places_are_read_as_they_are_written_for_people() -> None:
    assert parse_place("1:3 0,2:1-2/0.0,0.1") == {
        0: ({1, 2}, {"0.0", "0.1"}), 1: ({3}, set()), 2: ({1, 2}, {"0.0", "0.1"})}
    assert parse_place("0:1-2/0.0 1:1-...") == {}
