"""The nodes of each pilot: which are given work, and why others are not.  Part of the brain: pure.

Pilots decide about their nodes (balsamfut.pilot.health); here it is recorded, told to people, and what fits into a
pilot follows from it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from balsamfut.interchange import skew
from balsamfut.interchange.attempts import Attempts
from balsamfut.interchange.book import Book, Pilot
from balsamfut.interchange.records import NodeRow
from balsamfut.interchange.sessions import Sessions
from balsamfut.messages import NodeNews, NodeState, Notice, Spent

_KINDS: Final = {NodeState.UP: "node-released", NodeState.QUARANTINED: "node-quarantined", NodeState.LOST: "node-lost"}
_SAID: Final = 3   # nodes of one pilot of which clients are told by name


class Nodes:
    """The part of the brain that knows nodes."""

    def __init__(self, book: Book, sessions: Sessions, attempts: Attempts) -> None:
        self.book = book
        self.sessions = sessions
        self.attempts = attempts

    def enrolled(self, pilot: Pilot, now: float) -> None:
        """A pilot is here for the first time: its nodes are up."""
        self.book.writes.nodes += [NodeRow(pilot.id, name, NodeState.UP, "", now) for name in pilot.nodes
                                   if name not in pilot.out]

    def news(self, pilot: Pilot, message: NodeNews, now: float) -> None:
        """A node is given nothing more, or is given work again: the pilot holds less, or more."""
        book, name = self.book, message.name
        if name not in pilot.nodes or pilot.out.get(name, NodeState.UP) is message.state:
            return
        if message.state is NodeState.UP:
            del pilot.out[name]
        else:
            pilot.out[name] = message.state
        since = skew.right(message.time, pilot.skew, 0.0, now)
        book.writes.nodes.append(NodeRow(pilot.id, name, message.state, message.reason, since))
        enrol = self.attempts.enrolments[pilot.id]
        self.attempts.enrolments[pilot.id] = msgspec.structs.replace(
            enrol, nodes=[each for each in pilot.nodes if each not in pilot.out])
        pilot.capacity = {}
        if not message.again:
            book.event(since, _KINDS[message.state], f"{name}: {message.reason}", pilot=pilot.id)
            self.excuse(message.tasks)
            self.tell(pilot, message)

    def spent(self, pilot: Pilot, message: Spent, now: float) -> None:
        """A pilot may begin no more launches: from now on it takes serial tasks only."""
        pilot.spent, pilot.capacity = True, {}
        if not message.again:
            self.book.event(now, "launches-spent", message.reason, pilot=pilot.id)
            for session in self.sessions.alive():
                self.book.send_client(session, Notice(f"pilot {pilot.id} takes no more MPI tasks: {message.reason}"))

    def excuse(self, tasks: list[int]) -> None:
        """These were charged for what was a node's fault: those that are not over are not, any more."""
        for number in tasks:
            task = self.book.tasks.get(number)
            if task is not None and task.failures:
                task.failures -= 1
                self.book.touch(task)

    def tell(self, pilot: Pilot, message: NodeNews) -> None:
        """People hear of the first few; `balsamfut node ls` knows all."""
        if message.state is NodeState.UP:
            text = f"node {message.name} is used again: {message.reason}"
        elif len(pilot.out) <= _SAID:
            text = f"node {message.name} is {message.state.name.lower()} and used no more: {message.reason}"
        elif len(pilot.out) == _SAID + 1:
            text = f"more nodes of pilot {pilot.id} are used no more; `balsamfut node ls` says why"
        else:
            return
        for session in self.sessions.alive():
            self.book.send_client(session, Notice(text))
