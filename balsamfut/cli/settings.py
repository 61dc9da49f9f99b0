"""`balsamfut settings`: every setting, and where its value comes from."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("settings")
@common.site_option
@common.json_option
def command(site: str | None, as_json: bool) -> None:
    """Show every setting of the site, and where its value comes from.

    Without a site: what a new one would have.  With --json: {"settings": [{"key", "value", "source"}]}.
    """
    from balsamfut import settings, sites
    from balsamfut.errors import UsageError

    try:
        directory = common.find_site(site)
    except UsageError:
        if site is not None:
            raise
        directory = sites.find()
    found = settings.load(directory).explain()
    if as_json:
        output.print_json("settings", [{"key": key, "value": value, "source": source} for key, value, source in found])
        return
    output.print_table(("SETTING", "VALUE", "SOURCE"), [
        (key, "" if value is None else value, source) for key, value, source in found], empty="")
