"""The Python worker: runs one task after another in its main thread.

It is started by an agent with three descriptors (3: the task queue, 4: the control channel, 5: the shared cell), says
in the cell what it is running, sends each result as soon as it has it, and ends when the task queue ends.  User code
may do anything here: fork, start threads, exit, close descriptors; none of it is to reach the next task.  It must not
know placements, queues or the interchange.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from time import time
from typing import Any, Final

import msgspec

from balsamfut import context, faults, serialize
from balsamfut.errors import BlockEnded, DeserializationError, InitializerFailed
from balsamfut.messages import Detail
from balsamfut.model import AppKind, Blob, Payload, Pool
from balsamfut.pilot import output
from balsamfut.pilot.hand import (
    CELL,
    Blocked,
    Broken,
    Code,
    Define,
    Frames,
    FromWorker,
    Grant,
    Order,
    Prepared,
    Ready,
    Result,
    Setup,
    Spilled,
    Stage,
    ToWorker,
    Unblocked,
    clear,
    frame,
)
from balsamfut.pilot.stage import Work
from balsamfut.pilot.workdirs import Workdirs

_LARGEST: Final = 1 << 18
_NOTHING: Final = ((), {})  # type: ignore[var-annotated]


class Channel:
    """The control channel, seen from the worker: thread safe, and silent in forked children."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)
        self._frames = Frames()
        self._got: list[ToWorker] = []
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ToWorker).decode
        self._sending = threading.Lock()
        self._pid = os.getpid()

    def send(self, message: FromWorker) -> None:
        if os.getpid() != self._pid:     # a child that the task forked must not answer for it
            os._exit(0)
        data = frame(self._encode(message))
        with self._sending:
            self._socket.sendall(data)

    def receive(self) -> ToWorker:
        """The next message; ends the process where the agent is gone."""
        while not self._got:
            data = self._socket.recv(1 << 16)
            if not data:
                leave()
            self._got.extend(map(self._decode, self._frames.feed(data)))
        return self._got.pop(0)


