"""Endings into futures: unpickles what arrived and settles the future, whatever the user's code does meanwhile.

Everything here runs on the session's thread, which must survive results that do not unpickle, exceptions whose str()
raises, and sys.exit in a done-callback.  Knows neither sockets nor sessions.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from balsamfut import errors, serialize
from balsamfut.errors import (
    BalsamfutError,
    DeserializationError,
    InitializerFailed,
    TaskError,
    UpstreamFailed,
)
from balsamfut.executor.core import Ask, Delivery, Refusal
from balsamfut.futures import CANCELLED, FINISHED, TaskFuture
from balsamfut.messages import Ending
from balsamfut.model import Blob, TaskState

log = logging.getLogger("concurrent.futures")  # where the standard class logs what callbacks raise


def error_named(name: str, text: str) -> BalsamfutError:
    """The exception of balsamfut.errors with that name; SiteError where there is none."""
    cls = getattr(errors, name, None)
    if not (isinstance(cls, type) and issubclass(cls, BalsamfutError)):
        return errors.SiteError(f"{name}: {text}")
    return cls(text)


def describe(exc: BaseException) -> str:
    """One line about an exception, even one whose str() raises."""
    try:
        return f"{type(exc).__name__}: {exc}"
    except BaseException:  # the user's __str__ may raise anything
        return type(exc).__name__


class Deliverer:
    """Settles futures; `broken` is the InitializerFailed that ended the Executor's workers, once one has arrived."""

    def __init__(self, objects: Path) -> None:
        self.broken: InitializerFailed | None = None
        self._read: Callable[[Blob], bytes] = functools.partial(serialize.fetch, objects=objects)
        # So that those that a failure took down have its very exception as their cause, while anybody has its future.
        self._failed: weakref.WeakValueDictionary[int, TaskFuture[Any]] = weakref.WeakValueDictionary()

    def deliver(self, item: Delivery) -> None:
        """Settle one future, or tell one waiting thread.  Never raises."""
        if isinstance(item, Ask):
            item.answered.set()
            return
        future, ending = item
        try:
            if ending is None:
                future.settle(CANCELLED)
            elif isinstance(ending, Refusal):
                self._reject(future, ending)
            elif ending.state is TaskState.DONE:
                future._detail = ending.detail
                future.settle(FINISHED, self._value(future, ending))
            else:
                self._fail(future, ending)
        except BaseException as exc:  # SystemExit, too, would end the thread that brings all results
            if not future.settle(FINISHED, exception=_undelivered(future, exc)):
                log.error("a done-callback of %r raised %s", future, describe(exc))

    def end(self, future: TaskFuture[Any], exception: BaseException | None) -> None:
        """Settle a future of which no more will be heard: with an exception, or cancelled.  Never raises."""
        try:
            future.settle(CANCELLED if exception is None else FINISHED, exception=exception)
        except BaseException as exc:  # a done-callback's
            log.error("a done-callback of %r raised %s", future, describe(exc))

    def _value(self, future: TaskFuture[Any], ending: Ending) -> object:
        return None if ending.payload is None else serialize.loads(ending.payload, self._read)

    def _reject(self, future: TaskFuture[Any], refusal: Refusal) -> None:
        exc: BaseException = error_named(refusal.rejected.error, refusal.rejected.text)
        refused = next((need for need in refusal.needs if not need._id and need._exception is not None), None)
        future._task_state = TaskState.FAILED
        if refused is not None:  # the interchange cannot know more than that it does not have it
            exc = never_ran(future.app_name, refused)
            future._task_state = TaskState.UPSTREAM_FAILED
        future.settle(FINISHED, exception=exc)

    def _fail(self, future: TaskFuture[Any], ending: Ending) -> None:
        future._detail = ending.detail
        future._task_state = ending.state
        task = ending.task
        exc: BaseException | None = None
        if ending.payload is not None:
            exc = serialize.loads_exception(ending.payload, self._read)
        if ending.state is TaskState.UPSTREAM_FAILED:
            exc = self._upstream(future, ending, exc)
        elif ending.state is TaskState.CANCELLED and exc is None:  # one that was killed brings its TaskKilled
            future.settle(CANCELLED)
            return
        elif exc is None:
            exc = TaskError(ending.error or f"task {task} ({future.app_name}) failed")
        if isinstance(exc, InitializerFailed):
            self.broken = exc
        self._failed[task] = future
        future.settle(FINISHED, exception=exc)

    def _upstream(self, future: TaskFuture[Any], ending: Ending, sent: BaseException | None) -> UpstreamFailed:
        root = self._failed.get(ending.root)
        cause = root._exception if root is not None else sent
        if cause is not None:
            cause = _root(cause)
        text = ending.error or (f"task {ending.task} ({future.app_name}) never ran: task {ending.root}, which it "
                                "needed, failed")
        exc = UpstreamFailed(text, task_id=ending.root)
        exc.__cause__ = cause if cause is not None else CancelledError(f"task {ending.root} was cancelled")
        return exc


def _root(cause: BaseException) -> BaseException:
    """What took down the task that raised `cause`, if it was taken down itself."""
    return cause.__cause__ if isinstance(cause, UpstreamFailed) and cause.__cause__ is not None else cause


def never_ran(name: str, need: TaskFuture[Any]) -> UpstreamFailed:
    """The exception of a call that needed one which was never recorded."""
    cause, root = need._exception, need._id
    if isinstance(cause, UpstreamFailed):
        root = cause.task_id
    error = UpstreamFailed(f"{name} never ran: {need!r}, which it needed, was never recorded", task_id=root)
    error.__cause__ = None if cause is None else _root(cause)
    return error


def _undelivered(future: TaskFuture[Any], exc: BaseException) -> BaseException:
    if isinstance(exc, DeserializationError):
        return exc
    error = DeserializationError(
        f"the result of task {future._id} ({future.app_name}) cannot be unpickled here: {describe(exc)}")
    error.__cause__ = exc
    return error
