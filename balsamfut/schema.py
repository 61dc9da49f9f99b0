"""The tables of a site's database, their version, and how values become columns.

interchange/store.py writes them and query.py reads them; both open databases through `engine`.  One row of `tasks` is
a task and its newest attempt, so that a task which simply succeeds costs one row; attempts that were replaced, edges,
tags and events have tables of their own.  What people may ask for in SQL (name, command, tags, times) are plain
columns; what only we read is msgpack.  This module knows nothing of processes or messages on the wire.

Payloads: plain bytes are stored as they are.  A Blob or Joined (or bytes that happen to begin like one) is stored as
MARK + msgpack; MARK begins with a byte that neither msgpack nor a pickle begins with.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy import Column, Float, Index, Integer, LargeBinary, SmallInteger, Table, Text

from balsamfut.errors import DatabaseTooNew, SettingsError
from balsamfut.infos import OwnerInfo
from balsamfut.model import Payload

VERSION: Final = 6
"""Of the schema: changes with any change of a table.  A newer one in a file is refused (errors.DatabaseTooNew)."""

UPGRADES: Final[dict[int, Callable[[sa.Connection], None]]] = {}
"""By version: what makes the next version's tables of it, in the transaction that takes the database over."""

metadata = sa.MetaData()
_Id = sa.BigInteger().with_variant(Integer, "sqlite")   # SQLite's own row numbers are INTEGER only


def _int(name: str, default: int | None = 0) -> Column[int]:
    return Column(name, _Id, nullable=default is None, server_default=None if default is None else str(default))


def _id(name: str) -> Column[int]:
    return Column(name, _Id, primary_key=True, autoincrement=False)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def _time(name: str) -> Column[float]:   # Unix time in seconds; 0: not yet
    return Column(name, Float, nullable=False, server_default="0")


meta = Table(
    "meta", metadata,
    _id("one"),            # 1: there is one row
    _int("version"),       # VERSION of who made or upgraded it; this column stays in all versions
    _int("epoch"),         # counts the owners; every transaction of an owner looks whether it is still its own
    _int("turn"),          # counts the transactions of this owner, where the answer to a commit can get lost
    _text("site"),         # uuid
    _time("created"),
    _text("host"), _int("pid"), _time("since"),   # of the owner
    _time("beat"),         # changes again and again as long as the owner lives, by its own clock
)

campaigns = Table(
    "campaigns", metadata,
    _id("id"), _text("name"), _time("created"),
    _int("named"),         # 1: by the user
    Index("campaigns_name", "name"),
)

sessions = Table(
    "sessions", metadata,
    _id("id"), Column("token", Text, nullable=False, unique=True), _int("campaign"), _int("parent"),
    _text("host"), _int("pid"), _time("opened"), _time("closed"),
    _text("info"),         # JSON: interpreter, cwd, argv ...
    Index("sessions_open", "closed"),
)

apps = Table(
    "apps", metadata,
    Column("digest", LargeBinary, primary_key=True),
    _text("name"), _int("kind"), _int("hooks"), _text("module"), _text("doc"),
)

codes = Table("codes", metadata, Column("digest", LargeBinary, primary_key=True), Column("code", LargeBinary))

pools = Table(
    "pools", metadata,
    Column("digest", LargeBinary, primary_key=True),
    _text("python"), _text("cwd"),
    Column("pool", LargeBinary),   # msgpack of model.Pool
)

classes = Table(
    "classes", metadata,
    _id("id"), Column("app", LargeBinary), Column("pool", LargeBinary),
    _text("resources"), _text("options"),   # JSON objects of model.Resources and model.Options
    _int("cached"),                         # 1: options.cache
    Index("classes_app", "app"),
)

tasks = Table(
    "tasks", metadata,
    _id("id"), _int("campaign"), _int("session"), _int("n"), _int("parent"), _int("cls"),
    Column("key", LargeBinary), _int("occurrence"),
    _text("name"), _text("workdir"), Column("command", Text),      # of spec.extra, for people
    Column("args", LargeBinary), Column("extra", LargeBinary),     # payload; msgpack of model.Extra
    _time("submitted"),
    # from here on the newest attempt and the end
    Column("state", SmallInteger, nullable=False), _int("attempt"), _int("failures"), _int("losses"), _int("pilot"),
    _text("place"), _time("started"), _time("ended"), _int("fault"), _text("error"), Column("payload", LargeBinary),
    _int("root"), _text("reason"),
    Column("again", LargeBinary), _int("ran", None), Column("detail", LargeBinary), Column("joins", LargeBinary),
    Index("tasks_call", "session", "n", unique=True),
    # None on state: it would cost a quarter of what a task costs here, and is wanted once, when an interchange starts.
    Index("tasks_parent", "parent"),
)
# Keys lead, so that one index serves the calls of a campaign and the results shared between campaigns.
Index("tasks_key", tasks.c.key, tasks.c.campaign, tasks.c.parent, tasks.c.occurrence, unique=True)


