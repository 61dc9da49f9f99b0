"""`balsamfut task result`: the value of a task, or what it raised."""

from __future__ import annotations

import traceback
from typing import Any

import click

from balsamfut.cli import common, output
from balsamfut.errors import UsageError


@click.command("result")
@common.task_argument
@common.site_option
@common.json_option
def command(task: int, site: str | None, as_json: bool) -> int:
    """Print what a task returned, or what it raised.

    The value is unpickled here, so the modules that it needs must be importable.  With --json: {"result": {"task",
    "value", "repr"}}, value null where JSON has nothing like it; or {"result": {"task", "error", "traceback"}}.  The
    exit code is 1 if it raised.
    """
    with common.open_reader(common.find_site(site)) as reader:
        if reader.task(task).state in ("WAITING", "READY", "ASSIGNED", "RUNNING", "HELD"):
            raise UsageError(f"task {task} is not over: it is {reader.task(task).state}")
        try:
            value = reader.result(task)
        except Exception as exc:   # the task's own, or why its value cannot be made here
            text = "".join(traceback.format_exception(exc.with_traceback(None)))
            if as_json:
                error = "".join(traceback.format_exception_only(exc)).strip()
                output.print_json("result", {"task": task, "error": error, "traceback": text})
            else:
                click.echo(text, nl=False, err=True)
            return 1
    if as_json:
        output.print_json("result", {"task": task, "value": plain(value), "repr": repr(value)})
    else:
        click.echo(value if isinstance(value, str) else repr(value))
    return 0


def plain(value: Any) -> Any:
    """The value if JSON has something like it, else None."""
    import msgspec

    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, RecursionError, OverflowError):
        return None
