"""`balsamfut site start`: a site's interchange, running until it is stopped."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("start")
@common.site_argument
@common.site_option
@click.option("--take-over", is_flag=True, help="Replace one that runs on another host, or hangs on this one, at once.")
@common.json_option
def command(place: str | None, site: str | None, take_over: bool, as_json: bool) -> None:
    """Start the interchange of a site, which runs until it is stopped.

    If it runs already, here or on another login node, nothing happens.  One on another host that does not answer is
    watched for a while (setting interchange.lease), and replaced unless it gives a sign of life in the database.

    With --json: {"interchange": {"pid", "host", "new"}}.
    """
    from balsamfut import sites
    from balsamfut.errors import UsageError
    from balsamfut.executor import keeping

    directory = common.find_site(common.one_site(place, site))
    kept = sites.read(directory)
    if kept is None:
        raise UsageError(f"{directory} belongs to the scripts that work there, whose interchange comes and goes with "
                         "them; `balsamfut site init` makes a site that is kept")
    if (why := sites.moved(directory, kept)) is not None:
        raise UsageError(why)
    found, new = keeping.start_site(directory, take_over=take_over)
    if as_json:
        output.print_json("interchange", {"pid": found.pid, "host": found.host, "new": new})
        return
    click.echo(f"{'started' if new else 'runs already'}: {found.text}")
