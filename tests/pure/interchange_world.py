"""A pretend world around the interchange's brain: a database that forgets nothing committed, a client, pilots."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

from balsamfut import platforms
from balsamfut.interchange.book import Session
from balsamfut.interchange.core import Core, Turn
from balsamfut.interchange.records import Around, Lacking, Task, World, Writes
from balsamfut.interchange.requests import Found, Wanted
from balsamfut.interchange.sessions import Config, Shape
from balsamfut.messages import (
    PROTOCOL,
    Accepted,
    Answer,
    Beat,
    Cancel,
    Enrol,
    Enrolled,
    Exited,
    Fault,
    Hello,
    Item,
    Kill,
    KillTasks,
    Launch,
    Message,
    PilotBeat,
    Received,
    Reports,
    Return,
    Settled,
    Started,
    Submit,
)
from balsamfut.model import CLOSED, AppKind, AppSpec, Options, Pool, Resources, TaskClass, TaskSpec, TaskState
from balsamfut.provider.recipe import Recipe

CONFIG = Config(embedded=True, epoch=1, data="/data", objects="/objects", inline=65536, linger=1e9,
                recipe=Recipe(Path("/site"), platforms.load("workstation"), "local"),
                usual=Shape("workstation", 1, 2), first=Shape("workstation", 1, 2))
MEMORY = ("missing", "deps", "dependents", "watchers", "stored", "dirty", "whole", "queued")
KEPT = [name for name in Task.__struct_fields__ if name not in MEMORY]


class Database:
    """What the real store does, with dicts."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, object]] = {}
        self.world = World()
        self.around = Around()

    def commit(self, writes: Writes) -> None:
        for task in writes.tasks:
            self.rows[task.id] = {name: copy.copy(getattr(task, name)) for name in KEPT}
            task.stored, task.dirty = True, False
        world, around = self.world, self.around
        around.classes += writes.classes
        around.apps += writes.apps
        around.codes += writes.codes
        around.pools += writes.pools
        for rows, mine in ((writes.campaigns, around.campaigns), (writes.sessions, around.sessions),
                           (writes.pilots, world.pilots)):
            for row in rows:
                mine[:] = [old for old in mine if old.id != row.id] + [copy.copy(row)]

    def task(self, number: int) -> Task:
        row = self.rows[number]
        task = Task(row["id"], row["campaign"], row["session"], row["parent"], row["cls"], row["spec"],  # type: ignore[arg-type]
                    row["state"], row["submitted"])  # type: ignore[arg-type]
        for name, value in row.items():
            setattr(task, name, value)
        task.stored = True
        return task

    def load_world(self) -> World:
        world = copy.deepcopy(self.world)
        world.pilots = [row for row in world.pilots if not row.ended]
        world.next_task = max(self.rows, default=0) + 1
        world.next_session = max((row.id for row in self.around.sessions), default=0) + 1
        world.next_campaign = max((row.id for row in self.around.campaigns), default=0) + 1
        world.next_pilot = max((row.id for row in self.world.pilots), default=0) + 1
        world.next_class = max((number for number, _ in self.around.classes), default=0) + 1
        return world

    def read(self, want: Wanted) -> Found:
        found = Found()
        ids = set(want.tasks) & set(self.rows)
        if want.campaign is not None:
            wanted = set(TaskState) - CLOSED
            if want.retry_failed:
                wanted |= {TaskState.FAILED, TaskState.UPSTREAM_FAILED}
            mine = [i for i, row in self.rows.items() if row["state"] in wanted
                    and want.campaign in (0, row["campaign"])]
            for i in mine:
                row = self.rows[i]
                ids |= {i, *row["spec"].needs, *(row["joins"] or ())}  # type: ignore[attr-defined,misc]
        found.tasks = [self.task(i) for i in sorted(ids)]
        found.session = next((copy.deepcopy(row) for row in self.around.sessions if row.token == want.token), None)
        found.named = [copy.deepcopy(row) for row in self.around.campaigns if row.name == want.named]
        if want.calls is not None:
            session, ns = want.calls
            found.calls = {row["spec"].n: self.task(i) for i, row in self.rows.items()  # type: ignore[attr-defined]
                           if row["session"] == session and row["spec"].n in ns}  # type: ignore[attr-defined]
        if want.keys is not None:
            campaign, parent, keys = want.keys
            for i, row in self.rows.items():
                place = (row["spec"].key, row["spec"].occurrence)  # type: ignore[attr-defined]
                if row["campaign"] == campaign and row["parent"] == parent and place in keys:
                    found.keys[place] = self.task(i)
        return found

    def read_around(self, lacking: Lacking) -> Around:
        all = self.around
        classes = [each for each in all.classes if each[0] in lacking.classes]
        apps, pools = {spec.app for _, spec in classes}, {spec.pool for _, spec in classes}
        return copy.deepcopy(Around(
            [row for row in all.campaigns if row.id in lacking.campaigns],
            [row for row in all.sessions if row.id in lacking.sessions], classes,
            [app for app in all.apps if app.digest in apps], [code for code in all.codes if code[0] in apps],
            [pool for pool in all.pools if pool[0] in pools]))


