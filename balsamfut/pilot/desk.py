"""What an agent knows about itself and its site, and what follows for an attempt: paths, environment, the Order.

Opens nothing and decides nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from balsamfut.errors import ShellError
from balsamfut.messages import Fault, Item
from balsamfut.model import AppKind, Extra, Options, Payload, Pool, Resources, default_workdir
from balsamfut.pilot import launch
from balsamfut.pilot.core import Core
from balsamfut.pilot.events import Environ
from balsamfut.pilot.hand import Order, Stage
from balsamfut.pilot.queue import Attempt
from balsamfut.placement import Placement
from balsamfut.platforms import Platform
from balsamfut.raised import error_payload

INLINE: Final = 64 * 1024
"""Bytes: larger payloads are files."""

_PRIVATE: Final = ("BALSAMFUT_MARK", "BALSAMFUT_TASK_ID", "BALSAMFUT_ATTEMPT", "BALSAMFUT_WORKDIR", "BALSAMFUT_CORES")
_NO_EXTRA: Final = Extra()


class Desk:
    """See the module."""

    core: Core

    def __init__(self, *, site: Path, pilot: int, token: str, host: str, platform: Platform, names: list[str],
                 pretend: bool, clients: str = "") -> None:
        self.site = site
        self.data = str(site / "data")
        self.objects = site / "objects"
        self.pilot = pilot
        self.token = token
        self.host = host
        self.platform = platform
        self.names = names
        self.pretend = pretend
        self.clients = clients           # address of the clients' door
        self.inline = INLINE
        self._environs: dict[int, tuple[Pool, dict[str, str]]] = {}

    def environ(self, pool: Pool) -> dict[str, str]:
        """What everything that is started for this pool has in its environment."""
        known = self._environs.get(id(pool))
        if known is None:
            ours = {name: value for name, value in os.environ.items()
                    if name.startswith("BALSAMFUT_") and name not in _PRIVATE}
            theirs = dict(pool.environ) or dict(os.environ)
            known = self._environs[id(pool)] = pool, launch.scrub({**ours, **theirs})
        return known[1]

    def binding(self, resources: Resources, placement: Placement) -> tuple[Environ, tuple[int, ...] | None]:
        """What a Python worker at this placement is started with, and the cores of its tasks."""
        if not resources.serial:
            return (), None
        plan = launch.plan(resources, placement, self.platform, self.names, command=["true"], environ={},
                           pretend=self.pretend)
        env = {name: value for name, value in plan.env.items() if name not in _PRIVATE}
        return tuple(sorted(env.items())), plan.cores

    # ---- paths

    def workdir(self, item: Item) -> str:
        extra = item.spec.extra
        return os.path.join(self.data, (extra.workdir if extra is not None else "") or default_workdir(item.task))

    def streams(self, item: Item, workdir: str) -> tuple[str, str]:
        """Where a command's output goes: stdout, stderr."""
        extra = item.spec.extra or _NO_EXTRA
        stdout = os.path.join(workdir, extra.stdout or "job.out")
        return stdout, os.path.join(workdir, extra.stderr) if extra.stderr else stdout

    # ---- orders

    def order(self, attempt: Attempt, cores: tuple[int, ...] | None) -> Order:
        """What a worker is told about an attempt."""
        item, group = attempt.item, attempt.group
        spec, options = item.spec, group.task_class.options
        if attempt.stage is Stage.CALL and spec.extra is None and not group.app.hooks and not options.cleanup_files:
            return Order(item.task, item.attempt, item.cls, Stage.CALL, spec.args, item.values, None, cores)
        assert attempt.stage is not None
        command = group.app.kind is not AppKind.PYTHON
        # A Python function has a directory of its own only where something is to be in it.
        workdir = self.workdir(item) if command or _needs_workdir(spec.extra, options) else ""
        stdout, stderr = self.streams(item, workdir) if command else ("", "")
        failure = attempt.failure
        if failure is None and attempt.ran:
            failure = self.shell_error(item, group.app.name, attempt.ran, "", "")[0]
        return Order(item.task, item.attempt, item.cls, attempt.stage, spec.args, item.values, spec.extra, cores,
                     workdir, item.failures, attempt.ran, failure, attempt.fault is Fault.WALLTIME, stdout, stderr,
                     item.again or group.task_class.resources)

    def shell_error(self, item: Item, app: str, returncode: int, why: str, command: str) -> tuple[Payload, str]:
        """The exception of a command that ended with this code, and the same in one line."""
        workdir = self.workdir(item)
        _, stderr = self.streams(item, workdir)
        end = tail(stderr)
        how = why or (f"exit code {returncode}" if returncode >= 0 else f"signal {-returncode}")
        lines = [line for line in end.strip().splitlines() if line.strip() not in how]
        text = (f"{app} (task {item.task}) on {self.host}: {how}; its output is in {stderr}"
                + (f", the end of it: {lines[-1].strip()[:200]}" if lines else ""))
        error = ShellError(text, returncode=returncode, host=self.host, workdir=workdir, command=command, stderr=stderr,
                           tail=end)
        return error_payload(error), text


def _needs_workdir(extra: Extra | None, options: Options) -> bool:
    if extra is None:
        return bool(options.cleanup_files)
    return bool(extra.workdir or extra.outputs or extra.stdout or extra.stderr or options.cleanup_files
                or any(name for _, name in extra.inputs))


def tail(path: str, most: int = 2048, start: int = 0) -> str:
    """The end of a file, from `start` on, as text; empty if there is no such file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - most))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