class Worker:
    """See the module."""

    def __init__(self) -> None:
        import mmap

        self.channel = Channel(4)
        self.tasks = socket.socket(fileno=3)
        for fd in (3, 4, 5):
            os.set_inheritable(fd, False)
        self.cell = memoryview(mmap.mmap(5, CELL.size))
        setup = self.channel.receive()
        assert isinstance(setup, Setup)
        self.setup = setup
        self.objects = Path(setup.objects)
        self.codes: dict[bytes, Payload | serialize.AppCode] = {}
        self.apps: dict[int, Define] = {}
        self.workdirs = Workdirs(os.path.join(setup.site, "data"), setup.name.replace("pilot-", "").replace("/", "-"))
        self.captured = output.Captured(setup.stdout, setup.stderr)
        self.bound: tuple[int, ...] | None = None
        self.pid = os.getpid()
        self.home = -1               # the directory in which each task begins: a task may go elsewhere, for itself
        self.handlers: dict[int, Any] = {}    # of signals that tell tasks to stop: what they were before any task
        self._unblocking = threading.Lock()

    # ---- the beginning

    def initialize(self) -> bool:
        """Run the pool's initializer.  False: it raised, and the agent knows."""
        pool: Pool = self.setup.pool
        mine = [entry for entry in sys.path if entry not in pool.path]
        sys.path[:] = [*pool.path, *mine]
        if pool.initializer is not None:
            try:
                function, args = serialize.loads(pool.initializer, self.read)
                function(*args)
            except BaseException as exc:
                cause: Any = exc
                failed = InitializerFailed(f"the initializer raised {serialize.one_line(exc)}")
                failed.__cause__ = cause
                self.channel.send(Broken(self.pickled(failed), str(failed)))
                return False
        output.flush()
        self.captured.before = output.size(1), output.size(2)
        self.home = os.open(".", os.O_PATH | os.O_DIRECTORY)
        self.channel.send(Ready())
        return True

    def read(self, blob: Blob) -> bytes:
        return serialize.fetch(blob, self.objects)

    def pickled(self, exc: BaseException) -> bytes:
        return serialize.dumps_exception(exc, host=self.setup.node, worker=self.setup.name)

    # ---- the loop

    def run(self) -> None:
        """Until the agent closes the task queue."""
        decode = msgspec.msgpack.Decoder(Order | Spilled).decode
        buffer = bytearray(_LARGEST)
        view = memoryview(buffer)
        receive = self.tasks.recv_into
        while True:
            try:
                size = receive(buffer)
                if not size:
                    return
                order = decode(view[:size])
                if isinstance(order, Spilled):
                    order = self.unspill(order, decode)
                self.perform(order)
                del order
            except KeyboardInterrupt:    # it was meant for a task that is over
                continue

    def unspill(self, spilled: Spilled, decode: Any) -> Order:
        path = Path(spilled.path)
        order = decode(path.read_bytes())
        path.unlink()
        assert isinstance(order, Order)
        return order

    def perform(self, order: Order) -> None:
        """One task, and its result on the way."""
        started = time()
        CELL.pack_into(self.cell, 0, started, *self.captured.before, order.attempt, order.task)
        app = self.apps.get(order.cls) or self.learn(order.cls)
        setup, extra, stop = self.setup, order.extra, app.options.stop_signal
        if stop not in self.handlers:
            self.handlers[stop] = signal.getsignal(stop) or signal.SIG_DFL
        task = context.TaskContext(
            order.task, order.attempt, address=setup.address, site=setup.site, workdir=order.workdir,
            name=extra.name if extra is not None and extra.name else app.name,
            tags=extra.tags if extra is not None else (), block=self.block, unblock=self.unblock, pool=setup.pool)
        context.enter(task)
        message: Result | Prepared
        try:
            if order.stage is Stage.CALL and not app.hooks and extra is None and not order.workdir \
                    and not app.options.environment:
                message = self.simple(order, app, started)
            else:
                message = self.staged(order, app, started)
        except BaseException as exc:
            message = self.failure(order, exc, started)
        if os.getpid() != self.pid:      # the task forked, and this is the child that came back from its function
            output.flush()
            os._exit(0)
        try:
            task.close()
        except BaseException as exc:
            message = self.failure(order, exc, started)
        context.enter(None)
        os.fchdir(self.home)
        if signal.getsignal(stop) != self.handlers[stop]:    # the next task is to be ended by it, unless it catches it
            signal.signal(stop, self.handlers[stop])
        detail = self.captured.detail(order.attempt)
        if detail is not None and isinstance(message, Result):
            message = self.detailed(message, detail)
        faults.point("worker.result")
        self.channel.send(message)
        clear(self.cell)

    def simple(self, order: Order, app: Define, started: float) -> Result:
        """A Python function without anything around it."""
        code = self.code(app)
        args, kwargs = self.arguments(order)
        if order.cores != self.bound:
            self.bind(order.cores)
        value = code.func(*args, **kwargs)  # type: ignore[misc]
        payload, futures = serialize.dumps_result(value)
        ended = time()
        joins = tuple(future.task_id for future in futures) if futures else ()  # type: ignore[attr-defined]
        if len(payload) > self.setup.inline and not futures:
            return Result(order.task, order.attempt, True, started, ended, self.stow(payload))
        return Result(order.task, order.attempt, True, started, ended, payload, joins)

    def staged(self, order: Order, app: Define, started: float) -> Result | Prepared:
        """Everything else: with hooks, files, an environment, a directory; or a stage of a command."""
        code = self.code(app)
        args, kwargs = self.arguments(order)
        self.bind(order.cores)
        work = Work(order, app, code, args, kwargs, order.workdir, self.setup.pool.cwd)
        detail: Detail | None = None
        with ExitStack() as stack:
            own = order.stage is Stage.PREPARE and not work.extra.workdir
            make = self.workdirs.make if own else functools.partial(os.makedirs, exist_ok=True)
            stack.enter_context(output.surroundings(order.workdir, app.options.environment, app.name, make))
            try:
                if order.stage is Stage.PREPARE:
                    command = work.prepare()
                    if own:
                        self.workdirs.take_back(order.workdir)
                    return Prepared(order.task, order.attempt, command, time() - started)
                if order.failure is not None:
                    return self.rescued(work, self.exception(order.failure), order.timeout, started)
                if order.stage is Stage.CALL:
                    out, err = stack.enter_context(output.redirected(work.extra, order.workdir))
                    if out or err:
                        detail = Detail(stdout=out, stderr=err, workdir=order.workdir, attempt=order.attempt)
                    value = work.call()
                else:
                    value = work.finish()
                payload, futures = serialize.dumps_result(value)
                joins = tuple(future.task_id for future in futures)  # type: ignore[attr-defined]
            except BaseException as exc:
                if order.failure is not None or order.stage is Stage.FINISH:
                    raise
                return self.rescued(work, exc, False, started, detail)
        return Result(order.task, order.attempt, True, started, time(), payload if joins else self.stow(payload), joins,
                      detail=detail)

    def rescued(self, work: Work, exc: BaseException, timeout: bool, started: float,
                detail: Detail | None = None) -> Result:
        """The attempt failed; its hooks may ask for another one, or fail it with something else."""
        again = work.rescue(exc, timeout)
        if isinstance(exc, BlockEnded):      # that is no failure: it goes on
            return Result(work.order.task, work.order.attempt, False, started, time(), None, again=again)
        result = self.failure(work.order, exc, started)
        return msgspec.structs.replace(result, again=again, detail=detail)

    def failure(self, order: Order, exc: BaseException, started: float) -> Result:
        return Result(order.task, order.attempt, False, started, time(), self.stow(self.pickled(exc)),
                      error=serialize.one_line(exc))

    def detailed(self, result: Result, wrote: Detail) -> Result:
        """With what the task wrote to the worker's own files, unless it had files of its own."""
        detail = result.detail
        if detail is None:
            return msgspec.structs.replace(result, detail=wrote)
        merged = msgspec.structs.replace(
            wrote, workdir=detail.workdir, stdout=detail.stdout or wrote.stdout, stderr=detail.stderr or wrote.stderr,
            stdout_span=(0, 0) if detail.stdout else wrote.stdout_span,
            stderr_span=(0, 0) if detail.stderr else wrote.stderr_span)
        return msgspec.structs.replace(result, detail=merged)

    # ---- what a task needs

    def arguments(self, order: Order) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = order.args
        if args is None:
            return _NOTHING
        if type(args) is not bytes:
            assert isinstance(args, Blob), "arguments are not joined"
            args = self.read(args)
        if not order.values:
            return serialize.loads_args(args)
        return serialize.loads_args(args, [serialize.loads(value, self.read) for value in order.values])

    def exception(self, payload: Payload) -> BaseException:
        return serialize.loads_exception(payload, self.read)

    def stow(self, data: bytes) -> Payload:
        return serialize.stow(data, self.objects, self.setup.inline)

    def learn(self, cls: int) -> Define:
        """What the agent has told about a task class: it did so before it sent a task of it."""
        while cls not in self.apps:
            self.take(self.channel.receive())
        return self.apps[cls]

    def take(self, message: ToWorker) -> None:
        if isinstance(message, Define):
            self.apps[message.cls] = message
        elif isinstance(message, Code):
            self.codes.setdefault(message.digest, message.payload)

    def code(self, app: Define) -> serialize.AppCode:
        """The function, the template and the hooks; unpickled once."""
        code = self.codes[app.app]
        if not isinstance(code, serialize.AppCode):
            data = self.read(code) if isinstance(code, Blob) else code
            assert isinstance(data, bytes)
            code = self.codes[app.app] = serialize.loads_code(data)
        if app.kind is not AppKind.TEMPLATE and code.func is None:
            raise DeserializationError(f"the code of {app.name} has no function")
        return code

    def bind(self, cores: tuple[int, ...] | None) -> None:
        if cores != self.bound and cores is not None:
            try:
                os.sched_setaffinity(0, cores)
            except OSError:      # cores that this machine does not have, or that are not ours
                pass
        self.bound = cores

    # ---- waiting for other tasks

    def block(self) -> None:
        task = context.current()
        if task is not None:
            self.channel.send(Blocked(task.task))

    def unblock(self) -> None:
        """Returns when the agent has granted a slot to the task that runs."""
        task = context.current()
        if task is None:
            return
        with self._unblocking:
            self.channel.send(Unblocked(task.task))
            while True:
                message = self.channel.receive()
                if isinstance(message, Grant) and message.task == task.task:
                    return
                self.take(message)


def leave() -> None:
    """End at once: threads that tasks left behind may never end."""
    output.flush()
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [""]      # as where there is no script; it was -c, which parsers of options take for a program's name
    output.settle()
    worker = Worker()
    if worker.initialize():
        worker.run()
    leave()


if __name__ == "__main__":
    main()
