"""`balsamfut platform ls`: the machines that there is a description of."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("ls")
@common.json_option
def command(as_json: bool) -> None:
    """List platforms.

    With --json: {"platforms": [...]}.
    """
    from balsamfut import platforms

    found = [platforms.load(name) for name in platforms.names()]
    if as_json:
        output.print_json("platforms", [
            {"name": each.name, "verified_on": each.verified_on, "max_nodes": each.max_nodes,
             "cores": len(each.node.cores), "tiles": len(each.node.tiles), "memory": each.node.memory}
            for each in found])
        return
    output.print_table(("PLATFORM", "NODES", "CORES", "TILES", "MEMORY", "LAUNCHER", "VERIFIED"), [
        (each.name, each.max_nodes, len(each.node.cores), len(each.node.tiles), f"{each.node.memory / 1e9:.0f} GB",
         each.launcher.flavour or each.launcher.exe, each.verified_on) for each in found], empty="")
