"""The future of a task: a concurrent.futures.Future that knows its task, and can be awaited.

It behaves as the standard class does (wait, as_completed, asyncio.wrap_future and libraries that reach for its inner
parts work), but a hundred thousand of them may be pending, so it makes a lock and lists only when somebody waits.  What
has to be asked of the interchange goes through its Owner; this module knows no sockets, messages or sessions.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from balsamfut import serialize
from balsamfut.errors import LeftBehind
from balsamfut.interrupts import Waiting
from balsamfut.messages import Detail
from balsamfut.model import AppKind, AppSpec, Extra, TaskState, default_workdir, restored
from balsamfut.outlog import Span

T = TypeVar("T")

PENDING: Final = "PENDING"
RUNNING: Final = "RUNNING"
CANCELLED: Final = "CANCELLED_AND_NOTIFIED"
FINISHED: Final = "FINISHED"
OVER: Final = frozenset({"CANCELLED", CANCELLED, FINISHED})
"""The standard library's words for a future's state; CANCELLED alone is what its own cancel() leaves."""

_guard = threading.Lock()
"""Held for nanoseconds: while a future gets its condition, or ends without ever having needed one."""


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Owner(Protocol):
    """What a future asks of the session that it came from."""

    nested: bool
    """The session is a task's: who waits gives the task's slot back meanwhile."""
    data: Path
    """The site's data/."""

    def cancel(self, future: TaskFuture[Any]) -> bool: ...
    def kill(self, future: TaskFuture[Any]) -> bool: ...
    def wait_known(self, future: TaskFuture[Any]) -> None: ...
    def on_own_thread(self) -> bool: ...
    def serve_until(self, ready: Callable[[], bool], timeout: float | None) -> bool: ...
    def paused(self) -> AbstractContextManager[object]: ...


class _SlotEvent(threading.Event):
    """What wait() and as_completed() sleep on inside a task: the task's slot is given back for as long."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self._owner = owner

    def wait(self, timeout: float | None = None) -> bool:
        if self.is_set():
            return True
        with self._owner.paused():
            return super().wait(timeout)


class _Waiters(list[Any]):
    """The waiters of a future inside a task.  They are added while all futures concerned are locked, so before any
    of them can have set the event."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self._owner = owner

    def append(self, waiter: Any) -> None:
        if type(getattr(waiter, "event", None)) is threading.Event:
            waiter.event = _SlotEvent(self._owner)
        super().append(waiter)


