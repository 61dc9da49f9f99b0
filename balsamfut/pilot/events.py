"""What the pilot's brain is told (events) and what it wants done (effects), beside the messages of the wire.

Pure data.  `core` makes the effects and reads the events, `agent` the other way round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from balsamfut.messages import Detail, Fault, Message
from balsamfut.model import Payload
from balsamfut.pilot.hand import FromWorker, Running
from balsamfut.pilot.slicenews import SliceEffect, SliceEvent

if TYPE_CHECKING:
    from balsamfut.pilot.queue import Attempt
    from balsamfut.placement import Placement

Key = tuple[int, int]
"""(task, attempt)."""

Environ = tuple[tuple[str, str], ...]


class Slot:
    """A place on the hardware, while an attempt (or a worker's hand) has it."""

    __slots__ = ("placement", "place", "env", "cores", "host")

    def __init__(self, placement: Placement, place: str, env: Environ, cores: tuple[int, ...] | None,
                 host: int = 0) -> None:
        self.placement = placement
        self.place = place      # for people
        self.env = env          # what a Python worker there must have been started with: tile masks and the like
        self.cores = cores      # to bind to; None: not bound
        self.host = host        # the agent that starts things there


# ---- events


class Heard(msgspec.Struct, array_like=True, tag=1):
    """What a worker said, in order."""

    worker: int
    messages: list[FromWorker]


class Stolen(msgspec.Struct, array_like=True, tag=2):
    """The answer to Steal: what the worker had not read.

    The worker may go on reading meanwhile, so what is left in its hand need not be the beginning of it; but all of that
    is read.  running: what it was doing after that, if it said so.
    """

    worker: int
    keys: list[Key]
    running: Key | None = None


class WorkerGone(msgspec.Struct, array_like=True, tag=3):
    """A worker is dead, nothing of it is left, and all that it said has been heard."""

    worker: int
    running: Running | None     # what its cell says
    lost: str                   # a sentence: how it died, where, its last output
    fault: Fault = Fault.WORKER   # or MEMORY, where the system says so
    detail: Detail | None = None


class Commanded(msgspec.Struct, array_like=True, tag=4):
    """A command has ended (or could not be started) and nothing of it is left."""

    key: Key
    returncode: int | None      # None: it was not started
    started: float
    fault: Fault                # as far as the command itself goes
    payload: Payload | None     # pickled ShellResult, or the exception
    error: str = ""
    detail: Detail | None = None
    blamed: str = ""            # the host that the launcher says is lost, as it calls it (launching.named)


class NodeGone(msgspec.Struct):
    """A host is lost, or to be used no more, and so are its workers and what it had started."""

    host: int
    reason: str


class Tick(msgspec.Struct, array_like=True, tag=5):
    """Time has passed.  seen: what the cells of the workers in Core.watched say."""

    seen: list[tuple[int, Running]] = []
    memory: list[tuple[Key, int]] = []     # bytes in use by attempts in Core.limited


class End(msgspec.Struct):
    """End this attempt for this reason (the second half of a Kill, a walltime and the like, after Steal)."""

    key: Key
    cause: Fault
    stolen: bool = False        # what is still in a hand has been read


class Halt(msgspec.Struct):
    """Tell attempts to end, with so many seconds for it at most (the second half of Stop and the like, after Steal)."""

    grace: float
    least: float = 0.0          # only those that ask for as many seconds or more
    over_by: float = 0.0        # not those whose walltime ends them by then
    force: bool = False         # their time is over: end them, hooks too


# ---- effects


class StartWorker(msgspec.Struct):
    worker: int
    pool: bytes
    env: Environ
    host: int = 0


class Hand(msgspec.Struct):
    """Put these into the worker's queue."""

    worker: int
    attempts: list[Attempt]
    cores: tuple[int, ...] | None


class Steal(msgspec.Struct):
    """Take back what the worker has not read; answered at once by Stolen."""

    worker: int


class GrantSlot(msgspec.Struct):
    """The task that waited in this worker has a slot again."""

    worker: int
    task: int


class EndWorker(msgspec.Struct):
    """signal 0: nothing to do any more, leave; else send this to all of it (9: and wait until nothing is left)."""

    worker: int
    signal: int = 0


class StartCommand(msgspec.Struct):
    attempt: Attempt


class SignalCommand(msgspec.Struct):
    """9: the session, the descendants, all that carry the mark."""

    key: Key
    signal: int


class Again(msgspec.Struct):
    """Handle this now that the effects before it are done."""

    event: Event


class Send(msgspec.Struct):
    message: Message


class Finish(msgspec.Struct):
    """Nothing is left to do: hand over what is not acknowledged and leave."""

    reason: str


class GiveBack(msgspec.Struct):
    """The second half of Return, after Steal."""

    request: int
    tasks: list[int]


Event = Heard | Stolen | WorkerGone | Commanded | NodeGone | Tick | End | Halt | GiveBack | SliceEvent | Message
Effect = (StartWorker | Hand | Steal | GrantSlot | EndWorker | StartCommand | SignalCommand | Again | Send | Finish
          | SliceEffect)
