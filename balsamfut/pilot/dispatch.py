"""The leader's writing desk: what the brain has decided about attempts, as orders that can be sent.

Decides nothing and starts nothing.
"""

from __future__ import annotations

import msgspec

from balsamfut.messages import Fault
from balsamfut.model import AppKind, Extra, Options, Resources
from balsamfut.pilot import launch
from balsamfut.pilot.attempts import needs_finish
from balsamfut.pilot.desk import PRIVATE, Desk
from balsamfut.pilot.events import (
    Commanded,
    Effect,
    EndWorker,
    Environ,
    GrantSlot,
    Hand,
    Key,
    SignalCommand,
    StartCommand,
    StartWorker,
    Steal,
    WorkerGone,
)
from balsamfut.pilot.hand import Define, Order, Stage
from balsamfut.pilot.orders import Dismiss, Give, GrantPlace, Hire, Job, Run, Signal, Take
from balsamfut.pilot.queue import Attempt, Group
from balsamfut.pilot.slicenews import EndSlice, GiveCall, HaveMade, SignalCall, StartSlice
from balsamfut.pilot.staff import Order as HostOrder
from balsamfut.placement import Placement

_encode = msgspec.msgpack.Encoder().encode


class Dispatch:
    """See the module."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._told: dict[int, set[int]] = {}     # worker -> classes that were defined to it
        self._hosts: dict[int, int] = {}         # where workers are, if not here
        self._commands: dict[Key, int] = {}      # the same of commands
        self._slices: dict[int, int] = {}        # ... and of slices, which are few

    def binding(self, resources: Resources, placement: Placement) -> tuple[Environ, tuple[int, ...] | None, int]:
        """What a Python worker at this placement is started with, the cores of its tasks, and its host."""
        desk = self._desk
        host = self.hosts(placement)[0]
        if not resources.serial:
            return (), None, host
        plan = launch.plan(resources, placement, desk.platform, desk.names, command=["true"], environ={},
                           pretend=desk.pretend)
        env = {name: value for name, value in plan.env.items() if name not in PRIVATE}
        return tuple(sorted(env.items())), plan.cores, host

    def hosts(self, placement: Placement) -> list[int]:
        """All hosts of a placement; what is placed there is started on the first."""
        return [share.node for share in placement.nodes] if self._desk.apart else [0]

    def order_of(self, effect: Effect) -> tuple[int, HostOrder] | None:
        """Which host is to do what about an effect; None: it is nothing that hosts do."""
        match effect:
            case Hand():
                return self._hosts.get(effect.worker, 0), self.give(effect)
            case StartWorker():
                if effect.host:
                    self._hosts[effect.worker] = effect.host
                return effect.host, Hire(effect.worker, effect.pool, effect.env)
            case Steal():
                return self._hosts.get(effect.worker, 0), Take(effect.worker)
            case GrantSlot():
                return self._hosts.get(effect.worker, 0), GrantPlace(effect.worker, effect.task)
            case EndWorker():
                return self._hosts.get(effect.worker, 0), Dismiss(effect.worker, effect.signal)
            case StartCommand():
                job = self.job(effect.attempt)
                hosts = self.hosts(job.placement)
                if hosts[0]:
                    self._commands[job.key] = hosts[0]
                return hosts[0], Run(job)
            case SignalCommand():
                return self._commands.get(effect.key, 0), Signal(effect.key, effect.signal)
            case StartSlice():
                host = self.hosts(effect.placement)[0]
                if host:
                    self._slices[effect.slice] = host
                return host, effect
            case GiveCall():
                order = self.order(effect.attempt, None)
                return self._slices.get(effect.slice, 0), HaveMade(effect.slice, effect.ranks, order,
                                                                   define(effect.attempt.group))
            case SignalCall() | EndSlice():
                return self._slices.get(effect.slice, 0), effect
        return None

    # ---- workers

    def give(self, effect: Hand) -> Give:
        """A worker's new orders, and the classes that they are the first of."""
        told = self._told.setdefault(effect.worker, set())
        defines: list[Define] = []
        orders: list[tuple[int, int, bytes]] = []
        memory = 0
        for attempt in effect.attempts:
            group = attempt.group
            memory = group.resources.memory
            if group.cls not in told:
                told.add(group.cls)
                defines.append(define(group))
            orders.append((*attempt.key, _encode(self.order(attempt, effect.cores))))
        return Give(effect.worker, defines, orders, memory)

    def forget(self, event: WorkerGone | Commanded) -> None:
        """A worker is dead, or a command over."""
        if isinstance(event, WorkerGone):
            self._told.pop(event.worker, None)
            self._hosts.pop(event.worker, None)
        else:
            self._commands.pop(event.key, None)

    def order(self, attempt: Attempt, cores: tuple[int, ...] | None) -> Order:
        """What a worker is told about an attempt."""
        desk, item, group = self._desk, attempt.item, attempt.group
        spec, options = item.spec, group.task_class.options
        if attempt.stage is Stage.CALL and spec.extra is None and not group.app.hooks and not options.cleanup_files:
            return Order(item.task, item.attempt, item.cls, Stage.CALL, spec.args, item.values, None, cores)
        assert attempt.stage is not None
        command = group.app.kind is not AppKind.PYTHON
        # A Python function has a directory of its own only where something is to be in it.
        workdir = desk.workdir(item.task, spec.extra) if command or _needs_workdir(spec.extra, options) else ""
        stdout, stderr = desk.streams(spec.extra, workdir) if command else ("", "")
        failure = attempt.failure
        if failure is None and attempt.ran:
            failure = desk.shell_error(item.task, spec.extra, group.app.name, attempt.ran, "", "")[0]
        late = attempt.fault in (Fault.WALLTIME, Fault.BLOCK)
        return Order(item.task, item.attempt, item.cls, attempt.stage, spec.args, item.values, spec.extra, cores,
                     workdir, item.failures, attempt.ran, failure, late, stdout, stderr,
                     item.again or group.task_class.resources)

    # ---- commands

    def job(self, attempt: Attempt) -> Job:
        """What is to be started for an attempt that has its place."""
        item, group = attempt.item, attempt.group
        spec = item.spec
        assert attempt.slot is not None
        python = group.app.kind is AppKind.PYTHON
        command = attempt.command if attempt.command is not None or spec.extra is None else spec.extra.command
        return Job(item.task, item.attempt, define(group), group.task_class.pool, group.resources,
                   attempt.slot.placement, None if python else command, spec.extra, spec.args if python else None,
                   item.values if python else [], item.failures,
                   bool(needs_finish(attempt, True, False) or group.app.hooks))


def define(group: Group) -> Define:
    """A task class, for whoever runs its tasks."""
    app, cls = group.app, group.task_class
    return Define(group.cls, app.digest, app.kind, app.name, app.hooks, cls.options)


def _needs_workdir(extra: Extra | None, options: Options) -> bool:
    if extra is None:
        return bool(options.cleanup_files)
    return bool(extra.workdir or extra.outputs or extra.stdout or extra.stderr or options.cleanup_files
                or any(name for _, name in extra.inputs))
