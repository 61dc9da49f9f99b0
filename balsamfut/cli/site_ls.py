"""`balsamfut site ls`: the sites that have a name."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("ls")
@common.json_option
def command(as_json: bool) -> None:
    """List the sites that have a name.

    With --json: {"sites": [{"name", "path", "there", "pid", "host"}]}; pid is null where no interchange runs.  Of one
    on another host nothing is known but that it began there; `balsamfut site status` asks it.
    """
    from balsamfut import connection, sites

    rows = []
    for name, place in sorted(sites.known().items()):
        found = connection.read(place)
        running = found if found is not None and found.alive else None
        rows.append((name, place, sites.there(name, place), running))
    if as_json:
        output.print_json("sites", [
            {"name": name, "path": str(place), "there": there, "pid": running and running.pid,
             "host": running and running.host} for name, place, there, running in rows])
        return
    gone = "not there: `balsamfut site rm` forgets it"
    output.print_table(("SITE", "RUNS", "PATH"), [
        (name, f"process {running.pid} on {running.host}" if running else "no" if there else gone, place)
        for name, place, there, running in rows], empty="there are none; `balsamfut site init PATH` makes one")
