"""The test of a node when its agent starts: each lack is one sentence, and what is not known is none."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from balsamfut import platforms
from balsamfut.pilot import smoke
from balsamfut.pilot.smoke import Facts

AURORA = platforms.load("aurora")
GOOD = Facts(room=10 << 30, cpus=frozenset(range(208)), memory=1_100 * 10**9,
             sides=(frozenset([*range(52), *range(104, 156)]), frozenset([*range(52, 104), *range(156, 208)])),
             devices={"/dev/dri/renderD*": 6, "/dev/nvidia[0-9]*": 0})


def said(platform: platforms.Platform, pretend: bool = False, **changed: object) -> list[str]:
    return smoke.judge(platform, msgspec.structs.replace(GOOD, **changed), pretend)


def test_a_node_as_described_has_no_problems() -> None:
    assert said(AURORA) == []


def test_what_is_not_known_is_no_problem() -> None:
    assert smoke.judge(AURORA, Facts(), False) == []


@pytest.mark.parametrize("changed, sentence", [
    ({"unwritable": "Read-only file system"}, "no file can be made in /tmp: Read-only file system"),
    ({"room": 3 << 20}, "/tmp has 3 MiB left, and 256 MiB are needed"),
    ({"cpus": frozenset(range(50))},
     "cores 50-51,53-103 of aurora may not be used here: this process has the CPUs 0-49"),
    ({"sides": (frozenset(range(208)),)},
     "the cores of aurora are on 2 NUMA nodes (1-51 | 53-103), and here on 1 (1-51,53-103)"),
    ({"memory": 512 * 10**9}, "this node has 512 GB of memory, and aurora has 960 GB"),
    ({"devices": {"/dev/dri/renderD*": 5}}, "this node has 5 accelerators (/dev/dri/renderD*), and aurora has 6"),
])
def test_each_lack_is_one_sentence(changed: dict[str, object], sentence: str) -> None:
    assert said(AURORA, **changed) == [sentence]


def test_all_lacks_are_told() -> None:
    assert len(said(AURORA, room=0, cpus=frozenset({1}), memory=1, devices={"/dev/dri/renderD*": 0})) == 4


def test_four_fifths_of_the_memory_are_enough() -> None:
    assert said(AURORA, memory=768 * 10**9) == []
    assert len(said(AURORA, memory=768 * 10**9 - 1)) == 1


def test_numa_nodes_without_usable_cores_do_not_count() -> None:
    assert said(AURORA, sides=(*GOOD.sides, frozenset({208, 209}))) == []


def test_a_pretended_node_needs_only_room_for_temporary_files() -> None:
    assert said(AURORA, True, cpus=frozenset({0}), memory=1, devices={"/dev/dri/renderD*": 0}) == []
    assert len(said(AURORA, True, room=1)) == 1


@pytest.mark.parametrize("name, pattern, number", [
    ("polaris", "/dev/nvidia[0-9]*", 4), ("sophia", "/dev/nvidia[0-9]*", 8), ("frontier", "/dev/dri/renderD*", 8)])
def test_accelerators_are_counted_as_each_kind_shows_itself(name: str, pattern: str, number: int) -> None:
    platform = platforms.load(name)
    enough, lacking = Facts(devices={pattern: number}), Facts(devices={pattern: number - 1})
    assert smoke.judge(platform, enough, False) == []
    assert smoke.judge(platform, lacking, False) == [
        f"this node has {number - 1} accelerators ({pattern}), and {name} has {number}"]


def test_a_platform_without_accelerators_does_not_look_for_any() -> None:
    assert smoke.judge(platforms.load("crux"), Facts(devices={"/dev/dri/renderD*": 0}), False) == []


def test_a_workstation_that_is_asked_for_more_cores_than_it_has_is_not_bound_to_them() -> None:
    many = platforms.workstation(len(os.sched_getaffinity(0)) + 3)
    assert smoke.judge(many, Facts(cpus=frozenset({0})), False) == []


def test_this_machine_is_as_it_is_described() -> None:
    found = [sentence for sentence in smoke.problems(platforms.workstation(), False) if "MiB left" not in sentence]
    assert found == []


def test_a_directory_that_is_not_there_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    assert smoke.problems(AURORA, True) == [f"no file can be made in {tmp_path / 'gone'}: No such file or directory"]


def test_looking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke.tempfile, "gettempdir", lambda: str(tmp_path))
    facts = smoke.look()
    assert not facts.unwritable and facts.cpus and facts.memory and list(tmp_path.iterdir()) == []
