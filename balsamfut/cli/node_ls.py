"""`balsamfut node ls`: the nodes of pilots, and why some are given no work."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import click

from balsamfut.cli import common, output

if TYPE_CHECKING:
    from balsamfut.infos import NodeInfo

FEW = 20


@click.command("ls")
@common.site_option
@click.option("--pilot", type=common.Whole(), metavar="N", help="Only this pilot, also if it is over.")
@click.option("--all", "everything", is_flag=True, help="Each node on a line, and the nodes of pilots that are over.")
@common.json_option
def command(site: str | None, pilot: int | None, everything: bool, as_json: bool) -> None:
    """List the nodes of pilots, and why some are given no work.

    Without --all only of pilots that are not over; where many nodes of a pilot are up they are counted.
    With --json: {"nodes": [...]}, each of them.
    """
    with common.open_reader(common.find_site(site)) as reader:
        nodes = reader.nodes(pilot, over=everything)
    if as_json:
        output.print_json("nodes", nodes)
        return
    output.print_table(("PILOT", "NODE", "STATE", "SINCE", "WHY"), [
        row for _, of_one in groupby(nodes, key=lambda node: node.pilot) for row in rows(list(of_one), everything)],
        empty="no pilot has nodes now; --all lists those of pilots that are over")


def rows(nodes: list[NodeInfo], everything: bool) -> list[tuple[object, ...]]:
    """The lines of one pilot's nodes: those that are out, and then those that are up."""
    out = [node for node in nodes if node.state != "up"]
    up = [node for node in nodes if node.state == "up"]
    lines: list[tuple[object, ...]] = [
        (node.pilot, node.name, node.state, output.when(node.since), node.reason)
        for node in out + (up if everything or len(up) <= FEW else [])]
    if up and not everything and len(up) > FEW:
        lines.append((nodes[0].pilot, f"{len(up)} nodes", "up", output.when(min(node.since for node in up)), ""))
    return lines
