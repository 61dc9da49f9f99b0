"""MPI Python functions in pool mode, with a real agent, a real launcher and real MPI."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playing import Interchange, playing
from test_many_nodes import NAMES, Block, block  # noqa: F401 (a fixture)

from balsamfut import serialize
from balsamfut.errors import WorkerLost
from balsamfut.messages import Exited, Fault
from balsamfut.model import TILE, Extra, Pool, Resources

CORES = 4


def pooled(ranks: int, **more: Any) -> Resources:
    return Resources(ranks_per_node=ranks, mpi=True, pooled=True, **more)


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Interchange]:
    with playing(tmp_path, cores=CORES) as (interchange, _):
        yield interchange


def launches(site: Path) -> int:
    return len(list(site.glob("log/pilot-1/slice-*")))


# ---- what calls do


def who(number: int, comm: Any = None) -> tuple[int, int, int, list[int]]:
    from mpi4py import MPI

    assert MPI.COMM_WORLD is comm
    return number, comm.size, comm.allreduce(number + comm.rank), comm.gather(os.getpid())


def from_the_world(number: int) -> tuple[int, int]:
    """As it is written for a launch of its own."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.size, MPI.COMM_WORLD.allreduce(number)


def shares(number: int, comm: Any) -> tuple[int, int]:
    return comm.rank, number * comm.size


def raises_on(rank: int, others_wait: bool, comm: Any = None) -> None:
    if comm.rank == rank or not others_wait:
        raise ArithmeticError(f"rank {comm.rank} of {comm.size}")
    comm.barrier()


def until(path: str, how: str, comm: Any = None) -> int:
    """Rank 1 dies once the file is there; the others wait for it.  Or it is only waited for."""
    while not os.path.exists(path):
        time.sleep(0.01)
    if how and comm.rank == comm.size - 1:
        if how == "exit":
            os._exit(0)
        if how == "abort":
            comm.Abort(3)
        os.kill(os.getpid(), getattr(signal, how))
    if how:
        comm.barrier()
    return os.getpid()


def says(comm: Any = None) -> int:
    comm.barrier()
    os.write(1, f"rank {comm.rank} says so\n".encode())
    return comm.size


def surroundings(comm: Any = None) -> tuple[list[str], str, str]:
    masks = comm.allgather(os.environ["ZE_AFFINITY_MASK"])
    return masks, os.environ["BALSAMFUT_TASK_ID"], os.environ.get("COLOUR", "")


def remembers(value: str) -> None:
    if not value:
        raise LookupError("nothing to remember")
    os.environ["REMEMBERED"] = value


def remembered(comm: Any = None) -> Any:
    return comm.allgather(os.environ["REMEMBERED"])


def where(path: str, comm: Any = None) -> tuple[list[str], list[str], int]:
    """Once the file is there: the ranks' hosts and tiles, and the process of the last."""
    Path(f"{path}.{os.environ['BALSAMFUT_TASK_ID']}").write_text(f"{os.uname().nodename} {os.getpid()}")
    while not os.path.exists(path):
        time.sleep(0.01)
    return comm.allgather(os.uname().nodename), comm.allgather(os.environ["ZE_AFFINITY_MASK"]), os.getpid()


# ---- tests


