"""`balsamfut platform show`: what is known of one machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from balsamfut.cli import common, output

if TYPE_CHECKING:
    from balsamfut.platforms import Platform


@click.command("show")
@click.argument("name")
@common.json_option
def command(name: str, as_json: bool) -> None:
    """Tell what is known of a platform.

    Cores and tiles are those of one node.  With --json: {"platform": {...}}.
    """
    from balsamfut import platforms

    found = platforms.load(name)
    if as_json:
        output.print_json("platform", found)
        return
    output.print_pairs(pairs(found))
    if found.node.tiles:
        click.echo("\nTiles of a node (what gpus_per_rank counts):")
        output.print_table(("TILE", "GPU", "NUMA", "CORES", "MASK"), [
            (tile.id, tile.gpu, "" if tile.numa < 0 else tile.numa, platforms.cpu_text(tile.cores),
             tile.masks[found.mode]) for tile in found.node.tiles], empty="")
    queues = found.scheduler.get("queues", [])
    if queues:
        click.echo("\nQueues:")
        output.print_table(("QUEUE", "NODES", "WALLTIME (min)"), [
            (queue.get("name", ""), _range(queue.get("nodes")), _range(queue.get("walltime_min")))
            for queue in queues], empty="")


def pairs(found: Platform) -> Iterator[tuple[str, object]]:
    from balsamfut import platforms

    node, launcher = found.node, found.launcher
    yield "platform", found.name
    yield "verified on", found.verified_on
    yield "nodes", found.max_nodes
    yield "cores", f"{platforms.cpu_text(node.cores)} ({len(node.cores)}, each with {node.smt} hardware threads)"
    yield "memory", f"{node.memory / 1e9:.0f} GB"
    yield "tiles", len(node.tiles)
    yield "tiles by", found.mask_env and f"{found.mask_env} ({found.mode_env}={found.mode})".replace(" (=)", "")
    yield "launcher", f"{launcher.exe} ({launcher.flavour or 'the one found'}), from the first node of the task"
    yield "batch system", found.scheduler.get("kind", "")
    yield "environment", " ".join(f"{name}={value}" for name, value in found.env.items())


def _range(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