@sa.event.listens_for(tasks, "before_create")
def _of_some_rows(table: sa.Table, connection: sa.Connection, **more: Any) -> None:
    """Said for the database at hand, when the tables are made: to name PostgreSQL above loads its dialect, 30 ms."""
    some = {"tasks_parent": table.c.parent > 0, "tasks_key": table.c.key.is_not(None)}
    for index in table.indexes:
        if index.name in some:
            index.dialect_kwargs[f"{connection.dialect.name}_where"] = some[str(index.name)]


edges = Table(
    "edges", metadata,
    _id("task"), _id("slot"), _int("needs"), sqlite_with_rowid=False,
)

attempts = Table(
    "attempts", metadata,
    _id("task"), _id("attempt"), _int("pilot"), _text("place"), _time("started"), _time("ended"), _int("fault"),
    _text("error"), _int("returncode", None),
)

tags = Table(
    "tags", metadata,
    _id("task"), Column("name", Text, primary_key=True), _text("value"),
    Index("tags_value", "name", "value"), sqlite_with_rowid=False,
)

events = Table(
    "events", metadata,
    Column("id", _Id, primary_key=True), _time("time"), _text("kind"), _int("task"), _int("pilot"), _text("text"),
    Index("events_task", "task"),
)

pilots = Table(
    "pilots", metadata,
    _id("id"), _text("token"), _text("host"), _int("pid"), _text("platform"), _int("nodes"), _time("started"),
    _time("ended"), _text("reason"),
    Index("pilots_open", "ended"),
)

blocks = Table(
    "blocks", metadata,
    _id("id"),             # of its pilot too
    _text("token"), _text("provider"),
    _text("batch_id"),     # the batch system's own; "": not known (yet)
    _text("queue"), _text("project"), _int("nodes"), _time("walltime"),   # seconds
    _text("mode"),         # which tasks it takes: any, mpi or serial
    _text("params"),       # JSON object: what else was asked for
    _int("state"),         # provider.base.BlockState
    _text("text"),         # the batch system's words
    _time("submitted"), _time("started"), _time("ended"), _int("exit_code", None),
    _text("tags"),         # JSON object: only tasks that have them; "": whatever tags they have
    _text("parts"),        # JSON array of queuemessages.Part; "": it is not split
    _text("why"),          # of the elastic queue: why it was asked for; "": a person asked
    _time("removal"),      # somebody wants its end: from when on the batch system is asked for it; 0: nobody does
    _text("note"),         # what we have to say beside that: its pilot is not there, how its output ends
    Index("blocks_open", "ended"),
)

nodes = Table(
    "nodes", metadata,
    _id("pilot"), Column("name", Text, primary_key=True),
    _int("state"),         # messages.NodeState
    _text("reason"), _time("since"), sqlite_with_rowid=False,
)
UPGRADES[1] = nodes.create
UPGRADES[2] = blocks.create


def _widen(connection: sa.Connection) -> None:
    """Columns that later versions added, where the table was not made by this version on the way here."""
    for table in (meta, blocks):
        there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.c:
            if column.name not in there:
                made = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {made}"))


UPGRADES[3] = UPGRADES[4] = UPGRADES[5] = _widen

# ---- values


MARK: Final = b"\xc1balsamfut\n"
_encode = msgspec.msgpack.Encoder().encode
_decode_payload = msgspec.msgpack.Decoder(Payload).decode
S = TypeVar("S", bound=msgspec.Struct)


def pack_payload(payload: Payload | None) -> bytes | None:
    if payload is None or (type(payload) is bytes and not payload.startswith(MARK)):
        return payload
    return MARK + _encode(payload)


def unpack_payload(data: bytes | None) -> Payload | None:
    if data is None or not data.startswith(MARK):
        return data
    return cast(Payload, _decode_payload(data[len(MARK):]))


