"""What users rely on, as numbered rows: retries, on_error, lost workers, options that are refused, walltime."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from limited import LIMIT, busy, deaf, has_a_child, outruns, quick, sleeps_in_a_shell, sleepy, slow_at_first
from waiting import append, gone, lines, open_gate, pass_gate, reached, until

from balsamfut import Executor, TaskState, app
from balsamfut.errors import InvalidOption, InvalidResources, TaskKilled, WalltimeExceeded, WorkerLost
from balsamfut.query import TaskInfo, open_site


@pytest.fixture(autouse=True, scope="module")
def ex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAMFUT_INTERCHANGE_LINGER", "0.05")
        with Executor(site=tmp_path_factory.mktemp("site"), max_workers=2) as executor:
            yield executor


def recorded(ex: Executor, task: int) -> TaskInfo:
    with open_site(ex.site) as site:
        return site.task(task)


def fail_until(path: Path, success: int) -> int:
    """Succeeds at its `success`-th run; the runs are lines of the file."""
    append(path, "run")
    runs = len(lines(path))
    if runs < success:
        raise RuntimeError(f"run {runs}")
    return runs


# ---- 20, 21: retries


@app(retries=2)
def with_retries(path: Path, success: int) -> int:
    return fail_until(path, success)


def test_row_20_a_task_that_succeeds_at_its_second_try_has_succeeded(ex: Executor, tmp_path: Path) -> None:
    call = with_retries(tmp_path / "runs", 2)
    assert call.result(20) == 2
    assert lines(tmp_path / "runs") == ["run"] * 2
    task = recorded(ex, call.task_id)
    assert (task.state, task.failures) == ("DONE", 1)
    assert [attempt.fault for attempt in task.attempts] == ["task", "none"]
    assert "run 1" in task.attempts[0].error


def test_row_21_when_retries_are_used_up_the_last_exception_is_raised(ex: Executor, tmp_path: Path) -> None:
    call = with_retries(tmp_path / "runs", 10)
    with pytest.raises(RuntimeError, match="^run 3$"):
        call.result(20)
    assert lines(tmp_path / "runs") == ["run"] * 3
    assert (call.state, recorded(ex, call.task_id).failures) == (TaskState.FAILED, 3)


# ---- 22, 23: on_error decides


@app
def asks_again(path: Path, success: int) -> int:
    return fail_until(path, success)


@asks_again.on_error
def up_to_four_more(task: Any) -> Any:
    return task.retry() if task.failures < 4 else None


def test_row_22_on_error_may_ask_for_further_attempts(tmp_path: Path) -> None:
    assert asks_again(tmp_path / "runs", 5).result(20) == 5


def test_row_22_when_on_error_asks_no_more_the_last_exception_is_raised(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^run 5$"):
        asks_again(tmp_path / "runs", 10).result(20)
    assert lines(tmp_path / "runs") == ["run"] * 5


@app
def needs_more(path: Path) -> str:
    append(path, "run")
    if len(lines(path)) == 1:
        raise MemoryError("too little")
    return "done"


@needs_more.on_error
def with_two_threads(task: Any) -> Any:
    assert "too little" in task.error
    return task.retry(memory="64MB")


def test_row_22_on_error_may_change_the_resources_of_the_next_attempt(ex: Executor, tmp_path: Path) -> None:
    call = needs_more(tmp_path / "runs")
    assert call.result(20) == "done"
    assert recorded(ex, call.task_id).resources["memory"] == 64_000_000


@app
def wants_too_much() -> None:
    raise RuntimeError("of the task")


@wants_too_much.on_error
def with_many_nodes(task: Any) -> Any:
    return task.retry(num_nodes=5)


def test_another_attempt_that_no_pilot_here_could_hold_fails_with_what_was_asked() -> None:
    with pytest.raises(InvalidResources, match="another attempt with num_nodes=5: this pilot has not so much"):
        wants_too_much().result(20)


@app
def fails_with_a_bad_hook() -> None:
    raise RuntimeError("of the task")


@fails_with_a_bad_hook.on_error
def raises(task: Any) -> None:
    raise LookupError("of the hook")


def test_row_23_the_exception_of_on_error_is_the_result() -> None:
    with pytest.raises(LookupError, match="of the hook"):
        fails_with_a_bad_hook().result(20)


# ---- 24: workers that die, and those that do not


@app(retries=2)
def die(path: Path) -> None:
    append(path, str(os.getpid()))
    os._exit(2)


def test_row_24_each_death_of_a_worker_is_charged_and_the_worker_replaced(ex: Executor, tmp_path: Path) -> None:
    call = die(tmp_path / "pids")
    exc = call.exception(30)
    assert isinstance(exc, WorkerLost)
    assert "2" in str(exc)
    assert len(set(lines(tmp_path / "pids"))) == 3
    assert [attempt.fault for attempt in recorded(ex, call.task_id).attempts] == ["worker"] * 3
    assert list(ex.map(abs, range(-4, 0))) == [4, 3, 2, 1]


def test_row_24_sys_exit_arrives_as_itself_and_the_worker_lives(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "site", max_workers=1) as one:
        before = one.submit(os.getpid).result(20)
        exc = one.submit(sys.exit, 2).exception(20)
        assert isinstance(exc, SystemExit)
        assert exc.code == 2
        assert one.submit(os.getpid).result(20) == before


# ---- 39: what cannot be


def test_row_39_an_unknown_option_is_refused_at_decoration_naming_the_close_ones() -> None:
    with pytest.raises(InvalidOption, match=r"ranks_per_nodes.*ranks_per_node"):
        app(ranks_per_nodes=2)
    with pytest.raises(InvalidOption, match=r"walltime"):
        fails_with_a_bad_hook.options(wall_time="1h")


def test_row_39_what_no_node_can_satisfy_is_refused_at_submit_with_what_there_is(ex: Executor) -> None:
    with pytest.raises(InvalidResources, match=r"100000") as refused:
        ex.submit(asks_again.options(threads_per_rank=100_000), Path(), 1)
    assert any(str(n) in str(refused.value) for n in (os.cpu_count(), 2))
    with pytest.raises(InvalidResources, match="gpu|GPU|tile"):
        ex.submit(asks_again.options(gpus_per_rank=1), Path(), 1)
    with pytest.raises(InvalidResources, match="node"):
        ex.submit(asks_again.options(num_nodes=2), Path(), 1)


# ---- 53: walltime


@pytest.mark.parametrize("app_", [busy, sleepy, deaf], ids=["busy loop", "sleep", "no SIGTERM"])
def test_row_53_over_its_walltime_a_task_has_ended_and_its_process_is_gone(tmp_path: Path, app_: Any) -> None:
    start = time.monotonic()
    exc = app_(tmp_path / "pid").exception(30)
    assert isinstance(exc, WalltimeExceeded)
    assert isinstance(exc, TimeoutError)
    assert time.monotonic() - start < 15
    pid, = lines(tmp_path / "pid")
    until(lambda: gone(int(pid)), "the process is gone")


def test_row_53_its_descendants_are_gone_too(tmp_path: Path) -> None:
    assert isinstance(has_a_child(tmp_path / "pid").exception(30), WalltimeExceeded)
    pid, = lines(tmp_path / "pid")
    until(lambda: gone(int(pid)), "the child is gone")


def test_row_53_a_command_over_its_walltime_has_ended_and_its_process_is_gone(tmp_path: Path) -> None:
    assert isinstance(sleeps_in_a_shell(tmp_path / "pid").exception(30), WalltimeExceeded)
    pid, = lines(tmp_path / "pid")
    until(lambda: gone(int(pid)), "the shell is gone")


def test_row_53_a_walltime_that_was_not_reached_ends_nothing_later(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "site", max_workers=1) as one:
        pid = quick(False).result(20)
        assert isinstance(quick(True).exception(20), ValueError)
        gate = tmp_path / "gate"
        longer = one.submit(pass_gate, gate)
        until(lambda: reached(gate))
        timer = threading.Timer(1.5 * LIMIT, open_gate, [gate])
        timer.start()
        assert longer.result(20) is None
        timer.join()
        assert one.submit(os.getpid).result(20) == pid


def test_row_53_a_task_over_its_walltime_is_tried_again_as_its_retries_say(tmp_path: Path) -> None:
    assert slow_at_first(tmp_path / "runs").result(30) == "in time"


def test_row_53_on_timeout_may_ask_for_another_attempt(tmp_path: Path) -> None:
    assert outruns(tmp_path / "runs").result(30) == "in time"
    assert lines(tmp_path / "runs") == ["run"] * 2


# ---- kill, which rows 24 and 53 leave to a person


def test_kill_ends_a_running_task_with_all_its_processes(ex: Executor, tmp_path: Path) -> None:
    call = ex.submit(has_a_child.options(walltime=None), tmp_path / "pid")
    until(lambda: lines(tmp_path / "pid"))
    assert call.kill() is True
    with pytest.raises(TaskKilled):
        call.result(20)
    pid, = lines(tmp_path / "pid")
    until(lambda: gone(int(pid)), "the child is gone")
    assert call.state is TaskState.CANCELLED
