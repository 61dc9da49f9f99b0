"""`balsamfut queue ls`: the blocks of a site."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from balsamfut.cli import common, output

if TYPE_CHECKING:
    from balsamfut.infos import BlockInfo


@click.command("ls")
@common.site_option
@click.option("--history", is_flag=True, help="Those that are over, too.")
@click.option("-v", "--verbose", is_flag=True, help="Everything that is known of each.")
@common.json_option
def command(site: str | None, history: bool, verbose: bool, as_json: bool) -> None:
    """List the blocks that were asked for, oldest first.

    With --json: {"blocks": [...]}, each with everything that is known of it.
    """
    from balsamfut.platforms.queues import span

    with common.open_reader(common.find_site(site)) as reader:
        blocks = reader.blocks(history=history)
    now = time.time()
    if as_json:
        output.print_json("blocks", blocks)
    elif verbose and blocks:
        for number, each in enumerate(blocks):
            click.echo("\n" * bool(number), nl=False)
            output.print_pairs(details(each, now))
    else:
        output.print_table(("ID", "STATE", "BATCH ID", "QUEUE", "NODES", "TIME", "RAN", "TAKES", "WHY"), [
            (each.id, each.state, each.batch_id.partition(".")[0], each.queue, each.nodes,
             span(each.walltime), ran(each, now), takes(each),
             "; ".join(filter(None, (each.text, each.note)))) for each in blocks],
            empty="no blocks; `balsamfut queue submit` asks for one")


def ran(block: BlockInfo, now: float) -> str:
    return output.duration((block.ended or now) - block.started) if block.started else ""


def takes(block: BlockInfo) -> str:
    """Which tasks, in a word or two; nothing: any."""
    if block.parts:
        return " + ".join(f"{part.mode}:{part.nodes}" for part in block.parts)
    tags = [f"{name}={value}" for name, value in block.tags.items()]
    return " ".join([*([block.mode] if block.mode != "any" else []), *tags])


def details(block: BlockInfo, now: float) -> Iterator[tuple[str, object]]:
    from balsamfut.platforms.queues import span
    from balsamfut.queuemessages import Part

    yield "block", block.id
    yield "state", block.state
    yield "why", block.text
    yield "pilot", block.note
    yield "batch id", f"{block.provider}: {block.batch_id}" if block.batch_id else block.provider
    yield "job name", block.token
    yield "queue", block.queue
    yield "project", block.project
    yield "nodes", block.nodes
    yield "walltime", span(block.walltime)
    yield "takes", "" if block.parts else Part(block.nodes, block.mode, block.tags).describe()
    for part in block.parts:
        yield "part", f"{part.nodes} node{'' if part.nodes == 1 else 's'}: {part.describe()}"
    yield "extra", " ".join(f"{name}={value}" for name, value in block.params.items())
    yield "asked for because", block.why
    yield "submitted", output.when(block.submitted)
    yield "started", output.when(block.started) if block.started else ""
    yield "ended", output.when(block.ended) if block.ended else ""
    yield "ran", ran(block, now)
    yield "exit code", block.exit_code
    yield "job script", block.script
    for log in block.logs:
        yield "log", log
