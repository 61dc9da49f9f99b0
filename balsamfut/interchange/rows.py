"""Records to rows of the database and back: what a column holds of a Task, and in which order the statements take it.

Beside schema.py (the columns) this is the one place that knows both sides.  It runs no statement.
The functions for rows of `tasks` are called for every task and every change of one: they cost about a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from balsamfut import schema
from balsamfut.interchange.records import BlockRow, CampaignRow, EventRow, PilotRow, SessionRow, Task
from balsamfut.messages import Detail
from balsamfut.model import (
    AppKind,
    AppSpec,
    Extra,
    Hook,
    Options,
    Payload,
    Pool,
    Resources,
    TaskClass,
    TaskSpec,
    TaskState,
)
from balsamfut.queuemessages import Part
from balsamfut.schema import clean, pack_payload, unpack_payload

_pack = msgspec.msgpack.Encoder().encode
_decode_extra = msgspec.msgpack.Decoder(Extra).decode
_decode_detail = msgspec.msgpack.Decoder(Detail).decode
_decode_resources = msgspec.msgpack.Decoder(Resources).decode
_decode_ids = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_decode_pool = msgspec.msgpack.Decoder(Pool).decode

_DONE: Final = int(TaskState.DONE)
_ASSIGNED: Final = int(TaskState.ASSIGNED)
_STATES: Final = {int(state): state for state in TaskState}
_TASK: Final = tuple(column.name for column in schema.tasks.c)
NEW: Final = (*_TASK[:_TASK.index("failures")], "pilot")        # what a task has that was just submitted and assigned
NEWEST: Final = ("cls", *_TASK[_TASK.index("state"):], "which_id")   # what changes
ASSIGNED: Final = ("state", "attempt", "pilot", "which_first", "which_last")   # what a first assignment changes
DONE: Final = ("state", "attempt", "pilot", "place", "started", "ended", "payload", "which_id")   # a plain success
EVENT: Final = ("time", "kind", "task", "pilot", "text")
later = attrgetter("failures", "losses", "place", "started", "ended", "fault", "error", "payload", "root", "reason",
                    "again", "ran", "detail", "joins")
NOTHING_LATER: Final = (0, 0, "", 0.0, 0.0, 0, "", None, 0, "", None, None, None, None)


def new_row(t: Task) -> tuple[Any, ...]:
    s = t.spec
    x = s.extra
    if x is None:
        name = workdir = ""
        command = extra = None
    else:
        name, workdir, extra = clean(x.name), clean(x.workdir), _pack(x)
        command = None if x.command is None else clean(x.command)
    return (t.id, t.campaign, t.session, s.n, t.parent, t.cls, s.key, s.occurrence, name, workdir, command,
            pack_payload(s.args), extra, t.submitted, int(t.state), t.attempt, t.pilot)


def newest_row(t: Task) -> tuple[Any, ...]:
    error, reason = t.error, t.reason
    return (t.cls, int(t.state), t.attempt, t.failures, t.losses, t.pilot, t.place, t.started, t.ended, int(t.fault),
            clean(error) if error else "", pack_payload(t.payload), t.root, clean(reason) if reason else "",
            None if t.again is None else _pack(t.again), t.ran, None if t.detail is None else _pack(t.detail),
            None if t.joins is None else _pack(t.joins), t.id)


def done_row(t: Task) -> tuple[Any, ...]:
    payload = t.payload
    return (_DONE, t.attempt, t.pilot, t.place, t.started, t.ended,
            payload if payload.__class__ is bytes else pack_payload(payload), t.id)


def assigned_rows(tasks: list[Task]) -> list[tuple[int, int, int, int, int]]:
    """First assignments, as runs of tasks with consecutive ids: a thousand tasks are one statement."""
    runs: list[list[int]] = []
    for t in tasks:
        if runs and runs[-1][1] == t.id - 1 and runs[-1][2] == t.pilot:
            runs[-1][1] = t.id
        else:
            runs.append([t.id, t.id, t.pilot])
    return [(_ASSIGNED, 1, pilot, first, last) for first, last, pilot in runs]


def task_from(row: Sequence[Any], needs: tuple[int, ...]) -> Task:
    (id, campaign, session, n, parent, cls, key, occurrence, _name, _workdir, _command, args, extra, submitted,
     state, attempt, failures, losses, pilot, place, started, ended, fault, error, payload, root, reason,
     again, ran, detail, joins) = row
    spec = TaskSpec(n, cls, unpack_payload(args), needs, key, occurrence,
                    None if extra is None else _decode_extra(extra))
    t = Task(id, campaign, session, parent, cls, spec, _STATES[state], submitted)
    t.attempt, t.failures, t.losses, t.pilot, t.place = attempt, failures, losses, pilot, place
    t.started, t.ended, t.fault, t.error, t.payload = started, ended, fault, error, unpack_payload(payload)
    t.root, t.reason, t.ran = root, reason, ran
    t.again = None if again is None else _decode_resources(again)
    t.detail = None if detail is None else _decode_detail(detail)
    t.joins = None if joins is None else _decode_ids(joins)
    t.stored = True
    return t


def _class_row(item: tuple[int, TaskClass]) -> tuple[Any, ...]:
    number, cls = item
    return (number, cls.app, cls.pool, schema.fields_to_json(cls.resources), schema.fields_to_json(cls.options),
            int(cls.options.cache))


def _json(value: dict[str, str] | list[Part]) -> str:
    return clean(msgspec.json.encode(value).decode()) if value else ""


def _session_row(r: SessionRow) -> tuple[Any, ...]:
    return (r.id, r.token, r.campaign, r.parent, clean(r.host), r.pid, r.opened, r.closed,
            clean(msgspec.json.encode(r.info).decode()))


FEW: Final[dict[str, tuple[sa.Table, Callable[[Any], tuple[Any, ...]]]]] = {
    # field of Writes: where it goes, in this order, and how
    "campaigns": (schema.campaigns, lambda r: (r.id, clean(r.name), r.created, int(r.named))),
    "sessions": (schema.sessions, _session_row),
    "pilots": (schema.pilots, lambda r: (r.id, r.token, clean(r.host), r.pid, r.platform, r.nodes, r.started, r.ended,
                                         clean(r.reason))),
    "blocks": (schema.blocks, lambda r: (r.id, r.token, r.provider, clean(r.batch_id), clean(r.queue), clean(r.project),
                                         r.nodes, r.walltime, r.mode, clean(msgspec.json.encode(r.params).decode()),
                                         int(r.state), clean(r.text), r.submitted, r.started, r.ended, r.exit_code,
                                         _json(r.tags), _json(r.parts), clean(r.why), r.removal,
                                         clean(r.note))),
    "nodes": (schema.nodes, lambda r: (r.pilot, clean(r.name), int(r.state), clean(r.reason), r.since)),
    "apps": (schema.apps, lambda a: (a.digest, clean(a.name), int(a.kind), int(a.hooks), clean(a.module),
                                     clean(a.doc))),
    "codes": (schema.codes, lambda c: (c[0], pack_payload(c[1]))),
    "pools": (schema.pools, lambda p: (p[0], clean(p[1].python), clean(p[1].cwd), _pack(p[1]))),
    "classes": (schema.classes, _class_row),
    "attempts": (schema.attempts, lambda r: (r.task, r.attempt, r.pilot, r.place, r.started, r.ended, int(r.fault),
                                             clean(r.error), r.returncode)),
}


def event_row(e: EventRow) -> tuple[Any, ...]:
    return (e.time, e.kind, e.task, e.pilot, clean(e.text))


def tag_rows(tasks: list[Task]) -> list[tuple[int, str, str]]:
    return [(t.id, clean(name), clean(value)) for t in tasks if t.spec.extra is not None
            for name, value in dict(t.spec.extra.tags).items()]


# ---- and back, for what is few


def class_from(row: Sequence[Any]) -> tuple[int, TaskClass]:
    number, app, pool, resources, options, _cached = row
    return number, TaskClass(app, pool, schema.fields_from_json(resources, Resources),
                             schema.fields_from_json(options, Options))


def app_from(row: Sequence[Any]) -> AppSpec:
    digest, name, kind, hooks, module, doc = row
    return AppSpec(name, AppKind(kind), digest, Hook(hooks), module, doc)


def campaign_from(row: Sequence[Any]) -> CampaignRow:
    id, name, created, named = row
    return CampaignRow(id, name, created, bool(named))


def session_from(row: Sequence[Any]) -> SessionRow:
    id, token, campaign, parent, host, pid, opened, closed, info = row
    return SessionRow(id, token, campaign, parent, host, pid, opened, closed,
                      msgspec.json.decode(info, type=dict[str, str]))


def pilot_from(row: Sequence[Any]) -> PilotRow:
    return PilotRow(*row)


def block_from(row: Sequence[Any]) -> BlockRow:
    values = list(row)
    values[9] = msgspec.json.decode(row[9], type=dict[str, str])
    values[16] = msgspec.json.decode(row[16] or "{}", type=dict[str, str])
    values[17] = msgspec.json.decode(row[17] or "[]", type=list[Part])
    return BlockRow(*values)


def pool_from(row: Sequence[Any]) -> tuple[bytes, Pool]:
    digest, _python, _cwd, pool = row
    return digest, _decode_pool(pool)


def code_from(row: Sequence[Any]) -> tuple[bytes, Payload]:
    return row[0], unpack_payload(row[1]) or b""
