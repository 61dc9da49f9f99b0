from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from balsamfut import platforms, settings
from balsamfut.errors import SettingsError
from balsamfut.platforms import cpu_list, cpu_text, probe
from balsamfut.provider.recipe import Recipe
from balsamfut.settings import Pilot, Settings


@pytest.mark.parametrize("name", platforms.names())
def test_every_data_file_describes_a_machine_consistently(name: str) -> None:
    platform = platforms.load(name)
    node = platform.node
    assert platform.name == name
    assert datetime.date.fromisoformat(platform.verified_on)
    assert len(node.numa) == len(node.cores) == len(set(node.cores)) > 0
    owned = [core for tile in node.tiles for core in tile.cores]
    assert len(owned) == len(set(owned))           # no core belongs to two tiles
    assert set(owned) <= set(node.cores)
    side = dict(zip(node.cores, node.numa, strict=True))
    for tile in node.tiles:
        assert all(side[core] == tile.numa for core in tile.cores)
        assert set(tile.masks) == set(platform.modes)
    for mode in platform.modes:
        assert len({tile.masks[mode] for tile in node.tiles}) == len(node.tiles)
    assert bool(node.tiles) == bool(platform.mask_env)


def test_the_machines_of_the_alcf_and_their_neighbours_are_there() -> None:
    assert set(platforms.names()) == {
        "aurora", "polaris", "crux", "sophia", "perlmutter-gpu", "frontier", "workstation"}
    assert platforms.load("perlmutter").name == "perlmutter-gpu"