def fields_to_json(struct: msgspec.Struct) -> str:
    """A JSON object, by the names of the fields: it may be read by people, and by versions that know other fields."""
    return msgspec.json.encode({name: getattr(struct, name) for name in struct.__struct_fields__}).decode()


def fields_from_json(text: str, kind: type[S]) -> S:
    found = msgspec.json.decode(text)
    plain = kind()
    values = [found.get(name, getattr(plain, name)) for name in kind.__struct_fields__]
    return msgspec.convert(msgspec.to_builtins(values), kind)


def clean(text: str) -> str:
    """Text as every database takes it: no NUL, and no halves of characters (from undecodable file names)."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


# ---- opening


def database_url(database: str | os.PathLike[str]) -> sa.URL:
    """The URL of a database that a user named: a path is an SQLite file.  Raises SettingsError."""
    text = os.fspath(database)
    if "://" not in text:
        return sa.URL.create("sqlite", database=str(Path(text).absolute()))
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):   # ValueError: a port that is no number
        raise SettingsError(f"{text.partition(':')[0]}://... is not a database URL; right would be a path, or "
                            "postgresql://user@host/name") from None
    backend = url.get_backend_name() if url.drivername.partition("+")[0] != "postgres" else "postgresql"
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise SettingsError(f"{text} names no file; right would be sqlite:///path")
        return url.set(drivername="sqlite")
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    raise SettingsError(f"{backend} databases are not supported; right would be a path or sqlite:///path (SQLite), "
                        "or postgresql://user@host/name")


def engine(url: sa.URL, *, timeout: float) -> sa.Engine:
    """An engine without idle connections, with positional parameters, so that a tuple of values fits both drivers.

    timeout (seconds): how long a statement waits for another's lock (SQLite), or a connection for the server.
    """
    if url.get_backend_name() == "sqlite":
        return sa.create_engine(url, poolclass=sa.NullPool, connect_args={
            "timeout": timeout, "isolation_level": None, "check_same_thread": False})
    try:
        return sa.create_engine(url, poolclass=sa.NullPool, paramstyle="format", connect_args={
            "connect_timeout": max(2, int(timeout)), "application_name": "balsamfut"})
    except ModuleNotFoundError:
        raise SettingsError("a PostgreSQL database needs psycopg; install it with: pip install 'balsamfut[postgres]'"
                            ) from None


def sqlite_read_only(url: sa.URL) -> sa.URL:
    """The same file, opened so that nothing is ever written to it."""
    path = Path(cast(str, url.database)).absolute().as_uri()
    return url.set(database=path, query={"mode": "ro", "uri": "true"})


def name_of(url: sa.URL) -> str:
    """For people: the path, or the URL without the password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def found_version(connection: sa.Connection, name: str) -> int:
    """The schema version that is there; 0: no tables of ours.  Raises DatabaseTooNew."""
    if not sa.inspect(connection).has_table("meta"):
        return 0
    found = int(connection.execute(sa.select(meta.c.version)).scalar() or 0)
    if found > VERSION:
        raise DatabaseTooNew(
            f"the database {name} has schema version {found}, and this balsamfut knows versions up to {VERSION}: use "
            "the balsamfut that made it, or a newer one; nothing was changed")
    return found


def owner(connection: sa.Connection) -> OwnerInfo:
    """Whose the database is; it has tables of ours."""
    there = {column["name"] for column in sa.inspect(connection).get_columns("meta")}
    beat = meta.c.beat if "beat" in there else sa.literal(0.0)      # an older version of the schema has none
    row = connection.execute(sa.select(meta.c.epoch, beat, meta.c.host, meta.c.pid, meta.c.since)).one()
    return OwnerInfo(*row)


def reason(error: Exception) -> str:
    """What the driver said, on one line."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    return text + " (another process is using it)" if "is locked" in text else text


def driver_sql(statement: Any, names: tuple[str, ...], dialect: sa.Dialect) -> str:
    """A statement of Core, compiled once, for driver-level calls with tuples of values in the order of `names`."""
    compiled = statement.compile(dialect=dialect, column_keys=[n for n in names if not n.startswith("which_")])
    order = tuple(compiled.positiontup)
    if order != names:
        raise AssertionError(f"parameters are {order}, not {names}")
    return str(compiled)
