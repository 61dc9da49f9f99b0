"""What the interchange lets go of, so that a site which runs for months holds what is in use and no more.

Sessions, campaigns and classes of tasks come with every script, and most are never spoken of again.  They are in the
database: whoever comes back to one has it read (reading.py).  It is looked for what is not in use only when there has
come to be twice as much as there was, so that a look, which goes through all tasks, costs next to nothing.
Part of the brain: pure.
"""

from __future__ import annotations

from typing import Final

from balsamfut.interchange.attempts import Attempts
from balsamfut.interchange.book import Book, Session
from balsamfut.interchange.closing import Closing
from balsamfut.interchange.flow import Flow

AWAY: Final = 600.0
"""Seconds without a sign of a client in which it may come back without having its session read."""
FEW: Final = 100
"""So much may always be there."""


class Memory:
    """See the module."""

    def __init__(self, book: Book, flow: Flow, attempts: Attempts, closing: Closing) -> None:
        self.book = book
        self.flow = flow
        self.attempts = attempts
        self.closing = closing
        self._next = FEW          # size at which to look again

    def tick(self, now: float) -> None:
        """Let go of what is not in use, if there is much."""
        self.flow.queues.sweep(self.flow.queues.size + FEW)
        if self._size() > self._next:
            self._let_go(now)
            self._next = 2 * self._size() + FEW

    def _size(self) -> int:
        book = self.book
        return (len(book.sessions) + len(book.campaigns) + len(book.classes) + len(book.apps) + len(book.codes)
                + len(book.pools) + len(book.broken) + len(self.flow.promises) + len(self.flow.queues.told)
                + len(self.attempts.faults))

    def _let_go(self, now: float) -> None:
        book = self.book
        self.flow.queues.sweep()      # so that there is no queue of a class that nobody is in
        open_tasks = {(task.session, task.campaign, task.cls) for task in book.tasks.values()}
        owners = {session for session, _, _ in open_tasks}
        for session in list(book.sessions.values()):
            if self._away(session, now) and not (session.limit and session.id in owners):
                del book.sessions[session.id]
                book.tokens.pop(session.row.token, None)
        here = book.sessions.values()
        campaigns = {campaign for _, campaign, _ in open_tasks} | {session.row.campaign for session in here}
        classes = {cls for _, _, cls in open_tasks} | {task.cls for task in book.recent.values()}
        classes = classes.union(*(session.classes.values() for session in here))
        book.forget_others(campaigns, classes, {session.pool for session in here})
        self.flow.promises = {call: task for call, task in self.flow.promises.items() if task in book.tasks}
        self.attempts.faults = {task: count for task, count in self.attempts.faults.items() if task in book.tasks}
        self.flow.queues.told = {line for line in self.flow.queues.told if line[0] in classes}
        self.closing.forget_others(classes)

    def _away(self, session: Session, now: float) -> bool:
        return session.peer is None and (session.row.closed > 0.0 or now - session.heard > AWAY)
