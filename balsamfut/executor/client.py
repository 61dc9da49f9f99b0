"""The session's thread: sends what an Executor's threads hand over, brings back how calls ended.

One thread owns the line.  Others append to a queue and ring it; it takes what has gathered as one message, so a loop of
submits is coalesced while a single one leaves at once.  When the interchange has gone it tells the next one what that
has to know.  This module knows no apps and makes no calls (see desk.py).
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from balsamfut.context import TaskContext
from balsamfut.errors import BalsamfutError, InitializerFailed, InterchangeLost, LeftBehind, SiteError
from balsamfut.executor import local
from balsamfut.executor.core import BATCH, Ask, Delivery, Entry, Future, Session, Wish
from balsamfut.executor.deliver import Deliverer, describe, error_named
from balsamfut.executor.line import BEAT, Line
from balsamfut.executor.local import say
from balsamfut.futures import CANCELLED, TaskFuture
from balsamfut.messages import Bye, Hello, Message, Notice, Refused, Settled
from balsamfut.wire import Poller, Waker

log = logging.getLogger(__name__)

SHUT: Final = "cannot schedule new futures after shutdown"

LOSSES: Final = 10
"""Interchanges that may end in a row before any task is over: there is something that none of them can live with ..."""
LASTING: Final = 60.0
"""... unless they live for so many seconds."""

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """One session of a site, over all interchanges that serve the site in turn.

    context: of the task whose session it is.  The constructor raises whatever keeps the interchange from serving it.
    """

    def __init__(self, site: Path, hello: Hello, wanted: local.Wanted | None,
                 context: TaskContext | None = None) -> None:
        self.site = site
        self.nested = context is not None
        self.queue: deque[Entry] = deque()
        self.closing = False      # no more calls are taken
        self.ended = False        # nothing is sent any more
        self.refusal = SHUT
        self._context = context
        self._session = Session()
        self._deliveries: deque[Delivery] = deque()
        self._detaching = False
        self._abandon = False     # leave without waiting for calls
        self._losses = 0          # interchanges in a row that ended before they told of any task's end
        self._connected = time.monotonic()
        self._given_up = False    # the interchange does not know us any more: it took us for dead
        self._lost = False        # the interchange has gone while we were leaving
        self._fatal: BaseException | None = None
        self._known = threading.Condition()
        self._known_waiters = 0
        self._waker = Waker()     # not closed by the thread: another may be ringing it
        self._poller = Poller()
        self._poller.register(self._waker)
        self._line = Line(site, hello, wanted, self._poller)
        try:
            self.welcome = self._line.connect()
        except BaseException:
            self.closing = self.ended = True
            raise
        self.data = Path(self.welcome.data)
        self.objects = Path(self.welcome.objects)
        self._deliverer = Deliverer(self.objects)
        self._thread = threading.Thread(target=self._run, name="balsamfut-session", daemon=True)
        self._thread.start()
        _clients.add(self)

    def __del__(self) -> None:
        self._waker.close()

    @property
    def broken(self) -> InitializerFailed | None:
        """Why no Python task of this session can run any more."""
        return self._deliverer.broken

    # ---- for other threads

    def put(self, entry: Entry) -> None:
        """Hand something to the session's thread."""
        self.queue.append(entry)
        if self.ended:
            self._drop_queue()
        else:
            self._waker.wake()

    def cancel(self, future: TaskFuture[Any]) -> bool:
        return self.ask(Wish.CANCEL, [future])[0]

    def kill(self, future: TaskFuture[Any]) -> bool:
        return self.ask(Wish.KILL, [future])[0]

    def ask(self, wish: Wish, futures: Sequence[Future]) -> list[bool]:
        """Cancel or kill; waits for the answer, which is False for all where the session ends first."""
        question = Ask(wish, futures)
        self.put(question)
        if self.on_own_thread():
            self.serve_until(question.answered.is_set, None)
        else:
            question.answered.wait()
        return question.results or [False] * len(futures)

    def wait_known(self, future: TaskFuture[Any]) -> None:
        """Wait until the call is recorded, or over without ever having been."""
        def known() -> bool:
            return bool(future._id) or future.done() or self.ended

        if self.on_own_thread():
            self.serve_until(known, None)
            return
        with self._known:
            self._known_waiters += 1
            try:
                self._known.wait_for(known)
            finally:
                self._known_waiters -= 1

    def on_own_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def paused(self) -> AbstractContextManager[object]:
        """While somebody waits for a task: inside of a task its slot is given back."""
        return nullcontext() if self._context is None else _paused(self._context)

    def close(self, *, detach: bool = False, abandon: bool = False) -> None:
        """Take no more calls, and end the session when all are over; detach: when all are recorded; abandon: now."""
        self._detaching = self._detaching or detach
        self._abandon = self._abandon or abandon
        self.closing = True
        if not self.ended:
            self._waker.wake()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until the session has ended, not longer than this; whether it has.  On its own thread (a done-callback)
        there is nothing to wait for."""
        if not self.on_own_thread():
            self._thread.join(seconds)
            return not self._thread.is_alive()
        return True

    def outstanding(self) -> list[Future]:
        """The futures of all calls that are not over, at some moment."""
        queued = [entry[0] for entry in tuple(self.queue) if isinstance(entry, tuple)]
        while True:
            try:
                return [*self._session.futures(), *queued]
            except RuntimeError:  # the session's thread was at it: once more
                continue

    # ---- the thread

    def serve_until(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Go on serving from inside a done-callback."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            left = BEAT if deadline is None else deadline - time.monotonic()
            if left <= 0 or self.ended or self._fatal is not None:
                return False
            try:
                self._turn(min(left, BEAT))
            except BaseException as exc:  # not the callback's affair: _run ends with it
                self._fatal = exc
        return True

    def _run(self) -> None:
        try:
            while not self._finished():
                self._turn(BEAT)
                if self._fatal is not None:
                    raise self._fatal
        except BaseException as exc:  # nobody may wait for ever because this thread has gone
            if not isinstance(exc, BalsamfutError):
                log.exception("the session's thread ended")
            self._end(exc if isinstance(exc, BalsamfutError) else SiteError(f"the session ended: {describe(exc)}"))
        else:
            self._end(None)

    def _finished(self) -> bool:
        if not self.closing or (self.queue and not self._abandon):
            return False
        left = self._session.unacknowledged if self._detaching else self._session.outstanding
        return self._abandon or not left

    def _end(self, error: BaseException | None) -> None:
        self.closing = True
        if error is not None:
            self.refusal = f"cannot schedule new futures: {describe(error)}"
        if self._line.up and not self._lost:    # or the interchange would count us among the living
            self._line.send(Bye(self._detaching))
        self.ended = True
        self._line.drop(linger=2.0)
        for future in self._session.futures():
            if error is None and self._detaching:
                self._deliverer.end(future, LeftBehind(
                    f"task {future._id} goes on without this script, whose Executor was detached; its result will be "
                    f"in the site {self.site}: `balsamfut task result {future._id}`, or call it again by the "
                    "campaign's name"))
            else:
                self._deliverer.end(future, error)
        for question in self._session.questions():
            question.answered.set()
        self._drop_queue()
        with self._known:
            self._known.notify_all()

    def _drop_queue(self) -> None:
        """What came after the end: nobody will send it."""
        while self.queue:
            try:
                entry = self.queue.popleft()
            except IndexError:
                return
            if isinstance(entry, tuple):
                entry[0].settle(CANCELLED)
            elif isinstance(entry, Ask):
                entry.answered.set()

    def _turn(self, patience: float) -> None:
        """Send what there is, deliver what came; sleep up to `patience` seconds if there was neither."""
        sent = self._flush()
        came = self._receive()
        if sent or came:
            return
        self._waker.arm()
        if self.queue or self._finished():
            return
        readable = self._poller.poll(min(patience, max(self._line.next_beat - time.monotonic(), 0.0)))
        self._waker.clear()
        if self._line.ended(readable):
            self._receive()  # its last words
            self._reconnect()
        elif time.monotonic() >= self._line.next_beat and not self._line.beat():
            self._reconnect()

    def _flush(self) -> bool:
        queue = self.queue
        if not queue:
            return False
        take = queue.popleft
        for message in self._session.take([take() for _ in range(min(len(queue), BATCH))]):
            self._line.send(message)
        return True

    def _receive(self) -> bool:
        messages = self._line.receive()
        self._given_up = False
        for message in messages:
            self._deliveries.extend(self._session.handle(message))
            if isinstance(message, Settled):
                self._losses = 0
            elif isinstance(message, Notice | Refused):
                self._hear(message)
        if messages and self._known_waiters:
            with self._known:
                self._known.notify_all()
        deliveries, deliver = self._deliveries, self._deliverer.deliver
        while deliveries:  # a callback that waits takes the rest of them itself
            deliver(deliveries.popleft())
        if self._given_up:
            self._reconnect()
        return bool(messages)

    def _hear(self, message: Message) -> None:
        if isinstance(message, Notice):
            say(message.text)
        elif isinstance(message, Refused):
            if message.error != InterchangeLost.__name__:
                raise error_named(message.error, message.text)
            self._given_up = True

    def _reconnect(self) -> None:
        """The interchange has gone: go on with another, under the same name."""
        self._lost = True
        if self._finished():
            return
        now = time.monotonic()
        self._losses = 1 if now - self._connected > LASTING else self._losses + 1
        if self._losses > LOSSES:
            raise InterchangeLost(
                f"{self._losses} interchanges of {self.site} in a row ended before any task was over; see "
                f"{self.site}/log/interchange.log; what is recorded is safe: `balsamfut resume` goes on")
        self._connected = now
        self.welcome = self._line.reconnect(lambda: not self._abandon, given_up=self._given_up)
        self._lost = False
        for message in self._session.resend():
            self._line.send(message)


@contextmanager
def _paused(context: TaskContext) -> Iterator[None]:
    context.block()
    try:
        yield
    finally:
        context.unblock()


def open_clients() -> list[Client]:
    """The sessions of this process that have not ended."""
    return [client for client in _clients if not client.ended]


def _after_fork() -> None:
    """A child made by os.fork has none of our threads, and must not touch the parent's sockets."""
    for client in list(_clients):
        client.closing = client.ended = True
        client.refusal = "this process was forked from the one that opened the Executor: open one here"
        client.queue.clear()
        client._known = threading.Condition()
    _clients.clear()


os.register_at_fork(after_in_child=_after_fork)
