"""`balsamfut site add`: have a site be known by its name."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("add")
@click.argument("path", metavar="PATH")
@click.option("-n", "--name", default="", help="By which it is found from now on; the one that it has if not given.")
@common.json_option
def command(path: str, name: str, as_json: bool) -> None:
    """Have a site that was moved, copied, or made from another home, be known by its name, or by another.

    With --json: {"site": {"name", "path"}}.
    """
    from pathlib import Path

    from balsamfut import sites

    directory = Path(path).expanduser().absolute()
    added = sites.add(directory, name)
    if as_json:
        output.print_json("site", {"name": added.name, "path": str(directory)})
        return
    click.echo(f"{added.name} is the site in {directory}")
