"""MPI-parallel Python functions, the agent's side: the file that tells the ranks what to call, and what they left.

The command that is launched is `python ... balsamfut.pilot.rank <call file> <result file>`.  Knows no MPI.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from balsamfut.model import Payload
from balsamfut.pilot.hand import Define, Order, Setup, Stage

if TYPE_CHECKING:
    from balsamfut.pilot.desk import Desk
    from balsamfut.pilot.orders import Job

START: Final = "import sys; sys.path.append({home!r}); from balsamfut.pilot.rank import main; main()"


class Letter(msgspec.Struct, array_like=True):
    """What each rank reads."""

    setup: Setup
    app: Define
    code: Payload
    order: Order


class Outcome(msgspec.Struct, array_like=True):
    """What rank 0, or the first rank that failed, writes."""

    ok: bool
    payload: Payload
    error: str


class Call:
    """One call by all ranks."""

    def __init__(self, argv: list[str], result: str) -> None:
        self.argv = argv
        self._result = result

    def outcome(self) -> tuple[bool, Payload, str] | None:
        """(went well, pickled value or exception, one line); None: the ranks left nothing."""
        for path in (self._result + ".failed", self._result):
            try:
                data = Path(path).read_bytes()
            except FileNotFoundError:
                continue
            outcome = msgspec.msgpack.decode(data, type=Outcome)
            return outcome.ok, outcome.payload, outcome.error
        return None


def prepare(desk: Desk, job: Job, workdir: str) -> Call:
    """Write the call's file into the workdir, where all nodes can read it.  Raises OSError."""
    folder = Path(workdir) / f".balsamfut-{job.attempt}"
    folder.mkdir(parents=True, exist_ok=True)
    order = Order(job.task, job.attempt, job.define.cls, Stage.CALL, job.args, job.values, job.extra, None,
                  workdir, job.failures)
    pool = desk.pools[job.pool]
    setup = Setup(pool, str(desk.site), str(desk.objects), desk.inline, desk.clients, desk.host,
                  f"pilot-{desk.pilot}", "", "")
    call, result = folder / "call", folder / "result"
    for path in (result, folder / "result.failed"):
        path.unlink(missing_ok=True)
    letter = Letter(setup, job.define, desk.codes[job.define.app], order)
    with open(os.open(call, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(msgspec.msgpack.encode(letter))
    home = str(Path(__file__).resolve().parents[2])
    return Call([pool.python, "-u", "-P", "-c", START.format(home=home), str(call), str(result)], str(result))
