"""One rank of a slice: it makes one call after another, each with some of the other ranks and a communicator for it.

Started by the MPI launcher with the agent's socket, the pilot's token and the number of the slice.  A rank without a
call waits in read(), not in MPI, so it takes no core from anybody.  While a call is made, `MPI.COMM_WORLD` as Python
code sees it is the call's communicator: a function that was written for a launch of its own finds the ranks that it
asked for.  It knows no queues and no placements.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack
from time import time
from typing import Any, NoReturn

import msgspec

from balsamfut import context, serialize
from balsamfut.errors import InitializerFailed, LaunchFailed
from balsamfut.messages import Fault
from balsamfut.model import Extra, Payload
from balsamfut.pilot import output
from balsamfut.pilot.hand import Code, Define, Frames, Order, Setup, frame
from balsamfut.pilot.mpicall import Caller
from balsamfut.pilot.poolwire import Able, Aboard, FromRank, Made, Make, ToRank, Unable
from balsamfut.pilot.rank import rank
from balsamfut.serialize import AppCode

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToRank).decode


class Line:
    """The way to the agent."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(address)
        self._frames = Frames()
        self._got: list[ToRank] = []

    def send(self, message: FromRank) -> None:
        self._socket.sendall(frame(_encode(message)))

    def receive(self) -> ToRank | None:
        """The next message; None: there will be no further one."""
        while not self._got:
            try:
                data = self._socket.recv(1 << 18)
            except ConnectionError:
                return None
            if not data:
                return None
            self._got.extend(map(_decode, self._frames.feed(data)))
        return self._got.pop(0)


