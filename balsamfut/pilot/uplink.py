"""The way to the interchange: the connection file, the socket, and how long there has been nobody at its other end.

Knows how to find an interchange, and not what is said.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Final

from balsamfut import connection, keyring
from balsamfut.connection import Connection, runs
from balsamfut.errors import SiteError
from balsamfut.messages import Message, ToPilot
from balsamfut.wire import Link, Poller

log = logging.getLogger("balsamfut.pilot")

PATIENCE: Final = 300.0
"""Seconds that the pilot of a block waits for an interchange to be there at all: the block has waited in a queue, maybe
for days, and a login node that starts again takes minutes."""
SILENCE: Final = 6.0
"""Seconds without a word after which an interchange that cannot be looked at counts as gone."""


def expect(site: Path, seconds: float) -> None:
    """Wait until an interchange of the site has said where it is, so many seconds at most."""
    if connection.read(site) is not None:
        return
    log.info("no interchange of %s is running: waiting for one, %g s at most", site, seconds)
    end = time.monotonic() + seconds
    while connection.read(site) is None and time.monotonic() < end:
        time.sleep(0.5)


class Uplink:
    """The link to the interchange that serves the site now."""

    def __init__(self, site: Path, address: str, starter: int, poller: Poller, now: float) -> None:
        self._site = site
        self._poller = poller
        self.known = connection.read(self._site)
        self._starter = starter           # the interchange that started us, until another has taken its place; or 0
        address = address or (self.known.pilots if self.known is not None else "")
        if not address:
            raise SiteError(f"no interchange of {site} is running: there is no {site / connection.NAME}")
        self.link = Link(address, ToPilot, keyring.link(site, "pilot", address))
        self.heard = now                  # when the interchange last said something
        self.away: float | None = None    # since when there is nobody
        self.replaced = True              # somebody says to be the site's interchange, whether we reach it or not
        poller.register(self.link)

    @property
    def clients(self) -> str:
        """The address of the clients' door; "" where it is not known."""
        return self.known.clients if self.known is not None else ""

    def receive(self, limit: int, now: float) -> list[Message]:
        messages = self.link.receive(limit)
        if messages:
            self.heard = now
            self.away = None
        return messages

    def look(self, now: float) -> bool:
        """Look whether the interchange is still there; True: there is a new one, and the link leads to it."""
        found = connection.read(self._site)
        if found is not None and found.pilots != self.link.address and self._alive(found):
            self._poller.unregister(self.link)
            self.link.close()
            self.link = Link(found.pilots, ToPilot, keyring.link(self._site, "pilot", found.pilots))
            self._poller.register(self.link)
            self.known, self.heard, self.away = found, now, None
            self._starter = 0
            return True
        self.replaced = found is not None
        if found is not None:
            self.known = found
        if found is not None:
            there = self._alive(found, now)
        else:   # it has not said yet where it is, or it is ending; our starter's end makes us another's child
            process = self._alive(self.known) if self.known is not None else self._starter in (0, os.getppid())
            there = now - self.heard < SILENCE and process
        if there:
            self.away = None
        elif self.away is None:
            self.away = now
        return False

    def _alive(self, found: Connection, now: float | None = None) -> bool:
        """An interchange of another host is alive while it speaks; one of this host while its process is there."""
        if not found.here:
            return now is None or now - self.heard < SILENCE
        return runs(found.pid)

    def send(self, message: Message) -> None:
        self.link.send(message)

    def close(self, linger: float) -> None:
        self._poller.unregister(self.link)
        self.link.close(linger)
