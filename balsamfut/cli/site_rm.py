"""`balsamfut site rm`: forget a site's name."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("rm")
@click.argument("name", metavar="NAME")
@common.json_option
def command(name: str, as_json: bool) -> None:
    """Forget a site's name; its directory stays as it is, and `balsamfut site add` names it again.

    With --json: {"site": {"name", "path"}}.
    """
    from balsamfut import sites

    place = sites.forget(name)
    if as_json:
        output.print_json("site", {"name": name, "path": str(place)})
        return
    kept = ", which stays as it is" if place.is_dir() else ", which is not there any more"
    click.echo(f"{name} is forgotten; it was {place}{kept}")
