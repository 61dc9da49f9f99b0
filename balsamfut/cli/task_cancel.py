"""`balsamfut task cancel`: end tasks, unless they have started."""

from __future__ import annotations

import click

from balsamfut.cli import common


@click.command("cancel")
@click.argument("tasks", metavar="ID...", nargs=-1, required=True, type=common.Whole())
@common.site_option
@common.json_option
def command(tasks: tuple[int, ...], site: str | None, as_json: bool) -> int:
    """Cancel tasks that have not started.

    What runs goes on.  With --json:
    {"cancelled": [{"task", "ended", "state"}]}.  The exit code is 1 if one of them was not ended.
    """
    from balsamfut.cli import ending

    return ending.run(site, tasks, as_json, kill=False)
