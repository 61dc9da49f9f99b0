"""The pilots that an embedded interchange has on its own machine: when one is started, replaced, or given up.

Part of the brain: pure.  What pilots do with tasks is in attempts.py, starting their processes in blocks.py.
"""

from __future__ import annotations

from typing import Final

from balsamfut.errors import LaunchFailed
from balsamfut.interchange.attempts import Attempts
from balsamfut.interchange.book import Book, Pilot
from balsamfut.interchange.matcher import ReadyQueues
from balsamfut.interchange.records import PilotRow
from balsamfut.interchange.sessions import Sessions, Shape
from balsamfut.messages import Hello, Stop
from balsamfut.serialize import error_payload

PILOT_SILENCE: Final = 120.0
"""Seconds without a sign after which a pilot is given up: by then one that was only cut off has ended its tasks."""
FAILED_STARTS: Final = 3
"""So many local pilots in a row that never enrolled, and the tasks that wait for one fail."""
PAUSE: Final = 10.0
"""Seconds between starts, at most, of local pilots that end before they have anything to report."""


class Pilots:
    """The part of the brain that wants pilots."""

    def __init__(self, book: Book, sessions: Sessions, attempts: Attempts, queues: ReadyQueues) -> None:
        self.book = book
        self.sessions = sessions
        self.attempts = attempts
        self.queues = queues
        self.failed_starts = 0
        self.useless = 0               # pilots in a row that ended before they had anything to report
        self.next_start = 0.0

    def wanted(self, now: float) -> bool:
        """Whether a pilot is to be started on this machine."""
        return (self.sessions.config.embedded and not self.sessions.stopping and now >= self.next_start
                and all(pilot.stopping for pilot in self.book.pilots.values()))

    def new(self, token: str, now: float) -> PilotRow:
        """A pilot that is about to be started: it is recorded before it exists."""
        book = self.book
        shape = self.sessions.shape
        row = PilotRow(book.next_pilot, token, "", 0, shape.platform, shape.nodes, 0.0)
        book.next_pilot += 1
        pilot = Pilot(row)
        pilot.heard, pilot.deadline = now, now + PILOT_SILENCE
        book.pilots[row.id] = pilot
        book.writes.pilots.append(row)
        return row

    def gone(self, number: int, reason: str, now: float) -> None:
        """The batch system, or the operating system, says that a pilot is over."""
        pilot = self.book.pilots.get(number)
        if pilot is None:
            return
        if not pilot.enrolled and not pilot.stopping and self.sessions.config.embedded:
            self.failed_starts += 1     # of a site's blocks, the next one may well start: its tasks wait
        self.useless = 0 if pilot.seq or pilot.stopping else self.useless + 1
        self.next_start = now + min(0.5 * max(self.failed_starts, self.useless - 1), PAUSE)
        self.attempts.lost(pilot, reason, now)
        if self.failed_starts >= FAILED_STARTS:
            self._give_up(reason, now)

    def _give_up(self, reason: str, now: float) -> None:
        """No pilot can be started on this machine: what waits for one fails with the reason."""
        text = f"the pilot on this machine could not be started, {self.failed_starts} times: {reason}"
        for task in self.queues.tasks():
            self.attempts.give_up(task, error_payload(LaunchFailed(text)), text, now)
        self.next_start = now + 30.0

    def reshape(self, message: Hello) -> None:
        """A client that is alone decides what the local pilot is: replace one that was made for another."""
        if len(self.sessions.alive()) > 1:
            return
        usual = self.sessions.config.usual
        platform = message.platform or usual.platform
        cores = message.max_workers or (usual.cores if platform == usual.platform else 0)
        nodes = usual.nodes if usual.hosts else message.nodes or usual.nodes
        wished = Shape(platform, nodes, cores if platform == "workstation" else 0, usual.hosts, usual.pretend)
        if wished == self.sessions.shape:
            return
        self.sessions.shape = wished
        self.sessions.flow.slots = wished.nodes * wished.cores
        for pilot in self.book.pilots.values():
            if not pilot.held and not pilot.stopping:
                self.stop(pilot, 0.0)

    def stop(self, pilot: Pilot, grace: float) -> None:
        """Have a pilot end what it has, in so many seconds, and leave."""
        pilot.stopping, pilot.grace = True, grace
        self.book.send_pilot(pilot, Stop(grace))
