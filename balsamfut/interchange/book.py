"""The brain's memory, and the few primitive changes that everything else is made of.

Every change of a task's state goes through `Book.move`, which knows the table of moves; every change that must last
goes into `Book.writes`, and everything that somebody is to be told goes into an outbox: the loop commits the first
before it sends the second.  Pure: no socket, file or clock.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from balsamfut.interchange.counts import Counts
from balsamfut.interchange.records import (
    Around,
    AttemptRow,
    BlockRow,
    CampaignRow,
    EventRow,
    PilotRow,
    SessionRow,
    Task,
    World,
    Writes,
)
from balsamfut.messages import Ending, Message, NodeState
from balsamfut.model import MOVES, AppKind, AppSpec, Blob, Joined, Payload, Pool, TaskClass, TaskState
from balsamfut.queuemessages import Part

log = logging.getLogger(__name__)

RECENT_TASKS: Final = 20_000
RECENT_BYTES: Final = 64 << 20
"""How many tasks that are over, and how much of their arguments and results, are kept at hand for calls that still
refer to them."""


class IllegalMove(Exception):
    """A report or an order asked for a change that the table of a task's life does not have."""


class Session:
    """One client's run: a script, a task that calls apps, or a command."""

    __slots__ = ("row", "peer", "heard", "observer", "limit", "assigned", "calls", "prune_at", "classes",
                 "accepted", "since", "running", "endings", "looks_up", "keeper", "alone", "watched", "pool")

    def __init__(self, row: SessionRow) -> None:
        self.row = row
        self.alone = (row.id,)                    # the watchers of a task that only it watches, as nearly all are
        self.peer: bytes | None = None            # its connection; None: away
        self.heard = 0.0
        self.observer = False
        self.limit = int(row.info.get("max_workers") or 0)   # of tasks that run at a time; 0: none
        self.assigned = 0                         # of them now
        self.calls: dict[int, int] = {}           # call number -> task id, of those it may still name by number
        self.prune_at = 4096                      # so many calls, and those it has acknowledged are forgotten
        self.classes: dict[int, int] = {}         # its number of a class -> the site's
        self.accepted: list[tuple[int, int, TaskState, bool]] = []
        self.since = 0.0                          # when the oldest of them was recorded
        self.running: list[tuple[int, bool]] = []
        self.endings: list[Ending] = []
        self.looks_up = False                     # its calls may be known already: named campaign, retried parent
        self.watched = False                      # the end of its process will be told: its silence means nothing
        self.keeper = False                       # `resume --wait`: keeps an embedded interchange alive
        self.pool = b""                           # of the calls that it will make: digest

    @property
    def id(self) -> int:
        return self.row.id


class Pilot:
    """One pilot: what it is, what it has, what it has been told."""

    __slots__ = ("row", "peer", "heard", "enrolled", "stopping", "nodes", "out", "cores", "held", "counts",
                 "parents", "classes", "apps", "pools", "launches", "seq", "acknowledged", "kills", "deadline",
                 "capacity", "skew", "spent", "block", "part", "filter", "only", "ends",
                 "closed", "late", "grace")

    def __init__(self, row: PilotRow, block: int = 0, part: Part | None = None) -> None:
        self.row = row
        self.block = block                        # whose nodes it has; 0: it is on this machine
        self.part = part or Part(row.nodes)       # which tasks it takes
        self.filter = frozenset(self.part.tags.items())
        self.only = 0                             # the bit of that filter among the queues'; 0: it has none
        self.peer: bytes | None = None
        self.heard = 0.0
        self.enrolled = False
        self.stopping = False
        self.grace = math.inf                     # ... seconds that its tasks have then, as far as its block lasts
        self.nodes: list[str] = []
        self.out: dict[str, NodeState] = {}       # those of them that are given nothing
        self.cores = 0
        self.held: dict[int, Task] = {}           # what it was sent and has not reported over
        self.counts: dict[int, int] = {}          # ... how many by class, without those that wait for their own calls
        self.parents: set[int] = set()            # ... those
        self.classes: set[int] = set()            # told already
        self.apps: set[bytes] = set()
        self.pools: set[bytes] = set()
        self.launches: list[Task] = []            # of this turn
        self.kills: list[tuple[int, int]] = []    # of this turn
        self.seq = 0                              # of its newest reports ...
        self.acknowledged = 0                     # ... and of those that it knows are recorded
        self.deadline = 0.0                       # not enrolled: lost by then
        self.capacity: dict[int, int] = {}        # class -> how many fit when it is empty
        self.spent = False                        # it may begin no more launches: serial tasks only
        self.skew = 0.0                           # seconds by which its clock is ahead of ours
        self.ends = math.inf                      # when its tasks have to be over, for its block ends (by our clock)
        self.closed: set[int] = set()             # classes that it says it is too late for ...
        self.late: set[int] = set()               # ... and those, of what is ready, that we see are

    @property
    def id(self) -> int:
        return self.row.id

    def takes(self, task: Task) -> bool:
        """The task has the tags that this pilot wants."""
        return not self.filter or (task.spec.extra is not None and self.filter.issubset(task.spec.extra.tags))


