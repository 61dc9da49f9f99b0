"""Sessions and campaigns: who is here, and in whose name their calls are made.  Part of the brain: pure."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from balsamfut.interchange.book import Book, Session
from balsamfut.interchange.flow import Flow
from balsamfut.interchange.records import CampaignRow, SessionRow
from balsamfut.messages import PROTOCOL, Ending, Hello, Refused, Resume, Resumed, Watch, Welcome
from balsamfut.model import CLOSED, TaskState
from balsamfut.provider.recipe import Recipe
from balsamfut.serialize import digest16
from balsamfut.settings import Elastic

S = TaskState


@dataclass(frozen=True, slots=True)
class Shape:
    """What an embedded interchange's pilot is."""

    platform: str
    nodes: int
    cores: int      # of a workstation; 0: as many as the machine has
    hosts: str = ""          # a file with the names of the nodes; "": they are all this machine
    pretend: bool = False    # those nodes are not what the platform says


@dataclass(frozen=True, slots=True)
class Config:
    """What this interchange is."""

    embedded: bool                # lives while a client is connected, runs a pilot on this machine
    epoch: int
    data: str
    objects: str
    inline: int
    usual: Shape                  # of the local pilot, where a client does not say what it wants
    first: Shape                  # ... what the client that started us wants
    linger: float                 # seconds that an embedded interchange stays without a client
    recipe: Recipe                # of the site's blocks
    pid: int = 0
    elastic: Elastic = Elastic()
    paused: bool = False          # its elastic queue is
    late: float = 300.0           # seconds that a block runs until its pilot is missed


