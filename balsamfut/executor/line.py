"""The way to whichever interchange serves the site: find or start it, introduce ourselves, notice that it has gone.

One thread uses a Line.  It knows the first messages of a connection and nothing of calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from balsamfut import connection, faults, keyring, sites
from balsamfut.connection import Connection
from balsamfut.errors import InterchangeLost, SiteStopped
from balsamfut.executor import local
from balsamfut.executor.deliver import error_named
from balsamfut.messages import Beat, Hello, Message, Refused, ToClient, Welcome
from balsamfut.wire import Link, Poller

BEAT: Final = 2.0
"""Seconds between signs of life, and between looks at whether the interchange still is who it was."""
SILENCE: Final = 10.0
"""Seconds without a word from the interchange after which the user is told that we wait."""
WELCOME: Final = 30.0
"""Seconds that an interchange may take to answer the first message."""
TRIES: Final = 5
LOOK: Final = 0.3
"""Seconds between looks whether a site that is kept runs again."""
"""Interchanges in a row that may fail to start or to answer before we give up."""


class Line:
    """A connection that outlives interchanges.

    wanted: what an interchange is started with where there is none; None: that is for others to do.
    poller: is told of what to watch.
    """

    def __init__(self, site: Path, hello: Hello, wanted: local.Wanted | None, poller: Poller) -> None:
        self.site = site
        self.up = False
        self._hello = hello
        self._wanted = wanted
        self._poller = poller
        self._pidfd = -1
        self._told = ""     # what the user was last told about the interchange

    def connect(self) -> Welcome:
        """Find or start an interchange and introduce ourselves; it may be ending just then, so more than once.

        Raises what `local.find_or_start` raises, and what the interchange refuses us with.
        """
        for attempt in range(TRIES):
            found = local.find(self.site) if self._wanted is None else local.find_or_start(self.site, self._wanted)
            self._open(found)
            try:
                welcome = self._introduce()
                self._heard = time.monotonic()
                self.next_beat = self._heard + BEAT
                return welcome
            except InterchangeLost:  # it ended, or is about to
                self.drop()
                if attempt == TRIES - 1 or self._hello.parent or not found.here:
                    raise
            except BaseException:
                self.drop()
                raise
            time.sleep(0.02 * 2 ** attempt)
        raise AssertionError("the last try raised")

    def reconnect(self, patient: Callable[[], bool] = lambda: True, *, given_up: bool = False) -> Welcome:
        """The interchange has gone: find another.  Raises as connect() does, InterchangeLost not at the first time.

        patient: whether to wait on for a site that somebody else has to start.  given_up: it is there, but has taken us
        for dead.
        """
        gone = f"lost the interchange (process {self._connection.pid})"
        if not given_up and sites.read(self.site) is None:
            self.tell(f"{gone}; starting another, and waiting for it")
        self.drop()
        for attempt in range(TRIES):
            try:
                welcome = self._connect_to_kept(gone, patient)
                self.tell("")
                return welcome
            except SiteStopped:
                raise
            except InterchangeLost as exc:
                if attempt == TRIES - 1:
                    raise InterchangeLost(f"{exc}; what is recorded is safe: `balsamfut resume` goes on") from exc
            time.sleep(0.1 * 2 ** attempt)
        raise AssertionError("the last try raised")

    def _connect_to_kept(self, gone: str, patient: Callable[[], bool]) -> Welcome:
        """Connect, as soon as the site runs.  Raises as connect() does, SiteStopped when patience has an end."""
        while True:
            try:
                return self.connect()
            except SiteStopped as exc:
                if not patient():
                    raise
                self.tell(f"{gone}: {exc}; waiting until it is")
                time.sleep(LOOK)

    def _open(self, found: Connection) -> None:
        self._connection = found
        self._link = Link(found.clients, ToClient, keyring.link(self.site, "client", found.clients))
        self._poller.register(self._link)
        self.up = True
        try:
            self._pidfd = os.pidfd_open(found.pid)
            self._poller.register(self._pidfd)
        except OSError:  # it has gone already, or this kernel has none: then beats find out
            self._pidfd = -1

    def drop(self, linger: float = 0.0) -> None:
        """Close; what was sent may still leave for `linger` seconds."""
        if self._pidfd >= 0:
            self._poller.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self.up:
            self.up = False
            self._poller.unregister(self._link)
            self._link.close(linger)

    def meet(self, found: Connection, seconds: float) -> Welcome:
        """Introduce ourselves to this interchange.  Raises as _introduce does."""
        self._open(found)
        return self._introduce(seconds)

    def _introduce(self, seconds: float = WELCOME) -> Welcome:
        """Say Hello.  Raises InterchangeLost where it does not answer in time, and what it refuses us with."""
        poller = Poller()
        poller.register(self._link)
        if self._pidfd >= 0:
            poller.register(self._pidfd)
        self._link.send(self._hello)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            readable = poller.poll(min(0.5, seconds))
            for message in self._link.receive(1):
                if isinstance(message, Welcome):
                    return message
                if isinstance(message, Refused):
                    raise error_named(message.error, message.text)
            if self._pidfd in readable or not self._connection.alive:
                break
        there = self._connection
        more = f"see {self.site}/log/interchange.log" if there.here else (
            f"it was last seen as {there.text}: if it is gone, `balsamfut site start` on this host takes its place")
        raise InterchangeLost(f"the interchange of {self.site} does not answer; {more}")

    def send(self, message: Message) -> None:
        if faults.active:
            faults.point(f"client.send.{type(message).__name__}")
        self._link.send(message)

    def receive(self) -> list[Message]:
        messages = self._link.receive(64)
        if messages:
            self._heard = time.monotonic()
        return messages

    def ended(self, readable: list[Any]) -> bool:
        """The interchange's process has ended, says what a poll returned."""
        return self._pidfd >= 0 and self._pidfd in readable

    def beat(self) -> bool:
        """Give a sign of life; False where the interchange has gone or another has taken its place."""
        now = time.monotonic()
        self.next_beat = now + BEAT
        found = connection.read(self.site)
        if not self._connection.alive or (found is not None and found.epoch != self._connection.epoch):
            return False
        silent = now - self._heard > SILENCE
        self.tell(f"the interchange (process {self._connection.pid}) does not answer; waiting" if silent else "")
        self.send(Beat())
        return True

    def tell(self, text: str) -> None:
        """Tell the user about the interchange, once; an empty text: all is well again."""
        if text and text != self._told:
            local.say(text)
        self._told = text
