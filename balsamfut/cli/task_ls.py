"""`balsamfut task ls`: tasks by state, app, tag and campaign."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import click

from balsamfut.cli import common, output, waiting

if TYPE_CHECKING:
    from balsamfut.query import TaskInfo

COLUMNS = ("ID", "STATE", "APP", "NAME", "CAMPAIGN", "TAGS", "SUBMITTED", "TOOK", "PLACE", "WHY")
FEW: Final = 5
"""Reasons that are told in full below the table."""


@click.command("ls")
@click.option("--state", "states", multiple=True, metavar="STATE", help="In this state; given again: or in that.")
@click.option("--app", metavar="NAME", help="Of this app.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="With this tag; given again: and that.")
@click.option("--campaign", metavar="NAME", help="Of this campaign.")
@click.option("--limit", type=common.Whole(), metavar="N", help="Only the newest N.")
@click.option("--by-state", is_flag=True, help="Only how many are in each state.")
@common.site_option
@common.json_option
def command(states: tuple[str, ...], app: str | None, tags: tuple[str, ...], campaign: str | None, limit: int | None,
            by_state: bool, site: str | None, as_json: bool) -> None:
    """List tasks, oldest first.

    Of those that are READY the interchange is asked what they wait for.

    With --json: {"tasks": [...]}, each with everything that is known of it; with --by-state {"states": {...}}.
    """
    if by_state and limit:
        raise click.UsageError("--limit and --by-state cannot be used together: counts are of all tasks")
    wanted = dict(common.pair("--tag", tag) for tag in tags)
    directory = common.find_site(site)
    with common.open_reader(directory) as reader:
        chosen = {"state": states or None, "app": common.known_app(reader, app), "tags": wanted,
                  "campaign": common.known_campaign(reader, campaign)}
        if by_state:
            counts = reader.count(**chosen)  # type: ignore[arg-type]
        else:
            tasks = waiting.explained(directory, reader.tasks(**chosen, limit=limit))  # type: ignore[arg-type]
    if by_state and as_json:
        output.print_json("states", counts)
    elif by_state:
        output.print_table(("STATE", "TASKS"), counts.items(), empty="no tasks")
    elif as_json:
        output.print_json("tasks", tasks)
    else:
        now = time.time()
        output.print_table(COLUMNS, [row(task, now) for task in tasks], empty="no tasks")
        if sys.stdout.isatty():       # where the column has no room for them
            why = Counter(task.reason for task in tasks if task.state == "READY" and task.reason)
            output.print_notes(f"{number} ready: {reason}" for reason, number in why.most_common(FEW))


def row(task: TaskInfo, now: float) -> tuple[object, ...]:
    """One line of the table."""
    took = (task.ended or now) - task.started if task.started and task.state in ("RUNNING", "DONE", "FAILED") else None
    tags = " ".join(f"{name}={value}" for name, value in task.tags.items())
    return (task.id, task.state, task.app, task.name, task.campaign, tags, output.when(task.submitted),
            output.duration(took), task.place, task.reason or task.error)
