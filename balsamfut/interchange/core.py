"""The interchange's brain: messages and the time come in, what to write and what to send come out.

    reading            what must be read from the database first, and what was read
    client(...), pilot(...), session_gone(...), pilot_gone(...), tick(...)     what happens
    finish(now)        the end of a turn: matches tasks and pilots; the loop commits the Turn, then sends what it says

Pure: no socket, file, clock, thread or randomness; tokens and times are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from balsamfut.interchange import balance, matcher, orders, unfit
from balsamfut.interchange.attempts import Attempts, Fits
from balsamfut.interchange.batch import Batch
from balsamfut.interchange.book import Book, Outbox, Pilot, Session
from balsamfut.interchange.closing import Closing
from balsamfut.interchange.flow import Flow
from balsamfut.interchange.matcher import ReadyQueues
from balsamfut.interchange.memory import Memory
from balsamfut.interchange.nodes import Nodes
from balsamfut.interchange.pilots import PILOT_SILENCE, Pilots
from balsamfut.interchange.reading import Reading
from balsamfut.interchange.records import PilotRow, World, Writes
from balsamfut.interchange.requests import Found, Requests
from balsamfut.interchange.scaling import Scaling
from balsamfut.interchange.sessions import Config, Sessions
from balsamfut.interchange.waiting import Reasons
from balsamfut.messages import (
    PROTOCOL,
    Accepted,
    AskWhy,
    Beat,
    BeatAck,
    BeatBack,
    Bye,
    Cancel,
    Declined,
    ElasticOrder,
    Enrol,
    Expelled,
    Hello,
    Keep,
    KillTasks,
    Leaving,
    Message,
    NodeNews,
    PilotBeat,
    Refused,
    RemoveBlock,
    Reports,
    Resume,
    Return,
    Running,
    Settled,
    Spent,
    Submit,
    TooLate,
    Watch,
)
from balsamfut.model import TaskState

S = TaskState
REJOIN = 20.0
"""Seconds that the pilots of an earlier interchange have to find this one."""
RETURN = 600.0
"""... and those of blocks, which other hosts see our address late: by then one that was only cut off has ended itself.
Its block may go on for hours, if it is split or hangs."""
CLIENT_SILENCE = 30.0
"""Seconds without a sign after which a client counts as gone, unless its process is watched: it may be stopped, or in C
code that keeps its other threads waiting."""
TOGETHER = 0.0015
"""Seconds that the acknowledgement of calls waits for something else to be said to the same client: a task that is soon
done is acknowledged with its result, and its client woken once."""
BALANCE = 1.0
"""Seconds between looks whether work waits in one pilot while another has room."""
COMPANY = 64
"""So many acknowledgements go at once."""


@dataclass(slots=True)
class Turn:
    """What one turn changes, and what may be done once that is committed."""

    writes: Writes
    out: Outbox
    exit: str = ""       # why this interchange is to end, if it is


class Core:
    """The brain."""

    def __init__(self, world: World, config: Config, fits: Fits, now: float) -> None:
        self.config = config
        self.book = Book(world)
        self.queues = ReadyQueues(self.book.counts)
        self.flow = Flow(self.book, self.queues)
        self.requests = Requests(self.book, self.flow)
        self.reading = Reading(self.book, self.flow, self.requests, config.embedded)
        self.attempts = Attempts(self.book, self.flow, fits, config.recipe.platform)
        self.sessions = Sessions(self.book, self.flow, config)
        self.pilots = Pilots(self.book, self.sessions, self.attempts, self.queues)
        self.nodes = Nodes(self.book, self.sessions, self.attempts)
        self.closing = Closing(self.book, self.queues, self.attempts, self.sessions)
        self.batch = Batch(self.book, self.sessions, self.pilots, config.recipe, world.past, now)
        self.scaling = Scaling(self.book, self.queues, self.batch, config.elastic, config.paused)
        self.reasons = Reasons(self.book, self.queues, self.attempts, self.closing, self.scaling)
        self.memory = Memory(self.book, self.flow, self.attempts, self.closing)
        self.flow.slots = config.first.cores * config.first.nodes
        self.alone_since = now            # embedded: no client since then
        self.balanced = now               # when it was last looked whether work waits in the wrong place
        self.detached = False             # a script has left its tasks to us
        for pilot in self.book.pilots.values():
            if not pilot.block:
                pilot.deadline = now + REJOIN
                pilot.heard = now
            elif pilot.row.started:
                pilot.deadline = now + RETURN

    # ---- clients

    def client(self, peer: bytes, message: Message, now: float) -> None:
        """A message of a client."""
        self._client(peer, message, now)
        self.requests.found = Found()

    def _client(self, peer: bytes, message: Message, now: float) -> None:
        if isinstance(message, Hello):
            self.hello(peer, message, now)
            return
        session = self.book.peers.get(peer)
        if session is None:
            self.book.out.clients.setdefault(peer, []).append(
                Refused("InterchangeLost", "this interchange does not know you"))
            return
        session.heard = now
        if isinstance(message, Submit):
            self.requests.submit(session, message, now)
        elif isinstance(message, Watch):
            self.sessions.watch(session, message)
        elif isinstance(message, Cancel):
            self.requests.cancel(session, message, now)
        elif isinstance(message, KillTasks):
            self.requests.kill(session, message, now)
        elif isinstance(message, Keep):
            self.requests.keep(session, message, now)
        elif isinstance(message, Resume):
            self.sessions.resume(session, message, now)
        elif isinstance(message, RemoveBlock):
            self.batch.remove(peer, message, now)
        elif isinstance(message, ElasticOrder):
            self.scaling.order(peer, message, now)
        elif isinstance(message, AskWhy):
            self.reasons.answer(session, message, now)
        elif isinstance(message, Beat):
            self.book.send_client(session, BeatBack())
        elif isinstance(message, Bye):
            self.detached |= message.detach and not session.row.parent
            self.sessions.gone(session, now, over=True)

    def hello(self, peer: bytes, message: Hello, now: float) -> None:
        past = self.requests.found.session
        session = self.sessions.hello(peer, message, now, used=past is not None and bool(past.closed))
        if session is None:
            return
        self.alone_since = now      # whoever comes is given the time to say what for
        if self.config.embedded and not message.observer and not message.parent:
            self.pilots.reshape(message)
        self.sessions.welcome(session)
        self.batch.greet(session)
        for pilot in self.book.pilot_peers.values():
            orders.announce(self.book, pilot, session.pool)

    # ---- pilots

    def pilot(self, peer: bytes, message: Message, now: float) -> None:
        """A message of a pilot."""
        self._pilot(peer, message, now)
        self.requests.found = Found()

    def _pilot(self, peer: bytes, message: Message, now: float) -> None:
        if isinstance(message, Enrol):
            pilot = self.book.pilots.get(message.pilot)
            if pilot is None or pilot.row.token != message.token or message.protocol != PROTOCOL:
                text = f"pilot {message.pilot} is not expected here"
                self.book.out.pilots.setdefault(peer, []).append(Expelled(text))
                return
            known = bool(pilot.row.started)
            self.attempts.enrol(peer, pilot, message, now)
            if not known:
                self.nodes.enrolled(pilot, now)
                self.batch.arrivals.came(pilot)
            self.pilots.failed_starts = 0
            return
        pilot = self.book.pilot_peers.get(peer)
        if pilot is None:
            if not isinstance(message, Leaving | NodeNews | Spent | TooLate):
                self.book.out.pilots.setdefault(peer, []).append(Expelled("this interchange does not know you"))
            return
        pilot.heard = now
        if isinstance(message, Reports):
            self.attempts.reports(pilot, message, now)
        elif isinstance(message, Declined):
            self.attempts.declined(message)
        elif isinstance(message, Spent):
            self.nodes.spent(pilot, message, now)
        elif isinstance(message, NodeNews):
            self.nodes.news(pilot, message, now)
        elif isinstance(message, TooLate):
            pilot.closed = pilot.late = set(message.classes)
            pilot.stopping |= message.stops
        elif isinstance(message, PilotBeat):
            self.book.send_pilot(pilot, BeatAck())
        elif isinstance(message, Leaving):
            self.attempts.lost(pilot, message.reason, now)

    def spooled(self, number: int, messages: list[Reports], now: float) -> None:
        """What a pilot wrote to its file when there was nobody to hand it to."""
        pilot = self.book.pilots.get(number) or Pilot(PilotRow(number, "", "", 0, "", 0, 0.0))
        for message in messages:
            self.attempts.reports(pilot, message, now)
        pilot.seq = 0

    # ---- an embedded interchange's life

    def stop(self, reason: str, grace: float) -> None:
        """Bring everything to an end: pilots stop, then this process exits.  Those of a site that is kept go on."""
        if not self.sessions.stopping:
            self.sessions.stopping = reason
            for pilot in self.book.pilots.values() if self.config.embedded else ():
                self.pilots.stop(pilot, grace)

    def tick(self, now: float) -> None:
        """What time alone brings; called several times a second."""
        self.attempts.due(now)
        for pilot in list(self.book.pilots.values()):
            silent = now - pilot.heard > PILOT_SILENCE
            if (not pilot.enrolled and now > pilot.deadline) or silent:
                self.pilots.gone(pilot.id, "no sign of it", now)
            elif pilot.seq > pilot.acknowledged:
                self.book.loaded.add(pilot.id)
                pilot.acknowledged = -1      # it has waited long enough
        for session in list(self.book.sessions.values()):
            if session.peer is not None and not session.watched and now - session.heard > CLIENT_SILENCE:
                self.sessions.gone(session, now)
        unfit.tell(self.book, self.queues, self.attempts, self.sessions)
        self.closing.tick(now, alone=not self.config.elastic.enabled)
        self.batch.tick(now)
        self.memory.tick(now)
        if now - self.balanced >= BALANCE:
            self.balanced = now
            queued = {cls for cls, _, passes in self.queues.lines() if (cls, passes) not in self.queues.unfit}
            room = partial(self.closing.room, now=now)
            for pilot, tasks in balance.spare(self.book, list(self.book.pilots.values()), room, queued):
                self.book.send_pilot(pilot, Return(0, tasks))
        if not self.config.embedded:
            return
        self.detached = self.detached and self.busy()
        if self.sessions.alive() or self.detached:
            self.alone_since = now
        elif now - self.alone_since > self.config.linger:
            self.stop("no client is left", grace=2.0)

    def busy(self) -> bool:
        """Tasks run, or wait for a pilot that can run them."""
        fit = [line for line in self.queues.lines() if line[::2] not in self.queues.unfit]
        return (bool(self.attempts.later) or any(pilot.held for pilot in self.book.pilots.values())
                or any(self.queues.head(line) is not None for line in fit))

    def stalled(self, seconds: float) -> None:
        """This process itself stood still: nobody else's silence counts for that time."""
        self.alone_since += seconds
        self.batch.arrivals.stalled(seconds)
        for pilot in self.book.pilots.values():
            pilot.heard += seconds
            pilot.deadline += seconds
        for session in self.book.sessions.values():
            session.heard += seconds

    # ---- the end of a turn

    def finish(self, now: float) -> Turn:
        """Match, and collect what this turn writes and sends."""
        book = self.book
        if self.queues.size:
            pilots = [p for p in book.pilots.values() if p.enrolled and not p.stopping]
            for cls, *_ in self.queues.lines():
                for pilot in pilots:
                    self.attempts.capacity(pilot, cls)
            self.closing.mark(pilots, {line[0] for line in self.queues.lines()}, now)
            for pilot, task in matcher.match(book, self.queues, pilots):
                self.attempts.assign(pilot, task)
        for number in list(book.told):
            session = book.sessions.get(number)
            if session is None or self.tell(session, now):
                book.told.discard(number)
        for number in book.loaded:
            loaded = book.pilots.get(number)
            if loaded is not None:
                orders.flush(book, loaded)
        book.loaded.clear()
        self.requests.flush()
        done = bool(self.sessions.stopping) and not (book.pilots and self.config.embedded)
        writes, out = book.take()
        return Turn(writes, out, self.sessions.stopping if done else "")

    def tell(self, session: Session, now: float) -> bool:
        """Say what is to be said to a client; False where an acknowledgement alone may wait a little for company."""
        if session.accepted and not session.endings and not session.running and len(session.accepted) < COMPANY:
            session.since = session.since or now
            if now - session.since < TOGETHER:
                return False
        if session.accepted:
            self.book.send_client(session, Accepted(session.accepted))
            session.accepted, session.since = [], 0.0
        if session.running:
            self.book.send_client(session, Running(session.running))
            session.running = []
        if session.endings:
            self.book.send_client(session, Settled(session.endings))
            session.endings = []
        return True
