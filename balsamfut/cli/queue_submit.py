"""`balsamfut queue submit`: ask the batch system for a block of nodes."""

from __future__ import annotations

import click

from balsamfut.cli import common, output


@click.command("submit")
@common.site_option
@click.option("-n", "--nodes", type=click.IntRange(min=1), required=True, help="Nodes.")
@click.option("-t", "--wall-time-min", "minutes", type=click.FloatRange(min=0, min_open=True), required=True,
              help="Minutes.")
@click.option("-q", "--queue", default="", help="The batch system's queue, or partition.")
@click.option("-A", "--project", default="", help="Who pays.")
@click.option("-j", "--job-mode", type=click.Choice(["any", "mpi", "serial"]), default="any", show_default=True,
              help="Which tasks it takes.")
@click.option("-x", "--extra", metavar="KEY=VALUE", multiple=True, help="More for the job script, such as filesystems.")
@common.json_option
def command(site: str | None, nodes: int, minutes: float, queue: str, project: str, job_mode: str,
            extra: tuple[str, ...], as_json: bool) -> None:
    """Ask the batch system for a block of nodes, on which a pilot runs tasks until its time is over.

    With --json: {"block": {"id"}}.
    """
    from balsamfut.errors import UsageError
    from balsamfut.executor import asking
    from balsamfut.messages import SubmitBlock

    wrong = [pair for pair in extra if "=" not in pair]
    if wrong:
        raise UsageError(f"-x takes KEY=VALUE, not {wrong[0]!r}")
    params = dict(pair.split("=", 1) for pair in extra)
    wanted = SubmitBlock(1, nodes, 60.0 * minutes, queue, project, job_mode, params)
    number = asking.ask_for_block(common.find_site(site), wanted)
    if as_json:
        output.print_json("block", {"id": number})
        return
    click.echo(f"block {number} is asked for; `balsamfut queue ls` tells how it stands")
