"""`balsamfut queue plan`: what the elastic queue would do."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("plan")
@common.site_option
@common.json_option
def command(site: str | None, as_json: bool) -> None:
    """Tell which blocks the elastic queue would ask for or let go now, and why.

    With --json: {"plan": {"enabled", "paused", "lines", "steps", "finish"}}.
    """
    from balsamfut.executor.site import Site

    plan = Site(common.find_site(site)).queue.plan()
    if as_json:
        output.print_json("plan", plan)
        return
    for line in plan.lines:
        click.echo(line)
    if plan.finish is not None:
        click.echo(f"what is ready may be done in {output.duration(plan.finish)}")
