"""What people say of a block, from the command line to the tasks: tags, modes, parts, dry runs.  A fake PBS and a fake
PALS really run what they are given, on nodes that are pretended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from scripts import run
from test_sites import add, balsamfut, note, told
from waiting import unhurried, until

from balsamfut import Executor, Site, connection, query
from balsamfut.errors import UsageError

if TYPE_CHECKING:
    from pbs_site import FakePbs

pytest_plugins = ("pbs_site",)

PALS = Path(__file__).resolve().parents[1] / "fake_site" / "pals" / "bin"
BLOCK = ("queue", "submit", "--site", "page", "-t", "10", "-q", "debug-scaling", "-A", "demo")

SCRIPT = """
    from balsamfut import Executor, app

    @app
    def double(n): return 2 * n

    @app.shell("echo $BALSAMFUT_NODES", num_nodes=2, ranks_per_node=2)
    def wide(): ...

    with Executor("parts", site="page", wait=False):
        for n in range(3):
            wide()
            double.options(tags={"kind": "post"})(n)
        double(7)
    """


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_pbs: FakePbs) -> Iterator[Path]:
    """A site by the name of `page` on a pretended Aurora; not started."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "site"
    assert balsamfut("site", "init", str(place), "-n", "page", "--platform", "aurora").returncode == 0
    settings = (place / "settings.toml").read_text()
    settings = settings.replace("# pretend = false", "pretend = true")
    settings = settings.replace('# mpiexec = ""', f'mpiexec = "{PALS / "mpiexec"}"')
    (place / "settings.toml").write_text(settings)
    yield place
    for block in Site("page").queue.ls():
        balsamfut("queue", "rm", "--site", "page", str(block.id))
    if connection.read(place) is not None:
        until(lambda: not Site("page").queue.ls(), "all blocks are over", 40.0)
    balsamfut("site", "stop", "page")


def states() -> dict[int, str]:
    return {task["id"]: task["state"] for task in told("task", "ls", "--site", "page")}


def test_the_parts_of_a_block_take_different_tasks_on_nodes_of_their_own(
        site: Path, tmp_path: Path, fake_pbs: FakePbs) -> None:
    assert told("site", "start", "page")["new"]
    done = run(SCRIPT, tmp_path)
    assert (done.code, done.err) == (0, "")
    number = told(*BLOCK, "-n", "3", "--partition", "mpi:2", "--part", "serial:1:kind=post")["id"]
    until(lambda: sorted(states().values()) == ["DONE"] * 6 + ["READY"], "all but one are done", 60)
    hosts = fake_pbs.wait("R")["hosts"]
    tasks = told("task", "ls", "--site", "page")
    assert [task["state"] for task in tasks if task["app"] == "double" and not task["tags"]] == ["READY"]
    for task in tasks:
        if task["app"] == "wide":
            assert task["pilot"] == number and set(Path(task["stdout"]).read_text().split()) == {",".join(hosts[:2])}
        elif task["tags"]:
            assert task["pilot"] == number + 1 and task["place"].startswith("1:"), "0 is the leader's"
    nodes = told("node", "ls", "--site", "page")
    assert {(node["pilot"], node["name"]) for node in nodes} == {
        (number, hosts[0]), (number, hosts[1]), (number + 1, hosts[2])}
    assert {node["state"] for node in nodes} == {"up"}
    block, = Site("page").queue.ls()
    assert [Path(log).name for log in block.logs] == [f"pilot-{number}.log", f"pilot-{number + 1}.log"]
    Site("page").queue.rm(number)
    until(lambda: not Site("page").queue.ls(), "the block is over", 40.0)
    assert [(each.id, each.state) for each in Site("page").queue.ls(history=True)] == [(number, "ended")]
    with pytest.raises(UsageError, match=f"there is no block {number} here that is not over"):
        Site("page").queue.rm(number)


def test_a_dry_run_shows_what_qsub_is_given_and_gives_it_nothing(site: Path, fake_pbs: FakePbs) -> None:
    assert told("site", "start", "page")["new"]
    words = (*BLOCK, "-n", "4", "--part", "mpi:3", "--part", "any:1", "-x", "filesystems=home")
    shown = told(*words, "--dry-run")
    refused = balsamfut(*BLOCK, "-n", "4", "--part", "mpi:3", "--dry-run")
    assert refused.returncode == 2 and "the parts have 3 nodes, and the block has 4" in refused.stderr
    assert fake_pbs.calls("qsub") == [] and told("queue", "ls", "--site", "page", "--history") == []
    fake_pbs.tell("hold", "held by the test")
    number = told(*words)["id"]
    until(lambda: told("queue", "ls", "--site", "page")[0]["state"] == "queued", "it is submitted")
    block, = told("queue", "ls", "--site", "page")
    assert fake_pbs.calls("qsub") == [shown["command"]]
    assert Path(block["script"]).read_text() == shown["script"].replace("bf-dry-run", block["token"])
    assert Path(block["script"]).stat().st_mode & 0o077 == 0
    again = balsamfut(*words, "--dry-run")
    assert again.returncode == 2 and "debug-scaling takes at most 1 block of one user" in again.stderr, "it counts"
    ended = balsamfut("queue", "rm", "--site", "page", str(number), "77")
    assert ended.returncode == 2 and "there is no block 77" in ended.stderr
    assert balsamfut("queue", "rm", "--site", "page", str(number)).returncode == 0
    until(lambda: not told("queue", "ls", "--site", "page"), "it is withdrawn", 40.0)


