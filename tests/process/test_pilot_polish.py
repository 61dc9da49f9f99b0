"""What one task leaves to the next, where tasks work, and what they are told about places that cannot be; through a
real agent."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playing import Interchange, playing

from balsamfut.errors import LaunchFailed, ShellError, TemplateError
from balsamfut.messages import Fault
from balsamfut.model import AppKind, Extra, Resources


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interchange]:
    with playing(tmp_path_factory.mktemp("site"), cores=1) as (interchange, _):
        yield interchange


def wanders(path: str) -> str:
    before = os.getcwd()
    os.chdir(path)
    return before


def wanders_and_raises(path: str) -> None:
    os.chdir(path)
    raise ValueError("lost")


def where() -> str:
    return os.getcwd()


def test_a_task_that_changes_the_directory_changes_it_for_itself_alone(play: Interchange, tmp_path: Path) -> None:
    for task in (play.run(play.app(wanders), str(tmp_path)), play.run(play.app(wanders_and_raises), str(tmp_path)),
                 play.run(play.app(wanders), str(tmp_path), extra=Extra(workdir="apart"))):
        play.end(task)
        assert play.value(play.run(play.app(where))) == play.pool.cwd


def argv() -> list[str]:
    return sys.argv


def test_a_worker_has_no_command_line_of_its_own(play: Interchange) -> None:
    assert play.value(play.run(play.app(argv))) == [""]


def test_job_out_is_that_of_one_task_and_grows_with_its_attempts(play: Interchange) -> None:
    cls, same = play.shell("echo $BALSAMFUT_TASK_ID $BALSAMFUT_ATTEMPT; echo more >> job.out; echo end"), "same place"
    play.value(play.run(cls, extra=Extra(workdir=same)))
    task = play.run(cls, extra=Extra(workdir=same))
    out = play.value(task).stdout
    assert out.read_text() == f"{task} 1\nmore\nend\n"
    play.launch(play.item(cls, task=task, attempt=2, extra=Extra(workdir=same)))
    play.until(lambda: play.exits[task].attempt == 2)
    assert out.read_text() == f"{task} 1\nmore\nend\n{task} 2\nmore\nend\n"


def makes(name: str) -> str:
    Path(name).touch()
    return os.getcwd()


@pytest.mark.parametrize("kind", ["python", "shell", "function", "mpi"])
def test_a_workdir_that_cannot_be_made_is_named_in_one_sentence(play: Interchange, kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wanted = str(tmp_path / "file" / "under")
    cls, args = {
        "python": (play.app(makes, name="stray"), ("x",)), "shell": (play.shell("true", name="stray"), ()),
        "function": (play.app(argv_of, AppKind.COMMAND, name="stray"), ("true",)),
        "mpi": (play.app(makes, resources=Resources(mpi=True), name="stray"), ("x",))}[kind]
    task = play.run(cls, *args, extra=Extra(workdir=wanted))
    error = play.error(task)
    assert isinstance(error, LaunchFailed) and play.end(task).fault is Fault.TASK
    assert "stray" in str(error) and wanted in str(error) and "Not a directory" in str(error)
    assert str(error).count(wanted) == 1


def argv_of(*args: Any) -> list[Any]:
    return list(args)


def test_a_word_that_is_none_is_explained_as_what_it_is(play: Interchange) -> None:
    error = play.error(play.run(play.app(argv_of, AppKind.COMMAND), "echo", None))
    assert isinstance(error, TemplateError) and "None" in str(error)
    assert "{%" not in str(error) and "leave it out of the list" in str(error)


def test_a_program_that_is_not_there_is_said_once(play: Interchange) -> None:
    error = play.error(play.run(play.app(argv_of, AppKind.COMMAND), "no-such-program"))
    assert isinstance(error, ShellError) and error.returncode == 127
    assert str(error).count("command not found in PATH") == 1 and str(error).count("'no-such-program'") == 1
    assert "command not found in PATH" in error.tail


def test_a_workdir_in_which_nothing_was_left_is_made_again_for_who_asks(play: Interchange) -> None:
    silent, said = play.shell("test $PWD = $BALSAMFUT_WORKDIR"), play.shell("echo said")
    tasks = play.launch(*[play.item(silent) for _ in range(20)])
    results = [play.value(task) for task in tasks]
    assert play.value(play.run(said)).stdout.read_text() == "said\n"
    data = play.site / "data" / "00000"
    assert not [task for task in tasks if (data / str(task)).exists()]
    assert results[3].stdout == data / str(tasks[3]) / "job.out" and results[3].stdout.read_text() == ""
    assert list(results[4].workdir.iterdir()) == [results[4].stderr]
    assert not (data / str(tasks[5])).exists()


def leaves(name: str) -> list[str]:
    if name:
        Path(name).write_text("by the function")
    return ["sh", "-c", "cat -- * > $0 2>/dev/null; test -s $0 || rm $0", "all"]


def test_what_is_left_in_a_workdir_stays_there(play: Interchange) -> None:
    cls = play.app(leaves, AppKind.COMMAND)
    tasks = play.launch(*[play.item(cls, f"deck{number}" if number % 3 == 0 else "") for number in range(30)])
    for number, task in enumerate(tasks):
        play.value(task)
        names = {path.name for path in (play.site / "data" / "00000" / str(task)).glob("*")}
        assert names == ({"all", "job.out", f"deck{number}"} if number % 3 == 0 else set())
    odd = play.run(play.shell("chmod 700 . ; chmod 600 job.out"))
    next_one = play.value(play.run(play.shell("stat -c %a . job.out")))
    plain = play.value(play.run(play.shell("stat -c %a . job.out")))
    assert next_one.stdout.read_text() == plain.stdout.read_text()
    assert play.value(odd).workdir.stat().st_mode & 0o777 == 0o700
    assert isinstance(play.error(play.run(play.shell("false"))), ShellError)
    assert Path(play.error(play.run(play.shell("false"))).workdir).exists()
