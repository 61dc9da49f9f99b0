"""Where an attempt runs: which nodes, cores and tiles.  Pure: no time, no randomness, nothing but integers.

A request is per node: `ranks_per_node` ranks, each with `cores_per_rank` physical cores and `gpu_shares` of tiles, and
memory.  `threads_per_core` > 1 means that a rank needs fewer cores and is bound to their sibling threads too
(`Node.threads`); a core is never divided between ranks.  `node_packing_count=k` takes 1/k of each node against all
tasks that say such a count; 1 takes a node that is empty and keeps everybody else out; without it a task takes what
it asked for and nothing more.

Which cores and tiles of a node go together is decided in `balsamfut.platforms.shape`, which has no state; `Packer`
holds what is free on each of many equal nodes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from balsamfut.model import TILE, Resources
from balsamfut.platforms import Node, cpu_text
from balsamfut.platforms.shape import Found, RankShare, Shape, bits, mask_of

PACK: Final = math.lcm(*range(1, 33))
"""Units of a node's occupancy: divisible by every node_packing_count up to 32, so that k of them fill it."""

_TEXT_LIMIT: Final = 200
_REMEMBERED: Final = 4096   # states of a node, or kinds of requests
_DROPPED: Final = 1
_ALONE: Final = 2


class NodeShare(msgspec.Struct, frozen=True):
    """What an attempt has on one node; ranks by local rank."""

    node: int                # index into the pilot's nodes
    ranks: tuple[RankShare, ...]
    memory: int = 0          # bytes
    packing: int = 0         # of PACK; PACK: the node is its alone
    gpu_shares: int = TILE   # of each of a rank's tiles: TILE, or less when it is shared


class Placement(msgspec.Struct, frozen=True):
    """Where an attempt runs: distinct nodes, rank 0 on the first."""

    nodes: tuple[NodeShare, ...]
    labels: tuple[str, ...] = ()   # ids of the node's tiles, for `text`

    @property
    def text(self) -> str:
        """For people, `node:cores/tiles`, at most 200 characters: `0:1-8/0.0`, `0-3:1-16/0.0,0.1`."""
        groups: dict[str, list[int]] = {}
        for share in self.nodes:
            cores = cpu_text(core for rank in share.ranks for core in rank.cores)
            tiles = sorted({tile for rank in share.ranks for tile in rank.tiles})
            where = cores + ("/" + ",".join(self.labels[tile] for tile in tiles) if tiles else "")
            groups.setdefault(where, []).append(share.node)
        text = " ".join(f"{cpu_text(nodes)}:{where}" for where, nodes in groups.items())
        return text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT - 3] + "..."