class Sessions:
    """The part of the brain that knows who is here."""

    def __init__(self, book: Book, flow: Flow, config: Config) -> None:
        self.book = book
        self.flow = flow
        self.config = config
        self.shape = config.first
        self.stopping = ""         # why this interchange is ending, if it is

    def hello(self, peer: bytes, message: Hello, now: float, used: bool = False) -> Session | None:
        """A client is here, new or again; None where it is refused.  used: a session that is over had its token."""
        book = self.book
        refusal = self.refusal(message) or (
            Refused("SiteError", "the session of this token is over: open a new one") if used else None)
        if refusal is not None:
            book.out.clients.setdefault(peer, []).append(refusal)
            return None
        session = book.tokens.get(message.token)
        if session is None:
            session = self.open_session(message, now)
        if session.peer is not None:
            book.peers.pop(session.peer, None)
        session.peer, session.heard, session.observer = peer, now, message.observer
        session.row.pid, session.row.host = message.pid, message.host
        session.limit = message.max_workers
        book.peers[peer] = session
        if message.pool is not None and not message.observer:
            session.pool = digest16(msgspec.msgpack.encode(message.pool))
            book.define((), (), [(session.pool, message.pool)])
        if message.parent:
            self.flow.mark_parent(message.parent)
        return session

    def welcome(self, session: Session) -> None:
        campaign = self.book.campaigns.get(session.row.campaign)
        config, shape = self.config, self.shape
        self.book.send_client(session, Welcome(
            PROTOCOL, session.id, campaign.name if campaign else "", config.epoch, config.data, config.objects,
            config.inline, shape.nodes, shape.platform, shape.cores, max(session.calls, default=0)))

    def refusal(self, message: Hello) -> Refused | None:
        if message.protocol != PROTOCOL:
            return Refused("ProtocolMismatch", f"this site's interchange speaks protocol {PROTOCOL}, and you speak "
                           f"{message.protocol}: use one version of balsamfut for both, or stop the interchange")
        if self.stopping:
            return Refused("InterchangeLost", "this interchange is stopping")
        if message.parent:
            parent = self.book.find(message.parent)
            if parent is None or parent.attempt != message.attempt or parent.state in CLOSED:
                return Refused("InterchangeLost", f"attempt {message.attempt} of task {message.parent} is over")
        shape = self.shape
        others = any(s.peer is not None and not s.observer and not s.row.parent and s.row.token != message.token
                     for s in self.book.sessions.values())
        wished = (message.platform or shape.platform, message.nodes or shape.nodes)
        if self.config.embedded and others and wished != (shape.platform, shape.nodes):
            return Refused("UsageError", f"another script runs here on platform {shape.platform} with {shape.nodes} "
                           f"nodes, and you asked for {wished[0]} with {wished[1]}: wait for it, or work in another "
                           "directory")
        return None

    def open_session(self, message: Hello, now: float) -> Session:
        book = self.book
        number, book.next_session = book.next_session, book.next_session + 1
        parent = book.find(message.parent) if message.parent else None
        campaign = 0
        looks_up = False
        if parent is not None:
            campaign = parent.campaign
            looks_up = parent.attempt > 1
        elif not message.observer:
            campaign, looks_up = self.campaign(message.campaign, number, now)
        info = {**message.info, "platform": message.platform, "nodes": str(message.nodes),
                "max_workers": str(message.max_workers)}
        row = SessionRow(number, message.token, campaign, message.parent, message.host, message.pid, now, 0.0, info)
        session = Session(row)
        session.looks_up = looks_up
        book.sessions[number] = book.tokens[message.token] = session
        if not message.observer:
            book.writes.sessions.append(row)
        return session

    def campaign(self, name: str | None, session: int, now: float) -> tuple[int, bool]:
        """The campaign of that name, new or known; and whether its calls may be known already."""
        book = self.book
        known = book.campaign_names.get(name) if name is not None else None
        if known is not None:
            for other in book.sessions.values():
                other.looks_up |= other.row.campaign == known
            return known, True
        number, book.next_campaign = book.next_campaign, book.next_campaign + 1
        made = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        row = CampaignRow(number, name if name is not None else f"run-{made}-{session}", now, name is not None)
        book.learn_campaign(row)
        book.active.add(number)
        book.writes.campaigns.append(row)
        return number, False

    def watch(self, session: Session, message: Watch) -> None:
        for number in message.tasks:
            task = self.book.find(number)
            if task is None:
                session.endings.append(Ending(
                    number, S.FAILED, error=f"task {number} is not in this site's database (any more): was the site's "
                    "directory removed, or its database replaced?"))
                continue
            self.book.watch(task, session.id)
            if task.state in CLOSED:
                session.endings.append(self.book.ending(task))
            elif task.state is S.RUNNING:
                session.running.append((task.id, True))
        self.book.told.add(session.id)

    def resume(self, session: Session, message: Resume, now: float) -> None:
        """Everything that the campaigns left unfinished goes on; this session is told how it ends."""
        book = self.book
        if message.campaign is not None and message.campaign not in book.campaign_names:
            book.send_client(session, Refused("UsageError", f"there is no campaign {message.campaign!r} here"))
            return
        campaign = book.campaign_names[message.campaign] if message.campaign is not None else 0
        session.keeper = True
        if message.retry_failed:
            for task in [*book.recent.values()]:
                if task.state in (S.FAILED, S.UPSTREAM_FAILED) and campaign in (0, task.campaign):
                    self.flow.revive(task, now)
        counts: dict[str, int] = {}
        tasks = [task for task in book.tasks.values() if campaign in (0, task.campaign)]
        for task in tasks:
            counts[task.state.name] = counts.get(task.state.name, 0) + 1
            book.watch(task, session.id)
        book.send_client(session, Resumed(counts, [task.id for task in tasks]))

    def gone(self, session: Session, now: float, *, over: bool = False) -> None:
        """A client is not heard of any more.  over: it has left, or its process is gone, so it will not come back."""
        if session.peer is not None:
            self.book.peers.pop(session.peer, None)
        session.peer = None
        session.watched = False
        session.keeper = False
        self.flow.hold_promises(session.id)
        if over:
            session.row.closed = now
            if not session.observer:
                self.book.writes.sessions.append(session.row)
            self.book.tokens.pop(session.row.token, None)
            if not session.limit:       # one that has a limit has it for tasks that go on, too
                self.book.sessions.pop(session.id, None)

    def alive(self) -> list[Session]:
        """Those that keep an embedded interchange alive."""
        return [s for s in self.book.sessions.values() if s.peer is not None and not s.row.parent
                and (not s.observer or s.keeper)]
