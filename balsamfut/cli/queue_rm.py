"""`balsamfut queue rm`: end a block."""

from __future__ import annotations

import click

from balsamfut.cli import common


@click.command("rm")
@common.site_option
@click.argument("blocks", metavar="ID...", type=click.IntRange(min=1), nargs=-1, required=True)
def command(site: str | None, blocks: tuple[int, ...]) -> None:
    """End blocks, or withdraw those that wait; what ran there runs elsewhere."""
    from balsamfut.executor import asking
    from balsamfut.messages import RemoveBlock

    directory = common.find_site(site)
    for number in blocks:
        asking.ask_for_block(directory, RemoveBlock(1, number))
        click.echo(f"block {number} is being ended")
