"""`balsamfut site status`: the same as `balsamfut status`, where people look for it."""

from __future__ import annotations

from typing import Any

import click

from balsamfut.cli import common


@click.command("status")
@common.site_argument
@common.site_option
@common.json_option
@click.pass_context
def command(context: click.Context, place: str | None, site: str | None, as_json: bool) -> Any:
    """Whether the site runs, its pilots, and how many tasks are in which state."""
    from balsamfut.cli import status

    return context.invoke(status.command, site=common.one_site(place, site), as_json=as_json)
