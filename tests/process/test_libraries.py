"""Libraries that take an executor give right answers on ours.  One Executor serves them all."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import adaptive
import dask
import dask.array
import numpy as np
import pipefunc
import pytest
from scipy import integrate, optimize
from waiting import open_gate, pass_gate

from balsamfut import Executor


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with Executor(site=tmp_path_factory.mktemp("site"), max_workers=2) as ex:
        yield ex


def rosenbrock(x: Any) -> float:
    return float(sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def square(x: float) -> float:
    return x * x


def test_dask_takes_it_as_a_scheduler(executor: Executor) -> None:
    total = dask.delayed(sum)([dask.delayed(square)(i) for i in range(20)])
    assert total.compute(scheduler=executor) == sum(i * i for i in range(20))


def test_dask_computes_an_array_on_it(executor: Executor) -> None:
    x = dask.array.arange(1000, chunks=250).reshape((100, 10))
    found = (x.T @ x).sum().compute(scheduler=executor)
    y = np.arange(1000).reshape((100, 10))
    assert found == (y.T @ y).sum()


def test_dask_passes_an_exception_on(executor: Executor) -> None:
    with pytest.raises(ZeroDivisionError):
        dask.delayed(operator.truediv)(1, 0).compute(scheduler=executor)


def test_asyncio_runs_functions_in_it(executor: Executor) -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, square, i) for i in range(20)))

    assert asyncio.run(main()) == [i * i for i in range(20)]


def test_asyncio_awaits_its_futures(executor: Executor) -> None:
    async def main() -> tuple[float, float, list[Any]]:
        wrapped = await asyncio.wrap_future(executor.submit(square, 3))
        own = await executor.submit(square, 4)
        failed = await asyncio.gather(asyncio.wrap_future(executor.submit(operator.truediv, 1, 0)),
                                      return_exceptions=True)
        return wrapped, own, failed

    wrapped, own, failed = asyncio.run(main())
    assert (wrapped, own) == (9, 16)
    assert isinstance(failed[0], ZeroDivisionError)


def test_an_awaited_future_does_not_hold_up_the_loop(executor: Executor, tmp_path: Path) -> None:
    async def main() -> float:
        waiting = executor.submit(pass_gate, tmp_path / "gate")
        first = await executor.submit(square, 5)   # while the other is not over
        assert not waiting.done()
        open_gate(tmp_path / "gate")
        await waiting
        return first

    assert asyncio.run(main()) == 25


def test_scipy_minimises_with_its_map_as_workers(executor: Executor) -> None:
    found = optimize.differential_evolution(rosenbrock, [(-2, 2)] * 2, workers=executor.map, updating="deferred",
                                            maxiter=40, popsize=8, rng=1, polish=False)
    assert found.x == pytest.approx([1, 1], abs=0.05)


def test_scipy_integrates_with_its_map_as_workers(executor: Executor) -> None:
    value, error = integrate.quad_vec(square, 0, 3, workers=executor.map)
    assert value == pytest.approx(9)
    assert error < 1e-6


def test_pipefunc_runs_a_pipeline_on_it(executor: Executor) -> None:
    @pipefunc.pipefunc(output_name="y", mapspec="x[i] -> y[i]")
    def double(x: int) -> int:
        return 2 * x

    @pipefunc.pipefunc(output_name="total")
    def total(y: Any) -> int:
        return sum(y)

    pipeline = pipefunc.Pipeline([double, total])
    results = pipeline.map({"x": list(range(10))}, executor=executor, parallel=True, chunksizes=1,
                           show_progress=False, storage="dict")
    assert results["total"].output == 2 * sum(range(10))
    assert list(results["y"].output) == [2 * i for i in range(10)]


def test_adaptive_learns_a_function_on_it(executor: Executor) -> None:
    learner = adaptive.Learner1D(square, bounds=(-1, 1))
    adaptive.BlockingRunner(learner, npoints_goal=20, executor=executor, ntasks=2)
    assert learner.npoints >= 20
    assert all(y == pytest.approx(x * x) for x, y in learner.data.items())


def test_numpy_arrays_pass_whole_however_large(executor: Executor) -> None:
    array = np.arange(1_000_000, dtype=float)
    back = executor.submit(np.flip, array).result()
    assert np.array_equal(back, array[::-1])


def test_it_works_together_with_threads_of_the_standard_library(executor: Executor) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: executor.submit(square, i).result(), range(40)))
    assert found == [i * i for i in range(40)]
