from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from balsamfut import platforms
from balsamfut.model import TILE, Resources
from balsamfut.placement import Packer, Placement, impossible, masks
from balsamfut.platforms import Node, Tile, cpu_text

AURORA = platforms.load("aurora").node


def packer(nodes: int = 1) -> Packer:
    return Packer(AURORA, [f"n{i}" for i in range(nodes)])


def must(placement: Placement | None) -> Placement:
    assert placement is not None
    return placement


def tile_task(threads: int = 1, **more: int) -> Resources:
    return Resources(gpu_shares=TILE, threads_per_rank=threads, **more)


def labels(placement: Placement, rank: int = 0, node: int = 0) -> list[str]:
    return [AURORA.tiles[tile].id for tile in placement.nodes[node].ranks[rank].tiles]


# ---- tiles


def test_twelve_one_tile_tasks_of_eight_threads_get_each_tile_and_its_own_cores() -> None:
    pack = packer()
    texts = [must(pack.place(tile_task(8))).text for _ in range(12)]
    assert sorted(texts) == sorted(f"0:{cpu_text(tile.cores)}/{tile.id}" for tile in AURORA.tiles)
    assert pack.place(tile_task()) is None


def test_two_tiles_are_both_tiles_of_one_gpu_even_after_a_one_tile_task() -> None:
    pack = packer()
    pack.place(tile_task())
    for _ in range(5):
        mine = must(pack.place(Resources(gpu_shares=2 * TILE)))
        a, b = labels(mine)
        assert a.split(".")[0] == b.split(".")[0]
    assert pack.place(Resources(gpu_shares=2 * TILE)) is None   # only half a GPU is left
    assert pack.place(tile_task()) is not None


def test_one_tile_tasks_fill_half_used_gpus_first() -> None:
    pack = packer()
    six = [must(pack.place(tile_task())) for _ in range(6)]
    pack.free(six[1])
    pack.free(six[2])
    pack.free(six[5])
    assert labels(six[0]) == ["0.0"]
    assert labels(must(pack.place(tile_task()))) == ["0.1"]


def test_twelve_ranks_take_the_tiles_in_order_each_with_its_own_cores() -> None:
    mine = must(packer().place(tile_task(8, ranks_per_node=12)))
    assert [labels(mine, rank) for rank in range(12)] == [[tile.id] for tile in AURORA.tiles]
    assert [rank.cores for rank in mine.nodes[0].ranks] == [tile.cores for tile in AURORA.tiles]


def test_more_tiles_than_a_gpu_has_are_whole_gpus_on_one_side_if_possible() -> None:
    pack = packer()
    pack.place(tile_task())                                    # side 0 has two whole GPUs left
    six = must(pack.place(Resources(gpu_shares=6 * TILE)))
    assert labels(six) == ["3.0", "3.1", "4.0", "4.1", "5.0", "5.1"]
    three = must(pack.place(Resources(gpu_shares=3 * TILE)))
    assert labels(three) == ["0.1", "1.0", "1.1"]              # a whole one, and the half one is good for the rest


