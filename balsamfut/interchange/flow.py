"""The course of a task through the graph: ready, over, failed upstream, held, tried again.  Part of the brain: pure.

What happens to one task here happens to those that need it, without recursion: chains may be long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from balsamfut.errors import JoinError
from balsamfut.interchange import dag
from balsamfut.interchange.book import Book, Pilot, Session
from balsamfut.interchange.matcher import ReadyQueues
from balsamfut.interchange.records import Task
from balsamfut.messages import Answer, Return
from balsamfut.model import CLOSED, AppKind, Joined, Payload, TaskState
from balsamfut.serialize import BARE_SLOT, error_payload

S = TaskState
DEEPEST = 200
"""Values of returned futures within each other: packing what is deeper would exhaust the stack."""
NO_SCRIPT = "waits for a future of a script that is gone"


@dataclass(slots=True)
class Pending:
    """A Cancel or a KillTasks that is not answered yet."""

    session: Session
    request: int
    results: list[bool]
    left: int


class Flow:
    """Moves tasks through their graph."""

    def __init__(self, book: Book, queues: ReadyQueues) -> None:
        self.book = book
        self.queues = queues
        self.slots = 0                                     # tasks that the local pilot can run at a time; 0: not known
        self.pending: dict[int, list[tuple[Pending, int, bool]]] = {}  # task -> (answer, index, is a kill)
        self.promises: dict[tuple[int, int], int] = {}     # (session, call) -> task

    def ready(self, task: Task, now: float, *, first: bool = False) -> None:
        """A task has all that it needs: queue it (or fail it, if its worker pool is broken)."""
        book = self.book
        if task.campaign not in book.active:
            return      # nobody runs this campaign now; whoever does will load and queue it
        broken = book.broken.get(book.classes[task.cls].spec.pool) if book.broken else None
        if broken is not None and book.classes[task.cls].app.kind is AppKind.PYTHON:
            task.payload, task.error = broken
            book.close(task, S.FAILED, now)
            self.over(task, now)
            return
        session = book.sessions.get(task.session)
        limited = session is not None and 0 < session.limit < (self.slots or 1 << 30)
        self.queues.push(task, task.session if limited else 0, first=first)

    def over(self, task: Task, now: float) -> None:
        """A task is over: release or fail what needs it, and answer who asked to end it."""
        book = self.book
        stack = [task]
        while stack:
            each = stack.pop()
            if each.id in self.pending:
                self.answer(each.id, each.state is S.CANCELLED)
            for dependent in dag.released(each):
                if dependent.state not in (S.WAITING, S.HELD):
                    continue
                if dependent.joins is not None:
                    if not dependent.missing:
                        self.conclude_join(dependent, now)
                        stack.append(dependent)
                elif each.state is not S.DONE:
                    self._fail_upstream(dependent, each, now)
                    stack.append(dependent)
                elif not dependent.missing and (dependent.state is S.WAITING or dependent.reason == NO_SCRIPT):
                    dependent.reason = ""
                    book.move(dependent, S.READY)
                    self.ready(dependent, now)

    def fail_upstream(self, task: Task, upstream: Task, now: float) -> None:
        self._fail_upstream(task, upstream, now)
        self.over(task, now)

    def _fail_upstream(self, task: Task, upstream: Task, now: float) -> None:
        task.root = dag.root_of(upstream)
        root = self.book.find(task.root) or upstream
        why = root.error or ("it was cancelled" if root.state is S.CANCELLED else "it failed")
        task.error = f"task {task.id} needs task {task.root}, which did not succeed: {why.removeprefix('it ')}"
        self.book.close(task, S.UPSTREAM_FAILED, now)

    def conclude_join(self, task: Task, now: float) -> None:
        """All that a returned value stands for is over: the task is, too."""
        assert task.joins is not None
        bad = [dep for dep in task.deps if dep.state is not S.DONE]
        if bad:
            listed = "; ".join(f"task {dep.id}: {dep.error or dep.state.name}" for dep in bad)
            task.error = f"task {task.id} returned futures of tasks that did not succeed: {listed}"
            task.payload = error_payload(JoinError(task.error, task_ids=tuple(dep.id for dep in bad)))
            self.book.close(task, S.FAILED, now)
            return
        template = task.payload
        assert isinstance(template, bytes)
        parts = [dep.payload for dep in task.deps if dep.payload is not None]
        if depth(parts) >= DEEPEST:
            task.error = (f"task {task.id} returned futures whose values hold futures' values in turn, more than "
                          f"{DEEPEST} deep: return values, or pass them on as arguments")
            task.payload = error_payload(JoinError(task.error, task_ids=tuple(dep.id for dep in task.deps)))
            self.book.close(task, S.FAILED, now)
            return
        # One future that was returned as it is stands for its value: chains of them do not nest.
        task.payload = parts[0] if template == BARE_SLOT else Joined(template, parts)
        self.book.close(task, S.DONE, now)

    def hold(self, task: Task, reason: str) -> None:
        """Pause a task, and what waits for it, with the reason."""
        stack = [task]
        while stack:
            each = stack.pop()
            if each.state not in (S.WAITING, S.READY):
                continue
            self.book.move(each, S.HELD)
            each.reason = reason
            stack.extend(each.dependents or ())

    def hold_anyway(self, task: Task, reason: str) -> None:
        """Put a task aside whatever it is doing, unless it is over."""
        pilot = self.book.pilots.get(task.pilot)
        if pilot is not None and pilot.held.pop(task.id, None) is not None:
            if task.id in pilot.parents:
                pilot.parents.discard(task.id)
            else:
                pilot.counts[task.cls] -= 1
            session = self.book.sessions.get(task.session)
            if session is not None and session.assigned:
                session.assigned -= 1
        if task.state not in CLOSED and task.state is not S.HELD:
            self.book.move(task, S.HELD)
            task.reason = reason
        if task.id in self.pending:
            self.answer(task.id, False)

    def mark_parent(self, parent: int) -> None:
        """A task that calls apps may wait for them: it is not counted against what its pilot may hold."""
        task = self.book.tasks.get(parent)
        pilot = self.book.pilots.get(task.pilot) if task is not None else None
        if task is not None and pilot is not None and parent in pilot.held and parent not in pilot.parents:
            pilot.parents.add(parent)
            pilot.counts[task.cls] -= 1

    def cancel_unstarted(self, task: Task, now: float) -> bool:
        if task.state is S.CANCELLED:
            return True
        if task.state in (S.READY, S.HELD) or (task.state is S.WAITING and task.joins is None):
            task.error = task.error or "it was cancelled"
            self.book.close(task, S.CANCELLED, now)
            self.over(task, now)
            return True
        return False

    def order_again(self, pilot: Pilot) -> None:
        """A pilot is back: what was to end while it was away."""
        for task in [task for task in pilot.held.values() if task.id in self.pending]:
            if any(kill for _, _, kill in self.pending[task.id]):
                pilot.kills.append((task.id, task.attempt))
                self.book.loaded.add(pilot.id)
            else:
                self.book.send_pilot(pilot, Return(0, [task.id]))

    def started(self, task: int) -> None:
        """A task has started, so whoever wanted to cancel it is told no."""
        waiting = self.pending.pop(task, None)
        if waiting:
            kills = [entry for entry in waiting if entry[2]]
            if kills:
                self.pending[task] = kills
            self._answer([entry for entry in waiting if not entry[2]], False)

    def answer(self, task: int, ended: bool) -> None:
        self._answer(self.pending.pop(task), ended)

    def _answer(self, entries: list[tuple[Pending, int, bool]], result: bool) -> None:
        for pending, index, _ in entries:
            pending.results[index] = result
            pending.left -= 1
            if not pending.left:
                self.book.send_client(pending.session, Answer(pending.request, pending.results))

    # ---- tasks that come back

    def revive(self, task: Task, now: float, cls: int = 0) -> None:
        """Try a task again that had failed, been cancelled or lost what it needed; and failed ones that it needs."""
        order: list[Task] = []
        stack, seen = [task], set()
        while stack:
            each = stack.pop()
            if each.id in seen or (each is not task and each.state not in (S.FAILED, S.UPSTREAM_FAILED)):
                continue
            seen.add(each.id)
            order.append(each)
            stack.extend(dep for need in each.spec.needs if (dep := self.book.find(need)) is not None)
        for each in reversed(order):
            self._revive_one(each, now, cls if each is task else 0)

    def _revive_one(self, task: Task, now: float, cls: int) -> None:
        book = self.book
        upstream = [dep for need in task.spec.needs if (dep := book.find(need)) is not None]
        if len(upstream) < len(task.spec.needs):
            return
        book.file_attempt(task)
        book.forget(task)
        task.cls = cls or task.cls
        task.failures = task.losses = task.fault = task.root = 0
        task.error = task.place = task.reason = ""
        task.started = task.ended = 0.0
        task.payload = task.detail = task.again = task.ran = task.joins = None
        book.tasks[task.id] = task
        broken = dag.link(task, upstream)
        book.move(task, S.WAITING if broken is not None or task.missing else S.READY)
        if broken is not None:
            self.fail_upstream(task, broken, now)
        elif task.state is S.READY:
            self.ready(task, now)

    def adopt(self, tasks: list[Task], now: float, connected: Callable[[int], bool]) -> None:
        """Take tasks over that were read from the database: their links, queues and pilots."""
        book = self.book
        fresh = [task for task in tasks if book.find(task.id) is None]
        for task in fresh:
            if task.state in CLOSED:
                book.remember(task, forget=False)   # all of what was read is needed now
            else:
                book.tasks[task.id] = task
                if task.state is S.WAITING:
                    book.counts.waits(task)
        by_id = {task.id: task for task in fresh}
        for task in fresh:
            if task.state not in CLOSED:
                self._adopt_open(task, by_id, now, connected)
        for task in fresh:     # only now are all links there, by which those that wait are found
            if book.classes[task.cls].app.kind is AppKind.PROMISE and not connected(task.session):
                self.hold(task, NO_SCRIPT)

    def hold_promises(self, session: int) -> None:
        """A script has gone: what waits for its futures is put aside."""
        for (owner, _), number in self.promises.items():
            task = self.book.tasks.get(number)
            if owner == session and task is not None:
                self.hold(task, NO_SCRIPT)

    def _adopt_open(self, task: Task, by_id: dict[int, Task], now: float, connected: Callable[[int], bool]) -> None:
        book = self.book
        ids = task.joins if task.joins is not None else task.spec.needs
        upstream = [dep for need in ids if (dep := book.find(need) or by_id.get(need)) is not None]
        broken = dag.link(task, upstream)
        if connected(task.session):
            book.watch(task, task.session)
        if book.classes[task.cls].app.kind is AppKind.PROMISE:
            task.missing = 1
            self.promises[(task.session, task.spec.n)] = task.id
        elif task.state in (S.ASSIGNED, S.RUNNING):
            pilot = book.pilots.get(task.pilot)
            if pilot is None:
                book.move(task, S.READY)
                self.ready(task, now)
            else:
                self.take_in_hand(pilot, task)
        elif task.joins is not None:
            if not task.missing:
                self.conclude_join(task, now)
                self.over(task, now)
        elif broken is not None and task.state is S.WAITING:
            self.fail_upstream(task, broken, now)
        elif task.state is S.WAITING and not task.missing:
            book.move(task, S.READY)
            self.ready(task, now)
        elif task.state is S.READY:
            self.ready(task, now)

    def take_in_hand(self, pilot: Pilot, task: Task) -> None:
        pilot.held[task.id] = task
        pilot.counts[task.cls] = pilot.counts.get(task.cls, 0) + 1
        session = self.book.sessions.get(task.session)
        if session is not None and session.limit:
            session.assigned += 1


def depth(payloads: Iterable[Payload]) -> int:
    """How deep values of returned futures hold each other."""
    deep = 0
    level = [payload for payload in payloads if payload.__class__ is Joined]
    while level:
        deep += 1
        inner = {id(part): part for each in level if isinstance(each, Joined) for part in each.parts
                 if part.__class__ is Joined}
        level = list(inner.values())
    return deep
