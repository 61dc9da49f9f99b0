"""What users of futures libraries on HPC machines rely on, as numbered rows: Python tasks and the futures between them.

The number of the row is in each test's name; test_behaviours_failures.py, test_behaviours_shell.py and
test_behaviours_campaigns.py have the others.
"""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import importlib.util
import json
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from scripts import run
from waiting import append, lines, open_gate, pass_gate, reached, until

from balsamfut import Executor, TaskFuture, TaskState, app
from balsamfut.errors import (
    DeserializationError,
    JoinError,
    NoExecutor,
    RemoteTraceback,
    SerializationError,
    UpstreamFailed,
)


@pytest.fixture(autouse=True, scope="module")
def ex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAMFUT_INTERCHANGE_LINGER", "0.05")
        with Executor(site=tmp_path_factory.mktemp("site"), max_workers=2) as executor:
            yield executor


@app
def same(value: Any) -> Any:
    return value


@app
def passes(gate: Path) -> None:
    pass_gate(gate)


@app
def add(x: int, y: int) -> int:
    return x + y


@app
def total(values: list[int]) -> int:
    return sum(values)


@app
def fail(text: str = "so it is") -> None:
    raise KeyError(text)


@app
def note(path: Path, value: Any = "x") -> Any:
    append(path, str(value))
    return value


# ---- 1 to 5: futures, and futures as arguments


def test_row_01_calling_an_app_returns_a_future_at_once_and_its_result_is_the_value(tmp_path: Path) -> None:
    blocked = [passes(tmp_path / "gate") for _ in range(2)]     # both workers are busy
    future = add(2, 3)
    assert isinstance(future, TaskFuture) and not future.done()
    open_gate(tmp_path / "gate")
    assert future.result(20) == 5
    assert [call.result(20) for call in blocked] == [None, None]


def test_row_02_a_future_is_taken_positionally_by_keyword_and_in_a_list() -> None:
    one = same(1)
    assert add(one, 1).result(20) == 2
    assert add(1, y=one).result(20) == 2
    assert total([one, one, 3]).result(20) == 5


def test_row_02_the_second_runs_after_the_first(tmp_path: Path) -> None:
    @app
    def first() -> str:
        pass_gate(tmp_path / "gate")
        append(tmp_path / "order", "first")
        return "second"

    second = note(tmp_path / "order", first())
    until(lambda: reached(tmp_path / "gate"))
    assert not second.done()
    open_gate(tmp_path / "gate")
    assert second.result(20) == "second"
    assert lines(tmp_path / "order") == ["first", "second"]


@dataclass(frozen=True)
class Box:
    content: Any


def test_row_03_futures_at_any_depth_in_any_container_become_their_values() -> None:
    f = same(1)
    nested = [(f, {"a": {f, 2}}), {f: [[[[f]]]]}, Box(Box([f])), functools.partial(max, f)]
    values = same(nested).result(20)
    assert values[:3] == [(1, {"a": {1, 2}}), {1: [[[[1]]]]}, Box(Box([1]))]
    assert [type(part) for part in (values[0], values[0][1]["a"], values[1])] == [tuple, set, dict]
    assert values[3](0) == 1


def test_row_04_a_plain_future_may_be_an_argument_and_is_set_later() -> None:
    plain: concurrent.futures.Future[int] = concurrent.futures.Future()
    waiting = add(plain, 1)
    assert same(0).result(20) == 0   # others go on
    assert not waiting.done()
    plain.set_result(41)
    assert waiting.result(20) == 42


def test_row_04_the_exception_of_a_plain_future_fails_the_task_and_names_it() -> None:
    plain: concurrent.futures.Future[int] = concurrent.futures.Future()
    waiting = add(plain, 1)
    plain.set_exception(OSError("gone"))
    exc = waiting.exception(20)
    assert isinstance(exc, UpstreamFailed)
    assert "Future at" in str(exc)
    assert isinstance(exc.__cause__, OSError)


def test_row_05_futures_in_default_arguments_are_resolved_at_the_call() -> None:
    f = same(5)

    @app
    def with_default(values: list[Any] = [f, 1]) -> int:  # noqa: B006  # what row 5 is about
        return sum(values)

    assert with_default().result(20) == 6


# ---- 6 to 9: failure goes down


