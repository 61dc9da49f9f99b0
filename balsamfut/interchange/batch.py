"""The blocks of a site: nodes asked of a batch system, each for one pilot.  Part of the brain: pure.

A block is recorded before it is asked for, and what the batch system says of it afterwards is recorded as it was said.
Asking is done by the loop (blocks.py) through a provider; what a pilot does with its nodes is in attempts.py.
"""

from __future__ import annotations

import math
from typing import Final

from balsamfut.interchange.book import Book, Pilot
from balsamfut.interchange.pilots import Pilots
from balsamfut.interchange.records import BlockRow, PilotRow
from balsamfut.interchange.sessions import Sessions
from balsamfut.messages import BlockAnswer, Notice, RemoveBlock, SubmitBlock
from balsamfut.platforms import Platform
from balsamfut.platforms.queues import Taken, refusal, tables
from balsamfut.provider.base import BlockState, BlockStatus

MODES: Final = ("any", "mpi", "serial")


class Batch:
    """The part of the brain that asks for blocks."""

    def __init__(self, book: Book, sessions: Sessions, pilots: Pilots, platform: Platform, provider: str) -> None:
        self.book = book
        self.sessions = sessions
        self.pilots = pilots
        self.platform = platform
        self.provider = provider
        self.queues = tables(platform)
        self.wanted: list[BlockRow] = []       # to be submitted once this turn is committed
        self.unwanted: list[BlockRow] = []     # to be cancelled
        self._trouble = ""                     # what people were last told of the batch system
        for row in book.blocks.values():
            pilot = book.pilots.get(row.id)
            if pilot is not None:
                _wait(pilot)

    # ---- what people ask for

    def submit(self, peer: bytes, message: SubmitBlock, token: str, now: float) -> None:
        """Ask for a block, or say in one sentence why not.  token: unique for ever."""
        why = self._refusal(message)
        if why is not None:
            self._answer(peer, BlockAnswer(message.request, 0, why))
            return
        book = self.book
        pilot = PilotRow(book.next_pilot, token, "", 0, self.platform.name, message.nodes, 0.0)
        book.next_pilot += 1
        book.pilots[pilot.id] = made = Pilot(pilot)
        _wait(made)
        row = BlockRow(pilot.id, token, self.provider, "", message.queue, message.project, message.nodes,
                       message.walltime, message.mode, dict(message.params), BlockState.SUBMITTING, "", now)
        book.blocks[row.id] = row
        book.writes.pilots.append(pilot)
        book.writes.blocks.append(row)
        self.wanted.append(row)
        self._answer(peer, BlockAnswer(message.request, row.id, ""))

    def _refusal(self, message: SubmitBlock) -> str | None:
        if self.sessions.config.embedded:
            return ("the interchange that runs here belongs to a script and has its own machine alone; blocks are for "
                    "sites that are kept: `balsamfut site init`")
        if message.mode not in MODES:
            return f"mode {message.mode!r} was asked; there are {', '.join(MODES)}"
        if self.platform.scheduler.get("account_required") and not message.project:
            return f"{self.platform.name} wants to know which project pays: -A PROJECT"
        taken: dict[str, Taken] = {}
        for row in self.book.blocks.values():
            before = taken.get(row.queue, Taken())
            running = row.state == BlockState.RUNNING
            taken[row.queue] = Taken(before.queued + (not running), before.running + running)
        return refusal(self.queues, message.queue, message.nodes, message.walltime, taken, machine=self.platform.name)

    def remove(self, peer: bytes, message: RemoveBlock) -> None:
        """End a block: its pilot's tasks go elsewhere."""
        row = self.book.blocks.get(message.block)
        if row is None:
            why = f"there is no block {message.block} here that is not over; `balsamfut queue ls` lists them"
            self._answer(peer, BlockAnswer(message.request, 0, why))
            return
        self.unwanted.append(row)
        self._answer(peer, BlockAnswer(message.request, row.id, ""))

    def _answer(self, peer: bytes, answer: BlockAnswer) -> None:
        self.book.out.clients.setdefault(peer, []).append(answer)

    # ---- what the batch system says

    def trouble(self, text: str) -> None:
        """It does not answer, or answers again (""): people are told once; no block is over for that."""
        if text == self._trouble:
            return
        said = text or "the batch system answers again"
        self._trouble = text
        for session in self.sessions.alive():
            self.book.send_client(session, Notice(said))

    def told(self, status: BlockStatus, now: float) -> None:
        """Record it; a block that is over takes its pilot along."""
        row = next((row for row in self.book.blocks.values() if row.token == status.token), None)
        if row is None:
            return
        row.state, row.batch_id, row.text = status.state, status.id or row.batch_id, status.text
        if status.state is BlockState.RUNNING:
            row.started = row.started or now
        self.book.writes.blocks.append(row)
        if status.over:
            row.ended, row.exit_code = now, status.exit_code
            del self.book.blocks[row.id]
            self.pilots.gone(row.id, status.text or _ended(status.exit_code), now)


def _ended(code: int | None) -> str:
    return "its block is over" if code in (None, 0) else f"its block ended with {code}"


def _wait(pilot: Pilot) -> None:
    """A block may wait for days: its pilot's silence means nothing until it has enrolled."""
    pilot.deadline = pilot.heard = math.inf
