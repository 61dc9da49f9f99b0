"""What the interchange remembers: tasks, sessions and pilots in memory, and what one turn writes.

The brain (core.py) makes and changes these, the store (store.py) reads them; neither knows the other.  A Task is kept
small, since a hundred thousand of them may be queued: shared classes, and None where there is nothing to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from balsamfut.interchange.waits import Wait
from balsamfut.messages import Detail
from balsamfut.model import AppSpec, Payload, Pool, Resources, TaskClass, TaskSpec, TaskState
from balsamfut.queuemessages import Part


class Task(msgspec.Struct, eq=False, gc=False):
    """A task and its newest attempt, as one row of the database has them.

    A struct, since making one costs a fifth of what it costs a class; compared by identity.
    """

    id: int
    campaign: int
    session: int
    parent: int                           # the task that called this one; 0: a script did
    cls: int                              # the site's number of the TaskClass
    spec: TaskSpec                        # spec.needs: task ids only, once it is here
    state: TaskState
    submitted: float                      # Unix time, as all times here
    attempt: int = 0                      # number of the newest attempt; 0: none yet
    failures: int = 0                     # attempts that were charged
    losses: int = 0                       # pilots or nodes that were lost under it
    pilot: int = 0                        # of the newest attempt; 0: none
    place: str = ""                       # ... "node:cores/tiles"
    started: float = 0.0                  # ... 0.0: not yet
    ended: float = 0.0
    fault: int = 0                        # ... messages.Fault
    error: str = ""                       # one line
    payload: Payload | None = None        # DONE: the result; else a pickled exception; joining: the template
    root: int = 0                         # UPSTREAM_FAILED: the task where it began
    reason: str = ""                      # HELD: why
    again: Resources | None = None        # of the newest attempt, where they are not the class's
    ran: int | None = None                # the command is over with this code, its hooks are not
    detail: Detail | None = None
    joins: tuple[int, ...] | None = None  # it returned the futures of these tasks, and waits for them
    # ---- not in the database
    missing: int = 0                      # needs (or joins) that are not over
    deps: tuple[Task, ...] = ()           # those that it needs, in slot order; let go when it is over
    dependents: list[Task] | None = None  # those that need (or join) this one, while it is not over
    watchers: tuple[int, ...] = ()        # sessions to be told
    queued: bool = False                  # READY, and in a queue
    stored: bool = False                  # its row exists
    dirty: bool = False                   # its row is to be written at the end of this turn ...
    whole: bool = False                   # ... all of it: more has changed than a first assignment or a plain success


@dataclass(slots=True)
class CampaignRow:
    id: int
    name: str
    created: float
    named: bool           # by the user: resumable by a re-run


@dataclass(slots=True)
class SessionRow:
    id: int
    token: str
    campaign: int
    parent: int           # the task whose calls these are; 0: a script
    host: str
    pid: int
    opened: float
    closed: float = 0.0   # 0.0: open, or lost without a word
    info: dict[str, str] = field(default_factory=dict)   # interpreter, cwd, argv, platform, nodes, max_workers ...


@dataclass(slots=True)
class PilotRow:
    id: int
    token: str
    host: str
    pid: int
    platform: str
    nodes: int
    started: float
    ended: float = 0.0    # 0.0: alive as far as is known
    reason: str = ""


@dataclass(slots=True)
class BlockRow:
    """Nodes that were asked of a batch system, for one pilot or (where it is split) several."""

    id: int               # the first pilot's; the others' follow it
    token: str
    provider: str
    batch_id: str
    queue: str
    project: str
    nodes: int
    walltime: float       # seconds
    mode: str             # any, mpi or serial: which tasks it takes
    params: dict[str, str]
    state: int            # provider.base.BlockState
    text: str
    submitted: float
    started: float = 0.0
    ended: float = 0.0
    exit_code: int | None = None
    tags: dict[str, str] = field(default_factory=dict)    # only tasks that have all of these
    parts: list[Part] = field(default_factory=list)       # none: it is not split
    why: str = ""         # of the elastic queue: why it was asked for; "": a person asked
    removal: float = 0.0  # somebody wants its end: from when on the batch system is asked for it
    note: str = ""        # what people were told beside `text`: its pilot is not there, though it runs, or never was

    @property
    def takes_everything(self) -> bool:
        """Any task that fits: the elastic queue may count on it for whatever waits."""
        return self.mode == "any" and not self.tags and not self.parts

    def pilots(self) -> list[tuple[int, Part]]:
        """The numbers of its pilots, and which tasks each takes: one pilot, or one for each part."""
        parts = self.parts or [Part(self.nodes, self.mode, self.tags)]
        return [(self.id + index, part) for index, part in enumerate(parts)]


@dataclass(slots=True)
class NodeRow:
    pilot: int
    name: str
    state: int            # messages.NodeState
    reason: str           # one sentence; "": there is nothing to say
    since: float


@dataclass(slots=True)
class AttemptRow:
    """An attempt that a newer one replaced (the newest is in the task's own row)."""

    task: int
    attempt: int
    pilot: int
    place: str
    started: float
    ended: float
    fault: int
    error: str
    returncode: int | None


@dataclass(slots=True)
class EventRow:
    """Something unusual that a person may ask about later."""

    time: float
    kind: str             # one word: retry, pilot-lost, held, killed, poison, bad-report ...
    task: int = 0
    pilot: int = 0
    text: str = ""


@dataclass(slots=True)
class Writes:
    """What one turn changes: one transaction."""

    campaigns: list[CampaignRow] = field(default_factory=list)                # new
    sessions: list[SessionRow] = field(default_factory=list)                  # new, or closed
    pilots: list[PilotRow] = field(default_factory=list)                      # new, or changed
    blocks: list[BlockRow] = field(default_factory=list)                      # new, or changed
    nodes: list[NodeRow] = field(default_factory=list)                        # new, or changed
    apps: list[AppSpec] = field(default_factory=list)                         # new
    codes: list[tuple[bytes, Payload]] = field(default_factory=list)          # new, by AppSpec.digest
    pools: list[tuple[bytes, Pool]] = field(default_factory=list)             # new
    classes: list[tuple[int, TaskClass]] = field(default_factory=list)        # new
    tasks: list[Task] = field(default_factory=list)                           # new or changed (Task.stored tells)
    edges: list[tuple[int, int, int]] = field(default_factory=list)           # new: (task, slot, the task it needs)
    attempts: list[AttemptRow] = field(default_factory=list)                  # new
    events: list[EventRow] = field(default_factory=list)                      # new

    def __bool__(self) -> bool:
        return bool(self.tasks or self.campaigns or self.sessions or self.pilots or self.blocks or self.nodes
                    or self.apps or self.codes or self.pools or self.classes or self.edges or self.attempts
                    or self.events)


@dataclass(slots=True)
class Past:
    """What is known of the blocks that this site has had."""

    waits: list[Wait] = field(default_factory=list)    # the newest ones, those that run among them
    spent: float = 0.0                                 # node-seconds of those that are over


@dataclass(slots=True)
class Around:
    """What tasks refer to."""

    campaigns: list[CampaignRow] = field(default_factory=list)
    sessions: list[SessionRow] = field(default_factory=list)
    classes: list[tuple[int, TaskClass]] = field(default_factory=list)
    apps: list[AppSpec] = field(default_factory=list)
    codes: list[tuple[bytes, Payload]] = field(default_factory=list)
    pools: list[tuple[bytes, Pool]] = field(default_factory=list)


@dataclass(slots=True)
class Lacking:
    """The numbers of what tasks refer to that is not at hand."""

    campaigns: set[int] = field(default_factory=set)
    sessions: set[int] = field(default_factory=set)
    classes: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.campaigns or self.sessions or self.classes)


@dataclass(slots=True)
class World:
    """What a starting interchange must know of its database: what tasks refer to is read with them."""

    next_task: int = 1
    next_session: int = 1
    next_campaign: int = 1
    next_pilot: int = 1
    next_class: int = 1
    blocks: list[BlockRow] = field(default_factory=list)        # not over
    pilots: list[PilotRow] = field(default_factory=list)       # not ended
    past: Past = field(default_factory=Past)
