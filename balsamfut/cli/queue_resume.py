"""`balsamfut queue resume`: the elastic queue."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("resume")
@common.site_option
@common.json_option
def command(site: str | None, as_json: bool) -> None:
    """Have the elastic queue ask for blocks again.

    With --json: {"elastic": {"enabled", "paused"}}.
    """
    from balsamfut.executor import asking

    answer = asking.order_elastic(common.find_site(site), "resume")
    if as_json:
        output.print_json("elastic", {"enabled": answer.enabled, "paused": answer.paused})
        return
    off = "" if answer.enabled else " (but [elastic] enabled is false in settings.toml)"
    click.echo(f"the elastic queue asks for blocks again{off}")
