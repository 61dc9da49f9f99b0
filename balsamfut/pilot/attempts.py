"""Attempts, and the groups in which they wait: who and what is to run, and how long that is expected to take.

A group holds attempts that differ in nothing that matters here (one task class, the same resources, the same stage), so
everything is decided per group.  Pure.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from typing import TYPE_CHECKING, Final

from balsamfut.messages import Detail, Fault, Item
from balsamfut.model import AppKind, AppSpec, Hook, Payload, Resources, TaskClass
from balsamfut.pilot.events import Key, Slot
from balsamfut.pilot.hand import Stage

if TYPE_CHECKING:
    from balsamfut.pilot.queue import Shelf

HORIZON: Final = 0.005
"""Seconds of work that a worker may have in its hand."""

DEEPEST: Final = 160
"""Tasks that a worker may have in its hand."""

MARGIN: Final = 2.0
"""So many times what runs of its kind have been seen to take is expected of one that declares no walltime."""

HOOKS: Final = 1.0
"""Seconds that hooks are expected to take as long as none were seen."""

STEPS: Final = 4
"""Levels for each doubling of the expected time."""

LAST: Final = 1 << 20
"""The level of what is expected to take nobody knows how long."""

Rank = tuple[bool, int, int]


def level(seconds: float) -> int:
    """The level of what is expected to run so long: rounded up."""
    if seconds == math.inf:
        return LAST
    return math.ceil(STEPS * math.log2(max(seconds, 1e-3)))


def highest(seconds: float) -> int:
    """The highest level of which everything is expected to be over in that time."""
    return math.floor(STEPS * math.log2(seconds) + 1e-9) if seconds > 1e-3 else -LAST


class Where(enum.Enum):
    QUEUED = enum.auto()
    HAND = enum.auto()       # a worker has it, read or not
    COMMAND = enum.auto()    # its command runs
    SLICE = enum.auto()      # ranks of a slice have it


class Attempt:
    """One attempt that this pilot was told to make, until its end is reported."""

    __slots__ = ("item", "group", "seq", "stage", "where", "slot", "worker", "started", "announced", "cause",
                 "ran", "failure", "fault", "error", "command", "detail", "place")

    def __init__(self, item: Item, group: Group, seq: int) -> None:
        self.item = item
        self.group = group
        self.seq = seq
        self.stage: Stage | None = None        # what a worker is to do; None: the command is to be run as it stands
        self.where = Where.QUEUED
        self.slot: Slot | None = None          # of a command; Python tasks share their worker's
        self.worker = 0
        self.started = 0.0
        self.announced = False                 # Started is reported
        self.cause = Fault.NONE                # why we are ending it
        self.ran = item.ran                    # the command's code
        self.failure: Payload | None = None    # what it failed with, while hooks are still to be run
        self.fault = Fault.NONE                # ... and whose fault that was
        self.error = ""
        self.command: str | list[str] | None = None    # what PREPARE made
        self.detail: Detail | None = None
        self.place = ""                        # for people, once it has started

    @property
    def key(self) -> Key:
        return self.item.task, self.item.attempt

    @property
    def begun(self) -> bool:
        """Something of it has run, so it cannot be handed back.  That its command is known means nothing yet."""
        made = self.command is not None and bool(self.group.app.hooks & Hook.PREPROCESS)
        return made or self.ran is not None or self.failure is not None or self.where is not Where.QUEUED


class Group:
    """Attempts that are alike."""

    __slots__ = ("cls", "task_class", "app", "resources", "priority", "hooks", "queue", "shelf", "cost", "run",
                 "busy", "level", "aside")

    def __init__(self, cls: int, task_class: TaskClass, app: AppSpec, resources: Resources, hooks: bool) -> None:
        self.cls = cls
        self.task_class = task_class
        self.app = app
        self.resources = resources       # what is placed; for hooks: one core
        self.priority = task_class.options.priority
        self.hooks = hooks               # these attempts need only the hooks after their command: they go first
        self.queue: deque[Attempt] = deque()
        self.shelf: Shelf
        self.cost: float | None = None   # seconds of an attempt, smoothed; None: not known
        self.run: float | None = None    # seconds of a command, smoothed (its `cost` is what making it takes)
        self.busy = 0                    # workers that have some of it
        self.level = LAST                # where it was put on its shelf
        self.aside = False               # it is not to be started: it would not end in time

    @property
    def expected(self) -> float:
        """Seconds that an attempt should take: its walltime, else what was seen, with a margin; else for ever."""
        if self.hooks:
            return HOOKS if self.cost is None else self.cost * MARGIN
        if self.task_class.options.walltime:
            return self.task_class.options.walltime
        seen = self.cost if self.in_worker else self.run
        return math.inf if seen is None else seen * MARGIN

    def fits(self, remaining: float) -> bool:
        """So much time is enough for another attempt: to be over, or to be stopped as it wants.  Hooks have a time of
        their own."""
        options = self.task_class.options
        if self.hooks or remaining <= options.stop_grace:
            return self.hooks
        # What nobody knows may end in time: the place would be empty otherwise.
        length = options.walltime or (self.cost if self.in_worker else self.run) or 0.0
        return options.checkpoint or remaining >= length

    @property
    def rank(self) -> Rank:
        return (not self.hooks, -self.priority, self.queue[0].seq)

    @property
    def in_worker(self) -> bool:
        """A Python function for one rank: attempts that can follow each other in a worker's hand."""
        return self.app.kind is AppKind.PYTHON and self.resources.serial and not self.hooks

    @property
    def makes(self) -> bool:
        """Commands that functions or templates make, without anything of the user's to be done before."""
        return not self.hooks and self.app.kind is not AppKind.PYTHON and not self.app.hooks & Hook.PREPROCESS

    def learn(self, seconds: float) -> None:
        """A longer run is believed at once, shorter ones slowly: work stuck behind a long task is what must not be."""
        # One that stood still for want of a core says little, so a slow one counts for at most four times the usual;
        # what is put into a hand wrongly can be taken out again.
        cost = self.cost
        self.cost = seconds if cost is None else cost + (min(seconds, 4.0 * cost + 1e-6) - cost) * 0.25
        if cost is None and self.queue:
            self.shelf.push(self)        # its level is known now

    def ran(self, seconds: float) -> None:
        """A command of it took so long.  Longer runs are believed at once, shorter ones slowly."""
        run = self.run
        self.run = seconds if run is None or seconds > run else run + (seconds - run) * 0.1
        if run is None and self.queue:
            self.shelf.push(self)

    def depth(self) -> int:
        """How many attempts a worker should have in its hand, the one that runs included."""
        if self.cost is None or self.cost * 2 > HORIZON:
            return 1
        return min(DEEPEST, int(HORIZON / max(self.cost, 1e-6)))


