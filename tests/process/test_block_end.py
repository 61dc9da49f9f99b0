"""The end of a block, with a real agent: who is told, when, what is kept, and that the pilot is gone in time."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playing import Interchange, Pilot
from waiting import unhurried

from balsamfut.context import Retry, TaskView, time_left
from balsamfut.messages import Exited, Fault
from balsamfut.model import Extra, Resources

COUNTS = """
read n 2>/dev/null < state || n=0
trap 'echo $n > state; echo "attempt $BALSAMFUT_ATTEMPT: $n"; exit 0' TERM
while [ $n -lt LIMIT ]; do n=$((n + 1)); sleep 0.1 & wait $!; done
echo "whole: $n" > result
"""
"""A command that writes a checkpoint when it is told to stop, and goes on from there."""


@contextmanager
def block(site: Path, walltime: float, **how: Any) -> Iterator[tuple[Interchange, Pilot]]:
    """A pilot of a block that is so long; it ends by itself."""
    play = Interchange(site)
    pilot = Pilot(site, play.door, walltime=walltime, **how)
    try:
        play.until(lambda: play.enrolments)
        yield play, pilot
    finally:
        if pilot.process.poll() is None:
            pilot.process.kill()
            pilot.process.wait()
        play.close()


def workdir(site: Path, task: int) -> Path:
    return site / "data" / "00000" / str(task)


def test_a_command_writes_its_checkpoint_and_goes_on_from_it_in_the_next_block(tmp_path: Path) -> None:
    began, lasts = time.monotonic(), unhurried(9.0)
    steps = int(9 * lasts)      # of a tenth of a second: more than there is time for
    with block(tmp_path, lasts) as (play, pilot):
        assert 0.0 < play.enrolments[0].left < lasts
        cls = play.shell(COUNTS.replace("LIMIT", str(steps)), stop_grace=2.0)
        task = play.run(cls)
        ended = play.end(task)
        assert (ended.fault, ended.payload, ended.error) == (Fault.BLOCK, None, "its block ended while it ran")
        assert ended.ended - ended.started > 2.0, "it was told to stop long before that was needed"
        play.until(lambda: play.left)
        assert pilot.wait() == 0 and time.monotonic() - began < lasts
        assert play.left[0].reason == "its block has come to its end"
    count = int((workdir(tmp_path, task) / "state").read_text())
    assert 0 < count < steps and not (workdir(tmp_path, task) / "result").exists()
    with block(tmp_path, 1000.0, number=2) as (play, pilot):
        cls = play.shell(COUNTS.replace("LIMIT", str(steps)), stop_grace=2.0)
        play.launch(play.item(cls, task=task, attempt=2))
        assert play.end(task).fault is Fault.NONE
        assert (workdir(tmp_path, task) / "result").read_text() == f"whole: {steps}\n"
        assert (workdir(tmp_path, task) / "job.out").read_text() == f"attempt 1: {count}\n"
        pilot.process.send_signal(signal.SIGTERM)
        assert pilot.wait() == 0


def test_what_ends_well_after_it_was_told_is_done_where_it_made_all_that_it_declares(tmp_path: Path) -> None:
    with block(tmp_path, unhurried(9.0), cores=3) as (play, _):
        cls = play.shell("trap 'touch one; exit 0' TERM; sleep 1000 & wait", stop_grace=1.0)
        some = play.launch(play.item(cls, extra=Extra(outputs=("one", "two"))),
                           play.item(cls, extra=Extra(outputs=("one",))), play.item(cls))
        assert [play.end(task).fault for task in some] == [Fault.BLOCK, Fault.NONE, Fault.BLOCK]


def lingers(path: str, catches: bool) -> str:
    if catches:
        def told(number: int, frame: object) -> None:
            raise SystemExit

        signal.signal(signal.SIGTERM, told)
    Path(path).write_text(f"{time_left():.1f}")
    try:
        time.sleep(1000)
    except SystemExit:
        if path.endswith("kept"):
            return "as far as it came"
        raise
    return "whole"


def test_a_python_task_hears_the_signal_and_knows_how_much_time_is_left(tmp_path: Path) -> None:
    lasts = unhurried(9.0)
    with block(tmp_path, lasts, cores=3) as (play, _):
        cls = play.app(lingers, stop_grace=2.0)
        names = ("kept", "raised", "deaf")
        kept, raised, deaf = (play.run(cls, str(tmp_path / name), name != "deaf") for name in names)
        assert play.value(kept) == "as far as it came"
        assert [play.end(task).fault for task in (raised, deaf)] == [Fault.BLOCK, Fault.BLOCK]
    assert 2.0 < float((tmp_path / "kept").read_text()) < lasts
    assert time_left() > 1e9


def decides(task: TaskView) -> Retry | None:
    Path(task.workdir / "hook").write_text(type(task.exception).__name__)
    if task.name == "wider":
        return task.retry(num_nodes=2)
    if task.name == "fails":
        raise RuntimeError("it makes no progress")
    return None


def test_the_on_timeout_hook_says_how_it_goes_on(tmp_path: Path) -> None:
    with block(tmp_path, unhurried(9.0), cores=3) as (play, _):
        hooks = {"on_timeout": decides}
        cls = play.app(None, play.apps[play.shell("sleep 1000")][1].kind, "sleep 1000", hooks=hooks, stop_grace=2.0)
        named = [play.item(cls, extra=Extra(name=name)) for name in ("on", "wider", "fails")]
        on, wider, fails = (play.end(task) for task in play.launch(*named))
        assert (on.fault, on.again, on.payload) == (Fault.BLOCK, None, None)
        assert wider.fault is Fault.BLOCK and wider.again is not None and wider.again.num_nodes == 2
        assert fails.fault is Fault.TASK and "no progress" in fails.error
        assert (workdir(tmp_path, on.task) / "hook").read_text() == "BlockEnded"
        python = play.app(lingers, hooks=hooks)
        assert play.item(python)


def test_what_would_not_be_over_in_time_is_handed_back_and_what_is_short_runs_on(tmp_path: Path) -> None:
    with block(tmp_path, unhurried(12.0)) as (play, _):
        long, short = play.shell("sleep 100", walltime=60.0), play.shell("true", walltime=0.5)
        goes_on = play.shell("sleep 1000", walltime=60.0, checkpoint=True, stop_grace=3.0)
        task, restarted = play.run(long), play.run(goes_on)
        assert play.end(task).fault is Fault.RETURNED and play.closed == {long}
        assert play.end(play.run(short)).fault is Fault.NONE
        assert play.started(restarted)
        play.run(short, task=99)
        assert play.end(99).fault is Fault.NONE


TELLS = """
import os, signal, sys, time
from mpi4py import MPI
rank = MPI.COMM_WORLD.rank
def told(number, frame):
    open(f"checkpoint-{rank}", "a").write("told\\n")
    time.sleep(0.3)
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
open(f"ready-{rank}", "w").close()
while True:
    time.sleep(0.05)
