"""When launches through the machine's MPI launcher may begin, and what is done about those that failed.  Pure.

The launchers of large machines share daemons and keys that run dry, and some sites count launches.  `Launching` is one
pilot's account of them, `VniLatch` one host's memory of Slingshot keys, `named` finds the node that a launcher blames.
This module must not know tasks, queues or processes; how an exit is read is in verdict.py.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Final

import msgspec

from balsamfut.model import Resources
from balsamfut.pilot.verdict import Cause, Verdict
from balsamfut.platforms import Launcher

IN_A_ROW: Final = 2
"""Launches that fail one after the other, with none between them that works, before all launches become fewer."""
FIRST_GAP: Final = 1.0
"""Seconds between launches when they begin to become fewer, unless they were fewer already."""
LONGEST_GAP: Final = 45.0
"""Seconds between launches at most."""
WORKS: Final = 10.0
"""Seconds: a launch that has lived so long has not failed to start."""


class Launching:
    """The launches of one pilot.

    Honours the launcher's launch_rate, launch_budget and max_concurrent.  When launches fail in a row, not all on the
    same one of several nodes, their rate is halved with each further failure, and doubled with each one that works
    until it is what it was.  launcher: None: every launch may begin at once, whatever became of others.
    """

    def __init__(self, launcher: Launcher | None = None, nodes: int = 1) -> None:
        self._slows = launcher is not None
        launcher = launcher or Launcher()
        self._nodes = nodes
        self._failed_on: set[int] = set()                  # nodes of the failures in a row
        self.due = math.inf                                # when somebody who had to wait may ask again
        self.budget = launcher.launch_budget
        self.left = self.budget or math.inf                # launches that may still begin
        self.failures = 0                                  # in a row
        self._most = launcher.max_concurrent or math.inf
        self._usual = 1.0 / launcher.launch_rate if launcher.launch_rate else 0.0
        self._gap = self._usual                            # seconds between launches
        self._next = -math.inf                             # when the next one may begin
        self._slowed = -math.inf                           # when we last made them fewer
        self._running: dict[Hashable, float] = {}          # since when
        self._young: dict[Hashable, float] = {}            # those of them that may still fail to start
        self._where: dict[Hashable, int] = {}

    @property
    def gap(self) -> float:
        """Seconds between the beginnings of two launches."""
        return self._gap

    def may(self, now: float) -> bool:
        """A launch may begin now; if not, `due` says when to ask again (inf: when another has ended)."""
        when = self.when(now)
        if when > now:
            self.due = min(self.due, when)
        return when <= now

    def passed(self, now: float) -> bool:
        """The time for which somebody waited has come."""
        if now < self.due:
            return False
        self.due = math.inf
        return True

    def when(self, now: float) -> float:
        """When the next launch may begin: `now` if at once; inf: not before another has ended, or never."""
        old = []
        for key, began in self._young.items():     # in the order in which they began
            if now - began < WORKS:
                break
            old.append(key)
        for key in old:
            self._works(self._young.pop(key))
        if self.left <= 0 or len(self._running) >= self._most:
            return math.inf
        return max(self._next, now)

    def began(self, key: Hashable, now: float, node: int = 0) -> None:
        """A launch begins, on this node first."""
        self._running[key] = self._young[key] = now
        self._where[key] = node
        self._next = now + self._gap
        self.left -= 1

    def ended(self, key: Hashable, failed: bool | None, now: float) -> None:
        """A launch is over.  failed: by the launcher's fault; None: it was not even started.  One that is not known is
        ignored."""
        if self._running.pop(key, None) is None:
            return
        node, began = self._where.pop(key), self._young.pop(key, None)
        if began is None or failed is None:
            return
        if not failed or now - began >= WORKS:
            self._works(began)
            return
        self.failures += 1
        self._failed_on.add(node)
        one_node = self._nodes > 1 and len(self._failed_on) == 1      # whose fault it may be
        # Those that began before we slowed down say nothing about the rate since then.
        if self._slows and self.failures >= IN_A_ROW and began >= self._slowed and not one_node:
            self._gap = min(max(2.0 * self._gap, FIRST_GAP), max(LONGEST_GAP, self._usual))
            self._slowed = now
            self._next = max(self._next, now + self._gap)

    def _works(self, began: float) -> None:
        if began < self._slowed:
            return
        self.failures = 0
        self._failed_on.clear()
        if self._gap > self._usual:
            self._gap /= 2.0
            if self._gap < max(FIRST_GAP, self._usual):
                self._gap = self._usual


class VniLatch:
    """Whether launches of this host go without a Slingshot key, since there were none left.

    A task whose launch found none is launched again at once without one, whatever its size; tasks of one node, which
    hardly need one, go without from then on.
    """

    def __init__(self) -> None:
        self.latched = False

    def adapted(self, resources: Resources) -> Resources:
        """The request as it is to be launched."""
        if self.latched and resources.num_nodes == 1 and not _says(resources):
            return without_vni(resources)
        return resources

    def again(self, resources: Resources, verdict: Verdict) -> Resources | None:
        """The request as it is to be launched again at once after this verdict; None: it is not.

        Not where the task itself says yes or no to keys.
        """
        if verdict.cause is not Cause.VNI or _says(resources):
            return None
        self.latched = True
        return without_vni(resources)


def without_vni(resources: Resources) -> Resources:
    """The same request with --no-vni."""
    return msgspec.structs.replace(resources, launch_params=(*resources.launch_params, ("no_vni", "yes")))


def _says(resources: Resources) -> bool:
    return any(name == "no_vni" for name, _ in resources.launch_params)


def named(host: str, names: Sequence[str]) -> int | None:
    """Index of the node that a launcher calls `host`; None if that is none of them, or might be several.

    Launchers use whichever of a node's names they like: x1, x1.hsn.cluster, x1.mgmt.cluster are the same node.
    """
    if host in names:
        return names.index(host)
    short = host.partition(".")[0]
    found = [index for index, name in enumerate(names) if name.partition(".")[0] == short]
    return found[0] if len(found) == 1 and short else None
