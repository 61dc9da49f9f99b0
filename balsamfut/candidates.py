"""Where a kind of request may fit, kept up to date at the cost of what changes.  Pure.

For `balsamfut.placement`, which knows what is free.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import Final

from balsamfut.model import TILE, Resources
from balsamfut.platforms.shape import Found

PACK: Final = math.lcm(*range(1, 33))
"""Units of a node's occupancy: divisible by every node_packing_count up to 32, so that k of them fill it."""


class Candidates:
    """The nodes where a kind of request may fit: every one where it does, and some where it does not any more."""

    __slots__ = ("heap", "inside")

    def __init__(self, nodes: Iterable[int], total: int) -> None:
        self.heap = list(nodes)       # ascending, so it is a heap
        self.inside = bytearray(total)
        for node in self.heap:
            self.inside[node] = 1

    def add(self, node: int) -> None:
        if not self.inside[node]:
            self.inside[node] = 1
            heapq.heappush(self.heap, node)

    def pop(self) -> int:
        node = heapq.heappop(self.heap)
        self.inside[node] = 0
        return node


class Kind:
    """What a request wants of each of its nodes, and the nodes where that may be had.

    A node leaves the candidates when it was found too full and comes back when something was freed on it, which the
    packer's log tells.
    """

    __slots__ = ("ranks", "cores", "tiles", "gpu_shares", "memory", "packing", "open", "held", "seen", "epoch",
                 "remembered")

    def __init__(self, resources: Resources) -> None:
        self.ranks = resources.ranks_per_node
        self.cores = resources.cores_per_rank
        shares = resources.gpu_shares
        self.gpu_shares = shares if 0 < shares < TILE else TILE
        self.tiles = -(-shares // TILE)
        self.memory = resources.memory
        count = resources.node_packing_count
        self.packing = max(1, PACK // count) if count else 0
        self.open = Candidates((), 0)    # where it may fit beside what is held
        self.held = Candidates((), 0)    # where something is held, and it may fit if that does not count
        self.seen = 0
        self.epoch = -1
        self.remembered: dict[tuple[int, int], Found | None] = {}

    @property
    def key(self) -> tuple[int, ...]:
        return self.ranks, self.cores, self.tiles, self.gpu_shares, self.memory, self.packing
