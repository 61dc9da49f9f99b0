"""How a site's database is opened, which its file system decides.

On a disk of this machine SQLite has a write-ahead log.  That shares memory between processes, which a network file
system cannot do: there it has a journal instead, and locks for each transaction, so that others still can read, and
another host can take over.  Knows no table but the one that says the version, and nothing of what is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from balsamfut import schema
from balsamfut.interchange import mounts


def prepare(url: sa.URL, timeout: float) -> str:
    """Look at an SQLite file, made if it is not there, before anything is written.

    Returns the type of its file system if that is a network's, else "".  Raises DatabaseTooNew and the driver's errors.
    """
    path = Path(str(url.database))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))   # SQLite gives the files beside it the same mode
    kind = mounts.here(path)
    network = kind if mounts.network(kind) else ""
    if path.stat().st_size:
        # Opening read-only maps shared memory if the file was last used with a write-ahead log.
        alone = network and has_log(path)
        reader = schema.engine(url if alone else schema.sqlite_read_only(url), timeout=timeout)
        if alone:
            sa.event.listen(reader, "connect", lambda c, _: c.execute("PRAGMA locking_mode=EXCLUSIVE"))
        with reader.connect() as connection:
            schema.found_version(connection, schema.name_of(url))
    return network


def has_log(path: Path) -> bool:
    """Whether an SQLite file was last used with a write-ahead log."""
    with path.open("rb") as file:
        return file.read(20)[18:20] == b"\2\2"     # the versions of the format that writers and readers need


def settings(url: sa.URL, network: str, *, full: bool, notice: Callable[[str], None]) -> Callable[[Any, Any], None]:
    """What each new connection is told.  full: commits survive the loss of the machine.  notice: is told what people
    should know about how this database has to be used."""
    name = schema.name_of(url)

    def sqlite(connection: Any, record: Any) -> None:
        mode = "delete"
        if not network:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            # The first pragma is for a file that has had a log: that one is taken in without sharing memory.
            for pragma in ("locking_mode=EXCLUSIVE", "mmap_size=0", "journal_mode=TRUNCATE", "locking_mode=NORMAL"):
                connection.execute(f"PRAGMA {pragma}")
            where = network or "a file system without shared memory"
            notice(f"the database {name} is on {where}: no write-ahead log, so commits are slower, and wait for those "
                   "who read")
        # 64 MB of pages: the index of keys is written all over; fewer checkpoints write a page of it less often.
        for pragma in (f"synchronous={'FULL' if full else 'NORMAL'}", "cache_size=-65536", "wal_autocheckpoint=4000"):
            connection.execute(f"PRAGMA {pragma}")

    def postgresql(connection: Any, record: Any) -> None:
        if full:
            connection.execute("SET synchronous_commit = on")
            connection.commit()

    return sqlite if url.get_backend_name() == "sqlite" else postgresql


def disconnect_others(connection: sa.Connection) -> None:
    """PostgreSQL: end the sessions that hold a lock on the owner's row.

    A host that has vanished, or stopped, in the middle of a transaction would hold it until the server notices: hours.
    """
    connection.execute(sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'meta'::regclass "
        "AND mode = 'RowExclusiveLock' AND pid <> pg_backend_pid()"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"))
