"""What pilots report, and what becomes of a task when an attempt is over.  Part of the brain: pure.

What counts against `retries` is the task's own doing; the loss of a pilot, a node or a launcher is never charged,
except that a task under which several pilots were lost is not given to another.  Reports of attempts that are over are
ignored, but a success is taken from any attempt while the task is open.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Final

import msgspec

from balsamfut.errors import InvalidResources, LaunchFailed, PoisonTask
from balsamfut.interchange import anew, dag, orders, skew
from balsamfut.interchange.book import Book, IllegalMove, Pilot
from balsamfut.interchange.flow import Flow
from balsamfut.interchange.poison import FALLEN, Fallen
from balsamfut.interchange.records import Task
from balsamfut.messages import Declined, Enrol, Enrolled, Exited, Fault, NodeState, Ran, Reports, Started, Stop
from balsamfut.model import AppKind, Payload, Resources, TaskState
from balsamfut.platforms import Platform
from balsamfut.serialize import error_payload

S = TaskState
CHARGED: Final = frozenset({Fault.TASK, Fault.WORKER, Fault.WALLTIME, Fault.MEMORY})
POISON: Final = 5
"""A task that was running when so many pilots or nodes were lost is given to no other."""
LAST: Final = 60.0
"""A pilot that is gone so many seconds before its block's end is gone because of that."""
LAUNCHES: Final = 10
"""A task that could not be started so often fails."""
BACK_OFF: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds until a task that could not be started is tried again."""

Fits = Callable[[Enrol, Resources], int]
"""How many requests of a kind fit into an empty pilot."""


class Attempts:
    """The part of the brain that pilots talk to."""

    def __init__(self, book: Book, flow: Flow, fits: Fits, machine: Platform) -> None:
        self.book = book
        self.flow = flow
        self.fits = fits
        self.machine = machine                        # where blocks may be
        self.later: list[tuple[float, int]] = []      # tasks to be queued again at a time: a heap
        self.faults: dict[int, int] = {}              # task -> how often it could not be started
        self.enrolments: dict[int, Enrol] = {}        # with the nodes that are given work
        self.fallen = Fallen()
        self.cut: list[int] = []                      # tasks that the end of a block has cut off, lately

    # ---- pilots come and go

    def enrol(self, peer: bytes, pilot: Pilot, message: Enrol, now: float) -> None:
        """A pilot is here (again): what it says that it has, and what we believe it has, are brought together."""
        book = self.book
        pilot.peer, pilot.heard, pilot.enrolled = peer, now, True
        pilot.skew = skew.of(message.time, now)
        pilot.ends, pilot.closed, pilot.late = now + message.left if message.left else math.inf, set(), set()
        book.pilot_peers[peer] = pilot
        self.flow.queues.divide([each for each in book.pilots.values() if each.enrolled])
        row = pilot.row
        row.host, row.pid, row.platform = message.host, message.pid, message.platform
        row.nodes = len(message.nodes) - message.lent
        row.started = row.started or now
        book.writes.pilots.append(row)
        pilot.nodes, pilot.cores, pilot.capacity = message.nodes, message.cores, {}
        pilot.out = dict.fromkeys(message.nodes[:message.lent], NodeState.LOST)
        self.enrolments[pilot.id] = msgspec.structs.replace(message, nodes=message.nodes[message.lent:])
        pilot.seq = pilot.acknowledged = 0
        pilot.classes, pilot.apps, pilot.pools = set(), set(), set()
        kept = {number for number, attempt in message.held
                if (task := book.tasks.get(number)) is not None and self.current(pilot, task, attempt)}
        for task in [task for task in pilot.held.values() if task.id not in kept]:
            self.give_back(pilot, task, now)
        book.send_pilot(pilot, Enrolled(0, [held for held in message.held if held[0] not in kept]))
        self.flow.order_again(pilot)
        if pilot.stopping:      # it was told to stop before it could hear
            book.send_pilot(pilot, Stop(pilot.grace))
        for session in book.peers.values():
            orders.announce(book, pilot, session.pool)

    def lost(self, pilot: Pilot, reason: str, now: float) -> None:
        """A pilot is gone: what it had goes to others, uncharged."""
        book = self.book
        if pilot.peer is not None:
            book.pilot_peers.pop(pilot.peer, None)
        book.pilots.pop(pilot.id, None)
        self.flow.queues.divide([each for each in book.pilots.values() if each.enrolled])
        self.enrolments.pop(pilot.id, None)
        pilot.row.ended, pilot.row.reason = now, reason
        book.writes.pilots.append(pilot.row)
        if pilot.held:
            book.event(now, "pilot-lost", f"{reason}; {len(pilot.held)} tasks go back", pilot=pilot.id)
        expected = pilot.stopping or pilot.ends - now < LAST
        for task in list(pilot.held.values())[::-1]:
            if task.state is S.RUNNING and not expected:
                task.losses += 1
            task.fault, task.ended = Fault.BLOCK if expected and pilot.block else Fault.PILOT, now
            task.error = f"pilot {pilot.id} was lost: {reason}"
            self.give_back(pilot, task, now)

    def capacity(self, pilot: Pilot, cls: int) -> int:
        """How many tasks of a class fit into a pilot when it is empty; 0 for those of a kind that it does not take."""
        known = pilot.capacity.get(cls)
        if known is None:
            message = self.enrolments.get(pilot.id)
            resources = self.book.classes[cls].spec.resources
            kind = "serial" if resources.serial else "mpi"
            wanted = pilot.part.mode in ("any", kind) and not (pilot.spent and kind == "mpi")
            known = self.fits(message, resources) if message is not None and wanted else 0
            pilot.capacity[cls] = known
        return known

    # ---- sending work

    def assign(self, pilot: Pilot, task: Task) -> None:
        """Give a task to a pilot: a new attempt, whose number is committed before it is sent."""
        book = self.book
        task.attempt += 1
        task.pilot = pilot.id
        task.place = task.error = ""
        task.started = task.ended = 0.0
        task.fault = 0
        book.move(task, S.ASSIGNED, whole=task.attempt > 1)
        pilot.held[task.id] = task
        pilot.launches.append(task)
        book.loaded.add(pilot.id)

    # ---- reports

    def reports(self, pilot: Pilot, message: Reports, now: float) -> None:
        pilot.heard, pilot.seq = now, max(pilot.seq, message.seq)
        book = self.book
        book.loaded.add(pilot.id)
        tasks = book.tasks
        for report in message.reports:
            task = tasks.get(report.task)
            if task is None:
                pilot.held.pop(report.task, None)
                continue
            try:
                if report.__class__ is Exited:
                    self.exited(pilot, task, report, now)
                elif isinstance(report, Started):
                    self.started(pilot, task, report, now)
                elif isinstance(report, Ran):
                    self.ran(pilot, task, report)
            except IllegalMove as error:
                # One bad report never stops a site: the task is put aside with its story, the report is dropped.
                book.event(now, "bad-report", f"{error}; {type(report).__name__} {report}", task.id, pilot.id)
                self.flow.hold_anyway(task, f"a report of pilot {pilot.id} does not fit: {error}")

    def current(self, pilot: Pilot, task: Task, attempt: int) -> bool:
        return task.attempt == attempt and task.pilot == pilot.id and task.state in (S.ASSIGNED, S.RUNNING)

    def started(self, pilot: Pilot, task: Task, report: Started, now: float) -> None:
        if not self.current(pilot, task, report.attempt) or task.state is S.RUNNING:
            return
        self.book.move(task, S.RUNNING)
        task.started, task.place = skew.right(report.time, pilot.skew, task.submitted, now), report.place
        self.book.tell_running(task, True)
        if self.flow.pending:
            self.flow.started(task.id)

    def ran(self, pilot: Pilot, task: Task, report: Ran) -> None:
        if self.current(pilot, task, report.attempt):
            task.ran = report.returncode
            self.book.touch(task)

    def declined(self, message: Declined) -> None:
        for task in message.started:
            self.flow.started(task)

    def exited(self, pilot: Pilot, task: Task, report: Exited, now: float) -> None:
        """An attempt is over: the task is done, tried again, or failed."""
        current = self.current(pilot, task, report.attempt)
        if current and report.fault is Fault.NONE and task.ran is None and not (
                report.joins or report.detail or task.error or task.detail):
            self.plainly_done(pilot, task, report, now)
        elif report.fault is Fault.NONE and report.attempt <= task.attempt:
            self.succeeded(pilot, task, report, current, now)
        elif current:
            self.record(pilot, task, report, now)
            self.release(pilot, task)
            if task.id in self.flow.pending and report.fault in (Fault.RETURNED, Fault.KILLED):
                self.end(task, report)
                self.book.close(task, S.CANCELLED, now)
                self.flow.over(task, now)
            elif report.fault is Fault.RETURNED:
                self.book.move(task, S.READY)
                self.flow.ready(task, now, first=True)
            else:
                self.failed(task, report, now)

    def plainly_done(self, pilot: Pilot, task: Task, report: Exited, now: float) -> None:
        """What nearly all reports say: `succeeded`, without everything that is unusual."""
        self.release(pilot, task)
        self.clock(pilot, task, report, now)
        task.payload = report.payload
        self.book.classes[task.cls].learn(report.ended - report.started)
        self.book.close(task, S.DONE, now, whole=False)
        if task.dependents or self.flow.pending:
            self.flow.over(task, now)

    def succeeded(self, pilot: Pilot, task: Task, report: Exited, current: bool, now: float) -> None:
        book = self.book
        holder = book.pilots.get(task.pilot) if task.state in (S.ASSIGNED, S.RUNNING) else None
        if not current:
            if task.state is S.WAITING or task.state is S.HELD:
                return
            if holder is not None:      # a newer attempt is under way: it is not needed any more
                holder.kills.append((task.id, task.attempt))
                book.loaded.add(holder.id)
        if holder is not None:
            self.release(holder, task)
        self.record(pilot, task, report, now)
        task.error = ""
        task.payload = report.payload
        task.detail = report.detail
        info = book.classes[task.cls]
        info.learn(report.ended - report.started)
        if report.joins:
            self.join(task, report, now)
            return
        book.close(task, S.DONE, now)
        if task.dependents or self.flow.pending:
            self.flow.over(task, now)

    def join(self, task: Task, report: Exited, now: float) -> None:
        """It returned futures: it is done when they are."""
        upstream = [dep for number in report.joins if (dep := self.book.find(number)) is not None]
        if task.state is S.READY:
            self.book.move(task, S.ASSIGNED)
        task.joins = tuple(report.joins)
        self.book.move(task, S.WAITING)
        if len(upstream) < len(report.joins):
            self.flow.hold_anyway(task, "it returned futures of tasks that are not at hand")
            return
        dag.link(task, upstream)
        if not task.missing:
            self.flow.conclude_join(task, now)
            self.flow.over(task, now)

    def clock(self, pilot: Pilot, task: Task, report: Exited, now: float) -> None:
        """Where and when it was."""
        started, ended = report.started, report.ended
        if pilot.skew or started < task.submitted or ended > now:
            started, ended = (skew.right(time, pilot.skew, task.submitted, now) for time in (started, ended))
        task.started, task.ended, task.place = started, ended, report.place

    def record(self, pilot: Pilot, task: Task, report: Exited, now: float) -> None:
        self.clock(pilot, task, report, now)
        task.fault, task.error = int(report.fault), report.error
        if report.detail is not None:
            task.detail = report.detail

    def end(self, task: Task, report: Exited) -> None:
        task.payload = report.payload
        task.error = report.error or "it was cancelled"

    def failed(self, task: Task, report: Exited, now: float) -> None:
        """An attempt failed that was the newest; the task is not in anybody's hand any more."""
        fault = report.fault
        if fault is Fault.KILLED:
            self.end(task, report)
            self.book.close(task, S.CANCELLED, now)
            self.flow.over(task, now)
            return
        if fault in (Fault.POOL, Fault.LAUNCHER):
            (self.break_pool if fault is Fault.POOL else self.not_started)(task, report, now)
            return
        if report.again is not None and (why := self.change(task, report.again)):
            self.give_up(task, error_payload(InvalidResources(why)), why, now)
            return
        if fault in (Fault.NODE, Fault.PILOT, Fault.BLOCK):
            task.losses += fault is Fault.NODE
            self.cut += [task.id] * (fault is Fault.BLOCK)
            self.again(task, now)
            return
        task.failures += fault in CHARGED
        if fault is Fault.WORKER and self.poisoned(task, now):
            return
        if report.again is not None or task.failures <= self.book.classes[task.cls].spec.options.retries:
            self.again(task, now)
        else:
            self.give_up(task, report.payload, report.error, now)

    def change(self, task: Task, resources: Resources) -> str:
        """Another attempt is to have these resources; why none can."""
        pilot = self.book.pilots[task.pilot]
        return anew.take(self.book, task, resources, pilot, self.enrolments.get(pilot.id), self.fits, self.machine)

    def poisoned(self, task: Task, now: float) -> bool:
        """The worker died under a task: whether that was once too often, on too many nodes."""
        book = self.book
        pilot = book.pilots.get(task.pilot)
        if pilot is not None:
            self.fallen.note(task.id, pilot, task.place)
        nodes = self.fallen.well(task.id, book.pilots)
        if len(nodes) < FALLEN or task.failures > book.classes[task.cls].spec.options.retries:
            return False             # it is tried again, or has failed in the usual way
        text = (f"the worker of task {task.id} died on {len(nodes)} different nodes ({', '.join(nodes)}) that are well "
                f"otherwise; it is not tried again (last: {task.error})")
        book.event(now, "poison", text, task.id, task.pilot)
        self.fallen.forget(task.id)
        self.give_up(task, error_payload(PoisonTask(text)), text, now)
        return True

    def again(self, task: Task, now: float) -> None:
        """Another attempt, if nobody wants the task to end and it is not poison."""
        book = self.book
        if task.id in self.flow.pending:
            book.close(task, S.CANCELLED, now)
            self.flow.over(task, now)
            return
        if task.losses >= POISON:
            text = (f"task {task.id} was running when {task.losses} pilots or nodes were lost; it is not tried again "
                    f"(last: {task.error})")
            self.give_up(task, error_payload(PoisonTask(text)), text, now)
            return
        book.event(now, "retry", task.error or "again", task.id, task.pilot)
        running = task.state is S.RUNNING
        book.file_attempt(task)
        book.move(task, S.READY)
        if running:
            book.tell_running(task, False)
        self.flow.ready(task, now, first=True)

    def not_started(self, task: Task, report: Exited, now: float) -> None:
        """The launcher or the node refused: not the task's fault, tried again after a while, if it is still wanted."""
        if task.id in self.flow.pending:
            self.again(task, now)
            return
        count = self.faults.pop(task.id, 0) + 1
        if count >= LAUNCHES:
            text = f"task {task.id} could not be started in {count} attempts: {report.error}"
            self.give_up(task, error_payload(LaunchFailed(text)), text, now)
            return
        self.faults[task.id] = count
        self.book.event(now, "launch-failed", report.error, task.id, task.pilot)
        self.book.file_attempt(task)
        self.book.move(task, S.READY)
        heapq.heappush(self.later, (now + BACK_OFF[min(count, len(BACK_OFF)) - 1], task.id))

    def give_up(self, task: Task, payload: Payload | None, error: str, now: float) -> None:
        task.payload = payload
        task.error = error
        self.book.close(task, S.FAILED, now)
        self.flow.over(task, now)

    def give_back(self, pilot: Pilot, task: Task, now: float) -> None:
        """A task that a pilot had comes back without a report."""
        self.release(pilot, task)
        if task.state in (S.ASSIGNED, S.RUNNING):
            self.again(task, now)

    def break_pool(self, task: Task, report: Exited, now: float) -> None:
        """A worker's initializer failed: every Python task of this pool fails with it, now and later."""
        book = self.book
        pool = book.classes[task.cls].spec.pool
        book.broken[pool] = (report.payload, report.error)
        self.give_up(task, report.payload, report.error, now)
        for each in self.flow.queues.tasks():
            info = book.classes[each.cls]
            if info.spec.pool == pool and info.app.kind is AppKind.PYTHON and each.state is S.READY:
                self.give_up(each, report.payload, report.error, now)

    def release(self, pilot: Pilot, task: Task) -> None:
        """The pilot does not have the task any more."""
        if pilot.held.pop(task.id, None) is None:
            return
        if task.id in pilot.parents:
            pilot.parents.discard(task.id)
        else:
            pilot.counts[task.cls] -= 1
        session = self.book.sessions.get(task.session)
        if session is not None and session.assigned:
            session.assigned -= 1

    # ---- time

    def due(self, now: float) -> None:
        """Queue again what waited for its time."""
        while self.later and self.later[0][0] <= now:
            task = self.book.tasks.get(heapq.heappop(self.later)[1])
            if task is not None and task.state is S.READY:
                self.flow.ready(task, now)
