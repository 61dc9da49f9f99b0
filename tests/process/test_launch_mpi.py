"""Launch plans carried out by a real mpiexec: every rank tells the environment and the CPUs that it finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsamfut import platforms
from balsamfut.messages import Fault
from balsamfut.model import TILE, Resources
from balsamfut.pilot import dialects, launch
from balsamfut.pilot.verdict import Cause, Verdict, judge
from balsamfut.placement import Packer, Placement
from balsamfut.platforms import Launcher, Platform, cpu_list, probe

TELL = """import json, os, sys
rank = os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]
with open(os.path.join(sys.argv[1], "rank." + rank), "w") as file:
    json.dump({"env": dict(os.environ), "cpus": sorted(os.sched_getaffinity(0))}, file)
"""


@pytest.fixture(scope="module")
def mpiexec() -> Launcher:
    found = probe.launcher(os.environ)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def run(resources: Resources, placement: Placement, platform: Platform, directory: Path,
        **more: object) -> tuple[int, str]:
    settings: dict = {"environ": {}, "directory": str(directory), **more}
    plan = launch.plan(resources, placement, platform, ["localhost", "localhost"], **settings)
    for name, content in plan.files.items():
        (directory / name).write_bytes(content)
    done = subprocess.run(plan.argv, env={**launch.scrub(os.environ), **plan.env}, cwd=directory, timeout=50,
                          check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)
    said = directory / f"{launch.WRAPPER}.said"
    return done.returncode, (said.read_text() if said.exists() else "") + done.stdout


def told(directory: Path) -> list[dict]:
    return [json.loads((directory / f"rank.{rank}").read_text()) for rank in range(len(list(directory.glob("rank.*"))))]


def test_every_rank_on_pretended_nodes_has_the_mask_and_cores_that_were_planned(tmp_path: Path,
                                                                                mpiexec: Launcher) -> None:
    aurora = platforms.load("aurora")
    pack = Packer(aurora.node, ["a", "b"])
    pack.place(Resources(gpu_shares=TILE))   # so that the nodes differ
    resources = Resources(num_nodes=2, ranks_per_node=3, threads_per_rank=2, gpu_shares=TILE)
    placement = pack.place(resources)
    assert placement is not None
    code, output = run(resources, placement, aurora, tmp_path, command=[sys.executable, "-c", TELL, str(tmp_path)],
                       launcher=mpiexec, pretend=True)
    assert code == 0, output
    planned = [rank for share in placement.nodes for rank in share.ranks]
    ranks = told(tmp_path)
    assert len(ranks) == 6
    for rank, plan in zip(ranks, planned, strict=True):
        env = rank["env"]
        assert env["ZE_AFFINITY_MASK"] == aurora.node.tiles[plan.tiles[0]].masks["COMPOSITE"]
        assert env["ZE_FLAT_DEVICE_HIERARCHY"] == "COMPOSITE"
        assert env["OMP_NUM_THREADS"] == "2"
        assert cpu_list(env["BALSAMFUT_CORES"]) == plan.cores
    assert ranks[0]["env"]["ZE_AFFINITY_MASK"] != ranks[3]["env"]["ZE_AFFINITY_MASK"]


def test_ranks_are_bound_to_the_cores_of_their_placement(tmp_path: Path, mpiexec: Launcher) -> None:
    here = platforms.workstation(overrides={"bind": True})
    if len(here.node.cores) < 2:
        pytest.skip("needs two cores")
    resources = Resources(ranks_per_node=2)
    placement = Packer(here.node, ["localhost"]).place(resources)
    assert placement is not None
    code, output = run(resources, placement, here, tmp_path, command=[sys.executable, "-c", TELL, str(tmp_path)],
                       launcher=mpiexec)
    assert code == 0, output
    assert [rank["cpus"] for rank in told(tmp_path)] == [list(rank.cores) for rank in placement.nodes[0].ranks]


def one_rank_each(command: object, directory: Path, mpiexec: Launcher, **more: object) -> tuple[int, str]:
    here = platforms.workstation(2)
    resources = Resources(ranks_per_node=2)
    placement = Packer(here.node, ["localhost"]).place(resources)
    assert placement is not None
    return run(resources, placement, here, directory, command=command, launcher=mpiexec, **more)


def test_every_rank_runs_the_command_line_and_the_preamble_runs_once(tmp_path: Path, mpiexec: Launcher) -> None:
    code, output = one_rank_each('echo "$WORD" && echo again', tmp_path, mpiexec,
                                 preamble="echo once; export WORD='a b'")
    assert code == 0
    assert sorted(output.splitlines()) == ["a b", "a b", "again", "again", "once"]


def test_an_exit_code_of_a_rank_is_the_tasks_failure(tmp_path: Path, mpiexec: Launcher) -> None:
    code, output = one_rank_each("exit 3", tmp_path, mpiexec)
    assert judge(mpiexec.flavour, code, output) == Verdict(Cause.TASK, "exit code 3")


def test_a_program_that_does_not_exist_is_the_tasks_failure(tmp_path: Path, mpiexec: Launcher) -> None:
    code, output = one_rank_each(["./no-such-program"], tmp_path, mpiexec)
    assert judge(mpiexec.flavour, code, output).fault is Fault.TASK
    assert "no-such-program" in output


def test_a_rank_that_fails_before_it_calls_mpi_ends_the_others(tmp_path: Path, mpiexec: Launcher) -> None:
    rank = "${PMI_RANK:-$OMPI_COMM_WORLD_RANK}"
    code, output = one_rank_each(f"[ {rank} = 1 ] && exit 7; sleep 600", tmp_path, mpiexec)     # run() has a timeout
    assert judge(mpiexec.flavour, code, output) == Verdict(Cause.TASK, "exit code 7")


def test_a_rank_that_dies_of_a_signal_is_the_tasks_failure(tmp_path: Path, mpiexec: Launcher) -> None:
    code, output = one_rank_each("kill -9 $$", tmp_path, mpiexec)
    assert code != 0
    assert judge(mpiexec.flavour, code, output).fault is Fault.TASK


def test_cores_that_this_machine_does_not_have_are_the_launchs_failure(tmp_path: Path, mpiexec: Launcher) -> None:
    far = 1000 + max(os.sched_getaffinity(0))
    nowhere = platforms.load("workstation", {"bind": True, "node": {"cores": f"{far}-{far + 1}"}})
    resources = Resources(ranks_per_node=2)
    placement = Packer(nowhere.node, ["localhost"]).place(resources)
    assert placement is not None
    code, output = run(resources, placement, nowhere, tmp_path, command=["true"], launcher=mpiexec)
    assert judge(mpiexec.flavour, code, output).fault is Fault.LAUNCHER


def test_real_mpi_programs_find_each_other_behind_the_wrapper(tmp_path: Path, mpiexec: Launcher) -> None:
    pytest.importorskip("mpi4py")
    program = ("import os; from mpi4py import MPI; c = MPI.COMM_WORLD; "
               "os.write(1, f'{c.allreduce(c.rank + 1)} {c.size}\\n'.encode())")   # at once: ranks share the pipe
    code, output = one_rank_each([sys.executable, "-c", program], tmp_path, mpiexec)
    assert (code, output.splitlines()) == (0, ["3 2", "3 2"])


# ---- agents


def test_the_agents_launch_starts_one_process_on_a_host_and_binds_it_to_nothing(tmp_path: Path,
                                                                                mpiexec: Launcher) -> None:
    [words], files = dialects.agents(mpiexec, ["localhost"], str(tmp_path))
    assert files == {}
    done = subprocess.run([*words, sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"],
                          env={**launch.scrub(os.environ), **dialects.environment(mpiexec.flavour)}, timeout=50,
                          check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{sorted(os.sched_getaffinity(0))}\n"), done.stderr


def test_by_ssh_the_words_arrive_as_they_are(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"       # as ssh: what is after the host is joined, and is a line for a shell
    ssh.write_text('#!/bin/sh\n[ "$1 $2" = "-o BatchMode=yes" ] || exit 1\necho "on $3"; shift 3; exec sh -c "$*"\n')
    ssh.chmod(0o755)
    commands, files = dialects.agents(Launcher("ssh", str(ssh)), ["a", "b"], str(tmp_path))
    (tmp_path / "ssh.sh").write_bytes(files["ssh.sh"])
    words = ["two words", "it's", "$HOME", "*", "a\nb", "", "\\n", "-n"]
    tell = [sys.executable, "-c", "import sys; print(sys.argv[1:])", *words]
    said = [subprocess.run([*command, *tell], capture_output=True, text=True, check=True, timeout=20).stdout
            for command in commands]
    assert said == [f"on {host}\n{words}\n" for host in ("a", "b")]
