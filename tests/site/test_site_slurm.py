"""A site on a real Slurm: blocks of its nodes, agents on each by srun, MPI tasks over several of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balsamfut import Executor, ShellResult, Site, app, query
from balsamfut.infos import BlockInfo
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

HYDRA = str(Path(sys.executable).with_name("mpiexec"))

pytestmark = pytest.mark.timeout(300)


def balsamfut(*words: str) -> Any:
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-m", "balsamfut", *words], env=environ, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return next(iter(json.loads(done.stdout).values())) if "--json" in words else done.stdout


@pytest.fixture
def site(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
         request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site whose MPI programs are started by srun, or by the mpiexec that is the fixture's parameter."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "site"
    balsamfut("site", "init", str(place), "-n", "slurm", "--platform", "perlmutter-gpu")
    (place / "platform.toml").write_text(PLATFORM)
    text = (place / "settings.toml").read_text().replace("# pretend = false", "pretend = true")
    conf = f'preamble = "export SLURM_CONF={slurm / "slurm.conf"}"'
    mpiexec = f'mpiexec = "{getattr(request, "param", "srun")}"'
    text = text.replace('# mpiexec = ""', mpiexec).replace('# preamble = ""', conf)
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


@app
def behind(gate: Path, number: int) -> str:
    import time

    while not gate.exists():
        time.sleep(0.05)
    return os.environ["SLURM_JOB_ID"]


@app.shell("echo $SLURMD_NODENAME ${PMI_RANK:-$SLURM_PROCID} $CUDA_VISIBLE_DEVICES", num_nodes=2, ranks_per_node=2,
           gpus_per_rank=1)     # as Hydra and srun count ranks
def wide() -> None: ...


@app.shell("echo $CUDA_VISIBLE_DEVICES", gpus_per_rank=1)
def tile(number: int) -> None: ...


@app(num_nodes=2, ranks_per_node=2)
def spectral() -> tuple[int, int, list[tuple[int, str]]]:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    total = comm.allreduce(comm.rank)
    return comm.size, total, comm.allgather((comm.rank, os.environ["SLURMD_NODENAME"]))


@app.shell("{{ python }} -c 'from mpi4py import MPI; c = MPI.COMM_WORLD; "
           "import os; os.write(1, b\"%d %d %d\\n\" % (c.rank, c.size, c.allreduce(1)))'",
           num_nodes=2, ranks_per_node=2)      # one write a line: the ranks' lines are mixed as they come
def counted(python: str) -> None: ...


def records(slurm: Path) -> dict[str, dict[str, str]]:
    """What Slurm says of all its jobs, by number."""
    done = subprocess.run(["scontrol", "--oneliner", "show", "job"], capture_output=True, text=True, timeout=60,
                          check=True)
    jobs = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in done.stdout.splitlines()]
    return {job["JobId"]: job for job in jobs if "JobId" in job}


def await_state(site: Site, block: int, state: str, seconds: float = 120.0) -> BlockInfo:
    deadline = time.monotonic() + seconds
    while (found := next(each for each in site.queue.ls(history=True) if each.id == block)).state != state:
        assert time.monotonic() < deadline, f"block {block} is still {found.state}: {found.text}"
        time.sleep(0.2)
    return found


@pytest.mark.parametrize("site", [HYDRA], indirect=True, ids=["hydra"])
def test_a_campaign_over_several_blocks_of_which_one_is_killed_and_one_reaches_its_time_limit(
        site: Site, slurm: Path) -> None:
    """Serial, tile and two-node MPI tasks; an administrator kills the first block, the second runs into its end."""
    first = site.queue.submit(2, 10, queue="debug")
    with Executor("several", site="slurm"):
        tiles = [tile(number) for number in range(12)]
        wides = [wide() for _ in range(2)]
        mpi, ranks = spectral(), counted(sys.executable)
        serial = [where(number, 0.2) for number in range(20)]
        assert wides[0].result(60).returncode == 0
        killed = await_state(site, first, "running").batch_id
        subprocess.run(["scancel", "--signal=KILL", "--full", killed], check=True, timeout=60)
        await_state(site, first, "ended")
        limited = site.queue.submit(2, 1, queue="debug")
        later = [where(100 + number, 5.0) for number in range(80)]
        assert later[0].result(120)
        ended = await_state(site, limited, "ended")
        last = site.queue.submit(3, 10, queue="debug")
        jobs = {call.result(200) for call in [*serial, *later]}
        check_mpi(mpi.result(60), ranks.result(60))
        check_wide(wides)
        assert {call.result(60).stdout.read_text().strip() for call in tiles} == {"0", "1"}
    assert ended.ended is not None and ended.started is not None
    assert 45.0 <= ended.ended - ended.started <= 75.0, "it was its time limit of a minute that ended it"
    record = records(slurm)[ended.batch_id]
    assert record["TimeLimit"] == "00:01:00" and record["JobState"] in ("COMPLETED", "TIMEOUT"), "nobody cancelled it"
    assert jobs >= {ended.batch_id, await_state(site, last, "running").batch_id}, "tasks ran in it, and after it"
    with query.open_site(site.path) as reader:
        tasks = reader.tasks()
        assert Counter(task.state for task in tasks) == {TaskState.DONE.name: 12 + 2 + 2 + 20 + 80}
        attempts = [attempt for task in tasks for attempt in reader.task(task.id).attempts]
        assert Counter(attempt.fault for attempt in attempts)["none"] == len(tasks), "each is done once"
        uncharged = {"none", "pilot", "block", "returned", "node"}
        assert {attempt.fault for attempt in attempts} <= uncharged, "nothing was charged"
        assert any(attempt.pilot == limited and attempt.fault != "none" for attempt in attempts), (
            "tasks were running when the second one ended")


def check_wide(wides: list[Any]) -> None:
    for call in wides:
        said = call.result(60).stdout.read_text().splitlines()
        lines = sorted(line.split() for line in said if not line.startswith("srun:"))
        nodes = {line[0] for line in lines}
        assert len(nodes) == 2 and sorted(line[1] for line in lines) == list("0123")
        assert Counter(line[2] for line in lines) == {"0": 2, "1": 2}


def check_mpi(spectrum: tuple[int, int, list[tuple[int, str]]], shell: ShellResult) -> None:
    """Four ranks that know each other, two on each of two nodes."""
    size, total, ranks = spectrum
    assert (size, total) == (4, 6) and sorted(rank for rank, _ in ranks) == [0, 1, 2, 3]
    assert sorted(Counter(node for _, node in ranks).values()) == [2, 2]
    said = sorted(line.split() for line in shell.stdout.read_text().splitlines() if line[:1].isdigit())
    assert said == [[str(rank), "4", "4"] for rank in range(4)]


def test_mpi_programs_find_each_other_by_slurm_s_own_pmi2(site: Site) -> None:
    site.queue.submit(2, 10, queue="debug")
    with Executor("pmi2", site="slurm") as ex:
        # Slurm's pmi2 reads at most 1,024 bytes of a request. Of what MPICH sends over UCX some is memory that was not
        # cleared, so that its length varies and passes that now and then; over libfabric it sends some bytes.
        pmi2 = ex.options(launch_params={"mpi": "pmi2"}, environment={"MPIR_CVAR_CH4_NETMOD": "ofi"})
        check_mpi(pmi2.submit(spectral).result(120), pmi2.submit(counted, sys.executable).result(120))


def test_a_block_whose_pilot_hangs_is_ended_by_slurm_at_its_time_limit_and_its_tasks_go_on(
        site: Site, slurm: Path, tmp_path: Path) -> None:
    first, gate = site.queue.submit(1, 1, queue="debug"), tmp_path / "gate"
    with Executor("hangs", site="slurm"):
        calls = [where(0), *[behind(gate, number) for number in range(7)]]
        assert calls[0].result(60)
        with query.open_site(site.path) as reader:
            pilot, = reader.pilots()
        os.kill(pilot.pid, signal.SIGSTOP)
        ended = await_state(site, first, "ended", 180.0)
        assert records(slurm)[ended.batch_id]["JobState"] == "TIMEOUT" and "TIMEOUT" in ended.text
        second = site.queue.submit(1, 10, queue="debug")
        gate.touch()
        assert len({call.result(120) for call in calls}) == 2
    with query.open_site(site.path) as reader:
        attempts = [attempt for task in reader.tasks() for attempt in reader.task(task.id).attempts]
        assert Counter(attempt.fault for attempt in attempts if attempt.pilot == second) == {"none": 7}
        assert {attempt.fault for attempt in attempts} <= {"none", "block"}, "not charged"
