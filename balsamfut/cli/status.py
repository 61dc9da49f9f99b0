"""`balsamfut status`: whether an interchange runs here, its pilots, and how many tasks are in which state."""

from __future__ import annotations

from pathlib import Path

import click

from balsamfut import connection
from balsamfut.cli import common, output, waiting
from balsamfut.connection import Connection

FEW = 5


@click.command("status")
@common.site_option
@common.json_option
def command(site: str | None, as_json: bool) -> None:
    """Whether an interchange runs here, its pilots, and how many tasks are in which state.

    An interchange on another host is asked whether it lives.  With --json: {"status": {"site", "interchange" (null:
    none runs; else "pid", "host", "started", "epoch", "answers"), "pilots", "states", "nodes_out" (those that are given
    no work), "waits" (why tasks that are ready wait: "app", "why", "count")}}.
    """
    from balsamfut.executor import keeping

    directory = common.find_site(site)
    found = connection.read(directory)
    running = found if found is not None and found.alive else None
    answers = running is not None and keeping.lives(directory, running) and not connection.stopped(running)
    with common.open_reader(directory) as reader:
        states = reader.count()
        pilots = [pilot for pilot in reader.pilots() if pilot.ended is None] if running else []
        out = [node for node in reader.nodes() if node.state != "up"] if running else []
    waits = waiting.of_site(directory, states.get("READY", 0)) if answers or running is None else []
    if as_json:
        told = running and {"pid": running.pid, "host": running.host, "started": running.started,
                            "epoch": running.epoch, "answers": answers}
        output.print_json("status", {"site": str(directory), "interchange": told, "pilots": pilots, "states": states,
                                     "nodes_out": out, "waits": waits})
        return
    if running is None:
        said = "none runs here"
    else:
        said = running.text if answers else f"{running.text}, {_silent(directory, running)}"
    output.print_pairs([("site", directory), ("interchange", said), ("tasks", output.counted(states))])
    if pilots:
        click.echo()
        output.print_table(("PILOT", "HOST", "PID", "PLATFORM", "NODES", "STARTED"), [
            (pilot.id, pilot.host, pilot.pid or "", pilot.platform, pilot.nodes, output.when(pilot.started))
            for pilot in pilots], empty="")
    if out:
        names = ", ".join(node.name for node in out[:FEW]) + (" ..." if len(out) > FEW else "")
        click.echo(f"\nnodes that are given no work: {len(out)} ({names}); balsamfut node ls says why")
    output.print_notes(waiting.lines(waits))


def _silent(site: Path, found: Connection) -> str:
    """Of one that does not answer: what else is known, and what to do."""
    from balsamfut import settings

    if found.here:
        return "is stopped by a signal: kill -CONT it, or `balsamfut site start --take-over`"
    with common.open_reader(site) as reader:
        owner = reader.owner()
    beat = f"gave its last sign of life at {output.when(owner.beat)} by its own clock, and " if owner.pid else ""
    return (f"{beat}does not answer: `balsamfut site start` here takes its place unless it gives a sign of life within "
            f"{settings.load(site).interchange.lease:g} s")
