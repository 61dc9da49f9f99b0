"""What crosses the wire: one union of messages per direction.

Reports are in the past tense, orders in the imperative.  Each message is one msgpack frame (balsamfut.wire frames and
decodes them by these types; what does not decode is logged and dropped).  PROTOCOL changes whenever a peer of the
version before could not read a message; peers of different numbers refuse each other in their first message.
"""

from __future__ import annotations

import enum

import msgspec

from balsamfut.model import AppSpec, Payload, Pool, Resources, Stored, TaskClass, TaskSpec, TaskState
from balsamfut.model import Fault as Fault
from balsamfut.model import Message as Message
from balsamfut.queuemessages import AskWhy as AskWhy
from balsamfut.queuemessages import BlockAnswer as BlockAnswer
from balsamfut.queuemessages import ElasticAnswer as ElasticAnswer
from balsamfut.queuemessages import ElasticOrder as ElasticOrder
from balsamfut.queuemessages import RemoveBlock as RemoveBlock
from balsamfut.queuemessages import SubmitBlock as SubmitBlock
from balsamfut.queuemessages import WhyAnswer as WhyAnswer

PROTOCOL = 1


# ---- a client (an Executor, a command line, a task that calls apps) -> the interchange


class Hello(Message, frozen=True, tag=1):
    """The first message on a connection, and the first after a new interchange was found."""

    protocol: int
    token: str                   # names the session for ever: a reconnecting client gets the same session again
    campaign: str | None         # None: a campaign of its own
    pid: Stored
    host: str
    parent: Stored = 0              # a task that calls apps: its id and attempt
    attempt: Stored = 0
    max_workers: int = 0         # 0: not limited
    platform: str = ""           # what this client's Executor asked for; "": whatever is there
    nodes: int = 0
    info: dict[str, str] = {}    # interpreter, cwd, argv: for the record
    pool: Pool | None = None
    observer: bool = False       # looks, keeps nothing alive and submits nothing


class Submit(Message, frozen=True, tag=2):
    """Calls, and what they refer to that this session has not defined before."""

    specs: list[TaskSpec]
    classes: list[tuple[int, TaskClass]] = []
    apps: list[AppSpec] = []
    codes: list[tuple[bytes, Payload]] = []   # by AppSpec.digest
    pools: list[tuple[bytes, Pool]] = []
    acked: int = 0                            # all calls up to this one are known to be acknowledged
    resent: bool = False                      # may have been recorded already


class Watch(Message, frozen=True, tag=3):
    """Tell me how these tasks end (those that are over: at once)."""

    tasks: list[Stored]


class Cancel(Message, frozen=True, tag=4):
    """Cancel these unless they have started.  Answered by Answer(request, ...)."""

    request: int
    refs: list[Stored]              # as TaskSpec.needs


class KillTasks(Message, frozen=True, tag=5):
    """End these, running or not.  Answered by Answer."""

    request: int
    refs: list[Stored]


class Keep(Message, frozen=True, tag=6):
    """How the future of somebody else's ended that the promise `n` stands for."""

    n: int
    ok: bool
    payload: Payload
    error: str = ""


class Resume(Message, frozen=True, tag=7):
    """Go on with what a campaign (None: every campaign) left unfinished.  Answered by Resumed."""

    campaign: str | None
    retry_failed: bool = False


class Beat(Message, frozen=True, tag=8):
    """Still here; answered by a Beat where a client sends it."""


class Bye(Message, frozen=True, tag=9):
    """This session ends.  `cancel`: what it has not started is cancelled; detach: it goes on without us."""

    detach: bool = False


FromClient = (Hello | Submit | Watch | Cancel | KillTasks | Keep | Resume | Beat | Bye | SubmitBlock | RemoveBlock
              | ElasticOrder | AskWhy)

# ---- the interchange -> a client


