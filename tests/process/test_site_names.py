"""Making sites, and finding them by name, by directory and by where one is."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scripts import ROOT
from test_sites import balsamfut, told

from balsamfut import Executor, Site, app, settings, sites
from balsamfut.errors import SettingsError, SiteError


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("BALSAMFUT_SITE", raising=False)
    monkeypatch.chdir(tmp_path)


def refused(*words: str, says: str) -> None:
    done = balsamfut(*words)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_site_is_found_by_name_variable_directory_and_from_within(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    sites.init(place, "kept", "workstation")
    inside = place / "data" / "00000"
    inside.mkdir(parents=True)
    assert {sites.find(given) for given in ("kept", str(place), "./place", "place")} == {place}
    assert Site("kept").path == place
    monkeypatch.setenv("BALSAMFUT_SITE", "kept")
    assert sites.find() == place and Site().path == place
    monkeypatch.delenv("BALSAMFUT_SITE")
    assert sites.find() == tmp_path / ".balsamfut"
    for here in (place, inside):
        monkeypatch.chdir(here)
        assert sites.find() == place
        refused("queue", "ls", says="`balsamfut site start kept`")
        with pytest.raises(SiteError, match="balsamfut site start kept"):
            Executor()


def test_a_scripts_own_site_is_nearer_than_a_kept_one_around_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites.init(tmp_path / "place", "kept", "workstation")
    own = tmp_path / "place" / "work" / ".balsamfut"
    own.mkdir(parents=True)
    (own / "settings.toml").touch()
    monkeypatch.chdir(own.parent)
    assert sites.find() == own == sites.find(str(own.parent))
    assert sites.find("kept") == tmp_path / "place"


def test_a_directory_that_is_no_site_does_not_hide_a_sites_name(tmp_path: Path) -> None:
    sites.init(tmp_path / "place", "kept", "workstation")
    (tmp_path / "kept").mkdir()
    assert sites.find("kept") == tmp_path / "place" and sites.find("./kept") == tmp_path / "kept"


def test_a_name_that_is_nearly_one_is_refused_everywhere(tmp_path: Path) -> None:
    sites.init(tmp_path / "place", "my-site", "workstation")
    for words in (["queue", "ls", "-s", "my-stie"], ["site", "start", "my-stie"], ["site", "stop", "-s", "my-stie"],
                  ["status", "--site", "my-stie"], ["settings", "-s", "my-stie"]):
        refused(*words, says="did you mean my-site?")
    with pytest.raises(SiteError, match=r"did you mean my-site\?"):
        Executor(site="my-stie")
    assert not (tmp_path / "my-stie").exists()


def test_a_name_that_is_none_is_refused_and_makes_no_directory(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SiteError, match="no site of the name 'production'; `balsamfut site init` makes one"):
        Executor(site="production")
    sites.init(tmp_path / "place", "my-site", "workstation")
    with pytest.raises(SiteError, match="`balsamfut site ls` lists those there are"):
        Executor(site="production")
    monkeypatch.setenv("BALSAMFUT_SITE", "production")
    refused("status", says="no site of the name 'production'")
    with pytest.raises(SiteError, match="production"):
        Executor()
    assert not (tmp_path / "production").exists()
    (tmp_path / "production").mkdir()      # a directory that is there is as good as a path
    assert sites.find() == tmp_path / "production"


def test_what_cannot_be_a_site_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    sites.init(tmp_path / "place", "kept", "workstation")
    refused("site", "init", str(tmp_path / "other"), "-n", "kept", says="already, in")
    refused("site", "init", str(tmp_path / "place"), "-n", "new", says="is a site already")
    refused("site", "init", str(tmp_path / "other"), "--platform", "aurroa", says="did you mean aurora?")
    refused("site", "init", str(tmp_path / "other"), "-n", "a b", says="cannot be a site's name")
    (tmp_path / "file").touch()
    refused("site", "init", str(tmp_path / "file"), says="no site can be made in")
    refused("site", "init", "/proc/site", says="no site can be made in")
    assert "PATH is empty" in balsamfut("site", "init", "").stderr
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "settings.toml").write_text("[elastik]\n")
    refused("site", "init", str(tmp_path / "wrong"), says="did you mean elastic?")
    assert not (tmp_path / "other").exists() and [each["name"] for each in told("site", "ls")] == ["kept"]
    assert sorted(os.listdir(tmp_path / "config" / "balsamfut")) == ["sites.lock", "sites.toml"]


def test_many_who_make_sites_at_once_are_all_in_the_list(tmp_path: Path) -> None:
    names = [f"site{number}" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda name: balsamfut("site", "init", str(tmp_path / name)), names))
        same = list(pool.map(lambda n: balsamfut("site", "init", str(tmp_path / f"same{n}"), "-n", "same"), range(4)))
    assert [each.returncode for each in done] == [0] * 6
    assert sorted(each.returncode for each in same) == [0, 2, 2, 2]
    assert sorted(sites.known()) == ["same", *names]


def test_a_site_that_is_gone_is_listed_so_forgotten_and_its_name_free_again(tmp_path: Path) -> None:
    sites.init(tmp_path / "place", "kept", "workstation")
    (tmp_path / "place").rename(tmp_path / "away")
    assert [each["there"] for each in told("site", "ls")] == [False]
    assert "site rm" in balsamfut("site", "ls").stdout
    assert told("site", "init", str(tmp_path / "again"), "-n", "kept")["path"] == str(tmp_path / "again")
    assert balsamfut("site", "rm", "kept").returncode == 0 and (tmp_path / "again" / "site.toml").exists()
    refused("site", "rm", "kept", says="no site of the name 'kept'")
    assert told("site", "ls") == []


def test_a_site_that_was_moved_or_copied_is_not_started_until_somebody_says_that_this_is_right(tmp_path: Path) -> None:
    sites.init(tmp_path / "place", "kept", "workstation")
    (tmp_path / "place").rename(tmp_path / "away")
    refused("site", "start", str(tmp_path / "away"), says="`balsamfut site add")
    assert sorted(os.listdir(tmp_path / "away")) == ["settings.toml", "site.toml"]
    assert told("site", "add", str(tmp_path / "away"))["name"] == "kept" and sites.find("kept") == tmp_path / "away"
    subprocess.run(["cp", "-r", str(tmp_path / "away"), str(tmp_path / "copy")], check=True)
    refused("site", "start", str(tmp_path / "copy"), says="is a copy of the site kept in")
    refused("site", "add", str(tmp_path / "copy"), says="already, in")
    assert told("site", "add", str(tmp_path / "copy"), "-n", "second")["name"] == "second"
    assert sites.moved(tmp_path / "copy", Site_of(tmp_path / "copy")) is None
    assert sites.known() == {"kept": tmp_path / "away", "second": tmp_path / "copy"}


def Site_of(directory: Path) -> sites.Site:
    found = sites.read(directory)
    assert found is not None
    return found


def test_a_running_site_that_was_copied_is_not_taken_for_its_copy(tmp_path: Path) -> None:
    sites.init(tmp_path / "place", "kept", "workstation")
    first = told("site", "start", "kept")
    subprocess.run(["cp", "-r", str(tmp_path / "place"), str(tmp_path / "copy")], check=True)
    try:
        assert "none runs" in balsamfut("site", "status", str(tmp_path / "copy")).stdout
        assert told("site", "start", "kept") == {**first, "new": False}
    finally:
        assert balsamfut("site", "stop", "kept").returncode == 0


def test_on_a_terminal_it_asks_who_pays_where_the_machine_wants_to_know_and_nowhere_else(tmp_path: Path) -> None:
    for platform, answer, project in (("aurora", b"datascience\n", "datascience"), ("workstation", b"", "")):
        place = tmp_path / platform
        words = [sys.executable, "-m", "balsamfut", "site", "init", str(place), "--platform", platform]
        master, slave = pty.openpty()
        os.write(master, answer)
        done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=slave, capture_output=True,
                              text=True, timeout=30, check=False)
        os.close(slave)
        os.close(master)
        assert done.returncode == 0, done.stderr
        assert ("pays" in done.stderr) == bool(answer) and settings.load(place).elastic.project == project


def test_settings_that_were_prepared_before_stay_with_their_comments(tmp_path: Path) -> None:
    text = '# mine\n[pilot]\n# why\nplatform = "workstation"\n'
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "settings.toml").write_text(text)
    assert balsamfut("site", "init", str(tmp_path / "place")).returncode == 0
    assert (tmp_path / "place" / "settings.toml").read_text() == text


def test_a_list_of_names_that_is_damaged_is_said_so(tmp_path: Path) -> None:
    sites.init(tmp_path / "place", "kept", "workstation")
    sites.registry().write_text("[sites\n")
    refused("site", "ls", says="the list of sites")
    refused("site", "init", str(tmp_path / "other"), says="the list of sites")
    assert not (tmp_path / "other").exists()
    assert sites.find(str(tmp_path / "place")) == tmp_path / "place", "who names a directory needs no list"


@app
def one() -> int:
    return 1


def test_an_executor_by_name_attaches_and_leaves_the_site_running(tmp_path: Path) -> None:
    sites.init(tmp_path / "place", "kept", "workstation")
    with pytest.raises(SiteError, match="the site kept .* is not running: `balsamfut site start kept`"):
        Executor(site="kept")
    first = told("site", "start", "kept")
    try:
        with Executor("c", site="kept", wait=False):
            one()
        assert told("site", "start", "-s", "kept") == {**first, "new": False}
        with pytest.raises(SettingsError, match="did you mean aurora"):
            Executor(site="kept", platform="aurroa")
    finally:
        assert balsamfut("site", "stop", "-s", "kept").returncode == 0
