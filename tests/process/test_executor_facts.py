"""What a good Executor gets right, where known ones go wrong: thirteen points, the number is in each test's name."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import itertools
import math
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import run
from waiting import append, gone, lines, open_gate, pass_gate, reached, until

from balsamfut import Executor, TaskFuture, app
from balsamfut.errors import (
    DeserializationError,
    InitializerFailed,
    RemoteTraceback,
    SerializationError,
    UsageError,
    WorkerLost,
)


@pytest.fixture(autouse=True, scope="module")
def brief() -> Iterator[None]:
    """Interchanges go as soon as nobody needs them: each test waits until its own has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAMFUT_INTERCHANGE_LINGER", "0.05")
        yield


@pytest.fixture(scope="module")
def ex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with Executor(site=tmp_path_factory.mktemp("site"), max_workers=2) as executor:
        yield executor


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Executor]:
    """An Executor with a site of its own, for tests that end or break it; one worker."""
    with Executor(site=tmp_path / "site", max_workers=1) as executor:
        yield executor


def given(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, kwargs


def works(executor: Executor) -> bool:
    return executor.submit(pow, 2, 5).result(20) == 32


# ---- 1


@pytest.mark.parametrize("name", ["self", "fn", "func", "args", "kwargs", "timeout", "key", "workers", "retries",
                                  "priority", "walltime", "executor", "call", "pure", "resources"])
def test_fact_01_any_keyword_belongs_to_the_task(ex: Executor, name: str) -> None:
    assert ex.submit(given, 1, **{name: 2}).result(20) == ((1,), {name: 2})


def test_fact_01_a_submit_without_a_function_is_a_type_error(ex: Executor) -> None:
    with pytest.raises(TypeError):
        ex.submit(fn=given)   # type: ignore[call-arg]


# ---- 2


def test_fact_02_equal_calls_are_separate_calls(ex: Executor, tmp_path: Path) -> None:
    calls = [ex.submit(append, tmp_path / "count", "x") for _ in range(5)]
    concurrent.futures.wait(calls, 20)
    assert lines(tmp_path / "count") == ["x"] * 5
    assert len({call.task_id for call in calls}) == 5


@app(cache=True)
def counted(path: Path, value: int) -> int:
    append(path, str(value))
    return value


def test_fact_02_equal_calls_are_one_where_the_app_says_so(ex: Executor, tmp_path: Path) -> None:
    assert [ex.submit(counted, tmp_path / "count", 7).result(20) for _ in range(3)] == [7] * 3
    assert lines(tmp_path / "count") == ["7"]


# ---- 3


@pytest.mark.parametrize("value", [
    (len, [1, 2]), ("x", len), {"task": (sum, [1])}, [(abs, -1)], lambda: 1 / 0, "{{ x }}", "$HOME",
    ("quote", (len, ()))])
def test_fact_03_an_argument_that_looks_like_a_task_is_left_alone(ex: Executor, value: Any) -> None:
    back = ex.submit(given, value).result(20)[0][0]
    if callable(value):
        with pytest.raises(ZeroDivisionError):
            back()
    else:
        assert back == value


# ---- 4


def test_fact_04_a_list_changed_after_submit_is_not_changed_in_the_task(ex: Executor, tmp_path: Path) -> None:
    blockers = [ex.submit(pass_gate, tmp_path / "gate") for _ in range(2)]
    data = [1, 2, 3]
    call = ex.submit(sum, data)
    data.append(1000)
    open_gate(tmp_path / "gate")
    assert call.result(20) == 6
    concurrent.futures.wait(blockers, 20)


@pytest.mark.parametrize("argument", [threading.Lock(), (i for i in range(3))], ids=["lock", "generator"])
def test_fact_04_what_cannot_be_pickled_fails_its_own_future_only(ex: Executor, argument: object) -> None:
    before = ex.submit(abs, -1)
    bad = ex.submit(given, [argument])
    after = ex.submit(abs, -2)
    with pytest.raises(SerializationError, match="given"):
        bad.result(20)
    assert (before.result(20), after.result(20)) == (1, 2)


class ReduceRaises:
    def __reduce__(self) -> Any:
        raise KeyError("no pickle of me")


def test_fact_04_a_reduce_that_raises_fails_its_own_future_only(ex: Executor) -> None:
    bad = ex.submit(given, ReduceRaises())
    with pytest.raises(SerializationError, match="no pickle of me"):
        bad.result(20)
    assert works(ex)


# ---- 5


class TwoArguments(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.first, self.second = first, second


def raise_two_arguments() -> None:
    raise TwoArguments(1, 2)


def test_fact_05_an_exception_whose_init_has_another_shape_arrives(ex: Executor) -> None:
    exc = ex.submit(raise_two_arguments).exception(20)
    assert type(exc) is TwoArguments or isinstance(exc, DeserializationError)
    assert "1 and 2" in str(exc)
    assert works(ex)


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text of me")


def raise_str_raises() -> None:
    raise StrRaises("x")


def test_fact_05_an_exception_whose_str_raises_arrives(ex: Executor) -> None:
    assert type(ex.submit(raise_str_raises).exception(20)) is StrRaises
    assert works(ex)


def explode(what: str) -> None:
    if what == "exit":
        sys.exit(3)
    raise ValueError("will not unpickle")


class Reduces:
    """Unpickles by calling something of this module, where it is allowed to."""

    def __init__(self, what: str, pid: int) -> None:
        self.what, self.pid = what, pid

    def __reduce__(self) -> Any:
        return unpickle, (self.what, self.pid)


def unpickle(what: str, pid: int) -> Reduces:
    if os.getpid() == pid:
        explode(what)
    return Reduces(what, pid)


@pytest.mark.parametrize("what", ["error", "exit"])
def test_fact_05_a_result_that_does_not_unpickle_here_fails_its_own_future_only(ex: Executor, what: str) -> None:
    bad = ex.submit(Reduces, what, os.getpid())
    with pytest.raises(DeserializationError):
        bad.result(20)
    assert works(ex)


class RaisesAtUnpickle(Exception):
    def __reduce__(self) -> Any:
        return explode, ("error",)


class ExitsAtUnpickle(Exception):
    def __reduce__(self) -> Any:
        return explode, ("exit",)


def raise_kind(kind: type[Exception]) -> None:
    raise kind("told all the same")


@pytest.mark.parametrize("kind", [RaisesAtUnpickle, ExitsAtUnpickle])
def test_fact_05_an_exception_that_does_not_unpickle_comes_as_text(ex: Executor, kind: type[Exception]) -> None:
    exc = ex.submit(raise_kind, kind).exception(20)
    assert isinstance(exc, DeserializationError)
    assert "told all the same" in str(exc) or "told all the same" in str(exc.__cause__)
    assert works(ex)


class HoldsALock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def test_fact_05_an_exception_that_cannot_be_pickled_comes_as_text(ex: Executor) -> None:
    exc = ex.submit(raise_kind, HoldsALock).exception(20)
    assert exc is not None
    assert "told all the same" in str(exc)
    assert works(ex)


def make_lock() -> Any:
    return threading.Lock()


def test_fact_05_a_result_that_cannot_be_pickled_fails_its_own_future_only(ex: Executor) -> None:
    with pytest.raises(SerializationError, match="result.*lock"):
        ex.submit(make_lock).result(20)
    assert works(ex)


@pytest.mark.parametrize("what", ["error", "exit"])
def test_fact_05_the_thread_that_delivers_survives_done_callbacks(ex: Executor, what: str, tmp_path: Path) -> None:
    called = threading.Event()
    call = ex.submit(pass_gate, tmp_path / "gate")
    call.add_done_callback(lambda future: explode(what))
    call.add_done_callback(lambda future: called.set())
    open_gate(tmp_path / "gate")
    call.result(20)
    assert works(ex)
    if what == "error":   # the standard class's own loop over callbacks lets a SystemExit through
        assert called.wait(20)


# ---- 6


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def overflow_the_stack() -> str:
    sys.setrecursionlimit(10 ** 9)
    nested: list[Any] = []
    for _ in range(1_000_000):
        nested = [nested]
    return repr(nested)


class CrashesAtUnpickle:
    """In a worker; the client's process is spared by its id."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __reduce__(self) -> Any:
        return crash_elsewhere, (self.pid,)


def crash_elsewhere(pid: int) -> None:
    if os.getpid() != pid:
        os._exit(9)
    os._exit(99)   # the client unpickled what killed a worker


@pytest.mark.parametrize(("dies", "args"), [
    (segfault, ()), (os._exit, (3,)), (os.abort, ()), (given, (CrashesAtUnpickle(),))],
    ids=["segfault", "os._exit", "abort", "crash while unpickling an argument"])
def test_fact_06_a_workers_death_fails_its_own_task_alone_and_at_once(
        ex: Executor, tmp_path: Path, dies: Callable[..., object], args: tuple[Any, ...]) -> None:
    other = ex.submit(pass_gate, tmp_path / "gate")
    until(lambda: reached(tmp_path / "gate"))
    behind = [ex.submit(abs, -i) for i in range(10)]
    start = time.monotonic()
    exc = ex.submit(dies, *args).exception(20)
    assert isinstance(exc, WorkerLost), exc
    assert time.monotonic() - start < 10
    assert not other.done()   # it was running in the other worker
    assert [call.result(20) for call in behind] == list(range(10))
    open_gate(tmp_path / "gate")
    other.result(20)
    assert works(ex)


def test_fact_06_runaway_recursion_costs_one_worker(ex: Executor) -> None:
    exc = ex.submit(overflow_the_stack).exception(20)
    assert isinstance(exc, WorkerLost | RecursionError | MemoryError)
    assert works(ex)


def test_fact_06_the_error_names_signal_and_host(ex: Executor) -> None:
    exc = ex.submit(segfault).exception(20)
    assert "SIGSEGV" in str(exc)
    assert os.uname().nodename in str(exc)


# ---- 7


def test_fact_07_classes_and_globals_of_main_keep_their_identity(tmp_path: Path) -> None:
    ran = run("""
        from balsamfut import Executor

        FACTOR = 3

        class Point:
            def __init__(self, x): self.x = x
            def __eq__(self, other): return type(self) is type(other) and self.x == other.x

        class Wrong(Exception):
            pass

        def scale(point): return Point(FACTOR * point.x)

        def fail(): raise Wrong("so it is")

        if __name__ == "__main__":
            with Executor(max_workers=1) as ex:
                back = ex.submit(scale, Point(2)).result()
                print(type(back) is Point, back == Point(6))
                try:
                    ex.submit(fail).result()
                except Wrong as exc:
                    print("caught", exc)
        """, tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, "True True\ncaught so it is\n", "")


# ---- 8


def about_the_worker() -> dict[str, object]:
    import multiprocessing

    return {"daemon": multiprocessing.current_process().daemon,
            "main thread": threading.current_thread() is threading.main_thread(),
            "start method": multiprocessing.get_start_method(allow_none=True)}


def test_fact_08_tasks_run_in_the_main_thread_of_a_process_that_is_not_daemonic(ex: Executor) -> None:
    assert ex.submit(about_the_worker).result(20) == {"daemon": False, "main thread": True, "start method": None}


def with_a_pool() -> int:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return sum(pool.map(abs, [-1, -2, -3]))


def test_fact_08_a_task_may_have_processes_of_its_own(ex: Executor) -> None:
    assert ex.submit(with_a_pool).result(40) == 6


def forks() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_fact_08_a_task_may_fork(ex: Executor) -> None:
    assert ex.submit(forks).result(20) == 7
    assert works(ex)


def forks_and_returns_twice() -> int:
    os.fork()
    return os.getpid()


def test_fact_08_a_forked_child_that_returns_too_disturbs_nothing(ex: Executor) -> None:
    assert isinstance(ex.submit(forks_and_returns_twice).result(20), int)
    assert all(works(ex) for _ in range(4))


def starts_a_thread_that_never_ends() -> str:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    threading.Thread(target=time.sleep, args=(3600,)).start()
    return "done"


def leaves_a_child(seconds: int) -> int:
    import subprocess

    return subprocess.Popen(["sleep", str(seconds)]).pid


def test_fact_08_threads_that_never_end_and_children_left_behind_end_with_the_pool(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "site", max_workers=1) as executor:
        assert executor.submit(starts_a_thread_that_never_ends).result(20) == "done"
        child = executor.submit(leaves_a_child, 3600).result(20)
        assert works(executor)
    until(lambda: gone(child), "the child that a task left is gone")


# ---- 9


def test_fact_09_shutdown_cancels_futures_when_asked(own: Executor, tmp_path: Path) -> None:
    running = own.submit(pass_gate, tmp_path / "gate")
    until(lambda: reached(tmp_path / "gate"))
    waiting = [own.submit(append, tmp_path / "ran", str(i)) for i in range(100)]
    own.shutdown(wait=False, cancel_futures=True)
    assert all(call.cancelled() for call in waiting)
    open_gate(tmp_path / "gate")
    assert running.result(20) is None
    own.shutdown(wait=True)
    assert lines(tmp_path / "ran") == []


def test_fact_09_after_shutdown_nothing_is_taken(own: Executor) -> None:
    own.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        own.submit(abs, 1)
    own.shutdown()   # again: nothing


def test_fact_09_shutdown_without_waiting_cancels_nothing(own: Executor, tmp_path: Path) -> None:
    calls = [own.submit(append, tmp_path / "ran", str(i)) for i in range(20)]
    own.shutdown(wait=False)
    concurrent.futures.wait(calls, 20)
    assert [call.result(0) for call in calls] == [None] * 20
    assert len(lines(tmp_path / "ran")) == 20


@pytest.mark.parametrize("end", ["", "ex.shutdown(wait=False)", "del ex"])
def test_fact_09_a_script_that_does_not_wait_ends_with_its_tasks_done_and_silent(tmp_path: Path, end: str) -> None:
    ran = run(f"""
        import time
        from pathlib import Path
        from balsamfut import Executor

        def later(name):
            time.sleep(0.3)
            Path(name).touch()

        if __name__ == "__main__":
            ex = Executor(max_workers=2)
            calls = [ex.submit(later, f"done-{{i}}") for i in range(4)]
            {end or "pass"}
        """, tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert len(list(tmp_path.glob("done-*"))) == 4


def test_fact_09_garbage_collection_of_the_executor_ends_it(tmp_path: Path) -> None:
    executor = Executor(site=tmp_path / "site", max_workers=1)
    call = executor.submit(pow, 2, 3)
    there = weakref.ref(executor)
    client = executor._client
    del executor
    gc.collect()
    assert there() is None
    assert call.result(20) == 8
    client.join()
    assert client.ended


def test_fact_09_several_executors_live_in_one_process(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "a", max_workers=1) as a, Executor(site=tmp_path / "b", max_workers=1) as b, \
            Executor(site=tmp_path / "a", max_workers=1) as again:
        calls = [executor.submit(pow, 2, i) for i, executor in enumerate((a, b, again))]
        assert [call.result(20) for call in calls] == [1, 2, 4]
        passed_on = b.submit(abs, calls[0])   # another site's future
        assert passed_on.result(20) == 1


# ---- 10


def test_fact_10_running_turns_true_when_it_runs_and_cancel_then_says_false(own: Executor, tmp_path: Path) -> None:
    running = own.submit(pass_gate, tmp_path / "gate")
    queued = own.submit(append, tmp_path / "ran", "x")
    until(running.running, "it is seen to run")
    assert not queued.running()
    assert running.cancel() is False
    assert queued.cancel() is True
    assert queued.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        queued.result(0)
    open_gate(tmp_path / "gate")
    running.result(20)
    assert running.cancel() is False
    assert queued.cancel() is True
    assert works(own)
    assert lines(tmp_path / "ran") == []


def test_fact_10_the_class_can_be_made_without_arguments() -> None:
    future: TaskFuture[int] = TaskFuture()
    future.set_running_or_notify_cancel()
    future.set_result(3)
    assert future.result(0) == 3


class Thing:
    pass


def test_fact_10_no_reference_is_kept_to_arguments_and_results(ex: Executor) -> None:
    argument = Thing()
    there = weakref.ref(argument)
    call = ex.submit(given, argument)
    result = call.result(20)
    del argument
    until(lambda: gc.collect() >= 0 and there() is None, "the argument is let go")
    there_too = weakref.ref(result[0][0])
    del result, call
    until(lambda: gc.collect() >= 0 and there_too() is None, "the result is let go")


# ---- 11


def test_fact_11_max_workers_is_where_libraries_look_for_it(ex: Executor) -> None:
    assert ex._max_workers == 2


@pytest.mark.parametrize("wrong", [0, -1])
def test_fact_11_max_workers_below_one_is_a_value_error(tmp_path: Path, wrong: int) -> None:
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        Executor(site=tmp_path, max_workers=wrong)


@pytest.mark.parametrize("wrong", [0, -1])
def test_fact_11_a_bad_chunksize_is_a_value_error(ex: Executor, wrong: int) -> None:
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        ex.map(abs, [1], chunksize=wrong)


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_fact_11_map_keeps_the_order_and_stops_with_the_shortest(ex: Executor, chunksize: int) -> None:
    assert list(ex.map(pow, range(10), itertools.repeat(2), chunksize=chunksize)) == [i * i for i in range(10)]


def test_fact_11_map_honours_its_timeout_and_cancels_the_rest(own: Executor, tmp_path: Path) -> None:
    def step(i: int) -> None:
        pass_gate(tmp_path / "gate") if i == 0 else append(tmp_path / "ran", str(i))

    values = own.map(step, range(5), timeout=0.5)
    with pytest.raises(TimeoutError):
        next(values)
    open_gate(tmp_path / "gate")
    assert works(own)
    assert lines(tmp_path / "ran") == []


def fails(text: str) -> None:
    raise ValueError(text)


def test_fact_11_an_initializer_that_fails_breaks_the_executor_with_a_clear_error(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "site", max_workers=1, initializer=fails, initargs=("no licence",)) as executor:
        exc = executor.submit(abs, 1).exception(20)
        assert isinstance(exc, InitializerFailed)
        assert isinstance(exc, concurrent.futures.BrokenExecutor)
        assert "no licence" in str(exc)
        with pytest.raises(InitializerFailed, match="no licence"):
            executor.submit(abs, 1)


def test_fact_11_an_initializer_runs_once_in_each_worker(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "site", max_workers=2, initializer=append,
                  initargs=(tmp_path / "started", "x")) as executor:
        assert list(executor.map(abs, range(20))) == list(range(20))
    assert 1 <= len(lines(tmp_path / "started")) <= 2


# ---- 12


def test_fact_12_no_activated_environment_is_needed_and_sys_path_is_the_scripts(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
    ran = run("""
        import os, sys
        os.environ["PATH"] = "/usr/bin:/bin"
        os.environ.pop("PYTHONPATH", None)
        sys.path.append("mine")
        import helper
        from balsamfut import Executor

        def which():
            import sys
            return sys.executable

        with Executor(max_workers=1) as ex:
            print(ex.submit(helper.twice, 4).result(), ex.submit(which).result() == sys.executable)
        """, tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, "8 True\n", "")


def test_fact_12_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    ran = run("""
        from balsamfut import Executor
        print("begin", flush=True)
        with Executor(max_workers=2) as ex:
            print(sum(ex.map(lambda x: x + 1, range(3))))
        """, tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, "begin\n6\n", "")


# ---- 13


class Adder:
    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, x: int) -> int:
        return self.base + x

    @classmethod
    def make(cls, base: int) -> Adder:
        return cls(base)

    @staticmethod
    def double(x: int) -> int:
        return 2 * x

    def __call__(self, x: int) -> int:
        return self.base * x


@functools.lru_cache
def cached(x: int) -> int:
    return x + 100


@functools.wraps(cached)
def wrapped(x: int) -> int:
    return x - 1


@pytest.mark.parametrize(("fn", "args", "value"), [
    (time.sleep, (0,), None), (math.hypot, (3, 4), 5.0), (len, ([1, 2],), 2), (str.upper, ("a",), "A"),
    ("abc".upper, (), "ABC"), ([3, 1].count, (3,), 1), (int, ("7",), 7), (functools.partial(pow, 2), (5,), 32),
    (functools.partial(functools.partial(given, 1), b=2), (3,), ((1, 3), {"b": 2})), (Adder(5).add, (1,), 6),
    (Adder(5), (2,), 10), (Adder.double, (4,), 8), (cached, (1,), 101), (wrapped, (1,), 0), (max, (1, 5), 5),
    (lambda x: x + 1, (1,), 2), (dict.fromkeys, ("ab",), {"a": None, "b": None}), (Adder(1).make, (3,), None)])
def test_fact_13_anything_callable_is_a_function(ex: Executor, fn: Any, args: tuple[Any, ...], value: Any) -> None:
    result = ex.submit(fn, *args).result(20)
    if value is None and result is not None:
        assert result.base == args[0]
    else:
        assert result == value


def test_fact_13_what_is_not_callable_is_refused_at_once(ex: Executor) -> None:
    with pytest.raises((TypeError, UsageError), match="3"):
        ex.submit(3, 4)   # type: ignore[arg-type]


# ---- and what all of them promise of exceptions


def test_an_exception_has_the_remote_traceback_as_its_cause(ex: Executor) -> None:
    exc = ex.submit(fails, "here").exception(20)
    assert type(exc) is ValueError
    assert exc.args == ("here",)
    cause = exc.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert 'raise ValueError(text)' in str(cause)
    assert os.uname().nodename in str(cause)


def test_an_exception_survives_being_pickled_again(ex: Executor) -> None:
    exc = ex.submit(os._exit, 1).exception(20)
    again = pickle.loads(pickle.dumps(exc))
    assert type(again) is WorkerLost
    assert str(again) == str(exc)
