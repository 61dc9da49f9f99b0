"""A site in Python: its queue, where blocks of nodes are asked for.

    site = Site("my-site")
    block = site.queue.submit(num_nodes=2, wall_time_min=10, queue="debug-scaling", project="datascience")
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from balsamfut.errors import UsageError
from balsamfut.executor import asking
from balsamfut.executor.local import site_directory
from balsamfut.infos import PlanInfo
from balsamfut.messages import RemoveBlock, SubmitBlock

if TYPE_CHECKING:
    from balsamfut.infos import BlockInfo


class Site:
    """A site that is kept, by its name or directory ("": $BALSAMFUT_SITE).

    Raises SiteError where the list of names cannot be read.
    """

    def __init__(self, site: str | os.PathLike[str] = "") -> None:
        self.path: Path = site_directory(site or None)
        self.queue = Queue(self.path)

    def __repr__(self) -> str:
        return f"<Site {self.path}>"


class Queue:
    """The blocks of a site."""

    def __init__(self, site: Path) -> None:
        self._site = site

    def submit(self, num_nodes: int, wall_time_min: float, *, queue: str = "", project: str = "", job_mode: str = "any",
               **extra: str) -> int:
        """Ask the batch system for nodes, for so many minutes; returns the block's number.

        job_mode: which tasks it takes: any, mpi or serial.  extra: more for the job script, such as filesystems.
        Raises UsageError with one sentence where the platform's queues would not take it, InterchangeLost where the
        site is not running.
        """
        if isinstance(num_nodes, bool) or not isinstance(num_nodes, int) or num_nodes < 1:
            raise UsageError(f"num_nodes is a number of nodes, at least 1, not {num_nodes!r}")
        if not isinstance(wall_time_min, int | float) or not wall_time_min > 0:
            raise UsageError(f"wall_time_min is a number of minutes above 0, not {wall_time_min!r}")
        params = {name: str(value) for name, value in extra.items()}
        wanted = SubmitBlock(1, num_nodes, 60.0 * wall_time_min, queue, project, job_mode, params)
        return asking.ask_for_block(self._site, wanted)

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
