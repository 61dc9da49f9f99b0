"""Programs that record where a rank runs and what it was given, and the checks of what they wrote.

A rank writes one file, LABEL.ATTEMPT.RANK, with a `name value` a line: first what it finds, then, when so many seconds
have passed or a file is there, `end`.  `SH` does so without starting another program, so that hundreds of ranks are
cheap; `MPI` has its ranks tell each other where they are; `record` and `record_mpi` are for Python functions.  Times
are those of one clock, which pretend hosts share.
The checks are pure: they compare records with what was asked and with what the pilot says that it planned, and give
one sentence for each thing that is wrong.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from balsamfut.model import TILE, Resources
from balsamfut.platforms import Platform, cpu_list, cpu_text

MASK, MODE = "ZE_AFFINITY_MASK", "ZE_FLAT_DEVICE_HIERARCHY"
# DIRECTORY LABEL SECONDS|FILE
SH = """\
#!/bin/sh
rank=${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:-0}}}
file=$1/$2.$BALSAMFUT_ATTEMPT.$rank
read -r start _ </proc/uptime
read -r host </proc/sys/kernel/hostname
while read -r key value; do case $key in Cpus_allowed_list:) allowed=$value ;; esac; done </proc/self/status
printf '%s\\n' "rank $rank" "host $host" "start $start" "pid $$" "allowed $allowed" "cores $BALSAMFUT_CORES" \\
    "mask ${ZE_AFFINITY_MASK--}" "mode ${ZE_FLAT_DEVICE_HIERARCHY--}" >"$file"
