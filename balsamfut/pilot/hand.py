"""What passes between an agent and its workers: the messages, the shared cell, and the framing of the control channel.

Two socket pairs join them.  The task queue (SOCK_SEQPACKET, one Order per message) is read by the worker one task at a
time; the agent keeps the worker's end too, so that it can take back what is not read yet.  The control channel (a
stream of frames) carries definitions and grants to the worker, results to the agent.  The cell is shared memory in
which the worker says what it is running, so that the agent knows even when the worker is dead.  Nothing here opens,
starts or decides anything.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import msgspec

from balsamfut.messages import Detail
from balsamfut.model import AppKind, Extra, Hook, Options, Payload, Pool, Resources


class Stage(enum.IntEnum):
    """What a worker is to do for an attempt."""

    CALL = 1      # a Python function: hooks and all
    PREPARE = 2   # make a command: preprocess, the function or the template, inputs
    FINISH = 3    # the hooks after a command: postprocess, on_error, on_timeout, cleanup
    ABORTED = 4   # on_error or on_timeout of a Python task whose worker is gone


class Order(msgspec.Struct, array_like=True, tag=1, gc=False, omit_defaults=True):
    """One task for a worker.  The last fields have values only where they are needed."""

    task: int
    attempt: int
    cls: int
    stage: Stage
    args: Payload | None
    values: list[Payload]
    extra: Extra | None = None
    cores: tuple[int, ...] | None = None    # to bind the worker to; None: as it was started
    workdir: str = ""                       # absolute; "": none of its own
    failures: int = 0
    returncode: int | None = None           # FINISH: of the command
    failure: Payload | None = None          # FINISH, ABORTED: the pickled exception of the attempt
    timeout: bool = False                   # ... and it is a walltime that was exceeded, or the block's end
    stdout: str = ""                        # FINISH: paths
    stderr: str = ""
    resources: Resources | None = None      # of this attempt, where on_error may ask for others


class Spilled(msgspec.Struct, array_like=True, tag=2):
    """An Order that is too large for the task queue: it lies in this file, which the reader removes."""

    task: int
    attempt: int
    path: str


class Head(msgspec.Struct, array_like=True):
    """What Order and Spilled begin with: whose it is can be told without reading the rest."""

    tag: int
    task: int
    attempt: int


class Define(msgspec.Struct, array_like=True, tag=1):
    """A task class, before the first Order that names it."""

    cls: int
    app: bytes
    kind: AppKind
    name: str
    hooks: Hook
    options: Options


class Code(msgspec.Struct, array_like=True, tag=2):
    """A pickled serialize.AppCode, before the first Define that names it."""

    digest: bytes
    payload: Payload


class Setup(msgspec.Struct, array_like=True, tag=3):
    """Who the worker is; the first message on its control channel."""

    pool: Pool
    site: str
    objects: str
    inline: int
    address: str        # of the clients' door
    node: str
    name: str           # "pilot-3/worker-7", for people
    stdout: str         # the files that its descriptors 1 and 2 are
    stderr: str


class Grant(msgspec.Struct, array_like=True, tag=4):
    """The task that waited has a slot again."""

    task: int


ToWorker = Define | Code | Setup | Grant


class Ready(msgspec.Struct, array_like=True, tag=1):
    """The initializer is done and tasks can run."""


class Broken(msgspec.Struct, array_like=True, tag=2):
    """The initializer raised: no worker of this pool can run anything."""

    payload: bytes
    error: str


class Result(msgspec.Struct, array_like=True, tag=3, gc=False, omit_defaults=True):
    """How the task at the head of the worker's hand ended."""

    task: int
    attempt: int
    ok: bool
    started: float
    ended: float
    payload: Payload | None
    joins: tuple[int, ...] = ()
    error: str = ""
    again: Resources | None = None
    detail: Detail | None = None


class Prepared(msgspec.Struct, array_like=True, tag=4):
    """PREPARE went well: what is to be run."""

    task: int
    attempt: int
    command: str | list[str]
    took: float = 0.0       # seconds


class Blocked(msgspec.Struct, array_like=True, tag=5):
    """The task's code waits for another task: its slot is free."""

    task: int


class Unblocked(msgspec.Struct, array_like=True, tag=6):
    """... and wants one again; the worker waits for Grant."""

    task: int


FromWorker = Ready | Broken | Result | Prepared | Blocked | Unblocked

SPILL: Final = 96 * 1024
"""Bytes: larger Orders go through a file.  A message must fit into the socket's buffer whole."""

_LENGTH: Final = struct.Struct("<I")


def frame(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Cuts a stream back into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are complete now."""
        if self._rest:
            data = self._rest + data
        frames: list[bytes] = []
        at, size = 0, len(data)
        while size - at >= 4:
            (length,) = _LENGTH.unpack_from(data, at)
            if size - at - 4 < length:
                break
            frames.append(data[at + 4:at + 4 + length])
            at += 4 + length
        self._rest = data[at:]
        return frames


CELL: Final = struct.Struct("<dqqqq")
"""started (Unix time), offset of stdout, offset of stderr, attempt, task (last: it says that the rest is true)."""

_TASK: Final = struct.Struct("<q")
_TASK_AT: Final = CELL.size - _TASK.size


class Running(msgspec.Struct, frozen=True, array_like=True):
    """What a cell says."""

    task: int
    attempt: int
    started: float
    stdout: int       # sizes of the worker's two output files as the task began
    stderr: int


def clear(cell: memoryview) -> None:
    """The worker runs nothing."""
    _TASK.pack_into(cell, _TASK_AT, 0)


def read(cell: memoryview) -> Running | None:
    """What the worker is running; None between tasks (also where it changes just now)."""
    started, stdout, stderr, attempt, task = CELL.unpack_from(cell, 0)
    if task == 0 or _TASK.unpack_from(cell, _TASK_AT)[0] != task:
        return None
    return Running(task, attempt, started, stdout, stderr)
