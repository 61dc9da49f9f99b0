"""What the pilots of a site can hold, by the machine that they are on.  Knows platforms, and no tasks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from balsamfut import platforms
from balsamfut.errors import SiteError
from balsamfut.interchange.sessions import Shape
from balsamfut.messages import Enrol
from balsamfut.model import Resources
from balsamfut.placement import Packer

_REMEMBERED: Final = 16


class Fits:
    """How many requests of a kind fit into an empty pilot, on the nodes that it gives work to."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._packers: dict[tuple[str, int, int], Packer] = {}

    def __call__(self, pilot: Enrol, resources: Resources) -> int:
        if not pilot.nodes:
            return 0
        key = (pilot.platform, pilot.cores, len(pilot.nodes))
        packer = self._packers.get(key)
        if packer is None:
            platform = platforms.at(self._site, pilot.platform, pilot.cores)
            if len(self._packers) >= _REMEMBERED:      # of ten thousand nodes one is some megabytes
                del self._packers[next(iter(self._packers))]
            packer = self._packers[key] = Packer(platform.node, pilot.nodes)
        return packer.capacity(resources)


def shape(platform: str, nodes: int, cores: int, hosts: str = "", pretend: bool = False) -> Shape:
    """A local pilot: a workstation has as many cores as it is given, or as this machine has; others have their own.

    hosts: a file with the names of its nodes, which then are as many.  Raises SiteError where it cannot be read.
    """
    if hosts:
        try:
            nodes = len(set(Path(hosts).read_text().split()))
        except OSError as error:
            raise SiteError(f"pilot.hosts: {hosts} cannot be read: {error.strerror}") from None
    if platform == "workstation":
        cores = cores or len(os.sched_getaffinity(0))
    return Shape(platform, nodes, cores if platform == "workstation" else 0, hosts, pretend)
