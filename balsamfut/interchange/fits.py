"""What the pilots of a site can hold, by the machine that they are on.  Knows platforms, and no tasks."""

from __future__ import annotations

import os

from balsamfut import platforms
from balsamfut.interchange.sessions import Shape
from balsamfut.messages import Enrol
from balsamfut.model import Resources
from balsamfut.placement import Packer


class Fits:
    """How many requests of a kind fit into an empty pilot."""

    def __init__(self) -> None:
        self._packers: dict[tuple[str, int, int], Packer] = {}

    def __call__(self, pilot: Enrol, resources: Resources) -> int:
        key = (pilot.platform, pilot.cores, len(pilot.nodes))
        packer = self._packers.get(key)
        if packer is None:
            workstation = pilot.platform == "workstation"
            platform = platforms.workstation(pilot.cores) if workstation else platforms.load(pilot.platform)
            packer = self._packers[key] = Packer(platform.node, pilot.nodes)
        return packer.capacity(resources)


def shape(platform: str, nodes: int, cores: int) -> Shape:
    """A local pilot: a workstation has as many cores as it is given, or as this machine has; others have their own."""
    if platform != "workstation":
        return Shape(platform, nodes, 0)
    return Shape(platform, nodes, cores or len(os.sched_getaffinity(0)))
