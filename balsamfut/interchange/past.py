"""What a site's earlier blocks were: how long they waited, and what they used.  Reads one table."""

from __future__ import annotations

import sqlalchemy as sa

from balsamfut import schema
from balsamfut.interchange.records import Past
from balsamfut.interchange.waits import LATEST, Wait


def load(connection: sa.Connection) -> Past:
    """Of all blocks that have started, whoever asked for them."""
    b = schema.blocks.c
    newest = sa.select(b.queue, b.nodes, b.walltime, b.submitted, b.started).where(b.started > 0)
    waits = [Wait(row.queue, row.nodes, row.walltime, max(0.0, row.started - row.submitted), row.started)
             for row in connection.execute(newest.order_by(b.id.desc()).limit(LATEST))]
    used = sa.select(sa.func.sum(b.nodes * (b.ended - b.started))).where(b.started > 0, b.ended > 0)
    return Past(waits[::-1], float(connection.execute(used).scalar() or 0.0))