def test_calls_of_all_widths_share_one_launch_and_each_has_a_communicator(play: Interchange) -> None:
    classes = [play.app(who, resources=pooled(width)) for width in (1, 2, 3, 4)]
    tasks = play.launch(*(play.item(classes[number % 4], number) for number in range(24)))
    pids: set[int] = set()
    for number, task in enumerate(tasks):
        width = number % 4 + 1
        *values, mine = play.value(task)
        assert values == [number, width, number * width + width * (width - 1) // 2] and len(mine) == width
        pids.update(mine)
    assert len(pids) == CORES and launches(play.site) == 1


def test_one_function_runs_in_both_modes(play: Interchange) -> None:
    both = [pooled(2), Resources(ranks_per_node=2)]
    assert [play.value(play.run(play.app(from_the_world, resources=each), 5)) for each in both] == [(2, 10)] * 2
    shared = [play.app(shares, resources=each, gather=True) for each in both]
    assert [play.value(play.run(cls, 7)) for cls in shared] == [[(0, 14), (1, 14)]] * 2
    first = [play.app(shares, resources=each) for each in both]
    assert [play.value(play.run(cls, 7)) for cls in first] == [(0, 14)] * 2
    assert play.value(play.run(play.app(shares, resources=pooled(1), gather=True), 7)) == [(0, 7)]
    assert launches(play.site) <= 2


def test_an_exception_arrives_as_itself_and_the_slice_lives_on_if_all_ranks_come_back(play: Interchange) -> None:
    fails, works = (play.app(function, resources=pooled(2)) for function in (raises_on, who))
    error = play.error(play.run(fails, 0, False))
    assert isinstance(error, ArithmeticError) and str(error).endswith("of 2")
    assert f"{os.uname().nodename} in pilot-1/slice-1, rank" in str(error.__cause__)
    play.value(play.run(works, 1))
    assert launches(play.site) == 1


def test_an_exception_on_one_rank_ends_the_call_though_another_waits_in_mpi(play: Interchange, tmp_path: Path) -> None:
    fails, waits = (play.app(function, resources=pooled(2)) for function in (raises_on, until))
    other = play.run(waits, str(tmp_path / "flag"), "")
    play.started(other)
    error = play.error(play.run(fails, 1, True))
    assert isinstance(error, ArithmeticError) and str(error) == "rank 1 of 2"
    assert "rank 1" in str(error.__cause__)
    (tmp_path / "flag").touch()
    play.value(other)                     # it began anew, on ranks of another slice
    assert launches(play.site) == 2


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "exit", "abort"])
def test_a_dead_rank_costs_its_call_and_the_calls_beside_it_run_again(play: Interchange, tmp_path: Path,
                                                                     how: str) -> None:
    cls = play.app(until, resources=pooled(2))
    dies = play.run(cls, str(tmp_path / "die"), how)
    lives = play.run(cls, str(tmp_path / "live"), "")
    play.started(dies)
    play.started(lives)
    (tmp_path / "die").touch()
    error = play.error(dies)
    assert isinstance(error, WorkerLost) and play.exits[dies].fault is Fault.WORKER
    assert f"task {dies}: rank 1 of slice 1 on {os.uname().nodename}" in str(error)
    (tmp_path / "live").touch()
    play.value(lives)
    assert launches(play.site) == 2


def test_a_dead_rank_ends_its_slice_where_the_launcher_lets_the_others_live(tmp_path: Path) -> None:
    real = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    lenient = tmp_path / "bin" / "mpiexec"
    lenient.write_text(f'#!/bin/sh\ncase $1 in -n) set -- -disable-auto-cleanup "$@";; esac\nexec {real} "$@"\n')
    lenient.chmod(0o755)
    with playing(tmp_path, cores=CORES) as (play, _):
        pool, path = play.pool, f"{lenient.parent}:{os.environ['PATH']}"
        environ = tuple(sorted({**dict(pool.environ), "PATH": path}.items()))
        cls = play.app(until, resources=pooled(2), pool=Pool(pool.python, pool.path, pool.cwd, environ))
        dies, lives = play.run(cls, str(tmp_path / "die"), "SIGKILL"), play.run(cls, str(tmp_path / "live"), "")
        play.started(dies)
        play.started(lives)
        (tmp_path / "die").touch()
        assert play.end(dies).fault is Fault.WORKER
        (tmp_path / "live").touch()
        play.value(lives)


def test_a_launcher_that_is_killed_is_the_fault_of_no_call(play: Interchange, tmp_path: Path) -> None:
    task = play.run(play.app(until, resources=pooled(2)), str(tmp_path / "flag"), "")
    play.started(task)
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"mpiexec") and any(str(tmp_path).encode() in word for word in words):
            os.kill(int(entry), signal.SIGKILL)
    play.until(lambda: launches(play.site) == 2)
    (tmp_path / "flag").touch()
    play.value(task)


def test_a_call_over_its_walltime_is_ended_and_the_calls_beside_it_run_again(play: Interchange, tmp_path: Path) -> None:
    patient = play.app(until, resources=pooled(2))
    other = play.run(patient, str(tmp_path / "flag"), "")
    play.started(other)
    hangs = play.run(play.app(until, resources=pooled(2), walltime=0.5, name="hangs"), str(tmp_path / "never"), "")
    assert play.end(hangs).fault is Fault.WALLTIME and "walltime of 0.5 s" in play.end(hangs).error
    assert other not in play.exits
    (tmp_path / "flag").touch()
    play.value(other)


def test_what_all_ranks_print_is_found_by_task(play: Interchange, tmp_path: Path) -> None:
    cls = play.app(says, resources=pooled(3))
    for _ in range(2):
        task = play.run(cls)
        assert play.value(task) == 3
        detail = play.exits[task].detail
        assert detail is not None
        begin, end = detail.stdout_span
        assert Path(detail.stdout).read_text()[begin:end] == "".join(f"rank {rank} says so\n" for rank in range(3))
    own = tmp_path / "own.txt"
    own.write_text("of an earlier time\n")
    task = play.launch(play.item(cls, extra=Extra(stdout=str(own), stdout_mode="w")))[0]
    assert play.value(task) == 3
    assert sorted(own.read_text().splitlines()) == [f"rank {rank} says so" for rank in range(3)]


