"""What the interchange knows of a batch system: submit, poll, cancel, and the records that go in and out.

A batch command may hang for hours, so no method waits for one: submit and cancel only begin the work, what came of it
is told by poll, and the interchange's loop polls fds() and calls poll when one of them is readable, when due() has
come, and otherwise as often as it likes.  Time is always an argument (Unix time, seconds).

A block is known by its token from first to last: the batch system's own id may be known late, or never.  A provider
tells what the batch system said and nothing that it concludes: a block that the system does not know *now*, or while it
does not answer, is not over.  Knows no task, no pilot, no database.
"""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec


class BlockSpec(msgspec.Struct, frozen=True):
    """A block to be asked for."""

    token: str                                   # unique for ever, also the name of the job: letters, digits, . _ -
    argv: tuple[str, ...]                        # what it runs, once, on its first node
    log: str                                     # absolute path: its stdout and stderr, appended
    cwd: str                                     # absolute path
    environ: tuple[tuple[str, str], ...] = ()    # set before the preamble
    preamble: str = ""                           # bash lines before argv, in the same shell (modules, environments)
    nodes: int = 1
    walltime: float = 0.0                        # seconds; 0: the batch system's own limit
    queue: str = ""                              # queue or partition; "": the batch system's default
    project: str = ""                            # account that pays
    filesystems: str = ""                        # that it needs, in PBS's words: "home:flare"
    directives: tuple[str, ...] = ()             # further lines for the batch system, without its prefix
    params: tuple[tuple[str, str], ...] = ()     # of the user: shell variables that the preamble may use


class BlockState(enum.IntEnum):
    """Where a block is.

    What may follow is something further down, but for one thing: a batch system may put a block that it could not
    start, or whose node it lost, back from RUNNING to QUEUED.
    """

    SUBMITTING = 1  # the command that submits it runs, or is tried again
    QUEUED = 2      # it has an id; it waits, is held, or can never run: `text` says it in the batch system's words
    RUNNING = 3
    ENDED = 4       # for good: the batch system said so
    REFUSED = 5     # for good: it was never accepted


class BlockStatus(msgspec.Struct, frozen=True):
    """What is known of a block."""

    token: str
    state: BlockState
    id: str = ""                    # the batch system's own; "": not known (yet)
    exit_code: int | None = None    # ENDED: of what it ran, negative: -signal; None: it never ran, or nobody can tell
    text: str = ""                  # for people: in the batch system's words where it has said something
    again: bool = False             # over for a reason that is neither what it ran nor what it asked for: it may pass
    stuck: bool = False             # it will not start, or end, unless somebody does something: `text` says why

    @property
    def over(self) -> bool:
        return self.state in (BlockState.ENDED, BlockState.REFUSED)


class Provider(Protocol):
    """A batch system.  No method waits, none raises for what the batch system does or says."""

    def submit(self, spec: BlockSpec, now: float) -> str:
        """Begin to submit a block; returns the token by which it is known from now on.

        What becomes of it is told by poll, a refusal too.  Raises ValueError for a token that is in use or that the
        batch system would not take for a job's name.
        """

    def adopt(self, token: str, id: str, now: float, spec: BlockSpec | None = None) -> None:
        """Watch over a block that an earlier interchange submitted.  id "": it may or may not have been submitted; with
        a spec it is now, if the batch system knows nothing of it.

        Raises ValueError for a token that is in use.
        """

    def poll(self, now: float) -> list[BlockStatus]:
        """What has changed since the last call.  A block that is over is told once and then forgotten."""

    def cancel(self, token: str, now: float) -> None:
        """Begin to end a block; poll tells when it has.  Of one that is over or not known: nothing."""

    def fds(self) -> tuple[int, ...]:
        """Descriptors that are readable when poll has something to do; the same for the life of the provider."""

    def due(self) -> float | None:
        """When poll must be called at the latest, though no descriptor is readable; None: never."""

    def trouble(self) -> str:
        """Why nothing can be said or asked at the moment, in the batch system's words; "": all is well.

        The blocks' states stay as they were last told.  Nothing should be submitted meanwhile.
        """

    def close(self) -> None:
        """Let go of everything; blocks go on."""
