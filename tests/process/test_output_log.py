"""The output of commands, with real agents: where it is while they run, afterwards, and when something died; and that
what Python tasks and the ranks of MPI functions printed is found by task."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playing import Interchange, Pilot, playing
from test_many_nodes import NAMES, started
from waiting import open_gate, until

from balsamfut import Executor, ShellResult, app, cli
from balsamfut.errors import ShellError, TaskKilled, WorkerLost
from balsamfut.messages import Fault
from balsamfut.model import TILE, Extra, Resources
from balsamfut.outlog import entries, search

GATE = "; until [ -e {{ gate }} ]; do sleep 0.02; done"


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interchange]:
    with playing(tmp_path_factory.mktemp("site"), cores=2) as (interchange, _):
        yield interchange


def workdir(play: Interchange, task: int) -> Path:
    return play.site / "data" / "00000" / str(task)


def logged(site: Path) -> dict[int, str]:
    """What is in all output logs of a site, by task."""
    return {each.task: log.read_bytes()[each.start:each.end].decode()
            for log in site.glob("log/*/output-*.log") for each in entries(log)}


# ---- what a command leaves


def test_commands_that_only_said_a_little_leave_two_files_for_all_of_them(play: Interchange) -> None:
    tasks = play.launch(*[play.item(play.shell(f"echo {number}; echo error >&2")) for number in range(30)])
    results = [play.value(task) for task in tasks]
    assert not any(workdir(play, task).exists() for task in tasks)
    host = os.uname().nodename
    assert {path.name for path in play.site.glob("log/pilot-1/output*")} == {f"output-{host}.log", f"output-{host}.idx"}
    assert [logged(play.site)[task] for task in tasks] == [f"{number}\nerror\n" for number in range(30)]
    for number, task in enumerate(tasks[:3]):
        assert results[number].stdout == results[number].stderr == workdir(play, task) / "job.out"
        assert results[number].stdout.read_text() == f"{number}\nerror\n"
        detail = play.end(task).detail
        assert detail is not None and detail.stdout == detail.stderr and detail.stdout_span == detail.stderr_span
        start, end = detail.stdout_span
        assert Path(detail.stdout).read_bytes()[start:end].decode() == f"{number}\nerror\n"
    assert not workdir(play, tasks[3]).exists()


def test_while_a_command_runs_its_directory_and_its_output_are_there(play: Interchange, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task = play.run(play.shell(f"echo begun; until [ -e {gate} ]; do sleep 0.02; done; echo over"))
    output = workdir(play, task) / "job.out"
    play.until(lambda: output.exists() and output.read_text() == "begun\n")
    with output.open() as follower:
        assert follower.read() == "begun\n"
        open_gate(gate)
        result = play.value(task)
        assert not output.exists()
        play.value(play.run(play.shell("echo another")))      # in the same directory, under another name
        assert follower.read() == "over\n"
    assert result.stdout.read_text() == "begun\nover\n"


@pytest.mark.parametrize(("command", "extra", "left"), [
    ("head -c 4097 /dev/zero", Extra(), {"job.out"}),
    ("echo said; touch result", Extra(), {"job.out", "result"}),
    ("echo said", Extra(stdout="job.out"), {"job.out"}),
    ("echo said; echo error >&2", Extra(stderr="job.err"), {"job.out", "job.err"}),
    ("echo said", Extra(workdir="named"), {"job.out"}),
    ("echo said > made", Extra(outputs=("made",)), {"job.out", "made"}),
], ids=["much output", "a file", "a named stdout", "a stderr apart", "a named workdir", "an output file"])
def test_a_command_that_leaves_more_or_asks_for_its_files_has_its_directory(
        play: Interchange, command: str, extra: Extra, left: set[str]) -> None:
    cls = play.shell(command)
    command_extra = Extra(**{name: getattr(extra, name) for name in Extra.__struct_fields__} | {"command": command})
    task = play.run(cls, extra=command_extra)
    play.value(task)
    where = play.site / "data" / "named" if extra.workdir else workdir(play, task)
    assert {path.name for path in where.iterdir()} == left
    assert task not in logged(play.site)


def test_a_hook_finds_the_directory_of_its_command(play: Interchange) -> None:
    task = play.run(play.shell("echo said", hooks={"postprocess": lambda task: str(task.stdout.read_text())}))
    assert play.value(task) == "said\n" and (workdir(play, task) / "job.out").exists()


def test_a_command_that_fails_or_is_killed_keeps_its_directory_and_its_output(play: Interchange) -> None:
    failed = play.run(play.shell("echo said; exit 3"))
    assert isinstance(play.error(failed), ShellError)
    # One that ends well when it is told to end, too.
    killed = play.run(play.shell("trap 'exit 0' TERM; printf unfinished; while :; do sleep 0.02; done"))
    output = workdir(play, killed) / "job.out"
    play.until(lambda: output.exists() and output.read_text() == "unfinished")
    play.kill(killed)
    assert play.end(killed).fault is Fault.KILLED
    assert output.read_text().startswith("unfinished") and (workdir(play, failed) / "job.out").read_text() == "said\n"
    assert not logged(play.site).keys() & {failed, killed}


def test_output_that_cannot_be_logged_stays_in_its_directory(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "pilot-1").touch()      # not a directory: no output log can be made
    with playing(tmp_path, cores=1) as (play, _):
        task = play.run(play.shell("echo said"))
        assert play.value(task).stdout.read_text() == "said\n"
        detail = play.end(task).detail
        assert detail is not None and detail.stdout == str(workdir(play, task) / "job.out")


def test_what_a_killed_agent_has_logged_is_found_and_what_it_ran_keeps_its_output(tmp_path: Path) -> None:
    with playing(tmp_path, cores=1) as (play, pilot):
        said = play.run(play.shell("echo said"))
        result = play.value(said)
        left = play.run(play.shell("echo attempt $BALSAMFUT_ATTEMPT; [ $BALSAMFUT_ATTEMPT = 2 ] || sleep 60"))
        output = workdir(play, left) / "job.out"
        play.until(lambda: output.exists() and output.read_text() == "attempt 1\n")
        pilot.process.kill()
        pilot.wait()
        span = search(tmp_path / "log", said)
        assert span is not None and span.read() == b"said\n" and result.stdout.read_text() == "said\n"
        assert output.read_text() == "attempt 1\n" and search(tmp_path / "log", left) is None
        second = Pilot(tmp_path, play.door, cores=1, number=2)
        play.until(lambda: len(play.enrolments) == 2)
        play.told.clear()
        play.launch(play.item(2, task=left, attempt=2))
        again = play.value(left)
        assert not output.exists() and again.stdout.read_text() == "attempt 1\nattempt 2\n"
        os.kill(second.process.pid, signal.SIGKILL)
        second.wait()


# ---- how it is asked for


@app.shell("echo {{ word }}")
def echo(word: str) -> None: ...


def test_futures_and_the_command_line_find_the_output_and_a_re_run_does_too(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site"
    with Executor("words", site=site, max_workers=2) as ex:
        first = ex.submit(echo, "one")
        others = [ex.submit(echo, f"word {number}") for number in range(10)]
        result, task = first.result(20), first.task_id
        assert [other.result(20).returncode for other in others] == [0] * 10
    assert isinstance(result, ShellResult) and not (site / "data" / "00000" / str(task)).exists()
    for words in (("logs", str(task)), ("task", "logs", str(task)), ("logs", "--stderr", str(task))):
        assert cli.main([*words, "--site", str(site)]) == 0
        assert capsys.readouterr().out == "one\n"
    assert not (site / "data" / "00000" / str(task)).exists()
    assert cli.main(["task", "show", str(task), "--site", str(site)]) == 0
    assert "  one\n" in capsys.readouterr().out
    with Executor("words", site=site, max_workers=2) as ex:
        again = ex.submit(echo, "one")
        assert again.result(20) == result and again.task_id == task and again.from_cache
        stdout = again.stdout
        assert stdout == again.workdir / "job.out" == again.stderr and stdout.read_text() == "one\n"
        another = ex.submit(echo, "word 0")
        another.result(20)
        assert another.workdir.is_dir()
    shutil.rmtree(site / "data" / "00000" / str(task))
    assert result.stdout.read_text() == "one\n"


@app.shell("until [ -e {{ gate }} ]; do sleep 0.02; done; {{ command | raw }}")
def waits(gate: Path, command: str) -> None: ...


@pytest.mark.parametrize("command", ["echo said", "true"])
@pytest.mark.parametrize("asked", ["stdout", "workdir"])
def test_a_path_that_was_asked_for_before_the_end_leads_to_the_output_after_it(
        tmp_path: Path, command: str, asked: str) -> None:
    with Executor(site=tmp_path / "site", max_workers=1) as ex:
        call = ex.submit(waits, tmp_path / "gate", command)
        path = getattr(call, asked)
        until((tmp_path / "site" / "data" / "00000" / "1" / "job.out").exists, "it has started")
        open_gate(tmp_path / "gate")
        call.result(20)
        assert (path if asked == "stdout" else path / "job.out").read_text() == ("said\n" if "said" in command else "")


def test_logs_are_read_without_the_database_and_before_the_end_is_known(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = tmp_path / "site"
    with Executor(site=site, max_workers=1) as ex:
        task = ex.submit(echo, "one")
        task.result(20)
        number = task.task_id
    words = ["logs", str(number), "--site", str(site)]
    with sqlite3.connect(site / "balsamfut.db") as database:     # as it is until the agent's report is recorded
        database.execute("UPDATE tasks SET state = 4, ended = 0, detail = NULL WHERE id = ?", (number,))
    database.close()
    assert cli.main(words) == 0 and capsys.readouterr().out == "one\n"
    for path in site.glob("balsamfut.db*"):
        path.write_bytes(b"no database at all" * 100)
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert said.out == "one\n" and "output logs" in said.err
    assert cli.main(["logs", "77", "--site", str(site)]) == 2
    assert capsys.readouterr().out == ""


# ---- Python tasks


@app
def unfinished(flag: Path, how: str) -> None:
    print("the beginning of a line", end="")
    os.write(2, b"the beginning of an error")
    flag.touch()
    if how == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    signal.pause()


@pytest.mark.parametrize(("how", "kind"), [("dies", WorkerLost), ("killed", TaskKilled)])
def test_what_a_python_task_wrote_is_found_though_it_ended_in_the_middle_of_a_line(
        tmp_path: Path, how: str, kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    flag, site = tmp_path / "flag", tmp_path / "site"
    with Executor(site=site, max_workers=1) as ex:
        call = ex.submit(unfinished, flag, how)
        until(flag.exists, "it has printed")
        if how == "killed":
            assert call.kill()
        assert isinstance(call.exception(20), kind)
        assert call.stdout is not None and call.stdout.read_text() == "the beginning of a line"
        assert call.stderr is not None and call.stderr.read_text() == "the beginning of an error"
        number = str(call.task_id)
    assert cli.main(["logs", number, "--site", str(site)]) == 0
    assert capsys.readouterr().out == "the beginning of a line"


def speaks(word: str) -> int:
    from mpi4py import MPI

    rank: int = MPI.COMM_WORLD.rank
    print(f"{word} from rank {rank} on {os.uname().nodename}")
    print(f"error of rank {rank}", file=sys.stderr)
    return rank


def test_what_the_ranks_of_a_function_print_is_in_its_output(play: Interchange) -> None:
    for word in ("one", "two"):
        task = play.run(play.app(speaks, resources=Resources(ranks_per_node=2)), word)
        assert play.value(task) == 0
        detail = play.end(task).detail
        assert detail is not None and detail.stdout == str(workdir(play, task) / "job.out")
        host = os.uname().nodename
        expected = [f"{word} from rank {rank} on {host}" for rank in (0, 1)]
        assert sorted(Path(detail.stdout).read_text().splitlines()) == sorted(
            [*expected, "error of rank 0", "error of rank 1"])


# ---- several hosts


@pytest.mark.timeout(120)
def test_on_several_hosts_each_agent_has_a_log_and_what_all_ranks_print_is_in_one_place(
        can_have_hosts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(tmp_path, monkeypatch) as block:
        play, gate = block.play, tmp_path / "gate"
        play.until(lambda: play.enrolments, 60)
        half = Resources(gpu_shares=6 * TILE)
        command = f"cat /proc/sys/kernel/hostname; until [ -e {gate} ]; do sleep 0.05; done"
        tasks = play.launch(*[play.item(play.shell(command, resources=half)) for _ in range(8)])
        wide = play.run(play.app(speaks, resources=Resources(num_nodes=4, ranks_per_node=2)), "one")
        outputs = [workdir(play, task) / "job.out" for task in tasks]
        play.until(lambda: all(output.exists() and output.read_text() for output in outputs), 40)
        open_gate(gate)
        said = {task: play.value(task).stdout.read_text() for task in tasks}
        assert sorted(said.values()) == sorted(2 * [f"{name}\n" for name in NAMES])
        logs = {log.name: sorted(each.task for each in entries(log)) for log in play.site.glob("log/*/output-*.log")}
        assert logs == {f"output-{name}.log": [task for task in tasks if said[task] == f"{name}\n"] for name in NAMES}
        play.until(lambda: wide in play.exits, 40)
        assert play.value(wide) == 0
        detail = play.end(wide).detail
        assert detail is not None
        lines = [line for line in Path(detail.stdout).read_text().splitlines() if line.startswith("one from")]
        assert sorted(line.rpartition(" ")[2] for line in lines) == sorted(2 * NAMES)