def test_the_parts_of_a_block_on_this_machine_end_with_its_walltime(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "here"
    assert balsamfut("site", "init", str(place), "-n", "page", "--platform", "workstation").returncode == 0
    assert told("site", "start", "page")["new"]
    try:
        assert run(SCRIPT.replace("num_nodes=2, ranks_per_node=2", "ranks_per_node=2"), tmp_path).code == 0
        number = told("queue", "submit", "--site", "page", "-n", "2", "-t", f"{unhurried(18.0) / 60:.3f}",
                      "--part", "serial:1:kind=post", "--part", "mpi:1")["id"]
        until(lambda: sorted(states().values()) == ["DONE"] * 6 + ["READY"], "all but one are done", 60)
        tasks = told("task", "ls", "--site", "page")
        assert {task["pilot"] for task in tasks if task["app"] == "wide"} == {number + 1}
        assert {task["pilot"] for task in tasks if task["tags"]} == {number}
        until(lambda: not told("queue", "ls", "--site", "page"), "the block is over", 40.0)
        block, = told("queue", "ls", "--site", "page", "--history")
        assert (block["state"], block["exit_code"], len(block["logs"])) == ("ended", 0, 2)
    finally:
        balsamfut("site", "stop", "page")


def followers(run: Path) -> list[int]:
    """The processes of the agents that were started from this directory."""
    return [process.pid for process in psutil.process_iter(["cmdline"])
            if f"{run}/" in " ".join(process.info["cmdline"] or ())]


@pytest.mark.timeout(120)
def test_when_the_leader_of_a_part_dies_its_tasks_go_elsewhere_and_the_other_part_goes_on(
        site: Path, tmp_path: Path, fake_pbs: FakePbs) -> None:
    assert told("site", "start", "page")["new"]
    first, second = {"part": "first"}, {"part": "second"}
    queue = Site("page").queue
    number = queue.submit(2, 10, queue="debug-scaling", project="demo", parts=[
        {"num_nodes": 1, "filter_tags": first}, {"num_nodes": 1, "filter_tags": second}])
    with Executor("dies", site="page") as ex:
        held = note.options(tags=second)(str(tmp_path / "marks"), str(tmp_path / "gate"))
        until((tmp_path / "marks").exists, "it runs", 40.0)
        with query.open_site(site) as reader:
            leader, = [pilot.pid for pilot in reader.pilots() if pilot.id == number + 1]
        os.kill(leader, signal.SIGKILL)
        assert add.options(tags=first)(1, 2).result(40) == 3
        other = queue.submit(1, 10, queue="debug", project="demo")
        until(lambda: (tmp_path / "marks").read_text() == "xx", "it runs again", 40.0)
        (tmp_path / "gate").touch()
        assert held.result(40) == 7
        ex.detach()
    with query.open_site(site) as reader:
        assert [attempt.pilot for attempt in reader.task(held.task_id).attempts] == [number + 1, other]
        assert reader.task(held.task_id).failures == 0
    assert [block.id for block in queue.ls()] == [number, other], "the part that is left goes on"
    until(lambda: not followers(site / "run" / f"pilot-{number + 1}"), "nobody follows who has gone", 40.0)


def test_an_interchange_that_is_started_again_waits_for_every_part_of_a_block(
        site: Path, tmp_path: Path, fake_pbs: FakePbs) -> None:
    assert told("site", "start", "page")["new"]
    fake_pbs.tell("hold", "held by the test")
    number = Site("page").queue.submit(2, 10, queue="debug-scaling", project="demo", parts=[
        {"num_nodes": 1, "filter_tags": {"part": "first"}}, {"num_nodes": 1, "filter_tags": {"part": "second"}}])
    until(lambda: told("queue", "ls", "--site", "page")[0]["state"] == "queued", "it is submitted")
    assert balsamfut("site", "stop", "page").returncode == 0
    assert told("site", "start", "page")["new"]
    fake_pbs.release()
    with Executor("again", site="page") as ex:
        calls = [add.options(tags={"part": part})(1, 2) for part in ("first", "second")]
        assert [call.result(40) for call in calls] == [3, 3]
        with query.open_site(site) as reader:
            assert [reader.task(call.task_id).pilot for call in calls] == [number, number + 1]
            assert [pilot.ended for pilot in reader.pilots()] == [None, None]
        ex.detach()
