"""Asking the interchange that runs here to cancel or kill tasks."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from balsamfut import connection
from balsamfut.cli import common, output
from balsamfut.errors import InterchangeLost, UsageError
from balsamfut.executor import local
from balsamfut.executor.line import Line
from balsamfut.messages import PROTOCOL, Answer, Cancel, Hello, KillTasks, Notice, Refused
from balsamfut.wire import Poller


def end(site: Path, tasks: Sequence[int], *, kill: bool) -> list[bool]:
    """Which of the tasks this ended, in order.

    Raises InterchangeLost where no interchange runs (then nothing can be ended: only the interchange writes), or where
    it goes away before it answers.
    """
    found = connection.read(site)
    if found is None or not found.alive:
        raise InterchangeLost(f"no interchange runs for {site}, so no task of it is running, and none can be ended; "
                              "`balsamfut resume`, or a script, starts one")
    poller = Poller()
    hello = Hello(PROTOCOL, uuid.uuid4().hex, None, os.getpid(), os.uname().nodename, observer=True)
    line = Line(site, hello, local.Wanted(), poller)
    line.connect()
    try:
        line.send((KillTasks if kill else Cancel)(1, list(tasks)))
        while True:
            readable = poller.poll(0.5)
            for message in line.receive():
                if isinstance(message, Answer):
                    return message.results
                if isinstance(message, Notice):
                    output.say(message.text)
                elif isinstance(message, Refused):
                    raise InterchangeLost(message.text)
            if line.ended(readable) or (time.monotonic() >= line.next_beat and not line.beat()):
                raise InterchangeLost(f"the interchange of {site} ended before it answered; `balsamfut task ls` tells "
                                      "what became of the tasks")
    finally:
        line.drop(0.5)


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
