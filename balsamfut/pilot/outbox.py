"""What a pilot has to say and what it said that is not acknowledged yet.  Pure."""

from __future__ import annotations

from balsamfut.messages import Exited, Ran, Reports, Started
from balsamfut.pilot.events import Key

Report = Started | Exited | Ran


class Outbox:
    """Reports in order, numbered from 1, kept until the interchange has recorded them."""

    def __init__(self) -> None:
        self.waiting: list[Report] = []
        self.unacknowledged: dict[int, Reports] = {}
        self._seq = 0

    def pack(self) -> Reports | None:
        """What is new, as one message that is kept; None: nothing is new."""
        if not self.waiting:
            return None
        self._seq += 1
        message = Reports(self._seq, self.waiting)
        self.unacknowledged[self._seq] = message
        self.waiting = []
        return message

    def received(self, seq: int) -> None:
        """Everything up to this number is recorded."""
        for number in [number for number in self.unacknowledged if number <= seq]:
            del self.unacknowledged[number]

    def ended(self) -> list[Key]:
        """The attempts whose end is reported but not acknowledged."""
        messages = [message.reports for message in self.unacknowledged.values()] + [self.waiting]
        return [(report.task, report.attempt) for reports in messages for report in reports if type(report) is Exited]