def test_aurora_has_102_usable_cores_and_12_tiles_on_6_gpus_and_2_sides() -> None:
    aurora = platforms.load("aurora")
    node = aurora.node
    assert len(node.cores) == 102
    assert not {0, 52, 104, 156} & set(node.cores)
    assert [tile.id for tile in node.tiles] == [f"{g}.{t}" for g in range(6) for t in range(2)]
    for k, tile in enumerate(node.tiles):
        first = 1 + 8 * k if k < 6 else 53 + 8 * (k - 6)
        assert tile.cores == tuple(range(first, first + 8))
        assert (tile.gpu, tile.numa) == (k // 2, k // 6)
        assert tile.masks == {"COMPOSITE": tile.id, "FLAT": str(k)}
    assert (aurora.launcher.flavour, aurora.max_nodes) == ("pals", 10624)
    assert aurora.mask_env == "ZE_AFFINITY_MASK"
    assert aurora.mask_extra_env == {"ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}
    assert (aurora.mode_env, aurora.mode) == ("ZE_FLAT_DEVICE_HIERARCHY", "COMPOSITE")
    assert node.memory == 960 * 10**9


def test_the_gpus_of_polaris_count_against_its_numa_nodes() -> None:
    tiles = platforms.load("polaris").node.tiles
    assert [(tile.numa, tile.cores[0]) for tile in tiles] == [(3, 24), (2, 16), (1, 8), (0, 0)]


def test_frontier_reserves_the_first_core_of_each_l3() -> None:
    node = platforms.load("frontier").node
    assert len(node.cores) == 56
    assert not set(range(0, 64, 8)) & set(node.cores)


def test_siblings_are_added_only_as_far_as_the_node_has_them() -> None:
    node = platforms.load("aurora").node
    assert node.threads((1, 2), 1) == (1, 2)
    assert node.threads((1, 2), 2) == (1, 2, 105, 106)
    assert node.threads((1, 2), 4) == (1, 2, 105, 106)


def test_overrides_merge_tables_and_replace_values() -> None:
    aurora = platforms.load("aurora", {"node": {"cores": "1-47"}, "env": {"A": "b"}, "accelerators": {"mode": "FLAT"},
                                       "launcher": {"exe": "/opt/mpiexec"}})
    assert len(aurora.node.cores) == 47
    assert len(aurora.node.tiles) == 12
    assert aurora.node.tiles[5].cores == tuple(range(41, 48))   # what is not usable is no tile's own either
    assert aurora.env == {"TMPDIR": "/tmp", "A": "b"}
    assert (aurora.launcher.flavour, aurora.launcher.exe) == ("pals", "/opt/mpiexec")
    assert aurora.mode == "FLAT"


@pytest.mark.parametrize(("overrides", "words"), [
    ({"node": {"coress": "1-8"}}, "coress"),
    ({"node": {"cores": "1-x"}}, "'1-x'"),
    ({"node": {"cores": ""}}, "node.cores"),
    ({"max_nodes": "many"}, "max_nodes"),
    ({"node": 3}, "node"),
    ({"accelerators": {"mode": "COMBINED"}}, "COMBINED"),
    ({"accelerators": {"mask_env": ""}}, "mask_env"),
])
def test_overrides_that_do_not_fit_are_refused_naming_the_platform_and_the_place(overrides: dict, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        platforms.load("aurora", overrides)
    assert "'aurora'" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_platform_is_refused_naming_the_close_ones() -> None:
    with pytest.raises(SettingsError, match="'auroa'.*did you mean aurora"):
        platforms.load("auroa")
    with pytest.raises(SettingsError, match="there are aurora, crux"):
        platforms.load("xyzzy")
    with pytest.raises(SettingsError):
        platforms.load("../platforms/aurora")


def test_the_workstation_is_this_machine_and_binds_nothing() -> None:
    here = platforms.workstation()
    assert here.node.cores == tuple(sorted(os.sched_getaffinity(0)))
    assert here.node.memory > 10**8
    assert here.node.tiles == ()
    assert not here.bind
    assert here.launcher.flavour == ""
    assert platforms.load("workstation") == here


def test_a_workstation_may_be_given_fewer_or_more_cores_than_there_are() -> None:
    assert len(platforms.workstation(1).node.cores) == 1
    more = len(os.sched_getaffinity(0)) + 3
    big = platforms.workstation(more, {"bind": True})
    assert len(big.node.cores) == len(set(big.node.cores)) == len(big.node.numa) == more
    assert not big.bind                # cores that do not exist cannot be bound to
    assert platforms.workstation(1, {"bind": True}).bind
    with pytest.raises(SettingsError, match="at least 1 core, not 0"):
        platforms.workstation(0)


def test_a_workstation_can_be_given_gpus_by_its_settings() -> None:
    tiles = [{"id": "0", "gpu": 0, "mask": "0"}, {"id": "1", "gpu": 1, "mask": "1"}]
    here = platforms.load("workstation", {"accelerators": {"mask_env": "CUDA_VISIBLE_DEVICES", "tiles": tiles}})
    assert [tile.masks for tile in here.node.tiles] == [{"": "0"}, {"": "1"}]


@pytest.mark.parametrize(("host", "environ", "name"), [
    ("aurora-uan-0011.hostmgmt.cm.aurora.alcf.anl.gov", {}, "aurora"),
    ("x4109c0s0b0n0.hsn.cm.aurora.alcf.anl.gov", {}, "aurora"),
    ("x3001c0s1b0n0.hsn.cm.polaris.alcf.anl.gov", {}, "polaris"),
    ("login04.frontier.olcf.ornl.gov", {}, "frontier"),
    ("login11", {"NERSC_HOST": "perlmutter"}, "perlmutter-gpu"),
    ("crux-login-02", {}, "crux"),
    ("laptop.local", {}, "workstation"),
])
def test_a_machine_is_recognised_by_its_name_or_environment(host: str, environ: dict[str, str], name: str) -> None:
    assert platforms.detect(host, environ) == name


def test_cpu_lists_are_read_and_written() -> None:
    assert cpu_list("1-3, 8,10-10") == (1, 2, 3, 8, 10)
    assert cpu_text((10, 1, 3, 2, 8)) == "1-3,8,10"
    assert cpu_list("") == ()
    assert cpu_text(()) == ""
    with pytest.raises(ValueError, match="'8-1'"):
        cpu_list("8-1")


def test_the_flavour_of_a_launcher_is_told_by_its_path_or_its_version() -> None:
    assert probe.flavour_of("/opt/cray/pals/1.8/bin/mpiexec") == "pals"
    assert probe.flavour_of("/usr/bin/mpiexec.hydra") == "hydra"
    assert probe.flavour_of("/usr/bin/prterun") == "openmpi"
    assert probe.flavour_of("/usr/bin/mpiexec", "HYDRA build details:\n    Version: 5.0.2") == "hydra"
    assert probe.flavour_of("/usr/bin/mpiexec", "mpiexec (Open MPI) 5.0.11") == "openmpi"
    assert probe.flavour_of("/usr/bin/mpiexec", "something else") == ""


@pytest.mark.parametrize(("text", "says"), [
    ("[node]\ncoers = '1-4'\n", r"there is no key coers in \[node\]; did you mean cores\?"),
    ("[shceduler]\nkind = 'pbs'\n", r"there is no table \[shceduler\]; did you mean scheduler\?"),
    ("cores = 3\n", "there is no key cores outside of the tables"),
    ("[scheduler]\nkindd = 'pbs'\n", r"there is no key kindd in \[scheduler\]; did you mean kind\?"),
    ("[scheduler]\nkind = 'pbz'\n", r"\[scheduler\] kind is one of pbs, slurm, local, not 'pbz'"),
    ("[network]\ncalback_interface = 'x'\n", r"did you mean callback_interface\?"),
    ("[node]\nsmt = 'x'\n", "node.smt takes a whole number, not a text"),
    ("[node]\ncores = 4\n", "node.cores takes a text, not a whole number"),
    ("[[accelerators.tiles]]\nid = '0'\ngpu = 0\nmask = '0'\ncoers = '1'\n",
     r"there is no key coers in \[accelerators.tiles\]"),
    ("[node\n", "cannot be read: Expected ']'"),
    ("a = '\xff'\n", "cannot be read"),
])
def test_what_is_wrong_in_a_sites_own_description_is_told_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "platform.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=says) as refused:
        platforms.at(tmp_path, "aurora")
    assert str(tmp_path / "platform.toml") in str(refused.value)


@pytest.mark.parametrize(("text", "says"), [
    ("[scheduler.pace]\nevry = 3\n", r"there is no key evry in \[scheduler.pace\]; did you mean every"),
    ("[scheduler.pace]\nevery = 'often'\n", "pace.every takes a number, not a text"),
    ("[scheduler.pace]\nevery = 0\n", "> 0"),
    ("[scheduler]\npace = 3\n", "pace takes a table, not a whole number"),
    ("[scheduler]\nselect = 'nodes=2'\n", "must begin with select= and contain {nodes}"),
])
def test_what_a_batch_system_cannot_be_asked_by_is_told_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "platform.toml").write_text(text)
    with pytest.raises(SettingsError, match=says) as refused:
        Recipe.of(tmp_path, Settings(pilot=Pilot(platform="aurora")))
    assert str(tmp_path / "platform.toml") in str(refused.value)


def test_queues_of_the_elastic_queue_are_those_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[pilot]\nplatform = 'aurora'\n[elastic]\nqueues = 'debug prodd'\n")
    with pytest.raises(SettingsError, match=r"settings.toml: \[elastic\] queues names prodd, which aurora has not; did "
                                            r"you mean prod\?"):
        Recipe.of(tmp_path, settings.load(tmp_path, {}))
    (tmp_path / "settings.toml").write_text("[elastic]\nqueues = 'night'\n")     # whose queues nobody has described
    assert Recipe.of(tmp_path, settings.load(tmp_path, {})).queues == ()
