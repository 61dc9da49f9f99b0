"""Which cores and tiles of a node go well together.  Pure geometry: it knows what a node has, not what is on it.

What is kept together: a rank's tiles on one GPU (as many whole GPUs as it needs, if it asks for more than one has), on
one NUMA side if possible; its cores among those that are its tiles' own, else on their side, else anywhere.  Tasks
without tiles take the cores that belong to no tile, then those of busy tiles, and those of the last tiles at the end,
so that tile tasks of the usual size find theirs free.  Half-used GPUs are filled first, so that whole ones remain.

Sets of cores and of tiles are integers used as bit masks: of CPU numbers, and of indices into Node.tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from balsamfut.model import TILE
from balsamfut.platforms import Node

_REMEMBERED: Final = 4096   # sets of tiles


class RankShare(msgspec.Struct, frozen=True):
    """What one rank has on its node."""

    cores: tuple[int, ...]   # CPU numbers, ascending
    tiles: tuple[int, ...]   # indices into Node.tiles, ascending


Found = tuple[tuple[RankShare, ...], int, int]
"""Shares of the ranks, and the masks of all their cores and of all tiles that are free no more."""


def _lowest(mask: int, count: int) -> int:
    """The `count` lowest bits that are set."""
    if count == mask.bit_count():
        return mask
    taken = 0
    for _ in range(count):
        bit = mask & -mask
        taken |= bit
        mask ^= bit
    return taken


def _gather(free: int, count: int, sources: Sequence[int]) -> int:
    """`count` free bits from the sources in turn; 0 if there are too few."""
    taken = 0
    for source in sources:
        here = source & free & ~taken
        there = here.bit_count()
        if there >= count:
            return taken | _lowest(here, count)
        taken |= here
        count -= there
    return 0


def bits(mask: int) -> tuple[int, ...]:
    found = []
    while mask:
        bit = mask & -mask
        found.append(bit.bit_length() - 1)
        mask ^= bit
    return tuple(found)


def mask_of(numbers: Sequence[int]) -> int:
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


class Shape:
    """The geometry of a node: which cores and tiles go well together.  Masks are of CPU numbers and of tile indices."""

    def __init__(self, node: Node) -> None:
        self.cores = mask_of(node.cores)
        self.tiles = (1 << len(node.tiles)) - 1
        self.gpus = [mask_of([i for i, tile in enumerate(node.tiles) if tile.gpu == gpu])
                     for gpu in sorted({tile.gpu for tile in node.tiles})]
        self.gpu_size = max((gpu.bit_count() for gpu in self.gpus), default=0)
        self.sides = [mask_of([core for core, numa in zip(node.cores, node.numa, strict=True) if numa == side])
                      for side in sorted(set(node.numa))]
        self.own = [mask_of(tile.cores) for tile in node.tiles]
        side_of = {numa: self.sides[i] for i, numa in enumerate(sorted(set(node.numa)))}
        self.side_of_tile = [side_of.get(tile.numa, 0) for tile in node.tiles]
        self.tile_sides = [mask_of([i for i, tile in enumerate(node.tiles) if tile.numa == side])
                           for side in sorted({tile.numa for tile in node.tiles})]
        self.spare = self.cores
        for own in self.own:
            self.spare &= ~own
        self.last_first = self.own[::-1]
        self._near: dict[int, tuple[int, int]] = {}
        self._unclaimed: dict[int, int] = {}

    def near(self, tiles: int) -> tuple[int, int]:
        """The cores that are these tiles' own, and those of their NUMA sides."""
        known = self._near.get(tiles)
        if known is None:
            own = side = 0
            for tile in bits(tiles):
                own |= self.own[tile]
                side |= self.side_of_tile[tile]
            known = self._near[tiles] = own, side
        return known

    def unclaimed(self, free_tiles: int) -> int:
        """Cores that no free tile will want: those of no tile and those of busy ones."""
        known = self._unclaimed.get(free_tiles)
        if known is None:
            if len(self._unclaimed) >= _REMEMBERED:
                self._unclaimed.clear()
            known = self._unclaimed[free_tiles] = self.cores & ~self.near(free_tiles)[0]
            self._near.pop(free_tiles, None)
        return known

    def cpu_cores(self, free: int, free_tiles: int, count: int) -> int:
        """Cores for a rank without tiles, on one NUMA side where possible; 0: there are too few."""
        cheap = free & self.spare
        if count == 1 and cheap:
            return cheap & -cheap
        unclaimed = self.unclaimed(free_tiles)
        cheap = free & unclaimed
        for side in self.sides:
            if (cheap & side).bit_count() >= count:
                return _gather(cheap & side, count, (self.spare, side))
        order = (self.spare, unclaimed, *self.last_first, self.cores)
        for side in reversed(self.sides):
            if (free & side).bit_count() >= count:
                return _gather(free & side, count, order)
        return _gather(free, count, order)

    def tile_cores(self, free: int, free_tiles: int, tiles: int, count: int) -> int:
        """Cores for a rank with these tiles: their own, their side's, any; 0: there are too few."""
        own, side = self.near(tiles)
        here = free & own
        if here.bit_count() >= count:
            return _lowest(here, count)
        unclaimed = self.unclaimed(free_tiles & ~tiles)
        order = (own, self.spare & side, unclaimed & side, *(group & side for group in self.last_first), side,
                 self.spare, unclaimed, *self.last_first, self.cores)
        return _gather(free, count, order)

    def pick_tiles(self, free: int, free_cores: int, count: int, cores: int) -> int:
        """Whole tiles for one rank; 0: not to be had without tearing it over more GPUs than it needs."""
        if count > self.gpu_size:
            return self._pick_gpus(free, count)
        best, least = 0, self.gpu_size + 1
        for gpu in self.gpus:
            here = free & gpu
            number = here.bit_count()
            if count <= number < least:
                best, least = here, number
                if number == count:
                    break
        if not best:
            return 0
        best = _lowest(best, count)
        if not self._lacking(best, free_cores, cores):
            return best
        return self._pick_near(free, free_cores, count, cores)

    def _lacking(self, tiles: int, free_cores: int, cores: int) -> int:
        """How many of the cores that a rank would like to have beside these tiles are taken."""
        own = self.near(tiles)[0]
        return max(0, min(cores, own.bit_count()) - (own & free_cores).bit_count())

    def _pick_near(self, free: int, free_cores: int, count: int, cores: int) -> int:
        """As pick_tiles, where tasks without tiles have taken cores of the first choice."""
        best, least = 0, (self.cores.bit_count() + 1, 0)
        for gpu in self.gpus:
            here = free & gpu
            number = here.bit_count()
            if number < count:
                continue
            for tiles in ([1 << tile for tile in bits(here)] if count == 1 else [_lowest(here, count)]):
                price = self._lacking(tiles, free_cores, cores), number
                if price < least:
                    best, least = tiles, price
        return best

    def _pick_gpus(self, free: int, count: int) -> int:
        whole, rest = divmod(count, self.gpu_size)
        for allowed in (*self.tile_sides, self.tiles):   # all on one NUMA side, if that can be
            here = free & allowed
            complete = [gpu for gpu in self.gpus if gpu & here == gpu and gpu.bit_count() == self.gpu_size]
            if len(complete) < whole:
                continue
            taken = sum(complete[:whole])
            if not rest:
                return taken
            others = [gpu & here & ~taken for gpu in self.gpus]
            fitting = [gpu for gpu in others if gpu.bit_count() >= rest]
            if fitting:
                return taken | _lowest(min(fitting, key=int.bit_count), rest)
        return 0

    def arrange(self, free_cores: int, free_tiles: int, ranks: int, cores: int, tiles: int) -> Found | None:
        """So many ranks with so many cores and whole tiles each, or None if they do not fit into what is free."""
        if free_cores.bit_count() < ranks * cores or free_tiles.bit_count() < ranks * tiles:
            return None
        shares, all_cores, all_tiles = [], 0, 0
        for _ in range(ranks):
            if tiles:
                mine = self.pick_tiles(free_tiles, free_cores, tiles, cores)
                if not mine:
                    return None
                taken = self.tile_cores(free_cores, free_tiles, mine, cores)
            else:
                mine = 0
                taken = self.cpu_cores(free_cores, free_tiles, cores)
            free_cores &= ~taken
            free_tiles &= ~mine
            all_cores |= taken
            all_tiles |= mine
            shares.append(RankShare(bits(taken), bits(mine)))
        return tuple(shares), all_cores, all_tiles

    def arrange_shared(self, free_cores: int, free_tiles: int, shared: Mapping[int, int], ranks: int, cores: int,
                       share: int) -> Found | None:
        """As arrange, for ranks that take a share of one tile: the fullest shared tile with room, else a new one.

        shared: what is taken of each tile that is shared already; a tile has TILE shares.
        """
        if free_cores.bit_count() < ranks * cores:
            return None
        used = dict(shared)
        shares, all_cores, all_tiles = [], 0, 0
        for _ in range(ranks):
            room = [(-taken, tile) for tile, taken in used.items() if taken + share <= TILE]
            mine = 1 << min(room)[1] if room else self.pick_tiles(free_tiles, free_cores, 1, cores)
            if not mine:
                return None
            tile = mine.bit_length() - 1
            used[tile] = used.get(tile, 0) + share
            taken = self.tile_cores(free_cores, free_tiles, mine, cores)
            free_cores &= ~taken
            free_tiles &= ~mine
            all_cores |= taken
            all_tiles |= mine
            shares.append(RankShare(bits(taken), (tile,)))
        return tuple(shares), all_cores, all_tiles
