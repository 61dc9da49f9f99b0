"""Turns calls into what a session sends: interns what repeats, pickles arguments, finds futures, names calls by keys.

All of it happens on the thread that calls, before the call returns: arguments are a snapshot.  What cannot be pickled
goes into the future.  This module knows no sockets.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import Future as ForeignFuture
from typing import Any, Final

import msgspec

from balsamfut import serialize
from balsamfut.calls import AppParts, CallPlan
from balsamfut.errors import InvalidResources, LeftBehind, SerializationError, UpstreamFailed
from balsamfut.executor.client import Client
from balsamfut.executor.core import Call, Definition, Future, Kept
from balsamfut.executor.deliver import describe, never_ran
from balsamfut.futures import FINISHED, TaskFuture
from balsamfut.model import AppKind, AppSpec, Extra, Options, Payload, Pool, Resources, TaskClass, TaskState
from balsamfut.options import CallOptions

PROMISE: Final = AppSpec("promise", AppKind.PROMISE, serialize.digest16(b"promise"))

_OURS: Final = __name__.partition(".")[0]
Occurrences = Counter[bytes]
_NO_EXTRA: Final = Extra()


class Ready:
    """What all calls of an app with the same options share."""

    __slots__ = ("app", "app_key", "cls", "extra", "simple")

    def __init__(self, cls: int, app: AppSpec, extra: Extra | None, app_key: bytes | None, simple: bool) -> None:
        self.cls = cls
        self.app = app
        self.extra = extra
        self.app_key = app_key      # None: its calls have no keys
        self.simple = simple        # paths, names and keys do not depend on the call's arguments


class Desk:
    """One for each session; any thread may use it."""

    def __init__(self, client: Client, pool: Pool, *, resumable: bool, occurrences: Occurrences | None = None) -> None:
        self.client = client
        self.resumable = resumable    # all calls get keys, not only those that share results by cache=True
        self.occurrences: Occurrences = Counter() if occurrences is None else occurrences
        self._pool = serialize.digest16(msgspec.msgpack.encode(pool))
        self._lock = threading.Lock()
        self._classes: dict[TaskClass, int] = {}
        self._apps: set[bytes] = set()
        self._specs: weakref.WeakKeyDictionary[AppParts, AppSpec] = weakref.WeakKeyDictionary()
        self._ready: weakref.WeakKeyDictionary[AppParts, weakref.WeakKeyDictionary[CallOptions, Ready]]
        self._ready = weakref.WeakKeyDictionary()
        self._promises: weakref.WeakKeyDictionary[ForeignFuture[Any], Future] = weakref.WeakKeyDictionary()
        self._checked: set[Resources] = set()
        self._warned: set[str] = set()
        self._inline = client.welcome.inline
        client.put(Definition(pools=[(self._pool, pool)]))

    # ---- what repeats

    def ready(self, parts: AppParts, combined: CallOptions) -> Ready:
        """Intern an app with these options.  Raises SerializationError, InvalidResources."""
        by_options = self._ready.get(parts)
        found = by_options.get(combined) if by_options is not None else None
        if found is None:
            with self._lock:
                found = self._make_ready(parts, combined)
                self._ready.setdefault(parts, weakref.WeakKeyDictionary())[combined] = found
        return found

    def _make_ready(self, parts: AppParts, combined: CallOptions) -> Ready:
        self._check(combined.resources)
        news = Definition()
        app = self._specs.get(parts)
        if app is None:
            app = self._specs[parts] = self._app(parts, news)
        cls = self._class(TaskClass(app.digest, self._pool, combined.resources, combined.options), news)
        if news:
            self.client.put(news)
        app_key = None
        if self.resumable or combined.options.cache:
            app_key = parts.code_key(combined.version)
        simple = not (parts.template is not None or combined.templated or combined.key is not None
                      or combined.cache_ignore)
        extra = None if combined.templated or combined.extra == _NO_EXTRA else combined.extra
        return Ready(cls, app, extra, app_key, simple)

    def _app(self, parts: AppParts, news: Definition) -> AppSpec:
        code = serialize.dumps_code(parts.code)
        app = AppSpec(parts.name, parts.kind, serialize.digest16(code), parts.hook_flags, parts.module, parts.doc)
        if app.digest not in self._apps:
            self._apps.add(app.digest)
            news.apps.append(app)
            news.codes.append((app.digest, self.stow(code)))
        return app

    def _class(self, cls: TaskClass, news: Definition) -> int:
        number = self._classes.get(cls)
        if number is None:
            number = self._classes[cls] = len(self._classes) + 1
            news.classes.append((number, cls))
        return number

    def _check(self, resources: Resources) -> None:
        """Refuse what no node of this platform can satisfy."""
        if resources in self._checked:
            return
        if resources != Resources():
            from balsamfut import placement, platforms

            welcome = self.client.welcome
            machine = platforms.at(self.client.site, welcome.platform or "workstation", welcome.cores or None)
            why = placement.impossible(resources, machine.node, welcome.nodes or machine.max_nodes)
            if why is not None:
                raise InvalidResources(why)
        self._checked.add(resources)

    def stow(self, data: bytes) -> Payload:
        return data if len(data) <= self._inline else serialize.stow(data, self.client.objects, self._inline)

    # ---- calls

    def call(self, ready: Ready, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future:
        """Submit a call of an app whose options have nothing that depends on the call."""
        client = self.client
        found: Sequence[ForeignFuture[Any]]
        try:
            data, found = serialize.dumps_args(args, kwargs, ready.app.name) if args or kwargs else (None, ())
            key, occurrence = None, 0
            if ready.app_key is not None:
                key = self._key(ready, (ready.app_key, args, kwargs))
                if key is not None:
                    occurrence = self._occurrence(key)
            payload = data if data is None or len(data) <= self._inline else self.stow(data)
            needs = self._needs(found, ready.app.name) if found else ()
        except Exception as exc:  # the future's affair; nothing else is disturbed
            return self.failed(exc, ready.app, ready.extra)
        future: Future = TaskFuture(client, 0, ready.app, ready.extra, key, occurrence)
        client.put(Call((future, ready.cls, payload, needs)))
        return future

    def call_plan(self, ready: Ready, plan: CallPlan, combined: CallOptions) -> Future:
        """Submit a call whose paths, command or key are its own.

        Raises TemplateError, and TypeError for arguments that the app's function does not take.
        """
        found: Sequence[ForeignFuture[Any]] = ()
        data: bytes | None = None
        try:
            if plan.args or plan.kwargs:
                data, found = serialize.dumps_args(plan.args, plan.kwargs, ready.app.name)
        except Exception as exc:
            return self.failed(exc, ready.app, ready.extra)
        extra = plan.extra(combined, futures=bool(found))
        try:
            msgspec.msgpack.encode(extra)
        except UnicodeEncodeError as exc:   # what was rendered from the arguments
            return self.failed(SerializationError(
                f"a call of {ready.app.name} makes a text that UTF-8 cannot write: {exc}"), ready.app)
        if extra is not None and extra.command is not None and not ready.app.hooks:
            data = None  # the command says it all
        try:
            key, occurrence = None, 0
            if ready.app_key is not None:
                key = self._key(ready, plan.key_material(combined))
                if key is not None:
                    occurrence = self._occurrence(key)
            needs = self._needs(found, ready.app.name) if found else ()
            payload = None if data is None else self.stow(data)
        except Exception as exc:
            return self.failed(exc, ready.app, extra)
        future: Future = TaskFuture(self.client, 0, ready.app, extra, key, occurrence)
        self.client.put(Call((future, ready.cls, payload, needs)))
        return future

    def failed(self, exc: BaseException, app: AppSpec | None = None, extra: Extra | None = None) -> Future:
        """The future of a call that will never be sent."""
        future: Future = TaskFuture(self.client, 0, app, extra)
        future._task_state = TaskState.UPSTREAM_FAILED if isinstance(exc, UpstreamFailed) else TaskState.FAILED
        future.settle(FINISHED, exception=exc)
        return future

    def _occurrence(self, key: bytes) -> int:
        with self._lock:
            occurrence = self.occurrences[key]
            self.occurrences[key] = occurrence + 1
        return occurrence

    def _key(self, ready: Ready, material: tuple[bytes, tuple[Any, ...], dict[str, Any]]) -> bytes | None:
        from balsamfut import keys  # only resumable calls need it

        try:
            return keys.call_key(*material)
        except keys.Unhashable as exc:
            name = ready.app.name
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(f"calls of {name} cannot be found again by a re-run, since an argument has no stable "
                              f"hash: {exc}; give the app key=, or cache_ignore= for that argument", RuntimeWarning,
                              stacklevel=_callers_level())
            return None

    # ---- futures among the arguments

    def _needs(self, found: Sequence[ForeignFuture[Any]], name: str) -> list[Future]:
        return [self._need(future, name) for future in found]

    def _need(self, future: ForeignFuture[Any], name: str) -> Future:
        """The future of a task that this site knows, or is about to know, for any future."""
        if not isinstance(future, TaskFuture) or not isinstance(future._owner, Client):
            return self._promise(future)
        if future._owner is self.client:
            if future.done() and not future._id:
                raise never_ran(name, future)
            return future
        if future._owner.site != self.client.site:
            if future.done() and isinstance(future._exception, LeftBehind):
                raise LeftBehind(f"{name} cannot wait for task {future._id} of the site {future._owner.site}, whose "
                                 f"Executor was detached: call {name} in an Executor of that site, or keep that other "
                                 "Executor open")
            return self._promise(future)
        try:
            _ = future.task_id
        except BaseException:
            raise never_ran(name, future) from None
        return future

    def _promise(self, future: ForeignFuture[Any]) -> Future:
        """A call that stands for a future of somebody else's; how that ends is told when it does."""
        with self._lock:
            promise = self._promises.get(future)
            if promise is not None:
                return promise
            news = Definition()
            if PROMISE.digest not in self._apps:
                self._apps.add(PROMISE.digest)
                news.apps.append(PROMISE)
                news.codes.append((PROMISE.digest, b""))
            cls = self._class(TaskClass(PROMISE.digest, self._pool, Resources(), Options()), news)
            if news:
                self.client.put(news)
            promise = self._promises[future] = TaskFuture(self.client, 0, PROMISE)
            self.client.put(Call((promise, cls, None, ())))
        future.add_done_callback(_keeper(self, promise))
        return promise

    def keep(self, promise: Future, future: ForeignFuture[Any]) -> None:
        """The future that a promise stands for is over."""
        error = ""
        try:
            exc = CancelledError(f"{future!r} was cancelled") if future.cancelled() else future.exception()
            if exc is None:
                data, found = serialize.dumps_result(future.result())
                if found:
                    raise SerializationError(f"the result of {future!r} holds futures; pass them themselves")
        except Exception as problem:
            exc = problem
        if exc is not None:
            error = f"{future!r} failed: {describe(exc)}"
            data = serialize.dumps_exception(exc, host=os.uname().nodename, worker=f"process {os.getpid()}")
        self.client.put(Kept(promise, exc is None, self.stow(data), error))


def _keeper(desk: Desk, promise: Future) -> Callable[[ForeignFuture[Any]], None]:
    return lambda future: desk.keep(promise, future)


def _callers_level() -> int:
    """How far up the user's code is, for a warning that its caller gives."""
    frame = sys._getframe(1)
    level = 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _OURS:
        frame = frame.f_back
        level += 1
    return level
