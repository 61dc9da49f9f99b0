"""A site in Python: its queue, where blocks of nodes are asked for.

    site = Site("my-site")
    block = site.queue.submit(num_nodes=2, wall_time_min=10, queue="debug-scaling", project="datascience")
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from balsamfut import options, sites
from balsamfut.errors import UsageError
from balsamfut.executor import asking
from balsamfut.infos import PlanInfo
from balsamfut.messages import RemoveBlock, SubmitBlock
from balsamfut.queuemessages import Part

if TYPE_CHECKING:
    from balsamfut.infos import BlockInfo


class Site:
    """A site that is kept, by its name or directory ("": $BALSAMFUT_SITE).

    Raises SiteError where the list of names cannot be read.
    """

    def __init__(self, site: str | os.PathLike[str] = "") -> None:
        self.path: Path = sites.find(os.fspath(site))
        self.queue = Queue(self.path)

    def __repr__(self) -> str:
        return f"<Site {self.path}>"


class Queue:
    """The blocks of a site."""

    def __init__(self, site: Path) -> None:
        self._site = site

    @overload
    def submit(self, num_nodes: int, wall_time_min: float, *, queue: str = "", project: str = "",
               job_mode: str = "any", tags: Mapping[str, object] | None = None,
               parts: Sequence[Mapping[str, object]] = (), dry_run: Literal[False] = False, **extra: str) -> int: ...

    @overload
    def submit(self, num_nodes: int, wall_time_min: float, *, queue: str = "", project: str = "",
               job_mode: str = "any", tags: Mapping[str, object] | None = None,
               parts: Sequence[Mapping[str, object]] = (), dry_run: Literal[True], **extra: str) -> str: ...

    def submit(self, num_nodes: int, wall_time_min: float, *, queue: str = "", project: str = "",
               job_mode: str = "any", tags: Mapping[str, object] | None = None,
               parts: Sequence[Mapping[str, object]] = (), dry_run: bool = False, **extra: str) -> int | str:
        """Ask the batch system for nodes, for so many minutes; returns the block's number.

        job_mode: which tasks it takes: any, mpi or serial.  tags: it takes only tasks that have all of these.  parts:
        split it, each with the nodes `num_nodes` and, where they are given, a `job_mode` and `filter_tags` of its own;
        together they are all nodes.  dry_run: check it, ask for nothing and record nothing, and return the text of the
        job script; for this the site need not be running.  extra: more for the job script, such as filesystems.
        Raises UsageError with one sentence where the platform's queues would not take it, InterchangeLost where the
        site is not running.
        """
        if not isinstance(wall_time_min, int | float) or not wall_time_min > 0:
            raise UsageError(f"wall_time_min is a number of minutes above 0, not {wall_time_min!r}")
        params = {name: str(value) for name, value in extra.items()}
        wanted = SubmitBlock(1, _nodes(num_nodes), 60.0 * wall_time_min, queue, project, job_mode, params,
                             _tags(tags), [_part(part) for part in parts], bool(dry_run))
        answer = asking.ask_for_block(self._site, wanted)
        return answer.script if dry_run else answer.block

    def rm(self, block: int) -> None:
        """End a block, or withdraw one that waits.  Raises as submit does."""
        asking.ask_for_block(self._site, RemoveBlock(1, block))

    def plan(self) -> PlanInfo:
        """What the elastic queue would do now, and why.  Raises InterchangeLost where the site is not running."""
        answer = asking.order_elastic(self._site, "plan")
        return PlanInfo(answer.enabled, answer.paused, answer.lines, answer.steps, answer.finish or None)

    def pause(self) -> None:
        """Have the elastic queue ask for no blocks; those that are there go on, and are let go as ever.  Raises as plan
        does."""
        asking.order_elastic(self._site, "pause")

    def resume(self) -> None:
        """Have the elastic queue ask for blocks again.  Raises as plan does."""
        asking.order_elastic(self._site, "resume")

    def ls(self, *, history: bool = False) -> list[BlockInfo]:
        """The blocks that were asked for, oldest first; history: those that are over, too."""
        from balsamfut.query import open_site

        with open_site(self._site) as reader:
            return reader.blocks(history=history)


def _nodes(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise UsageError(f"num_nodes is a number of nodes, at least 1, not {given!r}")
    return given


def _tags(given: object, where: str = "") -> dict[str, str]:
    """As tasks have them: names and values are texts.  Raises InvalidOption."""
    return dict(options.normalise({"tags": given or {}}, where).given.get("tags", ()))


def _part(given: Mapping[str, object]) -> Part:
    """Raises UsageError."""
    known = ("num_nodes", "job_mode", "filter_tags")
    if not isinstance(given, Mapping) or not {"num_nodes"} <= set(given) <= set(known):
        raise UsageError(f"a part has num_nodes, and may have job_mode and filter_tags; it cannot be {given!r}")
    return Part(_nodes(given["num_nodes"]), str(given.get("job_mode", "any")),
                _tags(given.get("filter_tags"), "filter_tags"))