class TaskFuture(Future[T]):
    """What a call returns at once; its result is the task's.

    `key` (16 bytes or None) and `occurrence` name the call in its campaign; `from_cache` is True where the task, or an
    equal one, was known before.  Made with no arguments it is a plain Future that stands for no task.
    """

    __slots__ = ("_state", "_result", "_exception", "_cond", "_waiters", "_done_callbacks",
                 "_owner", "_n", "_id", "_app", "_extra", "_task_state", "_detail", "_told", "key", "occurrence",
                 "from_cache")

    def __init__(self, owner: Owner | None = None, n: int = 0, app: AppSpec | None = None,
                 extra: Extra | None = None, key: bytes | None = None, occurrence: int = 0) -> None:
        # Future.__init__ would make a lock and two lists: see _condition.
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._cond: threading.Condition | None = None
        self._owner = owner
        self._n = n
        self._id = 0
        self._app = app
        self._extra = extra
        self._task_state = TaskState.WAITING
        self._detail: Detail | None = None
        self._told = False    # where the task works
        self.key = key
        self.occurrence = occurrence
        self.from_cache = False

    # ---- the standard class's life, with its lock made late

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]  # the base has an attribute
        cond = self._cond
        if cond is None:
            with _guard:
                cond = self._cond
                if cond is None:
                    owner = self._owner
                    self._waiters: list[Any] = _Waiters(owner) if owner is not None and owner.nested else []
                    self._done_callbacks: list[Any] = []
                    cond = self._cond = threading.Condition()
        return cond

    def settle(self, state: str, result: Any = None, exception: BaseException | None = None) -> bool:
        """End the future, for its Owner: True where it was not over yet.  Callbacks run here."""
        if self._told:    # whoever has been told a path is to find what is there
            self._left()
        with _guard:
            if self._state in OVER:
                return False
            cond = self._cond
            if cond is None:  # nobody waits, and whoever comes now finds it over
                self._result = result
                self._exception = exception
                self._state = state
                return True
        with cond:
            if self._state in OVER:
                return False
            self._result = result
            self._exception = exception
            self._state = state
            for waiter in self._waiters:
                if state == CANCELLED:
                    waiter.add_cancelled(self)
                elif exception is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            cond.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]
        return True

    def set_running(self, running: bool) -> None:
        """For its Owner: the task started, or waits again after an attempt that was lost."""
        with _guard:
            if self._state not in OVER:
                self._state = RUNNING if running else PENDING
                self._task_state = TaskState.RUNNING if running else TaskState.READY

    def done(self) -> bool:
        """The task is over, whatever its end."""
        return self._state in OVER

    def running(self) -> bool:
        """The task runs now, as far as is known here."""
        return self._state == RUNNING

    def cancelled(self) -> bool:
        return self._state in OVER and self._state != FINISHED

    def cancel(self) -> bool:
        """Take the call back.  True only where it never started and never will: the record says so.  Never raises."""
        if self._state in OVER:
            return self._state != FINISHED
        if self._owner is None:
            return super().cancel()
        return self._state != RUNNING and self._owner.cancel(self)

    def kill(self) -> bool:
        """End the task, processes and all, running or not.  True where it was not over: its future then raises
        TaskKilled, or is cancelled if it had not started."""
        if self._state in OVER:
            return False
        if self._owner is None:
            return super().cancel()
        return self._owner.kill(self)

    def result(self, timeout: float | None = None) -> T:
        """The task's value, waiting up to `timeout` seconds (None: for ever); raises its exception, CancelledError, or
        TimeoutError."""
        if self._state not in OVER:
            self._wait(timeout)
        try:
            if self._state != FINISHED:
                raise CancelledError()
            if self._exception is not None:
                raise self._exception
            return self._result  # type: ignore[no-any-return]
        finally:
            del self  # no cycle through the traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The task's exception, None where it succeeded; waits and raises as result() does."""
        if self._state not in OVER:
            self._wait(timeout)
        if self._state != FINISHED:
            raise CancelledError()
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        owner = self._owner
        if owner is not None and owner.on_own_thread():
            # A done-callback waits: it is on the thread that brings results, which has to go on bringing them.
            owner.serve_until(self.done, timeout)
        elif owner is not None and owner.nested:
            with owner.paused(), self._condition:
                self._condition.wait_for(self.done, timeout)
        else:
            with Waiting(), self._condition:
                self._condition.wait_for(self.done, timeout)
        if self._state not in OVER:
            raise TimeoutError()

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in an event loop.  Cancelling the await leaves the task alone."""
        if self._state not in OVER:
            import asyncio  # 40 ms that scripts without an event loop need not pay

            waiting = asyncio.shield(asyncio.wrap_future(self))
            if self._owner is not None and self._owner.nested:
                with self._owner.paused():
                    return (yield from waiting.__await__())
            return (yield from waiting.__await__())
        return self.result()

    def __reduce__(self) -> Any:
        # As an argument it becomes a slot that the worker fills; anywhere else pickling it is an error that says so.
        return serialize.slot_for(self)

    # ---- the task

    @property
    def task_id(self) -> int:
        """The task's number in its site.  Waits until the interchange has recorded the call; raises what the call was
        refused with."""
        if not self._id:
            self._of_task().wait_known(self)
            if not self._id:
                self.result()
                raise AttributeError("this call was never recorded, so it has no task id")
        return self._id

    @property
    def state(self) -> TaskState:
        """Where the task is in its life, as far as this process has been told."""
        if self._state not in OVER:
            return self._task_state
        if self._state != FINISHED:
            return TaskState.CANCELLED
        if self._exception is None:
            return TaskState.DONE
        if isinstance(self._exception, LeftBehind):
            return self._task_state
        return self._task_state if self._task_state in _ENDED_BADLY else TaskState.FAILED

    @property
    def app_name(self) -> str:
        return self._app.name if self._app is not None else ""

    @property
    def name(self) -> str:
        """The name that the call was given, else its app's."""
        return (self._extra.name if self._extra is not None else "") or self.app_name

    @property
    def tags(self) -> dict[str, str]:
        return dict(self._extra.tags) if self._extra is not None else {}

    @property
    def workdir(self) -> Path:
        """Where the task runs (an absolute path; made when the task starts).  Waits as task_id does."""
        self._told = True
        left = self._left()
        if left is not None:
            return left
        data = self._of_task().data
        if self._extra is not None and self._extra.workdir:
            return data / self._extra.workdir
        return data / default_workdir(self.task_id)

    def _left(self) -> Path | None:
        """The directory that the task has said it had, made again if it has gone."""
        detail = self._detail
        if detail is None or not detail.workdir:
            return None
        logged = _logged(detail)
        silent = detail.returncode is not None and not detail.stdout
        return restored(detail.workdir, logged) if silent or logged else Path(detail.workdir)

    @property
    def outputs(self) -> list[Path]:
        """The declared output files, in order."""
        extra = self._extra
        if extra is None or not extra.outputs:
            return []
        workdir = self.workdir
        return [workdir / path for path in extra.outputs]

    @property
    def stdout(self) -> Path | None:
        """The file with what the task wrote to its standard output; None where there is none (yet).

        A shell task has one from its start; what a Python task printed is known when it is over.
        """
        return self._stream("stdout")

    @property
    def stderr(self) -> Path | None:
        """As stdout, for the standard error.  A shell task's goes with its output unless it was asked for apart."""
        return self._stream("stderr")

    def _stream(self, which: str) -> Path | None:
        owner = self._of_task()
        detail, extra = self._detail, self._extra
        if detail is not None and _logged(detail):
            return self.workdir / "job.out"
        if detail is not None and getattr(detail, which):
            path = Path(getattr(detail, which))
            start, end = getattr(detail, which + "_span")
            if start == end == 0:
                return path
            return _cut(path, start, end, owner.data / default_workdir(self.task_id) / f"{which}.txt")
        named = getattr(extra, which) if extra is not None else ""
        if not named and self._app is not None and self._app.kind in (AppKind.TEMPLATE, AppKind.COMMAND):
            named = (extra.stdout if extra is not None else "") or "job.out"
        return self.workdir / named if named else None

    def _of_task(self) -> Owner:
        if self._owner is None:
            raise AttributeError("this future stands for no task: it was not made by an Executor")
        return self._owner

    def __repr__(self) -> str:
        what = f"task {self._id}" if self._id else f"call {self._n}" if self._owner is not None else "no task"
        ended = ""
        if isinstance(self._exception, LeftBehind):
            ended = " when its script left it behind"
        elif self._state == FINISHED:
            value = self._exception if self._exception is not None else self._result
            ended = f" {'raised' if self._exception is not None else 'returned'} {type(value).__name__}"
        return f"<TaskFuture {what}{' ' + self.app_name if self._app else ''} {self.state.name}{ended}>"


_ENDED_BADLY: Final = frozenset({TaskState.FAILED, TaskState.UPSTREAM_FAILED, TaskState.CANCELLED})


def _logged(detail: Detail) -> Span | None:
    """Where the output of a command is that left no directory."""
    if detail.returncode is None or not detail.workdir or detail.stdout_span == (0, 0):
        return None
    return Span(detail.stdout, *detail.stdout_span)


def _cut(log: Path, start: int, end: int, target: Path) -> Path | None:
    """Copy bytes start..end of a worker's log to a file of the task's own, once."""
    if target.exists():
        return target
    try:
        with log.open("rb") as source:
            source.seek(start)
            data = source.read(end - start)
    except OSError:  # the log is on a node's own disk, or gone
        return None
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.rename(target)
    return target
