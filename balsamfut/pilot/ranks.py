"""MPI-parallel Python functions, the agent's side: the file that tells the ranks what to call, and what they left.

The command that is launched is `python ... balsamfut.pilot.rank <call file> <result file>`.  Knows no MPI.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from balsamfut.errors import WorkerLost
from balsamfut.model import Payload
from balsamfut.pilot.hand import Define, Order, Setup, Stage
from balsamfut.pilot.mpicall import gathered
from balsamfut.raised import error_payload

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
    """What a rank writes whose value is asked for, or the first one that failed."""

    ok: bool
    payload: Payload
    error: str


class Call:
    """One call by all ranks.  gather: of how many the values are asked for; 0: of the first alone."""

    def __init__(self, argv: list[str], result: str, gather: int) -> None:
        self.argv = argv
        self._result = result
        self._gather = gather

    def outcome(self, returncode: int) -> tuple[bool, Payload, str] | None:
        """(went well, pickled value or exception, one line); None: the ranks left nothing, and did not end well.

        returncode: of the launcher.
        """
        outcome = _read(self._result + ".failed") or _read(self._result)
        if outcome is None and returncode == 0:
            text = "rank 0 ended without a value, though well: it, or a library, called os._exit before it returned"
            return False, error_payload(WorkerLost(text)), text
        if outcome is None:
            return None
        if outcome.ok and self._gather:
            outcomes = [outcome, *(_read(f"{self._result}.{rank}") for rank in range(1, self._gather))]
            missing = [rank for rank, each in enumerate(outcomes) if each is None]
            if missing:
                text = f"rank {missing[0]} of {self._gather} ended without a value"
                return False, error_payload(WorkerLost(text)), text
            return True, gathered([each.payload for each in outcomes if each is not None]), ""
        return outcome.ok, outcome.payload, outcome.error


def _read(path: str) -> Outcome | None:
    try:
        return msgspec.msgpack.decode(Path(path).read_bytes(), type=Outcome)
    except FileNotFoundError:
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
    for path in folder.glob("result*"):
        path.unlink(missing_ok=True)
    letter = Letter(setup, job.define, desk.codes[job.define.app], order)
    with open(os.open(call, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(msgspec.msgpack.encode(letter))
    home = str(Path(__file__).resolve().parents[2])
    return Call([pool.python, "-u", "-P", "-c", START.format(home=home), str(call), str(result)], str(result),
                job.resources.ranks if job.define.options.gather else 0)
