"""The agents of a block that is split: their arguments, and which nodes each of them leads."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from balsamfut import platforms
from balsamfut.errors import SiteError
from balsamfut.pilot import agent, parts
from balsamfut.pilot.gather import hosts_of, node_names
from balsamfut.provider.recipe import Recipe
from balsamfut.queuemessages import Part, SubmitBlock

WORDS = ["--site", "/site", "--pilot", "7", "--token", "bf-1", "--platform", "aurora"]


def test_each_part_has_a_pilot_and_a_token_of_its_own_and_the_nodes_that_follow() -> None:
    found = [agent.parse(words) for words in parts.agents([3, 1, 2], [*WORDS, "--batch"])]
    assert [(each.pilot, each.token, each.part) for each in found] == [
        (7, "bf-1", (0, 3)), (8, "bf-1-1", (3, 1)), (9, "bf-1-2", (4, 2))]
    assert all(each.batch and each.site == "/site" for each in found)


def test_what_a_recipe_asks_for_is_what_the_parts_are_started_with() -> None:
    recipe = Recipe(Path("/site"), platforms.load("aurora"), "pbs")
    block = SubmitBlock(1, 4, 600.0, "debug", "demo", parts=[Part(3, "mpi"), Part(1)])
    argv = recipe.spec(block, 7, "bf-1").argv
    assert "balsamfut.pilot.parts" in argv[3] and argv[4:6] == ("--parts", "3,1")
    first, second = (agent.parse(words) for words in parts.agents([3, 1], argv[6:]))
    assert (first.pilot, second.pilot, second.part, second.walltime) == (7, 8, (3, 1), 600.0)


@pytest.mark.parametrize(("part", "hosts"), [
    ("0:2", ["HERE", "x2"]),
    ("0:1", ["HERE"]),
    ("2:2", ["HERE", "x3", "x4"]),        # led from here: the first is lent
    ("3:4", ["HERE", "x4"]),              # the batch system gave fewer than were asked for
])
def test_a_part_has_its_share_of_the_hosts_behind_the_one_that_it_is_led_from(
        tmp_path: Path, part: str, hosts: list[str]) -> None:
    here = socket.gethostname()
    (tmp_path / "hosts").write_text(f"{here}\nx2\nx3\nx4\n")
    options = agent.parse([*WORDS, "--hosts", str(tmp_path / "hosts"), "--part", part])
    assert hosts_of(options) == [here if host == "HERE" else host for host in hosts]


def test_a_part_for_which_there_are_no_hosts_says_so(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(f"{socket.gethostname()}\n")
    with pytest.raises(SiteError, match="this part of the block begins behind node 2, and the batch system gave 1"):
        hosts_of(agent.parse([*WORDS, "--hosts", str(tmp_path / "hosts"), "--part", "2:1"]))


def test_pretended_nodes_of_parts_have_names_of_their_own() -> None:
    platform = platforms.load("aurora")
    options = agent.parse([*WORDS, "--nodes", "4", "--pretend", "--part", "3:1"])
    assert node_names(platform, options) == ["aurora-3"]
    assert node_names(platform, agent.parse([*WORDS, "--nodes", "2", "--pretend"])) == ["aurora-0", "aurora-1"]
