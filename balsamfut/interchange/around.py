"""What tasks refer to, read when it is wanted: campaigns, sessions, classes, apps, code, pools.  Never writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from balsamfut import schema
from balsamfut.interchange import rows
from balsamfut.interchange.records import Around, CampaignRow, Lacking, SessionRow

V = TypeVar("V")
CHUNK: Final = 500      # values in one IN list: below every database's limit


def load(connection: sa.Connection, lacking: Lacking) -> Around:
    """By numbers; classes with what they refer to in turn."""
    def those(column: sa.Column[Any], wanted: Iterable[Any], make: Callable[[Sequence[Any]], V]) -> list[V]:
        return [make(tuple(row)) for some in chunks(sorted(wanted))
                for row in connection.execute(sa.select(column.table).where(column.in_(some)))]

    classes = those(schema.classes.c.id, lacking.classes, rows.class_from)
    apps = {spec.app for _, spec in classes}
    return Around(
        campaigns=those(schema.campaigns.c.id, lacking.campaigns, rows.campaign_from),
        sessions=those(schema.sessions.c.id, lacking.sessions, rows.session_from), classes=classes,
        apps=those(schema.apps.c.digest, apps, rows.app_from),
        codes=those(schema.codes.c.digest, apps, rows.code_from),
        pools=those(schema.pools.c.digest, {spec.pool for _, spec in classes}, rows.pool_from))


def session(connection: sa.Connection, token: str) -> SessionRow | None:
    """The session that has, or had, this token."""
    found = connection.execute(sa.select(schema.sessions).where(schema.sessions.c.token == token)).first()
    return None if found is None else rows.session_from(tuple(found))


def campaign(connection: sa.Connection, name: str) -> list[CampaignRow]:
    """The campaign of this name, if there is one."""
    found = connection.execute(sa.select(schema.campaigns).where(schema.campaigns.c.name == name))
    return [rows.campaign_from(tuple(row)) for row in found]


def chunks(values: Sequence[V]) -> Iterator[list[V]]:
    for start in range(0, len(values), CHUNK):
        yield list(values[start:start + CHUNK])
