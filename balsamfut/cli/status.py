"""`balsamfut status`: whether an interchange runs here, its pilots, and how many tasks are in which state."""

from __future__ import annotations

import time

import click

from balsamfut import connection
from balsamfut.cli import common, output

FEW = 5


@click.command("status")
@common.site_option
@common.json_option
def command(site: str | None, as_json: bool) -> None:
    """Whether an interchange runs here, its pilots, and how many tasks are in which state.

    With --json: {"status": {"site", "interchange" (null: none runs), "pilots", "states", "nodes_out" (those that
    are given no work)}}.
    """
    directory = common.find_site(site)
    found = connection.read(directory)
    running = found if found is not None and found.alive else None
    with common.open_reader(directory) as reader:
        states = reader.count()
        pilots = [pilot for pilot in reader.pilots() if pilot.ended is None] if running else []
        out = [node for node in reader.nodes() if node.state != "up"] if running else []
    if as_json:
        told = running and {"pid": running.pid, "host": running.host, "started": running.started,
                            "epoch": running.epoch}
        output.print_json("status", {"site": str(directory), "interchange": told, "pilots": pilots, "states": states,
                                     "nodes_out": out})
        return
    if running is None:
        said = "none runs here"
    else:
        said = f"process {running.pid} on {running.host}, for {output.duration(time.time() - running.started)}"
    output.print_pairs([("site", directory), ("interchange", said), ("tasks", output.counted(states))])
    if pilots:
        click.echo()
        output.print_table(("PILOT", "HOST", "PID", "PLATFORM", "NODES", "STARTED"), [
            (pilot.id, pilot.host, pilot.pid or "", pilot.platform, pilot.nodes, output.when(pilot.started))
            for pilot in pilots], empty="")
    if out:
        names = ", ".join(node.name for node in out[:FEW]) + (" ..." if len(out) > FEW else "")
        click.echo(f"\nnodes that are given no work: {len(out)} ({names}); balsamfut node ls says why")
