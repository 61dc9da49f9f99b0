"""What people say of a block, from the command line to the tasks: tags, modes, parts, dry runs.  A fake PBS and a fake
PALS really run what they are given, on nodes that are pretended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scripts import run
from test_sites import balsamfut, told
from waiting import until

from balsamfut import Site, connection
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
