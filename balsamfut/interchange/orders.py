"""What pilots are told: work, with what it refers to, orders to kill, acknowledgements.  Part of the brain: pure."""

from __future__ import annotations

from typing import Final

from balsamfut.interchange.book import Book, Pilot
from balsamfut.messages import Item, Kill, Launch, Received

UNACKNOWLEDGED: Final = 64
"""Reports are acknowledged with whatever else a pilot is told, by the next tick, or when there are so many."""


def flush(book: Book, pilot: Pilot) -> None:
    """Queue what this turn has for a pilot: orders to kill, work, and the acknowledgement of its reports."""
    sent = bool(pilot.launches or pilot.kills)
    if pilot.launches:
        book.send_pilot(pilot, launch(book, pilot))
    if pilot.kills:
        book.send_pilot(pilot, Kill(pilot.kills))
        pilot.kills = []
    if pilot.seq > pilot.acknowledged and (
            sent or pilot.stopping or pilot.acknowledged < 0 or pilot.seq - pilot.acknowledged >= UNACKNOWLEDGED):
        book.send_pilot(pilot, Received(pilot.seq))
        pilot.acknowledged = pilot.seq


def launch(book: Book, pilot: Pilot) -> Launch:
    """The message for what was assigned to a pilot in this turn, with what it has not been told."""
    message = Launch(items := [])
    for task in pilot.launches:
        if task.cls not in pilot.classes:
            _tell_class(book, pilot, task.cls, message)
        values = [dep.payload for dep in task.deps if dep.payload is not None] if task.deps else []
        items.append(Item(task.id, task.attempt, task.cls, task.spec, values, task.again, task.ran, task.failures))
    pilot.launches = []
    return message


def _tell_class(book: Book, pilot: Pilot, cls: int, message: Launch) -> None:
    info = book.classes[cls]
    pilot.classes.add(cls)
    message.classes.append((cls, info.spec))
    if info.spec.app not in pilot.apps:
        pilot.apps.add(info.spec.app)
        message.apps.append(info.app)
        code = book.codes.get(info.spec.app)
        if code is not None:
            message.codes.append((info.spec.app, code))
    if info.spec.pool not in pilot.pools and info.spec.pool in book.pools:
        pilot.pools.add(info.spec.pool)
        message.pools.append((info.spec.pool, book.pools[info.spec.pool]))


def announce(book: Book, pilot: Pilot, pool: bytes) -> None:
    """Tell a pilot that calls of this pool will come, for its workers take longer to start than most calls to run."""
    known = book.pools.get(pool)
    if known is not None and pool not in pilot.pools and not pilot.stopping and known.initializer is None:
        pilot.pools.add(pool)
        book.send_pilot(pilot, Launch([], pools=[(pool, known)]))
