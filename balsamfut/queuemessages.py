"""What people ask a site about its blocks and its elastic queue, and what it answers; part of balsamfut.messages."""

from __future__ import annotations

import msgspec

from balsamfut.model import Message, Stored


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Some nodes of a block that take tasks of their own."""

    nodes: int
    mode: str = "any"
    tags: dict[str, str] = {}

    def describe(self) -> str:
        """Which tasks it takes: `any tasks`, `tasks with kind=post`, `mpi tasks with kind=post`."""
        tags = " ".join(f"{name}={value}" for name, value in self.tags.items())
        mode = [] if tags and self.mode == "any" else [self.mode]
        return " ".join([*mode, "tasks", *(["with", tags] if tags else [])])


class SubmitBlock(Message, frozen=True, tag=10):
    """Ask the batch system for nodes.  Answered by BlockAnswer."""

    request: int
    nodes: int
    walltime: float              # seconds
    queue: str = ""
    project: str = ""
    mode: str = "any"            # which tasks it takes: any, mpi, serial
    params: dict[str, str] = {}  # filesystems, and whatever the site's job script knows
    tags: dict[str, str] = {}    # only tasks that have all of these; none: whatever tags they have
    parts: list[Part] = []       # split it; none: all of its nodes take the same
    dry_run: bool = False        # check it and show the job script; ask for nothing


class RemoveBlock(Message, frozen=True, tag=11):
    """End this block.  Answered by BlockAnswer."""

    request: int
    block: Stored


class ElasticOrder(Message, frozen=True, tag=12):
    """What would the elastic queue do, and why ("plan")?  Or: pause, resume.  Answered by ElasticAnswer."""

    request: int
    order: str                   # plan, pause, resume


class AskWhy(Message, frozen=True, tag=13):
    """Why do tasks that are READY wait?  Answered by WhyAnswer."""

    request: int
    tasks: list[Stored] = []     # of these the answer says which are meant; the others are counted


class BlockAnswer(Message, frozen=True, tag=12):
    """The number of the block that was asked for or is being ended, or why not."""

    request: int
    block: int                   # 0: not
    error: str
    command: str = ""            # of a dry run: what would be run ...
    script: str = ""             # ... with this on its stdin


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One thing that the elastic queue would do."""

    what: str                    # submit, release
    why: str
    queue: str = ""
    nodes: int = 0
    walltime: float = 0.0        # seconds
    block: int = 0               # release: which


class ElasticAnswer(Message, frozen=True, tag=13):
    """How the elastic queue stands."""

    request: int
    enabled: bool                # [elastic] enabled
    paused: bool
    lines: list[str] = []        # for people: what would be done, and why nothing more is
    steps: list[Step] = []
    finish: float = 0.0          # seconds until the work that is ready may be done; 0.0: not known
    error: str = ""              # why the order was not followed


class Waiting(msgspec.Struct, frozen=True):
    """READY tasks of one app that wait for the same."""

    app: str
    why: str                     # one sentence
    count: int
    tasks: list[int] = []        # of those that were asked for


class WhyAnswer(Message, frozen=True, tag=14):
    """What the tasks wait for that are READY."""

    request: int
    waiting: list[Waiting]