@dataclass
class PretendPilot:
    """What a pilot has and does; it reports at least once, and keeps reports until they are received."""

    number: int
    token: str
    peer: bytes
    held: dict[int, Item] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    unreceived: list[Reports] = field(default_factory=list)
    seq: int = 0
    alive: bool = True


class Harness:
    """The brain, its database, one client and some pilots; every message is delivered by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.db = Database()
        self.pilots: dict[bytes, PretendPilot] = {}
        self.next_n = 1
        self.unacked: list[TaskSpec] = []
        self.ids: dict[int, int] = {}                    # call -> task
        self.settled: dict[int, TaskState] = {}
        self.payloads: dict[int, object] = {}
        self.launched: dict[int, list[int]] = {}         # task -> attempts, as sent
        self.answers: dict[int, list[bool]] = {}
        self.asked: dict[int, list[int]] = {}
        self.request = 0
        self.token = "session"
        self.campaign: str | None = "campaign"
        self.classes: dict[int, TaskClass] = {}
        self.start()

    # ---- the interchange's life

    def start(self) -> None:
        self.core = Core(self.db.load_world(), CONFIG, lambda enrol, resources: 2, self.now)
        self.inherit()
        self.turn()
        self.hello()

    def inherit(self) -> None:
        while (want := self.core.reading.first()) is not None:
            self.know(want)
        self.core.requests.found = Found()

    def restart(self) -> None:
        """kill -9: what was not committed is gone; the pilots and the client find the new one."""
        self.start()
        for pilot in self.pilots.values():
            if pilot.alive:
                self.enrol(pilot)
        self.resubmit()
        watched = [task for n, task in self.ids.items() if n not in self.settled]
        if watched:
            from balsamfut.messages import Watch
            self.client(Watch(watched))

    def turn(self, *, crash: str = "") -> None:
        """The end of a turn; `crash`: the interchange dies before the commit, or after it and before the sends."""
        turn = self.core.finish(self.now)
        if crash == "before commit":
            return
        self.db.commit(turn.writes)
        if crash == "after commit":
            return
        self.send(turn)
        if self.core.book.told:     # an acknowledgement that waited for company
            self.now += 0.01
            self.turn()

    def send(self, turn: Turn) -> None:
        for peer, messages in turn.out.pilots.items():
            for message in messages:
                self.to_pilot(peer, message)
        for messages in turn.out.clients.values():
            for message in messages:
                self.to_client(message)

    def client(self, message: Message) -> None:
        self.now += 0.01
        while (want := self.core.reading.client(b"client", message)) is not None:
            token = message.token if isinstance(message, Hello) else ""
            self.know(want, token)
        self.core.client(b"client", message, self.now)

    def report(self, pilot: PretendPilot, message: Message) -> None:
        self.now += 0.01
        while (want := self.core.reading.pilot(pilot.peer, message)) is not None:
            self.know(want)
        self.core.pilot(pilot.peer, message, self.now)

    def know(self, want: Wanted, token: str = "") -> None:
        found = self.db.read(want)
        if lacking := self.core.reading.lacking(found):
            found.around = self.db.read_around(lacking)
        self.core.reading.know(want, found, self.now, token)

    # ---- the client

    def hello(self) -> None:
        self.client(Hello(PROTOCOL, self.token, self.campaign, 1, "host"))
        self.turn()

    def submit(self, needs: tuple[int, ...] = (), key: bytes | None = None, occurrence: int = 0,
               retries: int = 0) -> int:
        spec = TaskSpec(self.next_n, retries, b"args", needs, key, occurrence)
        self.next_n += 1
        self.unacked.append(spec)
        self.client(self.message([spec]))
        return spec.n

    def message(self, specs: list[TaskSpec], *, resent: bool = False) -> Submit:
        classes = [(r, TaskClass(b"app", b"pool", Resources(), Options(retries=r))) for r in (0, 1, 2)]
        return Submit(specs, classes, [AppSpec("f", AppKind.PYTHON, b"app")], [(b"app", b"code")],
                      [(b"pool", Pool("python", (), "/"))], resent=resent)

    def resubmit(self) -> None:
        if self.unacked:
            self.client(self.message(list(self.unacked), resent=True))

    def ask(self, kind: type[Cancel] | type[KillTasks], tasks: list[int]) -> int:
        self.request += 1
        self.asked[self.request] = tasks
        self.client(kind(self.request, tasks))
        return self.request

    def to_client(self, message: Message) -> None:
        if isinstance(message, Accepted):
            for n, task, _, _ in message.calls:
                assert self.ids.setdefault(n, task) == task, "a call was given two tasks"
                assert task in self.db.rows, "acknowledged before it was committed"
                self.unacked = [spec for spec in self.unacked if spec.n != n]
        elif isinstance(message, Settled):
            for ending in message.endings:
                assert self.db.rows[ending.task]["state"] == ending.state, "told before it was committed"
                self.settled[ending.task] = ending.state
                self.payloads[ending.task] = ending.payload
        elif isinstance(message, Answer):
            self.answers[message.request] = message.results

    # ---- pilots

    def new_pilot(self) -> PretendPilot:
        row = self.core.pilots.new(f"token-{self.core.book.next_pilot}", self.now)
        self.turn()
        pilot = PretendPilot(row.id, row.token, f"pilot-{row.id}".encode())
        self.pilots[pilot.peer] = pilot
        self.enrol(pilot)
        self.turn()
        return pilot

    def enrol(self, pilot: PretendPilot) -> None:
        held = [(item.task, item.attempt) for item in pilot.held.values()]
        held += [(r.task, r.attempt) for m in pilot.unreceived for r in m.reports if isinstance(r, Exited)]
        self.report(pilot, Enrol(PROTOCOL, pilot.number, pilot.token, 0, "host", "workstation", ["n"], 2, 0, 0, held))
        for message in list(pilot.unreceived):
            self.report(pilot, message)

    def to_pilot(self, peer: bytes, message: Message) -> None:
        pilot = self.pilots.get(peer)
        if pilot is None or not pilot.alive:
            return
        if isinstance(message, Launch):
            for item in message.items:
                row = self.db.rows[item.task]
                assert row["attempt"] == item.attempt and row["pilot"] == pilot.number, "sent before committed"
                assert item.task not in self.settled or self.settled[item.task] is not TaskState.DONE, "run again"
                self.launched.setdefault(item.task, []).append(item.attempt)
                pilot.held[item.task] = item
        elif isinstance(message, Received):
            pilot.unreceived = [m for m in pilot.unreceived if m.seq > message.seq]
        elif isinstance(message, Return):
            back = [task for task in message.tasks if task in pilot.held and task not in pilot.running]
            self.say(pilot, [self.exit_of(pilot, task, Fault.RETURNED) for task in back])
            from balsamfut.messages import Declined
            self.report(pilot, Declined(message.request, [t for t in message.tasks if t not in back]))
        elif isinstance(message, Kill):
            mine = [t for t, a in dict.fromkeys(message.attempts) if t in pilot.held and pilot.held[t].attempt == a]
            self.say(pilot, [self.exit_of(pilot, task, Fault.KILLED) for task in mine])
        elif isinstance(message, Enrolled):
            for task, attempt in message.drop:
                if task in pilot.held and pilot.held[task].attempt == attempt:
                    pilot.held.pop(task)
                    pilot.running.discard(task)

    def start_task(self, pilot: PretendPilot, task: int) -> None:
        pilot.running.add(task)
        self.say(pilot, [Started(task, pilot.held[task].attempt, self.now, "0:0")])

    def exit_of(self, pilot: PretendPilot, task: int, fault: Fault) -> Exited:
        item = pilot.held.pop(task)
        pilot.running.discard(task)
        payload = b"value-%d" % task if fault is Fault.NONE else b"error"
        error = "" if fault is Fault.NONE else "bad"
        return Exited(task, item.attempt, fault, payload, self.now, self.now, "0:0", error)

    def finish_task(self, pilot: PretendPilot, task: int, fault: Fault) -> None:
        self.say(pilot, [self.exit_of(pilot, task, fault)])

    def say(self, pilot: PretendPilot, reports: list[Started | Exited]) -> None:
        if not reports:
            return
        pilot.seq += 1
        message = Reports(pilot.seq, list(reports))
        pilot.unreceived.append(message)
        self.report(pilot, message)

    def lose(self, pilot: PretendPilot) -> None:
        """kill -9 of a pilot: what it had not handed over is gone."""
        pilot.alive = False
        pilot.held.clear()
        pilot.running.clear()
        self.core.pilots.gone(pilot.number, "killed", self.now)

    def session(self) -> Session:
        return next(s for s in self.core.book.sessions.values() if s.row.token == self.token)

    def beats(self) -> None:
        """Everybody who lives says so."""
        self.client(Beat())
        for pilot in self.pilots.values():
            if pilot.alive:
                self.report(pilot, PilotBeat())

    def run_out(self) -> None:
        """Let everything that is left come to its end."""
        for _ in range(200):
            self.turn()
            live = [p for p in self.pilots.values() if p.alive]
            if not live:
                live = [self.new_pilot()]
            for pilot in live:
                for task in list(pilot.held):
                    self.finish_task(pilot, task, Fault.NONE)
            self.now += 40.0
            self.beats()
            self.core.tick(self.now)
            self.turn()
            if not self.core.book.tasks and not any(p.held for p in live):
                return
        raise AssertionError(f"never comes to an end: {[(t.id, t.state) for t in self.core.book.tasks.values()]}")
