"""One rank of a launch that is for one call of an MPI-parallel Python function.

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
from balsamfut.pilot import output
from balsamfut.pilot.mpicall import Caller
from balsamfut.pilot.ranks import Letter, Outcome

_RANKS: Final = ("PMI_RANK", "PMIX_RANK", "PALS_RANKID", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def rank() -> int:
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)


def main() -> None:
    call, result = sys.argv[1:3]
    letter = msgspec.msgpack.decode(Path(call).read_bytes(), type=Letter)
    output.settle(whole_lines=True)
    number, caller, attempt = rank(), Caller(letter.setup), letter.order.attempt
    try:
        payload = _call(letter, caller, number)
    except BaseException as exc:
        data = caller.pickled(exc, os.uname().nodename, number)
        _write(Path(f"{result}.failed"), Outcome(False, caller.stow(data), serialize.one_line(exc)), attempt)
        _end_all()
    if payload is not None:
        _write(Path(f"{result}.{number}" if number else result), Outcome(True, caller.stow(payload), ""), attempt)
    output.flush()


def _call(letter: Letter, caller: Caller, number: int) -> bytes | None:
    """The pickled value of the function, where this rank's is asked for."""
    path = letter.setup.pool.path
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
    code = caller.code(letter.code)
    context.enter(caller.task(letter.order, letter.app))
    return caller.call(letter.order, letter.app, code, number, _world)


def _world() -> object:
    """The communicator of the whole launch, for a function that wants it as an argument."""
    from mpi4py import MPI

    return MPI.COMM_WORLD


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