class _Need:
    """A request as the packer wants it, and the nodes where it may fit.

    `heap` holds every node where it fits (and some where it does not any more): a node leaves when it was found too
    full and comes back when something was freed on it, which the packer's log tells.
    """

    __slots__ = ("nodes", "ranks", "cores", "tiles", "gpu_shares", "memory", "packing", "heap", "inside", "seen",
                 "epoch", "remembered")

    def __init__(self, resources: Resources) -> None:
        self.nodes = resources.num_nodes
        self.ranks = resources.ranks_per_node
        self.cores = resources.cores_per_rank
        shares = resources.gpu_shares
        self.gpu_shares = shares if 0 < shares < TILE else TILE
        self.tiles = -(-shares // TILE)
        self.memory = resources.memory
        count = resources.node_packing_count
        self.packing = max(1, PACK // count) if count else 0
        self.heap: list[int] = []
        self.inside = bytearray()
        self.seen = 0
        self.epoch = -1
        self.remembered: dict[tuple[int, int], Found | None] = {}


class Packer:
    """What is free on equal nodes, and where a request goes.

    A request goes to the lowest nodes where it fits, so that the far end stays empty for wide ones.  The cost of a
    placement grows neither with the number of nodes nor with what runs (beyond a logarithm): each kind of request keeps
    its own candidates, and sees only those nodes again on which something was freed since it last looked.
    """

    def __init__(self, node: Node, names: Sequence[str]) -> None:
        self.node = node
        self.names = tuple(names)
        self._shape = Shape(node)
        self._labels = tuple(tile.id for tile in node.tiles)
        total = len(self.names)
        self._cores = [self._shape.cores] * total    # free, as masks
        self._tiles = [self._shape.tiles] * total    # wholly free
        self._shared: list[dict[int, int]] = [{} for _ in range(total)]   # shared tile -> shares taken
        self._memory = [node.memory or 1 << 62] * total
        self._packing = [PACK] * total               # free occupancy
        self._tasks = [0] * total                    # placements that are there
        self._shut = bytearray(total)                # _DROPPED, _ALONE
        self._needs: dict[Resources, _Need] = {}
        self._capacity: dict[Resources, int] = {}
        self._log: list[int] = []                    # nodes on which something was freed, in order
        self._log_limit = 4 * total + 1000
        self._epoch = 0                              # of the log

    # ---- what is asked

    def place(self, resources: Resources) -> Placement | None:
        """Take what the request needs, or None where it does not fit now (or never: see `impossible`)."""
        need = self._needs.get(resources)
        if need is None:
            need = self._learn(resources)
        if need.seen != len(self._log) or need.epoch != self._epoch:
            self._catch_up(need)
        if need.nodes != 1:
            return self._place_wide(need)
        heap = need.heap
        while heap:
            found = self._fit(need, heap[0])
            if found is not None:
                return Placement((self._take(need, heap[0], found),), self._labels)
            need.inside[heapq.heappop(heap)] = 0
        return None

    def free(self, placement: Placement) -> None:
        """Give back what `place` gave.  Raises ValueError, changing nothing, if (part of) it is free already."""
        masks = [mask_of([core for rank in share.ranks for core in rank.cores]) for share in placement.nodes]
        for share, cores in zip(placement.nodes, masks, strict=True):
            if self._cores[share.node] & cores:
                raise ValueError(f"{placement.text} is free already")
        for share, cores in zip(placement.nodes, masks, strict=True):
            self._give_back(share, cores)

    def drop(self, node: int) -> None:
        """Place nothing on this node any more; what runs there stays and may be freed."""
        self._shut[node] |= _DROPPED
        self._capacity.clear()

    def restore(self, node: int) -> None:
        """Use a dropped node again."""
        if self._shut[node] & _DROPPED:
            self._shut[node] &= ~_DROPPED
            self._capacity.clear()
            self._note(node)

    def idle(self, node: int) -> bool:
        """Whether nothing is placed on this node."""
        return not self._tasks[node]

    def capacity(self, resources: Resources) -> int:
        """How many such requests run at once when the nodes that are not dropped are empty."""
        known = self._capacity.get(resources)
        if known is None:
            usable = sum(1 for shut in self._shut if not shut & _DROPPED)
            known = 0
            if resources.num_nodes <= usable:
                known = usable * self._on_one_node(resources) // resources.num_nodes
            self._capacity[resources] = known
        return known

    # ---- how it is done

    def _on_one_node(self, resources: Resources) -> int:
        if impossible(resources, self.node, resources.num_nodes) is not None:
            return 0
        alone = Packer(self.node, ("",))
        narrow = msgspec.structs.replace(resources, num_nodes=1)
        count = 0
        while alone.place(narrow) is not None:
            count += 1
        return count

    def _learn(self, resources: Resources) -> _Need:
        if len(self._needs) >= _REMEMBERED:
            self._needs.clear()
        need = self._needs[resources] = _Need(resources)
        if impossible(resources, self.node, len(self.names)) is not None:
            need.nodes = len(self.names) + 1   # never placed
        return need

    def _catch_up(self, need: _Need) -> None:
        """Make the nodes candidates again on which something was freed since this request last looked."""
        total = len(self.names)
        if need.epoch != self._epoch:
            need.heap = list(range(total))
            need.inside = bytearray(b"\1") * total
            need.epoch = self._epoch
        else:
            inside, heap = need.inside, need.heap
            for index in range(need.seen, len(self._log)):
                node = self._log[index]
                if not inside[node]:
                    inside[node] = 1
                    heapq.heappush(heap, node)
        need.seen = len(self._log)

    def _note(self, node: int) -> None:
        if len(self._log) >= self._log_limit:   # whoever is behind looks at all nodes anew
            self._log.clear()
            self._epoch += 1
        self._log.append(node)

    def _place_wide(self, need: _Need) -> Placement | None:
        heap = need.heap
        found: list[tuple[int, Found]] = []
        while heap and len(heap) + len(found) >= need.nodes > len(found):
            node = heapq.heappop(heap)
            fit = self._fit(need, node)
            if fit is None:
                need.inside[node] = 0
            else:
                found.append((node, fit))
        for node, _ in found:
            heapq.heappush(heap, node)
        if len(found) < need.nodes:
            return None
        return Placement(tuple(self._take(need, node, fit) for node, fit in found), self._labels)

    def _fit(self, need: _Need, node: int) -> Found | None:
        """Where the request would go on this node."""
        if (self._shut[node] or need.memory > self._memory[node] or need.packing > self._packing[node]
                or (need.packing == PACK and self._tasks[node])):
            return None
        if need.gpu_shares < TILE:
            return self._fit_shared(need, node)
        state = self._cores[node], self._tiles[node]
        if state not in need.remembered:
            if len(need.remembered) >= _REMEMBERED:
                need.remembered.clear()
            need.remembered[state] = self._shape.arrange(*state, need.ranks, need.cores, need.tiles)
        return need.remembered[state]

    def _fit_shared(self, need: _Need, node: int) -> Found | None:
        """As _fit, for ranks that take a share of one tile: the fullest shared tile with room, else a new one."""
        shape, free_cores, free_tiles = self._shape, self._cores[node], self._tiles[node]
        if free_cores.bit_count() < need.ranks * need.cores:
            return None
        used = dict(self._shared[node])
        shares, all_cores, all_tiles = [], 0, 0
        for _ in range(need.ranks):
            room = [(-taken, tile) for tile, taken in used.items() if taken + need.gpu_shares <= TILE]
            mine = 1 << min(room)[1] if room else shape.pick_tiles(free_tiles, free_cores, 1, need.cores)
            if not mine:
                return None
            tile = mine.bit_length() - 1
            used[tile] = used.get(tile, 0) + need.gpu_shares
            taken = shape.tile_cores(free_cores, free_tiles, mine, need.cores)
            free_cores &= ~taken
            free_tiles &= ~mine
            all_cores |= taken
            all_tiles |= mine
            shares.append(RankShare(bits(taken), (tile,)))
        return tuple(shares), all_cores, all_tiles

    def _take(self, need: _Need, node: int, found: Found) -> NodeShare:
        ranks, cores, tiles = found
        self._cores[node] &= ~cores
        self._tiles[node] &= ~tiles
        if need.gpu_shares < TILE:
            used = self._shared[node]
            for rank in ranks:
                used[rank.tiles[0]] = used.get(rank.tiles[0], 0) + need.gpu_shares
        self._memory[node] -= need.memory
        self._packing[node] -= need.packing
        self._tasks[node] += 1
        if need.packing == PACK:
            self._shut[node] |= _ALONE
        return NodeShare(node, ranks, need.memory, need.packing, need.gpu_shares)

    def _give_back(self, share: NodeShare, cores: int) -> None:
        node = share.node
        self._cores[node] |= cores
        used = self._shared[node]
        for rank in share.ranks:
            for tile in rank.tiles:
                left = used.get(tile, TILE) - share.gpu_shares
                if left:
                    used[tile] = left
                else:
                    used.pop(tile, None)
                    self._tiles[node] |= 1 << tile
        self._memory[node] += share.memory
        self._packing[node] += share.packing
        self._tasks[node] -= 1
        self._shut[node] &= ~_ALONE
        self._note(node)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _what_there_is(node: Node, have: str) -> str:
    if node.name == "workstation":
        return f"this machine has {have}"
    return f"{'an' if node.name[:1] in 'aeiou' else 'a'} {node.name} node has {have}"


def impossible(resources: Resources, node: Node, nodes: int) -> str | None:
    """Why so many such nodes can never satisfy the request: what was asked and what there is; None where they can."""
    r = resources
    ranks, cores = r.ranks_per_node, r.cores_per_rank
    for name in ("num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core"):
        if getattr(r, name) < 1:
            return f"asked {name}={getattr(r, name)}, it must be at least 1"
    for name in ("gpu_shares", "memory", "node_packing_count"):
        if getattr(r, name) < 0:
            return f"asked {name}={getattr(r, name)}, it cannot be negative"
    if r.num_nodes > nodes:
        return f"asked {_count(r.num_nodes, 'node')}, there {'is' if nodes == 1 else 'are'} {nodes}"
    if node.smt_offset and r.threads_per_core > node.smt:
        return f"asked threads_per_core={r.threads_per_core}, " + _what_there_is(node, f"{node.smt} threads per core")
    if ranks * cores > len(node.cores):
        return (f"asked {_count(ranks * cores, 'core')} on one node ({_count(ranks, 'rank')} x {cores}), "
                + _what_there_is(node, str(len(node.cores))))
    if node.memory and r.memory > node.memory:
        return (f"asked {r.memory / 1e9:.6g} GB of memory on one node, "
                + _what_there_is(node, f"{node.memory / 1e9:.6g} GB"))
    return _impossible_tiles(ranks, r.gpu_shares, node)


def _impossible_tiles(ranks: int, shares: int, node: Node) -> str | None:
    each = f"{shares / TILE:.6g}"
    there = len(node.tiles)
    if shares > TILE and shares % TILE:
        return f"asked gpus_per_rank={each}; above 1 it must be a whole number"
    tiles = shares // TILE
    if tiles * ranks > there or (0 < shares < TILE and ranks > there * (TILE // shares)):
        asked = f"{ranks * shares / TILE:.6g}"
        return (f"asked {asked} tile{'' if asked == '1' else 's'} on one node ({_count(ranks, 'rank')} x {each}), "
                + _what_there_is(node, str(there or "none")))
    shape = Shape(node)
    if tiles and shape.arrange(shape.cores, shape.tiles, ranks, 1, tiles) is None:
        return (f"asked {_count(ranks, 'rank')} x {tiles} tiles on one node, each rank on as few GPUs as it can be; "
                + _what_there_is(node, f"{_count(len(shape.gpus), 'GPU')} of {_count(shape.gpu_size, 'tile')}"))
    return None
