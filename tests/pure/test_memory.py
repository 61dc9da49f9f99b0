"""What the interchange holds after months: what is in use, whatever has come and gone."""

from __future__ import annotations

import dataclasses
import gc
from collections import deque
from types import ModuleType

import pytest
from interchange_world import CONFIG, Harness, PretendPilot

from balsamfut.interchange import book
from balsamfut.interchange.core import Core
from balsamfut.interchange.memory import AWAY
from balsamfut.messages import PROTOCOL, Beat, Bye, Cancel, Fault, Hello, Keep, Message, Refused, Submit
from balsamfut.model import AppKind, AppSpec, Options, Pool, Resources, TaskClass, TaskSpec, TaskState
from balsamfut.provider.base import BlockState, BlockStatus
from balsamfut.settings import Elastic

FILLED = 600
SCRIPTS = 2000


def held(root: object) -> int:
    """How many entries there are in all that can be reached from here."""
    seen, stack, total = {id(root)}, [root], 0
    while stack:
        each = stack.pop()
        if isinstance(each, dict | list | set | frozenset | deque):
            total += len(each)
        inner = gc.get_referents(each)
        fields = getattr(each, "__struct_fields__", ())
        inner += [getattr(each, name) for name in fields] if not isinstance(each, type) else []
        for other in inner:
            if id(other) not in seen and not isinstance(other, type | ModuleType | str | bytes | int | float) \
                    and not callable(other):
                seen.add(id(other))
                stack.append(other)
    return total


class Months(Harness):
    """A site that is kept.  Scripts come, each with surroundings of its own, and go in one of several ways; each has a
    block of its own."""

    def start(self) -> None:
        elastic = Elastic(enabled=True, project="demo")
        self.config = dataclasses.replace(CONFIG, embedded=False, elastic=elastic)
        self.core = Core(self.db.load_world(), self.config, lambda enrol, resources: 2, self.now)
        self.inherit()
        self.number = self.refusals = 0

    def script(self) -> None:
        """One script, from its first word to its last."""
        self.number += 1
        number, core = self.number, self.core
        self.token, self.campaign = f"token-{number}", f"campaign-{number}" if number % 2 else None
        self.next_n, self.ids = 1, {}
        limit = number % 3
        self.client(Hello(PROTOCOL, self.token, self.campaign, 1, "host", max_workers=limit))
        self.turn()
        session = self.session()
        self.client(self.calls())
        self.turn()
        self.client(Cancel(number, [-2]))
        self.turn()
        self.tick(1.0)
        core.scaling.view(self.now)
        pilot, token = self.block()
        self.turn()
        for task in list(pilot.held):
            self.finish_task(pilot, task, Fault.LAUNCHER)
        for _ in range(20):
            self.tick(20.0)
            self.client(Beat())
            for task in list(pilot.held):
                self.start_task(pilot, task)
                self.finish_task(pilot, task, Fault.NONE)
            self.turn()
        self.client(Keep(4, True, b"value") if number % 5 else Cancel(-number, [-4]))
        self.turn()
        self.end_of(pilot, token)
        if number % 4 == 0:
            self.client(Bye())
        elif number % 4 == 1:
            core.sessions.gone(session, self.now, over=True)      # killed, on this host
        self.turn()                                               # or it falls silent
        self.tick(100.0)

    def calls(self) -> Submit:
        """Four calls: two that run, one that will be cancelled, one that waits for a future of somebody else's."""
        app, pool = b"app-%d" % self.number, b"pool-%d" % self.number
        apps = [AppSpec("f", AppKind.PYTHON, app), AppSpec("promise", AppKind.PROMISE, b"promise")]
        classes = [(0, TaskClass(app, pool, Resources(), Options())),
                   (1, TaskClass(b"promise", pool, Resources(), Options()))]
        specs = [TaskSpec(1, 0, b"args"), TaskSpec(2, 0, b"args"), TaskSpec(3, 0, b"args", (-1,)), TaskSpec(4, 1)]
        return Submit(specs, classes, apps, [(app, b"code")], [(pool, Pool("python", (), f"/{self.number}"))])

    def block(self) -> tuple[PretendPilot, str]:
        core, token = self.core, f"block-{self.number}"
        row = core.batch.want(token, "", 1, 600.0, self.now)
        self.turn()
        core.batch.orders()
        core.batch.told(BlockStatus(token, BlockState.RUNNING, str(self.number)), self.now)
        made = core.book.pilots[row.id]
        pilot = PretendPilot(row.id, made.row.token, f"pilot-{row.id}".encode())
        self.pilots = {pilot.peer: pilot}
        self.enrol(pilot)
        return pilot, token

    def to_client(self, message: Message) -> None:
        super().to_client(message)
        self.refusals += isinstance(message, Refused)

    def end_of(self, pilot: PretendPilot, token: str) -> None:
        core = self.core
        if self.number % 2:
            core.batch.end(next(iter(core.book.blocks.values())), self.now)
        pilot.alive = False
        core.batch.told(BlockStatus(token, BlockState.ENDED, exit_code=0), self.now)
        core.batch.news.clear()
        self.turn()

    def tick(self, seconds: float) -> None:
        self.now += seconds
        for pilot in self.pilots.values():
            if pilot.alive:
                self.core.book.pilots[pilot.number].heard = self.now
        self.core.tick(self.now)
        self.turn()


