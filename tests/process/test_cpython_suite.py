"""CPython's own tests of concurrent.futures, the executor-neutral ones, with our Executor and TaskFuture in place.

They come with the interpreter (the package `test`; Debian: libpython3.X-testsuite).  Where they do not, this module is
skipped; with SITE_TESTS=1 they are promised, and a skip is a failure.  All Executors but those of scripts share one
interchange, which keeps this quick.

Left out, and why:
* test_interpreter_shutdown, test_hang_gh83386: what a task prints goes to the task's log, not to the script's output
  (test_executor_facts.py has the same promises with files);
* FutureTests.test_repr, test_multiple_set_result, test_multiple_set_exception: they spell out the standard class's repr
  (their promises are tests of ours below);
* the classes about threads and processes of the standard pools (their _threads, _processes, mp_context, a pool that is
  broken by one dead worker).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import logging
import os
import sys
import time
import types
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from balsamfut import Executor, TaskFuture
from balsamfut.errors import InitializerFailed

WORKERS = 5
ROOT = Path(__file__).resolve().parents[2]


PARTS = ("util", "executor", "test_shutdown", "test_wait", "test_as_completed", "test_init", "test_future")


def suite() -> list[types.ModuleType]:
    """The modules with the tests: one up to Python 3.11, several from 3.12 on; none where they are not installed."""
    with contextlib.suppress(ImportError):
        return modules("test.test_concurrent_futures")
    # An interpreter without its own takes Debian's for the same version.  Workers see this sys.path too.
    debian = f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test"
    sys.path.append(debian)
    with contextlib.suppress(ImportError):
        return modules("test_concurrent_futures")
    sys.path.remove(debian)
    return []


def modules(name: str) -> list[types.ModuleType]:
    top = importlib.import_module(name)
    return [importlib.import_module(f"{name}.{part}") for part in PARTS] if hasattr(top, "__path__") else [top]


SUITE = suite()
if not SUITE:
    WHY = "the interpreter's own tests (package `test`; Debian: libpython3.X-testsuite) are not installed"
    if os.environ.get("SITE_TESTS") == "1":
        pytest.fail(f"SITE_TESTS=1, and {WHY}", pytrace=False)
    pytest.skip(WHY, allow_module_level=True)


def theirs(name: str) -> Any:
    return next(getattr(module, name) for module in SUITE if hasattr(module, name))


class Pool(Executor):
    """Our Executor under the constructor of the standard pools, whose first argument is max_workers."""

    def __init__(self, max_workers: int | None = None, **options: Any) -> None:
        super().__init__(max_workers=max_workers, **options)

    @property
    def _broken(self) -> bool:
        return self._client.broken is not None


def script(original: Any) -> Any:
    """assert_python_ok for scripts that import the class of the tests from concurrent.futures, in this directory."""
    def run(*args: str, **environ: str) -> Any:
        *flags, source = args
        source = source.replace("from concurrent.futures import Pool", "from balsamfut import Executor as Pool")
        source = source.replace("Pool(5)", "Pool(max_workers=5)")
        return original(*flags, source, __cwd=os.getcwd(), PYTHONPATH=str(ROOT), **environ)
    return run


@pytest.fixture(autouse=True, scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A site that stays while these tests run, and our classes in the place of theirs."""
    states = {"PENDING_FUTURE": {"state": "PENDING"}, "RUNNING_FUTURE": {"state": "RUNNING"},
              "CANCELLED_FUTURE": {"state": "CANCELLED"},
              "CANCELLED_AND_NOTIFIED_FUTURE": {"state": "CANCELLED_AND_NOTIFIED"},
              "EXCEPTION_FUTURE": {"state": "FINISHED", "exception": OSError()},
              "SUCCESSFUL_FUTURE": {"state": "FINISHED", "result": 42}}
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.chdir(tmp_path_factory.mktemp("site"))
        for module in SUITE:
            patch.setattr(module, "Future", TaskFuture, raising=False)
        replaced = {name: theirs("create_future")(**state) for name, state in states.items()}
        replaced["assert_python_ok"] = script(theirs("assert_python_ok"))
        for module in SUITE:
            for name, value in replaced.items():
                if hasattr(module, name):
                    patch.setattr(module, name, value)
        lasting = stack.enter_context(Executor(max_workers=4 * WORKERS))
        concurrent.futures.wait([lasting.submit(time.sleep, 0.5) for _ in range(4 * WORKERS)])   # workers are awake
        yield


class Ours(theirs("ExecutorMixin")):  # type: ignore[misc]
    worker_count = WORKERS
    executor_type = Pool


