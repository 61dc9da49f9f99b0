"""`balsamfut campaign ls`: campaigns, with the number of their tasks in each state."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("ls")
@common.site_option
@common.json_option
def command(site: str | None, as_json: bool) -> None:
    """List campaigns, with the number of their tasks in each state.

    A campaign that no script named has a name made of the time.  With --json: {"campaigns": [...]}.
    """
    with common.open_reader(common.find_site(site)) as reader:
        campaigns = reader.campaigns()
    if as_json:
        output.print_json("campaigns", campaigns)
        return
    output.print_table(("CAMPAIGN", "BEGAN", "TASKS", "STATES"), [
        (each.name, output.when(each.created), sum(each.counts.values()), output.counted(each.counts))
        for each in campaigns], empty="no campaigns yet")
