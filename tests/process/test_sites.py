"""Sites that are kept, and the blocks that they ask for, with this machine as the batch system."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, run
from waiting import unhurried, until

from balsamfut import Executor, app, connection, query
from balsamfut.errors import SiteError


def balsamfut(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "balsamfut", *words], env=environ, capture_output=True, text=True,
                          timeout=60, check=False)


def told(*words: str) -> Any:
    done = balsamfut(*words, "--json")
    assert done.returncode == 0, done.stderr
    return next(iter(json.loads(done.stdout).values()))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site by the name of `kept`, started."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "place"
    assert told("site", "init", str(place), "-n", "kept", "--platform", "workstation")["platform"] == "workstation"
    assert told("site", "start", "kept")["new"]
    yield place
    for block in told("queue", "ls", "--site", "kept"):
        balsamfut("queue", "rm", "--site", "kept", str(block["id"]))
    if connection.read(place) is not None:
        until(lambda: not told("queue", "ls", "--site", "kept"), "all blocks are over")
    balsamfut("site", "stop", "kept")


@app
def add(x: int, y: int) -> int:
    return x + y


@app
def note(path: str, gate: str) -> int:
    import time

    with open(path, "a") as file:
        file.write("x")
    while not Path(gate).exists():
        time.sleep(0.01)
    return 7


def test_nodes_and_platform_of_an_executor_are_told_not_to_be_used(site: Path, tmp_path: Path) -> None:
    done = run("""
        from balsamfut import Executor
        Executor(site="kept", nodes=2, platform="aurora").detach()
        Executor(site="kept", max_workers=2).detach()
        """, tmp_path)
    assert done.code == 0 and done.err.count("\n") == 1
    assert done.err.startswith("balsamfut: platform='aurora' and nodes=2 of the Executor are not used: the site kept ")


def test_a_script_leaves_its_tasks_and_a_block_runs_them(site: Path, tmp_path: Path) -> None:
    source = """
        from balsamfut import Executor, app
        @app
        def double(x): return 2 * x
        @app.shell("echo {{ i }}", tags={"n": "one"})
        def say(i): ...
        ex = Executor("left", site="kept", wait=False)
        calls = [double(i) for i in range(10)] + [say(i) for i in range(3)]
        print(sum(call.task_id > 0 for call in calls))
        ex.detach()
        """
    assert run(source, tmp_path).out == "13\n"
    assert {task["state"] for task in told("task", "ls", "--site", "kept")} == {"READY"}
    number = told("queue", "submit", "--site", "kept", "-n", "1", "-t", "5")["id"]
    until(lambda: {task["state"] for task in told("task", "ls", "--site", "kept")} == {"DONE"}, "all are done")
    block, = told("queue", "ls", "--site", "kept")
    assert (block["id"], block["state"], block["nodes"], block["walltime"]) == (number, "running", 1, 300.0)
    assert balsamfut("queue", "rm", "--site", "kept", str(number)).returncode == 0
    until(lambda: not told("queue", "ls", "--site", "kept"), "the block is over")
    assert [each["state"] for each in told("queue", "ls", "--site", "kept", "--history")] == ["ended"]


def test_a_pilot_works_on_while_the_site_is_stopped_and_hands_over_when_it_is_started_again(
        site: Path, tmp_path: Path) -> None:
    with Executor("over", site="kept") as ex:
        call = note(str(tmp_path / "marks"), str(tmp_path / "gate"))
        told("queue", "submit", "--site", "kept", "-n", "1", "-t", "5")
        until((tmp_path / "marks").exists, "it runs")
        ex.detach()
    assert balsamfut("site", "stop", "kept").returncode == 0
    (tmp_path / "gate").touch()
    assert told("site", "start", "kept")["new"]
    with Executor("over", site="kept"):
        assert note(str(tmp_path / "marks"), str(tmp_path / "gate")).result(30) == 7
    assert (tmp_path / "marks").read_text() == "x", "it was run again"
    assert call.task_id == 1


def test_tasks_whose_script_has_ended_go_on_when_the_site_is_started_again(site: Path) -> None:
    with Executor("left", site="kept", wait=False):
        first = add(1, 2)
        second = add(first, 3)
    assert balsamfut("site", "stop", "kept").returncode == 0
    assert told("site", "start", "kept")["new"]
    told("queue", "submit", "--site", "kept", "-n", "1", "-t", "5")
    until(lambda: {task["state"] for task in told("task", "ls", "--site", "kept")} == {"DONE"}, "all are done", 30)
    assert (first.task_id, second.task_id) == (1, 2)


def test_a_site_whose_interchange_was_killed_takes_over_its_blocks(site: Path, tmp_path: Path) -> None:
    told("queue", "submit", "--site", "kept", "-n", "1", "-t", "5")
    with Executor("killed", site="kept") as ex:
        assert add(1, 2).result(30) == 3
        ex.detach()
    found = connection.read(site)
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: not connection.runs(found.pid))
    assert told("site", "start", "kept")["new"]
    with Executor("killed", site="kept"):
        assert add(3, 4).result(30) == 7
    with query.open_site(site) as reader:
        assert len(reader.pilots()) == 1, "the block's pilot came back"


def test_a_script_waits_for_its_site_to_be_started_again(site: Path, tmp_path: Path) -> None:
    told("queue", "submit", "--site", "kept", "-n", "1", "-t", "5")
    with Executor("patient", site="kept"):
        assert add(1, 2).result(30) == 3
        found = connection.read(site)
        assert found is not None
        os.kill(found.pid, signal.SIGKILL)
        until(lambda: not connection.runs(found.pid))
        call = add(3, 4)
        with pytest.raises(TimeoutError):
            call.result(1.0)
        assert told("site", "start", "kept")["new"]
        assert call.result(30) == 7


def test_ctrl_c_ends_a_script_whose_site_is_stopped(site: Path, tmp_path: Path) -> None:
    script = """
        from balsamfut import Executor, app

        @app
        def one() -> int: return 1

        with Executor("torn", site="kept"):
            call = one()
            print(call.task_id, flush=True)
            call.result()
        """
    (tmp_path / "torn.py").write_text(textwrap.dedent(script))
    child = subprocess.Popen([sys.executable, "torn.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == "1\n"
    assert balsamfut("site", "stop", "kept").returncode == 0
    said = child.stderr.readline()
    assert "the site kept" in said and "site start kept" in said and "waiting" in said
    child.send_signal(signal.SIGINT)
    assert child.wait(20) != 0


def test_a_blocks_pilot_ends_with_its_walltime_and_gives_back_what_it_could_not_end(site: Path, tmp_path: Path) -> None:
    with Executor("short", site="kept") as ex:
        call = note(str(tmp_path / "marks"), str(tmp_path / "gate"))
        told("queue", "submit", "--site", "kept", "-n", "1", "-t", f"{unhurried(9.0) / 60:.3f}")
        until((tmp_path / "marks").exists, "it runs")
        until(lambda: not told("queue", "ls", "--site", "kept"), "the block is over", seconds=90.0)
        (tmp_path / "gate").touch()
        told("queue", "submit", "--site", "kept", "-n", "1", "-t", "5")
        assert call.result(30) == 7
        ex.detach()
    with query.open_site(site) as reader:
        first = reader.task(call.task_id).attempts[0]
    assert (tmp_path / "marks").read_text() == "xx" and first.fault == "block", "not charged"


@app.shell("read n 2>/dev/null < state || n=0; trap 'echo $n > state; exit 0' TERM; "
           "while [ $n -lt {{ steps }} ]; do n=$((n + 1)); sleep 0.1 & wait $!; done; echo $BALSAMFUT_ATTEMPT: $n",
           checkpoint=True, stop_grace=5)
def counts(steps: int) -> None: ...


def test_a_block_that_somebody_ends_tells_its_tasks_and_they_go_on_in_another(site: Path) -> None:
    with Executor("removed", site="kept") as ex:
        call = counts(40)
        number = told("queue", "submit", "--site", "kept", "-n", "1", "-t", "5")["id"]
        until(call.running, "it runs")
        assert balsamfut("queue", "rm", "--site", "kept", str(number)).returncode == 0
        until(lambda: not told("queue", "ls", "--site", "kept"), "the block is over")
        block, = told("queue", "ls", "--site", "kept", "--history")
        assert block["exit_code"] == 0, "its pilot ended by itself"
        state = int((site / "data" / "00000" / "1" / "state").read_text())
        assert 0 < state < 40
        told("queue", "submit", "--site", "kept", "-n", "1", "-t", "5")
        assert call.result(30).stdout.read_text() == "2: 40\n"
        ex.detach()
    with query.open_site(site) as reader:
        first = reader.task(1).attempts[0]
    assert (first.fault, first.error) == ("block", "its block ended while it ran")


@pytest.mark.parametrize(("words", "says"), [
    (["-n", "1", "-t", "-3"], "-t"),
    (["-n", "0", "-t", "5"], "-n"),
    (["-n", "1", "-t", "5", "-x", "filesystems"], "KEY=VALUE"),
])
def test_a_block_that_cannot_be_is_refused_with_a_sentence(site: Path, words: list[str], says: str) -> None:
    done = balsamfut("queue", "submit", "--site", "kept", *words)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert told("queue", "ls", "--site", "kept", "--history") == []


def test_a_site_in_a_directory_with_blanks_quotes_and_umlauts_has_blocks(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "my sites' \"$HOME\" `ü` 日本" / "one"
    told("site", "init", str(place), "-n", "odd", "--platform", "workstation")
    told("site", "start", "odd")
    try:
        told("queue", "submit", "--site", "odd", "-n", "1", "-t", "5")
        with Executor("odd", site="odd") as ex:
            assert add(20, 22).result(30) == 42
            assert ex.submit(os.getcwd).result(30)
    finally:
        assert balsamfut("site", "stop", "odd", "--blocks").returncode == 0
    settings = place / "settings.toml"
    settings.write_text(settings.read_text().replace('# provider = ""', 'provider = "pbs"'))
    done = balsamfut("queue", "submit", "--site", "odd", "-n", "1", "-t", "5", "--dry-run")
    assert done.returncode == 2 and "move the site to a directory without" in done.stderr


def test_a_site_is_made_once_and_a_script_starts_none_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = str(tmp_path / "place")
    assert balsamfut("site", "init", place, "-n", "twice", "--platform", "aurora").returncode == 0
    again = balsamfut("site", "init", place, "-n", "twice", "--platform", "aurora")
    assert again.returncode == 2 and "a site already" in again.stderr
    other = balsamfut("site", "init", str(tmp_path / "other"), "-n", "twice")
    assert other.returncode == 2 and "already" in other.stderr and not (tmp_path / "other").exists()
    wrong = balsamfut("site", "init", str(tmp_path / "third"), "--platform", "auroar")
    assert wrong.returncode == 2 and "aurora" in wrong.stderr
    with pytest.raises(SiteError, match="balsamfut site start twice"):
        Executor(site="twice")
    assert "pilot.platform" in balsamfut("settings", "--site", "twice").stdout
    assert [each["name"] for each in told("site", "ls")] == ["twice"]


def test_a_key_that_others_can_read_is_refused(site: Path) -> None:
    (site / "keys" / "client.json").chmod(0o644)
    with pytest.raises(SiteError, match=r"must be yours alone: chmod"):
        Executor(site=site)
    (site / "keys" / "client.json").chmod(0o600)
