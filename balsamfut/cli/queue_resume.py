"""`balsamfut queue resume`: the elastic queue."""

from __future__ import annotations

import click

from balsamfut.cli import common


@click.command("resume")
@common.site_option
def command(site: str | None) -> None:
    """Have the elastic queue ask for blocks again."""
    from balsamfut.executor import asking

    answer = asking.order_elastic(common.find_site(site), "resume")
    off = "" if answer.enabled else " (but [elastic] enabled is false in settings.toml)"
    click.echo(f"the elastic queue asks for blocks again{off}")
