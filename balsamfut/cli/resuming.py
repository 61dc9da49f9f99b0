"""Going on with campaigns: which of them together, on what machine, and following them until they are over.

An embedded interchange lives while somebody keeps it, and here that is this process: it says Resume, then waits for the
endings of the tasks that it is told of.  Whether all is over is asked of the database in the end, since tasks may have
called others meanwhile.  This module prints nothing but progress.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from balsamfut import connection
from balsamfut.cli import output
from balsamfut.cli.progress import SHARE, Progress, progress
from balsamfut.connection import runs
from balsamfut.errors import InterchangeLost, SiteError
from balsamfut.executor import local
from balsamfut.executor.deliver import error_named
from balsamfut.executor.line import Line
from balsamfut.messages import PROTOCOL, Bye, Hello, Message, Notice, Refused, Resume, Resumed, Settled
from balsamfut.query import Reader
from balsamfut.wire import Poller

PATIENCE: Final = 20.0
"""Seconds that an interchange which is of no use to us may take to end."""
STOPPING: Final = 5.0
"""Seconds for which one that is stopping may turn us away."""
QUIET: Final = 1.0
"""Seconds without an ending after which the database is asked whether anything is left to wait for."""
PAUSE: Final = 0.1
"""Seconds before campaigns are resumed once more."""
LOSSES: Final = 5
"""Interchanges in a row that may end before a single task does."""
UNFINISHED: Final = ("WAITING", "READY", "ASSIGNED", "RUNNING")
MOVING: Final = ("READY", "ASSIGNED", "RUNNING")


@dataclass(frozen=True)
class Plan:
    """Campaigns that ask for the same machine."""

    wanted: local.Wanted
    campaigns: tuple[str, ...]


def plan(reader: Reader, campaign: str | None, retry_failed: bool) -> list[Plan]:
    """What is unfinished, by what the newest script of each campaign asked for."""
    states = (*UNFINISHED, "HELD") + (("FAILED", "UPSTREAM_FAILED") if retry_failed else ())
    groups: dict[local.Wanted, list[str]] = {}
    for found in reader.campaigns():
        if campaign in (None, found.name) and any(found.counts.get(state) for state in states):
            groups.setdefault(wanted_by(reader, found.name), []).append(found.name)
    return [Plan(wanted, tuple(names)) for wanted, names in groups.items()]


def wanted_by(reader: Reader, campaign: str) -> local.Wanted:
    """The machine that the newest script of a campaign asked for."""
    session = reader.newest_session(campaign)
    info = session.info if session is not None else {}
    return local.Wanted(info.get("platform", ""), int(info.get("nodes") or 0), int(info.get("max_workers") or 0))


def wait_for_end(site: Path) -> None:
    """Wait for the interchange, if there is one, to end after its last client; one that somebody else uses stays."""
    deadline = time.monotonic() + PATIENCE
    while (found := connection.read(site)) is not None and found.alive and time.monotonic() < deadline:
        time.sleep(0.05)


class Resumption:
    """Brings the campaigns of one plan to their end."""

    def __init__(self, site: Path, reader: Reader, plan: Plan, retry_failed: bool) -> None:
        self.site = site
        self.reader = reader
        self.plan = plan
        self.retry_failed = retry_failed
        self.poller = Poller()
        wanted = plan.wanted
        hello = Hello(PROTOCOL, uuid.uuid4().hex, None, os.getpid(), os.uname().nodename, platform=wanted.platform,
                      nodes=wanted.nodes, observer=True)
        self.line = Line(site, hello, wanted, self.poller)
        self.open: set[int] = set()     # tasks that the interchange said are not over
        self.awaited = 0                # Resumed messages that have not come yet
        self.losses = 0                 # interchanges that ended since the last task did
        self.ask_again = 0.0            # the database, not before this time

    def run(self) -> None:
        """Return when nothing is left but what is over, held, or waits for what is held."""
        try:
            self.connect()
            self.resume()
            with progress(self.counts, ", ".join(self.plan.campaigns)) as shown:
                while self.unfinished():
                    self.follow(shown)
        finally:
            if self.line.up:
                self.line.send(Bye())
            self.line.drop(linger=1.0)

    # ---- the interchange

    def connect(self) -> None:
        """Find an interchange for the right machine, or start one; the last user's may be ending just now."""
        wanted = self.plan.wanted
        began = time.monotonic()
        while True:
            try:
                welcome = self.line.connect()
            except InterchangeLost:
                if time.monotonic() > began + STOPPING:
                    raise
                time.sleep(0.2)
                continue
            platform, nodes = wanted.platform or welcome.platform, wanted.nodes or welcome.nodes
            if (platform, nodes) == (welcome.platform, welcome.nodes):
                return
            if time.monotonic() > began + PATIENCE:
                raise InterchangeLost(
                    f"the interchange of {self.site} runs for platform {welcome.platform} with {welcome.nodes} nodes "
                    f"and does not end, and these campaigns ask for {platform} with {nodes}")
            self.line.send(Bye())
            self.line.drop(linger=1.0)
            time.sleep(0.2)

    def resume(self) -> None:
        """Ask for all campaigns; what failed is tried again once."""
        self.open.clear()
        self.awaited = len(self.plan.campaigns)
        for name in self.plan.campaigns:
            self.line.send(Resume(name, self.retry_failed))

    def reconnect(self) -> None:
        self.losses += 1
        if self.losses > LOSSES:
            raise InterchangeLost(f"{self.losses} interchanges of {self.site} in a row ended before any task was over; "
                                  f"see {self.site / 'log' / 'interchange.log'}; what is recorded is safe")
        self.line.reconnect()
        self.resume()

    # ---- following

    def follow(self, shown: Progress) -> None:
        """Wait until nothing that the interchange named is left, or nothing of it can move."""
        quiet_since = time.monotonic()
        while self.awaited or self.open:
            readable = self.poller.poll(0.25)
            before = len(self.open)
            known = [self.take(message) for message in self.line.receive()]
            now = time.monotonic()
            if not all(known) or self.line.ended(readable) or (now >= self.line.next_beat and not self.line.beat()):
                self.reconnect()
            if len(self.open) != before:
                quiet_since = now
            elif not self.awaited and now > max(quiet_since + QUIET, self.ask_again) and not self.unfinished():
                return
            shown.update()
        if self.unfinished():   # called by tasks meanwhile, or tried again by somebody
            time.sleep(PAUSE)
            self.resume()

    def take(self, message: Message) -> bool:
        """Take note of a message; False where the interchange does not know us (any more)."""
        if isinstance(message, Resumed):
            self.awaited -= 1
            self.open.update(message.tasks)
            if not self.awaited:
                self.retry_failed = False
        elif isinstance(message, Settled):
            self.open.difference_update(ending.task for ending in message.endings)
            self.losses = 0
        elif isinstance(message, Notice):
            output.say(message.text)
        elif isinstance(message, Refused):
            error = error_named(message.error, message.text)
            if not isinstance(error, InterchangeLost):
                raise error
            return False
        return True

    # ---- the database

    def counts(self) -> dict[str, int]:
        """Tasks of these campaigns by state."""
        total: dict[str, int] = {}
        for name in self.plan.campaigns:
            for state, number in self.reader.count(campaign=name).items():
                total[state] = total.get(state, 0) + number
        return total

    def unfinished(self) -> bool:
        """Whether there is something to wait for.

        Where all that is left waits, it waits for a held task, which is a person's affair, or for a future that only a
        script can bring, which is worth waiting for while there is one.
        """
        if self.awaited:
            return True
        began = time.monotonic()
        try:
            counts = self.counts()
        except SiteError:   # busy just now
            return True
        finally:
            now = time.monotonic()
            self.ask_again = now + max(QUIET, (now - began) / SHARE)
        if any(counts.get(state) for state in MOVING):
            return True
        return bool(counts.get("WAITING")) and not counts.get("HELD") and self.has_script()

    def has_script(self) -> bool:
        """The newest script of one of these campaigns is running, as far as can be told from here."""
        sessions = [self.reader.newest_session(name) for name in self.plan.campaigns]
        return any(each is not None and each.closed is None and (each.host != os.uname().nodename or runs(each.pid))
                   for each in sessions)
