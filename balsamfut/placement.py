"""Where an attempt runs: which nodes, cores and tiles.  Pure: no time, no randomness, nothing but integers.

A request is per node: `ranks_per_node` ranks, each with `cores_per_rank` physical cores and `gpu_shares` of tiles, and
memory.  `threads_per_core` > 1 means that a rank needs fewer cores and is bound to their sibling threads too
(`Node.threads`); a core is never divided.  `node_packing_count=k` takes 1/k of each node against all that say such a
count; 1 takes an empty node and keeps everybody else out; without it a task takes what it asked for and no more.

Which cores and tiles of a node go together is decided in `platforms.shape`; `Packer` knows what is free on each node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from balsamfut.candidates import PACK, Candidates, Kind
from balsamfut.model import TILE, Resources
from balsamfut.platforms import Node, cpu_text
from balsamfut.platforms.limits import impossible as impossible
from balsamfut.platforms.shape import Found, RankShare, Shape, mask_of

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


class Hold(msgspec.Struct, frozen=True):
    """What is kept on a node for a request that waits, whether it is free yet or not."""

    cores: int      # masks
    tiles: int
    memory: int
    packing: int


Leaving = tuple[NodeShare, int, int]
"""What will be freed on a node, with the masks of its cores and tiles (see `masks`)."""


def masks(share: NodeShare) -> tuple[int, int]:
    """The cores and the tiles of a share, as masks."""
    return (mask_of([core for rank in share.ranks for core in rank.cores]),
            mask_of([tile for rank in share.ranks for tile in rank.tiles]))


class Packer:
    """What is free on equal nodes, and where a request goes.

    A request goes to the lowest nodes where it fits, so that the far end stays empty for wide ones.  The cost of a
    placement grows neither with the number of nodes nor with what runs (beyond a logarithm): each kind of request keeps
    its own candidates, and sees only those nodes again on which something was freed since it last looked.

    What is held on a node (`hold`) is only for placements with `into`; which of them may is not decided here.
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
        self._holds: dict[int, Hold] = {}
        self._kinds: dict[tuple[int, ...], Kind] = {}
        self._known: dict[Resources, tuple[Kind, int]] = {}    # with the number of nodes
        self._capacity: dict[Resources, int] = {}
        self._each: dict[Resources, int] = {}        # how many an empty node holds
        self._log: list[int] = []                    # nodes on which something was freed, in order
        self._log_limit = 4 * total + 1000
        self._epoch = 0                              # of the log

    # ---- what is asked

    def place(self, resources: Resources, into: bool = False) -> Placement | None:
        """Take what the request needs, or None where it does not fit now (or never: see `impossible`).

        into: it may have what is held, and takes that first.
        """
        kind, nodes = self._known.get(resources) or self._learn(resources)
        if kind.seen != len(self._log) or kind.epoch != self._epoch:
            self._catch_up(kind)
        if nodes != 1:
            return self._place_wide(kind, nodes, into)
        if into:
            held = kind.held
            while held.heap:
                node = held.heap[0]
                found = self._fit(kind, node, None) if node in self._holds else None
                if found is not None:
                    return Placement((self._take(kind, node, found),), self._labels)
                held.pop()
        heap = kind.open.heap
        while heap:
            found = self._fit(kind, heap[0], self._holds.get(heap[0]))
            if found is not None:
                return Placement((self._take(kind, heap[0], found),), self._labels)
            kind.open.pop()
        return None

    def free(self, placement: Placement) -> None:
        """Give back what `place` gave.  Raises ValueError, changing nothing, if (part of) it is free already."""
        given = [mask_of([core for rank in share.ranks for core in rank.cores]) for share in placement.nodes]
        for share, cores in zip(placement.nodes, given, strict=True):
            if self._cores[share.node] & cores:
                raise ValueError(f"{placement.text} is free already")
        for share, cores in zip(placement.nodes, given, strict=True):
            self._give_back(share, cores)

    def retake(self, placement: Placement) -> bool:
        """Take a place on one node that was given back once more; False: it is not free."""
        node, (cores, tiles) = (share := placement.nodes[0]).node, masks(placement.nodes[0])
        alone = share.packing == PACK and self._tasks[node]
        if (alone or self._shut[node] & _ALONE or self._cores[node] & cores != cores
                or share.memory > self._memory[node] or share.packing > self._packing[node]
                or not all(self._tiles[node] >> t & 1 or 0 < self._shared[node].get(t, 0) <= TILE - share.gpu_shares
                           for rank in share.ranks for t in rank.tiles)):
            return False
        self._take(share, node, (share.ranks, cores, tiles))
        return True

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

    def capacity(self, resources: Resources) -> int:
        """How many such requests run at once when the nodes that are not dropped are empty."""
        known = self._capacity.get(resources)
        if known is None:
            usable = sum(1 for shut in self._shut if not shut & _DROPPED)
            known = 0
            if resources.num_nodes <= usable:
                known = usable * self.on_one_node(resources) // resources.num_nodes
            self._capacity[resources] = known
        return known

    def on_one_node(self, resources: Resources) -> int:
        """How many parts of such requests an empty node holds."""
        narrow = resources if resources.num_nodes == 1 else msgspec.structs.replace(resources, num_nodes=1)
        count = self._each.get(narrow)
        if count is None:
            count = 0
            if impossible(narrow, self.node, 1) is None:
                alone = Packer(self.node, ("",))
                while alone.place(narrow) is not None:
                    count += 1
            if len(self._each) >= _REMEMBERED:
                self._each, self._capacity = {}, {}
            self._each[narrow] = count
        return count

    # ---- what waits

    def room(self, resources: Resources) -> tuple[int, int]:
        """On how many nodes the request's part may fit beside what is held, and on how many in all.  No fewer; perhaps
        more than are left when it is tried."""
        kind, _ = self._known.get(resources) or self._learn(resources)
        if kind.seen != len(self._log) or kind.epoch != self._epoch:
            self._catch_up(kind)
        return len(kind.open.heap), len(kind.open.heap) + len(kind.held.heap)

    def when(self, resources: Resources, node: int, leaving: Sequence[Leaving]) -> int | None:
        """How many of `leaving` (all that is on the node, in the order in which it goes) have to be gone before the
        request's part for one node fits there; None: it does not fit even then."""
        kind, _ = self._known.get(resources) or self._learn(resources)
        if self._shut[node] & _DROPPED:
            return None
        if self._fit(kind, node, None) is not None:
            return 0
        if self._shared[node] or kind.gpu_shares < TILE or kind.packing == PACK:
            return len(leaving)      # sooner perhaps, but not later
        state = self._later(node, ())
        for count, left in enumerate(leaving, 1):
            state = _without(state, left)
            if self._fits(kind, *state) is not None and all(each.packing < PACK for each, _, _ in leaving[count:]):
                return count
        return None

    def hold(self, resources: Resources, where: Iterable[tuple[int, Sequence[Leaving]]]) -> None:
        """Keep on each of these nodes what the request will take when what is leaving has left, and nothing on others.

        Whether something is in the way there is for who holds to know.
        """
        before, self._holds = self._holds, {node: self._hold(resources, node, leaving) for node, leaving in where}
        for node in before.keys() | self._holds.keys():
            if before.get(node) != self._holds.get(node):
                self._note(node)

    def in_the_way(self, placement: Placement) -> bool:
        """It has something of what is held, or of what is lacking for that."""
        holds = self._holds
        if not holds:
            return False
        for share in placement.nodes:
            hold = holds.get(share.node)
            if hold is not None:
                cores, tiles = masks(share)
                if (hold.cores & cores or hold.tiles & tiles
                        or (share.packing and hold.packing > self._packing[share.node])
                        or (share.memory and hold.memory > self._memory[share.node])):
                    return True
        return False

    # ---- how it is done

    def _hold(self, resources: Resources, node: int, leaving: Sequence[Leaving]) -> Hold:
        kind, _ = self._known.get(resources) or self._learn(resources)
        found = None
        if not self._shared[node] and kind.gpu_shares == TILE and kind.packing != PACK:
            found = self._fits(kind, *self._later(node, leaving))
        if found is None:
            return Hold(self._shape.cores, self._shape.tiles, kind.memory, kind.packing)
        return Hold(found[1], found[2], kind.memory, kind.packing)

    def _later(self, node: int, leaving: Sequence[Leaving]) -> tuple[int, int, int, int]:
        """What is free when these have left: cores, tiles, memory, occupancy."""
        state = self._cores[node], self._tiles[node], self._memory[node], self._packing[node]
        for left in leaving:
            state = _without(state, left)
        return state

    def _fits(self, kind: Kind, cores: int, tiles: int, memory: int, packing: int) -> Found | None:
        if kind.memory > memory or kind.packing > packing or cores.bit_count() < kind.ranks * kind.cores \
                or tiles.bit_count() < kind.ranks * kind.tiles:
            return None
        return self._arrange(kind, (cores, tiles))

    def _arrange(self, kind: Kind, state: tuple[int, int]) -> Found | None:
        remembered = kind.remembered
        if state not in remembered:
            if len(remembered) >= _REMEMBERED:
                remembered.clear()
            remembered[state] = self._shape.arrange(*state, kind.ranks, kind.cores, kind.tiles)
        return remembered[state]

    def _learn(self, resources: Resources) -> tuple[Kind, int]:
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
            self._kinds.clear()
        kind = Kind(resources)
        kind = self._kinds.setdefault(kind.key, kind)
        nodes = resources.num_nodes
        if impossible(resources, self.node, len(self.names)) is not None:
            nodes = len(self.names) + 1   # never placed
        self._known[resources] = kind, nodes
        return kind, nodes

    def _catch_up(self, kind: Kind) -> None:
        """Make the nodes candidates again on which something was freed since this kind of request last looked."""
        log, holds = self._log, self._holds
        if kind.epoch != self._epoch:
            total = len(self.names)
            kind.open = Candidates(range(total), total)
            kind.held = Candidates(sorted(holds), total)
            kind.epoch = self._epoch
        else:
            for node in set(log[kind.seen:]):
                hold = holds.get(node)
                if not kind.open.inside[node] and self._fit(kind, node, hold) is not None:
                    kind.open.add(node)
                if hold is not None and not kind.held.inside[node] and self._fit(kind, node, None) is not None:
                    kind.held.add(node)
        kind.seen = len(log)

    def _note(self, node: int) -> None:
        if len(self._log) >= self._log_limit:   # whoever is behind looks at all nodes anew
            self._log.clear()
            self._epoch += 1
        self._log.append(node)

    def _place_wide(self, kind: Kind, nodes: int, into: bool) -> Placement | None:
        found: dict[int, Found] = {}
        if into:
            self._gather(kind, kind.held, nodes, found, len(kind.open.heap), True)
        if len(found) < nodes:
            self._gather(kind, kind.open, nodes, found, 0, False)
        if len(found) < nodes:
            return None
        return Placement(tuple(self._take(kind, node, found[node]) for node in sorted(found)), self._labels)

    def _gather(self, kind: Kind, candidates: Candidates, nodes: int, found: dict[int, Found], more: int,
                held: bool) -> None:
        """Add candidates where it fits until there are enough; nothing where there cannot be, with `more` others."""
        heap, holds, there = candidates.heap, self._holds, []
        while heap and len(heap) + len(found) + more >= nodes > len(found):
            node = candidates.pop()
            hold = holds.get(node)
            fit = self._fit(kind, node, None if held else hold) if hold is not None or not held else None
            if fit is not None:
                there.append(node)
                found.setdefault(node, fit)
        for node in there:
            candidates.add(node)

    def _fit(self, kind: Kind, node: int, hold: Hold | None) -> Found | None:
        """Where the request would go on this node, beside what is held."""
        packing = kind.packing
        if (self._shut[node] or kind.memory > self._memory[node] or packing > self._packing[node]
                or (packing == PACK and self._tasks[node])):
            return None
        cores, tiles = self._cores[node], self._tiles[node]
        if hold is not None:
            if (packing == PACK or packing > self._packing[node] - hold.packing or hold.packing == PACK
                    or (kind.memory and kind.memory > self._memory[node] - hold.memory)):
                return None
            cores &= ~hold.cores
            tiles &= ~hold.tiles
        if kind.gpu_shares < TILE:
            shared = self._shared[node]
            if hold is not None and shared:
                shared = {tile: taken for tile, taken in shared.items() if not hold.tiles >> tile & 1}
            return self._shape.arrange_shared(cores, tiles, shared, kind.ranks, kind.cores, kind.gpu_shares)
        state = cores, tiles
        if state in kind.remembered:
            return kind.remembered[state]
        return self._arrange(kind, state)

    def _take(self, kind: Kind | NodeShare, node: int, found: Found) -> NodeShare:
        ranks, cores, tiles = found
        self._cores[node] &= ~cores
        self._tiles[node] &= ~tiles
        if kind.gpu_shares < TILE:
            used = self._shared[node]
            for rank in ranks:
                used[rank.tiles[0]] = used.get(rank.tiles[0], 0) + kind.gpu_shares
        self._memory[node] -= kind.memory
        self._packing[node] -= kind.packing
        self._tasks[node] += 1
        if kind.packing == PACK:
            self._shut[node] |= _ALONE
        return NodeShare(node, ranks, kind.memory, kind.packing, kind.gpu_shares)

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


def _without(state: tuple[int, int, int, int], left: Leaving) -> tuple[int, int, int, int]:
    """What is free when this has left."""
    (cores, tiles, memory, packing), (share, its_cores, its_tiles) = state, left
    return cores | its_cores, tiles | its_tiles, memory + share.memory, packing + share.packing
