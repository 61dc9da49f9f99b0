"""The Executor against an interchange in the test's own process: over real sockets, with its thread and its queue."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import functools
import gc
import itertools
import operator
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fake_interchange import FakeInterchange

from balsamfut import context
from balsamfut import messages as m
from balsamfut.calls import CallPlan, plain_parts
from balsamfut.errors import (
    InvalidOption,
    InvalidResources,
    NoExecutor,
    ProtocolMismatch,
    SerializationError,
    SettingsError,
    SiteTaken,
    UpstreamFailed,
    UsageError,
)
from balsamfut.executor import Executor, innermost
from balsamfut.interchange import ownership
from balsamfut.interchange.store import Store
from balsamfut.model import TaskState

Start = Callable[..., FakeInterchange]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start fake interchanges of the site tmp_path/site; all are stopped at the end."""
    running: list[FakeInterchange] = []

    def begin(**how: Any) -> FakeInterchange:
        running.append(FakeInterchange(tmp_path / "site", epoch=len(running) + 1, **how))
        return running[-1]

    yield begin
    for fake in running:
        if fake.running:
            fake.stop()


def square(x: Any) -> Any:
    return x * x


def fail(text: str) -> None:
    raise ValueError(text)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what nobody announces."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


# ---- calls


def test_calls_results_and_futures_at_any_depth(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex:
        base = ex.submit(square, 3)
        assert ex.submit(sum, [base, ex.submit(square, base)]).result(10) == 90
        assert ex.submit(dict, a={"b": (base,)}).result(10) == {"a": {"b": (9,)}}
        assert base.task_id == 100 and base.state is TaskState.DONE
        assert base.workdir == fake.site / "data" / "00000" / "100"
        assert ex.submit(functools.partial(pow, 2), 5).result(10) == 32
        assert ex.submit([3, 1, 3].count, 3).result(10) == 2
        assert ex.submit(lambda: 7).result(10) == 7
        assert ex.submit(dict, self=1, fn=2).result(10) == {"self": 1, "fn": 2}, "keywords belong to the task"


def test_a_function_is_pickled_once_and_arguments_at_each_call(start: Start) -> None:
    fake = start(hold=True)
    with Executor(site=fake.site) as ex:
        values = [1]
        futures = [ex.submit(len, values)]
        values.append(2)
        futures += [ex.submit(len, values) for _ in range(5)]
        fake.release()
        assert [future.result(10) for future in futures] == [1, 2, 2, 2, 2, 2]
    assert sum(len(message.codes) for message in fake.of(m.Submit)) == 1
    assert sum(len(message.classes) for message in fake.of(m.Submit)) == 1


def test_a_loop_of_submits_travels_in_few_messages(start: Start) -> None:
    fake = start(hold=True)
    with Executor(site=fake.site) as ex:
        futures = [ex.submit(square, i) for i in range(3000)]
        fake.release()
        assert [future.result(20) for future in futures] == [i * i for i in range(3000)]
    assert len(fake.of(m.Submit)) < 300


def test_large_arguments_travel_as_files_and_arrive_complete(start: Start) -> None:
    fake = start(inline=1000)
    with Executor(site=fake.site) as ex:
        assert ex.submit(len, bytes(100_000)).result(10) == 100_000
        assert len(ex.submit(bytes, 5000).result(10)) == 5000
    assert any((fake.site / "objects").rglob("*"))


def test_what_cannot_be_pickled_is_the_futures_affair(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex:
        bad = ex.submit(square, threading.Lock())
        lock = threading.Lock()
        worse = ex.submit(lambda: lock)
        assert isinstance(bad.exception(1), SerializationError) and "square" in str(bad.exception())
        assert isinstance(worse.exception(1), SerializationError)
        dependent = ex.submit(square, bad)
        assert isinstance(dependent.exception(1), UpstreamFailed)
        assert dependent.exception().__cause__ is bad.exception()
        assert bad.state is TaskState.FAILED and dependent.state is TaskState.UPSTREAM_FAILED
        with pytest.raises(SerializationError):
            _ = bad.task_id
        assert ex.submit(square, 2).result(10) == 4


def test_a_failure_goes_down_the_chain_with_the_roots_own_exception(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex:
        root = ex.submit(fail, "boom")
        last = ex.submit(square, ex.submit(square, root))
        exc = last.exception(10)
        assert isinstance(exc, UpstreamFailed) and exc.__cause__ is root.exception()
        with pytest.raises(ValueError, match="boom"):
            root.result()


def test_a_refused_call_raises_what_the_interchange_named(start: Start) -> None:
    fake = start()
    fake.reject = lambda spec: m.Rejected(spec.n, "InvalidResources", "too large")
    with Executor(site=fake.site) as ex:
        future = ex.submit(square, 1)
        assert isinstance(future.exception(10), InvalidResources)
        with pytest.raises(InvalidResources):
            _ = future.task_id


def test_impossible_requests_are_refused_at_submit(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex, pytest.raises(InvalidResources, match="asked"):
        ex.options(num_nodes=7).submit(square, 1)


def test_futures_of_somebody_else_are_waited_for(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex, cf.ThreadPoolExecutor(1) as pool:
        go = threading.Event()
        foreign = pool.submit(lambda: go.wait(10) and 5)
        futures = [ex.submit(square, foreign), ex.submit(sum, [foreign, foreign])]
        fake.wait(lambda: len(fake.specs) == 3)
        assert not futures[0].done()
        go.set()
        assert [future.result(10) for future in futures] == [25, 10]
        broken = pool.submit(fail, "theirs")
        exc = ex.submit(square, broken).exception(10)
        assert isinstance(exc, UpstreamFailed) and isinstance(exc.__cause__, ValueError)
    assert len(fake.of(m.Keep)) == 2, "one promise for each future"
    assert repr(broken) in fake.of(m.Keep)[1].error


def test_futures_of_another_executor_of_the_site_are_tasks_like_our_own(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as one, Executor(site=fake.site) as two:
        base = one.submit(square, 3)
        assert two.submit(square, base).result(10) == 81
    assert not fake.of(m.Keep)
    assert any(spec.needs == (base.task_id,) for message in fake.of(m.Submit) for spec in message.specs)


# ---- options and keys


def test_a_view_has_its_own_options_and_shuts_nothing(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex:
        with ex.options(priority=3, tags={"T": "300"}) as view:
            assert innermost() is view
            future = view.submit(square, 2)
            assert future.result(10) == 4 and future.tags == {"T": "300"}
        view.shutdown()
        assert innermost() is ex and ex.submit(square, 3).result(10) == 9
        with pytest.raises(InvalidOption, match="priority"):
            ex.options(prioriti=1)
    classes = [cls for message in fake.of(m.Submit) for _, cls in message.classes]
    assert [cls.options.priority for cls in classes] == [3, 0]


def test_calls_of_a_named_campaign_have_keys_and_count_their_equals(start: Start) -> None:
    fake = start()
    with Executor("scan", site=fake.site) as ex:
        futures = [ex.submit(square, 1), ex.submit(square, 2), ex.submit(square, 1)]
        assert ex.campaign == "scan"
    until(lambda: fake.of(m.Submit))
    specs = [spec for message in fake.of(m.Submit) for spec in message.specs]
    assert specs[0].key == specs[2].key != specs[1].key and specs[0].key is not None
    assert [spec.occurrence for spec in specs] == [0, 0, 1]
    assert (futures[2].key, futures[2].occurrence) == (specs[2].key, 1)


def test_calls_without_a_campaign_have_no_keys_unless_they_share_results(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex:
        ex.submit(square, 1)
        ex.options(cache=True).submit(square, 1)
        ex.options(cache=True, key="mine").submit(square, 1)
    keys = [spec.key for message in fake.of(m.Submit) for spec in message.specs]
    assert keys[0] is None and keys[1] is not None and keys[2] not in (None, keys[1])


class Unstable:
    def __init__(self) -> None:
        self.file = sys.stderr


def test_what_has_no_stable_hash_is_said_once_and_runs_anyway(start: Start) -> None:
    fake = start()
    with Executor("scan", site=fake.site) as ex, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        generator = (ex.submit(callable, threading.Thread), ex.submit(type, Unstable), ex.submit(id, Unstable()))
        for future in generator:
            future.exception(10)
        ex.submit(id, Unstable()).exception(10)
    assert len([warning for warning in caught if "stable" in str(warning.message)]) <= 1


def test_a_key_function_that_raises_fails_its_own_call(start: Start) -> None:
    fake = start()

    def bad(*_: object) -> str:
        raise KeyError("no key")

    with Executor("scan", site=fake.site) as ex:
        assert isinstance(ex.options(key=bad).submit(square, 1).exception(10), KeyError)
        assert ex.submit(square, 2).result(10) == 4


class FakeApp:
    """What an Executor knows of an app."""

    __balsamfut_app__ = True

    def __init__(self) -> None:
        self.parts = plain_parts(square, "squared")

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallPlan:
        return CallPlan(self.parts, args, kwargs)


def test_submitting_an_app_is_calling_it(start: Start) -> None:
    fake = start()
    app: Any = FakeApp()
    with Executor(site=fake.site) as ex:
        future = ex.submit(app, 4)
        assert future.result(10) == 16 and future.app_name == "squared"
        assert list(ex.map(app, range(4), chunksize=2)) == [0, 1, 4, 9]
        named = ex.options(name="n{{ x }}", workdir="w/{{ x }}").submit(app, 5)
        assert named.name == "n5" and named.workdir == fake.site / "data" / "w" / "5"
    assert len({spec.cls for message in fake.of(m.Submit) for spec in message.specs}) == 1


# ---- map, cancel, kill


def test_map_keeps_order_groups_calls_and_refuses_a_bad_chunksize(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex:
        assert list(ex.map(square, range(10))) == [i * i for i in range(10)]
        before = len(fake.specs)
        assert list(ex.map(pow, range(10), [2] * 10, chunksize=4)) == [i * i for i in range(10)]
        assert len(fake.specs) - before == 3
        with pytest.raises(ValueError, match="chunksize"):
            ex.map(square, [1], chunksize=0)


def test_map_honours_its_timeout_and_cancels_the_rest(start: Start) -> None:
    fake = start(hold=True)
    with Executor(site=fake.site) as ex:
        results = ex.map(square, range(5), timeout=0.05)
        with pytest.raises(cf.TimeoutError):
            next(results)
        fake.wait(lambda: list(fake.states.values()) == [TaskState.CANCELLED] * 5)


def test_cancel_is_true_where_the_record_says_so(start: Start) -> None:
    fake = start(hold=True)
    with Executor(site=fake.site) as ex:
        future, running = ex.submit(square, 1), ex.submit(square, 2)
        started = running.task_id
        fake.do(lambda: fake.states.update({started: TaskState.RUNNING}))
        assert future.cancel() and future.cancelled() and future.cancel()
        assert not running.cancel() and not running.running()
        fake.say(m.Running([(started, True)]))
        until(running.running)
        assert not running.cancel()
        assert running.kill()
        assert str(running.exception(10)) == "killed by you" and not running.cancelled()
        assert cf.wait([future, running]).not_done == set()


def test_done_callbacks_may_cancel_submit_and_wait(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex:
        seen: list[Any] = []
        finished = threading.Event()

        def callback(future: Any) -> None:
            other = ex.submit(square, future.result())
            seen.append(other.task_id > 0)
            seen.append(other.result(10))
            seen.append(other.cancel())
            finished.set()

        ex.submit(square, 3).add_done_callback(callback)
        assert finished.wait(10) and seen == [True, 81, False]


# ---- the end


def test_after_shutdown_nothing_is_taken(start: Start) -> None:
    fake = start()
    ex = Executor(site=fake.site)
    future = ex.submit(square, 3)
    ex.shutdown()
    assert future.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        ex.submit(square, 1)
    ex.shutdown()
    fake.wait(lambda: bool(fake.of(m.Bye)))


def test_shutdown_without_waiting_cancels_nothing(start: Start) -> None:
    fake = start(hold=True)
    ex = Executor(site=fake.site)
    future = ex.submit(square, 3)
    ex.shutdown(wait=False)
    assert not future.done()
    fake.release()
    assert future.result(10) == 9
    fake.wait(lambda: bool(fake.of(m.Bye)))


def test_shutdown_can_cancel_what_has_not_started(start: Start) -> None:
    fake = start(hold=True)
    ex = Executor(site=fake.site)
    futures = [ex.submit(square, i) for i in range(100)]
    ex.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    assert len(fake.of(m.Cancel)) == 1


def test_detach_leaves_when_all_is_recorded(start: Start) -> None:
    fake = start(hold=True)
    with Executor(site=fake.site, wait=False) as ex:
        futures = [ex.submit(square, i) for i in range(10)]
    assert len(fake.specs) == 10
    fake.wait(lambda: bool(fake.of(m.Bye)))
    assert fake.of(m.Bye)[0].detach
    assert futures[3].task_id == 103
    with pytest.raises(UsageError, match="103 goes on"):
        futures[3].result(1)


def test_an_executor_that_nobody_holds_ends_when_its_calls_are_over(start: Start) -> None:
    fake = start(hold=True)
    ex = Executor(site=fake.site)
    ref = weakref.ref(ex)
    future = ex.submit(square, 3)
    del ex
    gc.collect()
    assert ref() is None
    fake.release()
    assert future.result(10) == 9
    fake.wait(lambda: bool(fake.of(m.Bye)))
    with pytest.raises(NoExecutor):
        innermost()


def test_delivered_values_and_functions_are_let_go(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex:
        def function(x: int) -> set[int]:
            return {x}

        future = ex.submit(function, 1)
        value, kept = weakref.ref(future.result(10)), weakref.ref(function)
        del future, function
        gc.collect()
        until(lambda: value() is None and kept() is None)


def test_the_innermost_open_executor_is_the_one(start: Start) -> None:
    fake = start()
    with pytest.raises(NoExecutor):
        innermost()
    with Executor(site=fake.site) as outer:
        with Executor(site=fake.site) as inner:
            assert innermost() is inner
            found: list[Executor] = []
            thread = threading.Thread(target=lambda: found.append(innermost()))
            thread.start()
            thread.join()
            assert found == [inner]
        assert innermost() is outer


def test_arguments_are_checked(start: Start) -> None:
    fake = start()
    for wrong, error in (({"max_workers": 0}, ValueError), ({"max_workers": -1}, ValueError),
                         ({"max_workers": 1.5}, TypeError), ({"nodes": "2"}, TypeError),
                         ({"initializer": 5}, TypeError),
                         ({"campaign": 4}, InvalidOption), ({"campaign": ""}, InvalidOption)):
        with pytest.raises(error):
            Executor(site=fake.site, **wrong)
    with Executor(site=fake.site, max_workers=3) as ex:
        assert ex._max_workers == 3
    assert fake.hellos[-1].max_workers == 3
    with Executor(site=fake.site) as ex:
        assert ex._max_workers == 2, "as many as the site has cores"


def test_an_executor_in_a_loop_serves_asyncio(start: Start) -> None:
    fake = start()

    async def main() -> None:
        with Executor(site=fake.site) as ex:
            assert await ex.submit(square, 4) == 16
            assert await asyncio.get_running_loop().run_in_executor(ex, square, 5) == 25
            assert await asyncio.gather(*(ex.submit(square, i) for i in range(5))) == [0, 1, 4, 9, 16]

    asyncio.run(main())


# ---- the interchange goes away


def test_a_new_interchange_gets_everything_that_was_open(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    first = start(hold=True)
    with Executor(site=first.site) as ex:
        held = ex.submit(square, 3)
        assert held.task_id == 100
        first.mute = True
        foreign: cf.Future[int] = cf.Future()
        unacknowledged = ex.submit(square, held)
        waiting = ex.submit(square, foreign)
        foreign.set_result(6)
        first.wait(lambda: bool(first.of(m.Keep)))
        answers: list[bool] = []
        doomed = ex.submit(square, 5)
        asker = threading.Thread(target=lambda: answers.append(doomed.cancel()))
        asker.start()
        first.wait(lambda: bool(first.of(m.Cancel)))
        first.stop()
        second = FakeInterchange(first.site, epoch=2, hold=True, first_task=200)
        try:
            second.wait(lambda: bool(second.of(m.Watch) and second.of(m.Cancel)), 15)
            assert second.hellos[0].token == first.hellos[0].token
            (resent,) = [message for message in second.of(m.Submit) if message.resent]
            assert [spec.needs for spec in resent.specs] == [(100,), (), (-3,), ()]
            assert second.of(m.Watch)[0].tasks == [100]
            asker.join(10)
            assert answers == [True] and doomed.cancelled()
            second.do(lambda: second.values.update(first.values | {100: b"K\x09."}))
            second.do(lambda: second.states.update({100: TaskState.DONE}))
            second.release()
            second.say(m.Settled([m.Ending(100, TaskState.DONE, b"K\x09.")]))
            assert held.result(10) == 9 and unacknowledged.result(10) == 81 and waiting.result(10) == 36
            assert ex.submit(square, 7).result(10) == 49
        finally:
            ex.shutdown()
            second.stop()
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "lost the interchange" in said[0]


# ---- starting


def test_errors_of_the_start_are_those_of_the_executor(tmp_path: Path, start: Start) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "settings.toml").write_text("[[[")
    with pytest.raises(SettingsError):
        Executor(site=tmp_path / "bad")
    fake = start()
    file = fake.site / "interchange.json"
    told = file.read_text()
    file.write_text(told.replace(f'"protocol": {m.PROTOCOL}', '"protocol": 999'))
    with pytest.raises(ProtocolMismatch, match="999"):
        Executor(site=fake.site)


def test_an_interchange_that_lives_on_another_host_and_cannot_be_reached_is_left_alone(
        start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAMFUT_INTERCHANGE_LEASE", "5")
    fake = start()
    file = fake.site / "interchange.json"
    file.write_text(file.read_text().replace(os.uname().nodename, "elsewhere"))
    owner = Store(fake.site / "balsamfut.db")
    owner.open()
    over = threading.Event()

    def live() -> None:
        with closing(sqlite3.connect(fake.site / "balsamfut.db", timeout=10.0)) as database:
            for beat in itertools.count(1):
                database.execute("UPDATE meta SET host = 'elsewhere', pid = 17, beat = ?", (beat,))
                database.commit()
                if over.wait(0.2):
                    return

    thread = threading.Thread(target=live)
    thread.start()
    try:
        until(lambda: ownership.look(owner).host == "elsewhere")  # type: ignore[union-attr]
        before = file.read_text()
        with pytest.raises(SiteTaken, match="lives: process 17 on elsewhere, since"):
            Executor(site=fake.site)
        assert file.read_text() == before
    finally:
        over.set()
        thread.join()
        owner.close()


def test_an_interchange_that_refuses_us_says_why(start: Start) -> None:
    fake = start(mute=True)
    fake._handle = lambda peer, message: fake.door.send(  # type: ignore[method-assign]
        peer, m.Refused("DatabaseTooNew", "version 9"))
    with pytest.raises(Exception, match="version 9") as caught:
        Executor(site=fake.site)
    assert type(caught.value).__name__ == "DatabaseTooNew"


# ---- inside a task


class Slots:
    def __init__(self) -> None:
        self.events: list[str] = []

    def context(self, site: Path, task: int = 50) -> context.TaskContext:
        return context.TaskContext(task, 2, site=str(site), block=lambda: self.events.append("block"),
                                   unblock=lambda: self.events.append("unblock"))


@pytest.fixture
def in_task() -> Iterator[Callable[[context.TaskContext], None]]:
    yield context.enter
    context.enter(None)


def test_a_task_has_an_executor_of_its_own_that_ends_with_it(
        start: Start, in_task: Callable[[context.TaskContext], None]) -> None:
    fake = start()
    slots = Slots()
    with Executor(site=fake.site):
        task = slots.context(fake.site)
        in_task(task)
        ex = innermost()
        assert innermost() is ex
        future = ex.submit(square, 3)
        assert future.result(10) == 9
        with Executor() as explicit:
            assert innermost() is explicit and explicit.submit(square, 3).result(10) == 9
        assert innermost() is ex
        fake.hold = True
        left = ex.submit(square, 5)
        task.close()
        assert left._id > 0, "it is recorded, and goes on"
        fake.wait(lambda: len(fake.of(m.Bye)) == 2)
    own, named = fake.hellos[1:]
    assert (own.parent, own.attempt) == (50, 2) and own.token != named.token
    assert own.token == "task-50.2.1", "the same for every process that makes this attempt"
    until(lambda: fake.of(m.Submit))
    specs = [spec for message in fake.of(m.Submit) for spec in message.specs]
    assert specs[0].key == specs[1].key and [spec.occurrence for spec in specs[:2]] == [0, 1]


def test_a_task_that_waits_gives_its_slot_back_whichever_way_it_waits(
        start: Start, in_task: Callable[[context.TaskContext], None]) -> None:
    fake = start(hold=True)
    slots = Slots()
    task = slots.context(fake.site)
    in_task(task)
    ex = innermost()
    for wait in (lambda future: future.result(10), lambda future: cf.wait([future], 10),
                 lambda future: list(cf.as_completed([future], 10)), lambda future: asyncio.run(_awaited(future))):
        slots.events.clear()
        fake.hold = True
        future = ex.submit(square, 4)
        threading.Thread(target=lambda: (until(lambda: slots.events == ["block"]), fake.release())).start()
        wait(future)  # type: ignore[no-untyped-call]
        assert slots.events == ["block", "unblock"] and future.result() == 16
        assert slots.events == ["block", "unblock"], "what is there is not waited for"
    task.close()


async def _awaited(future: Any) -> Any:
    return await future


# ---- processes


def script(text: str, site: Path, *, wait: bool = True) -> Any:
    env = os.environ | {"BALSAMFUT_SITE": str(site), "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return process if not wait else (*process.communicate(timeout=30), process.returncode)


def test_a_script_that_forgets_to_shut_down_ends_with_its_tasks_done(start: Start) -> None:
    fake = start()
    out, err, code = script("""
        from balsamfut.executor import Executor
        ex = Executor()
        ex.submit(pow, 2, 5).add_done_callback(lambda f: print(f.result()))
    """, fake.site)
    assert (out, err, code) == ("32\n", "", 0)


def test_ctrl_c_leaves_without_waiting_and_says_how_to_go_on(start: Start) -> None:
    fake = start(hold=True)
    process = script("""
        from balsamfut.executor import Executor
        with Executor() as ex:
            futures = [ex.submit(pow, 2, i) for i in range(5)]
            print(futures[-1].task_id, flush=True)
            futures[0].result()
    """, fake.site, wait=False)
    assert process.stdout.readline() == "104\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert "5 calls are not over; `balsamfut resume`" in err
    fake.wait(lambda: bool(fake.of(m.Bye)))
    assert not fake.of(m.Cancel), "what is recorded can be gone on with"


def test_a_forked_child_leaves_its_parents_session_alone(start: Start) -> None:
    fake = start()
    out, err, code = script("""
        import os
        from balsamfut.executor import Executor, innermost
        from balsamfut.errors import NoExecutor
        with Executor() as ex:
            assert ex.submit(pow, 2, 5).result() == 32
            child = os.fork()
            if child == 0:
                try:
                    ex.submit(pow, 2, 6)
                except RuntimeError as exc:
                    print(exc, flush=True)
                try:
                    innermost()
                except NoExecutor:
                    print("none", flush=True)
                with Executor() as own:
                    print(own.submit(pow, 2, 7).result(), flush=True)
                raise SystemExit(0)
            os.waitpid(child, 0)
            print(ex.submit(pow, 2, 8).result())
    """, fake.site)
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert "forked" in lines[0] and lines[1:] == ["none", "128", "256"]


def test_an_executor_captured_by_a_task_is_the_tasks_own_there(start: Start) -> None:
    fake = start()
    with Executor(site=fake.site) as ex:
        assert ex.submit(lambda: ex.submit is not None).result(10)
        assert ex.submit(operator.is_, ex, ex).result(10)
