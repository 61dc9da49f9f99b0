"""What nodes of a kind can never do, whatever is free, and how that is said.  Pure."""

from __future__ import annotations

from balsamfut.model import TILE, Resources
from balsamfut.platforms import Node
from balsamfut.platforms.shape import Shape


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
