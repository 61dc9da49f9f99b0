"""Records as the brain makes them, for the tests of the store and of what reads its database."""

from __future__ import annotations

from typing import Any

from balsamfut.interchange.records import CampaignRow, SessionRow, Task, Writes
from balsamfut.messages import Detail
from balsamfut.model import (
    AppKind,
    AppSpec,
    Blob,
    Extra,
    Hook,
    Joined,
    Options,
    Pool,
    Resources,
    TaskClass,
    TaskSpec,
    TaskState,
)

APP = AppSpec("lammps", AppKind.COMMAND, b"a" * 16, Hook.POSTPROCESS | Hook.ON_ERROR, "decks", "Run one deck.")
POOL = Pool("/usr/bin/python3", ("/home/u", "/lib"), "/home/u", (("A", "1"),), Blob("f" * 64, 9), "nonce")
RESOURCES = Resources(num_nodes=2, gpu_shares=5000, launch_params=(("--cpu-bind", "none"),))
PLAIN = TaskClass(APP.digest, b"p" * 16, RESOURCES, Options(walltime=60.0, environment=(("OMP", "2"),)))
SHARING = TaskClass(APP.digest, b"p" * 16, Resources(), Options(cache=True))
MEMORY = ("missing", "deps", "dependents", "watchers")   # fields of a Task that no row has


def task(id: int, state: TaskState = TaskState.READY, **fields: Any) -> Task:
    """Task `id`, the call of the same number in session 1 of campaign 1 unless `fields` says otherwise."""
    spec = {"n": id, "cls": fields.get("cls", 1)}
    spec |= {name: fields.pop(name) for name in TaskSpec.__struct_fields__ if name in fields and name != "cls"}
    made = Task(id, fields.pop("campaign", 1), fields.pop("session", 1), fields.pop("parent", 0), fields.pop("cls", 1),
                TaskSpec(**spec), state, fields.pop("submitted", 100.0 + id))
    for name, value in fields.items():
        setattr(made, name, value)
    made.dirty = True
    return made


def unusual(id: int) -> Task:
    """A task that has something in every column."""
    return task(
        id, TaskState.UPSTREAM_FAILED, parent=7, cls=2, args=Blob("ab" * 32, 70_000), key=b"k" * 16, occurrence=3,
        extra=Extra(name="deck 1", tags=(("run", "a"), ("seed", "1")), workdir="w/1", command="lmp -in deck"),
        attempt=3, failures=1, losses=2, pilot=4, place="n0:1-8/0.0", started=200.5, ended=201.25, fault=3,
        error="too late", payload=Joined(b"template", [b"x", Blob("cd" * 32, 5), Joined(b"", [])]), root=5,
        reason="held once", again=Resources(num_nodes=3), ran=2, joins=(5, 6),
        detail=Detail(returncode=2, host="n0", stdout="/w/1/job.out"))


def fields_of(made: Task) -> dict[str, Any]:
    """Everything of a task that has to be the same after it was stored and loaded."""
    return {name: getattr(made, name) for name in Task.__struct_fields__ if name not in MEMORY}


def surroundings() -> Writes:
    """What the tasks refer to."""
    return Writes(
        campaigns=[CampaignRow(1, "scan7", 50.0, True), CampaignRow(2, "", 60.0, False)],
        sessions=[SessionRow(1, "token-1", 1, 0, "login1", 11, 51.0, info={"cwd": "/home/u"}),
                  SessionRow(2, "token-2", 2, 0, "login1", 12, 61.0)],
        apps=[APP], codes=[(APP.digest, b"code")], pools=[(b"p" * 16, POOL)], classes=[(1, PLAIN), (2, SHARING)])
