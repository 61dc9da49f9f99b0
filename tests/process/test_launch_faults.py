"""Launches that fail: whose fault it was, what is done about it, and that nothing hangs and nothing is left running.

The launcher is a fake PALS (tests/fake_site/pals), which really starts its ranks and fails as it is told; where a test
takes `mpiexec`, the one of this machine as well.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from playing import Interchange, playing

from balsamfut import platforms, serialize
from balsamfut.context import TaskView
from balsamfut.errors import InvalidOption, ShellError, WorkerLost
from balsamfut.messages import Fault
from balsamfut.model import AppKind, Extra, Hook, Options, Pool, Resources
from balsamfut.pilot import commands
from balsamfut.pilot.commands import Commands
from balsamfut.pilot.desk import Desk
from balsamfut.pilot.events import Commanded
from balsamfut.pilot.hand import Define
from balsamfut.pilot.orders import Job
from balsamfut.pilot.process import Processes, become_subreaper
from balsamfut.placement import Packer
from balsamfut.platforms import Launcher, Platform, probe

PALS = Path(__file__).parents[1] / "fake_site" / "pals" / "bin" / "mpiexec"
NODES = ["x1.hsn.cm", "x2.hsn.cm", "x3.hsn.cm"]
ONE, TWO = Resources(ranks_per_node=2), Resources(num_nodes=2, ranks_per_node=2)
FOREVER = "sleep 600"


class Rig:
    """An agent's commands without the agent: nodes that the launcher takes for three, and no more."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, launcher: Launcher) -> None:
        self.log, self.faults, self.data = (directory / name for name in ("log", "faults", "data"))
        self.log.touch()
        monkeypatch.setenv("FAKE_PALS_LOG", str(self.log))
        monkeypatch.setenv("FAKE_PALS_FAULTS", str(self.faults))
        self.platform: Platform = platforms.load("workstation", {
            "max_nodes": 3 if launcher.flavour == "pals" else 1, "node": {"cores": "0-3"},
            "launcher": {"flavour": launcher.flavour, "exe": launcher.exe}})
        self.packer = Packer(self.platform.node, NODES)
        self.processes = Processes()
        self.desk = Desk(site=directory, pilot=1, token=f"faults-{os.getpid()}-{time.monotonic_ns()}", host="here",
                         platform=self.platform, names=NODES, pretend=False, apart=launcher.flavour == "pals")
        path = tuple(os.path.abspath(entry) for entry in sys.path)
        self.desk.pools[b"P"] = Pool(sys.executable, path, os.getcwd(), tuple(sorted(os.environ.items())))
        self.commands = Commands(self.desk, self.processes)
        self.tasks = 0

    def job(self, command: str | Callable[[], object], resources: Resources) -> Job:
        self.tasks += 1
        kind, words = (AppKind.TEMPLATE, command) if isinstance(command, str) else (AppKind.PYTHON, None)
        if callable(command):
            self.desk.codes[b"F"] = serialize.dumps_code(serialize.AppCode(command, None, None))
        placement = self.packer.place(resources)
        assert placement is not None
        self.packer.free(placement)
        return Job(self.tasks, 1, Define(1, b"F", kind, "app", Hook(0), Options()), b"P", resources, placement, words,
                   Extra())

    def run(self, command: str | Callable[[], object], resources: Resources = ONE) -> Commanded:
        return self.end(self.start(command, resources))

    def start(self, command: str | Callable[[], object], resources: Resources = ONE) -> Job:
        job = self.job(command, resources)
        assert self.commands.start(job, time.time()) is None
        return job

    def end(self, job: Job) -> Commanded:
        """How it ended, when nothing of it is left."""
        poll = select.poll()
        poll.register(self.processes.fds()[0], select.POLLIN)
        deadline = time.monotonic() + 90.0
        while time.monotonic() < deadline:
            events = self.commands.linger()
            if not events and poll.poll(10 if self.commands.busy else 50):
                for exit in self.processes.reap():
                    events += self.commands.ended(exit, time.time())
            for event in events:
                assert isinstance(event, Commanded) and event.key == job.key
                return event
        raise AssertionError("it did not end")

    def launches(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def fail(self, *faults: str) -> None:
        self.faults.write_text("\n".join(faults))

    def output(self, event: Commanded) -> str:
        assert event.detail is not None
        return Path(event.detail.stdout).read_text()


@pytest.fixture
def launcher(request: pytest.FixtureRequest) -> Launcher:
    if "machines_mpiexec" not in request.node.name:
        return Launcher("pals", str(PALS))
    found = probe.launcher(os.environ)
    return found if isinstance(found, Launcher) else pytest.skip(found)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: Launcher) -> Iterator[Rig]:
    (tmp_path / "objects").mkdir()
    made = Rig(tmp_path, monkeypatch, launcher)
    yield made
    assert made.processes.end() == []
    made.processes.reap()
    made.processes.tidy()
    made.processes.close()
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)     # other tests in this process want no orphans
    become_subreaper.cache_clear()


