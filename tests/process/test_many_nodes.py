"""A pilot on four hosts, an agent on each: what runs where, and what happens when agents, hosts and networks die."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import recording
from hosts import Hosts, wait_until_empty
from playing import Interchange
from recording import Asked
from waiting import until

from balsamfut import platforms
from balsamfut.messages import Fault, Item, NodeState, Stop
from balsamfut.model import TILE, Resources

AURORA = platforms.load("aurora")
NAMES = ["n1", "n2", "n3", "n4"]


class Block:
    """A pilot that leads from n1, and what it is to do."""

    def __init__(self, directory: Path, hosts: Hosts, play: Interchange) -> None:
        self.hosts = hosts
        self.play = play
        self.lost: list[str] = []      # hosts of which nobody can expect that they are tidy in the end
        self.records = directory / "records"
        self.records.mkdir()
        self.script = directory / "record.sh"
        self.script.write_text(recording.SH)
        self.program = directory / "record.py"
        self.program.write_text(recording.MPI)
        listed = directory / "nodefile"
        listed.write_text("".join(f"{name}\n" for name in reversed(NAMES)))    # the leader finds itself in it
        argv = [sys.executable, "-P", "-m", "balsamfut.pilot.agent", "--site", str(play.site), "--pilot", "1",
                "--token", f"t{time.monotonic_ns()}", "--address", play.door.address, "--platform", "aurora",
                "--pretend", "--hosts", str(listed)]
        environ = {**hosts.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
        del environ["BALSAMFUT_RUNTIME_DIR"]
        play.pools[b"P" * 16] = msgspec.structs.replace(play.pool, environ=tuple(environ.items()))
        self.leader = subprocess.Popen([*hosts.enter("n1"), *argv], env=environ, stdin=subprocess.DEVNULL)

    def shell(self, label: str, resources: Resources, end: float | Path) -> Item:
        command = f"exec /bin/sh {self.script} {self.records} {label} {end}"
        return self.play.item(self.play.shell(command, resources=resources, name=label))

    def mpi(self, label: str, resources: Resources, end: float | Path) -> Item:
        command = f"exec {sys.executable} {self.program} {self.records} {label} {end}"
        return self.play.item(self.play.shell(command, resources=resources, name=label))

    def python(self, label: str, resources: Resources, end: float | Path) -> Item:
        func = recording.record if resources.serial else recording.record_mpi
        return self.play.item(self.play.app(func, resources=resources), str(self.records), label, str(end))

    def tasks_on(self, name: str) -> list[str]:
        """What runs for tasks on a host."""
        return [line for line in self.hosts.processes(name).values() if str(self.records) in line]

    def agent(self, name: str) -> int:
        """The pid of the agent on a host."""
        module = "balsamfut.pilot.agent" if name == "n1" else "balsamfut.pilot.follower"
        (found,) = [pid for pid, line in self.hosts.processes(name).items()
                    if line.startswith(sys.executable) and f"-m {module}" in line]
        return found

    def all_over(self, labels: dict[int, str], seconds: float) -> None:
        """Wait until all these tasks have ended; fail naming those that have not, and where they are."""
        deadline = time.monotonic() + seconds
        while left := labels.keys() - self.play.exits.keys():
            if time.monotonic() > deadline:
                running = {each.task: each for each in self.play.reports if each.task in left}
                pytest.fail(f"not over after {seconds} s: { {labels[task]: running.get(task) for task in left} }")
            self.play.pump(0.1)

    @property
    def names(self) -> list[str]:
        """By node index."""
        return self.play.enrolments[-1].nodes

    def left(self) -> dict[str, dict[int, str]]:
        """What still runs anywhere, some seconds later."""
        there = [name for name in NAMES if name not in self.lost]
        return {name: left for name in there if (left := wait_until_empty(self.hosts, name, 10.0))}


@pytest.fixture
def block(can_have_hosts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Block]:
    with started(tmp_path, monkeypatch) as made:
        made.play.until(lambda: made.play.enrolments, 40)
        yield made


@contextmanager
def started(directory: Path, monkeypatch: pytest.MonkeyPatch, missing: str = "") -> Iterator[Block]:
    """A pilot on four hosts, or on all but one, that is on its way; at the end it is told to stop."""
    sockets = Path(tempfile.mkdtemp(prefix="bf-"))     # where all hosts find the interchange; a short path
    monkeypatch.setenv("BALSAMFUT_RUNTIME_DIR", str(sockets))
    (directory / "site").mkdir()
    play = Interchange(directory / "site")
    try:
        with Hosts(directory / "hosts", NAMES, shared=[directory, sockets]) as hosts:
            if missing:
                hosts.kill_all(missing)
            made = Block(directory, hosts, play)
            yield made
            if made.leader.poll() is None:
                play.send(Stop(0.0))
                play.until(lambda: made.leader.poll() is not None)
            assert made.left() == {}
    finally:
        play.close()
        shutil.rmtree(sockets)


def wanted(number: int, dice: random.Random) -> tuple[str, Resources]:
    """A task as users ask for it: what it is, and what it takes.

    One in ten has no tile.  They are so few, and the others have so few cores to a tile, that cores on the side of its
    tiles are free for every rank, whatever runs.
    """
    if number % 20 == 0:
        return "shell", Resources()
    if number % 20 == 10:
        return "wide", Resources(num_nodes=dice.choice([2, 3, 4]), mpi=True)
    kind = dice.choices(["shell", "python", "wide", "mpi", "function"], [50, 22, 20, 4, 4])[0]
    if kind in ("shell", "python"):
        nodes, ranks, tiles = 1, 1, dice.choice([0.5, 1, 1, 2, 3, 12])
    elif kind == "wide":
        nodes = dice.choice([1, 1, 2, 3, 4])
        ranks, tiles = dice.choice([(1, 2), (2, 1), (3, 2), (4, 3), (2, 6), (12, 1)])
    else:
        nodes, ranks, tiles = dice.choice([1, 2, 4]), dice.choice([1, 2]), 1
    return kind, Resources(num_nodes=nodes, ranks_per_node=ranks, gpu_shares=int(tiles * TILE), mpi=nodes * ranks > 1,
                           threads_per_rank=dice.choice([1, 2]) if tiles < 1 else dice.choice([1, 2, 4]),
                           threads_per_core=dice.choice([1, 1, 2]))


def test_the_programs_that_record_write_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    script = tmp_path / "record.sh"
    script.write_text(recording.SH)
    env = {"PATH": os.environ["PATH"], "BALSAMFUT_ATTEMPT": "2", "BALSAMFUT_CORES": "1-3", "PMI_RANK": "7",
           recording.MASK: "0.0,0.1", recording.MODE: "COMPOSITE"}
    subprocess.run(["/bin/sh", str(script), str(tmp_path / "out"), "task.1", "0.03"], env=env, check=True, timeout=10)
    recording.record(str(tmp_path / "out"), "other", 0.0)
    other, mine = recording.read(tmp_path / "out")
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    assert (mine.label, mine.attempt, mine.rank, mine.host) == ("task.1", 2, 7, os.uname().nodename)
    assert (mine.cores, mine.mask, mine.mode) == ((1, 2, 3), ("0.0", "0.1"), "COMPOSITE")
    assert (other.label, other.rank, other.mask, other.cores) == ("other", 0, None, ())
    assert mine.allowed == other.allowed == allowed
    assert mine.end is not None and 0.02 <= mine.end - mine.start < 5 and mine.end <= other.start


@pytest.mark.timeout(150)
def test_two_hundred_tasks_of_all_kinds_run_where_they_were_placed_and_nothing_is_given_twice(block: Block) -> None:
    dice = random.Random(20261123)
    play, items, resources, in_workers = block.play, [], {}, set()
    for number in range(200):
        kind, request = wanted(number, dice)
        label = f"{kind}-{number}"
        make = {"shell": block.shell, "wide": block.shell, "mpi": block.mpi}.get(kind, block.python)
        items.append(make(label, request, dice.choice([0.0, 0.1, 0.4])))
        resources[label] = request
        if make == block.python and request.serial:
            in_workers.add(label)
    labels = dict(zip(play.launch(*items), resources, strict=True))
    block.all_over(labels, 100)
    assert {labels[task]: end.error for task, end in play.exits.items() if end.fault} == {}
    asked = {label: Asked(resources[label], play.exits[task].place, label not in in_workers)
             for task, label in labels.items()}
    records = recording.read(block.records)
    assert recording.misplaced(records, asked, AURORA, block.names) == []
    assert recording.shared(records, asked) == []
    assert {each.host for each in records} == set(NAMES)


@pytest.mark.timeout(120)
def test_a_killed_agent_a_dead_node_and_one_that_is_cut_off_cost_their_own_tasks_which_run_elsewhere(
        block: Block, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    half = Resources(gpu_shares=6 * TILE)
    items = [block.shell(f"half-{number}", half, gate) for number in range(8)]
    wide = block.mpi("wide", Resources(num_nodes=4, mpi=True), gate)
    own = block.shell("own", Resources(ranks_per_node=2, mpi=True), gate)
    play, tasks = block.play, [*block.play.launch(*items), *block.play.launch(wide, own)]
    play.until(lambda: len(list(block.records.iterdir())) == 8 + 4 + 2, 40)
    node_of = {task: min(recording.parse_place(play.started(task).place)) for task in tasks}
    assert sorted(node_of[task] for task in tasks[:8]) == [0, 0, 1, 1, 2, 2, 3, 3]
    killed, cut, dead = block.names[1:]
    block.lost = [cut, dead]     # what Hydra has there itself waits for the network for minutes
    os.kill(block.agent(killed), signal.SIGKILL)
    block.hosts.cut(cut)
    block.hosts.kill_all(dead)
    until(lambda: not any("half-" in line for line in block.tasks_on(killed)), "the guardian ends what it had", 5)
    lost = {task for task in tasks if node_of[task]} | {wide.task}
    play.until(lambda: play.exits, 40)
    assert block.tasks_on(cut) == []          # never in two places at once
    play.until(lambda: lost <= play.exits.keys(), 20)
    assert {task: play.exits[task].fault for task in tasks if task in play.exits} == dict.fromkeys(lost, Fault.NODE)
    # What spans nodes may be ended by its launcher's word, which may come first.
    assert [end for task, end in play.exits.items()
            if task != wide.task and "nothing was heard of its agent" not in end.error] == []
    again = [msgspec.structs.replace(item, attempt=2) for item in items if item.task in lost]
    play.exits.clear()
    play.launch(*again)
    gate.touch()
    block.all_over({item.task: str(item.task) for item in [*again, own]}, 30)
    assert {end.fault for end in play.exits.values()} == {Fault.NONE}
    second = [each for each in recording.read(block.records) if each.attempt == 2]
    assert len(second) == 6 and {each.host for each in second} == {"n1"}


@pytest.mark.timeout(120)
def test_nothing_is_left_on_any_host_when_the_leader_is_killed(block: Block, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wide = block.mpi("wide", Resources(num_nodes=4, mpi=True), gate)
    halves = [block.shell(f"half-{number}", Resources(gpu_shares=6 * TILE), gate) for number in range(8)]
    python = [block.python(f"python-{number}", Resources(threads_per_rank=20), gate) for number in range(8)]
    block.play.launch(wide, *halves, *python)
    block.play.until(lambda: len(list(block.records.iterdir())) == 8 + 8 + 4, 40)
    assert all(block.tasks_on(name) for name in NAMES)
    os.kill(block.agent("n1"), signal.SIGKILL)
    until(lambda: not block.tasks_on("n1"), "the guardian ends what the leader had", 5)
    until(lambda: not any(block.hosts.processes(name) for name in NAMES), "followers without a leader leave", 30)
    assert block.leader.wait(20) == -signal.SIGKILL


@pytest.mark.timeout(120)
def test_a_node_that_is_not_there_when_the_pilot_starts_is_left_out_and_the_others_work(
        can_have_hosts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(tmp_path, monkeypatch, missing="n3") as block:
        block.play.until(lambda: block.play.enrolments, 60)
        assert sorted(block.names) == NAMES
        block.play.until(lambda: block.play.nodes)
        assert {name: news.state for name, news in block.play.nodes.items()} == {"n3": NodeState.LOST}
        items = [block.shell("wide", Resources(num_nodes=3, mpi=True), 0.1)]
        items += [block.shell(f"half-{number}", Resources(gpu_shares=6 * TILE), 0.5) for number in range(6)]
        tasks = block.play.launch(*items)
        block.all_over({task: str(task) for task in tasks}, 15)
        assert {end.fault for end in block.play.exits.values()} == {Fault.NONE}
        ran = sorted(each.host for each in recording.read(block.records) if each.label != "wide")
        assert ran == ["n1", "n1", "n2", "n2", "n4", "n4"]


def test_ranks_on_all_hosts_are_told_to_stop_and_have_their_time(block: Block) -> None:
    told = (f"trap 'echo told >> {block.records}/told-$PMI_RANK; exit 0' TERM; touch {block.records}/ready-$PMI_RANK; "
            "while :; do sleep 0.1 & wait $!; done")
    cls = block.play.shell(told, resources=Resources(num_nodes=3, ranks_per_node=2), stop_grace=15.0)
    task = block.play.run(cls)
    block.play.until(lambda: len(list(block.records.glob("ready-*"))) == 6)
    block.play.send(Stop(15.0))
    assert block.play.end(task).fault is Fault.PILOT
    assert [path.read_text() for path in sorted(block.records.glob("told-*"))] == ["told\n"] * 6
    assert block.leader.wait(20) == 0
