"""What a batch system's commands are and how their output is read: what batch.py needs to know of PBS or Slurm.

A dialect has no state: it is asked for a command's argv, and reads its Result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from balsamfut.provider.base import BlockSpec, BlockState
from balsamfut.provider.commands import Result


class Sight(msgspec.Struct, frozen=True):
    """What the batch system says of one job."""

    state: BlockState | None      # None: it knows no such job
    text: str | None = None       # None: it was not asked for words
    exit_code: int | None = None
    again: bool = False           # as in BlockStatus
    stuck: bool = False           # ... this too


class Look(msgspec.Struct, frozen=True):
    """What it says of several jobs.  Of one that is missing here it has said nothing."""

    jobs: dict[str, Sight] = {}
    down: str = ""                # why it could not be asked; then there is nothing else


class Answer(msgspec.Struct, frozen=True):
    """What became of a submission, a search or a deletion."""

    ids: tuple[str, ...] = ()     # the job, or those that were found
    refused: str = ""             # in its words: no, and asking again would give the same answer
    unclear: str = ""             # it may or may not have been done
    down: str = ""                # it could not be asked, and nothing was done
    again: bool = False           # refused, but for a reason that may pass
    doubtful: bool = False        # refused, but not by the batch system itself: it may have been done all the same
    force: bool = False           # refused for now; a deletion by force is needed


class Dialect(Protocol):
    """A batch system's commands.  Pure; ways are numbered from 0: another way to ask when one gave no answer."""

    name: str                     # for people
    at_once: int                  # jobs that one command can tell all about

    def script(self, spec: BlockSpec) -> str: ...
    def submit(self, spec: BlockSpec) -> Sequence[str]: ...
    def submitted(self, result: Result) -> Answer: ...
    def find(self, token: str, way: int) -> Sequence[str] | None: ...
    def found(self, result: Result) -> Answer | None: ...                    # None: no answer
    def look(self, ids: Sequence[str]) -> Sequence[str]: ...
    def looked(self, result: Result, ids: Sequence[str]) -> Look: ...        # ENDED: `ask` past=True says how
    def ask(self, ids: Sequence[str], past: bool, way: int) -> Sequence[str] | None: ...
    def asked(self, result: Result, ids: Sequence[str]) -> Look: ...
    def delete(self, id: str, force: bool) -> Sequence[str]: ...
    def deleted(self, result: Result) -> Answer: ...
    def dropped(self, spec: BlockSpec | None) -> str: ...                    # why a job that was never seen is unknown