Base: Any = theirs("BaseTestCase")


class TestShutdown(Ours, theirs("ExecutorShutdownTest"), Base):  # type: ignore[misc]
    test_interpreter_shutdown = None
    test_hang_gh83386 = None

    def test_cancel_futures(self) -> None:
        """A standard pool has started its first call when submit returns; ours when it is seen to run."""
        submit = self.executor.submit

        def submit_first(*args: Any) -> Any:
            self.executor.submit = submit
            future = submit(*args)
            until(lambda: future.running() or future.done(), "the first call runs")
            return future

        self.executor.submit = submit_first
        super().test_cancel_futures()


class Executors(Ours, theirs("ExecutorTest"), unittest.TestCase):  # type: ignore[misc]
    __test__ = False


class Waits(Ours, theirs("WaitTests"), unittest.TestCase):  # type: ignore[misc]
    __test__ = False


class AsCompleted(Ours, theirs("AsCompletedTests"), unittest.TestCase):  # type: ignore[misc]
    __test__ = False


SIDE_BY_SIDE = {
    f"{suite.__name__}.{name}": suite(name) for suite in (Executors, Waits, AsCompleted)
    for name in unittest.defaultTestLoader.getTestCaseNames(suite)}
"""They sleep for half a minute altogether, so they do it at the same time, each with an Executor of its own."""


@pytest.fixture(scope="module")
def outcomes(surroundings: None) -> dict[str, unittest.TestResult]:
    def outcome(case: unittest.TestCase) -> unittest.TestResult:
        result = unittest.TestResult()
        case.run(result)
        return result

    with concurrent.futures.ThreadPoolExecutor(len(SIDE_BY_SIDE)) as threads:
        found = dict(zip(SIDE_BY_SIDE, threads.map(outcome, SIDE_BY_SIDE.values()), strict=True))
    # They know times and no conditions, and a busy machine does not keep those: once more, as their own runner does.
    return {name: result if result.wasSuccessful() else outcome(SIDE_BY_SIDE[name]) for name, result in found.items()}


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_side_by_side(outcomes: dict[str, unittest.TestResult], name: str) -> None:
    result = outcomes[name]
    for _, reason in result.skipped:
        pytest.skip(reason)
    for _, problem in result.failures + result.errors:
        pytest.fail(problem, pytrace=False)


class TestInitializer(theirs("InitializerMixin"), Ours, Base):  # type: ignore[misc]
    worker_count = 2


class TestFailingInitializer(theirs("FailingInitializerMixin"), Ours, Base):  # type: ignore[misc]
    worker_count = 2

    @contextlib.contextmanager
    def _assert_logged(self, message: str) -> Iterator[None]:
        """The standard pools log what the initializer raised; ours has it as the cause of InitializerFailed."""
        yield
        with pytest.raises(InitializerFailed) as failed:
            self.executor.submit(len, ())
        assert isinstance(failed.value.__cause__, ValueError)
        assert str(failed.value.__cause__) == message.removeprefix("ValueError: ")


class TestFuture(theirs("FutureTests")):  # type: ignore[misc]
    def setUp(self) -> None:
        super().setUp()
        # They look for the log on stderr, where it goes when nobody takes it; pytest would.
        logger = logging.getLogger("concurrent.futures")
        logger.propagate = False
        self.addCleanup(setattr, logger, "propagate", True)

    test_repr = None
    test_multiple_set_result = None
    test_multiple_set_exception = None


@pytest.mark.parametrize("finish", [
    lambda future: future.set_result(1), lambda future: future.set_exception(OSError())], ids=["result", "exception"])
def test_a_future_that_is_over_takes_no_second_end(finish: Any) -> None:
    future: TaskFuture[int] = TaskFuture()
    finish(future)
    before = future.exception(), repr(future)
    with pytest.raises(concurrent.futures.InvalidStateError):
        future.set_result(2)
    with pytest.raises(concurrent.futures.InvalidStateError):
        future.set_exception(ValueError())
    assert (future.exception(), repr(future)) == before


@pytest.mark.parametrize(("state", "says"), [
    ({"state": "PENDING"}, "WAITING"), ({"state": "CANCELLED"}, "CANCELLED"),
    ({"state": "FINISHED", "exception": OSError()}, "FAILED raised OSError"),
    ({"state": "FINISHED", "result": 42}, "DONE returned int"),
])
def test_the_repr_of_a_future_says_how_it_stands(state: dict[str, Any], says: str) -> None:
    assert says in repr(theirs("create_future")(**state))
