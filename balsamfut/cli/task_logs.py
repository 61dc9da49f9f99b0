"""`balsamfut task logs`: what a task wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from balsamfut import outlog
from balsamfut.cli import common, output, streams
from balsamfut.errors import SiteError

if TYPE_CHECKING:
    from balsamfut.query import TaskInfo


@click.command("logs")
@common.task_argument
@click.option("--stderr", is_flag=True, help="What it wrote to stderr.")
@common.site_option
@common.json_option
def command(task: int, stderr: bool, site: str | None, as_json: bool) -> None:
    """Print what a task wrote to its stdout or stderr.

    What a Python task printed is its part of its worker's log, which is known once it is over.  Where the database
    cannot be read, the small outputs of commands are still found.  With --json: {"log": {"task", "stream", "path",
    "text"}}.
    """
    directory = common.find_site(site)
    which = "stderr" if stderr else "stdout"
    info: TaskInfo | None = None
    try:
        with common.open_reader(directory) as reader:
            info = reader.task(task)
    except SiteError as exc:
        place = logged(directory, task)
        if place is None:
            raise
        output.say(f"{exc}; this is from the output logs of agents")
    else:
        place = streams.find(info, which)
        if place is None and info.started is not None and info.ended is None:    # it is over, which is not known yet
            place = logged(directory, task, info.pilot)
    try:
        data = b"" if place is None else place.read()
    except OSError as exc:
        raise SiteError(f"the {which} of task {task} cannot be read: {exc.strerror}: {exc.filename}") from None
    if as_json:
        output.print_json("log", {"task": task, "stream": which, "path": str(place.path) if place else None,
                                  "text": data.decode(errors="backslashreplace")})
    elif data:
        click.echo(data, nl=False)
    elif info is not None:
        output.say(why_nothing(info, which, place))


def logged(site: Path, task: int, pilot: int = 0) -> streams.Place | None:
    """Where the output of a task is in the output logs of one pilot's agents, or (0) of all."""
    span = outlog.search(site / "log" / f"pilot-{pilot}" if pilot else site / "log", task)
    return None if span is None else streams.Place(Path(span.path), span.start, span.end)


def why_nothing(task: TaskInfo, which: str, place: streams.Place | None) -> str:
    """Why there is nothing to print."""
    if task.attempts == [] or task.started is None:
        return f"task {task.id} has not started: it is {task.state}"
    if place is not None:
        return f"{place.path} is empty" if place.end == 0 else f"task {task.id} wrote nothing to {which}"
    if task.state == "RUNNING":
        return f"task {task.id} is running; what it wrote to {which} is told apart from its worker's once it is over"
    return f"task {task.id} wrote nothing to {which}"