@dataclass(slots=True)
class ClassInfo:
    """A class of tasks, and what was seen of it."""

    spec: TaskClass
    app: AppSpec
    typical: float = -1.0    # seconds that an attempt takes, lately; < 0: not known

    def learn(self, seconds: float) -> None:
        """An attempt took so long.  One that stood still for want of a core counts for little."""
        typical = self.typical
        self.typical = seconds if typical < 0.0 else typical + (min(seconds, 4.0 * typical + 1e-6) - typical) * 0.2


@dataclass(slots=True)
class Outbox:
    clients: dict[bytes, list[Message]] = field(default_factory=dict)   # by peer
    pilots: dict[bytes, list[Message]] = field(default_factory=dict)


class Book:
    """Everything that the interchange has in its head."""

    def __init__(self, world: World) -> None:
        self.next_task = world.next_task
        self.next_session = world.next_session
        self.next_campaign = world.next_campaign
        self.next_pilot = world.next_pilot
        self.next_class = world.next_class
        self.tasks: dict[int, Task] = {}                 # not over
        self.recent: OrderedDict[int, Task] = OrderedDict()   # over, lately
        self._recent_bytes = 0
        self.counts = Counts()
        # Campaigns, sessions, classes and what those refer to: what is in use; memory.py lets go of the rest.
        self.campaigns: dict[int, CampaignRow] = {}
        self.campaign_names: dict[str, int] = {}
        self.active: set[int] = set()                    # campaigns whose tasks may run
        self.everything = False                          # all tasks that are not over are here, of any campaign
        self.sessions: dict[int, Session] = {}
        self.tokens: dict[str, Session] = {}             # those that may come back
        self.peers: dict[bytes, Session] = {}
        self.blocks: dict[int, BlockRow] = {row.id: row for row in world.blocks}    # not over
        parts = {number: (row.id, part) for row in world.blocks for number, part in row.pilots()}
        self.pilots: dict[int, Pilot] = {row.id: Pilot(row, *parts.get(row.id, ())) for row in world.pilots}
        self.pilot_peers: dict[bytes, Pilot] = {}
        self.apps: dict[bytes, AppSpec] = {}
        self.codes: dict[bytes, Payload] = {}
        self.pools: dict[bytes, Pool] = {}
        self.broken: dict[bytes, tuple[Payload | None, str]] = {}   # pools whose initializer failed, and how
        self.classes: dict[int, ClassInfo] = {}
        self.class_numbers: dict[TaskClass, int] = {}
        self.writes = Writes()
        self.out = Outbox()
        self.told: set[int] = set()                      # sessions with something in their own lists
        self.loaded: set[int] = set()                    # pilots with something to be sent

    # ---- what tasks refer to

    def learn(self, around: Around, now: float) -> None:
        """Take in what was read."""
        for campaign in around.campaigns:
            self.learn_campaign(campaign)
        for row in around.sessions:
            if row.id not in self.sessions:
                session = self.sessions[row.id] = Session(row)
                session.heard = now
                session.looks_up = True                  # what it called before may be known by its keys alone
                if not row.closed:
                    self.tokens[row.token] = session
        self.apps |= {app.digest: app for app in around.apps}
        self.codes |= around.codes
        self.pools |= around.pools
        for number, spec in around.classes:
            if number not in self.classes:
                self._learn_class(number, spec)

    def learn_campaign(self, row: CampaignRow) -> None:
        self.campaigns[row.id] = row
        self.campaign_names[row.name] = row.id
        if self.everything:
            self.active.add(row.id)

    def _learn_class(self, number: int, spec: TaskClass) -> None:
        app = self.apps.get(spec.app) or AppSpec(name="?", kind=AppKind.PYTHON, digest=spec.app)
        self.classes[number] = ClassInfo(spec, app)
        self.class_numbers.setdefault(spec, number)

    def intern_class(self, spec: TaskClass) -> int:
        """The site's number of a class of tasks, new or known."""
        number = self.class_numbers.get(spec)
        if number is None:
            number = self.next_class
            self.next_class += 1
            self._learn_class(number, spec)
            self.writes.classes.append((number, spec))
        return number

    def define(self, apps: Iterable[AppSpec], codes: Iterable[tuple[bytes, Payload]],
               pools: Iterable[tuple[bytes, Pool]]) -> None:
        for app in apps:
            if app.digest not in self.apps:
                self.apps[app.digest] = app
                self.writes.apps.append(app)
        for digest, code in codes:
            if digest not in self.codes:
                self.codes[digest] = code
                self.writes.codes.append((digest, code))
        for digest, pool in pools:
            if digest not in self.pools:
                self.pools[digest] = pool
                self.writes.pools.append((digest, pool))

    def forget_others(self, campaigns: set[int], classes: set[int], pools: set[bytes]) -> None:
        """Let go of all but these, and what those classes refer to."""
        for campaign in [row for row in self.campaigns.values() if row.id not in campaigns]:
            del self.campaigns[campaign.id], self.campaign_names[campaign.name]
            self.active.discard(campaign.id)
        for number in self.classes.keys() - classes:
            spec = self.classes.pop(number).spec
            if self.class_numbers.get(spec) == number:
                del self.class_numbers[spec]
        kept = [info.spec for info in self.classes.values()]
        apps, pools = {spec.app for spec in kept}, pools.union(spec.pool for spec in kept)
        for by_digest, wanted in ((self.apps, apps), (self.codes, apps), (self.pools, pools), (self.broken, pools)):
            for digest in by_digest.keys() - wanted:
                del by_digest[digest]

    # ---- tasks

    def find(self, task: int) -> Task | None:
        """A task that is not over, or was not long ago."""
        return self.tasks.get(task) or self.recent.get(task)

    def touch(self, task: Task) -> None:
        """Have the task's row written at the end of this turn."""
        task.whole = True
        if not task.dirty:
            task.dirty = True
            self.writes.tasks.append(task)

    def move(self, task: Task, state: TaskState, *, whole: bool = True) -> None:
        """Change a task's state, by the table; raises IllegalMove.

        `whole=False`: a first assignment or a plain success, which change few columns.
        """
        if state not in MOVES[task.state]:
            raise IllegalMove(f"task {task.id} cannot go from {task.state.name} to {state.name}")
        if task.queued or task.state is TaskState.WAITING:
            self.counts.leaves(task)
        task.state = state
        if state is TaskState.WAITING:
            self.counts.waits(task)
        if whole:
            task.whole = True
        if not task.dirty:
            task.dirty = True
            self.writes.tasks.append(task)

    def close(self, task: Task, state: TaskState, now: float, *, whole: bool = True) -> None:
        """The task is over: file it, let go of what it needed, tell those who watch."""
        self.move(task, state, whole=whole)
        task.ended = task.ended or now
        task.deps = ()
        task.reason = ""
        self.tasks.pop(task.id, None)
        self.remember(task)
        if task.watchers:
            ending = self.ending(task)
            for session in task.watchers:
                watcher = self.sessions.get(session)
                if watcher is not None:
                    watcher.endings.append(ending)
                    self.told.add(session)

    def remember(self, task: Task, *, forget: bool = True) -> None:
        """Keep a task that is over at hand for a while; forget the oldest where there are too many."""
        recent = self.recent
        if task.id in recent:
            return
        recent[task.id] = task
        self._recent_bytes += weight(task)
        while forget and (len(recent) > RECENT_TASKS or self._recent_bytes > RECENT_BYTES):
            self._recent_bytes -= weight(recent.popitem(last=False)[1])

    def forget(self, task: Task) -> None:
        """A task that was over is not any more (it is tried again)."""
        if self.recent.pop(task.id, None) is not None:
            self._recent_bytes -= weight(task)

    def ending(self, task: Task) -> Ending:
        payload = task.payload
        if task.state is TaskState.UPSTREAM_FAILED and (root := self.find(task.root)) is not None:
            payload = root.payload
        return Ending(task.id, task.state, payload, task.error, task.root, task.detail)

    def watch(self, task: Task, session: int) -> None:
        if session not in task.watchers:
            task.watchers = (*(each for each in task.watchers if each in self.sessions), session)

    def tell_running(self, task: Task, running: bool) -> None:
        for session in task.watchers:
            watcher = self.sessions.get(session)
            if watcher is not None:
                watcher.running.append((task.id, running))
                self.told.add(session)

    def file_attempt(self, task: Task) -> None:
        """Move the newest attempt's columns into a row of their own, since another attempt will take their place."""
        if task.attempt:
            self.writes.attempts.append(AttemptRow(
                task=task.id, attempt=task.attempt, pilot=task.pilot, place=task.place, started=task.started,
                ended=task.ended, fault=task.fault, error=task.error,
                returncode=task.detail.returncode if task.detail else None))

    def event(self, now: float, kind: str, text: str, task: int = 0, pilot: int = 0) -> None:
        log.info("%s%s%s: %s", kind, f" task {task}" if task else "", f" pilot {pilot}" if pilot else "", text)
        self.writes.events.append(EventRow(now, kind, task, pilot, text))

    # ---- the outboxes

    def send_client(self, session: Session, message: Message) -> None:
        if session.peer is not None:
            self.out.clients.setdefault(session.peer, []).append(message)

    def send_pilot(self, pilot: Pilot, message: Message) -> None:
        if pilot.peer is not None:
            self.out.pilots.setdefault(pilot.peer, []).append(message)

    def take(self) -> tuple[Writes, Outbox]:
        """What this turn writes, and what is sent once that is written."""
        writes, out = self.writes, self.out
        self.writes, self.out = Writes(), Outbox()
        return writes, out


def weight(task: Task) -> int:
    """Bytes that a task's arguments and result take in memory."""
    return _bytes(task.spec.args) + _bytes(task.payload)


def _bytes(payload: Payload | None) -> int:
    if payload is None or isinstance(payload, Blob):
        return 0
    if isinstance(payload, Joined):
        return len(payload.template) + sum(_bytes(part) for part in payload.parts)
    return len(payload)
