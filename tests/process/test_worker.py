"""What a task may do in a Python worker, and what it cannot do to others; through a real agent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playing import Interchange, playing

from balsamfut import context, serialize
from balsamfut.errors import (
    BadStdStream,
    DeserializationError,
    InitializerFailed,
    MissingInputs,
    MissingOutputs,
    SerializationError,
    WalltimeExceeded,
    WorkerLost,
)
from balsamfut.messages import Fault
from balsamfut.model import Extra


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interchange]:
    with playing(tmp_path_factory.mktemp("site")) as (interchange, _):
        yield interchange


def add(a: int, b: int = 1) -> int:
    return a + b


def pid() -> int:
    return os.getpid()


def ident(value: Any) -> Any:
    return value


def test_a_function_returns_its_value(play: Interchange) -> None:
    task = play.run(play.app(add), 2, b=3)
    assert play.value(task) == 5
    ended = play.end(task)
    assert ended.fault is Fault.NONE and ended.detail is None and ended.error == "" and ended.joins == []
    assert 0 < ended.started <= ended.ended


def test_slots_are_filled_with_the_values_of_other_tasks(play: Interchange) -> None:
    from balsamfut.futures import TaskFuture

    packed, futures = serialize.dumps_args(([TaskFuture()],), {})
    assert len(futures) == 1
    values = [serialize.dumps_result("inside")[0]]
    assert play.value(play.run(play.app(ident), packed=packed, values=list(values))) == ["inside"]


def test_large_arguments_and_results_travel_as_files(play: Interchange) -> None:
    data = os.urandom(3_000_000)
    task = play.run(play.app(ident), data)
    assert play.value(task) == data
    assert not isinstance(play.end(task).payload, bytes)


def test_an_order_that_is_larger_than_the_task_queue_takes_arrives(play: Interchange) -> None:
    from balsamfut.futures import TaskFuture

    packed, _ = serialize.dumps_args(([TaskFuture() for _ in range(40)],), {})
    values = [serialize.dumps_result(os.urandom(60_000))[0] for _ in range(40)]
    got = play.value(play.run(play.app(ident), packed=packed, values=list(values)))
    assert [len(part) for part in got] == [60_000] * 40
    assert not list((play.site / "log" / "pilot-1").glob("order-*"))


def boom() -> None:
    raise ValueError("no good")


def test_an_exception_arrives_as_itself_with_the_remote_traceback(play: Interchange) -> None:
    task = play.run(play.app(boom))
    error = play.error(task)
    assert type(error) is ValueError and error.args == ("no good",)
    assert "in boom" in str(error.__cause__) and "worker-" in str(error.__cause__)
    assert play.end(task).fault is Fault.TASK and play.end(task).error == "ValueError: no good"


def leave(how: str) -> None:
    if how == "exit":
        sys.exit(3)
    raise KeyboardInterrupt


@pytest.mark.parametrize(("how", "kind"), [("exit", SystemExit), ("interrupt", KeyboardInterrupt)])
def test_exits_and_interrupts_of_a_task_are_its_exceptions_and_the_worker_lives(
        play: Interchange, how: str, kind: type[BaseException]) -> None:
    before = play.value(play.run(play.app(pid)))
    task = play.run(play.app(leave), how)
    assert isinstance(play.error(task), kind) and play.end(task).fault is Fault.TASK
    workers = {play.value(play.run(play.app(pid))) for _ in range(6)}
    assert before in workers


def die(how: str) -> None:
    if how == "exit":
        os._exit(7)
    os.write(1, b"the last words")
    os.kill(os.getpid(), signal.SIGSEGV if how == "segfault" else signal.SIGKILL)


@pytest.mark.parametrize(("how", "said"), [("exit", "exit code 7"), ("segfault", "SIGSEGV"), ("kill", "SIGKILL")])
def test_a_worker_that_dies_takes_only_its_task_with_it(play: Interchange, how: str, said: str) -> None:
    short = play.app(add)
    play.value(play.run(short, 1))
    before = [play.item(short, number) for number in range(30)]
    after = [play.item(short, number) for number in range(30)]
    fatal = play.item(play.app(die), how)
    tasks = play.launch(*before, fatal, *after)
    for task in tasks:
        if task != fatal.task:
            play.value(task)
    error = play.error(fatal.task)
    assert isinstance(error, WorkerLost) and said in str(error) and play.end(fatal.task).fault is Fault.WORKER
    if how != "exit":
        assert "the last words" in str(error)
        detail = play.end(fatal.task).detail
        assert detail is not None
        start, end = detail.stdout_span
        assert Path(detail.stdout).read_bytes()[start:end] == b"the last words"


def catches() -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    return os.getpid()


def is_caught() -> tuple[int, bool]:
    return os.getpid(), signal.getsignal(signal.SIGTERM) != signal.SIG_DFL


def test_a_signal_that_a_task_catches_ends_the_next_one_as_ever(play: Interchange) -> None:
    for _ in range(6):
        caught = play.value(play.run(play.app(catches)))
        after = play.value(play.run(play.app(is_caught)))
        if after[0] == caught:
            break
    assert after == (caught, False)


def death_in_hand(number: int, fatal: int) -> int:
    if number == fatal:
        os._exit(1)
    return number


def test_only_the_running_task_of_a_hand_is_charged_for_the_death_of_its_worker(play: Interchange) -> None:
    cls = play.app(death_in_hand)
    for number in range(20):         # short, so hands become deep
        play.value(play.run(cls, number, -1))
    tasks = play.launch(*[play.item(cls, number, 50) for number in range(100)])
    faults = [play.end(task).fault for task in tasks]
    assert [number for number, fault in enumerate(faults) if fault] == [50] and faults[50] is Fault.WORKER


class Unwilling:
    def __init__(self, when: str) -> None:
        self.when = when

    def __reduce__(self) -> Any:
        if self.when == "pickled":
            raise RuntimeError("not me")
        return refuse, ()


def refuse() -> None:
    raise RuntimeError("cannot be rebuilt")


def unwilling() -> Unwilling:
    return Unwilling("pickled")


def test_a_result_that_does_not_pickle_fails_its_task_alone(play: Interchange) -> None:
    task = play.run(play.app(unwilling))
    assert isinstance(play.error(task), SerializationError) and "Unwilling" in str(play.error(task))
    assert play.value(play.run(play.app(add), 1)) == 2


def test_arguments_that_do_not_unpickle_fail_their_task_alone(play: Interchange) -> None:
    task = play.run(play.app(ident), Unwilling("unpickled"))
    assert isinstance(play.error(task), DeserializationError)
    assert "cannot be rebuilt" in str(play.error(task))


def forks() -> int:
    if os.fork() == 0:
        return -1            # the child comes back from the function too
    os.wait()
    return os.getpid()


def test_a_forked_child_that_returns_does_not_answer_for_the_task(play: Interchange) -> None:
    for _ in range(3):
        assert play.value(play.run(play.app(forks))) > 0
    assert play.value(play.run(play.app(add), 1)) == 2


def starts_a_thread() -> str:
    thread = threading.Thread(target=threading.Event().wait)
    thread.start()
    return threading.current_thread().name


def test_tasks_run_in_the_main_thread_and_may_leave_threads_that_never_end(play: Interchange) -> None:
    assert play.value(play.run(play.app(starts_a_thread))) == "MainThread"
    assert play.value(play.run(play.app(add), 1)) == 2


def about_me() -> dict[str, Any]:
    import multiprocessing

    me = context.current()
    assert me is not None
    return {"daemon": multiprocessing.current_process().daemon,
            "start": multiprocessing.get_start_method(allow_none=True),
            "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "session": os.getsid(0), "pid": os.getpid(), "task": me.task, "attempt": me.attempt, "name": me.name,
            "site": me.site, "tags": me.tags, "address": me.address, "path": list(sys.path), "cwd": os.getcwd()}


def test_a_worker_is_an_ordinary_process_that_knows_its_task(play: Interchange) -> None:
    task = play.run(play.app(about_me), extra=Extra(tags=(("k", "v"),), name="me"))
    me = play.value(task)
    assert (me["daemon"], me["start"], me["sigint"]) == (False, None, True)
    assert me["session"] == me["pid"] != os.getsid(0)
    assert (me["task"], me["attempt"], me["name"], me["tags"]) == (task, 1, "me", (("k", "v"),))
    assert me["site"] == str(play.site) and me["address"] == "ipc:///nobody"
    assert me["path"][:len(play.pool.path)] == list(play.pool.path) and me["cwd"] == play.pool.cwd
    assert not (play.site / "data").exists() or not list((play.site / "data").glob(f"*/{task}"))


def prints(text: str) -> None:
    print(text, end="")
    subprocess.run(["sh", "-c", f"printf %s 'sub {text}' >&2"], check=True)


def test_prints_are_captured_by_task_also_those_of_subprocesses(play: Interchange) -> None:
    cls = play.app(prints)
    for text in ("one", "two"):
        detail = play.end(play.run(cls, text)).detail
        assert detail is not None
        for path, (start, end), said in ((detail.stdout, detail.stdout_span, text),
                                         (detail.stderr, detail.stderr_span, f"sub {text}")):
            assert Path(path).read_text()[start:end] == said


def test_stdout_goes_to_a_file_of_the_tasks_own_where_it_asks_for_one(play: Interchange) -> None:
    cls = play.app(prints)
    out = play.site / "own.txt"
    out.write_text("before ")
    detail = play.end(play.run(cls, "x", extra=Extra(stdout=str(out)))).detail
    assert detail is not None and detail.stdout == str(out) and detail.stdout_span == (0, 0)
    assert out.read_text() == "before xsub x"
    play.end(play.run(cls, "y", extra=Extra(stdout=str(out), stdout_mode="w")))
    assert out.read_text() == "ysub y"
    error = play.error(play.run(cls, "z", extra=Extra(stdout="/nowhere/at/all")))
    assert isinstance(error, BadStdStream) and "/nowhere/at/all" in str(error)


def variable(name: str) -> str | None:
    return os.environ.get(name)


def test_the_environment_of_one_call_does_not_reach_the_next(play: Interchange) -> None:
    assert play.value(play.run(play.app(variable, environment=(("MINE", "1"),)), "MINE")) == "1"
    for _ in range(4):
        assert play.value(play.run(play.app(variable), "MINE")) is None


def makes(name: str) -> str:
    Path(name).write_text("made")
    return os.getcwd()


def test_files_of_a_python_task_lie_in_its_workdir(play: Interchange, tmp_path: Path) -> None:
    (tmp_path / "in.dat").write_text("input")
    extra = Extra(workdir="here/and/there", outputs=("out.dat",), inputs=((str(tmp_path / "in.dat"), "deck"),))
    where = Path(play.value(play.run(play.app(makes), "out.dat", extra=extra)))
    assert where == play.site / "data" / "here/and/there"
    assert (where / "deck").read_text() == "input" and (where / "deck").is_symlink()
    copied = play.run(play.app(makes), "out.dat", extra=msgspec.structs.replace(extra, link_inputs=False))
    play.value(copied)
    assert not (where / "deck").is_symlink()
    error = play.error(play.run(play.app(makes), "other", extra=msgspec.structs.replace(extra, workdir="empty")))
    assert isinstance(error, MissingOutputs) and error.paths == ("out.dat",)
    error = play.error(play.run(play.app(makes), "x", extra=Extra(inputs=(("no/such", ""),))))
    assert isinstance(error, MissingInputs) and error.paths == ("no/such",)


def test_cleanup_removes_what_matches_and_never_what_is_outside(play: Interchange) -> None:
    outside = play.site / "data" / "precious"
    outside.parent.mkdir(exist_ok=True)
    outside.write_text("keep")
    cls = play.app(makes, cleanup_files=("*.tmp", "../precious"))
    where = Path(play.value(play.run(cls, "a.tmp", extra=Extra(workdir="tidy"))))
    assert not (where / "a.tmp").exists() and outside.read_text() == "keep"


def naps(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def spins(path: str) -> None:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    Path(path).write_text(str(child.pid))
    while True:
        pass


def test_walltime_ends_the_worker_with_all_its_descendants(play: Interchange, tmp_path: Path) -> None:
    others = play.launch(*[play.item(play.app(naps), 0.4) for _ in range(3)])
    task = play.run(play.app(spins, walltime=2.0), str(tmp_path / "flag"))     # seconds enough to start a child
    assert isinstance(play.error(task), WalltimeExceeded) and play.end(task).fault is Fault.WALLTIME
    assert not Path("/proc", (tmp_path / "flag").read_text()).exists()
    assert [play.value(other) for other in others] == [0.4] * 3


def deep(levels: int) -> int:
    return 0 if levels == 0 else 1 + deep(levels - 1)


def test_runaway_recursion_is_an_exception(play: Interchange) -> None:
    assert isinstance(play.error(play.run(play.app(deep), 10**6)), RecursionError)
    assert play.value(play.run(play.app(deep), 500)) == 500


def fails_at_start(path: str) -> None:
    with open(path, "a") as file:
        file.write("tried\n")
    raise OSError("no licence")


def test_an_initializer_that_raises_breaks_its_pool_once_and_for_all(play: Interchange, tmp_path: Path) -> None:
    flag = tmp_path / "tries"
    packed = serialize.dumps_result((fails_at_start, (str(flag),)))[0]
    pool = msgspec.structs.replace(play.pool, initializer=packed, nonce="broken")
    cls = play.app(add, pool=pool)
    tasks = play.launch(*[play.item(cls, number) for number in range(10)])
    for task in tasks:
        assert play.end(task).fault is Fault.POOL
        error = play.error(task)
        assert isinstance(error, InitializerFailed) and "no licence" in str(error)
        assert isinstance(error.__cause__, OSError)
    later = play.run(cls, 1)
    assert play.end(later).fault is Fault.POOL
    assert 1 <= flag.read_text().count("tried") <= 2        # one for each core, none again
    assert play.value(play.run(play.app(add), 1)) == 2


SET: list[int] = []


def prepare_worker(value: int) -> None:
    SET.append(value)


def what_is_set() -> list[int]:
    return SET


def test_an_initializer_runs_before_the_first_task(play: Interchange) -> None:
    pool = msgspec.structs.replace(play.pool, initializer=serialize.dumps_result((prepare_worker, (5,)))[0])
    assert play.value(play.run(play.app(what_is_set, pool=pool))) == [5]


def test_an_interpreter_that_is_not_there_breaks_the_pool(play: Interchange) -> None:
    pool = msgspec.structs.replace(play.pool, python="/no/such/python")
    task = play.run(play.app(add, pool=pool), 1)
    assert play.end(task).fault is Fault.POOL and "/no/such/python" in play.end(task).error


def waits(path: str) -> str:
    me = context.current()
    assert me is not None
    me.block()
    while not Path(path).exists():
        time.sleep(0.005)
    me.unblock()
    return "went on"


def test_a_task_that_waits_gives_its_slot_to_others(play: Interchange, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    cls = play.app(waits)
    waiting = play.launch(*[play.item(cls, str(flag)) for _ in range(8)])      # four times the cores
    for task in waiting:
        play.started(task)
    assert play.value(play.run(play.app(add), 1)) == 2
    flag.touch()
    assert [play.value(task) for task in waiting] == ["went on"] * 8