def pooled(group: Group) -> bool:
    """Its attempts run in slices.  What is more than a part of one node is launched for itself."""
    resources = group.resources
    return (resources.pooled and group.app.kind is AppKind.PYTHON and not group.hooks and resources.num_nodes == 1
            and not resources.node_packing_count)


def first_stage(attempt: Attempt) -> Stage | None:
    """What a worker has to do for an attempt before anything else; None: its command can be started as it stands."""
    group, extra = attempt.group, attempt.item.spec.extra
    if group.hooks:
        return Stage.FINISH
    if group.app.kind is AppKind.PYTHON:
        return Stage.CALL if group.resources.serial or pooled(group) else None
    if group.app.kind is AppKind.TEMPLATE and extra is not None and extra.command is not None \
            and not group.app.hooks & Hook.PREPROCESS and not extra.inputs:
        return None
    return Stage.PREPARE


def whole(attempt: Attempt) -> bool:
    """That it ended well although it was told to stop says that it is done: a function has returned its value, a
    command has made the files that it declares.  That alone a code of 0 does not say: many programs end with it when
    they are stopped."""
    extra = attempt.item.spec.extra
    return attempt.group.app.kind is AppKind.PYTHON or bool(extra is not None and extra.outputs)


def needs_finish(attempt: Attempt, ok: bool, timeout: bool) -> bool:
    """A worker has to run hooks, or to clean up, after the command (or after the loss of the function's worker)."""
    hooks, options = attempt.group.app.hooks, attempt.group.task_class.options
    if ok:   # of a function that ran on several ranks, the first has done all that
        return attempt.group.app.kind is not AppKind.PYTHON and bool(hooks & Hook.POSTPROCESS or options.cleanup_files)
    return bool(hooks & Hook.ON_ERROR or (timeout and hooks & Hook.ON_TIMEOUT))
