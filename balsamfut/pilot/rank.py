"""One rank of an MPI-parallel Python function: every rank calls it, rank 0's value is the task's.

An exception on any rank ends all of them and is the task's exception.  Started by the MPI launcher with the paths of
the call file and of the result file (balsamfut.pilot.ranks).  It knows no agent.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from balsamfut import context, serialize
from balsamfut.model import Blob
from balsamfut.pilot import output
from balsamfut.pilot.ranks import Letter, Outcome
from balsamfut.pilot.stage import Work

_RANKS: Final = ("PMI_RANK", "PMIX_RANK", "PALS_RANKID", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def rank() -> int:
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)


def main() -> None:
    call, result = sys.argv[1:3]
    letter = msgspec.msgpack.decode(Path(call).read_bytes(), type=Letter)
    output.settle()
    number = rank()
    setup, order = letter.setup, letter.order
    objects = Path(setup.objects)
    try:
        payload = _call(letter, objects)
    except BaseException as exc:
        worker = f"{setup.name}, rank {number}"
        data = serialize.dumps_exception(exc, host=os.uname().nodename, worker=worker)
        failed = Outcome(False, serialize.stow(data, objects, setup.inline), serialize.one_line(exc))
        _write(Path(f"{result}.failed"), failed, order.attempt)
        _end_all()
    if number == 0:
        _write(Path(result), Outcome(True, serialize.stow(payload, objects, setup.inline), ""), order.attempt)
    output.flush()


def _call(letter: Letter, objects: Path) -> bytes:
    """The pickled value of the function."""
    setup, order, app = letter.setup, letter.order, letter.app

    def read(blob: Blob) -> bytes:
        return serialize.fetch(blob, objects)

    def raw(payload: object) -> bytes:
        data = read(payload) if isinstance(payload, Blob) else payload
        assert isinstance(data, bytes)
        return data

    sys.path[:] = [*setup.pool.path, *(entry for entry in sys.path if entry not in setup.pool.path)]
    code = serialize.loads_code(raw(letter.code))
    args, kwargs = ((), {}) if order.args is None else serialize.loads_args(
        raw(order.args), [serialize.loads(value, read) for value in order.values])
    extra = order.extra
    context.enter(context.TaskContext(
        order.task, order.attempt, address=setup.address, site=setup.site, workdir=order.workdir, name=app.name,
        tags=extra.tags if extra is not None else (), pool=setup.pool))
    work = Work(order, app, code, args, kwargs, order.workdir, setup.pool.cwd)
    value = code.func(*args, **kwargs) if rank() else work.call()  # type: ignore[misc]
    payload, futures = serialize.dumps_result(value) if rank() == 0 else (b"", [])
    if futures:
        raise TypeError(f"{app.name} runs on several ranks and returned futures; return their values")
    return payload


def _write(path: Path, outcome: Outcome, attempt: int) -> None:
    """Whole or not at all; of several ranks the first stays."""
    temporary = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.{attempt}")
    temporary.write_bytes(msgspec.msgpack.encode(outcome))
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    temporary.unlink()


def _end_all() -> NoReturn:
    """End the other ranks with this one: they may be waiting for it for ever."""
    output.flush()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(1)
    os._exit(1)
