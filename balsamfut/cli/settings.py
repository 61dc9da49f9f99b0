"""`balsamfut settings`: every setting, and where its value comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from balsamfut.cli import common, output


@click.command("settings")
@common.site_option
@common.json_option
def command(site: str | None, as_json: bool) -> None:
    """Show every setting of the site, and where its value comes from.

    What the site's platform.toml says is shown as platform.SECTION.KEY; `balsamfut platform show` tells the rest.
    Without a site: what a new one would have.  With --json: {"settings": [{"key", "value", "source"}]}.
    """
    from balsamfut import platforms, settings, sites
    from balsamfut.errors import UsageError
    from balsamfut.provider.recipe import Recipe

    try:
        directory = common.find_site(site)
    except UsageError:
        if site is not None:
            raise
        directory = sites.find()
    chosen = settings.load(directory)
    Recipe.of(directory, chosen)      # tells what is wrong with the machine's description, or does not go with it
    found = [*chosen.explain(), *_flat("platform", platforms.overrides(directory), str(directory / platforms.FILE))]
    if as_json:
        output.print_json("settings", [{"key": key, "value": value, "source": source} for key, value, source in found])
        return
    output.print_table(("SETTING", "VALUE", "SOURCE"), [
        (key, "" if value is None else value, source) for key, value, source in found], empty="")


def _flat(prefix: str, table: dict[str, Any], source: str) -> Iterator[tuple[str, Any, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}.{key}", value, source)
        else:
            yield f"{prefix}.{key}", value, source
