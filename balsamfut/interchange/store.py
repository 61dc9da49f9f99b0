"""The interchange's hand on its database: takes it over, loads what is open, and writes one turn in one transaction.

The store never thinks: it takes finished `Writes` and gives back records.  Statements for the rows that come by the
thousand are compiled once from the tables of schema.py and run by the driver's executemany.  It must not know sockets,
messages or the brain, and never looks into payloads.

Ownership: whoever opens the database makes a new epoch; each transaction looks, under the database's own lock, whether
the epoch is still its own.  So an owner that was stopped (SIGSTOP, a suspended machine) and wakes up cannot write.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final, Literal, TypeVar

import sqlalchemy as sa

from balsamfut import faults, schema
from balsamfut.clock import Clock
from balsamfut.errors import SiteError, SiteTaken
from balsamfut.infos import OwnerInfo
from balsamfut.interchange import around, opening, past, rows
from balsamfut.interchange.around import chunks
from balsamfut.interchange.records import Around, CampaignRow, Lacking, SessionRow, Task, World, Writes
from balsamfut.model import OPEN, TaskState

V = TypeVar("V")
Run = Callable[[str, list[Any]], Any]   # a statement for each of some rows of values
PATIENCE: Final = 1.0   # seconds that a statement waits for a lock: the loop that calls us must not stall for long
FAILED: Final = frozenset({TaskState.FAILED, TaskState.UPSTREAM_FAILED})
_LOCK_OF_MAKERS: Final = 0x62616C73   # PostgreSQL: two that make the tables at once


class StoreError(SiteError):
    """The database could not do what was asked; nothing of it was written.

    Attribute transient: True where the same may succeed later (locked, no room, no connection, an input/output error).
    """

    def __init__(self, message: str = "", *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Owned(SiteTaken):
    """The owner may live.  Attribute: owner."""

    def __init__(self, name: str, owner: OwnerInfo) -> None:
        super().__init__(f"the database {name} belongs to another interchange ({owner.text})")
        self.owner = owner


class Store:
    """One site's database, owned by this process from open() to close().  Not for two threads at once.

    database: a path (SQLite), or a URL.  synchronous: FULL survives the loss of the machine, NORMAL the death of any
    process (SQLite; PostgreSQL: FULL insists on synchronous_commit, NORMAL leaves the server's setting).
    """

    def __init__(self, database: str | os.PathLike[str], *, synchronous: Literal["NORMAL", "FULL"] = "NORMAL") -> None:
        self.url = schema.database_url(database)
        self._sqlite = self.url.get_backend_name() == "sqlite"
        self._full = synchronous == "FULL"
        self.name = schema.name_of(self.url)
        self._turn = 0
        self._doubt: tuple[int, Writes] | None = None
        self._engine: sa.Engine
        self._connection: sa.Connection
        self.epoch = 0
        self.site = ""                    # uuid
        self.notice: str | None = None    # one line for people about how this database has to be used

    # ---- opening

    def open(self, over: Callable[[OwnerInfo], bool] = lambda owner: True) -> None:
        """Make what is not there, and take the database over: the owner before us can write no more.

        over: whether that owner may be taken for past.  Raises Owned where it may not, DatabaseTooNew (nothing is
        written in both cases), StoreError, SettingsError.
        """
        with self._clear_errors("open"):
            network = opening.prepare(self.url, PATIENCE) if self._sqlite else ""
        self._engine = schema.engine(self.url, timeout=PATIENCE)
        sa.event.listen(self._engine, "connect", opening.settings(
            self.url, network, full=self._full, notice=lambda text: setattr(self, "notice", text)))
        if self._sqlite:
            sa.event.listen(self._engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
        self._compile()
        with self._clear_errors("open"):
            self._connection = self._engine.connect()
            try:
                with self._connection.begin():
                    self._take(self._connection, over)
            except BaseException:
                self.close()
                raise

    def _take(self, connection: sa.Connection, over: Callable[[OwnerInfo], bool]) -> None:
        if not self._sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_OF_MAKERS)))
        found = schema.found_version(connection, self.name)
        meta = schema.meta
        now = Clock().now()
        if found == 0:
            schema.metadata.create_all(connection)
            connection.execute(sa.insert(meta).values(
                one=1, version=schema.VERSION, site=uuid.uuid4().hex, created=now))
        last = schema.owner(connection)
        if not over(last):
            raise Owned(self.name, last)
        if last.pid and not self._sqlite:
            opening.disconnect_others(connection)
        for version in range(found or schema.VERSION, schema.VERSION):
            schema.UPGRADES[version](connection)
        connection.execute(sa.update(meta).values(
            version=schema.VERSION, epoch=meta.c.epoch + 1, turn=0, host=socket.gethostname(), pid=os.getpid(),
            since=now, beat=now))
        self.epoch, self.site = connection.execute(sa.select(meta.c.epoch, meta.c.site)).one()

    def beat(self, now: float) -> None:
        """Give a sign of life, for other hosts to see.  Raises as commit does."""
        self._sign({"beat": now})

    def release(self) -> None:
        """Say that this owner has ended, so that nobody has to wait for signs of its life.  Raises as commit does."""
        if self.epoch:
            self._sign({"pid": 0})

    def _sign(self, said: dict[str, float]) -> None:
        meta = schema.meta
        with self._clear_errors("write to"), self._connection.begin():
            done = self._connection.execute(sa.update(meta).where(meta.c.epoch == self.epoch).values(**said))
            if done.rowcount != 1:
                self._check_epoch(self._connection, writing=False)

    def _compile(self) -> None:
        dialect = self._engine.dialect
        # Imported when it is used: PostgreSQL's takes 40 ms and 3 MB.
        insert = import_module(f"sqlalchemy.dialects.{dialect.name}").insert
        tasks = schema.tasks
        which = tasks.c.id == sa.bindparam("which_id")
        self._insert_task = schema.driver_sql(sa.insert(tasks), rows.NEW, dialect)
        self._update_task = schema.driver_sql(sa.update(tasks).where(which), rows.NEWEST, dialect)
        self._update_done = schema.driver_sql(sa.update(tasks).where(which), rows.DONE, dialect)
        run = tasks.c.id.between(sa.bindparam("which_first"), sa.bindparam("which_last"))
        self._update_assigned = schema.driver_sql(sa.update(tasks).where(run), rows.ASSIGNED, dialect)
        self._insert_edge = schema.driver_sql(sa.insert(schema.edges), ("task", "slot", "needs"), dialect)
        self._insert_tag = schema.driver_sql(sa.insert(schema.tags), ("task", "name", "value"), dialect)
        self._insert_event = schema.driver_sql(sa.insert(schema.events), rows.EVENT, dialect)
        self._upsert: dict[str, str] = {}
        for field, (table, _row) in rows.FEW.items():
            statement = insert(table)
            values = {c.name: statement.excluded[c.name] for c in table.c if not c.primary_key}
            self._upsert[field] = schema.driver_sql(
                statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=values),
                tuple(c.name for c in table.c), dialect)
        # SQLite: BEGIN IMMEDIATE holds the one write lock, so looking is enough.  PostgreSQL: the row must be locked;
        # and where the answer to COMMIT is lost with the connection, the turn's number tells whether it was done.
        meta = schema.meta
        self._count_turn = schema.driver_sql(
            sa.update(meta).where(meta.c.epoch == sa.bindparam("which_epoch")), ("turn", "which_epoch"), dialect)

    # ---- transactions

    @contextmanager
    def _clear_errors(self, what: str) -> Iterator[None]:
        """Errors of the driver become ours, with the database's name; everything is rolled back by then."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError, OverflowError) as exc:
            transient = isinstance(exc, (sa.exc.OperationalError, sa.exc.InterfaceError, sqlite3.OperationalError,
                                         OSError))
            raise StoreError(f"cannot {what} the database {self.name}: {schema.reason(exc)}",
                             transient=transient) from exc

    @contextmanager
    def _transaction(self, what: str) -> Iterator[sa.Connection]:
        with self._clear_errors(what), self._connection.begin():
            self._check_epoch(self._connection, writing=False)
            yield self._connection

    def _check_epoch(self, connection: sa.Connection, *, writing: bool) -> None:
        if self._sqlite or not writing:
            ours = connection.exec_driver_sql("SELECT epoch FROM meta").scalar() == self.epoch
        else:
            ours = connection.exec_driver_sql(self._count_turn, (self._turn, self.epoch)).rowcount == 1
        if not ours:
            now = schema.owner(connection)
            raise SiteTaken(f"the database {self.name} was taken over by another interchange ({now.text}); this one "
                            "writes no more")

    def commit(self, writes: Writes) -> None:
        """Write one turn.  Its tasks are then `stored` and not `dirty`.

        Raises SiteTaken, or StoreError: then nothing is written, `writes` is as it was and may be committed again.
        """
        self._turn += 1
        (self._commit_by_driver if self._sqlite else self._commit_by_sqlalchemy)(writes)
        faults.point("interchange.commit.after")
        for t in writes.tasks:
            t.stored, t.dirty, t.whole = True, False, False

    def _commit_by_sqlalchemy(self, writes: Writes) -> None:
        with self._clear_errors("write to"):
            transaction = self._connection.begin()
            try:
                if self._doubt is not None and self._was_done(*self._doubt, writes):
                    transaction.rollback()
                else:
                    self._check_epoch(self._connection, writing=True)
                    self._write(self._connection.exec_driver_sql, writes)
                    faults.point("interchange.commit.before")
                    self._doubt = (self._turn, writes)
                    transaction.commit()
            except BaseException:
                transaction.rollback()
                raise
        self._doubt = None

    def _commit_by_driver(self, writes: Writes) -> None:
        """The same for SQLite: a commit is so short that what SQLAlchemy does around it would double it."""
        with self._clear_errors("write to"):
            raw: Any = self._connection.connection.driver_connection
            cursor = raw.cursor()
            try:
                cursor.execute("BEGIN IMMEDIATE")
                if cursor.execute("SELECT epoch FROM meta").fetchone() != (self.epoch,):
                    raw.rollback()
                    with self._connection.begin():
                        self._check_epoch(self._connection, writing=True)
                self._write(cursor.executemany, writes)
                faults.point("interchange.commit.before")
                cursor.execute("COMMIT")
            except BaseException:
                raw.rollback()
                raise

    def _was_done(self, turn: int, doubted: Writes, writes: Writes) -> bool:
        """An earlier commit of the same writes was done, though we saw it fail; waits for it if it still goes on."""
        found = self._connection.execute(sa.select(schema.meta.c.epoch, schema.meta.c.turn).with_for_update()).one()
        return doubted is writes and tuple(found) == (self.epoch, turn)

    def _write(self, run: Run, writes: Writes) -> None:
        for field, (_table, row) in rows.FEW.items():
            records = getattr(writes, field)
            if records:
                run(self._upsert[field], [row(record) for record in records])
        if writes.tasks:
            self._write_tasks(run, writes.tasks)
        if writes.edges:
            run(self._insert_edge, writes.edges)
        if writes.events:
            run(self._insert_event, [rows.event_row(e) for e in writes.events])

    def _write_tasks(self, run: Run, tasks: list[Task]) -> None:
        """New rows, and what changed of old ones: most changes are a first assignment or a plain success."""
        new: list[Task] = []
        whole: list[Task] = []
        done: list[Task] = []
        assigned: list[Task] = []
        for t in tasks:
            if not t.stored:
                new.append(t)
                if rows.later(t) != rows.NOTHING_LATER:
                    whole.append(t)
            elif t.whole:
                whole.append(t)
            else:
                (done if t.state is TaskState.DONE else assigned).append(t)
        if new:
            run(self._insert_task, [rows.new_row(t) for t in new])
            tags = rows.tag_rows(new)
            if tags:
                run(self._insert_tag, tags)
        if whole:
            run(self._update_task, [rows.newest_row(t) for t in whole])
        if done:
            run(self._update_done, [rows.done_row(t) for t in done])
        if assigned:
            run(self._update_assigned, rows.assigned_rows(assigned))

    def close(self) -> None:
        """Let go; the database keeps this epoch until somebody else opens it."""
        if (connection := getattr(self, "_connection", None)) is not None:
            connection.close()
            self._engine.dispose()

    # ---- loading

    def load_world(self) -> World:
        """Numbers that are free, and the blocks and pilots that are not over."""
        def highest(table: sa.Table) -> int:
            return int(connection.execute(sa.select(sa.func.max(table.c.id))).scalar() or 0) + 1

        def every(table: sa.Table, make: Callable[[Sequence[Any]], V], *conditions: sa.ColumnElement[bool]) -> list[V]:
            query = sa.select(table).where(*conditions).order_by(*table.primary_key)
            return [make(tuple(row)) for row in connection.execute(query)]

        with self._transaction("read") as connection:
            return World(
                next_task=highest(schema.tasks), next_session=highest(schema.sessions),
                next_campaign=highest(schema.campaigns), next_pilot=highest(schema.pilots),
                next_class=highest(schema.classes),
                blocks=every(schema.blocks, rows.block_from, schema.blocks.c.ended == 0),
                pilots=every(schema.pilots, rows.pilot_from, schema.pilots.c.ended == 0), past=past.load(connection))

    def load_open(self, campaign: int | None = None, retry_failed: bool = False) -> list[Task]:
        """The tasks that are not over (retry_failed: those that failed too), of one campaign or all, by id; and with
        them the tasks that those need or have joined and that are over, so that their values are there."""
        c = schema.tasks.c
        states = sorted(state.value for state in (OPEN | FAILED if retry_failed else OPEN))
        condition = c.state.in_(states) & (sa.true() if campaign is None else c.campaign == campaign)
        with self._transaction("read") as connection:
            found = {t.id: t for t in self._select(connection, condition)}
            beside = {other for t in found.values() for other in (*t.spec.needs, *(t.joins or ()))} - found.keys()
            found |= self._by_ids(connection, sorted(beside))
        return [found[id] for id in sorted(found)]

    def load_tasks(self, ids: Sequence[int]) -> dict[int, Task]:
        with self._transaction("read") as connection:
            return self._by_ids(connection, ids)

    def find_calls(self, session: int, ns: Sequence[int]) -> dict[int, Task]:
        """The tasks of these call numbers of a session, as far as they are recorded."""
        c = schema.tasks.c
        with self._transaction("read") as connection:
            return {t.spec.n: t for some in chunks(ns)
                    for t in self._select(connection, (c.session == session) & c.n.in_(some))}

    def find_keys(self, campaign: int, parent: int, keys: Sequence[tuple[bytes, int]]) -> dict[tuple[bytes, int], Task]:
        """The tasks of these (key, occurrence) in a campaign, called by `parent` (0: by scripts)."""
        c, wanted = schema.tasks.c, set(keys)
        callers = (c.campaign == campaign) & (c.parent == parent)
        with self._transaction("read") as connection:
            found = {(t.spec.key or b"", t.spec.occurrence): t for some in chunks(sorted({key for key, _ in wanted}))
                     for t in self._select(connection, c.key.in_(some) & callers)}
        return {which: t for which, t in found.items() if which in wanted}

    def find_cached(self, keys: Sequence[bytes]) -> dict[bytes, Task]:
        """By key: the newest task of any campaign that is done and whose app shares its results (cache=True)."""
        c = schema.tasks.c
        sharing = sa.select(schema.classes.c.id).where(schema.classes.c.cached == 1)
        done = c.state + 0 == TaskState.DONE.value   # + 0: else SQLite looks through all that is done, not through keys
        query = sa.select(sa.func.max(c.id)).where(done, c.cls.in_(sharing)).group_by(c.key)
        with self._transaction("read") as connection:
            newest = [id for some in chunks(keys) for (id,) in connection.execute(query.where(c.key.in_(some)))]
            return {t.spec.key or b"": t for t in self._by_ids(connection, newest).values()}

    def find_session(self, token: str) -> SessionRow | None:
        """The session that has, or had, this token."""
        with self._transaction("read") as connection:
            return around.session(connection, token)

    def find_campaign(self, name: str) -> list[CampaignRow]:
        """The campaign of this name, if there is one."""
        with self._transaction("read") as connection:
            return around.campaign(connection, name)

    def load_around(self, lacking: Lacking) -> Around:
        """What tasks refer to, by numbers."""
        with self._transaction("read") as connection:
            return around.load(connection, lacking)

    def counts(self, campaign: int | None = None) -> dict[TaskState, int]:
        """How many tasks of a campaign (None: of all) are in each state; states that none is in are left out."""
        c = schema.tasks.c
        query = sa.select(c.state, sa.func.count()).group_by(c.state)
        if campaign is not None:
            query = query.where(c.state.in_([s.value for s in TaskState]), c.campaign == campaign)
        with self._transaction("read") as connection:
            return {TaskState(state): number for state, number in connection.execute(query)}

    def _by_ids(self, connection: sa.Connection, ids: Sequence[int]) -> dict[int, Task]:
        return {t.id: t for some in chunks(ids) for t in self._select(connection, schema.tasks.c.id.in_(some))}

    def _select(self, connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Task]:
        """By id, with what they need."""
        tasks, edges = schema.tasks, schema.edges
        needs: dict[int, list[int]] = {}
        for task, need in connection.execute(
                sa.select(edges.c.task, edges.c.needs).join(tasks, edges.c.task == tasks.c.id).where(condition)
                .order_by(edges.c.task, edges.c.slot)):
            needs.setdefault(task, []).append(need)
        found = connection.execute(sa.select(tasks).where(condition).order_by(tasks.c.id))
        return [rows.task_from(tuple(row), tuple(needs.get(row[0], ()))) for row in found]
