"""The loop's way to the database, with patience: what fails for a while is tried again, and people are told why.

It reads what the brain asks for, commits what a turn has written, and gives the owner's signs of life.  Knows how a
Store fails, and nothing of what is written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from balsamfut.clock import Clock
from balsamfut.interchange.records import Around, Lacking, Writes
from balsamfut.interchange.requests import Found, Wanted
from balsamfut.interchange.store import Store, StoreError

log = logging.getLogger(__name__)

V = TypeVar("V")

GIVE_UP: Final = 600.0
"""Seconds that a commit may go on failing before this process ends and leaves the rest to its successor ..."""
GIVE_UP_ALONE: Final = 10.0
"""... and when it is ending anyway, or nobody is there."""


class Recorder:
    """The Store of one interchange, as its loop uses it.

    needed: whether somebody waits for this interchange.  tell: tells clients something.
    """

    def __init__(self, store: Store, clock: Clock, beat_every: float, needed: Callable[[], bool],
                 tell: Callable[[str], None]) -> None:
        self._store = store
        self._clock = clock
        self._beat_every = beat_every
        self._next_beat = clock.now() + beat_every      # to open it was a sign of life
        self._needed = needed
        self._tell = tell
        self._complained = ""       # what was last said about a database that does not take writes

    def read(self, want: Wanted) -> Found:
        """Read it, however long that takes: the database may be locked, or away, for a while."""
        return self._persist(lambda: self._read(want), lambda: GIVE_UP_ALONE)

    def around(self, lacking: Lacking) -> Around:
        """Read what tasks refer to."""
        return self._persist(lambda: self._store.load_around(lacking), lambda: GIVE_UP_ALONE)

    def commit(self, writes: Writes) -> None:
        """Write a turn; while the database does not take it, keep it and try again, and say so."""
        self._persist(lambda: self._store.commit(writes), self._patience)
        if self._complained and writes.tasks:
            self._complained = ""
            log.warning("the database takes writes again")

    def beat(self, now: float) -> None:
        """Give a sign of life when one is due.  Raises SiteTaken where another interchange has taken our place."""
        if now < self._next_beat:
            return
        self._next_beat = now + self._beat_every
        try:
            self._store.beat(now)
        except StoreError as error:
            if not error.transient:
                raise
            self._complain(error)       # what has to be written tries again; a sign of life comes again

    def still_ours(self) -> None:
        """Look, after this process stood still, whether it still is the owner.  Raises SiteTaken where it is not."""
        self._persist(lambda: self._store.beat(self._clock.now()), self._patience)

    def _patience(self) -> float:
        return GIVE_UP if self._needed() else GIVE_UP_ALONE

    def _persist(self, work: Callable[[], V], patience: Callable[[], float]) -> V:
        began = self._clock.now()
        pause = 0.05
        while True:
            try:
                return work()
            except StoreError as error:
                waited = self._clock.now() - began
                if not error.transient or waited > patience():
                    raise
                if waited > 1.0 or not self._complained:
                    self._complain(error)
                time.sleep(pause)
                pause = min(1.5 * pause, 2.0)

    def _complain(self, error: StoreError) -> None:
        """Say, once for each reason, that the database does not take writes."""
        if str(error) == self._complained:
            return
        self._complained = str(error)
        log.error("%s; trying again", error)
        self._tell(f"{error}; the interchange keeps trying, nothing is lost")

    def _read(self, want: Wanted) -> Found:
        found = Found()
        if want.campaign is not None:
            found.tasks = self._store.load_open(want.campaign or None, want.retry_failed)
        if want.tasks:
            found.tasks += self._store.load_tasks(sorted(want.tasks)).values()
        if want.calls is not None:
            found.calls = self._store.find_calls(*want.calls)
        if want.keys is not None:
            found.keys = self._store.find_keys(*want.keys)
        if want.cached:
            found.cached = self._store.find_cached(want.cached)
        if want.token:
            found.session = self._store.find_session(want.token)
        if want.named:
            found.named = self._store.find_campaign(want.named)
        return found
