"""When a request that waits will fit, and the reservation that sees to it.  Pure: time is an argument.

`Outlook` knows what is on each node and when that is expected to go.  For a kind of request it keeps the nodes in the
order in which they will be ready for it, and looks again only at those where something came or went: a choice costs the
request's width (and a logarithm), not the number of nodes.

`Reserve` keeps one reservation, for the highest-ranked request that does not fit: the nodes that will be ready first,
and the time at which the last of them will be.  What ranks behind it may use these nodes only beside what is held
there, or when it is expected to end before that time, which never moves away while the expectations hold.  Where they
do not (tasks took longer than they used to), nothing new goes in, and the choice stands for a while that doubles each
time: so a request waits as long as what is in its way lasts, but not for work that came later.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec

from balsamfut.model import Resources
from balsamfut.placement import Leaving, Placement, masks

UNKNOWN: Final = 1e12
"""Later than any time."""

PATIENCE: Final = 10.0
"""Seconds after its time for which a reservation stays where it is, at first."""

SPACING: Final = 0.02
"""Seconds at least between two choices of nodes for the same request ..."""

SPACING_NODE: Final = 5e-5
"""... and so many for each node that it wants."""

_KINDS: Final = 16
_NEVER: Final = math.inf
_READY: Final = 0.0


class Holds(Protocol):
    """What is needed of placement.Packer."""

    def when(self, resources: Resources, node: int, leaving: Sequence[Leaving]) -> int | None: ...
    def hold(self, resources: Resources, where: Iterable[tuple[int, Sequence[Leaving]]]) -> None: ...


def unknown(began: float) -> float:
    """When something ends of which nobody knows: after all else, and what began last before what hangs since long."""
    return 2 * UNKNOWN - began


class Tenant:
    """What has a placement, and when it is expected to go (Unix time; from UNKNOWN on: nobody knows)."""

    __slots__ = ("placement", "began", "ends", "_parts")

    def __init__(self, placement: Placement, began: float, ends: float) -> None:
        self.placement = placement
        self.began = began
        self.ends = ends
        self._parts: dict[int, Leaving] = {}

    def part(self, node: int) -> Leaving:
        if not self._parts:
            self._parts = {share.node: (share, *masks(share)) for share in self.placement.nodes}
        return self._parts[node]


class Choice(msgspec.Struct):
    """The nodes that will be ready first for a request."""

    when: float                                     # the last of them; from UNKNOWN on: nobody knows
    where: list[tuple[int, list[Leaving]]]          # with what has to leave first


class _View:
    """When each node will be ready for one kind of request: 0.0: it is; infinite: never."""

    __slots__ = ("resources", "ready", "heap", "seen", "epoch")

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.ready: list[float] = []
        self.heap: list[tuple[float, int]] = []     # an entry counts while it tells what `ready` does
        self.seen = 0
        self.epoch = -1


class Outlook:
    """What is on each of so many nodes, until when."""

    def __init__(self, packer: Holds, nodes: int) -> None:
        self._packer = packer
        self._there: list[dict[Tenant, None]] = [{} for _ in range(nodes)]
        self._views: dict[Resources, _View] = {}
        self._log: list[int] = []               # nodes where something came or went
        self._log_limit = 4 * nodes + 1000
        self._epoch = 0

    def enter(self, placement: Placement, began: float, ends: float) -> Tenant:
        tenant = Tenant(placement, began, ends)
        for share in placement.nodes:
            self._there[share.node][tenant] = None
            self.changed(share.node)
        return tenant

    def leave(self, tenant: Tenant) -> None:
        for share in tenant.placement.nodes:
            del self._there[share.node][tenant]
            self.changed(share.node)

    def stay(self, tenant: Tenant, ends: float) -> None:
        """It is expected to go at another time."""
        tenant.ends = ends
        for share in tenant.placement.nodes:
            self.changed(share.node)

    def changed(self, node: int) -> None:
        """What fits there, and when, may not be what it was."""
        if self._views:
            if len(self._log) >= self._log_limit:
                self._log.clear()
                self._epoch += 1
            self._log.append(node)

    def choose(self, resources: Resources, now: float, patient: bool) -> Choice | None:
        """The nodes that will be ready first; of those that will by then the last, so that what is free longer is left
        to others.  None: there are too few.

        patient: what should be gone by now is expected to go at any moment, else nobody knows when.
        """
        view = self._view(resources)
        heap, ready, wanted = view.heap, view.ready, resources.num_nodes
        found: list[tuple[float, int]] = []
        taken: set[int] = set()
        while heap and (len(found) < wanted or heap[0][0] == found[-1][0]):
            when, node = heap[0]
            if ready[node] != when or node in taken or when == _NEVER:
                heapq.heappop(heap)
            elif _READY < when < now and not patient:
                self._doubt(node, now)
                self._look(view, node)
            else:
                taken.add(node)
                found.append(heapq.heappop(heap))
        for entry in found:
            heapq.heappush(heap, entry)
        if len(found) < wanted:
            return None
        return Choice(found[-1][0], [(node, self._leaving(node, when)) for when, node in found[-wanted:]])

    def _leaving(self, node: int, when: float) -> list[Leaving]:
        return [tenant.part(node) for tenant in self._there[node] if tenant.ends <= when]

    def _doubt(self, node: int, now: float) -> None:
        for tenant in self._there[node]:
            if tenant.ends < now:
                self.stay(tenant, unknown(tenant.began))

    def _view(self, resources: Resources) -> _View:
        kind = resources if resources.num_nodes == 1 else msgspec.structs.replace(resources, num_nodes=1)
        view = self._views.pop(kind, None) or _View(kind)
        self._views[kind] = view                 # the one that was used last is the last
        if len(self._views) > _KINDS:
            del self._views[next(iter(self._views))]
        if view.epoch != self._epoch or not view.ready:
            view.ready = [self._when(view, node) for node in range(len(self._there))]
            view.heap = [(when, node) for node, when in enumerate(view.ready)]
            heapq.heapify(view.heap)
            view.epoch = self._epoch
        else:
            for node in set(self._log[view.seen:]):
                self._look(view, node)
        view.seen = len(self._log)
        if len(view.heap) > 4 * len(self._there) + 64:
            view.heap = [(when, node) for node, when in enumerate(view.ready)]
            heapq.heapify(view.heap)
        return view

    def _look(self, view: _View, node: int) -> None:
        when = self._when(view, node)
        if when != view.ready[node]:
            view.ready[node] = when
            heapq.heappush(view.heap, (when, node))

    def _when(self, view: _View, node: int) -> float:
        there = sorted(self._there[node], key=_ends)
        count = self._packer.when(view.resources, node, [tenant.part(node) for tenant in there])
        return _NEVER if count is None else _READY if not count else there[count - 1].ends


def _ends(tenant: Tenant) -> float:
    return tenant.ends


class Reserve:
    """The one reservation, and for whom.  A request is told by a number that no other has."""

    def __init__(self, packer: Holds, nodes: int) -> None:
        self.outlook = Outlook(packer, nodes)
        self.holder = 0                  # whose it is; 0: nobody's
        self.limit = -math.inf           # what ends by then may use what is held (Unix time)
        self._packer = packer
        self._resources = Resources()
        self._next = 0.0                 # not looked at again before
        self._patience = PATIENCE
        self._until = 0.0                # when patience ends
        self._disturbed = False
        self._lapsed = -1.0              # when it was nobody's, though nobody was served

    def keep(self, holder: int, resources: Resources, now: float, latest: float = math.inf) -> bool:
        """See to it that this request, which does not fit, has the reservation; True: what is held has changed.

        latest: when it would have to begin; where it will not, nothing is held for it.
        """
        mine = holder == self.holder or (self._lapsed == now and resources == self._resources)
        if holder == self.holder and now < self._next:
            return False
        if not mine:
            self.limit, self._patience, self._until = -math.inf, PATIENCE, now + PATIENCE
        patient = now <= self._until
        choice = self.outlook.choose(resources, now, patient)
        # What would fit at once waits for something else than nodes.
        if choice is None or choice.when == _READY or latest < choice.when < UNKNOWN:
            return self.drop()
        self.holder, self._resources, self._lapsed = holder, resources, -1.0
        self._next = now + max(SPACING, SPACING_NODE * resources.num_nodes)
        if not patient:
            self._patience *= 2
        anew, self._disturbed = self._disturbed or not patient or self.limit == -math.inf, False
        if choice.when < UNKNOWN and (anew or choice.when < self.limit):
            self.limit = max(choice.when, now)
        if not patient or now <= self.limit:
            self._until = max(now, self.limit) + self._patience
        self._packer.hold(resources, choice.where)
        return True

    def again(self) -> None:
        """What is held was used by somebody who may, or is lost: look at once when asked, and allow more time."""
        self._next, self._disturbed = 0.0, True

    def drop(self) -> bool:
        """The holder was served, or waits no more; True: something was held."""
        if not self.holder:
            return False
        self.holder = 0
        self._packer.hold(self._resources, ())
        return True

    def lapse(self, now: float) -> None:
        """As drop, but nobody was served: if a request for the same is next, it has what this one had."""
        if self.drop():
            self._lapsed = now
