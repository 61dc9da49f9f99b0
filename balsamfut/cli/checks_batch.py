"""What `balsamfut doctor` asks a batch system: whether its commands are there and answer, and what its queues are."""

from __future__ import annotations

import select
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Final

from balsamfut.cli.checks import Check, Subject, error, ok, warning
from balsamfut.cli.common import close_names
from balsamfut.platforms.queues import tables
from balsamfut.provider import seen
from balsamfut.provider.commands import Commands, Result

COMMANDS: Final = {"pbs": ("qsub", "qstat", "qdel", "qselect"), "slurm": ("sbatch", "squeue", "scontrol", "scancel")}
NAMES: Final = {"pbs": "PBS", "slurm": "Slurm"}
PATIENCE: Final = 30.0
"""Seconds for an answer."""
FEW: Final = 8


def batch(subject: Subject) -> Iterator[Check]:
    kind = subject.provider
    if kind not in COMMANDS:
        yield ok("batch", "no batch system: blocks run on this machine")
        return
    yield from project(subject)
    yield from elastic(subject, [queue.name for queue in tables(subject.platform)], subject.platform.name)
    system = NAMES[kind]
    missing = [name for name in COMMANDS[kind] if shutil.which(name) is None]
    if missing:
        yield error("batch", f"{', '.join(missing)} of {system} not on PATH: load its module, or run this on a "
                    "login node")
        return
    result = ask(seen.ASK[kind])
    if result.code != 0:
        yield error("batch", f"{system} does not answer ({' '.join(result.argv)}): {_line(result.text)}")
        return
    yield ok("batch", f"{system} answers ({shutil.which(COMMANDS[kind][0])})")
    yield from queues(subject, kind, result.out)


def queues(subject: Subject, kind: str, answer: str) -> Iterator[Check]:
    """The platform's table, held against the batch system's own."""
    system, table, name = NAMES[kind], tables(subject.platform), subject.platform.name
    try:
        there = seen.read(kind, answer)
    except ValueError as problem:
        yield warning("queues", f"what {system} says of its queues cannot be understood: {problem}")
        return
    if not table:
        yield ok("queues", f"{name} has no table of queues, so nothing is checked before it is submitted; {system} "
                 f"has {_few(there)}")
        yield from elastic(subject, list(there), system)
        return
    differences = seen.compare(table, there, system)
    for each in differences:
        fix = "; put it right under [[scheduler.queues]] in the site's platform.toml" if each.wrong else ""
        yield warning("queues", f"{each.queue}: {each.text}{fix}")
    if not differences:
        known = {queue.name for queue in table}
        more = [each.name for each in there.values() if each.name not in known and not each.routed and each.enabled]
        yield ok("queues", f"{_few([queue.name for queue in table])} are as {system} says"
                 + (f"; {system} has others too: {_few(more)}" if more else ""))


def elastic(subject: Subject, known: Sequence[str], whose: str) -> Iterator[Check]:
    """The queues that the elastic queue may use, as the settings name them."""
    for name in subject.settings.elastic.queues.split():
        if known and name not in known:
            yield error("queues", f"[elastic] queues names {name}, and {whose} has no such queue; "
                        f"{close_names(name, known)}")


def project(subject: Subject) -> Iterator[Check]:
    name = subject.settings.elastic.project
    if name:
        yield ok("project", f"{name} pays for the elastic queue's blocks")
    elif not subject.platform.scheduler.get("account_required"):
        return
    elif subject.settings.elastic.enabled:
        yield error("project", f"{subject.platform.name} wants to know who pays, and [elastic] is enabled without a "
                    "project, so no block is asked for: set project under [elastic] in settings.toml")
    else:
        yield ok("project", f"{subject.platform.name} wants to know who pays: `queue submit -A PROJECT`, and for "
                 "the elastic queue project under [elastic] in settings.toml")


def ask(argv: Sequence[str], patience: float = PATIENCE) -> Result:
    """How a command ended, or that it did not in time."""
    commands, found = Commands(), list[Result]()
    try:
        commands.start(argv, time.monotonic(), patience, lambda result, now: found.append(result))
        while not found:
            select.select(commands.fds(), (), (), max(0.0, (commands.due() or 0.0) - time.monotonic()))
            commands.poll(time.monotonic())
        return found[0]
    finally:
        commands.close()


def _few(names: Sequence[str] | dict[str, seen.Seen]) -> str:
    listed = list(names)
    return ", ".join(listed[:FEW]) + (f" and {len(listed) - FEW} more" if len(listed) > FEW else "")


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
