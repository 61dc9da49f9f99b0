"""Blocks that run though their pilots are not there: a preamble that hangs, an environment that is broken, a network
that lets nobody through.  Part of the brain: pure; what such a block has written is read by the loop (blocks.py).

People are told once where to look, the elastic queue counts on such a block no more and asks for no other that would
do the same, and its own blocks are given up.  The time counts from when the batch system was seen to have started the
block, and not while no interchange was there, since a pilot waits for one.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from balsamfut.interchange.book import Book, Pilot
from balsamfut.interchange.elastic import Failure, pause
from balsamfut.interchange.records import BlockRow
from balsamfut.platforms.queues import span
from balsamfut.provider.base import BlockState


class Arrivals:
    """See the module.  late: seconds until people are told; give_up: until a block of the elastic queue is ended, 0.0:
    never; say: tells people."""

    def __init__(self, book: Book, late: float, give_up: float, say: Callable[[str], None]) -> None:
        self.book = book
        self.failure: Failure | None = None      # blocks in a row that ran without a pilot, whatever their queues
        self._late = late
        self._give_up = give_up
        self._say = say
        self._since: dict[int, float] = {}       # blocks that run without their pilots, and since when

    def never_came(self, row: BlockRow) -> bool:
        """None of its pilots has ever been here: one that has left is not in the book any more."""
        return len(self._missing(row)) == len(row.pilots())

    def _missing(self, row: BlockRow) -> list[Pilot]:
        return [pilot for number, _ in row.pilots()
                if (pilot := self.book.pilots.get(number)) is not None and not pilot.row.started]

    def _awaited(self, row: BlockRow) -> bool:
        return row.state == BlockState.RUNNING and not row.removal and bool(self._missing(row))

    # ---- time passes

    def tick(self, now: float) -> list[BlockRow]:
        """Watch; returns the blocks that are given up."""
        blocks = self.book.blocks
        for row in blocks.values():
            if row.state != BlockState.RUNNING and row.note:     # the batch system has put it back in the queue
                self._note(row, "")
        waiting = {number: row for number, row in blocks.items() if self._awaited(row)}
        self._since = {number: self._since.get(number, now) for number in waiting}
        lost = [row for number, row in waiting.items() if self._give_up and row.why and row.note
                and now - self._since[number] >= self._give_up]
        for row in lost:
            text = f"block {row.id} is ended: its pilot was not there after {span(round(now - self._since[row.id]))}"
            self._say(text)
            self.book.event(now, "no-pilot", text, pilot=row.id)
            if self.failure is not None:         # from now on it is waited before the next one is asked for
                self.failure = msgspec.structs.replace(self.failure, at=now)
        return lost

    def stalled(self, seconds: float) -> None:
        """This process stood still, and could have heard of no pilot."""
        for number in self._since:
            self._since[number] += seconds

    def overdue(self, now: float) -> list[BlockRow]:
        """Blocks of which people are to be told now that their pilots are not there."""
        return [row for number, since in self._since.items() if now - since >= self._late
                and (row := self.book.blocks.get(number)) is not None and self._awaited(row) and not row.note]

    # ---- what is learned

    def missed(self, row: BlockRow, output: str, now: float) -> None:
        """Its pilot is not there.  output: what the block has written, for people."""
        missing = self._missing(row)
        every = len(missing) == len(row.pilots())
        who = "its pilot is" if every else f"{len(missing)} of its {len(row.pilots())} pilots {_are(len(missing))}"
        self._note(row, f"{who} not there after {span(round(now - self._since.get(row.id, now)))}: {output}")
        if every:
            self._failed(f"block {row.id} ran and its pilot was not there", now)
        self._say(f"block {row.id} runs, but {row.note}")

    def came(self, pilot: Pilot) -> None:
        """A block's pilot is here for the first time: blocks work."""
        self.failure = None
        row = self.book.blocks.get(pilot.block)
        if row is not None and row.note and not self._missing(row):
            self._note(row, "")
            self._say(f"block {row.id} works: its pilot is there now")

    def ended(self, row: BlockRow, why: str, output: str, now: float, *, ran: bool) -> None:
        """It is over, and no pilot has been here.  ran: what it ran ended by itself, as far as is known."""
        text = f"block {row.id} ended before its pilot was there: {why}"
        if ran and not row.note:
            self._failed(text, now)
        self._note(row, output or row.note)
        self._say(f"{text}; {output}" if output else text)

    def _failed(self, text: str, now: float) -> None:
        self.failure = Failure(1 + (self.failure.count if self.failure is not None else 0), now, text)

    def _note(self, row: BlockRow, text: str) -> None:
        row.note = text
        self.book.writes.blocks.append(row)

    # ---- what others want to know

    def notes(self) -> list[str]:
        """What people were told of the blocks that there are."""
        return [f"block {row.id} runs, but {row.note}" for row in self.book.blocks.values() if row.note]

    def hindrance(self, backoff: float, now: float) -> str:
        """Why no other block is to be asked for at the moment; "": go on.  backoff: seconds after the first failure."""
        if self.failure is None:
            return ""
        if self._give_up and any(row.why and row.note and number in self._since
                                 for number, row in self.book.blocks.items()):
            return f"{self.failure.text}: no other is asked for until it is there, or the block is ended"
        left = pause(self.failure, backoff) - (now - self.failure.at)
        return f"{self.failure.text}: another is asked for in {span(left)}" if left > 0.0 else ""


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
