"""The session's thread: sends what an Executor's threads hand over, brings back how calls ended, and finds a new
interchange when the one it had is gone.

One thread owns the socket.  Others append to a queue and ring it; it takes what has gathered as one message, so a loop
of submits is coalesced while a single one leaves at once.  This module knows no apps and makes no calls (see desk.py).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from balsamfut import faults
from balsamfut.context import TaskContext
from balsamfut.errors import BalsamfutError, InterchangeLost, SiteError, UsageError
from balsamfut.executor import local
from balsamfut.executor.core import BATCH, Ask, Delivery, Entry, Future, Session, Wish
from balsamfut.executor.deliver import Deliverer, describe, error_named
from balsamfut.futures import CANCELLED, TaskFuture
from balsamfut.messages import Beat, Bye, Hello, Message, Notice, Refused, ToClient, Welcome
from balsamfut.wire import Link, Poller, Waker

log = logging.getLogger(__name__)

BEAT: Final = 2.0
"""Seconds between signs of life, and between looks at whether the interchange still is who it was."""
SILENCE: Final = 10.0
"""Seconds without a word from the interchange after which the user is told that we wait."""
WELCOME: Final = 30.0
"""Seconds that an interchange may take to answer the first message."""
TRIES: Final = 5
"""Interchanges in a row that may fail to start before the session gives up."""

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """One session with the interchange of a site, over all interchanges that serve the site in turn.

    Raises from the constructor whatever keeps the interchange from serving this client.
    """

    def __init__(self, site: Path, hello: Hello, wanted: local.Wanted, context: TaskContext | None = None) -> None:
        self.site = site
        self.nested = context is not None
        self.queue: deque[Entry] = deque()
        self.closing = False      # no more calls are taken
        self.ended = False        # the thread has gone, or is about to
        self.refusal = "cannot schedule new futures after shutdown"
        self._context = context
        self._hello = hello
        self._wanted = wanted
        self._session = Session()
        self._deliveries: deque[Delivery] = deque()
        self._waker = Waker()
        self._poller = Poller()
        self._poller.register(self._waker)
        self._detaching = False
        self._abandon = False     # leave without waiting for calls
        self._said = ""           # what the user was last told about the interchange
        self._known = threading.Condition()
        self._known_waiters = 0
        self._link: Link | None = None
        self._pidfd = -1
        self._lost = False
        self.welcome = self._connect()
        self.data = Path(self.welcome.data)
        self.objects = Path(self.welcome.objects)
        self._deliverer = Deliverer(self.objects)
        self._thread = threading.Thread(target=self._run, name="balsamfut-session", daemon=True)
        self._thread.start()
        _clients.add(self)

    @property
    def broken(self) -> BaseException | None:
        return self._deliverer.broken

    # ---- for other threads

    def wake(self) -> None:
        self._waker.wake()

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
        """Cancel or kill; waits for the answer."""
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
            return bool(future._id) or future.done()

        if self.on_own_thread():
            self.serve_until(known, None)
            return
        with self._known:
            self._known_waiters += 1
            try:
                self._known.wait_for(lambda: known() or self.ended)
            finally:
                self._known_waiters -= 1

    def on_own_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def paused(self) -> AbstractContextManager[object]:
        return _paused(self._context) if self._context is not None else nullcontext()

    def close(self, *, detach: bool = False, abandon: bool = False) -> None:
        """Take no more calls, and end the session when all are over; detach: when all are recorded; abandon: now."""
        self.closing = True
        self._detaching = self._detaching or detach
        self._abandon = self._abandon or abandon
        self._waker.wake()

    def join(self) -> None:
        """Wait until the session has ended.  On its own thread (a done-callback) there is nothing to wait for."""
        if not self.on_own_thread():
            self._thread.join()

    def outstanding(self) -> list[Future]:
        """The futures of all calls that were handed over and are not over: a snapshot."""
        queued = [entry[0] for entry in tuple(self.queue) if isinstance(entry, tuple)]
        return [*self._session.futures(), *queued]

    # ---- the thread

    def serve_until(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Go on serving from inside a done-callback."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            left = BEAT if deadline is None else deadline - time.monotonic()
            if left <= 0 or self.ended:
                return False
            self._turn(min(left, BEAT))
        return True

    def _run(self) -> None:
        try:
            while not self._finished():
                self._turn(BEAT)
        except BaseException as exc:  # nobody may wait for ever because this thread has gone
            if not isinstance(exc, BalsamfutError):
                log.exception("the session's thread ended")
            error = exc if isinstance(exc, BalsamfutError) else SiteError(f"the session ended: {describe(exc)}")
            self._end(error)
        else:
            self._end(None)

    def _finished(self) -> bool:
        if not self.closing or self.queue:
            return False
        if self._abandon:
            return True
        return not (self._session.unacknowledged if self._detaching else self._session.outstanding)

    def _end(self, error: BaseException | None) -> None:
        self.closing = True
        if error is not None:
            self.refusal = f"cannot schedule new futures: {describe(error)}"
        self.ended = True
        assert self._link is not None
        if error is None and not self._lost:
            self._send(Bye(self._detaching))
        self._drop_link(linger=2.0)
        left = self._session.futures()
        if error is None and self._detaching:
            for future in left:
                self._deliverer.end(future, UsageError(
                    f"task {future._id} goes on without this script, whose Executor was detached; its result will be "
                    "in the site"))
        for future in left:
            self._deliverer.end(future, error)
        for question in self._session.questions():
            question.answered.set()
        self._drop_queue()
        self._waker.close()
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
        if sent or came or (self.closing and self._finished()):
            return
        self._waker.arm()
        if self.queue:
            return
        readable = self._poller.poll(min(patience, max(self._next_beat - time.monotonic(), 0.0)))
        self._waker.clear()
        if self._pidfd >= 0 and self._pidfd in readable:
            self._receive()  # its last words
            self._reconnect()
        elif time.monotonic() >= self._next_beat:
            self._beat()

    def _flush(self) -> bool:
        queue = self.queue
        if not queue:
            return False
        take = queue.popleft
        messages = self._session.take([take() for _ in range(min(len(queue), BATCH))])
        for message in messages:
            self._send(message)
        return True

    def _send(self, message: Message) -> None:
        assert self._link is not None
        if faults.active:
            faults.point(f"client.send.{type(message).__name__}")
        self._link.send(message)

    def _receive(self) -> bool:
        assert self._link is not None
        messages = self._link.receive(64)
        for message in messages:
            self._take(message)
        deliveries, deliver = self._deliveries, self._deliverer.deliver
        while deliveries:  # a callback that waits takes the rest of them itself
            deliver(deliveries.popleft())
        return bool(messages)

    def _take(self, message: Message) -> None:
        self._heard = time.monotonic()
        self._deliveries.extend(self._session.handle(message))
        if self._known_waiters:
            with self._known:
                self._known.notify_all()
        if isinstance(message, Notice):
            say(message.text)
        elif isinstance(message, Refused):
            raise error_named(message.error, message.text)

    # ---- the interchange

    def _connect(self) -> Welcome:
        """Find or start an interchange and introduce ourselves; it may be ending just then, so more than once."""
        for attempt in range(TRIES):
            connection = local.find_or_start(self.site, self._wanted)
            self._open_link(connection)
            try:
                welcome = self._introduce()
            except BaseException:
                self._drop_link()
                raise
            if welcome is not None:
                self._heard = time.monotonic()
                self._next_beat = self._heard + BEAT
                self._lost = False
                return welcome
            self._drop_link()
            time.sleep(0.02 * 2 ** attempt)
        raise InterchangeLost(f"the interchange of {self.site} does not answer; see {self.site}/log/interchange.log")

    def _open_link(self, connection: local.Connection) -> None:
        self._connection = connection
        self._link = Link(connection.clients, ToClient)
        self._poller.register(self._link)
        try:
            self._pidfd = os.pidfd_open(connection.pid)
            self._poller.register(self._pidfd)
        except OSError:  # it has gone already, or the kernel is too old: the beat finds out
            self._pidfd = -1

    def _drop_link(self, linger: float = 0.0) -> None:
        if self._pidfd >= 0:
            self._poller.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._link is not None:
            self._poller.unregister(self._link)
            self._link.close(linger)

    def _introduce(self) -> Welcome | None:
        """Say Hello; None where the interchange ended before it answered."""
        assert self._link is not None
        self._link.send(self._hello)
        deadline = time.monotonic() + WELCOME
        while time.monotonic() < deadline:
            readable = self._poller.poll(0.5)
            for message in self._link.receive(1):
                if isinstance(message, Welcome):
                    return message
                if isinstance(message, Refused):
                    raise error_named(message.error, message.text)
            if self._pidfd in readable or not local.alive(self._connection):
                return None
            if self._waker in readable:
                self._waker.clear()
        return None

    def _beat(self) -> None:
        now = time.monotonic()
        self._next_beat = now + BEAT
        found = local.read(self.site)
        if not local.alive(self._connection) or (found is not None and found.epoch != self._connection.epoch):
            self._reconnect()
            return
        if now - self._heard > SILENCE:
            self._tell(f"the interchange (process {self._connection.pid}) has not answered for {SILENCE:.0f} s; waiting")
        elif self._said:
            self._tell("")
        self._send(Beat())

    def _reconnect(self) -> None:
        """The interchange has gone: go on with another, under the same name."""
        self._lost = True
        if self._finished():
            return
        self._tell(f"lost the interchange (process {self._connection.pid}); starting another and waiting for it")
        self._drop_link()
        for attempt in range(TRIES):
            try:
                self.welcome = self._connect()
                break
            except InterchangeLost as exc:
                if attempt == TRIES - 1:
                    raise InterchangeLost(f"{exc}; what is recorded is safe: `balsamfut resume` goes on with it") from exc
                time.sleep(0.1 * 2 ** attempt)
        for message in self._session.resend():
            self._send(message)
        self._tell("")

    def _tell(self, text: str) -> None:
        """Tell the user once."""
        if text and text != self._said:
            say(text)
        self._said = text


def say(text: str) -> None:
    try:
        print(f"balsamfut: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):  # no stderr
        pass


@contextmanager
def _paused(context: TaskContext) -> Iterator[None]:
    context.block()
    try:
        yield
    finally:
        context.unblock()


def hello(protocol: int, token: str, campaign: str | None, **more: Any) -> Hello:
    """The first message of this process."""
    return Hello(protocol, token, campaign, os.getpid(), os.uname().nodename, **more)


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
