"""`balsamfut queue rm`: end a block."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("rm")
@common.site_option
@click.argument("blocks", metavar="ID...", type=common.Whole(), nargs=-1, required=True)
@common.json_option
def command(site: str | None, blocks: tuple[int, ...], as_json: bool) -> None:
    """End blocks, or withdraw those that wait; what ran there runs elsewhere.

    With --json: {"blocks": [{"id"}]}, those that are being ended.
    """
    from balsamfut.errors import UsageError
    from balsamfut.executor import asking
    from balsamfut.messages import RemoveBlock

    directory = common.find_site(site)
    with common.open_reader(directory) as reader:
        known = {block.id: block for block in reader.blocks(history=True)}
    unknown = sorted(set(blocks) - known.keys())
    over = sorted(number for number in known.keys() & set(blocks) if known[number].ended)
    if unknown or over:
        wrong = [f"there is no block {', '.join(map(str, unknown))} in {directory}"] if unknown else []
        wrong += [f"block {', '.join(map(str, over))} is over already"] if over else []
        raise UsageError(f"{'; '.join(wrong)}; nothing was done, `balsamfut queue ls` lists those that can be ended")
    for number in (asked := list(dict.fromkeys(blocks))):
        asking.ask_for_block(directory, RemoveBlock(1, number))
        if not as_json:
            click.echo(f"block {number} is being ended")
    if as_json:
        output.print_json("blocks", [{"id": number} for number in asked])
