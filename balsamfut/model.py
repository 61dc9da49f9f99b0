"""What a task is: pure data, and the one table of a task's life.

Every process knows these records, none of them rewrites another's.  They are msgspec structs, so the same definition is
the wire format, the type that mypy checks and the value that tests compare.  This module knows neither sockets nor
databases, and does no input or output but for restored().
"""

from __future__ import annotations

import enum
import os
import threading
from pathlib import Path
from typing import Annotated, Final

import msgspec

from balsamfut.outlog import Span

TILE: Final = 10_000
"""Shares of one tile: resources are integers, so `gpus_per_rank=0.5` is 5000."""


class Message(msgspec.Struct, frozen=True, array_like=True):
    """The base of everything that is sent."""


class TaskState(enum.IntEnum):
    """Where a task is in its life; MOVES says what may follow."""

    WAITING = 1          # for other tasks, or for futures that it returned
    READY = 2            # for a place
    ASSIGNED = 3         # a pilot has it
    RUNNING = 4
    DONE = 5
    FAILED = 6
    UPSTREAM_FAILED = 7  # something that it needed did not succeed
    CANCELLED = 8        # cancelled before it started, or killed
    HELD = 9             # by a person, a breaker, or because what it waits for went away with a script


S = TaskState
OPEN: Final = frozenset({S.WAITING, S.READY, S.ASSIGNED, S.RUNNING, S.HELD})
CLOSED: Final = frozenset({S.DONE, S.FAILED, S.UPSTREAM_FAILED, S.CANCELLED})

MOVES: Final[dict[TaskState, frozenset[TaskState]]] = {
    # from: to                                                     why, where it is not plain
    S.WAITING: frozenset({S.READY, S.UPSTREAM_FAILED, S.CANCELLED, S.HELD,
                          S.DONE,       # the futures that it returned are done; a promise was kept
                          S.FAILED}),   # ... or are not
    S.READY: frozenset({S.ASSIGNED, S.CANCELLED, S.HELD,
                        S.DONE,         # an earlier attempt, thought lost, succeeded after all
                        S.FAILED}),     # its worker pool is broken
    S.ASSIGNED: frozenset({S.RUNNING, S.DONE, S.FAILED, S.CANCELLED, S.HELD,
                           S.READY,     # handed back, or its pilot is lost
                           S.WAITING}),  # it returned futures
    S.RUNNING: frozenset({S.DONE, S.FAILED, S.CANCELLED, S.HELD, S.READY, S.WAITING}),
    S.DONE: frozenset(),
    S.FAILED: frozenset({S.READY, S.WAITING}),             # tried again by a re-run or `resume --retry-failed`
    S.UPSTREAM_FAILED: frozenset({S.READY, S.WAITING}),    # ... and so are those that it took down
    S.CANCELLED: frozenset({S.READY, S.WAITING}),          # called again
    S.HELD: frozenset({S.READY, S.WAITING, S.CANCELLED, S.UPSTREAM_FAILED, S.FAILED}),
}
del S


Stored = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""An integer that a database has room for.  A message with another one is not in the protocol."""
Counted = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
"""As many as there have to be of something for a request to mean anything."""
Measured = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""An amount."""