def test_ranks_have_tiles_and_the_environment_that_the_call_asks_for(tmp_path: Path) -> None:
    with playing(tmp_path, platform="aurora") as (play, _):
        resources = pooled(2, gpu_shares=TILE)
        plain = play.app(surroundings, resources=resources)
        blue = play.app(surroundings, resources=resources, environment=(("COLOUR", "blue"),))
        first, second = play.launch(play.item(plain), play.item(blue))
        masks, task, colour = play.value(first)
        others, _, other = play.value(second)
        assert (task, colour, other) == (str(first), "", "blue")
        assert len({*masks, *others}) == 4
        assert launches(play.site) == 2


def test_where_mpi4py_cannot_be_imported_that_is_what_the_calls_say(play: Interchange, tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no MPI for you')")
    pool = play.pool
    hidden = Pool(pool.python, (str(tmp_path), *pool.path), pool.cwd, pool.environ)
    error = play.error(play.run(play.app(who, resources=pooled(2), pool=hidden), 1))
    assert isinstance(error, ImportError) and str(error) == "no MPI for you"
    assert play.value(play.run(play.app(who, resources=pooled(2)), 1))[0] == 1


def test_an_initializer_runs_on_each_rank_and_one_that_raises_breaks_the_pool(play: Interchange) -> None:
    pool = play.pool
    good, bad = (Pool(pool.python, pool.path, pool.cwd, pool.environ, serialize.dumps_result((remembers, (value,)))[0])
                 for value in ("red", ""))
    assert play.value(play.run(play.app(remembered, resources=pooled(2), pool=good))) == ["red", "red"]
    ended = play.end(play.run(play.app(remembered, resources=pooled(2), pool=bad)))
    assert ended.fault is Fault.POOL and "nothing to remember" in ended.error


def test_two_hundred_calls_survive_two_ranks_that_are_killed_at_random(play: Interchange) -> None:
    rng = random.Random(5)
    classes = [play.app(who, resources=pooled(width)) for width in (1, 2, 3, 4)]
    widths = {number: rng.randrange(1, 5) for number in range(1, 201)}
    items = {number: play.item(classes[width - 1], number, task=number) for number, width in widths.items()}
    play.launch(*items.values())
    for enough in (50, 120):
        play.until(lambda enough=enough: len(play.exits) >= enough)
        latest = next(each for each in reversed(play.reports) if isinstance(each, Exited) and each.fault is Fault.NONE)
        os.kill(rng.choice(play.loads(latest.payload)[3]), signal.SIGKILL)
    play.until(lambda: len(play.exits) == 200, seconds=60)
    charged = {task for task, ended in play.exits.items() if ended.fault is not Fault.NONE}
    assert len(charged) <= 2 and {play.exits[task].fault for task in charged} <= {Fault.WORKER}
    assert launches(play.site) == 3
    for number in widths.keys() - charged:
        width = widths[number]
        assert play.value(number)[:3] == (number, width, number * width + width * (width - 1) // 2)


def test_slices_run_on_all_hosts_of_a_pilot_and_die_there_alone(block: Block,  # noqa: F811
                                                                     tmp_path: Path) -> None:
    play, flag = block.play, tmp_path / "flag"
    cls = play.app(where, resources=pooled(2, gpu_shares=6 * TILE))       # one such call fills a node
    tasks = play.launch(*(play.item(cls, str(flag)) for _ in range(4)))
    places = {}
    for task in tasks:
        said = Path(f"{flag}.{task}")
        play.until(lambda said=said: said.exists() and " " in said.read_text(), 60)
        places[task] = said.read_text().split()[0]
    assert sorted(places.values()) == NAMES
    dead, lost, *others = (next(task for task in tasks if places[task] == name) for name in ("n3", "n4", "n1", "n2"))
    rank = next(pid for pid, line in block.hosts.processes("n3").items() if "poolrank" in line and "mpiexec" not in line
                and "/sh" not in line.split()[0])
    os.kill(rank, signal.SIGKILL)
    assert "on n3" in str(play.error(dead)) and play.exits[dead].fault is Fault.WORKER
    os.kill(block.agent("n4"), signal.SIGKILL)
    block.lost.append("n4")
    assert play.end(lost).fault is Fault.NODE
    flag.touch()
    for task in others:
        names, masks, _ = play.value(task)
        assert names == [places[task]] * 2 and len(set(masks)) == 2
