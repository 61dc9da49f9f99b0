"""Asking the interchange that runs here to cancel or kill tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from balsamfut.cli import common, output
from balsamfut.errors import UsageError
from balsamfut.executor import asking
from balsamfut.messages import Answer, Cancel, KillTasks


def end(site: Path, tasks: Sequence[int], *, kill: bool) -> list[bool]:
    """Which of the tasks this ended, in order.

    Raises InterchangeLost where no interchange runs (then nothing can be ended: only the interchange writes), or where
    it goes away before it answers.
    """
    message = (KillTasks if kill else Cancel)(1, list(tasks))
    answer = asking.ask(
        site, message, Answer, notice=output.say,
        nobody=f"no interchange runs for {site}, so no task of it is running, and none can be ended; "
               "`balsamfut resume`, or a script, starts one",
        lost="; `balsamfut task ls` tells what became of the tasks")
    return answer.results


def run(given: str | None, tasks: Sequence[int], as_json: bool, *, kill: bool) -> int:
    """The whole command; returns its exit code."""
    site = common.find_site(given)
    tasks = list(dict.fromkeys(tasks))
    with common.open_reader(site) as reader:
        unknown = sorted(set(tasks) - {task.id for task in reader.tasks(ids=tasks)})
        if unknown:
            raise UsageError(f"there is no task {', '.join(map(str, unknown))} in {site}; nothing was done")
        results = end(site, tasks, kill=kill)
        states = {task.id: task.state for task in reader.tasks(ids=tasks)}
    word = "killed" if kill else "cancelled"
    if as_json:
        output.print_json(word, [{"task": task, "ended": ended, "state": states[task]}
                                 for task, ended in zip(tasks, results, strict=True)])
    else:
        output.print_table(("TASK", "WHAT"), [
            (task, word if ended else f"not {word}: it is {states[task]}")
            for task, ended in zip(tasks, results, strict=True)], empty="")
    return 0 if all(results) else 1
