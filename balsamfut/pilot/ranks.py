"""MPI-parallel Python functions, the agent's side: the file that tells the ranks what to call, and what they left.

The command that is launched is `python ... balsamfut.pilot.rank <call file> <result file>`.  Knows no MPI.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from balsamfut.model import Payload, Pool
from balsamfut.pilot.hand import Define, Order, Setup, Stage

if TYPE_CHECKING:
    from balsamfut.pilot.desk import Desk
    from balsamfut.pilot.queue import Attempt

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


def prepare(desk: Desk, attempt: Attempt, pool: Pool, workdir: str) -> Call:
    """Write the call's file into the workdir, where all nodes can read it.  Raises OSError."""
    item, group = attempt.item, attempt.group
    folder = Path(workdir) / f".balsamfut-{item.attempt}"
    folder.mkdir(parents=True, exist_ok=True)
    app = Define(group.cls, group.app.digest, group.app.kind, group.app.name, group.app.hooks, group.task_class.options)
    order = Order(item.task, item.attempt, item.cls, Stage.CALL, item.spec.args, item.values, item.spec.extra, None,
                  workdir, item.failures)
    setup = Setup(pool, str(desk.site), str(desk.objects), desk.inline, desk.clients, desk.host,
                  f"pilot-{desk.pilot}", "", "")
    call, result = folder / "call", folder / "result"
    for path in (result, folder / "result.failed"):
        path.unlink(missing_ok=True)
    letter = Letter(setup, app, desk.core.codes[group.app.digest], order)
    with open(os.open(call, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(msgspec.msgpack.encode(letter))
    home = str(Path(__file__).resolve().parents[2])
    return Call([pool.python, "-u", "-P", "-c", START.format(home=home), str(call), str(result)], str(result))