# ---- the fake


@pytest.mark.parametrize("words", [
    "--bind-to none", "--map-by node", "--npernode 2", "--mca btl self", "--oversubscribe", "--allow-run-as-root",
    "--host x1:2", "--cpu-bind cores", "--gpu-bind list:0.0", "--bogus", "-ppn"])
def test_the_fake_refuses_what_pals_refuses(words: str) -> None:
    done = subprocess.run([PALS, *words.split(), "-n", "1", "true"] if words != "-ppn" else [PALS, words],
                          capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert done.stderr.startswith("launch failed on ")


def test_the_fake_starts_ranks_on_its_hosts_and_numbers_them(rig: Rig) -> None:
    done = rig.run('echo "$PALS_RANKID $PALS_LOCAL_RANKID $PALS_NODEID $PMI_RANK $PMI_LOCAL_RANK $PMI_LOCAL_SIZE"', TWO)
    assert done.fault is Fault.NONE, done.error
    assert sorted(rig.output(done).splitlines()) == ["0 0 0 0 0 2", "1 1 0 1 1 2", "2 0 1 2 0 2", "3 1 1 3 1 2"]
    [launch] = rig.launches()
    assert launch["hosts"] == NODES[:2]


def test_the_fake_returns_the_highest_code_and_ends_the_other_ranks(rig: Rig) -> None:
    done = rig.run(f'case $PALS_RANKID in 1) exit 3;; *) {FOREVER};; esac', TWO)
    assert (done.fault, done.returncode) == (Fault.TASK, 3)
    assert "x1.hsn.cm: rank 1 exited with code 3" in done.error
    assert "rank 0 died from signal 15" in rig.output(done)
    done = rig.run(f'case $PALS_RANKID in 1) kill -11 $$;; *) {FOREVER};; esac', TWO)
    assert (done.fault, done.returncode) == (Fault.TASK, 139)
    assert "rank 1 died from signal 11" in done.error


# ---- faults of the launcher


@pytest.mark.parametrize(("fault", "judged", "blamed", "text"), [
    ("forward", Fault.LAUNCHER, "", "Couldn't forward RPC launch"),
    ("start", Fault.LAUNCHER, "", "start failed on x2.hsn.cm"),
    ("ping", Fault.LAUNCHER, "x2.hsn.cm", "No reply from x2.hsn.cm"),
    ("ping-forward", Fault.LAUNCHER, "", "Couldn't forward RPC ping"),
    ("ping-timeout", Fault.LAUNCHER, "x2.hsn.cm", "ping RPC timeout from x2.hsn.cm"),
    ("shepherd", Fault.NODE, "x2.hsn.cm", "x2.hsn.cm: shepherd died from signal 9"),
    ("shepherd-11", Fault.LAUNCHER, "", "shepherd died from signal 11"),
])
def test_a_launch_that_fails_is_not_the_tasks_failure_and_blames_whom_it_names(
        rig: Rig, fault: str, judged: Fault, blamed: str, text: str) -> None:
    rig.fail(f"{fault} 1")
    failed = rig.run(FOREVER, TWO)
    assert (failed.fault, failed.blamed) == (judged, blamed)
    assert text in failed.error
    assert rig.run("true", TWO).fault is Fault.NONE      # and nothing is remembered against the next
    assert [launch["fault"] for launch in rig.launches()] == [fault, ""]


def test_a_rank_that_died_first_is_the_tasks_failure_though_the_launcher_complains_afterwards(rig: Rig) -> None:
    done = rig.run("echo 'x1: rank 0 exited with code 5' >&2; echo 'x2: shepherd died from signal 9' >&2; exit 5")
    assert (done.fault, done.returncode, done.blamed) == (Fault.TASK, 5, "")


def test_what_a_launcher_says_first_is_found_before_a_line_for_each_of_many_ranks(rig: Rig) -> None:
    many = Resources(ranks_per_node=4, num_nodes=3)
    cascade = "i=0; while [ $i -lt 30 ]; do echo x1.hsn.cm: rank $i died from signal 15 >&2; i=$((i+1)); done"
    done = rig.run(f"[ $PALS_RANKID = 0 ] || {{ sleep 0.5; exit 1; }}; "
                   f"echo 'x2.hsn.cm: shepherd died from signal 9' >&2; for k in 1 2 3 4 5; do {cascade}; done; exit 1",
                   many)
    assert (done.fault, done.blamed) == (Fault.NODE, "x2.hsn.cm")


def test_a_launcher_that_tells_of_its_failure_and_does_not_end_is_ended(rig: Rig,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "LOOK", 0.05)
    monkeypatch.setattr(commands, "HANGS", 0.5)
    rig.fail("hang 1")
    done = rig.run(FOREVER, TWO)
    assert (done.fault, done.blamed) == (Fault.LAUNCHER, "x2.hsn.cm")


def test_a_rank_that_says_what_launchers_say_of_other_ranks_is_not_ended(rig: Rig,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "LOOK", 0.02)
    monkeypatch.setattr(commands, "HANGS", 0.1)
    done = rig.run("echo a rank has exited with code 1; echo the ping failed on x1; sleep 1")
    assert done.fault is Fault.NONE


@pytest.mark.parametrize("resources", [ONE, TWO])
def test_a_launch_that_finds_no_vni_is_made_again_at_once_without_one(rig: Rig, resources: Resources) -> None:
    rig.fail("vni *")
    done = rig.run("echo hello", resources)
    assert done.fault is Fault.NONE, done.error
    assert "No VNIs available" in rig.output(done) and "hello" in rig.output(done)
    assert ["--no-vni" in launch["argv"] for launch in rig.launches()] == [False, True]


def test_after_that_tasks_of_one_node_ask_for_none_and_wider_ones_still_do(rig: Rig) -> None:
    rig.fail("vni 1")
    rig.run("true", TWO)
    rig.run("true", ONE)
    rig.run("true", TWO)
    assert ["--no-vni" in launch["argv"] for launch in rig.launches()] == [False, True, True, False]


def test_a_task_that_wants_a_vni_and_gets_none_was_not_started(rig: Rig) -> None:
    rig.fail("vni *")
    done = rig.run("true", Resources(ranks_per_node=2, launch_params=(("no_vni", "no"),)))
    assert done.fault is Fault.LAUNCHER and "No VNIs" in done.error
    assert len(rig.launches()) == 1


def test_a_refused_request_fails_the_task_with_the_launchers_words(rig: Rig) -> None:
    done = rig.run("true", Resources(ranks_per_node=2, launch_params=(("mem_bind", "bogus"),)))
    assert done.fault is Fault.TASK and "invalid memory binding 'bogus'" in done.error


def test_agents_are_started_one_on_each_host_and_one_that_ends_ends_no_other(tmp_path: Path) -> None:
    from balsamfut.pilot import dialects

    names = [f"n{i}" for i in range(3)]
    [words], files = dialects.agents(Launcher("pals", str(PALS), hostfile_over=2), names, str(tmp_path))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    script = (f"[ $PALS_NODEID = 0 ] && exit 3; until [ -e {tmp_path}/go ]; do sleep 0.05; done; "
              f"touch {tmp_path}/on.$PALS_NODEID")
    with subprocess.Popen([*words, "sh", "-c", script], stderr=subprocess.PIPE, text=True) as launcher:
        assert launcher.stderr is not None
        assert "rank 0 exited with code 3" in launcher.stderr.readline()
        (tmp_path / "go").touch()
    assert (launcher.returncode, sorted(path.name for path in tmp_path.glob("on.*"))) == (3, ["on.1", "on.2"])


# ---- a launcher that is killed


def kill_the_launcher(rig: Rig, directory: Path) -> None:
    job = rig.start(f"touch {directory}/up.$$; {FOREVER}", ONE)
    deadline = time.monotonic() + 60.0
    while len(list(directory.glob("up.*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks = [int(path.suffix[1:]) for path in directory.glob("up.*")]
    [launcher] = [parent for parent in psutil.Process(ranks[0]).parents() if parent.ppid() == os.getpid()]
    launcher.kill()
    done = rig.end(job)
    assert done.fault is Fault.TASK and "SIGKILL" in done.error
    assert [rank for rank in ranks if Path(f"/proc/{rank}").exists()] == []


def test_ranks_whose_launcher_is_killed_are_ended_before_the_end_is_told(rig: Rig, tmp_path: Path) -> None:
    kill_the_launcher(rig, tmp_path)


def test_ranks_whose_launcher_is_killed_are_ended_under_this_machines_mpiexec(rig: Rig, tmp_path: Path) -> None:
    kill_the_launcher(rig, tmp_path)


def test_a_task_that_is_to_end_is_not_launched_again(rig: Rig) -> None:
    rig.fail("vni *")
    job = rig.start("true")
    rig.commands.signal(job.key, signal.SIGTERM)
    rig.end(job)
    assert len(rig.launches()) <= 1


# ---- Python functions on several ranks, one of which dies


def _summed() -> int:
    from mpi4py import MPI

    return MPI.COMM_WORLD.allreduce(1)


def _one_exits() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        os._exit(7)
    MPI.COMM_WORLD.barrier()


def _one_is_killed() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    MPI.COMM_WORLD.barrier()


def _one_dies_before_mpi() -> None:
    if any(os.environ.get(name) == "1" for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")):
        os._exit(7)
    _summed()


def _one_raises() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        raise ArithmeticError("rank one")
    MPI.COMM_WORLD.barrier()


@pytest.fixture
def mpi() -> None:
    pytest.importorskip("mpi4py")
    found = probe.launcher(os.environ)
    if isinstance(found, str):
        pytest.skip(found)


@pytest.fixture
def mpich(mpi: None) -> None:
    found = probe.launcher(os.environ)
    if not isinstance(found, Launcher) or found.flavour != "hydra":
        pytest.skip("the fake PALS speaks MPICH's protocol only")


@pytest.mark.parametrize("resources", [ONE, TWO])
def test_a_python_function_runs_on_all_ranks_of_the_fake(rig: Rig, mpich: None, resources: Resources) -> None:
    done = rig.run(_summed, resources)
    assert done.fault is Fault.NONE, done.error
    assert isinstance(done.payload, bytes) and serialize.loads(done.payload, lambda blob: b"") == resources.ranks


@pytest.mark.parametrize(("function", "said"), [
    (_one_exits, "rank 1 exited with code 7"), (_one_is_killed, "rank 1 died from signal 9"),
    (_one_dies_before_mpi, "rank 1 exited with code 7"), (_one_raises, "rank one")])
def test_a_rank_that_dies_under_the_fake_ends_the_call(rig: Rig, mpich: None, function: Callable[[], None],
                                                       said: str) -> None:
    done = rig.run(function, TWO)
    assert done.fault is Fault.TASK
    assert said in done.error


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Interchange]:
    with playing(tmp_path, cores=2) as (interchange, _):
        yield interchange


def _launched(play: Interchange, function: Callable[[], object]) -> int:
    """The task that has run it on two ranks: another where Open MPI could not start on a busy host."""
    for _ in range(5):
        task = play.run(play.app(function, resources=Resources(ranks_per_node=2)))
        play.until(functools.partial(play.exits.__contains__, task), 60)     # now and then it hangs, and is ended
        if play.end(task).fault is not Fault.LAUNCHER:
            break
    return task


@pytest.mark.parametrize("function", [_one_exits, _one_is_killed, _one_dies_before_mpi])
def test_a_rank_that_dies_under_this_machines_mpiexec_ends_the_call_and_the_next_one_works(
        play: Interchange, mpi: None, function: Callable[[], None]) -> None:
    assert isinstance(play.error(_launched(play, function)), ShellError)
    assert play.value(_launched(play, _summed)) == 2


def _leaves() -> None:
    os._exit(0)


def _counts(task: TaskView) -> str:
    with open(task.workdir / "hooked", "a") as file:
        file.write("x")
    return f"{task.result} {(task.workdir / 'hooked').read_text()}"


def test_a_rank_0_that_leaves_without_a_value_is_an_error_that_says_so(play: Interchange, mpi: None) -> None:
    error = play.error(play.run(play.app(_leaves, resources=Resources(ranks_per_node=2))))
    assert isinstance(error, WorkerLost) and "rank 0 ended without a value" in str(error)


def test_the_postprocess_hook_of_a_function_on_several_ranks_runs_once_and_sees_the_value(
        play: Interchange, mpi: None) -> None:
    app = play.app(_summed, resources=Resources(ranks_per_node=2), hooks={"postprocess": _counts})
    assert play.value(play.run(app)) == "2 x"


def test_what_a_launcher_refuses_for_launch_params_is_the_tasks_error_and_names_them(
        play: Interchange, mpich: None) -> None:
    resources = Resources(ranks_per_node=2, launch_params=(("iface", "nowhere0"),))
    task = play.run(play.app(_summed, resources=resources))
    error = play.error(task)
    assert play.end(task).fault is Fault.TASK and isinstance(error, InvalidOption)
    assert "hydra refuses what launch_params (iface='nowhere0') ask for: [mpiexec@" in str(error)


@pytest.mark.parametrize("words", ["-bogus", "-iface nowhere0"])
def test_what_a_launcher_refuses_though_the_task_asked_for_nothing_is_not_charged(
        mpich: None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "mpiexec"
    real = probe.launcher(os.environ)
    assert isinstance(real, Launcher)
    odd.write_text(f'#!/bin/sh\nexec {real.exe} {words} "$@"\n')
    odd.chmod(0o755)
    rig = Rig(tmp_path, monkeypatch, Launcher(flavour="hydra", exe=str(odd)))
    assert rig.run("true", Resources(ranks_per_node=2)).fault is Fault.LAUNCHER


def test_an_exception_of_a_rank_arrives_as_itself_under_this_machines_mpiexec(play: Interchange, mpi: None) -> None:
    error = play.error(play.run(play.app(_one_raises, resources=Resources(ranks_per_node=2))))
    assert isinstance(error, ArithmeticError) and "rank 1" in str(error.__cause__)


# ---- with everything: an Executor, an interchange, a pilot

SCRIPT = """
from balsamfut import Executor, app

@app.shell("echo $PALS_LOCAL_RANKID", ranks_per_node=2)
def ranks(): ...

with Executor(max_workers=2) as executor:
    print(open(ranks().result(60).stdout).read())
"""


@pytest.mark.parametrize("fault", ["forward", "shepherd"])
def test_a_task_whose_launches_fail_twice_is_done_with_the_third_and_is_not_charged(site_dir: Path, fault: str) -> None:
    builder = venv.EnvBuilder(symlinks=True)      # an interpreter that has no mpiexec beside it
    builder.create(site_dir / "python")
    [packages] = (site_dir / "python").glob("lib/python*/site-packages")
    (packages / "all.pth").write_text("\n".join(entry for entry in sys.path if entry))
    (site_dir / "faults").write_text(f"{fault} 2")
    (site_dir / "script.py").write_text(SCRIPT)
    environ = {**os.environ, "PATH": f"{PALS.parent}:{os.environ['PATH']}", "FAKE_PALS_LOG": str(site_dir / "log"),
               "FAKE_PALS_FAULTS": str(site_dir / "faults")}
    done = subprocess.run([site_dir / "python" / "bin" / "python", "script.py"], cwd=site_dir, env=environ, timeout=50,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    launches = [json.loads(line) for line in (site_dir / "log").read_text().splitlines()]
    assert [launch["fault"] for launch in launches] == [fault, fault, ""]
    assert sorted(line for line in done.stdout.splitlines() if line.isdigit())[-1] == "1"
