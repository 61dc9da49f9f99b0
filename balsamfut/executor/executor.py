"""Executor: concurrent.futures' interface to a session.

It reads what the user asked for, opens the session, and offers submit, map, shutdown; how calls are made is desk.py's
affair, how they travel client.py's.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import os
import sys
import threading
import time
import traceback
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from balsamfut import interrupts, platforms, serialize, sites, values
from balsamfut.calls import AppLike, CallPlan, plain_parts
from balsamfut.context import TaskContext
from balsamfut.context import current as current_task
from balsamfut.errors import InitializerFailed, InvalidOption, SerializationError
from balsamfut.executor import local, stack
from balsamfut.executor.client import Client, open_clients
from balsamfut.executor.core import Wish
from balsamfut.executor.desk import Desk, Occurrences, Ready
from balsamfut.executor.local import say
from balsamfut.futures import TaskFuture
from balsamfut.messages import PROTOCOL, Hello
from balsamfut.model import Pool
from balsamfut.options import NOTHING, CallOptions, combine, normalise
from balsamfut.settings import load as load_settings

T = TypeVar("T")

SOON: Final = 1.0
"""Seconds within which the calls of a script that fails may end without a word about them."""

_occurrences: weakref.WeakKeyDictionary[TaskContext, Occurrences] = weakref.WeakKeyDictionary()
_sessions: weakref.WeakKeyDictionary[TaskContext, Iterator[int]] = weakref.WeakKeyDictionary()


class Executor(concurrent.futures.Executor):
    """Runs calls as recorded tasks; a concurrent.futures.Executor.

    campaign: a name makes the script resumable: run again, it finds its earlier tasks.  None: a campaign of its own.
    site: the directory with the database (default: $BALSAMFUT_SITE, else .balsamfut in the working directory).
    max_workers: how many tasks of this Executor run at once (default: what there is room for).
    platform, nodes: the machine whose nodes the pilot is to offer, and how many (default: this one).
    initializer, initargs: called once in each worker process before its first task.
    wait: False: leaving the `with` block waits only until all calls are recorded, as detach() does.

    Raises what keeps the site's interchange from being found, started or used: InterchangeLost, ProtocolMismatch,
    DatabaseTooNew, SiteTaken, SettingsError; ValueError and TypeError for arguments.
    """

    def __init__(self, campaign: str | None = None, *, site: str | os.PathLike[str] | None = None,
                 max_workers: int | None = None, platform: str | None = None, nodes: int | None = None,
                 initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = (),
                 wait: bool = True) -> None:
        values.campaign(campaign)
        _check_count("max_workers", max_workers)
        _check_count("nodes", nodes)
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, and {initializer!r} is not")
        task = current_task()
        if task is not None and site is None:
            self._attach(task, campaign)
            stack.push(self)
            return
        if platform is not None:
            platforms.load(platform)   # a name that there is none of is told before anything is started
        directory = sites.find(os.fspath(site or ""))
        for given in (campaign or "", str(directory), os.getcwd()):
            if _readable(given) != given:
                raise InvalidOption(f"{given!r} has bytes that are not UTF-8: name the campaign, the site and the "
                                    "working directory so that they can be recorded")
        local.make(directory)
        defaults = load_settings(directory).options()
        pool = _pool(initializer, initargs)
        local.tell_unused(directory, local.Wanted(platform or "", nodes or 0))
        self._open(
            Client(directory, _hello(os.urandom(16).hex(), campaign, pool, max_workers=max_workers or 0,
                                     platform=platform or "", nodes=nodes or 0),
                   local.Wanted(platform or "", nodes or 0, max_workers or 0)),
            pool, resumable=campaign is not None, defaults=defaults, max_workers=max_workers, wait=wait)
        stack.push(self)

    @classmethod
    def of_task(cls, task: TaskContext) -> Executor:
        """The Executor of a task that calls apps: its session ends with the task, its tasks go on."""
        executor = cls.__new__(cls)
        executor._attach(task, None)
        return executor

    def _attach(self, task: TaskContext, campaign: str | None) -> None:
        """Open a session of a task with the interchange that runs it."""
        number = next(_sessions.setdefault(task, itertools.count(1)))
        token = f"task-{task.task}.{task.attempt}.{number}"
        pool = task.pool or _pool(None, ())
        directory = Path(task.site)
        self._open(
            Client(directory, _hello(token, campaign, pool, parent=task.task, attempt=task.attempt),
                   None, task),
            pool, resumable=True, occurrences=_occurrences.setdefault(task, Counter()), task=task)
        task.at_end.append(self._leave_task)

    def _open(self, client: Client, pool: Pool, *, resumable: bool, defaults: CallOptions = NOTHING,
              occurrences: Occurrences | None = None, max_workers: int | None = None, wait: bool = True,
              task: TaskContext | None = None) -> None:
        self.task = task
        self._parent: Executor | None = None
        self._client = client
        self._desk = Desk(client, pool, resumable=resumable, occurrences=occurrences)
        self._defaults = defaults
        self._options = NOTHING
        self._wait = wait
        self._known: dict[int, tuple[Callable[[], object], Ready]] = {}
        self._max_workers = max_workers or (client.welcome.cores or os.cpu_count() or 1) * max(client.welcome.nodes, 1)
        weakref.finalize(self, client.close).atexit = False

    # ---- calls

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture[T]:
        """Call fn(*args, **kwargs) as a task; returns its future at once.

        Arguments are pickled now; futures in them, at any depth, are waited for and replaced by their values.  What
        cannot be pickled is the future's exception.  Raises InvalidResources, TemplateError and TypeError for calls
        that could never run; RuntimeError after shutdown; InitializerFailed once a worker's initializer raised.
        """
        client = self._client
        if client.closing:
            raise RuntimeError(client.refusal)
        known = self._known.get(id(fn))
        if known is not None and known[0]() is fn and client.broken is None:
            return self._desk.call(known[1], args, kwargs)
        if client.broken is not None:
            raise InitializerFailed(str(client.broken)) from client.broken.__cause__
        if getattr(fn, "__balsamfut_app__", False):
            plan = cast(AppLike, fn).bind(args, kwargs)
            return self._submit_plan(fn, plan, plan.args is args and plan.kwargs is kwargs)
        fn, args, kwargs = _unwrap(fn, args, kwargs)
        known = self._known.get(id(fn))
        if known is not None and known[0]() is fn:
            return self._desk.call(known[1], args, kwargs)
        parts = plain_parts(fn)
        plan = CallPlan(parts, *parts.complete(args, kwargs))
        # A callable object may be changed between its calls, so it is pickled for each.
        lasting = isinstance(fn, types.FunctionType | types.BuiltinFunctionType | type)
        return self._submit_plan(fn, plan, lasting and plan.args is args and plan.kwargs is kwargs)

    def _submit_plan(self, fn: Callable[..., T], plan: CallPlan, lasting: bool) -> TaskFuture[T]:
        """lasting: another call of fn differs from this one in its arguments alone."""
        combined = combine(self._defaults, plan.app.options, self._options, plan.options)
        try:
            ready = self._desk.ready(plan.app, combined)
        except SerializationError as exc:
            return self._desk.failed(exc)
        if not ready.simple:
            return self._desk.call_plan(ready, plan, combined)
        if lasting:
            self._known[id(fn)] = _reference(fn, self._known), ready
        return self._desk.call(ready, plan.args, plan.kwargs)

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None,
            chunksize: int = 1) -> Iterator[T]:
        """The values of fn over the iterables, in order; raises TimeoutError when one is not there `timeout` seconds
        after this call.  What is left when the iterator is abandoned is cancelled.  chunksize: calls to a task."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        deadline = None if timeout is None else time.monotonic() + timeout
        calls: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        if chunksize == 1 or getattr(fn, "__balsamfut_app__", False):
            return _values([self.submit(fn, *args) for args in calls], self._client, deadline)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        grouped: list[TaskFuture[Iterable[T]]] = [self.submit(run_chunk, fn, chunk) for chunk in chunks]
        return itertools.chain.from_iterable(_values(grouped, self._client, deadline))

    def options(self, **options: Any) -> Executor:
        """A view of this Executor whose calls have these options (as app.options).  Shutting it down shuts nothing."""
        view = type(self).__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._options = combine(self._options, normalise(options, "Executor.options"))
        view._parent = self
        view._known = {}
        return view

    # ---- the end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.  wait: return when all are over.  cancel_futures: cancel those that have not started."""
        if self._parent is not None:
            return
        stack.pop(self)
        client = self._client
        client.closing = True
        if cancel_futures:
            left = client.outstanding()
            for future in left:  # a free worker has its chance, as in a process pool
                client.wait_known(future)
            client.ask(Wish.CANCEL, left)
        client.close()
        if wait:
            client.join()

    def detach(self) -> None:
        """Take no more calls and leave as soon as all are recorded; the site goes on with them.

        Futures that are not over then raise UsageError: nobody here will hear of them.
        """
        if self._parent is not None:
            self._parent.detach()
            return
        stack.pop(self)
        self._client.close(detach=True)
        self._client.join()

    def _leave_task(self) -> None:
        """The task's code is over: its calls are recorded, and go on."""
        stack.left(self)
        self._client.close(detach=True)
        self._client.join()

    def __enter__(self) -> Executor:
        if self._parent is not None:
            stack.push(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if self._parent is not None:
            stack.pop(self)
        elif kind is not None and issubclass(kind, KeyboardInterrupt):
            stack.pop(self)
            interrupted([self._client], exc)
        elif not self._wait:
            self.detach()
        else:
            try:
                with interrupts.Waiting():
                    self.shutdown(wait=False)
                    if isinstance(exc, Exception) and not self._client.join(SOON):
                        _tell_why(exc, len(self._client.outstanding()))
                    self._client.join()
            except KeyboardInterrupt as more:
                interrupted([self._client], more)
                raise

    @property
    def takes_calls(self) -> bool:
        return not self._client.closing

    @property
    def campaign(self) -> str:
        """The campaign's name; one that was made up where none was given."""
        return self._client.welcome.campaign

    @property
    def site(self) -> Path:
        """The site's directory."""
        return self._client.site

    def __reduce__(self) -> Any:
        # Captured by a task's function, it means the task's own Executor there.
        return stack.innermost, ()

    def __repr__(self) -> str:
        return f"<Executor of campaign {self.campaign!r} at {self.site}{'' if self.takes_calls else ', shut down'}>"


def run_chunk(fn: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
    """What map sends for `chunksize` calls."""
    return [fn(*args) for args in calls]


def _tell_why(exc: Exception, left: int) -> None:
    """The `with` block has ended with an exception, and Python tells of it when we have waited: that may take days."""
    text = "".join(traceback.format_exception_only(exc)).strip().partition("\n")[0]
    calls = "1 call that is not over" if left == 1 else f"{left} calls that are not over"
    say(f"{text}: this has ended the `with` block of the Executor, which waits for {calls}; Ctrl-C ends the wait, and "
        "the calls can be gone on with")


def interrupted(clients: list[Client], exc: BaseException | None) -> None:
    """Ctrl-C: leave without waiting.  What is recorded stays as it is, so that it can be gone on with."""
    interrupts.came()
    left = sum(len(client.outstanding()) for client in clients)
    if left:
        what = "1 call is not over; `balsamfut resume` goes on with it" if left == 1 else (
            f"{left} calls are not over; `balsamfut resume` goes on with them")
        say(f"interrupted; {what}, and so does a re-run of a "
            "script that names its campaign")
        if exc is not None:
            interrupts.said(exc)
    for client in clients:
        client.close(abandon=True)
    for client in clients:
        client.join()


def _values(futures: list[TaskFuture[T]], client: Client, deadline: float | None) -> Iterator[T]:
    futures.reverse()  # so that each is let go of when its value is given out

    def values() -> Iterator[T]:
        try:
            while futures:
                yield _value(futures.pop(), deadline)
        finally:
            left = [future for future in futures if not future.done()]
            if left:
                client.ask(Wish.CANCEL, left)

    return values()


def _value(future: TaskFuture[T], deadline: float | None) -> T:
    try:
        try:
            return future.result(None if deadline is None else deadline - time.monotonic())
        finally:
            if not future.done():
                future.cancel()
    finally:
        del future  # no cycle through the traceback


def _check_count(name: str, value: int | None) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} takes a whole number, not {value!r}")
    if value <= 0:
        raise ValueError(f"{name} must be greater than 0, not {value}")


def _unwrap(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Bound methods and partials: what is bound is an argument of this call, the function under it is the app."""
    while True:
        if type(fn) is functools.partial:
            fn, args, kwargs = fn.func, (*fn.args, *args), {**fn.keywords, **kwargs}
        elif type(fn) is types.MethodType:
            fn, args = fn.__func__, (fn.__self__, *args)
        else:
            return fn, args, kwargs


def _reference(fn: Callable[..., Any], known: dict[int, Any]) -> Callable[[], object]:
    """A weak reference that clears up behind itself, or a strong one where a callable allows no other."""
    number = id(fn)
    try:
        return weakref.ref(fn, lambda _: known.pop(number, None))
    except TypeError:
        return lambda: fn


def _pool(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> Pool:
    path = tuple(os.path.abspath(entry) for entry in sys.path)
    # What is not UTF-8 cannot be recorded: such a variable, or a directory that nothing was imported from, stays here.
    path = tuple(entry for entry in path if _readable(entry) == entry)
    environ = tuple(sorted((name, value) for name, value in os.environ.items()
                           if not name.startswith("BALSAMFUT_") and _readable(name + value) == name + value))
    packed = None if initializer is None else serialize.dumps_result((initializer, initargs))[0]
    return Pool(sys.executable, path, os.getcwd(), environ, packed)


def _readable(text: str) -> str:
    """The text with a question mark for whatever UTF-8 cannot write."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _hello(token: str, campaign: str | None, pool: Pool, **more: Any) -> Hello:
    info = {"python": sys.executable, "cwd": os.getcwd(), "argv": _readable(" ".join(sys.argv))}
    return Hello(PROTOCOL, token, campaign, os.getpid(), os.uname().nodename, info=info, pool=pool, **more)


def _at_exit() -> None:
    """A script that forgot to shut down ends with its tasks done."""
    clients: list[Client] = []
    try:
        with interrupts.Waiting():
            clients = open_clients()
            for client in clients:
                client.refusal = "cannot schedule new futures after interpreter shutdown"
                client.close()
            for client in clients:
                client.join()
    except KeyboardInterrupt:
        interrupted(clients, None)
        interrupts.end_by_signal()


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # as concurrent.futures does: before threads are joined
