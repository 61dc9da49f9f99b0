"""`balsamfut app ls`: apps, with the number of their tasks."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("ls")
@common.site_option
@common.json_option
def command(site: str | None, as_json: bool) -> None:
    """List apps, with the number of their tasks.

    An app whose code changed is listed once for each code.  With --json: {"apps": [...]}.
    """
    with common.open_reader(common.find_site(site)) as reader:
        apps = reader.apps()
    if as_json:
        output.print_json("apps", apps)
        return
    output.print_table(("APP", "KIND", "TASKS", "MODULE", "CODE", "WHAT"), [
        (app.name, app.kind.lower(), app.tasks, app.module, app.digest[:8], app.doc) for app in apps],
        empty="no apps yet")
