"""What clients ask for: calls, cancellations, kills, kept promises, resumption.  Part of the brain: pure.

A call becomes a task, or finds the one that it was before.  What has to be looked up in the database for a message is
said beforehand (`wanted`), so that nothing here ever reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from balsamfut.interchange import dag
from balsamfut.interchange.book import Book, Session
from balsamfut.interchange.flow import Flow, Pending
from balsamfut.interchange.records import Around, CampaignRow, SessionRow, Task
from balsamfut.messages import (
    Answer,
    BlockAnswer,
    Cancel,
    ElasticAnswer,
    ElasticOrder,
    Keep,
    KillTasks,
    Message,
    Rejected,
    RemoveBlock,
    Return,
    Submit,
    SubmitBlock,
)
from balsamfut.model import CLOSED, AppKind, TaskSpec, TaskState

S = TaskState
UNHANDLED: Final = "the interchange could not handle this; its log says why"


@dataclass(slots=True)
class Wanted:
    """What must be read from the database before a message can be handled."""

    tasks: set[int] = field(default_factory=set)                        # by id
    calls: tuple[int, list[int]] | None = None                          # (session, call numbers)
    keys: tuple[int, int, list[tuple[bytes, int]]] | None = None        # (campaign, parent, [(key, occurrence)])
    cached: list[bytes] = field(default_factory=list)                   # keys of apps with cache=True
    campaign: int | None = None                                         # its open tasks; 0: of all campaigns
    retry_failed: bool = False                                          # ... and those that failed
    token: str = ""                                                     # the session that has, or had, it
    named: str = ""                                                     # the campaign of that name

    def __bool__(self) -> bool:
        return bool(self.tasks or self.calls or self.keys or self.cached or self.campaign is not None or self.token
                    or self.named)


@dataclass(slots=True)
class Found:
    """What was read."""

    tasks: list[Task] = field(default_factory=list)                     # those that were asked for by id or campaign
    looked: bool = False                                                # calls, keys and cached are complete
    opened: bool = False                                                # and so are the open tasks of a campaign
    missing: set[int] = field(default_factory=set)                      # tasks that the database does not have
    lacking: set[int] = field(default_factory=set)                      # what tasks that were read need ...
    apart: dict[int, Task] = field(default_factory=dict)                # ... those tasks, until it is there
    calls: dict[int, Task] = field(default_factory=dict)
    keys: dict[tuple[bytes, int], Task] = field(default_factory=dict)
    cached: dict[bytes, Task] = field(default_factory=dict)
    session: SessionRow | None = None                                   # that has, or had, the token
    named: list[CampaignRow] = field(default_factory=list)              # the campaign of the name, if there is one
    around: Around = field(default_factory=Around)                      # what those tasks refer to and was lacking

    def complete(self, want: Wanted, loaded: list[Task], book: Book) -> list[Task]:
        """The tasks that were read, once all that they wait for is there too: they are linked to it when adopted."""
        loaded = [*self.apart.values(), *loaded]
        ids = {task.id for task in loaded}
        self.missing |= want.tasks - ids
        self.lacking = {need for task in loaded if task.state not in CLOSED
                        for need in (*task.spec.needs, *(task.joins or ()))
                        if need not in ids and book.find(need) is None} - self.missing
        self.apart = {task.id: task for task in loaded} if self.lacking else {}
        return [] if self.lacking else loaded


class Requests:
    """The part of the brain that clients talk to."""

    def __init__(self, book: Book, flow: Flow) -> None:
        self.book = book
        self.flow = flow
        self.found = Found()                               # for the message in hand
        self.turn_keys: dict[tuple[int, int, bytes, int], Task] = {}   # tasks of this turn, not in the database yet
        self.next_request = 1

    # ---- looking up

    def wanted(self, session: Session, message: Submit) -> Wanted:
        """What to read before `submit`.  Asked again after each reading, until there is nothing."""
        want = Wanted()
        find, found = self.book.find, self.found
        for spec in message.specs:
            if spec.needs:
                want.tasks.update(
                    ref for ref in spec.needs if ref > 0 and find(ref) is None and ref not in found.missing)
        for task in found.keys.values():
            self.want_upstream(task, want.tasks)
        if found.looked:
            return want
        if message.resent:
            want.calls = (session.id, [spec.n for spec in message.specs])
        if session.looks_up:
            keys = [(spec.key, spec.occurrence) for spec in message.specs if spec.key is not None]
            if keys:
                want.keys = (session.row.campaign, session.row.parent, keys)
        caching = {local for local, cls in message.classes if cls.options.cache} | {
            local for local, cls in session.classes.items() if self.book.classes[cls].spec.options.cache}
        if caching:
            want.cached = [spec.key for spec in message.specs if spec.key is not None and spec.cls in caching]
        return want

    def want_upstream(self, task: Task, wanted: set[int]) -> None:
        """The tasks that a revived task needs, and those that revived ones among them need."""
        stack, seen = [task], set()
        while stack:
            each = stack.pop()
            if each.id in seen or each.state not in (S.FAILED, S.UPSTREAM_FAILED, S.CANCELLED):
                continue
            seen.add(each.id)
            for need in each.spec.needs:
                upstream = self.book.find(need)
                if upstream is None:
                    if need not in self.found.missing:
                        wanted.add(need)
                else:
                    stack.append(upstream)

    # ---- calls

    def submit(self, session: Session, message: Submit, now: float) -> None:
        """Record calls: each becomes a task, or finds its earlier one."""
        book = self.book
        book.define(message.apps, message.codes, message.pools)
        for local, spec_class in message.classes:
            session.classes[local] = book.intern_class(spec_class)
        if len(session.calls) > session.prune_at:     # seldom: it looks at all of them
            session.calls = {n: task for n, task in session.calls.items() if n > message.acked}
            session.prune_at = 2 * len(session.calls) + 4096
        if session.row.parent:
            self.flow.mark_parent(session.row.parent)
        for spec in message.specs:
            if spec.n in session.calls:
                continue
            cls = session.classes.get(spec.cls)
            if cls is None:
                book.send_client(session, Rejected(spec.n, "SiteError", f"class {spec.cls} was never defined"))
                continue
            resent = self.found.calls.get(spec.n) if message.resent else None
            if resent is not None:
                self.reattach(session, spec, book.find(resent.id) or resent, 0, now)
            elif (known := self.earlier(session, spec)) is not None:
                self.reattach(session, spec, known, cls, now)
            else:
                self.create(session, spec, cls, now)
        book.told.add(session.id)

    def earlier(self, session: Session, spec: TaskSpec) -> Task | None:
        """The task that this call was in an earlier session of the campaign, by its key."""
        if spec.key is None or not session.looks_up:
            return None
        place = (session.row.campaign, session.row.parent, spec.key, spec.occurrence)
        task = self.turn_keys.get(place) or self.found.keys.get((spec.key, spec.occurrence))
        return None if task is None else self.book.find(task.id) or task

    def create(self, session: Session, spec: TaskSpec, cls: int, now: float) -> Task | None:
        """A new task."""
        book = self.book
        info = book.classes[cls]
        upstream: list[Task] = []
        if spec.needs:
            ids = tuple(ref if ref > 0 else session.calls.get(-ref, 0) for ref in spec.needs)
            for need in ids:
                dep = book.find(need)
                if dep is None:
                    book.send_client(session, Rejected(
                        spec.n, "SiteError", f"call {spec.n} needs task {need}, which this site does not have"))
                    return None
                upstream.append(dep)
            if ids != spec.needs:
                spec = msgspec.structs.replace(spec, needs=ids)
        task = Task(book.next_task, session.row.campaign, session.id, session.row.parent, cls, spec, S.READY, now,
                    watchers=session.alone, dirty=True)
        book.next_task += 1
        session.calls[spec.n] = task.id
        book.tasks[task.id] = task
        book.writes.tasks.append(task)
        if upstream:
            book.writes.edges.extend([(task.id, slot, dep.id) for slot, dep in enumerate(upstream)])
        if spec.key is not None:
            self.turn_keys[(session.row.campaign, session.row.parent, spec.key, spec.occurrence)] = task
            if info.spec.options.cache and (old := self.found.cached.get(spec.key)) is not None:
                return self.copy_cached(session, task, old, now)
        broken = dag.link(task, upstream) if upstream else None
        if info.app.kind is AppKind.PROMISE:
            task.missing = 1
            self.flow.promises[(session.id, spec.n)] = task.id
        if broken is not None or task.missing:
            task.state = S.WAITING
            book.counts.waits(task)
        session.accepted.append((spec.n, task.id, task.state, False))
        if broken is not None:
            self.flow.fail_upstream(task, broken, now)
        elif task.state is S.READY:
            self.flow.ready(task, now)
        return task

    def copy_cached(self, session: Session, task: Task, old: Task, now: float) -> Task:
        """The result of an equal call of another campaign (cache=True)."""
        task.payload = old.payload
        task.detail = old.detail
        session.accepted.append((task.spec.n, task.id, S.DONE, True))
        self.book.close(task, S.DONE, now)
        return task

    def reattach(self, session: Session, spec: TaskSpec, task: Task, cls: int, now: float) -> None:
        """A call found its earlier task: its result, its progress, or (made anew, with class `cls`) another try."""
        book = self.book
        session.calls[spec.n] = task.id
        book.watch(task, session.id)
        if book.classes[task.cls].app.kind is AppKind.PROMISE:
            self.flow.promises[(session.id, spec.n)] = task.id
        if task.state is S.DONE or (task.state in CLOSED and not cls):
            book.remember(task)
            session.accepted.append((spec.n, task.id, task.state, bool(cls)))
            session.endings.append(book.ending(task))
        elif task.state in CLOSED:
            self.flow.revive(task, now, cls)
            session.accepted.append((spec.n, task.id, task.state, False))
            if task.state in CLOSED:
                session.endings.append(book.ending(task))
        else:
            session.accepted.append((spec.n, task.id, task.state, False))
            if task.state is S.RUNNING:
                session.running.append((task.id, True))

    # ---- ending tasks

    def resolve(self, session: Session, ref: int) -> Task | None:
        return self.book.find(ref if ref > 0 else session.calls.get(-ref, 0))

    def cancel(self, session: Session, message: Cancel, now: float) -> None:
        """True for those that are cancelled, or were already; the holder of a task must give it back first."""
        answer = Pending(session, message.request, [False] * len(message.refs), 0)
        asked: dict[int, list[int]] = {}
        for index, ref in enumerate(message.refs):
            task = self.resolve(session, ref)
            if task is None:
                continue
            if task.state is S.ASSIGNED:
                answer.left += 1
                self.flow.pending.setdefault(task.id, []).append((answer, index, False))
                asked.setdefault(task.pilot, []).append(task.id)
            else:
                answer.results[index] = self.flow.cancel_unstarted(task, now)
        for number, tasks in asked.items():
            pilot = self.book.pilots.get(number)
            if pilot is not None:
                self.book.send_pilot(pilot, Return(self.next_request, tasks))
                self.next_request += 1
        if not answer.left:
            self.book.send_client(session, Answer(answer.request, answer.results))

    def kill(self, session: Session, message: KillTasks, now: float) -> None:
        """End tasks, running or not.  True for those that this ends."""
        answer = Pending(session, message.request, [False] * len(message.refs), 0)
        for index, ref in enumerate(message.refs):
            task = self.resolve(session, ref)
            if task is None:
                continue
            if task.state in (S.ASSIGNED, S.RUNNING):
                answer.left += 1
                self.flow.pending.setdefault(task.id, []).append((answer, index, True))
                pilot = self.book.pilots.get(task.pilot)
                if pilot is not None:
                    pilot.kills.append((task.id, task.attempt))
                    self.book.loaded.add(pilot.id)
                    self.book.event(now, "kill", "a user asked for it", task.id, pilot.id)
            elif task.state is S.WAITING and task.joins is not None:
                task.error = "it was killed"
                self.book.close(task, S.CANCELLED, now)
                self.flow.over(task, now)
                answer.results[index] = True
            else:
                answer.results[index] = task.state not in CLOSED and self.flow.cancel_unstarted(task, now)
        if not answer.left:
            self.book.send_client(session, Answer(answer.request, answer.results))

    def keep(self, session: Session, message: Keep, now: float) -> None:
        """A future of somebody else's is done."""
        task = self.book.tasks.get(self.flow.promises.pop((session.id, message.n), 0))
        if task is None:
            return
        task.missing = 0
        task.payload = message.payload
        task.error = message.error
        if task.state is S.HELD:
            self.book.move(task, S.WAITING)
        self.book.close(task, S.DONE if message.ok else S.FAILED, now)
        self.flow.over(task, now)

    def dropped(self, peer: bytes, message: Message) -> None:
        """A message could not be handled, as the log says: nobody may wait for an answer to it."""
        session = self.book.peers.get(peer)
        if session is None:
            return
        if isinstance(message, Submit):
            for spec in message.specs:
                if spec.n not in session.calls:
                    self.book.send_client(session, Rejected(
                        spec.n, "SiteError", UNHANDLED))
        elif isinstance(message, Cancel | KillTasks):
            self.book.send_client(session, Answer(message.request, [False] * len(message.refs)))
        elif isinstance(message, SubmitBlock | RemoveBlock):
            self.book.send_client(session, BlockAnswer(message.request, 0, UNHANDLED))
        elif isinstance(message, ElasticOrder):
            self.book.send_client(session, ElasticAnswer(message.request, False, False, error=UNHANDLED))

    def flush(self) -> None:
        """At the end of a turn: what it created is in the database from here on."""
        self.turn_keys.clear()
        self.found = Found()