def test_row_06_the_task_after_a_failure_never_runs_and_its_error_names_the_failed_one(tmp_path: Path) -> None:
    bad = fail()
    after = note(tmp_path / "ran", bad)
    exc = after.exception(20)
    assert isinstance(exc, UpstreamFailed)
    assert str(bad.task_id) in str(exc)
    assert exc.task_id == bad.task_id
    assert after.state is TaskState.UPSTREAM_FAILED
    assert lines(tmp_path / "ran") == []


def test_row_07_everything_down_the_chain_has_the_root_exception_as_its_cause() -> None:
    bad = fail()
    chain = [same(bad)]
    for _ in range(2):
        chain.append(same(chain[-1]))
    root = bad.exception(20)
    for link in chain:
        exc = link.exception(20)
        assert isinstance(exc, UpstreamFailed)
        assert exc.__cause__ is root


def test_row_08_both_children_of_a_failed_parent_fail_with_it(ex: Executor) -> None:
    from balsamfut.query import open_site

    bad = fail()
    children = [same.options(tags={"row": "8"})(bad) for _ in range(2)]
    concurrent.futures.wait(children, 20)
    with open_site(ex.site) as site:
        assert site.count(tags={"row": "8"}) == {"UPSTREAM_FAILED": 2}


def test_row_09_a_task_whose_parent_failed_is_not_tried_again(ex: Executor) -> None:
    from balsamfut.query import open_site

    child = same.options(retries=2)(fail())
    assert isinstance(child.exception(20), UpstreamFailed)
    with open_site(ex.site) as site:
        assert site.task(child.task_id).attempts == []


# ---- 10 to 16: exceptions, arguments, functions


