"""The blocks of a site: nodes asked of a batch system, each for one pilot.  Part of the brain: pure.

A block is recorded before it is asked for, and what the batch system says of it afterwards is recorded as it was said.
Asking is done by the loop (blocks.py) through a provider; what a pilot does with its nodes is in attempts.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from balsamfut.interchange.arrivals import Arrivals
from balsamfut.interchange.book import Book, Pilot, Session
from balsamfut.interchange.elastic import Failure
from balsamfut.interchange.pilots import Pilots
from balsamfut.interchange.records import BlockRow, Past, PilotRow
from balsamfut.interchange.sessions import Sessions
from balsamfut.interchange.waits import LATEST, Wait
from balsamfut.messages import BlockAnswer, Notice, RemoveBlock, SubmitBlock
from balsamfut.provider.base import BlockState, BlockStatus
from balsamfut.provider.recipe import Recipe, part_token
from balsamfut.queuemessages import Part

WITHDRAWN: Final = "it was withdrawn before it was asked for"
TOLD: Final = "it was told to end"
_NOT_YET: Final = {BlockState.SUBMITTING: "is not submitted yet", BlockState.QUEUED: "does not start",
                   BlockState.RUNNING: "does not end"}
GRACE: Final = 60.0
"""Seconds that tasks of a block that somebody ends have to stop, if they ask for so many."""
PARTING: Final = 30.0
"""... and those that its pilots have to leave after that."""
AGAIN: Final = 120.0
"""Seconds until the batch system is asked again to end a block that is still there."""
PASSES: Final = "that may pass: the same block can be asked for again"
_NO_BLOCKS: Final = ("the interchange that runs here belongs to a script and has its own machine alone; blocks are for "
                     "sites that are kept: `balsamfut site init`")


class Batch:
    """The part of the brain that asks for blocks."""

    def __init__(self, book: Book, sessions: Sessions, pilots: Pilots, recipe: Recipe, past: Past, now: float) -> None:
        self.book = book
        self.sessions = sessions
        self.pilots = pilots
        self.recipe = recipe
        self.wanted: list[BlockRow] = []       # to be submitted once this turn is committed, if there is no trouble
        self.unwanted: list[BlockRow] = []     # to be cancelled
        self.failures: dict[str, Failure] = {}    # by queue: blocks in a row that the batch system did not let work ...
        self._cleared: dict[str, Failure] = {}    # ... before this block, by token, was accepted
        self._ending: dict[int, float] = {}    # blocks to be ended, and when the batch system is asked for it (again)
        self._stuck: set[int] = set()          # blocks of which people were told that they do not start, or end
        self.news: list[str] = []              # what people were told, for the log
        self.arrivals = Arrivals(book, sessions.config.late, sessions.config.elastic.give_up, self._say)
        self.past = past                       # with the blocks of today
        self.troubled = ""                     # why the batch system cannot be asked, as people were told
        for pilot in book.pilots.values():
            if pilot.block:
                _wait(pilot)
        for row in book.blocks.values():
            if row.removal:
                self._go_on_ending(row, now)

    # ---- what people ask for

    def submit(self, peer: bytes, message: SubmitBlock, token: str, now: float) -> None:
        """Ask for a block, or say in one sentence why not.  token: unique for ever."""
        taken = [(row.queue, row.state == BlockState.RUNNING) for row in self.book.blocks.values()]
        why = _NO_BLOCKS if self.sessions.config.embedded else self.recipe.refusal(message, taken)
        if why is not None:
            self._answer(peer, BlockAnswer(message.request, 0, why))
        elif message.dry_run:
            self._answer(peer, self.recipe.preview(message.request, message, self.book.next_pilot, taken))
        else:
            row = self.want(token, message.queue, message.nodes, message.walltime, now, mode=message.mode,
                            project=message.project, params=message.params, tags=message.tags, parts=message.parts)
            self._answer(peer, BlockAnswer(message.request, row.id, ""))

    def want(self, token: str, queue: str, nodes: int, walltime: float, now: float, *, mode: str = "any",
             project: str = "", params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None,
             parts: Sequence[Part] = (), why: str = "") -> BlockRow:
        """A block that is to be asked for once this turn is committed.  walltime: seconds."""
        book, recipe = self.book, self.recipe
        row = BlockRow(book.next_pilot, token, recipe.provider, "", queue, project, nodes, walltime, mode,
                       dict(params or {}), BlockState.SUBMITTING, self._why_waiting(), now, tags=dict(tags or {}),
                       parts=list(parts), why=why)
        book.blocks[row.id] = row
        book.writes.blocks.append(row)
        for number, part in row.pilots():
            pilot = PilotRow(number, part_token(token, number - row.id), "", 0, recipe.platform.name, part.nodes, 0.0)
            book.pilots[number] = made = Pilot(pilot, row.id, part)
            _wait(made)
            book.writes.pilots.append(pilot)
            book.next_pilot = number + 1
        self.wanted.append(row)
        return row

    def remove(self, peer: bytes, message: RemoveBlock, now: float) -> None:
        """End a block: its pilot's tasks go elsewhere."""
        row = self.book.blocks.get(message.block)
        if row is None:
            why = f"there is no block {message.block} here that is not over; `balsamfut queue ls` lists them"
            self._answer(peer, BlockAnswer(message.request, 0, why))
            return
        self.end(row, now)
        self._answer(peer, BlockAnswer(message.request, row.id, ""))

    def end(self, row: BlockRow, now: float) -> None:
        """End a block as it would end by itself: its pilots tell their tasks to stop, hand back what they have, and
        leave.  The batch system ends one whose pilots are not there or do not leave, or that is ended a second time."""
        pilots = self._pilots(row)
        self.book.writes.blocks.append(row)
        if row.removal or not pilots or not all(pilot.enrolled for pilot in pilots):
            row.removal = min(row.removal or now, now)
            self._ending[row.id] = now + AGAIN
            for pilot in pilots:
                if not pilot.stopping:       # the batch system may refuse to end what it is just starting
                    self.pilots.stop(pilot, GRACE if pilot.enrolled else 0.0)
            self._withdraw(row, now)
            return
        row.removal = self._ending[row.id] = now + GRACE + PARTING
        for pilot in pilots:
            self.pilots.stop(pilot, GRACE)

    def _go_on_ending(self, row: BlockRow, now: float) -> None:
        """An earlier interchange was asked to end this block.  Its pilots may not have heard of it, nor the batch
        system, which is asked at once where no pilot has been here: the block may not have been submitted, and never is
        then.  The clock of another host may have said when: it is not waited for longer than we would wait."""
        pilots = self._pilots(row)
        came = bool(pilots) and all(pilot.row.started for pilot in pilots)
        row.removal = self._ending[row.id] = min(row.removal, now + (GRACE + PARTING if came else 0.0))
        for pilot in pilots:
            pilot.stopping, pilot.grace = True, GRACE if came else 0.0

    def tick(self, now: float) -> None:
        """Blocks whose pilots were told to leave, and are still there, are ended by the batch system; so are some whose
        pilots are not there."""
        for row in self.arrivals.tick(now):
            self.end(row, now)
        for number in [number for number, when in self._ending.items() if now >= when]:
            self.end(self.book.blocks[number], now)

    def _withdraw(self, row: BlockRow, now: float) -> None:
        """Have the batch system end a block, if it was asked for it; nobody is told when that has come about."""
        if row in self.wanted:
            self.wanted.remove(row)
            self.told(BlockStatus(row.token, BlockState.REFUSED, text=WITHDRAWN), now)
        else:
            self.unwanted.append(row)

    def _answer(self, peer: bytes, answer: BlockAnswer) -> None:
        self.book.out.clients.setdefault(peer, []).append(answer)

    # ---- what the loop is to ask for

    def orders(self) -> tuple[list[BlockRow], list[BlockRow]]:
        """The blocks to be submitted and those to be cancelled, each told once.  While the batch system cannot be asked
        nothing is submitted: what is wanted waits."""
        unwanted, self.unwanted = self.unwanted, []
        if self.troubled:
            return [], unwanted
        wanted, self.wanted = self.wanted, []
        return wanted, unwanted

    # ---- what the batch system says

    def trouble(self, text: str) -> None:
        """It cannot be asked, for this reason, or answers again (""): people hear it once, no block is over for it."""
        if text == self.troubled:
            return
        self.troubled = text
        for row in self.wanted:
            row.text = self._why_waiting()
            self.book.writes.blocks.append(row)
        self._say(_silent(text) if text else "the batch system answers again")

    def greet(self, session: Session) -> None:
        """A client is here: it hears what the others have heard."""
        if self.troubled:
            self.book.send_client(session, Notice(_silent(self.troubled)))
        for text in self.arrivals.notes():
            self.book.send_client(session, Notice(text))

    def row(self, token: str) -> BlockRow | None:
        """The block of this token, if it is not over."""
        return next((row for row in self.book.blocks.values() if row.token == token), None)

    def told(self, status: BlockStatus, now: float, output: str = "") -> None:
        """Record it; a block that is over takes its pilot along.  output: what one has written that never had a pilot,
        for people."""
        row = self.row(status.token)
        if row is None:
            return
        self._count(row, status, now)
        row.state, row.batch_id, row.text = status.state, status.id or row.batch_id, _text(status)
        if row.removal and status.state is BlockState.ENDED:
            row.text = f"{TOLD}: {row.text}" if row.text else TOLD
        if status.state is BlockState.RUNNING and not row.started:
            row.started = now
            self.past.waits.append(Wait(row.queue, row.nodes, row.walltime, now - row.submitted, now))
            del self.past.waits[:-LATEST]
        self.book.writes.blocks.append(row)
        self._note_stuck(row, status)
        if status.over:
            self._over(row, status, output, now)

    def _note_stuck(self, row: BlockRow, status: BlockStatus) -> None:
        """People are told once that a block does not start or end by itself, and once that it does."""
        unclear = status.state is BlockState.SUBMITTING and bool(status.text) and not self.troubled
        if status.over:
            self._stuck.discard(row.id)
        elif (status.stuck or unclear) and row.id not in self._stuck:
            self._stuck.add(row.id)
            self._say(f"block {row.id} {_NOT_YET[status.state]}: {row.text}")
        elif not (status.stuck or unclear) and row.id in self._stuck and not self.troubled:
            self._stuck.discard(row.id)
            self._say(f"block {row.id} {'runs' if status.state is BlockState.RUNNING else 'is in the queue'} now")

    def _over(self, row: BlockRow, status: BlockStatus, output: str, now: float) -> None:
        row.ended, row.exit_code = now, status.exit_code
        self.past.spent += row.nodes * (now - row.started) if row.started else 0.0
        del self.book.blocks[row.id]
        self._ending.pop(row.id, None)
        pilots = self._pilots(row)
        why = row.text or _ended(status.exit_code)
        if row.removal:
            pass                 # as somebody wanted it
        elif status.state is BlockState.REFUSED:
            self._say(f"block {row.id} was refused: {why}")
        elif self.arrivals.never_came(row):
            ran = not status.again and bool(row.started or status.exit_code is not None)
            self.arrivals.ended(row, why, output, now, ran=ran)
        for pilot in pilots:
            self.pilots.gone(pilot.id, why, now)

    def _count(self, row: BlockRow, status: BlockStatus, now: float) -> None:
        """Failures of a queue, one after the other.  A block that is accepted ends the series, unless it is dropped
        afterwards, as jobs are that no queue behind a routing queue takes, or ends before its pilot is there, as all do
        whose script is wrong."""
        never = status.over and self.arrivals.never_came(row)
        if status.state is BlockState.REFUSED or (status.over and status.again) or never:
            before = self._cleared.pop(row.token, None) or self.failures.get(row.queue)
            if not row.removal:
                text = _text(status) or (f"{_ended(status.exit_code)} before its pilot was there" if never else "")
                self.failures[row.queue] = Failure(1 + (before.count if before else 0), now, text)
        elif status.over:
            self._cleared.pop(row.token, None)
        elif (status.state != row.state and (status.state is BlockState.RUNNING or row.state == BlockState.SUBMITTING)
                and (before := self.failures.pop(row.queue, None))):
            self._cleared[row.token] = before

    def _pilots(self, row: BlockRow) -> list[Pilot]:
        """Those of its pilots that have not left."""
        return [pilot for number, _ in row.pilots() if (pilot := self.book.pilots.get(number)) is not None]

    def _why_waiting(self) -> str:
        return f"it will be asked for when the batch system answers again: {self.troubled}" if self.troubled else ""

    def _say(self, text: str) -> None:
        self.news.append(text)
        for session in self.sessions.alive():
            self.book.send_client(session, Notice(text))


def _silent(text: str) -> str:
    return f"the batch system cannot be asked, blocks that run go on: {text}"


def _text(status: BlockStatus) -> str:
    return f"{status.text} ({PASSES})" if status.over and status.again else status.text


def _ended(code: int | None) -> str:
    return "its block is over" if code in (None, 0) else f"its block ended with {code}"


def _wait(pilot: Pilot) -> None:
    """A block may wait for days: its pilot's silence means nothing until it has enrolled."""
    pilot.deadline = pilot.heard = math.inf
