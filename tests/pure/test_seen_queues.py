"""What batch systems say of their queues is understood, and held against the platforms' tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from balsamfut import platforms
from balsamfut.platforms.queues import Band, Queue, tables
from balsamfut.provider.seen import Seen, compare, read

TRANSCRIPT = Path(__file__).parents[1] / "transcripts" / "openpbs" / "07-queues-nodes-server-json.txt"
SLURM = (
    "PartitionName=debug AllowGroups=ALL AllowAccounts=ALL AllocNodes=ALL Default=YES QoS=N/A DefaultTime=NONE "
    "DisableRootJobs=NO ExclusiveUser=NO Hidden=NO MaxNodes=UNLIMITED MaxTime=01:00:00 MinNodes=0 LLN=NO Nodes=n[1-3] "
    "PriorityTier=1 State=UP TotalCPUs=6 TotalNodes=3\n"
    "PartitionName=long AllowGroups=ALL Default=NO MaxNodes=2 MaxTime=7-00:00:00 MinNodes=1 Nodes=n[1-3] State=DOWN "
    "TotalCPUs=6 TotalNodes=3\n"
    "PartitionName=old MaxNodes=2 MaxTime=UNLIMITED MinNodes=1 State=DRAIN TotalNodes=3\n")


def first_answer() -> str:
    return TRANSCRIPT.read_text().split("--- stdout:\n", 1)[1].split("--- stderr:", 1)[0]


def test_what_pbs_says_of_its_queues_is_understood() -> None:
    seen = read("pbs", first_answer())
    assert seen["debug"] == Seen("debug", 1, 2, 5.0, 3600.0, (1, "user"), (1, "user"))
    assert seen["prod"] == Seen("prod", routes=("small", "medium"))
    assert seen["small"] == Seen("small", 2, 3, None, 43200.0, routed=True)
    assert (seen["disabled"].enabled, seen["stopped"].started, seen["workq"]) == (False, False, Seen("workq"))


def test_what_slurm_says_of_its_partitions_is_understood() -> None:
    assert read("slurm", SLURM) == {
        "debug": Seen("debug", None, 3, None, 3600.0), "long": Seen("long", 1, 2, None, 604800.0, started=False),
        "old": Seen("old", 1, 2, enabled=False)}


@pytest.mark.parametrize(("kind", "text"), [
    ("pbs", ""), ("pbs", "{"), ("pbs", '{"Queue": 3}'), ("pbs", '{"Queue": {"a": 3}}'), ("pbs", "{}"), ("slurm", ""),
    ("slurm", "Unable to contact slurm controller"), ("pbs", "[]")])
def test_an_answer_that_is_none_is_said_to_be_none(kind: str, text: str) -> None:
    with pytest.raises(ValueError):
        read(kind, text)


DEBUG = Queue("debug", 1, 2, 300.0, 3600.0, 1, 1)
PROD = Queue("prod", 2, 4, 300.0, 64800.0, routing=True, bands=(Band(2, 3, 43200.0), Band(4, 4, 64800.0)))


def test_a_table_that_is_right_differs_nowhere() -> None:
    assert compare([DEBUG, PROD], read("pbs", first_answer()), "PBS") == []


@pytest.mark.parametrize(("change", "text"), [
    ({"max_nodes": 4}, "the table says at most 4 nodes, PBS 2"),
    ({"max_wall": 7200.0}, "the table says at most 2 h, PBS 1 h"),
    ({"min_wall": 1.0}, "the table says at least 1 s, PBS 5 s"),
    ({"max_queued": 3}, "of blocks there at a time the table says at most 3 of a user, PBS at most 1 of a user"),
    ({"max_running": 0}, "of blocks that run at a time the table says no limit, PBS at most 1 of a user"),
    ({"per": "project"}, "the table says at most 1 of a project, PBS at most 1 of a user"),
    ({"name": "debgu"}, "PBS has no such queue"),
    ({"name": "disabled", "max_queued": 0}, "disabled: nothing can be submitted"),
    ({"name": "stopped"}, "stopped: blocks there do not start"),
    ({"routing": True}, "the table says that it routes, and in PBS blocks run in it"),
    ({"name": "prod"}, "PBS routes what comes there to small, medium"),
])
def test_each_difference_is_told(change: dict[str, Any], text: str) -> None:
    wrong = compare([Queue(**{**{name: getattr(DEBUG, name) for name in DEBUG.__struct_fields__}, **change})],
                    read("pbs", first_answer()), "PBS")
    assert text in wrong[0].text and wrong[0].queue == change.get("name", "debug")
    assert wrong[0].wrong == ("now" not in wrong[0].text)


def test_bands_are_held_against_the_queues_that_are_routed_to() -> None:
    bands = (Band(2, 3, 3600.0), Band(9, 12, 3600.0))
    texts = [each.text for each in compare([Queue("prod", 2, 12, 300.0, 3600.0, routing=True, bands=bands)],
                                           read("pbs", first_answer()), "PBS")]
    assert texts == ["the table says at most 1 h for 2 to 3 nodes, PBS 12 h (in small)",
                     "the table says that it takes 9 to 12 nodes, and none of small, medium does",
                     "PBS routes to medium too, for 4 to 4 nodes, which the table does not have"]


def test_the_tables_of_the_platforms_are_right_where_the_batch_system_says_what_they_say() -> None:
    for name in platforms.names():
        table = tables(platforms.load(name))
        listed: dict[str, Any] = {}
        for queue in table:
            listed[queue.name] = described(queue.min_nodes, queue.max_nodes, queue.max_wall)
            if queue.routing:
                bands = queue.bands or (Band(queue.min_nodes, queue.max_nodes, queue.max_wall),)
                routes = {f"band{number}": band for number, band in enumerate(bands)}
                listed[queue.name] = {"route_destinations": ",".join(routes)}
                listed |= {each: described(band.min_nodes, band.max_nodes, band.max_wall)
                           for each, band in routes.items()}
        seen = read("pbs", json.dumps({"Queue": listed})) if listed else {}
        assert compare(table, seen, "PBS") == [], name


def described(least: int, most: int, wall: float) -> dict[str, Any]:
    return {"resources_min": {"nodect": least}, "resources_max": {"nodect": most, "walltime": f"00:00:{int(wall)}"}}
