"""The output log: what was appended is found again, by its index, by its own lines, and after any kind of bad end; and
the directories that it makes unnecessary."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsamfut import outlog
from balsamfut.futures import TaskFuture
from balsamfut.messages import Detail
from balsamfut.model import ShellResult, restored
from balsamfut.outlog import Entry, OutputLog, Span, entries, search
from balsamfut.pilot.workdirs import SMALL, Workdirs, sweep

DECEITFUL = b"--- task 9, attempt 9, 9 bytes\n"
outputs = st.lists(st.tuples(st.integers(1, 10**12), st.integers(1, 5),
                             st.one_of(st.binary(min_size=1, max_size=30), st.just(DECEITFUL), st.just(b"\n"))),
                   max_size=12)


def written(folder: Path, outputs: list[tuple[int, int, bytes]]) -> tuple[Path, Path, list[Span]]:
    log = OutputLog(folder, "n1")
    spans = [log.append(*each) for each in outputs]
    log.close()
    return folder / "output-n1.log", folder / "output-n1.idx", spans


def found(log: Path) -> list[tuple[int, int, bytes]]:
    data = log.read_bytes()
    return [(each.task, each.attempt, data[each.start:each.end]) for each in entries(log)]


# ---- writing and reading


@settings(deadline=None, max_examples=40)
@given(outputs=outputs, lost=st.integers(0, 400))
def test_what_was_appended_is_found_however_much_of_the_index_is_lost(
        tmp_path_factory: pytest.TempPathFactory, outputs: list[tuple[int, int, bytes]], lost: int) -> None:
    log, index, spans = written(tmp_path_factory.mktemp("log"), outputs)
    if not outputs:
        assert not log.exists()      # made with the first output
        return
    assert [span.read() for span in spans] == [data for _, _, data in outputs]
    assert found(log) == outputs
    os.truncate(index, max(0, index.stat().st_size - lost))
    assert found(log) == outputs
    index.unlink()
    assert found(log) == outputs


@settings(deadline=None, max_examples=40)
@given(outputs=outputs.filter(len), lost=st.integers(1, 60))
def test_an_end_that_was_not_written_is_left_out_and_the_rest_is_found(
        tmp_path_factory: pytest.TempPathFactory, outputs: list[tuple[int, int, bytes]], lost: int) -> None:
    log, index, spans = written(tmp_path_factory.mktemp("log"), outputs)
    size = max(0, log.stat().st_size - lost)
    os.truncate(log, size)
    whole = [each for each, span in zip(outputs, spans, strict=True) if span.end <= size]
    assert found(log) == whole
    index.unlink()
    assert found(log) == whole
    for span in spans[len(whole):]:
        with pytest.raises(OSError, match="cut off"):
            span.read()


def test_an_index_of_something_else_is_not_believed(tmp_path: Path) -> None:
    log, index, _ = written(tmp_path, [(1, 1, b"one\n"), (2, 1, b"two\n")])
    index.write_bytes(b"\xff" * 64)
    assert found(log) == [(1, 1, b"one\n"), (2, 1, b"two\n")]


def test_people_can_read_the_log(tmp_path: Path) -> None:
    log, _, _ = written(tmp_path, [(17, 2, b"no newline"), (18, 1, b"a\nb\n")])
    assert log.read_text() == "--- task 17, attempt 2, 10 bytes\nno newline\n--- task 18, attempt 1, 4 bytes\na\nb\n"


def test_two_agents_of_one_name_have_a_log_each(tmp_path: Path) -> None:
    first, second = OutputLog(tmp_path, "n1"), OutputLog(tmp_path, "n1")
    for log, task in ((first, 1), (second, 2), (first, 3)):
        log.append(task, 1, b"x")
    assert found(tmp_path / "output-n1.log") == [(1, 1, b"x"), (3, 1, b"x")]
    assert found(tmp_path / "output-n1.2.log") == [(2, 1, b"x")]
    first.close()
    second.close()


def test_logs_are_the_owners_alone(tmp_path: Path) -> None:
    log, index, _ = written(tmp_path / "pilot-1", [(1, 1, b"x")])
    assert [path.stat().st_mode & 0o777 for path in (log.parent, log, index)] == [0o700, 0o600, 0o600]


@pytest.mark.parametrize("short_of", ["log", "index"])
def test_a_write_that_fails_leaves_the_log_as_it_was_and_the_next_one_goes_well(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_of: str) -> None:
    log = OutputLog(tmp_path, "n1")
    log.append(1, 1, b"one\n")
    write, calls = os.write, iter([short_of == "log", True])

    def no_room(fd: int, data: bytes) -> int:
        return write(fd, data[:7]) if next(calls) else write(fd, data)

    with monkeypatch.context() as full:
        full.setattr(outlog.os, "write", no_room)
        with pytest.raises(OSError, match="No space left"):
            log.append(2, 1, b"two\n")
    span = log.append(3, 1, b"three\n")
    log.close()
    assert span.read() == b"three\n"
    assert found(tmp_path / "output-n1.log") == [(1, 1, b"one\n"), (3, 1, b"three\n")]
    assert (tmp_path / "output-n1.idx").stat().st_size == 64


def test_nothing_is_kept_in_a_log_that_somebody_has_removed(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, "n1")
    log.append(1, 1, b"one\n")
    (tmp_path / "output-n1.log").unlink()
    for _ in range(2):
        with pytest.raises(OSError, match="output-n1.log"):
            log.append(2, 1, b"two\n")
    log.close()


def test_a_log_that_cannot_be_made_leaves_nothing_and_is_made_later(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, "n1")
    (tmp_path / "output-n1.idx").mkdir()
    with pytest.raises(OSError, match="exists"):
        log.append(1, 1, b"x")
    assert not (tmp_path / "output-n1.log").exists()
    (tmp_path / "output-n1.idx").rmdir()
    assert log.append(1, 1, b"x").read() == b"x"
    log.close()


def test_the_newest_attempt_of_a_task_is_found_in_the_logs_of_all_agents(tmp_path: Path) -> None:
    written(tmp_path / "pilot-1", [(5, 1, b"first"), (6, 1, b"other")])
    written(tmp_path / "pilot-2", [(5, 2, b"second")])
    (tmp_path / "pilot-2" / "worker-1.out").write_text("--- task 5, attempt 3, 1 bytes\nx\n")     # no output log
    newest = search(tmp_path, 5)
    assert newest is not None and newest.read() == b"second"
    within = search(tmp_path / "pilot-1", 5)
    assert within is not None and within.read() == b"first"
    assert search(tmp_path, 7) is None and search(tmp_path / "nowhere", 5) is None


def test_an_entry_tells_where_its_output_is(tmp_path: Path) -> None:
    log, _, spans = written(tmp_path, [(5, 1, b"text")])
    assert list(entries(log)) == [Entry(5, 1, spans[0].start, spans[0].end)]


# ---- directories that go


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def used(workdirs: Workdirs, data: Path, task: int, said: bytes) -> Path:
    workdir = data / "00000" / str(task)
    workdirs.make(str(workdir))
    (workdir / "job.out").write_bytes(said)
    return workdir


def test_a_directory_with_a_little_output_goes_and_becomes_the_next_tasks_without_it(data: Path) -> None:
    workdirs, kept = Workdirs(str(data), "1-n1"), []
    workdir = used(workdirs, data, 1, b"hello\n")
    inode = workdir.stat().st_ino
    with (workdir / "job.out").open("rb") as follower:      # `tail -f`
        assert workdirs.take_back(str(workdir), kept.append)
        assert kept == [b"hello\n"] and not workdir.exists()
        following = used(workdirs, data, 2, b"not for the follower\n")
        assert following.stat().st_ino == inode
        assert follower.read() == b"hello\n"


@pytest.mark.parametrize("left", ["much", "another file", "a link", "a mode", "a directory's mode", "a second name"])
def test_a_directory_in_which_more_was_left_stays(data: Path, left: str) -> None:
    workdirs, kept = Workdirs(str(data), "1-n1"), []
    workdir = used(workdirs, data, 1, b"x" * (SMALL + (left == "much")))
    output = workdir / "job.out"
    if left == "another file":
        (workdir / "result").touch()
    elif left == "a link":
        output.rename(data / "elsewhere")
        output.symlink_to(data / "elsewhere")
    elif left == "a mode":
        output.chmod(0o755)
    elif left == "a directory's mode":
        workdir.chmod(0o711)
    elif left == "a second name":
        os.link(output, data / "also")
    before = output.read_bytes()
    assert not workdirs.take_back(str(workdir), kept.append)
    assert kept == [] and output.read_bytes() == before


def test_output_of_just_that_size_is_kept_elsewhere(data: Path) -> None:
    workdirs, kept = Workdirs(str(data), "1-n1"), []
    assert workdirs.take_back(str(used(workdirs, data, 1, b"x" * SMALL)), kept.append)
    assert kept == [b"x" * SMALL]


def test_output_that_cannot_be_kept_elsewhere_stays_where_it_is(data: Path) -> None:
    def full(said: bytes) -> None:
        raise OSError("no room")

    workdirs = Workdirs(str(data), "1-n1")
    workdir = used(workdirs, data, 1, b"hello\n")
    assert not workdirs.take_back(str(workdir), full) and (workdir / "job.out").read_bytes() == b"hello\n"
    assert not workdirs.take_back(str(workdir))      # nobody keeps it


def test_no_more_empty_directories_are_held_than_can_be_of_use_and_none_stays_at_the_end(
        data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balsamfut.pilot.workdirs._MOST", 4)
    workdirs = Workdirs(str(data), "1-n1")
    many = [used(workdirs, data, task, b"x" * (task % 2)) for task in range(8)]
    assert all(workdirs.take_back(str(workdir), lambda said: None) for workdir in many)
    assert len(list(data.glob(".empty-1-n1-*"))) == 4
    sweep(str(data), "1")
    assert [path.name for path in data.iterdir()] == ["00000"]
    assert list((data / "00000").iterdir()) == []


# ---- and are made again for who asks


@pytest.fixture
def result(tmp_path: Path, data: Path) -> ShellResult:
    (data / "00000").mkdir()
    _, _, [_, span] = written(tmp_path / "log", [(6, 1, b"other"), (7, 1, b"hello\n")])
    workdir = str(data / "00000" / "7")
    return ShellResult(0, f"{workdir}/job.out", f"{workdir}/job.out", workdir, span)


def test_the_output_of_a_result_is_made_from_the_log(result: ShellResult, data: Path) -> None:
    assert repr(result).startswith("ShellResult(returncode=0, stdout=") and not (data / "00000" / "7").exists()
    again = pickle.loads(pickle.dumps(result))
    assert again.stdout == again.stderr and again.stdout.read_bytes() == b"hello\n"
    again.stdout.write_bytes(b"changed by the user")
    assert result.stdout.read_bytes() == b"changed by the user"
    assert [path.name for path in (data / "00000").rglob("*")] == ["7", "job.out"]


def test_the_directory_of_a_result_has_its_output_too(result: ShellResult) -> None:
    assert [path.name for path in result.workdir.iterdir()] == ["job.out"]


def test_results_are_equal_wherever_their_output_is_kept(result: ShellResult) -> None:
    same = ShellResult(0, *result._paths)
    assert result == same and hash(result) == hash(same)
    assert result != ShellResult(1, *result._paths, result._logged)


def test_without_its_log_a_result_is_a_path_to_nothing(result: ShellResult, tmp_path: Path, data: Path) -> None:
    os.truncate(tmp_path / "log" / "output-n1.log", 40)
    assert not result.stdout.exists()
    assert list((data / "00000").iterdir()) == []


def asks(result: ShellResult, barrier: Barrier, answers: Any) -> None:
    barrier.wait(20)
    answers.put(result.stdout.read_bytes())


def test_several_processes_may_ask_at_once(result: ShellResult, data: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.SimpleQueue()
    processes = [context.Process(target=asks, args=(result, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get() for _ in processes] == [b"hello\n"] * 4
    for process in processes:
        process.join(20)
    assert [path.name for path in (data / "00000").rglob("*")] == ["7", "job.out"]


def test_who_comes_second_finds_the_output_of_who_was_faster(
        result: ShellResult, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes the directory between our look and our rename."""
    rename = os.rename

    def late(source: str, target: str) -> None:
        os.makedirs(target)
        Path(target, "job.out").write_bytes(b"made by another")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert result.stdout.read_bytes() == b"made by another"
    assert [path.name for path in (data / "00000").iterdir()] == ["7"]


def test_a_silent_commands_directory_is_made_with_an_empty_output(data: Path) -> None:
    assert (restored(str(data / "00000" / "8")) / "job.out").read_bytes() == b""
    assert not restored(str(data / "no site" / "00000" / "8")).exists()


class Session:
    nested = False

    def __init__(self, data: Path) -> None:
        self.data = data


@pytest.mark.parametrize("asked", ["stdout", "stderr", "workdir"])
def test_a_future_makes_it_from_the_log_too(result: ShellResult, data: Path, asked: str) -> None:
    stdout, _, workdir = result._paths
    span = result._logged
    assert span is not None
    future: TaskFuture[Any] = TaskFuture(Session(data), 1)  # type: ignore[arg-type]
    future._id = 7
    future._detail = Detail(0, "n1", workdir, span.path, span.path, span[1:], span[1:], 1)
    path = getattr(future, asked)
    assert (path / "job.out" if asked == "workdir" else path) == Path(stdout)
    assert Path(stdout).read_bytes() == b"hello\n"