class Blob(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A payload that is a file: `<objects>/<digest[:2]>/<digest>`, written before anybody is told its name."""

    digest: str  # sha256, hex
    size: int    # bytes


class Joined(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The value of a task that returned futures: a pickle with slots, and what goes into them, in slot order."""

    template: bytes
    parts: list[bytes | Blob | Joined]


Payload = bytes | Blob | Joined
"""Opaque user data.  Only clients and workers look inside (balsamfut.serialize); the interchange never does."""


class Resources(msgspec.Struct, frozen=True, array_like=True):
    """What one attempt takes.  Balsam's words; everything is per node, rank or core as its name says."""

    num_nodes: Counted = 1
    ranks_per_node: Counted = 1
    threads_per_rank: Counted = 1
    threads_per_core: Counted = 1
    gpu_shares: Measured = 0          # gpus_per_rank x TILE; below TILE: a share of one tile
    memory: Measured = 0         # bytes per node; 0: not said
    node_packing_count: Measured = 0  # k: takes 1/k of each node against all tasks; 0: whatever fits
    mpi: bool = False            # start through the MPI launcher even when it is one rank
    launch_params: tuple[tuple[str, str], ...] = ()
    pooled: bool = False         # a Python function on ranks that live on for the next call (mpi="pool"; then mpi, too)

    @property
    def ranks(self) -> int:
        return self.num_nodes * self.ranks_per_node

    @property
    def cores_per_rank(self) -> int:
        return max(1, -(-self.threads_per_rank // self.threads_per_core))

    @property
    def serial(self) -> bool:
        """Started by the agent itself, without the MPI launcher."""
        return self.ranks == 1 and not self.mpi


class Fault(enum.IntEnum):
    """Whose fault it is that an attempt ended."""

    NONE = 0       # it succeeded
    TASK = 1       # exception, or a code that is not 0                charged
    WORKER = 2     # the process that ran it died                      charged
    WALLTIME = 3   # charged
    MEMORY = 4     # charged
    KILLED = 5     # by order of a user: it is not tried again
    RETURNED = 6   # never started; handed back                        not charged
    LAUNCHER = 7   # the launcher, or this node, could not start it    not charged
    NODE = 8       # the node or the agent went away                   not charged
    POOL = 9       # the worker pool's initializer failed: the whole pool is broken
    PILOT = 10     # the pilot stopped while it ran                    not charged
    BLOCK = 11     # its block ended while it ran; it goes on in the next one    not charged


class AppKind(enum.IntEnum):
    PYTHON = 1    # a Python function; its value is the result
    TEMPLATE = 2  # a Jinja template that makes a bash command
    COMMAND = 3   # a function that returns a command: str (bash) or list (argv)
    PROMISE = 4   # no task of ours: a future of somebody else's that a task waits for; its client tells how it ended


class Hook(enum.IntFlag):
    PREPROCESS = 1
    POSTPROCESS = 2
    ON_ERROR = 4
    ON_TIMEOUT = 8


class AppSpec(msgspec.Struct, frozen=True, array_like=True):
    """A decorated function as it was when an Executor first saw it."""

    name: str                # module-free name, for people
    kind: AppKind
    digest: bytes            # of the pickled code (serialize.AppCode): function, template and hooks; 16 bytes
    hooks: Hook = Hook(0)
    module: str = ""
    doc: str = ""            # first line


class Pool(msgspec.Struct, frozen=True, array_like=True):
    """The surroundings of a Python worker.  Tasks share workers only where all of this is equal."""

    python: str                                  # sys.executable of the client
    path: tuple[str, ...]                        # its sys.path
    cwd: str
    environ: tuple[tuple[str, str], ...] = ()    # what the task's processes get; sorted
    initializer: Payload | None = None           # pickled (initializer, initargs)
    nonce: str = ""                              # tells apart what must not be shared though all else is equal


class Options(msgspec.Struct, frozen=True, array_like=True):
    """What an app or a call asks for beside resources; everything here is equal for many calls."""

    walltime: float = 0.0                           # seconds of one attempt; 0: no limit
    retries: int = 0                                # further attempts after the task's own failures
    priority: int = 0                               # higher first
    environment: tuple[tuple[str, str], ...] = ()
    shell_preamble: str = ""                        # bash lines before the command, in the same shell
    cleanup_files: tuple[str, ...] = ()             # globs in the workdir, removed when the task is done
    stop_signal: int = 15                           # asked to stop with this ...
    stop_grace: float = 5.0                         # ... and SIGKILL so many seconds later
    cache: bool = False
    gather: bool = False                            # of an MPI-parallel function: the values of all ranks, as a list
    checkpoint: bool = False                        # it goes on where it was stopped: no block is too short for it


class TaskClass(msgspec.Struct, frozen=True, array_like=True):
    """What calls have in common: queues, matching and prefill work on classes, never on tasks."""

    app: bytes            # AppSpec.digest
    pool: bytes           # digest of the Pool, 16 bytes
    resources: Resources
    options: Options


class Extra(msgspec.Struct, frozen=True, array_like=True):
    """What few calls need.  Paths are as the user gave them; relative ones lie under the workdir."""

    name: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    workdir: str = ""                       # relative ones lie under the site's data/; "": data/<shard>/<task>
    command: str | None = None              # rendered by the client: a template without futures in its arguments
    stdout: str = ""                        # "": job.out (shell), the worker's log (Python)
    stdout_mode: str = "a"                  # a: append, w: truncate
    stderr: str = ""                        # "": with stdout
    stderr_mode: str = "a"
    inputs: tuple[tuple[str, str], ...] = ()    # (path, name in the workdir); name "": only checked
    link_inputs: bool = True                    # else copied
    outputs: tuple[str, ...] = ()


class TaskSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One call, as its client made it; never rewritten.

    needs: the futures found while pickling, in slot order.  > 0: a task id; < 0: minus the number of a call of
    this session that is not acknowledged yet.
    """

    n: Stored                       # the session's call number, from 1
    cls: int                        # the session's number of the TaskClass
    args: Payload | None = None     # pickled (args, kwargs); None: nothing to pass
    needs: tuple[Stored, ...] = ()
    key: bytes | None = None        # Merkle key, 16 bytes; None: not resumable
    occurrence: Stored = 0          # the how-many-th call with this key (from 0), in its campaign session or parent
    extra: Extra | None = None


class ShellResult:
    """How a command ended: its exit code, and where its output is.  Compares by value, cannot be changed.

    Attributes: returncode (int); stdout, stderr, workdir (absolute pathlib.Path; stderr is stdout where it was merged).
    logged: where its output is until somebody asks for these; None: it is there, or there is none.
    """

    __slots__ = ("returncode", "_paths", "_logged")
    returncode: int
    _paths: tuple[str, str, str]
    _logged: Span | None

    def __init__(self, returncode: int, stdout: str, stderr: str, workdir: str,
                 logged: tuple[str, int, int] | None = None) -> None:
        object.__setattr__(self, "returncode", returncode)
        object.__setattr__(self, "_paths", (os.path.join(workdir, stdout), os.path.join(workdir, stderr), workdir))
        object.__setattr__(self, "_logged", None if logged is None else Span(*logged))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a ShellResult cannot be changed (attribute {name})")

    @property
    def stdout(self) -> Path:
        return self.workdir / self._paths[0]

    @property
    def stderr(self) -> Path:
        return self.workdir / self._paths[1]

    @property
    def workdir(self) -> Path:
        return restored(self._paths[2], self._logged)

    def __reduce__(self) -> tuple[type[ShellResult], tuple[object, ...]]:
        stdout, stderr, workdir = self._paths
        inside = os.path.join(workdir, "")        # a million of these are in a database
        stdout, stderr = stdout.removeprefix(inside), stderr.removeprefix(inside)
        logged = () if self._logged is None else (tuple(self._logged),)
        return ShellResult, (self.returncode, stdout, stderr, workdir, *logged)

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, ShellResult)
                and (self.returncode, self._paths) == (other.returncode, other._paths))

    def __hash__(self) -> int:
        return hash((self.returncode, self._paths))

    def __repr__(self) -> str:
        stdout, stderr, workdir = self._paths
        return f"ShellResult(returncode={self.returncode}, {stdout=}, {stderr=}, {workdir=})"


def restored(workdir: str, logged: Span | None = None) -> Path:
    """The workdir of a command that is over.  One that left no more than a little output has left no directory
    (balsamfut.pilot.workdirs), so it is made for who asks, with the job.out that was logged; where that cannot be, it
    is a path to nothing.  Several may ask at once: it is there for each of them, and whole, when this returns."""
    shard, name = os.path.split(workdir)
    if os.path.exists(workdir) or not os.path.isdir(os.path.dirname(shard)):
        return Path(workdir)             # it is there; or the site is not seen from here
    part = os.path.join(shard, f".{name}.{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}")
    output = os.path.join(part, "job.out")
    try:
        data = b"" if logged is None else logged.read()
        os.makedirs(part)
        try:
            with open(output, "xb") as file:
                file.write(data)
            os.rename(part, workdir)
        except OSError:                  # somebody else was faster, or the disk is full
            os.unlink(output)
            os.rmdir(part)
    except OSError:
        pass
    return Path(workdir)


def default_workdir(task: int) -> str:
    """The workdir of a task that names none, relative to the site's data/: a thousand to a directory."""
    return f"{task // 1000:05d}/{task}"