class Rank:
    """See the module."""

    def __init__(self, line: Line, setup: Setup) -> None:
        self.number = rank()
        self.host = os.uname().nodename
        self.line = line
        self.caller = Caller(setup)
        self.apps: dict[int, Define] = {}
        self.codes: dict[bytes, Payload | AppCode] = {}
        self.mpi: Any = None
        self.world: Any = None
        self.pid = os.getpid()
        self.home = os.open(".", os.O_PATH | os.O_DIRECTORY)
        for fd, path in ((1, setup.stdout), (2, setup.stderr)):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.dup2(file, fd)
            os.close(file)
        output.settle()
        self.captured = output.Captured(setup.stdout, setup.stderr)

    # ---- the beginning

    def prepare(self) -> bool:
        """Have MPI, and run the pool's initializer.  False: it cannot be done, and the agent knows."""
        pool = self.caller.setup.pool
        sys.path[:] = [*pool.path, *(entry for entry in sys.path if entry not in pool.path)]
        fault, error = Fault.TASK, "mpi4py cannot be used on the ranks of a slice"
        try:
            from mpi4py import MPI

            self.mpi, self.world = MPI, MPI.COMM_WORLD
            if self.world.Get_rank() != self.number:
                raise LaunchFailed(f"rank {self.number} of the launch is rank {self.world.rank} to mpi4py, which "
                                   "is built for another MPI")
            fault, error = Fault.POOL, "the initializer raised"
            if pool.initializer is not None:
                function, args = serialize.loads(pool.initializer, self.caller.read)
                function(*args)
        except BaseException as exc:
            failed = exc
            if fault is Fault.POOL:
                failed = InitializerFailed(f"{error} {serialize.one_line(exc)}")
                failed.__cause__ = exc
            self.line.send(Unable(fault, self.caller.pickled(failed, self.host, self.number),
                                  f"{error}: {serialize.one_line(exc)}"))
            return False
        output.flush()
        self.captured.before = output.size(1), output.size(2)
        self.line.send(Able())
        return True

    # ---- calls

    def run(self) -> None:
        """Until the agent ends the line."""
        while (message := self.line.receive()) is not None:
            if isinstance(message, Make):
                try:
                    self.make(message)
                except KeyboardInterrupt:    # it was meant for a call that is over
                    continue
            elif isinstance(message, Define):
                self.apps[message.cls] = message
            elif isinstance(message, Code):
                self.codes.setdefault(message.digest, message.payload)

    def make(self, message: Make) -> None:
        """One call, and word of its end on the way."""
        order, mine = message.order, message.ranks.index(self.number)
        app, started = self.apps[order.cls], time()
        if mine == 0:
            _truncate(order)
        comm = self.communicator(message.ranks)
        payload: Payload | None = None
        error, ok = "", True
        task = self.caller.task(order, app)
        context.enter(task)
        self.mpi.COMM_WORLD = comm
        try:
            try:
                data = self.perform(order, app, mine, comm)
                payload = None if data is None else self.caller.stow(data)
            finally:
                task.close()
        except BaseException as exc:
            payload = self.caller.stow(self.caller.pickled(exc, self.host, mine))
            ok, error = False, serialize.one_line(exc)
        if os.getpid() != self.pid:      # the call forked, and this is the child that came back from the function
            output.flush()
            os._exit(0)
        self.mpi.COMM_WORLD = self.world
        context.enter(None)
        os.fchdir(self.home)
        detail = self.captured.detail(order.attempt)
        self.line.send(Made(order.task, order.attempt, ok, started, time(), payload, error, detail))
        comm.Free()

    def communicator(self, ranks: tuple[int, ...]) -> Any:
        """Of these ranks of the slice alone, in this order.  Collective over them."""
        if len(ranks) == 1:
            return self.mpi.COMM_SELF.Dup()
        everybody = self.world.Get_group()
        group = everybody.Incl(ranks)
        comm = self.world.Create_group(group)
        group.Free()
        everybody.Free()
        return comm

    def perform(self, order: Order, app: Define, mine: int, comm: Any) -> bytes | None:
        """This rank's part, in its directory and with its output where it was asked to be."""
        with ExitStack() as stack:
            stack.enter_context(output.surroundings(order.workdir, _told(order), app.name,
                                                    lambda path: os.makedirs(path, exist_ok=True)))
            if order.extra is not None:
                stack.enter_context(output.redirected(_appending(order.extra), order.workdir))
            return self.caller.call(order, app, self.code(app), mine, lambda: comm)

    def code(self, app: Define) -> AppCode:
        """Unpickled once."""
        code = self.codes[app.app]
        if not isinstance(code, AppCode):
            code = self.codes[app.app] = self.caller.code(code)
        return code


def _told(order: Order) -> tuple[tuple[str, str], ...]:
    """What each task finds in its environment."""
    workdir = (("BALSAMFUT_WORKDIR", order.workdir),) if order.workdir else ()
    return (("BALSAMFUT_TASK_ID", str(order.task)), ("BALSAMFUT_ATTEMPT", str(order.attempt)), *workdir)


def _appending(extra: Extra) -> Extra:
    return msgspec.structs.replace(extra, stdout_mode="a", stderr_mode="a")


def _truncate(order: Order) -> None:
    """Empty the files that the call wants to begin anew, before any of its ranks can write there."""
    extra = order.extra
    if extra is None:
        return
    for path, mode in ((extra.stdout, extra.stdout_mode), (extra.stderr, extra.stderr_mode)):
        if path and mode == "w":
            try:
                os.truncate(output.target(path, order.workdir), 0)
            except OSError:      # not there yet; what else is wrong with it is said when it is opened
                pass


def leave() -> NoReturn:
    """End together with the other ranks; threads that calls left behind may never end."""
    output.flush()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()
    os._exit(0)


def main() -> None:
    address, token, slice = sys.argv[1], sys.argv[2], int(sys.argv[3])
    sys.argv = [""]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    line = Line(address)
    line.send(Aboard(token, slice, rank(), os.getpid()))
    setup = line.receive()
    if isinstance(setup, Setup):
        here = Rank(line, setup)
        if here.prepare():
            here.run()
        elif line.receive() is None:     # the agent ends this slice
            os._exit(1)
    leave()
