"""What the leader of a pilot and its followers say to each other, and what an agent needs to start something.

A follower does what the leader decides and tells it what happened (decision 009): it gets these orders, and its news
are the events of `balsamfut.pilot.events`.  The leader's own Squad and Commands take the same orders without a wire.
"""

from __future__ import annotations

import msgspec

from balsamfut.messages import Message
from balsamfut.model import Extra, Payload, Pool, Resources
from balsamfut.pilot.events import Commanded, Environ, Heard, Key, Stolen, Tick, WorkerGone
from balsamfut.pilot.hand import Define
from balsamfut.pilot.slicenews import SliceEvent, SliceOrder
from balsamfut.placement import Placement


class Job(msgspec.Struct, array_like=True):
    """A command to be started: what is needed of an attempt for that, and for the verdict on its end."""

    task: int
    attempt: int
    define: Define
    pool: bytes
    resources: Resources
    placement: Placement
    command: str | list[str] | None     # None: a Python function that all ranks call
    extra: Extra | None
    args: Payload | None = None         # of that function
    values: list[Payload] = []
    failures: int = 0
    followed: bool = False              # a hook or a clean-up will be run in its directory

    @property
    def key(self) -> Key:
        return self.task, self.attempt


# ---- the leader -> a follower


class Enlisted(Message, frozen=True, tag=1):
    """Welcome: who you are."""

    host: int            # your index, which is your node's
    site: str
    clients: str         # address of the door for tasks that call apps


class Equip(Message, frozen=True, tag=2):
    """What orders refer to, before the first that does."""

    codes: list[tuple[bytes, Payload]] = []
    pools: list[tuple[bytes, Pool]] = []


class Hire(Message, frozen=True, tag=3):
    """Start a worker."""

    worker: int
    pool: bytes
    env: Environ


class Give(Message, frozen=True, tag=4):
    """Put these into a worker's queue."""

    worker: int
    defines: list[Define]                    # that this worker has not been told
    orders: list[tuple[int, int, bytes]]     # (task, attempt, encoded hand.Order)
    memory: int = 0                          # bytes that each may use; 0: not limited


class Take(Message, frozen=True, tag=5):
    """Take back what the worker has not read; answered by Stolen, or by the worker's death."""

    worker: int


class GrantPlace(Message, frozen=True, tag=6):
    """The task that waited in this worker has a slot again."""

    worker: int
    task: int


class Dismiss(Message, frozen=True, tag=7):
    """signal 0: the worker may leave; else it is sent to all of it."""

    worker: int
    signal: int


class Run(Message, frozen=True, tag=8):
    """Start a command."""

    job: Job


class Signal(Message, frozen=True, tag=9):
    """Send a signal to all processes of a command."""

    key: Key
    signal: int


class Clean(Message, frozen=True, tag=10):
    """Kill what carries this mark on your host: ranks whose launcher is over.  Answered by Cleaned."""

    mark: str


class SignalRanks(Message, frozen=True, tag=20):
    """Send a signal to the ranks on your host that carry this mark."""

    mark: str
    signal: int


class Pulse(Message, frozen=True, tag=11):
    """Still here; answered by a Pulse where a follower sends it."""


class Disband(Message, frozen=True, tag=12):
    """End everything and leave."""


ToFollower = (Enlisted | Equip | Hire | Give | Take | GrantPlace | Dismiss | Run | Signal | SliceOrder | Clean | Pulse
              | Disband | SignalRanks)

# ---- a follower -> the leader


class Enlist(Message, frozen=True, tag=1):
    """A follower is here."""

    protocol: int
    token: str               # of the pilot: who knows it was started by it
    host: int                # index, as it found itself in the list of hosts; -1: it is not there
    name: str                # of the host, as it calls itself
    pid: int
    problems: list[str]      # what its smoke test found


class News(Message, frozen=True, tag=2):
    """What happened, in order."""

    events: list[Heard | Stolen | WorkerGone | Commanded | Tick | SliceEvent]


class Cleaned(Message, frozen=True, tag=3):
    """Nothing carries this mark any more, but for these processes that cannot be killed."""

    mark: str
    left: list[int]


class Pulsed(Message, frozen=True, tag=4):
    """Still here."""


class Gone(Message, frozen=True, tag=5):
    """This follower has ended everything and leaves."""


ToLeader = Enlist | News | Cleaned | Pulsed | Gone
