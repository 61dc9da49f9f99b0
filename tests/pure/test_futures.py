"""TaskFuture: the standard Future's behaviour, made late, and what it says of its task."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import contextlib
import gc
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balsamfut.errors import SerializationError, TaskKilled
from balsamfut.futures import CANCELLED, FINISHED, TaskFuture
from balsamfut.messages import Detail
from balsamfut.model import AppKind, AppSpec, Extra, TaskState

PYTHON = AppSpec("energy", AppKind.PYTHON, b"d" * 16)
SHELL = AppSpec("lammps", AppKind.COMMAND, b"e" * 16)


class FakeOwner:
    """A session that answers what the test says."""

    def __init__(self, data: Path = Path("/site/data"), nested: bool = False) -> None:
        self.data = data
        self.nested = nested
        self.says = False
        self.asked: list[tuple[str, TaskFuture[Any]]] = []
        self.pauses: list[str] = []
        self.own = False
        self.on_wait: Callable[[TaskFuture[Any]], None] = lambda future: None

    def cancel(self, future: TaskFuture[Any]) -> bool:
        self.asked.append(("cancel", future))
        if self.says:
            future.settle(CANCELLED)
        return self.says

    def kill(self, future: TaskFuture[Any]) -> bool:
        self.asked.append(("kill", future))
        return self.says

    def wait_known(self, future: TaskFuture[Any]) -> None:
        self.on_wait(future)

    def on_own_thread(self) -> bool:
        return self.own

    def serve_until(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        self.asked.append(("serve", None))  # type: ignore[arg-type]
        return ready()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.pauses.append("block")
        yield
        self.pauses.append("unblock")


def pending(owner: FakeOwner | None = None, app: AppSpec = PYTHON, task: int = 17, **more: Any) -> TaskFuture[Any]:
    future: TaskFuture[Any] = TaskFuture(owner or FakeOwner(), 3, app, **more)
    future._id = task
    return future


def soon(action: Callable[[], object], future: TaskFuture[Any]) -> threading.Thread:
    """Act as soon as somebody waits for the future: then it has its condition."""
    def run() -> None:
        while future._cond is None:  # a condition that nothing announces
            time.sleep(0.0005)
        action()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_future_made_with_no_arguments_is_a_plain_future() -> None:
    future: TaskFuture[int] = TaskFuture()
    assert isinstance(future, cf.Future)
    assert future.set_running_or_notify_cancel()
    assert future.running()
    future.set_result(3)
    assert future.result() == 3 and future.exception() is None and future.done()
    other: TaskFuture[int] = TaskFuture()
    assert other.cancel() and other.cancelled()
    with pytest.raises(cf.CancelledError):
        other.result()
    assert not hasattr(other, "task_id")


def test_a_pending_future_takes_little_memory() -> None:
    owner = FakeOwner()
    future = pending(owner)
    assert sys.getsizeof(future) < 250
    assert future._cond is None, "nobody waits, so there is no lock"
    assert not future.done() and not future.running() and not future.cancelled()
    assert future._cond is None


def test_result_before_during_and_after() -> None:
    future = pending()
    with pytest.raises(cf.TimeoutError):
        future.result(timeout=0)
    waiting = pending()
    thread = soon(lambda: waiting.settle(FINISHED, 5), waiting)
    assert waiting.result(5) == 5
    thread.join()
    late = pending()
    assert late.settle(FINISHED, 6) and not late.settle(FINISHED, 7)
    assert late.result() == 6


def test_exceptions_are_raised_as_they_are() -> None:
    error = ValueError("x")
    future = pending()
    future.settle(FINISHED, exception=error)
    assert future.exception() is error
    with pytest.raises(ValueError) as caught:
        future.result()
    assert caught.value is error


def test_callbacks_run_once_whether_added_before_or_after_the_end() -> None:
    calls: list[str] = []
    future = pending()
    future.add_done_callback(lambda f: calls.append(f"before {f.result()}"))
    future.settle(FINISHED, 1)
    future.add_done_callback(lambda f: calls.append(f"after {f.result()}"))
    assert calls == ["before 1", "after 1"]


def test_wait_and_as_completed_work_on_futures_that_end_meanwhile_and_before() -> None:
    done, left = pending(), pending()
    done.settle(FINISHED, 1)
    thread = soon(lambda: left.settle(CANCELLED), left)
    assert cf.wait([done, left], 5) == ({done, left}, set())
    thread.join()
    failing = pending()
    thread = soon(lambda: failing.settle(FINISHED, exception=KeyError(1)), failing)
    assert set(cf.as_completed([done, failing], 5)) == {done, failing}
    thread.join()
    first = pending()
    thread = soon(lambda: first.settle(FINISHED, exception=KeyError(1)), first)
    finished, _ = cf.wait([first, pending()], 5, return_when=cf.FIRST_EXCEPTION)
    thread.join()
    assert finished == {first}


def test_await_gives_the_result_and_cancelling_it_leaves_the_task_alone() -> None:
    owner = FakeOwner()

    async def main() -> None:
        future = pending(owner)
        waiting = asyncio.ensure_future(_wait(future))
        await asyncio.sleep(0)
        threading.Thread(target=lambda: future.settle(FINISHED, 9)).start()
        assert await waiting == 9
        assert await future == 9
        other = pending(owner)
        waiting = asyncio.ensure_future(_wait(other))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)
        assert not other.done()
        assert await asyncio.wrap_future(future) == 9

    asyncio.run(main())
    assert owner.asked == []


async def _wait(future: TaskFuture[Any]) -> Any:
    return await future


def test_running_is_told_and_taken_back() -> None:
    future = pending()
    future.set_running(True)
    assert future.running() and future.state is TaskState.RUNNING
    future.set_running(False)
    assert not future.running() and future.state is TaskState.READY
    future.settle(FINISHED, None)
    future.set_running(True)
    assert not future.running() and future.state is TaskState.DONE


def test_cancel_is_true_only_where_the_session_says_so() -> None:
    owner = FakeOwner()
    future = pending(owner)
    assert not future.cancel()
    owner.says = True
    assert future.cancel() and future.cancelled() and future.state is TaskState.CANCELLED
    assert future.cancel(), "cancelled is cancelled"
    assert [what for what, _ in owner.asked] == ["cancel", "cancel"]
    running, done = pending(owner), pending(owner)
    running.set_running(True)
    done.settle(FINISHED, 1)
    assert not running.cancel() and not done.cancel()
    assert len(owner.asked) == 2, "what runs or is over cannot be cancelled, so nobody was asked"


def test_kill_asks_for_a_running_task_and_not_for_one_that_is_over() -> None:
    owner = FakeOwner()
    owner.says = True
    future = pending(owner)
    future.set_running(True)
    assert future.kill()
    future._task_state = TaskState.CANCELLED
    future.settle(FINISHED, exception=TaskKilled("by you"))
    assert future.state is TaskState.CANCELLED
    assert not future.kill()


def test_a_result_that_was_taken_is_not_held_by_the_future_machinery() -> None:
    class Value:
        pass

    future = pending()
    value = Value()
    ref = weakref.ref(value)
    future.settle(FINISHED, value)
    assert future.result() is value
    del future, value
    assert ref() is None, "no cycle keeps it"
    failed = pending()
    failed.settle(FINISHED, exception=ValueError())
    kept = weakref.ref(failed)
    with pytest.raises(ValueError):
        failed.result()
    del failed
    gc.collect()
    assert kept() is None


def test_waiting_inside_a_task_gives_the_slot_back_and_not_waiting_does_not() -> None:
    owner = FakeOwner(nested=True)
    done = pending(owner)
    done.settle(FINISHED, 1)
    assert done.result() == 1 and owner.pauses == []
    future = pending(owner)
    thread = soon(lambda: future.settle(FINISHED, 2), future)
    assert future.result() == 2
    thread.join()
    assert owner.pauses == ["block", "unblock"]


def test_wait_and_as_completed_inside_a_task_give_the_slot_back() -> None:
    for function in (cf.wait, cf.as_completed):
        owner = FakeOwner(nested=True)
        futures = [pending(owner) for _ in range(3)]
        threads = [soon(lambda future=future: future.settle(FINISHED, 2), future) for future in futures]  # type: ignore[misc]
        list(function(futures))  # type: ignore[operator]
        for thread in threads:
            thread.join()
        assert owner.pauses[::2] == ["block"] * (len(owner.pauses) // 2)
        assert owner.pauses[1::2] == ["unblock"] * (len(owner.pauses) // 2)


def test_a_done_callback_that_waits_lets_the_session_go_on() -> None:
    owner = FakeOwner()
    owner.own = True
    with pytest.raises(cf.TimeoutError):
        pending(owner).result(1)
    assert owner.asked == [("serve", None)]


def test_task_id_waits_for_the_acknowledgement_or_raises_what_the_call_was_refused_with() -> None:
    owner = FakeOwner()
    owner.on_wait = lambda future: setattr(future, "_id", 41)
    assert pending(owner, task=0).task_id == 41
    owner.on_wait = lambda future: future.settle(FINISHED, exception=ValueError("no"))  # type: ignore[assignment, return-value]
    with pytest.raises(ValueError, match="no"):
        _ = pending(owner, task=0).task_id


def test_names_tags_and_paths() -> None:
    extra = Extra(name="warm", tags=(("T", "300"),), outputs=("a.txt", "/abs/b.txt"), stderr="err.txt")
    future = pending(app=SHELL, task=12345, extra=extra)
    assert (future.name, future.app_name, future.tags) == ("warm", "lammps", {"T": "300"})
    assert future.workdir == Path("/site/data/00012/12345")
    assert future.outputs == [future.workdir / "a.txt", Path("/abs/b.txt")]
    assert future.stdout == future.workdir / "job.out"
    assert future.stderr == future.workdir / "err.txt"
    assert pending(app=SHELL).stderr == pending(app=SHELL).stdout, "together unless asked for apart"
    assert pending(extra=Extra(workdir="mine/here")).workdir == Path("/site/data/mine/here")
    assert pending(extra=Extra(workdir="/else/where")).workdir == Path("/else/where")


def test_what_a_python_task_printed_becomes_a_file_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "worker.out"
    log.write_bytes(b"other task\nmine\nanother\n")
    future = pending(FakeOwner(tmp_path / "data"))
    assert future.stdout is None
    future._detail = Detail(stdout=str(log), stdout_span=(11, 16))
    path = future.stdout
    assert path is not None and path.read_bytes() == b"mine\n" and path.name == "stdout.txt"
    log.unlink()
    assert future.stdout == path, "once it is there it stays"
    assert future.stderr is None
    gone = pending(FakeOwner(tmp_path / "data"), task=18)
    gone._detail = Detail(stdout=str(log), stdout_span=(11, 16))
    assert gone.stdout is None


def test_repr_says_the_id_the_app_and_how_it_ended() -> None:
    assert repr(TaskFuture()) == "<TaskFuture no task WAITING>"
    assert repr(pending()) == "<TaskFuture task 17 energy WAITING>"
    future = pending()
    future.settle(FINISHED, exception=ValueError())
    assert repr(future) == "<TaskFuture task 17 energy FAILED raised ValueError>"


def test_a_future_cannot_be_pickled_outside_of_a_call() -> None:
    with pytest.raises(SerializationError, match="pass it as an argument"):
        pickle.dumps(pending())