class Welcome(Message, frozen=True, tag=1):
    protocol: int
    session: int
    campaign: str
    epoch: int
    data: str                    # absolute paths of the site's data/ and objects/
    objects: str
    inline: int                  # bytes: payloads up to this size travel in messages
    nodes: int                   # what the largest pilot may have: nodes of this platform
    platform: str
    cores: int = 0               # usable cores per node where the platform file leaves it to the machine
    known: int = 0               # highest call number of this session that is recorded


class Refused(Message, frozen=True, tag=2):
    """This client cannot be served: the connection is over."""

    error: str                   # a class of balsamfut.errors
    text: str


class Accepted(Message, frozen=True, tag=3):
    """These calls are recorded: (n, task id, state, known before).  The last is true where the call found its own
    earlier task, or another's result by cache=True."""

    calls: list[tuple[int, int, TaskState, bool]]


class Rejected(Message, frozen=True, tag=4):
    """This call was not recorded, and will not be."""

    n: int
    error: str                   # a class of balsamfut.errors
    text: str


class Running(Message, frozen=True, tag=5):
    """These tasks run now, or (False) wait again after an attempt that was lost or failed."""

    tasks: list[tuple[int, bool]]


class Ending(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How one task ended."""

    task: int
    state: TaskState
    payload: Payload | None = None     # DONE: the result; else the exception, where there is one
    error: str = ""                    # one line, where there is no payload
    root: int = 0                      # UPSTREAM_FAILED: the task where it began
    detail: Detail | None = None


class Detail(msgspec.Struct, frozen=True, array_like=True):
    """What is not usual about an attempt's end."""

    returncode: int | None = None
    host: str = ""
    workdir: str = ""
    stdout: str = ""                   # path
    stderr: str = ""
    stdout_span: tuple[int, int] = (0, 0)   # bytes of that file that are this task's; (0, 0): all
    stderr_span: tuple[int, int] = (0, 0)
    attempt: int = 0


class Settled(Message, frozen=True, tag=6):
    endings: list[Ending]


class Answer(Message, frozen=True, tag=7):
    """What became of a Cancel or a KillTasks, in the order of its refs."""

    request: int
    results: list[bool]


class Resumed(Message, frozen=True, tag=8):
    """The tasks of the campaigns that were resumed, by state."""

    counts: dict[str, int]
    tasks: list[int]             # those that are not over


class Notice(Message, frozen=True, tag=10):
    """One line for people: something about the site that they should know."""

    text: str


class BeatBack(Message, frozen=True, tag=11):
    """Still here."""


ToClient = (Welcome | Refused | Accepted | Rejected | Running | Settled | Answer | Resumed | Notice | BeatBack
            | BlockAnswer | ElasticAnswer | WhyAnswer)

# ---- a pilot -> the interchange


class Enrol(Message, frozen=True, tag=1):
    """A pilot's first message to an interchange, and the first to a new one."""

    protocol: int
    pilot: Stored                   # its number in the site
    token: str                   # given to it with its number: who knows it is that pilot
    pid: Stored
    host: str
    platform: str
    nodes: list[str]             # names
    cores: int                   # usable cores per node
    tiles: int
    memory: int                  # bytes per node
    held: list[tuple[Stored, Stored]]  # (task, attempt) that it has, queued or running
    time: float = 0.0            # Unix time, by its node's clock; 0.0: it does not say
    lent: bool = False           # the first of its nodes is another pilot's: this one is led from there, no more
    left: float = 0.0            # seconds until its tasks have to be over; 0.0: it does not end by itself


class Started(Message, frozen=True, tag=2):
    task: Stored
    attempt: Stored
    time: float                  # Unix time
    place: str                   # "node:cores/tiles", for people


class Exited(Message, frozen=True, tag=3, gc=False):
    """An attempt is over.  Everything after `place` has a value only where it is not usual."""

    task: Stored
    attempt: Stored
    fault: Fault
    payload: Payload | None      # pickled result or exception
    started: float
    ended: float
    place: str
    error: str = ""              # one line
    joins: list[Stored] = []        # it returned futures: payload has slots for the values of these tasks
    again: Resources | None = None   # on_error asked for another attempt, with these resources
    detail: Detail | None = None


class Ran(Message, frozen=True, tag=4):
    """The command is over and its postprocess hook is not: if we go away now, only the hook is run again."""

    task: Stored
    attempt: Stored
    returncode: Stored
    time: float


class Reports(Message, frozen=True, tag=5):
    """What happened since the last one; kept by the pilot until Received(seq) comes."""

    seq: int
    reports: list[Started | Exited | Ran]


class Declined(Message, frozen=True, tag=6):
    """What became of a Return or a Stop: the tasks that had started already (or are over)."""

    request: int
    started: list[int]


class PilotBeat(Message, frozen=True, tag=7):
    """Still here."""


class Leaving(Message, frozen=True, tag=8):
    """This pilot has stopped: nothing runs, everything is reported."""

    reason: str


class NodeState(enum.IntEnum):
    """What a pilot thinks of one of its nodes."""

    UP = 1
    QUARANTINED = 2   # it is there, and is given nothing more
    LOST = 3          # it, or the agent on it, has gone; or it was not fit for work when the pilot started


class NodeNews(Message, frozen=True, tag=9):
    """What became of a node that Enrol named.  A pilot says it again to each new interchange."""

    name: str
    state: NodeState
    reason: str                  # one sentence
    time: float                  # Unix time
    again: bool = False          # an earlier interchange was told
    tasks: list[Stored] = []     # they failed there, and were charged, though it was the node's fault


class TooLate(Message, frozen=True, tag=10):
    """So little time is left here that tasks of these classes, and no others, are started no more: send none."""

    classes: list[Stored]
    stops: bool = False          # it takes nothing more, whatever it is; said again to each new interchange


class Spent(Message, frozen=True, tag=11):
    """This pilot may begin no more launches through the MPI launcher.  Said again to each new interchange."""

    reason: str                  # one sentence
    again: bool = False          # an earlier interchange was told


FromPilot = Enrol | Reports | Declined | PilotBeat | Leaving | NodeNews | TooLate | Spent

# ---- the interchange -> a pilot


class Enrolled(Message, frozen=True, tag=1):
    """Welcome; kill those that are not yours any more."""

    epoch: int
    drop: list[tuple[int, int]]  # (task, attempt)


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt to be made."""

    task: int
    attempt: int
    cls: int                     # the site's number of the TaskClass
    spec: TaskSpec
    values: list[Payload] = []   # for the slots of spec.args, in the order of spec.needs
    again: Resources | None = None   # of this attempt, where they are not the class's
    ran: int | None = None       # the command has run, with this code: only its hooks are left
    failures: int = 0            # attempts that were charged so far


class Launch(Message, frozen=True, tag=2):
    """Work, and what it refers to that this pilot has not been told before; a pool without work: there will be some."""

    items: list[Item]
    classes: list[tuple[int, TaskClass]] = []
    apps: list[AppSpec] = []
    codes: list[tuple[bytes, Payload]] = []
    pools: list[tuple[bytes, Pool]] = []


class Return(Message, frozen=True, tag=3):
    """Give back what you have not started of these.  What is given back is reported as Exited(RETURNED); the rest is
    named in Declined."""

    request: int
    tasks: list[int]


class Kill(Message, frozen=True, tag=4):
    """End these attempts, and report them as Exited(KILLED)."""

    attempts: list[tuple[int, int]]


class Received(Message, frozen=True, tag=5):
    """Everything up to this number is recorded."""

    seq: int


class Stop(Message, frozen=True, tag=6):
    """Stop: give back what has not started, end what runs, report, leave.  Tasks have the time that they ask for to end
    by themselves, at most `grace` seconds."""

    grace: float


class Expelled(Message, frozen=True, tag=7):
    """You are not known here: end everything and leave."""

    text: str


class BeatAck(Message, frozen=True, tag=8):
    """Still here."""


ToPilot = Enrolled | Launch | Return | Kill | Received | Stop | Expelled | BeatAck
