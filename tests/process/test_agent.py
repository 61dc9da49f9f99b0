"""What an agent does with commands, orders and the loss of its interchange; through a real door."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playing import Interchange, Pilot, playing
from waiting import unhurried

from balsamfut.context import Retry, TaskView
from balsamfut.errors import (
    BadStdStream,
    MissingInputs,
    MissingOutputs,
    OutOfMemory,
    ShellError,
    TaskKilled,
    WalltimeExceeded,
    WorkerLost,
)
from balsamfut.messages import Enrol, Exited, Expelled, Fault, Ran, Reports, Started, Stop
from balsamfut.model import AppKind, Extra, Resources, ShellResult
from balsamfut.pilot.hand import Frames


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interchange]:
    with playing(tmp_path_factory.mktemp("site")) as (interchange, _):
        yield interchange


def read(path: str) -> str:
    return Path(path).read_text()


# ---- commands


def test_a_command_runs_in_its_workdir_with_its_output_in_job_out(play: Interchange) -> None:
    task = play.run(play.shell("pwd; echo oops >&2; echo $BALSAMFUT_TASK_ID $BALSAMFUT_ATTEMPT $MINE",
                               environment=(("MINE", "yes"),)))
    result = play.value(task)
    workdir = str(play.site / "data" / f"{task // 1000:05d}" / str(task))
    assert result == ShellResult(0, f"{workdir}/job.out", f"{workdir}/job.out", workdir)
    assert read(result.stdout) == f"{workdir}\noops\n{task} 1 yes\n"


def test_streams_go_where_the_call_says(play: Interchange) -> None:
    cls = play.shell("echo out; echo err >&2")
    for _ in range(2):
        task = play.run(cls, extra=Extra(workdir="streams", stdout="a.out", stderr="b.err", stderr_mode="w"))
        result = play.value(task)
    assert read(result.stdout) == "out\nout\n" and read(result.stderr) == "err\n"
    error = play.error(play.run(cls, extra=Extra(stdout="/no/such/place/x")))
    assert isinstance(error, BadStdStream) and "/no/such/place/x" in str(error)


@pytest.mark.parametrize(("command", "code"), [
    ("exit 15", 15), ("no-such-command-here", 127), ("/etc/passwd", 126), ("echo $((1 +))", 1), ("kill -9 $$", -9)])
def test_a_command_that_fails_says_how(play: Interchange, command: str, code: int) -> None:
    task = play.run(play.shell(f"echo the tail; {command}", name="sick"))
    error = play.error(task)
    assert isinstance(error, ShellError) and error.returncode == code
    assert error.tail.startswith("the tail\n") and command in error.command and error.workdir and error.host
    assert "sick" in str(error) and play.end(task).fault is Fault.TASK
    detail = play.end(task).detail
    assert detail is not None and detail.returncode == code


def words(*args: str) -> list[str]:
    return list(args)


@pytest.mark.parametrize(("argv", "code"), [(["no-such-command-here"], 127), (["/etc/passwd"], 126), (["false"], 1)])
def test_an_argv_that_cannot_be_run_fails_with_the_codes_of_a_shell(
        play: Interchange, argv: list[str], code: int) -> None:
    error = play.error(play.run(play.app(words, AppKind.COMMAND), *argv))
    assert isinstance(error, ShellError) and error.returncode == code


def greet(name: str) -> str:
    return f"echo hello {name}"


def nothing() -> None:
    return None


def test_a_function_makes_the_command_where_the_task_runs(play: Interchange) -> None:
    assert read(play.value(play.run(play.app(greet, AppKind.COMMAND), "you")).stdout) == "hello you\n"
    result = play.value(play.run(play.app(words, AppKind.COMMAND), "printf", "%s|", "a b", "$HOME"))
    assert read(result.stdout) == "a b|$HOME|"
    error = play.error(play.run(play.app(nothing, AppKind.COMMAND)))
    assert isinstance(error, TypeError) and "nothing returned None" in str(error)


def template(who: Any) -> None: ...


def test_a_template_that_waited_for_futures_is_rendered_on_the_node(play: Interchange) -> None:
    cls = play.app(template, AppKind.TEMPLATE, "echo {{ who }}")
    assert read(play.value(play.run(cls, "a; b")).stdout) == "a; b\n"


def test_a_preamble_runs_in_the_shell_of_the_command(play: Interchange) -> None:
    cls = play.shell("echo $WORD", shell_preamble="export WORD=set")
    assert read(play.value(play.run(cls)).stdout) == "set\n"
    cls = play.app(words, AppKind.COMMAND, shell_preamble="export WORD=argv")
    assert read(play.value(play.run(cls, "sh", "-c", "echo $WORD")).stdout) == "argv\n"


def test_declared_files_are_looked_for(play: Interchange, tmp_path: Path) -> None:
    (tmp_path / "deck").write_text("the deck")
    cls = play.shell("cat in.deck; touch out.dat")
    good = Extra(inputs=((str(tmp_path / "deck"), "in.deck"),), outputs=("out.dat",))
    assert read(play.value(play.run(cls, extra=good)).stdout) == "the deck"
    error = play.error(play.run(cls, extra=msgspec.structs.replace(good, outputs=("out.dat", "more.dat"))))
    assert isinstance(error, MissingOutputs) and error.paths == ("more.dat",)
    error = play.error(play.run(cls, extra=msgspec.structs.replace(good, inputs=(("/no/deck", "in.deck"),))))
    assert isinstance(error, MissingInputs) and error.paths == ("/no/deck",)


def test_what_a_command_leaves_behind_ends_with_it(play: Interchange) -> None:
    task = play.run(play.shell("setsid sleep 1000 & echo $!; setsid sh -c 'echo $$; exec sleep 1000' & sleep 0.2"))
    pids = read(play.value(task).stdout).split()
    assert len(pids) == 2 and not any(Path("/proc", pid).exists() for pid in pids)


# ---- hooks


def read_back(task: TaskView) -> str:
    assert task.returncode == 0 and isinstance(task.result, ShellResult)
    return (task.workdir / "job.out").read_text().strip() + f" {dict(task.tags)} {task.parameters}"


def write_input(task: TaskView) -> None:
    (task.workdir / "input").write_text("from preprocess")


def shows(number: int) -> None: ...


def test_hooks_run_around_a_command(play: Interchange) -> None:
    cls = play.app(shows, AppKind.TEMPLATE, "cat input", cleanup_files=("inp*",),
                   hooks={"preprocess": write_input, "postprocess": read_back})
    task = play.run(cls, 4, extra=Extra(tags=(("a", "b"),)))
    assert play.value(task) == "from preprocess {'a': 'b'} {'number': 4}"
    assert [each for each in play.reports if isinstance(each, Ran) and each.task == task]
    assert not list((play.site / "data").glob(f"*/{task}/input"))


def test_after_a_lost_pilot_only_the_hooks_run_again(play: Interchange) -> None:
    cls = play.app(shows, AppKind.TEMPLATE, "echo ran >> job.out", hooks={"postprocess": read_back})
    task = play.run(cls, 4)
    first = play.value(task)
    play.launch(play.item(cls, 4, task=task, attempt=2, ran=0))
    play.until(lambda: play.exits[task].attempt == 2)
    assert play.value(task) == first and first.startswith("ran {}")


def ask_again(task: TaskView) -> Retry | None:
    return task.retry(num_nodes=3, memory="1GB") if isinstance(task.exception, ShellError) else None


def complain(task: TaskView) -> None:
    raise LookupError(f"instead of {type(task.exception).__name__} {task.returncode}")


def no_answer(task: TaskView) -> int:
    return 5


def test_on_error_decides_what_a_failure_becomes(play: Interchange) -> None:
    ended = play.end(play.run(play.app(None, AppKind.TEMPLATE, "exit 4", hooks={"on_error": ask_again})))
    assert ended.fault is Fault.TASK and ended.again == Resources(num_nodes=3, memory=10**9)
    error = play.error(play.run(play.app(None, AppKind.TEMPLATE, "exit 4", hooks={"on_error": complain})))
    assert isinstance(error, LookupError) and error.args == ("instead of ShellError 4",)
    error = play.error(play.run(play.app(None, AppKind.TEMPLATE, "exit 4", hooks={"on_error": no_answer})))
    assert "on_error hook" in str(error) and "returned int" in str(error)


def fails(how: str) -> None:
    if how == "die":
        os._exit(4)
    if how == "hang":
        time.sleep(1000)
    raise ZeroDivisionError


def note(task: TaskView) -> None:
    Path(task.parameters["how"] + "-" + type(task.exception).__name__).touch()


@pytest.mark.parametrize(("how", "kind"), [
    ("raise", ZeroDivisionError), ("die", WorkerLost), ("hang", WalltimeExceeded)])
def test_hooks_hear_of_every_way_in_which_a_python_task_fails(
        play: Interchange, how: str, kind: type[BaseException], tmp_path: Path) -> None:
    hooks = {"on_timeout" if how == "hang" else "on_error": note}
    cls = play.app(fails, hooks=hooks, walltime=0.2 if how == "hang" else 0.0)
    task = play.run(cls, how=how, extra=Extra(workdir=str(tmp_path / "w")))
    assert isinstance(play.error(task), kind)
    assert [path.name for path in (tmp_path / "w").iterdir()] == [f"{how}-{kind.__name__}"]


# ---- limits, kills, returns


def test_walltime_asks_a_command_to_stop_and_then_makes_it(play: Interchange) -> None:
    says_bye = "trap 'echo bye; exit 0' TERM; sleep 1000 & wait"
    polite = play.run(play.shell(says_bye, walltime=unhurried(1.0), stop_grace=20.0))
    assert isinstance(play.error(polite), WalltimeExceeded) and play.end(polite).fault is Fault.WALLTIME
    detail = play.end(polite).detail
    assert detail is not None and read(detail.stdout) == "bye\n"
    stubborn = play.run(play.shell("trap '' TERM; while :; do sleep 0.1; done", walltime=0.2, stop_grace=0.3))
    ended = play.end(stubborn)
    assert ended.fault is Fault.WALLTIME and ended.started < ended.ended


def hog(size: int) -> None:
    data = bytearray(size)
    data[::4096] = b"x" * len(data[::4096])
    time.sleep(1000)


def until_made(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


def test_memory_over_the_limit_ends_the_task(play: Interchange, tmp_path: Path) -> None:
    limit = Resources(memory=100_000_000)
    task = play.run(play.app(hog, resources=limit), 300_000_000)
    small = play.run(play.app(until_made, resources=limit), str(flag := tmp_path / "over"))
    assert isinstance(play.error(task), OutOfMemory) and play.end(task).fault is Fault.MEMORY
    flag.touch()
    assert play.end(small).fault is Fault.NONE


def sleeps(path: str, seconds: float = 1000) -> None:
    Path(path).touch()
    time.sleep(seconds)


def test_kill_ends_running_tasks_and_what_is_queued_never_runs(play: Interchange, tmp_path: Path) -> None:
    python = play.run(play.app(sleeps), str(tmp_path / "python"))
    shell = play.run(play.shell("sleep 1000 & wait"))
    queued = play.run(play.app(sleeps), str(tmp_path / "queued"))
    play.started(shell)
    play.flagged(tmp_path / "python")
    for task in (queued, python, shell):
        play.kill(task)
    for task in (queued, python, shell):
        assert isinstance(play.error(task), TaskKilled) and play.end(task).fault is Fault.KILLED
    assert (tmp_path / "python").exists() and not (tmp_path / "queued").exists()


def test_what_has_not_started_is_given_back_and_the_rest_is_named(play: Interchange, tmp_path: Path) -> None:
    cls = play.app(sleeps)
    running = play.launch(*[play.item(cls, str(tmp_path / f"r{number}")) for number in range(2)])
    for task in running:
        play.started(task)
        play.flagged(tmp_path / f"r{running.index(task)}")
    queued = play.launch(*[play.item(cls, str(tmp_path / f"q{number}")) for number in range(5)])
    assert play.give_back(*running, *queued, 999_999) == [*running, 999_999]
    for task in queued:
        assert play.end(task).fault is Fault.RETURNED and play.end(task).payload is None
    for task in running:
        play.kill(task)
        play.end(task)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r0", "r1"]


def sometimes_long(flag: str, number: int) -> int:
    if number == 0:
        Path(flag).touch()
        time.sleep(1000)
    return number


def test_short_tasks_do_not_wait_behind_a_long_one_in_the_same_hand(play: Interchange, tmp_path: Path) -> None:
    cls = play.app(sometimes_long)
    for number in range(1, 20):
        play.value(play.run(cls, "", number))
    tasks = play.launch(*[play.item(cls, str(tmp_path / "flag"), number) for number in (0, *range(1, 200))])
    assert [play.value(task) for task in tasks[1:]] == list(range(1, 200))
    assert tasks[0] not in play.exits
    play.kill(tasks[0])
    play.end(tasks[0])


def appends(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


def test_higher_priority_runs_first_and_equal_priority_in_order(tmp_path: Path) -> None:
    with playing(tmp_path, cores=1) as (play, _):
        for number in range(20):                   # known to be short: a hand would take many of them
            play.value(play.run(play.app(appends), str(tmp_path / "warm"), str(number)))
        out = str(tmp_path / "out")
        low, middle, high = (play.app(appends, priority=priority) for priority in (-1, 0, 5))
        block = play.run(play.app(until_made), str(tmp_path / "flag"))
        play.started(block)
        items = [play.item(cls, out, letter) for cls, letter in
                 [(low, "l"), (middle, "a"), (low, "m"), (high, "x"), (middle, "b"), (high, "y"), (middle, "c")]]
        tasks = play.launch(*items)
        assert play.give_back(block) == [block]     # answered after what was said before it was heard
        (tmp_path / "flag").touch()
        for task in tasks:
            play.end(task)
        assert read(out) == "xyabclm"


# ---- MPI


def test_ranks_of_a_command_share_the_nodes_cores(play: Interchange) -> None:
    cls = play.shell("echo rank $PMI_RANK of $PMI_SIZE", resources=Resources(ranks_per_node=2))
    out = read(play.value(play.run(cls)).stdout)
    assert sorted(out.splitlines()) == ["rank 0 of 2", "rank 1 of 2"]
    error = play.error(play.run(play.shell("exit 3", resources=Resources(ranks_per_node=2))))
    assert isinstance(error, ShellError) and error.returncode == 3


def summed(extra: int) -> tuple[int, int]:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    return comm.size, comm.allreduce(comm.rank + extra)


def one_rank_fails() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        raise ArithmeticError("rank one")
    MPI.COMM_WORLD.barrier()


def test_an_mpi_python_function_runs_on_all_ranks_and_rank_0_returns(play: Interchange) -> None:
    assert play.value(play.run(play.app(summed, resources=Resources(ranks_per_node=2)), 10)) == (2, 21)
    error = play.error(play.run(play.app(one_rank_fails, resources=Resources(ranks_per_node=2))))
    assert isinstance(error, ArithmeticError) and "rank 1" in str(error.__cause__)


def test_tiles_of_a_pretended_machine_are_given_out_once(tmp_path: Path) -> None:
    with playing(tmp_path, platform="aurora", nodes=2) as (play, _):
        enrolled = play.enrolments[0]
        assert len(enrolled.nodes) == 2 and enrolled.tiles == 12 and enrolled.cores == 102
        # Each waits until all are there, so no tile can be given out a second time.
        there = tmp_path / "there"
        there.mkdir()
        cls = play.shell(f"echo $ZE_AFFINITY_MASK; touch {there}/$BALSAMFUT_TASK_ID; "
                         f"until [ $(ls {there} | wc -l) = 24 ]; do sleep 0.05; done",
                         resources=Resources(gpu_shares=10_000))
        tasks = play.launch(*[play.item(cls) for _ in range(24)])
        said = [read(play.value(task).stdout).strip() for task in tasks]
        assert sorted(said) == sorted([f"{gpu}.{tile}" for gpu in range(6) for tile in range(2)] * 2)
        mask = play.app(os.getenv, resources=Resources(gpu_shares=10_000))
        assert "." in play.value(play.run(mask, "ZE_AFFINITY_MASK"))


# ---- the interchange, and the end


def test_reports_are_kept_until_they_are_acknowledged_by_whichever_interchange(tmp_path: Path) -> None:
    first = Interchange(tmp_path, 1)
    pilot = Pilot(tmp_path, first.door)
    first.until(lambda: first.enrolments)
    first.acknowledges = False
    running = first.run(first.app(until_made), str(tmp_path / "flag"))
    first.started(running)
    done = first.run(first.shell("true"))
    first.end(done)
    second = Interchange(tmp_path, 2)              # another one owns the site now
    first.close()
    second.until(lambda: second.enrolments)
    assert sorted(second.enrolments[0].held) == sorted([(running, 1), (done, 1)])
    (tmp_path / "flag").touch()
    assert second.end(done).fault is Fault.NONE and second.end(running).fault is Fault.NONE
    assert running in [each.task for each in second.reports if isinstance(each, Started)]
    again = Interchange(tmp_path, 3)
    second.close()
    again.until(lambda: again.enrolments)
    assert again.enrolments[0].held == [] and again.reports == []
    again.send(Stop(0.0))
    assert pilot.wait() == 0
    again.close()


def test_an_orphan_ends_everything_and_leaves_its_reports_on_disk(tmp_path: Path) -> None:
    play = Interchange(tmp_path)
    pilot = Pilot(tmp_path, play.door, grace=0.5)
    play.until(lambda: play.enrolments)
    play.acknowledges = False
    done = play.run(play.shell("true"))
    play.end(done)
    running = play.run(play.shell("sleep 1000"))
    play.started(running)
    queued = play.launch(*[play.item(play.shell("sleep 1000")) for _ in range(4)])
    dead = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(dead, 0)
    play.announce(dead)                            # an interchange that has died without a word
    assert pilot.wait() == 0
    data = (tmp_path / "spool" / "pilot-1").read_bytes()
    messages = [msgspec.msgpack.decode(frame, type=Reports) for frame in Frames().feed(data)]
    ends = {each.task: each.fault for message in messages for each in message.reports if isinstance(each, Exited)}
    assert ends[done] is Fault.NONE and ends[running] is Fault.PILOT
    assert all(ends[task] in (Fault.RETURNED, Fault.PILOT) for task in queued)
    assert [message.seq for message in messages] == sorted(message.seq for message in messages)
    play.close()


def test_stop_gives_back_what_has_not_started_and_ends_the_rest(tmp_path: Path) -> None:
    with playing(tmp_path) as (play, pilot):
        shell = play.run(play.shell(f"trap 'echo asked; exit 3' TERM; touch {tmp_path}/trapped; sleep 1000 & wait"))
        python = play.run(play.app(sleeps), str(tmp_path / "flag"))
        play.started(shell), play.started(python)
        play.flagged(tmp_path / "trapped")
        queued = play.run(play.app(sleeps), str(tmp_path / "never"))
        play.send(Stop(15.0))
        play.until(lambda: play.left)
        assert pilot.wait() == 0
        assert play.exits[queued].fault is Fault.RETURNED
        assert play.exits[shell].fault is Fault.PILOT and play.exits[python].fault is Fault.PILOT
        detail = play.exits[shell].detail
        assert detail is not None and read(detail.stdout) == "asked\n" and not (tmp_path / "never").exists()


def test_sigterm_is_a_stop_and_sigint_is_nothing(tmp_path: Path) -> None:
    with playing(tmp_path) as (play, pilot):
        task = play.run(play.shell("sleep 1000"))
        play.started(task)
        pilot.process.send_signal(signal.SIGINT)
        assert play.value(play.run(play.app(os.getppid))) == pilot.process.pid
        pilot.process.send_signal(signal.SIGTERM)
        play.until(lambda: play.left)
        assert pilot.wait() == 0 and play.exits[task].fault is Fault.PILOT


def test_an_expelled_pilot_ends_everything(tmp_path: Path) -> None:
    with playing(tmp_path) as (play, pilot):
        play.started(play.run(play.shell("sleep 1000")))
        play.send(Expelled("who are you?"))
        assert pilot.wait() == 0


def test_a_pilot_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    with playing(tmp_path) as (play, pilot):
        python = play.run(play.app(sleeps), str(tmp_path / "flag"))
        shell = play.run(play.shell("setsid sleep 1000 & echo $!; wait"))
        play.started(python), play.started(shell)
        pilot.process.kill()
        pilot.wait()
        # conftest's nothing_left_behind is the other half of this test: the guardian has some seconds


def test_a_pilot_says_that_it_is_there(tmp_path: Path) -> None:
    with playing(tmp_path) as (play, _):
        enrolled: Enrol = play.enrolments[0]
        assert enrolled.protocol == 1 and enrolled.pilot == 1 and enrolled.held == [] and enrolled.cores == 2
        play.until(lambda: play.beats >= 2)