def test_shares_of_a_tile_fill_one_before_they_open_another() -> None:
    pack = packer()
    half = Resources(gpu_shares=TILE // 2)
    third = Resources(gpu_shares=3333)
    assert [labels(must(pack.place(half))) for _ in range(3)] == [["0.0"], ["0.0"], ["0.1"]]
    assert labels(must(pack.place(third))) == ["0.1"]
    assert labels(must(pack.place(tile_task()))) == ["1.0"]   # a whole tile is never one that is shared
    assert must(pack.place(Resources(gpu_shares=TILE // 2, ranks_per_node=4))).text.endswith("/1.1,2.0")


def test_a_shared_tile_is_free_only_when_all_shares_are_back() -> None:
    pack = packer()
    halves = [must(pack.place(Resources(gpu_shares=TILE // 2))) for _ in range(24)]
    assert pack.place(tile_task()) is None
    pack.free(halves[0])
    assert pack.place(tile_task()) is None
    pack.free(halves[1])
    assert labels(must(pack.place(tile_task()))) == ["0.0"]


# ---- cores


def test_tasks_without_tiles_take_the_cores_that_tiles_leave_over() -> None:
    pack = packer()
    taken = {must(pack.place(Resources())).nodes[0].ranks[0].cores[0] for _ in range(6)}
    assert taken == {49, 50, 51, 101, 102, 103}
    for _ in range(12):
        mine = must(pack.place(tile_task(8))).nodes[0].ranks[0]
        assert mine.cores == AURORA.tiles[mine.tiles[0]].cores


def test_tasks_without_tiles_take_the_cores_of_the_last_tiles_at_the_end() -> None:
    pack = packer()
    for _ in range(6 + 8):
        pack.place(Resources())
    got = [must(pack.place(tile_task(8))).nodes[0].ranks[0] for _ in range(11)]
    assert all(rank.cores == AURORA.tiles[rank.tiles[0]].cores for rank in got)
    assert 11 not in {tile for rank in got for tile in rank.tiles}


def test_tasks_without_tiles_use_the_idle_cores_beside_busy_tiles() -> None:
    pack = packer()
    pack.place(tile_task(1))
    for _ in range(6):
        pack.place(Resources())
    assert must(pack.place(Resources(threads_per_rank=7))).text == "0:2-8"


def test_a_tile_task_takes_a_tile_whose_cores_are_free() -> None:
    pack = packer()
    hog = must(pack.place(Resources(threads_per_rank=51)))
    assert hog.text == "0:53-103"
    got = [labels(must(pack.place(tile_task(8)))) for _ in range(6)]
    assert got == [[f"{g}.{t}"] for g in range(3) for t in range(2)]


@pytest.mark.parametrize("threads", [4, 20, 51])
def test_a_rank_has_its_cores_on_one_side_as_long_as_a_side_has_enough(threads: int) -> None:
    pack = packer()
    for _ in range(2 * (51 // threads)):
        cores = must(pack.place(Resources(threads_per_rank=threads))).nodes[0].ranks[0].cores
        assert len(cores) == threads
        assert len({core > 52 for core in cores}) == 1
    torn = pack.place(Resources(threads_per_rank=2 * (51 % threads))) if 51 % threads else None
    assert torn is None or {core > 52 for core in torn.nodes[0].ranks[0].cores} == {False, True}


def test_cores_of_a_rank_are_on_the_side_of_its_tile_when_its_own_do_not_suffice() -> None:
    mine = must(packer().place(tile_task(20))).nodes[0].ranks[0]
    assert len(mine.cores) == 20
    assert max(mine.cores) < 52


def test_all_usable_cores_are_one_task_and_none_is_left() -> None:
    pack = packer()
    assert must(pack.place(Resources(threads_per_rank=102))).text == "0:1-51,53-103"
    assert pack.place(Resources()) is None


def test_threads_per_core_divides_the_number_of_cores_rounded_up() -> None:
    assert len(must(packer().place(Resources(threads_per_rank=8, threads_per_core=2))).nodes[0].ranks[0].cores) == 4
    assert len(must(packer().place(Resources(threads_per_rank=5, threads_per_core=2))).nodes[0].ranks[0].cores) == 3


# ---- memory, packing, nodes


def test_memory_is_counted_per_node() -> None:
    pack = packer()
    one = must(pack.place(Resources(memory=600 * 10**9)))
    assert pack.place(Resources(memory=400 * 10**9)) is None
    assert pack.place(Resources()) is not None
    pack.free(one)
    assert pack.place(Resources(memory=400 * 10**9)) is not None


@pytest.mark.parametrize("count", [2, 3, 7, 33, 50])
def test_node_packing_count_lets_exactly_so_many_on_a_node(count: int) -> None:
    pack = packer()
    asked = Resources(node_packing_count=count)
    assert pack.capacity(asked) == count
    for _ in range(count):
        assert pack.place(asked) is not None
    assert pack.place(asked) is None
    assert pack.place(Resources()) is not None   # who says no count takes only what it asked for


def test_packing_counts_of_different_tasks_add_up() -> None:
    pack = packer()
    for count in (2, 3, 6):
        assert pack.place(Resources(node_packing_count=count)) is not None
    assert pack.place(Resources(node_packing_count=32)) is None


def test_a_packing_count_of_one_is_an_empty_node_for_itself() -> None:
    pack = packer(2)
    small = must(pack.place(Resources()))
    alone = must(pack.place(Resources(node_packing_count=1)))
    assert (small.nodes[0].node, alone.nodes[0].node) == (0, 1)
    assert pack.place(Resources(node_packing_count=1)) is None
    assert must(pack.place(Resources())).nodes[0].node == 0
    pack.free(alone)
    assert must(pack.place(Resources(node_packing_count=1))).nodes[0].node == 1


def test_a_wide_task_takes_distinct_nodes_and_all_or_nothing() -> None:
    pack = packer(3)
    everything = tile_task(8, num_nodes=2, ranks_per_node=12)
    wide = must(pack.place(everything))
    assert [share.node for share in wide.nodes] == [0, 1]
    assert pack.place(everything) is None
    assert must(pack.place(tile_task(8, ranks_per_node=12))).nodes[0].node == 2
    pack.free(wide)
    assert pack.place(everything) is not None


def test_a_dropped_node_gets_nothing_until_it_is_restored() -> None:
    pack = packer(2)
    there = must(pack.place(Resources()))
    pack.drop(0)
    assert must(pack.place(Resources())).nodes[0].node == 1
    assert pack.place(Resources(num_nodes=2)) is None
    assert pack.capacity(tile_task()) == 12
    pack.free(there)
    assert must(pack.place(Resources())).nodes[0].node == 1
    pack.restore(0)
    assert must(pack.place(Resources())).nodes[0].node == 0
    assert pack.capacity(tile_task()) == 24


def test_freeing_twice_is_an_error_and_changes_nothing() -> None:
    pack = packer()
    mine = must(pack.place(tile_task()))
    pack.free(mine)
    with pytest.raises(ValueError, match="free already"):
        pack.free(mine)
    assert len([1 for _ in range(20) if pack.place(tile_task())]) == 12


def test_capacity_is_what_fits_on_empty_nodes_whatever_runs() -> None:
    pack = packer(3)
    pack.place(Resources(node_packing_count=1))
    assert pack.capacity(Resources()) == 306
    assert pack.capacity(Resources(gpu_shares=TILE // 4)) == 144
    assert pack.capacity(tile_task(8, ranks_per_node=12, num_nodes=2)) == 1
    assert pack.capacity(Resources(num_nodes=4)) == 0
    assert pack.capacity(Resources(memory=500 * 10**9)) == 3


def test_candidates_are_found_again_after_very_many_frees() -> None:
    pack = packer(2)
    full = tile_task(8, ranks_per_node=12)
    held = [must(pack.place(full)), must(pack.place(full))]
    assert pack.place(full) is None
    for _ in range(3000):   # more than the log keeps
        pack.free(must(pack.place(Resources())))
    pack.free(held[1])
    assert must(pack.place(full)).nodes[0].node == 1


# ---- what is held


def everything(nodes: int = 1) -> Resources:
    return tile_task(8, ranks_per_node=12, num_nodes=nodes)


def test_what_is_held_is_for_those_who_may_and_they_take_it_first() -> None:
    pack = packer(2)
    pack.hold(everything(), [(0, ())])
    assert must(pack.place(tile_task(8))).nodes[0].node == 1
    assert must(pack.place(tile_task(8), True)).nodes[0].node == 0
    assert must(pack.place(Resources())).nodes[0].node == 0         # the cores that belong to no tile are not held
    assert pack.place(everything(2)) is None
    pack.hold(everything(), ())
    assert must(pack.place(tile_task(8))).nodes[0].node == 0


def test_it_is_told_how_many_have_to_leave() -> None:
    pack = packer()
    there = [must(pack.place(tile_task(8))) for _ in range(12)]
    leaving = [(share, *masks(share)) for placement in there for share in placement.nodes]
    assert pack.when(tile_task(8), 0, leaving) == 1
    assert pack.when(Resources(gpu_shares=2 * TILE), 0, leaving) == 2
    assert pack.when(Resources(gpu_shares=2 * TILE), 0, leaving[1:]) == 3   # tiles of different GPUs are no two of one
    assert pack.when(everything(), 0, leaving) == 12
    assert pack.when(Resources(), 0, leaving) == 0
    pack.drop(0)
    assert pack.when(Resources(), 0, leaving) is None


def test_what_runs_may_be_in_the_way_of_what_is_held() -> None:
    pack = packer()
    first, second = must(pack.place(tile_task(8))), must(pack.place(tile_task(8)))
    pack.hold(Resources(gpu_shares=TILE, threads_per_rank=8), [(0, [(first.nodes[0], *masks(first.nodes[0]))])])
    assert pack.in_the_way(first)
    assert not pack.in_the_way(second)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_goes_beside_what_is_held_that_takes_of_it(seed: int) -> None:
    dice = random.Random(seed)
    kinds = [tile_task(8), Resources(), Resources(gpu_shares=TILE // 2), Resources(gpu_shares=2 * TILE),
             Resources(memory=3 * 10**11), Resources(node_packing_count=2), everything(2),
             tile_task(4, ranks_per_node=3)]
    pack = packer(4)
    there: list[Placement] = []
    for _ in range(300):
        kind, into = dice.choice(kinds), dice.random() < 0.3
        room = pack.room(kind)[into]
        placement = pack.place(kind, into)
        if placement is not None:
            assert into or not pack.in_the_way(placement)
            assert room >= kind.num_nodes
            there.append(placement)
        if there and dice.random() < 0.5:
            pack.free(there.pop(dice.randrange(len(there))))
        if dice.random() < 0.1:
            held = dice.choice(kinds)
            where = []
            for node in dice.sample(range(4), 2):
                leaving = [(share, *masks(share)) for one in there for share in one.nodes if share.node == node]
                count = pack.when(held, node, leaving)
                if count is not None:
                    where.append((node, leaving[:count]))
            pack.hold(held, where)
    pack.hold(Resources(), ())
    for placement in there:
        pack.free(placement)
    assert pack.place(everything(4)) is not None


# ---- words


def test_the_text_of_a_placement_is_short_and_groups_equal_nodes() -> None:
    assert must(packer().place(tile_task(8))).text == "0:1-8/0.0"
    assert must(packer(4).place(Resources(num_nodes=4))).text == "0-3:49"
    pack = packer(200)
    for node in range(0, 200, 2):
        for other in range(200):
            if other != node:
                pack.drop(other)
        pack.place(tile_task(node % 7 + 1))
        for other in range(200):
            pack.restore(other)
    assert len(must(pack.place(Resources(num_nodes=200, ranks_per_node=5, threads_per_rank=3))).text) <= 200


@pytest.mark.parametrize(("resources", "sentence"), [
    (tile_task(ranks_per_node=14), "asked 14 tiles on one node (14 ranks x 1), an aurora node has 12"),
    (Resources(gpu_shares=15000), "asked gpus_per_rank=1.5; above 1 it must be a whole number"),
    (Resources(ranks_per_node=25, gpu_shares=5000),
     "asked 12.5 tiles on one node (25 ranks x 0.5), an aurora node has 12"),
    (Resources(ranks_per_node=103), "asked 103 cores on one node (103 ranks x 1), an aurora node has 102"),
    (Resources(threads_per_rank=205, threads_per_core=2),
     "asked 103 cores on one node (1 rank x 103), an aurora node has 102"),
    (Resources(num_nodes=3), "asked 3 nodes, there are 2"),
    (Resources(memory=10**12), "asked 1000 GB of memory on one node, an aurora node has 960 GB"),
    (Resources(threads_per_core=4), "asked threads_per_core=4, an aurora node has 2 threads per core"),
    (Resources(ranks_per_node=0), "asked ranks_per_node=0, it must be at least 1"),
    (Resources(node_packing_count=-1), "asked node_packing_count=-1, it cannot be negative"),
    (Resources(gpu_shares=5 * TILE, ranks_per_node=2), None),
    (Resources(), None),
])
def test_the_impossible_is_told_by_what_was_asked_and_what_there_is(resources: Resources, sentence: str | None) -> None:
    assert impossible(resources, AURORA, 2) == sentence
    assert (packer(2).place(resources) is None) == (sentence is not None)
    assert (packer(2).capacity(resources) == 0) == (sentence is not None)


def test_ranks_that_would_be_torn_over_gpus_are_impossible_though_tiles_suffice() -> None:
    tiles = tuple(Tile(str(i), i // 3, 0, (), {"": str(i)}) for i in range(6))
    odd = Node("odd", tuple(range(16)), (0,) * 16, tiles, 0)
    sentence = impossible(Resources(ranks_per_node=3, gpu_shares=2 * TILE), odd, 1)
    assert sentence is not None
    assert "2 GPUs of 3 tiles" in sentence


def test_a_workstation_speaks_of_this_machine() -> None:
    here = platforms.workstation(2).node
    assert impossible(tile_task(), here, 1) == "asked 1 tile on one node (1 rank x 1), this machine has none"
    assert impossible(Resources(threads_per_rank=3), here, 1) == (
        "asked 3 cores on one node (1 rank x 3), this machine has 2")


# ---- the model


def _small_node() -> Node:
    tiles = tuple(Tile(f"{i // 2}.{i % 2}", i // 2, i // 4, tuple(range(3 * i, 3 * i + 3)), {"": str(i)})
                  for i in range(6))
    cores = tuple(range(22))   # 18-21 belong to no tile
    return Node("small", cores, tuple(int(core >= 12) for core in cores), tiles, 100)


SMALL = _small_node()
requests = st.builds(
    Resources,
    num_nodes=st.sampled_from([1, 1, 1, 1, 2, 3]), ranks_per_node=st.sampled_from([1, 1, 2, 3]),
    threads_per_rank=st.sampled_from([1, 1, 1, 2, 3]), threads_per_core=st.sampled_from([1, 1, 2]),
    gpu_shares=st.sampled_from([0, 0, TILE, TILE, 2 * TILE, TILE // 2, TILE // 4, 3333]),
    memory=st.sampled_from([0] * 7 + [30, 60]), node_packing_count=st.sampled_from([0] * 9 + [1, 2, 3]))


class _Ledger:
    """What is taken on one node, said naively."""

    def __init__(self) -> None:
        self.placed: list[tuple[Placement, Resources]] = []
        self.dropped = False

    def cores(self, index: int) -> list[int]:
        return [core for p, _ in self.placed for share in p.nodes if share.node == index
                for rank in share.ranks for core in rank.cores]

    def tiles(self, index: int) -> list[int]:
        used = [0] * len(SMALL.tiles)
        for p, r in self.placed:
            for share in p.nodes:
                for rank in share.ranks if share.node == index else ():
                    for tile in rank.tiles:
                        used[tile] += min(r.gpu_shares, TILE)
        return used

    def memory(self) -> int:
        return sum(r.memory for _, r in self.placed)

    def packing(self) -> Fraction:
        return sum((Fraction(1, r.node_packing_count) for _, r in self.placed if r.node_packing_count), Fraction(0))

    def fits(self, index: int, r: Resources) -> bool:
        if self.dropped or any(other.node_packing_count == 1 for _, other in self.placed):
            return False
        if r.node_packing_count == 1 and self.placed:
            return False
        if r.node_packing_count and self.packing() + Fraction(1, r.node_packing_count) > 1:
            return False
        if self.memory() + r.memory > SMALL.memory:
            return False
        if len(self.cores(index)) + r.ranks_per_node * r.cores_per_rank > len(SMALL.cores):
            return False
        used = self.tiles(index)
        if not r.gpu_shares:
            return True
        if r.gpu_shares < TILE:
            return sum((TILE - taken) // r.gpu_shares for taken in used) >= r.ranks_per_node
        each = r.gpu_shares // TILE
        free_of_gpu = [sum(used[i] == 0 for i, t in enumerate(SMALL.tiles) if t.gpu == gpu) for gpu in range(3)]
        return sum(free // each for free in free_of_gpu) >= r.ranks_per_node


class Packing(RuleBasedStateMachine):
    NODES = 3

    @initialize(kinds=st.lists(requests, min_size=3, max_size=3))
    def start(self, kinds: list[Resources]) -> None:
        shared, whole, gpu = (Resources(gpu_shares=shares) for shares in (TILE // 2, TILE, 2 * TILE))
        self.kinds = [*kinds, shared, whole, gpu]   # few, so that each comes again and again, as in life
        self.packer = Packer(SMALL, [""] * self.NODES)
        self.ledgers = [_Ledger() for _ in range(self.NODES)]
        self.live: list[tuple[Placement, Resources]] = []

    @rule(kind=st.integers(0, 5), many=st.sampled_from([1, 2, 6]))
    def place(self, kind: int, many: int) -> None:
        for _ in range(many):
            self.place_one(self.kinds[kind])

    def place_one(self, r: Resources) -> None:
        room = sum(ledger.fits(index, r) for index, ledger in enumerate(self.ledgers))
        placement = self.packer.place(r)
        assert (placement is not None) == (room >= r.num_nodes)
        if placement is None:
            return
        assert len({share.node for share in placement.nodes}) == len(placement.nodes) == r.num_nodes
        for share in placement.nodes:
            assert self.ledgers[share.node].fits(share.node, r)
            assert len(share.ranks) == r.ranks_per_node
            for rank in share.ranks:
                assert len(set(rank.cores)) == r.cores_per_rank
                assert len(set(rank.tiles)) == -(-r.gpu_shares // TILE)
                assert len({SMALL.tiles[tile].gpu for tile in rank.tiles}) <= 1
        for share in placement.nodes:
            self.ledgers[share.node].placed.append((placement, r))
        self.live.append((placement, r))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        placement, r = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.packer.free(placement)
        for share in placement.nodes:
            ledger = self.ledgers[share.node].placed
            ledger.pop(next(i for i, (p, _) in enumerate(ledger) if p is placement))

    @rule(node=st.integers(0, NODES - 1), well=st.sampled_from([True, True, False]))
    def drop_or_restore(self, node: int, well: bool) -> None:
        (self.packer.restore if well else self.packer.drop)(node)
        self.ledgers[node].dropped = not well

    @invariant()
    def nothing_is_booked_twice(self) -> None:
        for index, ledger in enumerate(getattr(self, "ledgers", ())):
            cores = ledger.cores(index)
            assert len(cores) == len(set(cores))
            assert set(cores) <= set(SMALL.cores)
            assert max(ledger.tiles(index)) <= TILE
            assert self.packer._tasks[index] == 0 or ledger.placed

    def teardown(self) -> None:
        if not hasattr(self, "packer"):
            return
        for placement, _ in self.live:
            self.packer.free(placement)
        for node in range(self.NODES):
            self.packer.restore(node)
        everything = Resources(num_nodes=self.NODES, ranks_per_node=6, threads_per_rank=3, gpu_shares=TILE, memory=100,
                               node_packing_count=1)
        assert self.packer.place(everything) == Packer(SMALL, [""] * self.NODES).place(everything)


TestPacking = Packing.TestCase
TestPacking.settings = settings(max_examples=60, stateful_step_count=40, deadline=None,
                                suppress_health_check=[HealthCheck.too_slow])


def test_a_place_that_was_given_back_is_taken_again_as_long_as_nobody_has_any_of_it() -> None:
    pack = Packer(platforms.load("aurora").node, ("a", "b"))
    mine = pack.place(Resources(gpu_shares=TILE))
    half = pack.place(Resources(gpu_shares=TILE // 2))
    assert mine is not None and half is not None
    assert not pack.retake(mine) and pack.retake(half) is False
    pack.free(mine)
    assert pack.retake(mine) and not pack.retake(mine)
    pack.free(mine)
    other = pack.place(Resources(gpu_shares=TILE))
    assert other == mine and not pack.retake(mine)
    pack.free(half)
    assert pack.retake(half)
    pack.free(half)
    pack.free(other)
    assert pack.capacity(Resources(gpu_shares=TILE)) == 24
    assert sum(pack.place(Resources(gpu_shares=TILE)) is not None for _ in range(25)) == 24
