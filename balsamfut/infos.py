"""What balsamfut.query tells of a site: plain records, for people and their scripts."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from balsamfut.queuemessages import Part, Step


class AttemptInfo(msgspec.Struct, frozen=True):
    """One launch of a task.  Times are Unix times in seconds, None: not yet."""

    attempt: int
    pilot: int
    place: str
    started: float | None
    ended: float | None
    fault: str           # name of a messages.Fault; "none": it succeeded, or goes on
    error: str
    returncode: int | None


class TaskInfo(msgspec.Struct, frozen=True):
    """A task as it was when it was read.  Times are Unix times in seconds, None: not yet."""

    id: int
    app: str
    name: str
    campaign: str
    state: str
    tags: dict[str, str]
    parent: int                  # the task that called it; 0: a script did
    needs: list[int]
    submitted: float
    started: float | None        # of the newest attempt
    ended: float | None
    pilot: int                   # ... 0: none yet
    place: str
    returncode: int | None
    error: str
    reason: str                  # HELD: why; READY, as `task ls` and `task show` tell it: what it waits for
    root: int                    # UPSTREAM_FAILED: the task where it began
    failures: int                # attempts that were charged
    attempts: list[AttemptInfo]  # all, oldest first
    command: str | None
    workdir: str                 # as far as known; relative ones lie under the site's data/
    stdout: str
    stderr: str
    stdout_span: tuple[int, int]   # bytes of that file that are this task's; (0, 0): all
    stderr_span: tuple[int, int]
    resources: dict[str, Any]    # model.Resources; of the newest attempt
    options: dict[str, Any]      # model.Options
    key: str | None              # hex
    occurrence: int
    session: int


class AppInfo(msgspec.Struct, frozen=True):
    name: str
    kind: str
    module: str
    doc: str
    digest: str
    tasks: int


class CampaignInfo(msgspec.Struct, frozen=True):
    id: int
    name: str
    named: bool                  # by the user
    created: float
    counts: dict[str, int]       # tasks by state


class SessionInfo(msgspec.Struct, frozen=True):
    """One run of a script.  info: interpreter, cwd, argv, and platform, nodes, max_workers as it asked for them."""

    id: int
    campaign: str
    host: str
    pid: int
    opened: float
    closed: float | None         # None: open, or lost without a word
    info: dict[str, str]


class EventInfo(msgspec.Struct, frozen=True):
    time: float
    kind: str
    task: int
    pilot: int
    text: str


class PilotInfo(msgspec.Struct, frozen=True):
    id: int
    host: str
    pid: int
    platform: str
    nodes: int
    started: float
    ended: float | None
    reason: str


BLOCK_STATES: Final = {1: "submitting", 2: "queued", 3: "running", 4: "ended", 5: "refused"}
"""By number, as providers have them."""
REMOVING: Final = "removing"
"""Of a block that is not over, but whose end somebody wants."""


class BlockInfo(msgspec.Struct, frozen=True):
    id: int                      # its pilot's too
    state: str                   # submitting, queued, running, removing, ended, refused
    provider: str
    batch_id: str                # the batch system's own; "": not known (yet)
    queue: str
    project: str
    nodes: int
    walltime: float              # seconds
    mode: str
    params: dict[str, str]
    submitted: float             # Unix times; None: not yet
    started: float | None
    ended: float | None
    exit_code: int | None
    text: str                    # the batch system's words
    tags: dict[str, str]         # only tasks that have all of these
    parts: list[Part]            # how it is split; none: it is not
    why: str                     # of the elastic queue: why it was asked for; "": a person asked
    note: str                    # what we have to say: its pilot is not there, and how its output ends
    token: str                   # the name of the job
    script: str                  # path of its job script; "": there is none (yet)
    logs: list[str]              # paths of the logs of its pilots, one or (where it is split) one for each part


class PlanInfo(msgspec.Struct, frozen=True):
    """What the elastic queue would do."""

    enabled: bool                # [elastic] enabled
    paused: bool
    lines: list[str]             # for people: what is known, what would be done and why, and why nothing more is
    steps: list[Step]
    finish: float | None         # seconds until the work that is ready may be done; None: not known


class OwnerInfo(msgspec.Struct, frozen=True):
    """The interchange that the database belongs to.  Two that are equal: it has given no sign of life between them."""

    epoch: int                   # counts the owners
    beat: float                  # changes as long as it lives, by its host's clock (Unix time); 0.0: not yet
    host: str
    pid: int                     # 0: it has let go, and nobody has come since
    since: float                 # Unix time, by its host's clock

    @property
    def text(self) -> str:
        """For people."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {when}"


class NodeInfo(msgspec.Struct, frozen=True):
    pilot: int
    name: str
    state: str                   # up, quarantined, lost
    since: float                 # Unix time
    reason: str                  # one sentence; "": there is nothing to say
    over: bool                   # the pilot is
