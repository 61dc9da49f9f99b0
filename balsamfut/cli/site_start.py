"""`balsamfut site start`: a site's interchange, running until it is stopped."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("start")
@click.argument("site", metavar="[SITE]", required=False)
@common.json_option
def command(site: str | None, as_json: bool) -> None:
    """Start the interchange of a site, which runs until it is stopped.

    If it runs already, nothing happens.  With --json: {"interchange": {"pid", "host", "new"}}.
    """
    from balsamfut import sites
    from balsamfut.errors import UsageError
    from balsamfut.executor import local

    directory = common.find_site(site)
    if sites.read(directory) is None:
        raise UsageError(f"{directory} belongs to the scripts that work there, whose interchange comes and goes with "
                         "them; `balsamfut site init` makes a site that is kept")
    found, new = local.start_site(directory)
    if as_json:
        output.print_json("interchange", {"pid": found.pid, "host": found.host, "new": new})
        return
    click.echo(f"{'started' if new else 'runs already'}: process {found.pid} on {found.host}")
