"""`balsamfut queue ls`: the blocks of a site."""

from __future__ import annotations

import time

import click

from balsamfut.cli import common, output


@click.command("ls")
@common.site_option
@click.option("--history", is_flag=True, help="Those that are over, too.")
@common.json_option
def command(site: str | None, history: bool, as_json: bool) -> None:
    """List the blocks that were asked for, oldest first.

    With --json: {"blocks": [...]}.
    """
    directory = common.find_site(site)
    with common.open_reader(directory) as reader:
        blocks = reader.blocks(history=history)
    if as_json:
        output.print_json("blocks", blocks)
        return
    now = time.time()
    output.print_table(("ID", "STATE", "BATCH ID", "QUEUE", "NODES", "WALLTIME", "MODE", "SUBMITTED", "RAN", "WHY"), [
        (each.id, each.state, each.batch_id, each.queue, each.nodes, output.duration(each.walltime), each.mode,
         output.when(each.submitted),
         output.duration((each.ended or now) - each.started) if each.started else "", each.text)
        for each in blocks], empty="no blocks; `balsamfut queue submit` asks for one")
