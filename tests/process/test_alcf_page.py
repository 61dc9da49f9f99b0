"""What the ALCF page about Balsam does, step by step, on a site with a batch system: a fake PBS and a fake PALS that
really run what they are given, two nodes that are pretended."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scripts import run
from test_sites import balsamfut, told
from waiting import until

from balsamfut import Site

if TYPE_CHECKING:
    from pbs_site import FakePbs

pytest_plugins = ("pbs_site",)

PALS = Path(__file__).resolve().parents[1] / "fake_site" / "pals" / "bin"

SCRIPT = """
    from balsamfut import Executor, app

    @app.shell("echo Hello, {{ say_hello_to }}! $ZE_AFFINITY_MASK")
    def hello(say_hello_to: str): ...

    @app.shell("echo rank $PMI_RANK $BALSAMFUT_NODES $ZE_AFFINITY_MASK", num_nodes=2, ranks_per_node=12,
               gpus_per_rank=1)
    def wide(): ...

    with Executor("hello", site="page", wait=False):
        for n in range(30):
            hello.options(workdir=f"demo/hello{n}", gpus_per_rank=1, tags={"experiment": "demo"})(f"world {n}")
        wide.options(workdir="demo/wide")()
    """


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_pbs: FakePbs) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "site"
    assert balsamfut("site", "init", str(place), "-n", "page", "--platform", "aurora").returncode == 0
    settings = (place / "settings.toml").read_text()
    settings = settings.replace("# pretend = false", "pretend = true")
    settings = settings.replace('# mpiexec = ""', f'mpiexec = "{PALS / "mpiexec"}"')
    (place / "settings.toml").write_text(settings)
    return place


def test_the_page_from_the_site_to_the_blocks_history(site: Path, tmp_path: Path, fake_pbs: FakePbs) -> None:
    assert told("site", "start", "page")["new"]
    try:
        done = run(SCRIPT, tmp_path)
        assert (done.code, done.err) == (0, "")
        assert {each["name"] for each in told("app", "ls", "--site", "page")} == {"hello", "wide"}
        tasks = told("task", "ls", "--site", "page")
        assert len(tasks) == 31 and {task["state"] for task in tasks} == {"READY"}
        refused = balsamfut("queue", "submit", "--site", "page", "-n", "2", "-t", "10", "-q", "debug-scaling")
        assert refused.returncode == 2 and "-A" in refused.stderr
        number = Site("page").queue.submit(num_nodes=2, wall_time_min=10, queue="debug-scaling", project="demo")
        until(lambda: {task["state"] for task in told("task", "ls", "--site", "page")} == {"DONE"}, "all are done", 60)
        hellos = [(site / "data" / "demo" / f"hello{n}" / "job.out").read_text().split() for n in range(30)]
        assert [" ".join(words[:3]) for words in hellos] == [f"Hello, world {n}!" for n in range(30)]
        assert all(re.fullmatch(r"[0-5]\.[01]", words[3]) for words in hellos)
        ranks = [line.split() for line in (site / "data" / "demo" / "wide" / "job.out").read_text().splitlines()]
        assert sorted(int(words[1]) for words in ranks) == list(range(24))
        assert Counter(words[3] for words in ranks) == {f"{gpu}.{tile}": 2 for gpu in range(6) for tile in range(2)}
        block, = Site("page").queue.ls()
        assert (block.id, block.state, block.nodes, block.project) == (number, "running", 2, "demo")
        job = fake_pbs.jobs()[-1]
        assert job["id"].startswith(block.batch_id.split(".")[0])
        Site("page").queue.rm(number)
        until(lambda: not Site("page").queue.ls(), "the block is over", 40.0)
        assert [(each.id, each.state) for each in Site("page").queue.ls(history=True)] == [(number, "ended")]
    finally:
        balsamfut("site", "stop", "page")
