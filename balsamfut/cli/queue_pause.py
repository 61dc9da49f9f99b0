"""`balsamfut queue pause`: the elastic queue."""

from __future__ import annotations

import click

from balsamfut.cli import common


@click.command("pause")
@common.site_option
def command(site: str | None) -> None:
    """Have the elastic queue ask for no blocks."""
    from balsamfut.executor import asking

    answer = asking.order_elastic(common.find_site(site), "pause")
    off = "" if answer.enabled else " (but [elastic] enabled is false in settings.toml)"
    click.echo(f"the elastic queue asks for no blocks until `balsamfut queue resume`; those that are there go on{off}")
