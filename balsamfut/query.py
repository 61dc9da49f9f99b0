"""Reading a site's database: tasks, apps, campaigns, events and pilots, as records for people and their scripts.

Read only, also in what it asks of the database, and of one moment: it works beside a running interchange, also one
of another host that shares the file system.  It needs no interchange and asks none.
This module imports sqlalchemy, so that only commands which look at databases import it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import sqlalchemy as sa

from balsamfut import schema, settings
from balsamfut.errors import SiteError, TaskError, TaskKilled, UpstreamFailed, UsageError
from balsamfut.infos import BLOCK_STATES, REMOVING
from balsamfut.infos import AppInfo as AppInfo
from balsamfut.infos import AttemptInfo as AttemptInfo
from balsamfut.infos import BlockInfo as BlockInfo
from balsamfut.infos import CampaignInfo as CampaignInfo
from balsamfut.infos import EventInfo as EventInfo
from balsamfut.infos import NodeInfo as NodeInfo
from balsamfut.infos import OwnerInfo as OwnerInfo
from balsamfut.infos import PilotInfo as PilotInfo
from balsamfut.infos import SessionInfo as SessionInfo
from balsamfut.infos import TaskInfo as TaskInfo
from balsamfut.messages import Detail, Fault, NodeState
from balsamfut.model import AppKind, Blob, Extra, Options, Payload, Resources, TaskState, default_workdir
from balsamfut.queuemessages import Part
from balsamfut.schema import tasks as t

PATIENCE: Final = 5.0   # seconds
CHUNK: Final = 500
_decode_extra = msgspec.msgpack.Decoder(Extra).decode
_decode_detail = msgspec.msgpack.Decoder(Detail).decode
_decode_resources = msgspec.msgpack.Decoder(Resources).decode


def open_site(site: str | os.PathLike[str], directory: str | os.PathLike[str] | None = None) -> Reader:
    """Open a site's directory, an SQLite file, or a database by URL, for reading.

    directory: the site's, where `site` does not tell it; payloads in files are looked for there.
    Raises SiteError where there is no database of ours, DatabaseTooNew, SettingsError.
    """
    place = os.fspath(site)
    home = None if directory is None else Path(directory).absolute()
    if "://" not in place:
        path = Path(place).absolute()
        home = home or (path if path.is_dir() else path.parent)
        if path.is_dir():
            place = settings.load(path).database_url(path)
    return Reader(schema.database_url(place), home)


class Reader:
    """A site's database, for reading.  Every call sees it as of one moment."""

    def __init__(self, url: sa.URL, directory: Path | None) -> None:
        self._name = schema.name_of(url)
        self._directory = directory
        self._sqlite = url.get_backend_name() == "sqlite"
        if self._sqlite:
            if not Path(str(url.database)).is_file():
                raise SiteError(f"there is no database {self._name}; right would be a site's directory, its database "
                                "file, or a URL")
            url = schema.sqlite_read_only(url)
        self._engine = schema.engine(url, timeout=PATIENCE)
        if self._sqlite:
            sa.event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        with self._snapshot() as connection:
            if schema.found_version(connection, self._name) == 0:
                raise SiteError(f"{self._name} is no database of balsamfut's: it has no table named meta")

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def _snapshot(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                if not self._sqlite:
                    connection = connection.execution_options(isolation_level="REPEATABLE READ",
                                                              postgresql_readonly=True)
                with connection.begin():
                    yield connection
        except sa.exc.SQLAlchemyError as exc:
            raise SiteError(f"cannot read the database {self._name}: {schema.reason(exc)}") from exc

    # ---- tasks

    def tasks(self, *, state: str | TaskState | Iterable[str | TaskState] | None = None, app: str | None = None,
              tags: Mapping[str, str] | None = None, campaign: str | int | None = None,
              ids: Iterable[int] | None = None, limit: int | None = None) -> list[TaskInfo]:
        """Tasks that meet all that is given, by id; with a limit the newest of them.

        campaign: name or number.  Raises UsageError for a state that there is not.
        """
        conditions = _conditions(state, app, tags, campaign)
        with self._snapshot() as connection:
            if ids is None:
                found = connection.execute(_query().where(*conditions).order_by(t.c.id.desc()).limit(limit)).all()[::-1]
            else:
                found = [row for some in _chunks(sorted(set(ids))) for row in connection.execute(
                    _query().where(*conditions, t.c.id.in_(some)).order_by(t.c.id))]
                found = found if limit is None else found[max(0, len(found) - limit):]
            return self._infos(connection, found)

    def count(self, *, state: str | TaskState | Iterable[str | TaskState] | None = None, app: str | None = None,
              tags: Mapping[str, str] | None = None, campaign: str | int | None = None) -> dict[str, int]:
        """How many tasks that meet all that is given are in each state; states that none is in are left out."""
        query = (sa.select(t.c.state, sa.func.count()).where(*_conditions(state, app, tags, campaign))
                 .group_by(t.c.state).order_by(t.c.state))
        with self._snapshot() as connection:
            return {TaskState(row[0]).name: row[1] for row in connection.execute(query)}

    def task(self, id: int) -> TaskInfo:
        """Raises UsageError if there is no such task."""
        found = self.tasks(ids=[id])
        if not found:
            raise UsageError(f"there is no task {id} in {self._name}")
        return found[0]

    def _infos(self, connection: sa.Connection, found: Sequence[sa.Row[Any]]) -> list[TaskInfo]:
        ids = [row.id for row in found]
        needs: dict[int, list[int]] = {}
        tags: dict[int, dict[str, str]] = {}
        older: dict[int, list[AttemptInfo]] = {}
        edges, tag, attempts = schema.edges, schema.tags, schema.attempts
        for some in _chunks(ids):
            for row in connection.execute(sa.select(edges).where(edges.c.task.in_(some))
                                          .order_by(edges.c.task, edges.c.slot)):
                needs.setdefault(row.task, []).append(row.needs)
            for row in connection.execute(sa.select(tag).where(tag.c.task.in_(some)).order_by(tag.c.name)):
                tags.setdefault(row.task, {})[row.name] = row.value
            for row in connection.execute(sa.select(attempts).where(attempts.c.task.in_(some))
                                          .order_by(attempts.c.attempt)):
                older.setdefault(row.task, []).append(_attempt(row, row.returncode))
        return [self._info(row, needs.get(row.id, []), tags.get(row.id, {}), older.get(row.id, [])) for row in found]

    def _info(self, row: sa.Row[Any], needs: list[int], tags: dict[str, str], older: list[AttemptInfo]) -> TaskInfo:
        detail = _decode_detail(row.detail) if row.detail else Detail()
        extra = _decode_extra(row.extra) if row.extra else Extra()
        returncode = row.ran if detail.returncode is None else detail.returncode
        newest = [_attempt(row, returncode)] if row.attempt else []
        resources = (schema.fields_from_json(row.resources, Resources) if row.again is None
                     else _decode_resources(row.again))
        workdir = Path(detail.workdir or extra.workdir or default_workdir(row.id))
        if self._directory is not None:
            workdir = self._directory / "data" / workdir
        return TaskInfo(
            id=row.id, app=row.app_name or "", name=row.name, campaign=row.campaign_name or "",
            state=TaskState(row.state).name, tags=tags, parent=row.parent, needs=needs, submitted=row.submitted,
            started=row.started or None, ended=row.ended or None, pilot=row.pilot, place=row.place,
            returncode=returncode, error=row.error, reason=row.reason, root=row.root, failures=row.failures,
            attempts=older + newest, command=row.command, workdir=str(workdir),
            stdout=detail.stdout or extra.stdout, stderr=detail.stderr or extra.stderr,
            stdout_span=detail.stdout_span, stderr_span=detail.stderr_span,
            resources=msgspec.structs.asdict(resources),
            options=msgspec.structs.asdict(schema.fields_from_json(row.options, Options)),
            key=row.key.hex() if row.key else None, occurrence=row.occurrence, session=row.session)

    def result(self, id: int) -> object:
        """The value of a task that is done; raises what its future would: its exception, UpstreamFailed,
        TaskKilled, CancelledError.

        Raises UsageError if there is no such task or it is not over, SerializationError and the like where the value
        cannot be made of its bytes here.
        """
        with self._snapshot() as connection:
            row = connection.execute(sa.select(t.c.state, t.c.payload, t.c.error, t.c.root).where(t.c.id == id)).first()
        if row is None:
            raise UsageError(f"there is no task {id} in {self._name}")
        from balsamfut import serialize  # only who wants values needs cloudpickle
        payload = schema.unpack_payload(row.payload)
        match TaskState(row.state):
            case TaskState.DONE:
                return None if payload is None else serialize.loads(payload, self._read)
            case TaskState.FAILED:
                raise TaskError(row.error) if payload is None else self._exception(payload)
            case TaskState.UPSTREAM_FAILED:
                raise UpstreamFailed(row.error or f"task {id} needed task {row.root}, which did not succeed",
                                     task_id=row.root) from self._root(row.root)
            case TaskState.CANCELLED:
                if payload is not None:
                    raise self._exception(payload)
                raise TaskKilled(row.error) if row.error else CancelledError
            case state:
                raise UsageError(f"task {id} is not over: it is {state.name}")

    def _exception(self, payload: Payload) -> BaseException:
        from balsamfut import serialize
        return serialize.loads_exception(payload, self._read)

    def _root(self, id: int) -> BaseException | None:
        try:
            self.result(id)
        except UsageError:
            return None
        except BaseException as exc:
            return exc
        return None

    def _read(self, blob: Blob) -> bytes:
        if self._directory is None:
            raise UsageError(f"payloads of {self._name} are in files: open it with the directory of its site")
        from balsamfut import serialize
        return serialize.fetch(blob, self._directory / "objects")

    # ---- the rest

    def apps(self) -> list[AppInfo]:
        """By name, with the number of tasks of each."""
        a, k = schema.apps, schema.classes
        query = (sa.select(a, sa.func.count(t.c.id).label("number"))
                 .outerjoin(k, k.c.app == a.c.digest).outerjoin(t, t.c.cls == k.c.id)
                 .group_by(*a.c).order_by(a.c.name, a.c.digest))
        with self._snapshot() as connection:
            return [AppInfo(row.name, AppKind(row.kind).name, row.module, row.doc, row.digest.hex(), row.number)
                    for row in connection.execute(query)]

    def campaigns(self) -> list[CampaignInfo]:
        """In the order in which they were made."""
        counts: dict[int, dict[str, int]] = {}
        c = schema.campaigns
        with self._snapshot() as connection:
            for campaign, state, number in connection.execute(
                    sa.select(t.c.campaign, t.c.state, sa.func.count()).group_by(t.c.campaign, t.c.state)
                    .order_by(t.c.state)):
                counts.setdefault(campaign, {})[TaskState(state).name] = number
            return [CampaignInfo(row.id, row.name, bool(row.named), row.created, counts.get(row.id, {}))
                    for row in connection.execute(sa.select(c).order_by(c.c.id))]

    def newest_session(self, campaign: str) -> SessionInfo | None:
        """The newest run of a script in the campaign of that name; None where there is none."""
        s, c = schema.sessions, schema.campaigns
        query = (sa.select(s).join(c, c.c.id == s.c.campaign).where(c.c.name == campaign, s.c.parent == 0)
                 .order_by(s.c.id.desc()).limit(1))
        with self._snapshot() as connection:
            row = connection.execute(query).first()
        return None if row is None else SessionInfo(row.id, campaign, row.host, row.pid, row.opened, row.closed or None,
                                                    msgspec.json.decode(row.info or "{}", type=dict[str, str]))

    def events(self, task: int | None = None, limit: int | None = None) -> list[EventInfo]:
        """Of one task or of all, oldest first; with a limit the newest of them."""
        e = schema.events
        query = sa.select(e).order_by(e.c.id.desc()).limit(limit)
        with self._snapshot() as connection:
            found = connection.execute(query if task is None else query.where(e.c.task == task)).all()
        return [EventInfo(row.time, row.kind, row.task, row.pilot, row.text) for row in reversed(found)]

    def owner(self) -> OwnerInfo:
        """Whose the database is.  Raises SiteError."""
        with self._snapshot() as connection:
            return schema.owner(connection)

    def pilots(self) -> list[PilotInfo]:
        p = schema.pilots
        with self._snapshot() as connection:
            return [PilotInfo(row.id, row.host, row.pid, row.platform, row.nodes, row.started, row.ended or None,
                              row.reason) for row in connection.execute(sa.select(p).order_by(p.c.id))]

    def blocks(self, *, history: bool = False) -> list[BlockInfo]:
        """By id; history: also those that are over."""
        b = schema.blocks
        with self._snapshot() as connection:
            there = sa.inspect(connection)
            if not there.has_table("blocks"):     # an older version of the schema
                return []
            names = {column["name"] for column in there.get_columns("blocks")}
            query = sa.select(*(c if c.name in names else sa.literal("").label(c.name) for c in b.c)).order_by(b.c.id)
            found = connection.execute(query if history else query.where(b.c.ended == 0)).all()
        return [self._block(row) for row in found]

    def _block(self, row: sa.Row[Any]) -> BlockInfo:
        tags = msgspec.json.decode(row.tags or "{}", type=dict[str, str])
        parts = msgspec.json.decode(row.parts or "[]", type=list[Part])
        state = REMOVING if row.removal and not row.ended else BLOCK_STATES[row.state]
        return BlockInfo(
            row.id, state, row.provider, row.batch_id, row.queue, row.project, row.nodes,
            row.walltime, row.mode, msgspec.json.decode(row.params, type=dict[str, str]), row.submitted,
            row.started or None, row.ended or None, row.exit_code, row.text, tags, parts, row.why, row.note, row.token,
            *self._files(row.id, max(1, len(parts))))

    def _files(self, block: int, pilots: int) -> tuple[str, list[str]]:
        """Of a block: its job script and its pilots' logs, as far as they are there."""
        if self._directory is None:
            return "", []
        log = self._directory / "log"
        script, *logs = [log / f"block-{block}.sh", *(log / f"pilot-{block + index}.log" for index in range(pilots))]
        return str(script) if script.exists() else "", [str(path) for path in logs if path.exists()]

    def nodes(self, pilot: int | None = None, *, over: bool = False) -> list[NodeInfo]:
        """Of one pilot (None: of all), by pilot, those that are up last, then by name; over: also of pilots that are
        over (of one that is named, always)."""
        n, p = schema.nodes, schema.pilots
        query = sa.select(n, p.c.ended).outerjoin(p, p.c.id == n.c.pilot)
        if pilot is not None:
            query = query.where(n.c.pilot == pilot)
        elif not over:
            query = query.where(p.c.ended == 0)
        with self._snapshot() as connection:
            if not sa.inspect(connection).has_table("nodes"):      # an older version of the schema
                return []
            found = connection.execute(query.order_by(n.c.pilot, n.c.state.desc(), n.c.name)).all()
        return [NodeInfo(row.pilot, row.name, NodeState(row.state).name.lower(), row.since, row.reason,
                         bool(row.ended)) for row in found]


def _query() -> sa.Select[Any]:
    """All of a task but its payloads."""
    k, a, c = schema.classes, schema.apps, schema.campaigns
    plain = [column for column in t.c if column.name not in ("args", "payload", "joins")]
    return (sa.select(*plain, k.c.resources, k.c.options, a.c.name.label("app_name"), c.c.name.label("campaign_name"))
            .join(k, k.c.id == t.c.cls).outerjoin(a, a.c.digest == k.c.app).outerjoin(c, c.c.id == t.c.campaign))


def _conditions(state: str | TaskState | Iterable[str | TaskState] | None, app: str | None,
                tags: Mapping[str, str] | None, campaign: str | int | None) -> list[sa.ColumnElement[bool]]:
    k, a, c, one = schema.classes, schema.apps, schema.campaigns, schema.tags
    conditions: list[sa.ColumnElement[bool]] = []
    if state is not None:
        conditions.append(t.c.state.in_([s.value for s in _states(state)]))
    if app is not None:
        conditions.append(t.c.cls.in_(sa.select(k.c.id).join(a, a.c.digest == k.c.app).where(a.c.name == app)))
    for name, value in (tags or {}).items():
        conditions.append(t.c.id.in_(sa.select(one.c.task).where(one.c.name == name, one.c.value == value)))
    if campaign is not None:
        wanted = c.c.id == campaign if isinstance(campaign, int) else c.c.name == campaign
        conditions.append(t.c.campaign.in_(sa.select(c.c.id).where(wanted)))
    return conditions


def _attempt(row: sa.Row[Any], returncode: int | None) -> AttemptInfo:
    return AttemptInfo(row.attempt, row.pilot, row.place, row.started or None, row.ended or None,
                       Fault(row.fault).name.lower(), row.error, returncode)


def _states(given: str | TaskState | Iterable[str | TaskState]) -> list[TaskState]:
    names = [given] if isinstance(given, str | TaskState) else list(given)
    found = []
    for name in names:
        wanted = name.name if isinstance(name, TaskState) else name.upper()
        if wanted not in TaskState.__members__:
            close = difflib.get_close_matches(wanted, TaskState.__members__, n=2)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(TaskState.__members__)}"
            raise UsageError(f"there is no state {name}; {hint}")
        found.append(TaskState[wanted])
    return found


def _chunks(values: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(values), CHUNK):
        yield values[start:start + CHUNK]