"""


def test_all_ranks_of_an_mpi_task_are_told_once_and_write_their_checkpoints(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    (tmp_path / "tells.py").write_text(TELLS)
    with block(tmp_path, unhurried(12.0), cores=3) as (play, pilot):
        cls = play.shell(f"{sys.executable} {tmp_path}/tells.py", resources=Resources(ranks_per_node=3), stop_grace=4.0)
        task = play.run(cls)
        where = workdir(tmp_path, task)
        play.until(lambda: len(list(where.glob("ready-*"))) == 3)
        assert play.end(task).fault is Fault.BLOCK
        assert pilot.wait() == 0
    assert [path.read_text() for path in sorted(where.glob("checkpoint-*"))] == ["told\n"] * 3


def test_a_batch_system_that_ends_the_job_brings_its_end_forward(tmp_path: Path) -> None:
    with block(tmp_path, 1000.0) as (play, pilot):
        counting = play.run(play.shell(COUNTS.replace("LIMIT", "100000"), stop_grace=3.0))
        queued = play.launch(*[play.item(play.shell("sleep 1000")) for _ in range(5)])
        play.started(counting)
        play.until(lambda: sum(isinstance(each, Exited) for each in play.reports) == 0 and play.beats > 1)
        pilot.process.send_signal(signal.SIGTERM)
        assert play.end(counting).fault is Fault.BLOCK
        faults = [play.end(task).fault for task in queued]
        assert sorted(faults) == [Fault.RETURNED] * 4 + [Fault.BLOCK]
        assert pilot.wait() == 0 and int((workdir(tmp_path, counting) / "state").read_text()) > 0


def rests(path: str, comm: object) -> None:
    Path(path).touch()
    time.sleep(1000)


def test_calls_on_ranks_that_live_on_are_cut_off_with_their_slices(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    with block(tmp_path, unhurried(14.0), cores=2) as (play, pilot):
        cls = play.app(rests, resources=Resources(ranks_per_node=2, mpi=True, pooled=True), stop_grace=3.0)
        running, queued = play.run(cls, str(tmp_path / "runs")), play.run(cls, str(tmp_path / "waits"))
        play.flagged(tmp_path / "runs")
        assert play.end(running).fault is Fault.BLOCK and play.end(queued).fault is Fault.RETURNED
        assert pilot.wait() == 0
    assert not (tmp_path / "waits").exists()
