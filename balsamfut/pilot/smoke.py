"""Whether a node is fit for work when its agent starts: what the platform's description promises, and what is there.

`look` reads some facts from /proc, /sys and /dev (a few milliseconds, no process is started), `judge` compares them
with the description and is pure; `problems` is both.  Look before the agent binds itself to cores.  A node with
problems is dropped by the leader with these sentences as the reason.  What is not known of a node (no such file in a
container, a kind of accelerator that has no device files that we know) is no problem.  This module knows no task and no
message.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from balsamfut.platforms import Platform, cpu_list, cpu_text

ROOM: Final = 256 << 20
"""Bytes that must be free in the directory for temporary files."""
MEMORY_SHARE: Final = 0.8
"""Of the memory that the platform's description promises, so much must be there: DIMMs that were switched off show."""

_RENDER, _NVIDIA = "/dev/dri/renderD*", "/dev/nvidia[0-9]*"
_DEVICES: Final = {
    # mask variable: device files, and whether there is one per tile (else one per GPU)
    "ZE_AFFINITY_MASK": (_RENDER, False),
    "CUDA_VISIBLE_DEVICES": (_NVIDIA, True),
    "ROCR_VISIBLE_DEVICES": (_RENDER, True),
    "HIP_VISIBLE_DEVICES": (_RENDER, True),
}


class Facts(msgspec.Struct, frozen=True):
    """What is there.  Every field's default means that it is not known."""

    temporary: str = "/tmp"                      # the directory for temporary files
    unwritable: str = ""                         # why no file can be made there; "": one can
    room: int | None = None                      # bytes that are free there
    cpus: frozenset[int] | None = None           # that this process may use
    sides: tuple[frozenset[int], ...] = ()       # the CPUs of each NUMA node that has any
    memory: int | None = None                    # bytes in all
    devices: dict[str, int] = {}                 # device files, by pattern


def problems(platform: Platform, pretend: bool) -> list[str]:
    """What is wrong with the node that this runs on, a sentence each; nothing: it is fit for work.

    pretend: several nodes are played by this machine, so only what they all need is looked at.
    """
    return judge(platform, look(), pretend)


def judge(platform: Platform, facts: Facts, pretend: bool) -> list[str]:
    """The decision; see problems."""
    found = _temporary(facts)
    if not pretend:
        found += _cores(platform, facts) + _memory(platform, facts) + _tiles(platform, facts)
    return found


def _temporary(facts: Facts) -> list[str]:
    if facts.unwritable:
        return [f"no file can be made in {facts.temporary}: {facts.unwritable}"]
    if facts.room is not None and facts.room < ROOM:
        return [f"{facts.temporary} has {facts.room >> 20} MiB left, and {ROOM >> 20} MiB are needed"]
    return []


def _cores(platform: Platform, facts: Facts) -> list[str]:
    """A workstation's description was made from the machine, and may have more cores: then nothing is bound."""
    if not platform.bind or facts.cpus is None:
        return []
    node = platform.node
    missing = set(node.cores) - facts.cpus
    if missing:
        here = cpu_text(facts.cpus)
        return [f"cores {cpu_text(missing)} of {node.name} may not be used here: this process has the CPUs {here}"]
    if platform.name == "workstation" or not facts.sides:
        return []
    promised = {side: frozenset(core for core, numa in zip(node.cores, node.numa, strict=True) if numa == side)
                for side in node.numa}
    there = {side & frozenset(node.cores) for side in facts.sides} - {frozenset()}
    if set(promised.values()) == there:
        return []
    wanted = f"{len(promised)} NUMA nodes ({_sides(promised.values())})"
    return [f"the cores of {node.name} are on {wanted}, and here on {len(there)} ({_sides(there)})"]


def _sides(sides: Iterable[frozenset[int]]) -> str:
    return " | ".join(cpu_text(side) for side in sorted(sides, key=min))


def _memory(platform: Platform, facts: Facts) -> list[str]:
    promised = platform.node.memory
    if facts.memory is None or facts.memory >= MEMORY_SHARE * promised:
        return []
    there = f"{facts.memory / 1e9:.0f} GB"
    return [f"this node has {there} of memory, and {platform.node.name} has {promised / 1e9:.0f} GB"]


def _tiles(platform: Platform, facts: Facts) -> list[str]:
    tiles = platform.node.tiles
    if not tiles or platform.mask_env not in _DEVICES:
        return []
    pattern, each = _DEVICES[platform.mask_env]
    there = facts.devices.get(pattern)
    wanted = len(tiles) if each else len({tile.gpu for tile in tiles})
    if there is None or there >= wanted:
        return []
    return [f"this node has {there} accelerators ({pattern}), and {platform.node.name} has {wanted}"]


# ---- looking


def look() -> Facts:
    """The facts of this node.  Never raises."""
    temporary = tempfile.gettempdir()
    unwritable, room = _try(temporary)
    return Facts(temporary, unwritable, room, frozenset(os.sched_getaffinity(0)), _numa(), _total(),
                 {pattern: _count(pattern) for pattern in (_RENDER, _NVIDIA)})


def _try(directory: str) -> tuple[str, int | None]:
    try:
        with tempfile.TemporaryFile(dir=directory) as file:   # leaves nothing, however this ends
            file.write(b"x" * 4096)
            file.flush()
        found = os.statvfs(directory)
    except OSError as error:
        return error.strerror or str(error), None
    return "", found.f_bavail * found.f_frsize


def _numa() -> tuple[frozenset[int], ...]:
    """HBM may be NUMA nodes without CPUs; those are left out."""
    sides = []
    for path in Path("/sys/devices/system/node").glob("node[0-9]*/cpulist"):
        try:
            sides.append(frozenset(cpu_list(path.read_text().strip())))
        except (OSError, ValueError):
            return ()
    return tuple(side for side in sides if side)


def _total() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _count(pattern: str) -> int:
    path = Path(pattern)
    return sum(1 for _ in path.parent.glob(path.name))
