"""Who runs next, and where: fills slots from the queue, keeps short tasks ahead in workers' hands, gives blocked tasks
their slots back.  A part of the pilot's brain: pure; it neither hears messages nor reports anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol

from balsamfut.model import Resources
from balsamfut.pilot.attempts import pooled
from balsamfut.pilot.crew import Crew, Worker
from balsamfut.pilot.events import Effect, Environ, GrantSlot, Hand, Key, Slot, StartCommand, StartWorker
from balsamfut.pilot.hand import Stage
from balsamfut.pilot.launching import Launching
from balsamfut.pilot.queue import LAST, Attempt, Group, Queue, Where, highest
from balsamfut.pilot.reserve import Holds, Reserve, Tenant, unknown
from balsamfut.pilot.slices import Slices
from balsamfut.placement import Placement

PATIENCE: Final = 10.0
"""Seconds after which also a request that is not wide has a reservation, if nothing of its kind was started."""

BRIEF: Final = 1.0
"""Seconds: of what is expected to be shorter, nobody notes when it will end."""

QUICK: Final = 0.002
"""Seconds: commands that are made faster than this are made ahead ..."""

AHEAD: Final = 32
"""... so many of them, and more when half of them are used."""

AWAKE: Final = 4
"""Workers that are started before there is a call for them, if there are cores for so many."""

_REMEMBERED: Final = 4096


class Packs(Holds, Protocol):
    """What is needed of placement.Packer."""

    names: tuple[str, ...]

    def place(self, resources: Resources, into: bool = False) -> Placement | None: ...
    def room(self, resources: Resources) -> tuple[int, int]: ...
    def in_the_way(self, placement: Placement) -> bool: ...
    def free(self, placement: Placement) -> None: ...
    def retake(self, placement: Placement) -> bool: ...
    def capacity(self, resources: Resources) -> int: ...
    def on_one_node(self, resources: Resources) -> int: ...
    def drop(self, node: int) -> None: ...
    def restore(self, node: int) -> None: ...


Binding = Callable[[Resources, Placement], tuple[Environ, tuple[int, ...] | None, int]]
"""What a Python worker at a placement must have been started with, the cores that its task is bound to, its host."""


class Planner:
    """What is free, what waits, and who has what."""

    def __init__(self, packer: Packs, binding: Binding, cores: int) -> None:
        self.queue = Queue(packer.room)
        self.crew = Crew(cores)
        self.hungry: dict[int, Worker] = {}       # workers whose hand went down in this turn
        self.watched: dict[int, Worker] = {}      # workers whose cells are to be looked at
        self.makers: dict[int, Worker] = {}       # workers that made a command in this turn and have nothing to do now
        self.low: dict[int, tuple[Group, int]] = {}    # groups of which few commands are made, and where
        self.fresh: dict[Key, Attempt] = {}       # commands and calls that are not known to run for long yet
        self.slices = Slices(self.queue, self._place_slice, packer.capacity, self.fresh)
        self.returning: list[Worker] = []         # their tasks were blocked and want a slot again
        self.commands: dict[Key, Attempt] = {}
        self.launching = Launching()    # those of them that go through the MPI launcher
        self.out: set[int] = set()           # nodes that are given nothing more
        self.ends = 0.0                      # when the pilot's block ends (Unix time); 0: it does not
        self.reserve = Reserve(packer, len(packer.names))
        self._head: Group | None = None      # whose next attempt has the reservation
        self._tenants: dict[Slot, Tenant] = {}
        self._into = True                    # a slice may be launched where something is held
        self._packer = packer
        self._binding = binding
        self._slots: dict[tuple[Resources, Placement], Slot] = {}
        self._effects: list[Effect] = []
        self._now = 0.0
        self._expected = b""                 # the pool of which there will be calls
        usual = packer.place(Resources())
        self._plain: Environ = ()            # of workers for calls that ask for nothing special, and for hooks
        if usual is not None:
            self._plain = binding(Resources(), usual)[0]
            packer.free(usual)

    def wake(self, pool: bytes) -> None:
        """Calls of this pool are about to come: start a worker, for that takes longer than most calls do; when it is
        ready, another."""
        crew = self.crew
        self._expected = pool
        if len(crew.workers) < min(crew.cores, AWAKE):
            worker = crew.enlist((pool, self._plain, 0))
            self._effects.append(StartWorker(worker.id, pool, self._plain, 0))
            crew.rest(worker)

    def ready(self, worker: Worker) -> None:
        self.crew.ready(worker)
        if worker.kind[0] == self._expected:
            self.wake(self._expected)

    def impossible(self, resources: Resources) -> bool:
        return self._packer.capacity(resources) == 0

    def wide(self, resources: Resources) -> bool:
        """It asks for so much that smaller requests could keep it waiting for ever."""
        count = self._packer.on_one_node(resources)
        return resources.num_nodes > 1 or (count <= 2 and 2 * count <= self._packer.on_one_node(Resources()))

    def lose(self, node: int) -> None:
        """Place nothing on this node any more."""
        self.out.add(node)
        self._packer.drop(node)
        self.reserve.outlook.changed(node)
        self.reserve.again()

    def regain(self, node: int) -> None:
        """Use a node again."""
        self.out.discard(node)
        self._packer.restore(node)
        self.reserve.outlook.changed(node)
        self.reserve.again()
        self.queue.reopen()

    def late(self, now: float) -> list[Attempt]:
        """What is queued and not expected to be over before the block's end: it is not started here, unless that is
        put off (`ends`)."""
        return self.queue.late(self.ends - now if self.ends else math.inf)

    def release(self, slot: Slot) -> None:
        """Nothing is left of what ran there."""
        self._packer.free(slot.placement)
        self.reserve.outlook.leave(self._tenants.pop(slot))
        self.queue.reopen()

    def plan(self, now: float) -> list[Effect]:
        """Give work to what is free."""
        self._now = now
        self._look_at_head()
        if self.launching.passed(now):
            self.queue.reopen()
        if self.hungry:
            self._refill()
        if self.returning:
            self._resume()
        self._fill()
        if self.makers or self.low:
            self._make_ahead()
        if self.slices.all:
            self._effects += self.slices.tend(now)
        effects, self._effects = self._effects, []
        return effects

    def _place(self, resources: Resources, expected: float, into: bool = True) -> Slot | None:
        placement = self._packer.place(resources, into)
        if placement is None:
            return None
        slot = self._slots.get((resources, placement))
        if slot is None:
            if len(self._slots) >= _REMEMBERED:
                self._slots.clear()
            slot = Slot(placement, placement.text, *self._binding(resources, placement))
            self._slots[resources, placement] = slot
        self._tenants[slot] = self.reserve.outlook.enter(placement, self._now, self._until(expected))
        return slot

    def _place_slice(self, resources: Resources) -> Slot | None:
        """A place for a slice, which nobody knows when it will end."""
        return self._place(resources, math.inf, self._into)

    def _until(self, expected: float) -> float:
        return unknown(self._now) if expected == math.inf else self._now + expected

    # ---- hands

    def _refill(self) -> None:
        """Workers whose hands are low: more of the same while that is next in order, else their slots are free."""
        hungry, self.hungry = self.hungry, {}
        for worker in hungry.values():
            if worker.slot is None or worker.victim is not None:
                continue
            group = worker.group
            assert group is not None
            depth = group.depth()
            if len(worker.hand) * 2 > depth:
                continue
            if (group.queue and group.queue[0].stage is not None and not self.returning
                    and self.queue.best(group.shelf) is group and self._may_stay(group, worker.slot)):
                self._hand(worker, group, depth - len(worker.hand))
            elif not worker.hand:
                self.rest(worker)

    def rest(self, worker: Worker) -> None:
        """The worker's hand is empty: its slot, if it has one, is for others."""
        slot, worker.slot = worker.slot, None
        if slot is not None:
            self.release(slot)
        else:
            self.queue.reopen()      # it made commands ahead, and others may have waited for it
        if worker.group is not None:
            worker.group.busy -= 1
        self.watched.pop(worker.id, None)
        self.crew.rest(worker)

    def _hand(self, worker: Worker, group: Group, most: int) -> None:
        """Put up to `most` attempts into a worker's hand; never so many that another slot would have nothing."""
        if most > 1:
            most = min(most, 1 + len(group.queue) // (2 * group.busy))
        taken = self.queue.take(group, most, self.queue.limit(group) if most > 1 else None)
        assert worker.slot is not None
        expected = group.expected
        if expected > BRIEF:
            self.reserve.outlook.stay(self._tenants[worker.slot], self._until(expected))
        self._put(worker, taken, worker.slot.cores)

    def _put(self, worker: Worker, taken: list[Attempt], cores: tuple[int, ...] | None) -> None:
        for attempt in taken:
            attempt.where = Where.HAND
            attempt.worker = worker.id
        worker.hand.extend(taken)
        self.watched[worker.id] = worker
        self._effects.append(Hand(worker.id, taken, cores))

    def _make_ahead(self) -> None:
        """Commands that are made in no time are made before there is a place for them, so that it never waits."""
        makers, self.makers = self.makers, {}
        low, self.low = self.low, {}
        for worker in makers.values():
            group = worker.group
            assert group is not None and not worker.hand
            low.pop(id(group), None)
            if worker.victim is not None or not self._make(worker, group):
                self.rest(worker)
        for group, host in low.values():
            idle = self.crew.idle((group.task_class.pool, self._plain, host))
            if idle is not None:
                idle.group = group
                group.busy += 1
                if not self._make(idle, group):
                    self.rest(idle)

    def _make(self, worker: Worker, group: Group) -> bool:
        """Have a worker make commands of this group, in so far as they are quickly made and few are made."""
        quick = group.makes and group.cost is not None and group.cost < QUICK
        taken = self.queue.take_unmade(group, AHEAD) if quick and self.queue.few_made(group, AHEAD // 2) else []
        if taken:
            self._put(worker, taken, None)
        return bool(taken)

    def _resume(self) -> None:
        """Blocked tasks that can go on have precedence over everything that is queued."""
        waiting: list[Worker] = []
        for worker in self.returning:
            slot = self._seat(worker)
            if slot is None:
                waiting.append(worker)
                continue
            worker.slot = slot
            worker.blocked = False
            self.crew.blocked -= 1
            self._effects.append(GrantSlot(worker.id, worker.hand[0].item.task))
        self.returning = waiting

    def _seat(self, worker: Worker) -> Slot | None:
        """The place that a blocked task had, else one that is as good: its masks and host cannot change any more."""
        expected, old = worker.hand[0].group.expected, worker.seat
        if old is not None and self._packer.retake(old.placement):
            self._tenants[old] = self.reserve.outlook.enter(old.placement, self._now, self._until(expected))
            return old
        slot = self._place(worker.resources, expected)
        if slot is not None and old is not None and (slot.env, slot.host) != (old.env, old.host):
            self.release(slot)
            return None
        return slot

    # ---- slots

    def _fill(self) -> None:
        """Start what is next in order, as long as something fits."""
        queue = self.queue
        self._look_at_head()
        queue.moved, blocked, kept = True, None, None
        while (group := queue.best()) is not None:
            if queue.moved:
                queue.moved, blocked = False, queue.blocked(self._now, PATIENCE)
            if blocked is not None and blocked is not kept and blocked.rank < group.rank:
                self._keep(blocked)      # before anything overtakes it
                kept = blocked
                continue
            shelf = group.shelf
            if self._too_late(group):
                queue.put_aside(group)
                continue
            launched = not group.resources.serial and not pooled(group)
            if self._in_the_making(group) or (launched and not self.launching.may(self._now)):
                queue.shut(shelf, full=True)     # until one is made, which takes less time than a worker takes to start
                continue
            into = self._goes_first(group) or group.level <= queue.short
            if pooled(group):
                self._into = into
                self._effects += self.slices.fill(group, self._now)
                continue
            slot = self._place(group.resources, group.expected, into)
            if slot is None:
                queue.shut(shelf, full=into)
                shelf.since = shelf.since or self._now
                continue
            shelf.since = 0.0
            if group.queue[0].seq == self.reserve.holder:
                self.reserve.drop()
            elif self._goes_first(group):
                self.reserve.again()
            self._start(group, slot)
            self._look_at_head()

    # ---- the reservation

    def _goes_first(self, group: Group) -> bool:
        """Nothing is reserved for what ranks before it."""
        before = self.queue.before
        return before is None or group.rank <= before

    def _look_at_head(self) -> None:
        """What has the reservation may have been started, killed or given back; and time passes."""
        head, queue = self._head, self.queue
        if head is not None and not (head.queue and head.queue[0].seq == self.reserve.holder and not head.aside):
            self._head, queue.before = None, None
            self.reserve.lapse(self._now)
            queue.reopen()               # it is the next one's turn
        queue.short = LAST if self._head is None else highest(self.reserve.limit - self._now)

    def _keep(self, group: Group) -> None:
        """Reserve for the next attempt of this group, which does not fit."""
        limited = self.ends and group.expected < math.inf and not group.task_class.options.checkpoint
        latest = self.ends - group.expected if limited else math.inf
        if self.reserve.keep(group.queue[0].seq, group.resources, self._now, latest):
            kept = bool(self.reserve.holder)
            self._head = group if kept else None
            self.queue.before = group.rank if kept else None
            self.queue.reopen()          # what was held may be so no more
            self._look_at_head()

    def _may_stay(self, group: Group, slot: Slot) -> bool:
        """Another attempt of it may run in its slot."""
        if self._too_late(group) or (self.out and any(share.node in self.out for share in slot.placement.nodes)):
            return False
        return (self._goes_first(group) or group.level <= self.queue.short
                or not self._packer.in_the_way(slot.placement))

    def _too_late(self, group: Group) -> bool:
        """It is not expected to be over before the block's end."""
        return bool(self.ends) and not group.fits(self.ends - self._now)

    def _in_the_making(self, group: Group) -> bool:
        """The next command is to be made, and all workers that could are making others ahead."""
        return (group.queue[0].stage is Stage.PREPARE and group.makes
                and self.crew.full()
                and any(worker.group is group and worker.slot is None and worker.hand and not worker.blocked
                        for worker in self.crew.workers.values()))

    def _start(self, group: Group, slot: Slot) -> None:
        attempt = group.queue[0]
        if attempt.stage is None:
            self.queue.take(group, 1, None)
            self.command(attempt, slot)
            if group.makes and self.queue.few_made(group, AHEAD // 2):
                self.low[id(group)] = group, slot.host
            return
        # Commands are prepared, and hooks run, in a worker that is not tied to a place.
        env = slot.env if group.in_worker else self._plain
        worker, new = self.crew.hire((group.task_class.pool, env, slot.host))
        if new:
            self._effects.append(StartWorker(worker.id, group.task_class.pool, env, slot.host))
        worker.slot, worker.place, worker.group, worker.resources = slot, slot.place, group, group.resources
        group.busy += 1
        self._hand(worker, group, group.depth() if worker.ready and group.in_worker else 1)

    def command(self, attempt: Attempt, slot: Slot) -> None:
        """Start an attempt's command."""
        attempt.where = Where.COMMAND
        attempt.slot = slot
        attempt.place = slot.place
        attempt.started = self._now
        self.commands[attempt.key] = self.fresh[attempt.key] = attempt
        if not attempt.group.resources.serial:
            self.launching.began(attempt.key, self._now, slot.placement.nodes[0].node)
        self._effects.append(StartCommand(attempt))
