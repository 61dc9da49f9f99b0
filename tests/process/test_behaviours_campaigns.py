"""What users rely on, as numbered rows: results that are shared, scripts that are stopped and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, run, start
from waiting import append, lines

from balsamfut import Executor, app
from balsamfut.query import open_site


@pytest.fixture(autouse=True, scope="module")
def ex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAMFUT_INTERCHANGE_LINGER", "0.05")
        with Executor(site=tmp_path_factory.mktemp("site"), max_workers=2) as executor:
            yield executor


# ---- 54: cache


@app(cache=True, cache_ignore=["log"])
def cached(settings: dict[str, Any], log: Path) -> int:
    append(log, "run")
    return sum(settings.values())


@app
def plain(settings: dict[str, Any], log: Path) -> int:
    append(log, "run")
    return sum(settings.values())


def test_row_54_equal_calls_of_a_cached_app_run_once_whatever_the_order_of_a_dict(tmp_path: Path) -> None:
    first = cached({"a": 1, "b": 2, "row": 54}, tmp_path / "one")
    assert first.result(20) == 57
    second = cached({"row": 54, "b": 2, "a": 1}, tmp_path / "two")
    assert second.result(20) == 57
    assert (first.from_cache, second.from_cache) == (False, True)
    assert (lines(tmp_path / "one"), lines(tmp_path / "two")) == (["run"], [])


def test_row_54_other_arguments_run_anew(tmp_path: Path) -> None:
    calls = [cached({"b": 2, "n": n}, tmp_path / "log") for n in (540, 541)]
    assert [call.result(20) for call in calls] == [542, 543]
    assert lines(tmp_path / "log") == ["run"] * 2


def test_row_54_without_the_cache_every_call_runs(tmp_path: Path) -> None:
    for _ in range(2):
        call = plain({"a": 1}, tmp_path / "log")
        assert (call.result(20), call.from_cache) == (1, False)
    call = cached.options(cache=False)({"row": 54}, tmp_path / "log")
    again = cached.options(cache=False)({"row": 54}, tmp_path / "log")
    assert (call.result(20), again.result(20)) == (54, 54)
    assert lines(tmp_path / "log") == ["run"] * 4


def test_row_54_equal_calls_at_the_same_time_give_the_same_value(tmp_path: Path) -> None:
    calls = [cached({"same time": 5}, tmp_path / "log") for _ in range(20)]
    assert [call.result(20) for call in calls] == [5] * 20


def test_row_54_results_are_shared_between_campaigns_of_a_site(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with Executor(name, site=tmp_path / "site", max_workers=1) as named:
            call = named.submit(cached, {"shared": 3}, tmp_path / "log")
            assert call.result(20) == 3
    assert call.from_cache
    assert lines(tmp_path / "log") == ["run"]


# ---- 55: failures are kept, and tried again by a re-run


@app
def fails_once(log: Path) -> str:
    append(log, "run")
    if len(lines(log)) == 1:
        raise ValueError("the first time")
    return "better"


@app
def after(value: str) -> str:
    return value.upper()


def test_row_55_a_failure_stays_in_the_record_and_is_tried_again_by_a_re_run(tmp_path: Path) -> None:
    with Executor("c", site=tmp_path / "site", max_workers=1) as named:
        call = named.submit(fails_once, tmp_path / "log")
        then = named.submit(after, call)
        assert isinstance(call.exception(20), ValueError)
        assert then.exception(20) is not None
        with open_site(named.site) as site:
            assert site.count() == {"FAILED": 1, "UPSTREAM_FAILED": 1}
    with Executor("c", site=tmp_path / "site", max_workers=1) as named:
        again = named.submit(fails_once, tmp_path / "log")
        then_again = named.submit(after, again)
        assert (again.result(20), then_again.result(20)) == ("better", "BETTER")
        assert (again.task_id, then_again.task_id) == (call.task_id, then.task_id)
        with open_site(named.site) as site:
            assert site.count() == {"DONE": 2}
    assert lines(tmp_path / "log") == ["run"] * 2


# ---- 56: keys


def refuses(value: int, log: Path) -> str:
    if value == 13:
        raise LookupError("no key for this")
    return f"key of {value}"


@app(cache=True, key=refuses)
def keyed(value: int, log: Path) -> int:
    append(log, str(value))
    return value


def test_row_56_a_key_function_that_raises_fails_its_own_task_only(tmp_path: Path) -> None:
    calls = [keyed(value, tmp_path / "log") for value in (12, 13, 14)]
    assert isinstance(calls[1].exception(20), LookupError)
    assert (calls[0].result(20), calls[2].result(20)) == (12, 14)
    assert keyed(12, tmp_path / "other").from_cache is False   # until it is told
    assert keyed(12, tmp_path / "other").result(20) == 12
    assert sorted(lines(tmp_path / "log")) == ["12", "14"]
    assert lines(tmp_path / "other") == []


# ---- 57: stopped, and run again

SCRIPT = """
    import os, time
    from pathlib import Path
    from balsamfut import Executor, app

    LOG, GATE = Path("log").absolute(), Path("gate").absolute()

    @app
    def step(n):
        while n >= 4 and not GATE.exists():
            time.sleep(0.01)
        with LOG.open("a") as log:
            log.write(f"{n}\\n")
        return n * n

    @app
    def total(values):
        return sum(values)

    if __name__ == "__main__":
        with Executor(campaign="squares", max_workers=2) as ex:
            steps = [step(n) for n in range(10)]
            whole = total(steps)
            for call in steps[:4]:
                call.result()
            print("four are done", flush=True)
            print("total", whole.result(), flush=True)
    """


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_row_57_a_script_that_was_stopped_and_is_run_again_runs_only_the_rest(tmp_path: Path, number: int) -> None:
    with start(SCRIPT, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "four are done\n"
        process.send_signal(number)
        process.wait(20)
    assert sorted(lines(tmp_path / "log")) == ["0", "1", "2", "3"]
    (tmp_path / "gate").touch()
    again = run(SCRIPT, tmp_path)
    assert (again.code, again.out, again.err) == (0, f"four are done\ntotal {sum(n * n for n in range(10))}\n", "")
    ran = sorted(lines(tmp_path / "log"), key=int)
    assert ran[:4] == ["0", "1", "2", "3"]
    assert set(ran) == {str(n) for n in range(10)}
    with open_site(tmp_path / ".balsamfut") as site:
        assert site.count(campaign="squares") == {"DONE": 11}


def test_row_57_a_run_to_its_end_that_is_repeated_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    first, second = run(SCRIPT, tmp_path), run(SCRIPT, tmp_path)
    assert first == second
    assert first.code == 0
    assert len(lines(tmp_path / "log")) == 10


def test_row_57_resume_goes_on_without_the_script(tmp_path: Path) -> None:
    with start(SCRIPT, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "four are done\n"
        process.kill()
        process.wait(20)
    (tmp_path / "gate").touch()
    (tmp_path / "script.py").unlink()
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "balsamfut", "resume", "--campaign", "squares", "--wait",
                           str(tmp_path / ".balsamfut")], cwd="/", env=environ, text=True, capture_output=True,
                          timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    with open_site(tmp_path / ".balsamfut") as site:
        assert site.count(campaign="squares") == {"DONE": 11}
        whole, = site.tasks(app="total")
        assert site.result(whole.id) == sum(n * n for n in range(10))
    assert sorted(set(lines(tmp_path / "log")), key=int) == [str(n) for n in range(10)]


def test_row_57_the_same_call_twice_is_two_tasks_and_both_are_found_again(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with Executor("twice", site=tmp_path / "site", max_workers=1) as named:
            calls = [named.submit(plain, {"a": 1}, tmp_path / "log") for _ in range(2)]
            assert [call.result(20) for call in calls] == [1, 1]
            ids.append([call.task_id for call in calls])
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 2
    assert lines(tmp_path / "log") == ["run"] * 2


def test_row_57_without_a_name_every_run_is_a_campaign_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        with Executor(site=tmp_path / "site", max_workers=1) as unnamed:
            assert unnamed.submit(plain, {"a": 1}, tmp_path / "log").result(20) == 1
    assert lines(tmp_path / "log") == ["run"] * 2
