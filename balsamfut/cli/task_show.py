"""`balsamfut task show`: everything that is known of one task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from balsamfut.cli import common, output, streams, waiting

if TYPE_CHECKING:
    from balsamfut.query import EventInfo, TaskInfo

TAIL = 10   # lines


@click.command("show")
@common.task_argument
@common.site_option
@common.json_option
def command(task: int, site: str | None, as_json: bool) -> None:
    """Tell everything that is known of a task.

    Its attempts, places, times, error, the end of its output, what it needs, and what happened to it.  With --json:
    {"task": {...}}, with "events", "stdout_tail" and "stderr_tail".
    """
    directory = common.find_site(site)
    with common.open_reader(directory) as reader:
        (info,), events = waiting.explained(directory, [reader.task(task)]), reader.events(task)
    tails = {f"{which}_tail": streams.tail(info, which, TAIL) for which in ("stdout", "stderr")}
    if as_json:
        import msgspec

        output.print_json("task", msgspec.structs.asdict(info) | {"events": events} | tails)
        return
    output.print_pairs(pairs(info))
    print_attempts(info)
    print_events(events)
    for which in ("stdout",) if streams.together(info) else ("stdout", "stderr"):
        if tails[f"{which}_tail"]:
            click.echo(f"\nThe end of its {which}:")
            click.echo("\n".join(f"  {output.line(text)}" for text in tails[f"{which}_tail"].splitlines()))


def pairs(task: TaskInfo) -> list[tuple[str, object]]:
    """What is known, in the order in which people ask."""
    return [
        ("task", task.id), ("app", task.app), ("name", task.name), ("campaign", task.campaign), ("state", task.state),
        ("reason", task.reason), ("error", task.error), ("began at task", task.root or ""),
        ("exit code", task.returncode), ("command", task.command),
        ("tags", " ".join(f"{name}={value}" for name, value in task.tags.items())),
        ("called by task", task.parent or ""), ("needs tasks", " ".join(map(str, task.needs))),
        ("submitted", output.when(task.submitted)), ("started", output.when(task.started)),
        ("ended", output.when(task.ended)),
        ("took", output.duration(task.ended - task.started) if task.started and task.ended else ""),
        ("pilot", task.pilot or ""), ("place", task.place), ("workdir", task.workdir), ("stdout", task.stdout),
        ("stderr", task.stderr), ("resources", words(task.resources)), ("options", words(task.options)),
        ("failures", task.failures or ""), ("key", task.key and f"{task.key}, call {task.occurrence + 1}"),
        ("session", task.session),
    ]


def words(values: dict[str, Any]) -> str:
    """Those that are not empty."""
    return " ".join(f"{name}={_value(value)}" for name, value in values.items() if value not in (0, "", (), None))


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join("=".join(map(str, one)) if isinstance(one, tuple | list) else str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def print_attempts(task: TaskInfo) -> None:
    """A task that was started once says all of it above."""
    if len(task.attempts) < 2:
        return
    click.echo("\nIts attempts:")
    output.print_table(("ATTEMPT", "PILOT", "PLACE", "STARTED", "TOOK", "FAULT", "CODE", "ERROR"), [
        (each.attempt, each.pilot, each.place, output.when(each.started),
         output.duration(each.ended - each.started) if each.started and each.ended else "", each.fault,
         "" if each.returncode is None else each.returncode, each.error) for each in task.attempts], empty="")


def print_events(events: list[EventInfo]) -> None:
    if events:
        click.echo("\nWhat happened to it:")
        output.print_table(("TIME", "EVENT", "PILOT", "WHAT"), [
            (output.when(event.time), event.kind, event.pilot or "", event.text) for event in events], empty="")