class Mistake(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


@app
def make_a_mistake() -> None:
    raise Mistake(7, "on purpose")


def test_row_10_an_exception_of_the_users_class_arrives_with_arguments_and_remote_frames() -> None:
    exc = make_a_mistake().exception(20)
    assert type(exc) is Mistake
    assert (exc.args, exc.code) == ((7, "on purpose"), 7)
    text = "".join(traceback.format_exception(exc))
    assert "in make_a_mistake" in text
    assert 'raise Mistake(7, "on purpose")' in text
    assert isinstance(exc.__cause__, RemoteTraceback)


@app
def use_what_is_not_there() -> None:
    no_such_name  # type: ignore[name-defined]  # noqa: B018, F821


@app
def import_what_is_not_there() -> None:
    import no_such_module  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize(("broken", "kind"), [
    (use_what_is_not_there, NameError), (import_what_is_not_there, ModuleNotFoundError)])
def test_row_11_exactly_the_exception_of_the_body_arrives(broken: Any, kind: type[Exception]) -> None:
    assert type(broken().exception(20)) is kind


@app
def raise_from() -> None:
    try:
        raise OSError("the disk")
    except OSError as exc:
        raise Mistake(1, "because of it") from exc


def test_row_12_the_chain_of_causes_survives() -> None:
    exc: BaseException | None = raise_from().exception(20)
    kinds = []
    while exc is not None:
        kinds.append(type(exc))
        exc = exc.__cause__
    assert kinds[0] is Mistake
    assert OSError in kinds


class WillNotUnpickle(Exception):
    def __init__(self) -> None:
        super().__init__("told")

    def __reduce__(self) -> Any:
        return will_not, (os.getpid(),)


def will_not(pid: int) -> WillNotUnpickle:
    if os.getpid() != pid:
        raise RuntimeError("not here")
    return WillNotUnpickle()


@pytest.mark.parametrize("raises", [True, False], ids=["exception", "result"])
def test_row_13_what_cannot_be_unpickled_fails_its_own_future_and_later_tasks_work(raises: bool) -> None:
    @app
    def bring() -> WillNotUnpickle:
        if raises:
            raise WillNotUnpickle()
        return WillNotUnpickle()

    assert isinstance(bring().exception(20), DeserializationError)
    assert same(3).result(20) == 3


def test_row_14_an_argument_that_cannot_be_pickled_is_an_error_that_names_the_function() -> None:
    with pytest.raises(SerializationError, match="same"):
        same([threading.Lock()]).result(20)
    assert same(3).result(20) == 3


def loaded(path: Path) -> Callable[[int], int]:
    """A function of a file that no import would find."""
    path.write_text("OFFSET = 10\ndef shift(x):\n    return x + OFFSET\n")
    spec = importlib.util.spec_from_file_location("found_by_nobody", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.shift  # type: ignore[no-any-return]


def test_row_15_functions_from_anywhere_can_be_arguments_and_tasks(ex: Executor, tmp_path: Path) -> None:
    json_module = importlib.import_module("json")
    dynamic = loaded(tmp_path / "file.py")
    assert ex.submit(list, map_lazily(dynamic, [1, 2])).result(20) == [11, 12]
    assert ex.submit(dynamic, 3).result(20) == 13
    assert same(json_module.dumps).result(20) is json.dumps
    assert same(functools.partial(pow, 2)).result(20)(5) == 32
    assert same(will_not).result(20) is will_not


def map_lazily(fn: Callable[[int], int], values: list[int]) -> Any:
    return map(fn, values)


def test_row_15_functions_of_main_can_be_arguments_and_tasks(tmp_path: Path) -> None:
    ran = run("""
        from balsamfut import Executor

        def double(x): return 2 * x

        def apply(fn, x): return fn(x)

        with Executor(max_workers=1) as ex:
            print(ex.submit(apply, double, 4).result(), ex.submit(apply, lambda x: -x, 4).result())
        """, tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, "8 -4\n", "")


class NotComparable:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")

    def __bool__(self) -> bool:
        raise ValueError("the truth of it is ambiguous")


def test_row_16_arguments_that_cannot_be_compared_pass(ex: Executor) -> None:
    @app
    def kind(value: Any, default: Any = NotComparable()) -> tuple[str, str]:
        return type(value).__name__, type(default).__name__

    assert kind(NotComparable()).result(20) == ("NotComparable", "NotComparable")
    assert ex.submit(kind, value=NotComparable()).result(20) == ("NotComparable", "NotComparable")


class CountsPickles:
    times = 0

    def __reduce__(self) -> Any:
        CountsPickles.times += 1
        return int, (5,)


def test_row_17_a_function_submitted_many_times_is_pickled_once(ex: Executor) -> None:
    inside = CountsPickles()

    def uses(x: int) -> int:
        return x + inside  # type: ignore[operator, no-any-return]

    before = CountsPickles.times
    assert [call.result(20) for call in [ex.submit(uses, i) for i in range(50)]] == [5 + i for i in range(50)]
    assert CountsPickles.times == before + 1


def test_row_19_a_result_of_a_million_elements_arrives_complete(ex: Executor) -> None:
    assert ex.submit(list, range(1_000_000)).result(30) == list(range(1_000_000))


# ---- 30, 31: order, and strangers


def test_row_30_higher_priority_first_and_first_come_first_within_one(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "site", max_workers=1) as one:
        gate = one.submit(pass_gate, tmp_path / "gate")
        until(lambda: reached(tmp_path / "gate"))
        calls = [note.options(priority=priority)(tmp_path / "order", f"{priority}:{i}")
                 for i, priority in enumerate([0, 5, -1, 5, 0, 9])]
        assert calls[-1].task_id   # all are recorded
        open_gate(tmp_path / "gate")
        concurrent.futures.wait([gate, *calls], 20)
    assert lines(tmp_path / "order") == ["9:5", "5:1", "5:3", "0:0", "0:4", "-1:2"]


def test_row_30_one_of_high_priority_overtakes_many_that_were_there_before(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "site", max_workers=1) as one:
        gate = one.submit(pass_gate, tmp_path / "gate")
        until(lambda: reached(tmp_path / "gate"))
        many = [one.submit(append, tmp_path / "order", "many") for _ in range(3000)]
        assert many[-1].task_id
        urgent = note.options(priority=10)(tmp_path / "order", "urgent")
        assert urgent.task_id
        open_gate(tmp_path / "gate")
        urgent.result(20)
        place = lines(tmp_path / "order").index("urgent")
        concurrent.futures.wait([gate, *many], 30)
    assert place < 200


def test_row_31_garbage_at_its_doors_does_not_disturb_the_interchange(ex: Executor) -> None:
    said = json.loads((ex.site / "interchange.json").read_text())
    with zmq.Context() as context:
        for door in ("clients", "pilots"):
            with context.socket(zmq.DEALER) as socket:
                socket.connect(said[door])
                for frames in ([b""], [b"\xff" * 1000], [b"\x93\x01"], [b"a", b"b", b"c"], [os.urandom(100_000)]):
                    socket.send_multipart(frames)
                socket.close(linger=1000)
    assert add(1, 2).result(20) == 3
    assert json.loads((ex.site / "interchange.json").read_text())["pid"] == said["pid"]


# ---- 58 to 64


@app
def returns_future(x: int) -> Any:
    return same(x)


@app
def returns_list(n: int) -> Any:
    return [same(i) for i in range(n)]


@app
def returns_dict() -> Any:
    return {"a": same(1), "b": add(1, 1)}


@app
def returns_failures() -> Any:
    return [same(1), fail("inner one"), fail("inner two")]


def test_row_58_a_task_that_returns_futures_completes_with_their_values() -> None:
    assert returns_future(4).result(20) == 4
    assert returns_list(3).result(20) == [0, 1, 2]
    assert returns_list(0).result(20) == []
    assert returns_dict().result(20) == {"a": 1, "b": 2}
    assert add(returns_future(4), 1).result(20) == 5


def test_row_58_failures_within_are_listed_with_their_task_ids() -> None:
    exc = returns_failures().exception(20)
    assert isinstance(exc, JoinError)
    assert len(exc.task_ids) == 2
    assert all(str(number) in str(exc) for number in exc.task_ids)


def test_row_60_a_hundred_chained_tasks_released_at_once_keep_the_stack_flat(tmp_path: Path) -> None:
    plain: concurrent.futures.Future[int] = concurrent.futures.Future()
    link: Any = plain
    for _ in range(100):
        link = add(link, 1)
    depth = sys.getrecursionlimit()
    sys.setrecursionlimit(150)
    try:
        plain.set_result(0)
    finally:
        sys.setrecursionlimit(depth)
    assert link.result(20) == 100


def test_row_60_a_done_callback_may_submit_the_next_for_ever(ex: Executor) -> None:
    over = threading.Event()

    def again(future: concurrent.futures.Future[int]) -> None:
        if future.result() < 1500:
            ex.submit(int, future.result() + 1).add_done_callback(again)
        else:
            over.set()

    ex.submit(int, 0).add_done_callback(again)
    assert over.wait(30)


def test_row_61_what_is_over_is_let_go_of(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "site", max_workers=2) as executor:
        interchange = psutil.Process(json.loads((executor.site / "interchange.json").read_text())["pid"])
        own = psutil.Process()

        def batch(n: int) -> list[weakref.ref[Any]]:
            calls = [executor.submit(abs, i) for i in range(n)]
            assert sum(call.result(30) for call in calls) == n * (n - 1) // 2
            return [weakref.ref(call) for call in calls[::100]]

        for _ in range(3):   # the interchange keeps the last 20,000 at hand
            batch(10_000)
        gc.collect()
        before = interchange.memory_info().rss, own.memory_info().rss
        there = [ref for _ in range(3) for ref in batch(10_000)]
        until(lambda: gc.collect() >= 0 and not any(ref() for ref in there), "all futures are let go")
        grown = interchange.memory_info().rss - before[0], own.memory_info().rss - before[1]
    # Bytes a task.  SQLite's page cache still grows, up to its bound, by 160; a record that stayed would be 850.
    assert max(grown) / 30_000 < 400


def test_row_62_an_app_called_after_the_executor_has_ended_says_so(tmp_path: Path) -> None:
    ran = run("""
        from balsamfut import Executor, app
        from balsamfut.errors import NoExecutor

        @app
        def one(): return 1

        with Executor(max_workers=1):
            future = one()
        print(future.done(), future.result())
        try:
            one()
        except NoExecutor as exc:
            print(type(exc).__name__, exc)
        """, tmp_path)
    assert ran.out.startswith("True 1\nNoExecutor "), ran
    assert (ran.code, ran.err) == (0, "")
    assert issubclass(NoExecutor, RuntimeError)


def test_row_62_the_with_block_waits_and_an_exception_in_it_is_not_swallowed(tmp_path: Path) -> None:
    call = None
    with pytest.raises(ZeroDivisionError), Executor(site=tmp_path / "site", max_workers=1) as executor:
        call = executor.submit(append, tmp_path / "ran", "x")
        raise ZeroDivisionError
    assert call is not None
    assert call.done()
    assert lines(tmp_path / "ran") == ["x"]


def test_row_64_it_is_an_executor_of_the_standard_library(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "site", max_workers=2) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        first = executor.submit(pow, 2, 3)
        assert executor.submit(pow, first, 2).result(20) == 64
        assert list(executor.map(pow, [1, 2, 3], [2, 2, 2], timeout=20)) == [1, 4, 9]
        calls = {executor.submit(abs, -i): i for i in range(5)}
        assert {calls[call]: call.result() for call in concurrent.futures.as_completed(calls, 20)} == {
            i: i for i in range(5)}
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(pow, 2, 3)
