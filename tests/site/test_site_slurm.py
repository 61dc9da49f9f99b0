"""A site on a real Slurm: blocks of its nodes, agents on each by srun, MPI tasks over several of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balsamfut import Executor, Site, app, query
from balsamfut.model import TaskState

PLATFORM = """
[node]
cores = "0-3"
numa = ["0-3"]

[accelerators]
tiles = [{id = "0", gpu = 0, mask = "0", numa = 0, cores = "0-1"},
         {id = "1", gpu = 1, mask = "1", numa = 0, cores = "2-3"}]

[scheduler]
constraint = ""
queue_option = "partition"
account_required = false
"""

pytestmark = pytest.mark.timeout(240)


def balsamfut(*words: str) -> Any:
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-m", "balsamfut", *words], env=environ, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return next(iter(json.loads(done.stdout).values())) if "--json" in words else done.stdout


@pytest.fixture
def site(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "site"
    balsamfut("site", "init", str(place), "-n", "slurm", "--platform", "perlmutter-gpu")
    (place / "platform.toml").write_text(PLATFORM)
    text = (place / "settings.toml").read_text().replace("# pretend = false", "pretend = true")
    conf = f'preamble = "export SLURM_CONF={slurm / "slurm.conf"}"'
    text = text.replace('# mpiexec = ""', 'mpiexec = "srun"').replace('# preamble = ""', conf)
    (place / "settings.toml").write_text(text)
    balsamfut("site", "start", "slurm")
    made = Site("slurm")
    yield made
    for block in made.queue.ls():
        made.queue.rm(block.id)
    balsamfut("site", "stop", "slurm")


@app
def where(number: int, seconds: float = 0.0) -> str:
    import time

    time.sleep(seconds)
    return os.environ["SLURM_JOB_ID"]


@app.shell("echo $SLURMD_NODENAME $SLURM_PROCID $CUDA_VISIBLE_DEVICES", num_nodes=2, ranks_per_node=2, gpus_per_rank=1)
def wide() -> None: ...


@app.shell("echo $CUDA_VISIBLE_DEVICES", gpus_per_rank=1)
def tile(number: int) -> None: ...


def test_a_campaign_runs_over_several_blocks_one_of_which_is_killed_and_one_ends(site: Site) -> None:
    first = site.queue.submit(2, 10, queue="debug")
    with Executor("several", site="slurm"):
        tiles = [tile(number) for number in range(12)]
        wides = [wide() for _ in range(2)]
        serial = [where(number, 0.2) for number in range(30)]
        assert wides[0].result(60).returncode == 0
        jobs = {serial[0].result(60)}
        site.queue.rm(first)
        site.queue.submit(2, 1, queue="debug")
        later = [where(100 + number, 4.0) for number in range(30)]
        jobs |= {call.result(120) for call in later[:4]}
        site.queue.submit(3, 10, queue="debug")
        jobs |= {call.result(200) for call in [*serial, *later]}
        for call in wides:
            said = call.result(60).stdout.read_text().splitlines()
            lines = sorted(line.split() for line in said if not line.startswith("srun:"))
            nodes = {line[0] for line in lines}
            assert len(nodes) == 2 and sorted(line[1] for line in lines) == list("0123")
            assert Counter(line[2] for line in lines) == {"0": 2, "1": 2}
        assert {call.result(60).stdout.read_text().strip() for call in tiles} == {"0", "1"}
        assert len(jobs) >= 2
    with query.open_site(site.path) as reader:
        assert Counter(task.state for task in reader.tasks()) == {TaskState.DONE.name: 12 + 2 + 30 + 30}