def test_a_site_holds_no_more_after_thousands_of_scripts_and_blocks_than_after_hundreds(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "RECENT_TASKS", 50)
    months = Months()
    while months.number < FILLED:
        months.script()
    before = held(months.core)
    while months.number < SCRIPTS:
        months.script()
    assert held(months.core) - before < 400


def few(months: Months) -> None:
    """Let so much time pass, and so many scripts come and go, that what is not in use is let go."""
    for _ in range(20):
        months.tick(AWAY / 10)
    for number in range(300):
        months.client(Hello(PROTOCOL, f"few-{number}", f"few-{number}", 1, "host"))
        months.client(Bye())
        months.tick(0.1)


@pytest.mark.parametrize("event", ["restart", "left", "killed", "silent"])
def test_the_limit_of_a_session_holds_while_its_tasks_go_on(event: str) -> None:
    months = Months()
    months.client(Hello(PROTOCOL, "token", None, 1, "host", max_workers=1))
    for _ in range(4):
        months.submit()
    months.turn()
    session = next(iter(months.core.book.sessions.values()))
    pilot, _ = months.block()
    months.turn()
    assert len(pilot.held) == 1
    if event == "restart":
        months.start()
        months.enrol(pilot)
    elif event == "left":
        months.client(Bye())
    elif event == "killed":
        months.core.sessions.gone(session, months.now, over=True)
    else:
        few(months)
    months.turn()
    for _ in range(4):
        assert len(pilot.held) == 1
        for task in list(pilot.held):
            months.finish_task(pilot, task, Fault.NONE)
        months.turn()
    assert not pilot.held and not months.core.book.tasks


def test_a_client_that_was_away_for_long_comes_back_to_its_session_and_one_that_had_left_does_not() -> None:
    months = Months()
    hello = Hello(PROTOCOL, "token", "mine", 1, "host")
    months.client(hello)
    n = months.submit()
    months.turn()
    first = months.core.book.tokens["token"].id
    few(months)
    assert "token" not in months.core.book.tokens
    months.ids = {n: months.core.book.next_task}
    months.client(hello)
    months.turn()
    assert months.core.book.tokens["token"].id == first
    months.client(Bye())
    few(months)
    months.refusals = 0
    months.client(hello)
    months.turn()
    assert "token" not in months.core.book.tokens and months.refusals == 1


def test_a_campaign_that_was_let_go_is_found_again_with_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "RECENT_TASKS", 0)
    months = Months()
    months.client(Hello(PROTOCOL, "first", "mine", 1, "host"))
    n = months.submit(key=b"key", retries=1)
    months.turn()
    task = months.ids[n]
    pilot, token = months.block()
    months.turn()
    for _ in range(2):
        months.finish_task(pilot, task, Fault.TASK)
        months.turn()
    assert months.settled.pop(task) is TaskState.FAILED
    months.end_of(pilot, token)
    months.client(Bye())
    few(months)
    assert "mine" not in months.core.book.campaign_names and task not in months.core.book.recent
    months.token, months.ids, months.next_n = "second", {}, 1
    months.client(Hello(PROTOCOL, "second", "mine", 1, "host"))
    n = months.submit(key=b"key", retries=1)
    months.turn()
    assert months.ids[n] == task
    pilot, token = months.block()
    months.turn()
    months.finish_task(pilot, task, Fault.NONE)
    months.turn()
    assert months.settled[task] is TaskState.DONE