case $3 in
/*) while [ ! -e "$3" ]; do sleep 0.05; done ;;
*) sleep "$3" ;;
esac
read -r end _ </proc/uptime
echo "end $end" >>"$file"
"""
# The same, by a rank of a real MPI program.
MPI = """\
import sys
import recording
told = recording.record_mpi(*sys.argv[1:])
assert [rank for rank, _ in told] == list(range(len(told))), told
"""


def record(directory: str, label: str, end: float | str, rank: int = 0, attempt: int = 1) -> tuple[int, str]:
    """Record where this Python process runs; its rank and host."""
    host = os.uname().nodename
    file = Path(directory, f"{label}.{attempt}.{rank}")
    allowed = cpu_text(os.sched_getaffinity(0))
    file.write_text("".join(f"{line}\n" for line in (
        f"rank {rank}", f"host {host}", f"start {clock()}", f"pid {os.getpid()}", f"allowed {allowed}",
        f"cores {os.environ.get('BALSAMFUT_CORES', '')}", f"mask {os.environ.get(MASK, '-')}",
        f"mode {os.environ.get(MODE, '-')}")))
    if str(end).startswith("/"):
        while not os.path.exists(str(end)):
            time.sleep(0.05)
    else:
        time.sleep(float(end))
    with file.open("a") as stream:
        stream.write(f"end {clock()}\n")
    return rank, host


def record_mpi(directory: str, label: str, end: float | str) -> list[tuple[int, str]]:
    """The same by all ranks of a Python function; each one's rank and host."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return world.allgather(record(directory, label, end, world.rank, int(os.environ["BALSAMFUT_ATTEMPT"])))


def clock() -> str:
    return Path("/proc/uptime").read_text().split()[0]


@dataclass(frozen=True)
class Record:
    """What one rank has written."""

    label: str
    attempt: int
    rank: int
    host: str
    start: float
    end: float | None              # it was killed
    allowed: tuple[int, ...]       # CPUs
    cores: tuple[int, ...]         # as it was told
    mask: tuple[str, ...] | None   # None: it has none
    mode: str


@dataclass(frozen=True)
class Asked:
    """What a test asked for, and where the pilot says that it placed it."""

    resources: Resources
    place: str                     # "0:1-8/0.0 1:9-16/0.1": nodes, cores, tiles
    told_cores: bool = True        # its ranks are told their cores (a Python worker is not: it is bound, or it is not)


def read(directory: Path) -> list[Record]:
    """All records, also those of ranks that were killed."""
    return [parse(path.name, path.read_text()) for path in sorted(directory.iterdir())]


def parse(name: str, text: str) -> Record:
    label, attempt, rank = name.rsplit(".", 2)
    said: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        said[key] = value
    assert said.get("rank") == rank, f"{name} says {text!r}"
    mask = None if said["mask"] == "-" else tuple(said["mask"].split(","))
    return Record(label, int(attempt), int(rank), said["host"], float(said["start"]),
                  float(said["end"]) if "end" in said else None, cpu_list(said["allowed"]), cpu_list(said["cores"]),
                  mask, said["mode"])


def parse_place(place: str) -> dict[int, tuple[set[int], set[str]]]:
    """`"0-1:1-8/0.0"` -> by node, ascending, the cores and the ids of the tiles; of a text that was cut short, none."""
    found: dict[int, tuple[set[int], set[str]]] = {}
    for part in () if place.endswith("...") else place.split():
        nodes, where = re.fullmatch(r"([0-9,-]+):(.*)", part).groups()  # type: ignore[union-attr]
        cores, _, tiles = where.partition("/")
        for node in cpu_list(nodes):
            found[node] = set(cpu_list(cores)), set(filter(None, tiles.split(",")))
    return dict(sorted(found.items()))


def misplaced(records: Sequence[Record], asked: Mapping[str, Asked], platform: Platform, hosts: Sequence[str],
              *, bound: bool = False) -> list[str]:
    """What is not as asked and planned, task by task.  bound: ranks have to be on their cores, too."""
    wrong = []
    by_task: dict[str, list[Record]] = defaultdict(list)
    for each in records:
        by_task[each.label].append(each)
    for label in sorted(asked.keys() | by_task.keys()):
        if label not in asked:
            wrong.append(f"{label} ran and was not asked for")
            continue
        attempts = {each.attempt for each in by_task[label]}
        if len(attempts) != 1:
            wrong.append(f"{label} ran in {len(attempts)} attempts")
            continue
        ranks = sorted(by_task[label], key=lambda each: each.rank)
        wrong += _misplaced_task(ranks, asked[label], platform, hosts, bound)
    return wrong


def _misplaced_task(ranks: list[Record], asked: Asked, platform: Platform, hosts: Sequence[str],
                    bound: bool) -> list[str]:
    r, label = asked.resources, ranks[0].label
    planned = parse_place(asked.place)
    if [each.rank for each in ranks] != list(range(r.ranks)):
        return [f"{label} has the ranks {[each.rank for each in ranks]} of {r.ranks}"]
    if planned and len(planned) != r.num_nodes:
        return [f"{label} was placed on {len(planned)} nodes and asked for {r.num_nodes}: {asked.place}"]
    wrong = []
    for index, node in enumerate(planned):       # rank 0 is on the first
        mine = ranks[index * r.ranks_per_node:(index + 1) * r.ranks_per_node]
        strays = [each.rank for each in mine if each.host != hosts[node]]
        if strays:
            wrong.append(f"{label}: the ranks {strays} were not on {hosts[node]}")
        cores, tiles = planned[node]
        if asked.told_cores and {cpu for each in mine for cpu in each.cores} != _cpus(platform, cores, r):
            wrong.append(f"{label}: its ranks on node {node} have {[each.cores for each in mine]} of the cores {cores}")
        masks = {name for each in mine for name in each.mask or ()}
        if masks != {_mask(platform, tile, mine[0].mode) for tile in tiles}:
            wrong.append(f"{label}: its ranks on node {node} have the masks {masks} of the tiles {tiles}")
    for each in ranks:
        wrong += [f"{label}, rank {each.rank}: {why}" for why in _misplaced_rank(each, asked, platform, bound)]
    return wrong


def _cpus(platform: Platform, cores: Iterable[int], resources: Resources) -> set[int]:
    return set(platform.node.threads(cores, resources.threads_per_core))


def _mask(platform: Platform, tile: str, mode: str) -> str | None:
    return next((each.masks.get(mode) for each in platform.node.tiles if each.id == tile), None)


def _misplaced_rank(rank: Record, asked: Asked, platform: Platform, bound: bool) -> list[str]:
    r, node = asked.resources, platform.node
    wrong = []
    count = len(_cpus(platform, node.cores[:r.cores_per_rank], r))
    if asked.told_cores and len(rank.cores) != count:
        wrong.append(f"it has {len(rank.cores)} CPUs and asked for {count}")
    if bound and rank.allowed != rank.cores:
        wrong.append(f"it may run on {rank.allowed} and has {rank.cores}")
    if not r.gpu_shares:
        return wrong if rank.mask is None else [*wrong, f"it asked for no tile and has {rank.mask}"]
    tiles = [tile for tile in node.tiles if tile.masks.get(rank.mode) in (rank.mask or ())]
    want = -(-r.gpu_shares // TILE)
    if len(tiles) != want or len(rank.mask or ()) != want:
        return [*wrong, f"it asked for {want} tiles and has {rank.mask} in the mode {rank.mode!r}"]
    per_gpu = max(sum(1 for tile in node.tiles if tile.gpu == gpu) for gpu in {tile.gpu for tile in node.tiles})
    gpus = {tile.gpu for tile in tiles}
    if len(gpus) != -(-want // per_gpu):
        wrong.append(f"its {want} tiles are on the GPUs {sorted(gpus)}")
    sides = {tile.numa for tile in tiles}
    side_of = dict(zip(node.cores, node.numa, strict=True))
    far = [core for core in rank.cores if core in side_of and side_of[core] not in sides]
    return wrong if not far else [*wrong, f"its cores {far} are not on the side of its tiles {rank.mask}"]


def shared(records: Iterable[Record], asked: Mapping[str, Asked]) -> list[str]:
    """Cores and tiles that two ranks had at one time; a tile may be shared by those who asked for a part of one."""
    users: dict[tuple[str, str], list[tuple[float, int, Record]]] = defaultdict(list)
    for each in records:
        end = each.end if each.end is not None else each.start
        share = min(asked[each.label].resources.gpu_shares, TILE)
        for core in each.cores:
            users[each.host, f"core {core}"] += [(each.start, TILE, each), (end, -TILE, each)]
        for tile in each.mask or ():
            users[each.host, f"tile {tile}"] += [(each.start, share, each), (end, -share, each)]
    wrong = []
    for (host, what), changes in users.items():
        taken = 0
        holders: set[str] = set()
        for _, change, each in sorted(changes, key=lambda change: change[:2]):     # who leaves goes first
            taken += change
            (holders.add if change > 0 else holders.discard)(f"{each.label}.{each.rank}")
            if taken > TILE:
                wrong.append(f"{what} of {host} belonged to {' and '.join(sorted(holders))} at {each.start}")
                break
    return wrong
