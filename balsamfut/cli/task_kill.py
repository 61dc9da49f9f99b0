"""`balsamfut task kill`: end tasks, running or not."""

from __future__ import annotations

import click

from balsamfut.cli import common


@click.command("kill")
@click.argument("tasks", metavar="ID...", nargs=-1, required=True, type=common.Whole())
@common.site_option
@common.json_option
def command(tasks: tuple[int, ...], site: str | None, as_json: bool) -> int:
    """End tasks, running or not.

    What runs is stopped with all its processes, and its future raises TaskKilled; what has not started is cancelled.
    With --json: {"killed": [{"task", "ended", "state"}]}.  The exit code is 1 if one of them was not ended.
    """
    from balsamfut.cli import ending

    return ending.run(site, tasks, as_json, kill=True)
