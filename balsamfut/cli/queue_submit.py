"""`balsamfut queue submit`: ask the batch system for a block of nodes."""

from __future__ import annotations

from typing import Final

import click

from balsamfut.cli import common, output

ONE: Final = ": a task has one, so none could have both"


@click.command("submit")
@common.site_option
@click.option("-n", "--nodes", type=common.Whole(), required=True, help="Nodes.")
@click.option("-t", "--wall-time-min", "minutes", type=common.Number(), required=True,
              help="Minutes.")
@click.option("-q", "--queue", default="", help="The batch system's queue, or partition.")
@click.option("-A", "--project", default="", help="Who pays.")
@click.option("-j", "--job-mode", type=click.Choice(["any", "mpi", "serial"]), default="any", show_default=True,
              help="Which tasks it takes.")
@click.option("--tag", "tags", metavar="NAME=VALUE", multiple=True,
              help="Take only tasks with this tag; given again: and that.")
@click.option("--partition", "--part", "parts", metavar="MODE:NODES[:NAME=VALUE]...", multiple=True,
              help="Split it: so many nodes for tasks of this mode, with these tags; the parts are all nodes together.")
@click.option("-x", "--extra", metavar="KEY=VALUE", multiple=True, help="More for the job script, such as filesystems.")
@click.option("--dry-run", is_flag=True, help="Check it and print the job script; submit and record nothing.")
@common.json_option
def command(site: str | None, nodes: int, minutes: float, queue: str, project: str, job_mode: str,
            tags: tuple[str, ...], parts: tuple[str, ...], extra: tuple[str, ...], dry_run: bool,
            as_json: bool) -> None:
    """Ask the batch system for a block of nodes, on which a pilot runs tasks until its time is over.

    With --json: {"block": {"id"}}; with --dry-run {"block": {"command", "script"}}, for which no interchange need run.
    """
    from balsamfut.executor import asking
    from balsamfut.messages import SubmitBlock
    from balsamfut.queuemessages import Part

    wanted = SubmitBlock(
        1, nodes, 60.0 * minutes, queue, project, job_mode,
        common.pairs("-x", extra, "KEY=VALUE"), common.pairs("--tag", tags, why=ONE),
        [Part(*split_part(part)) for part in parts], dry_run)
    answer = asking.ask_for_block(common.find_site(site), wanted)
    if dry_run and as_json:
        output.print_json("block", {"command": answer.command, "script": answer.script})
    elif dry_run:
        output.say(f"nothing is submitted; block {answer.block} would be: `{answer.command}` with this on its stdin")
        click.echo(answer.script, nl=False)
    elif as_json:
        output.print_json("block", {"id": answer.block})
    else:
        click.echo(f"block {answer.block} is asked for; `balsamfut queue ls` tells how it stands")


def split_part(text: str) -> tuple[int, str, dict[str, str]]:
    """MODE:NODES:NAME=VALUE... -> nodes, mode, tags.  Raises UsageError."""
    mode, _, rest = text.partition(":")
    nodes, *tags = rest.split(":")
    if not nodes.isdecimal():
        raise click.UsageError(f"--partition takes MODE:NODES[:NAME=VALUE]..., such as mpi:3 or any:1:kind=post, not "
                               f"{text!r}")
    return int(nodes), mode, common.pairs("--partition", tags, why=ONE)
