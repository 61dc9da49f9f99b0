"""The interchange's brain is asked why tasks that are READY wait."""

from __future__ import annotations

from typing import Any

import pytest
from interchange_world import PretendPilot
from test_interchange_blocks import AURORA, Yard
from test_scaling import ON, Campaign

from balsamfut.messages import PROTOCOL, AskWhy, Hello, Message, Submit, WhyAnswer
from balsamfut.model import AppKind, AppSpec, Options, Pool, Resources, TaskClass, TaskSpec
from balsamfut.provider.base import BlockState, BlockStatus
from balsamfut.queuemessages import Part
from balsamfut.settings import Elastic


class Asked:
    """Something that can be asked."""

    answers: list[WhyAnswer]

    def to_client(self, message: Message) -> None:
        super().to_client(message)  # type: ignore[misc]
        if isinstance(message, WhyAnswer):
            self.answers = [*getattr(self, "answers", []), message]

    def why(self: Any, *tasks: int) -> dict[tuple[int, ...], str]:
        """The reasons, by the tasks that they hold for."""
        self.client(AskWhy(1, list(tasks)))
        self.turn()
        return {tuple(each.tasks): each.why for each in self.answers[-1].waiting}


class Site(Asked, Yard):
    def ask_for(self, options: Options, resources: Resources | None = None) -> int:
        cls = TaskClass(b"app", b"pool", resources or Resources(), options)
        spec = TaskSpec(self.next_n, 700 + self.next_n)
        self.next_n += 1
        self.client(Submit([spec], [(spec.cls, cls)], [AppSpec("f", AppKind.COMMAND, b"app")], [(b"app", b"code")],
                           [(b"pool", Pool("python", (), "/"))]))
        self.turn()
        return self.ids[spec.n]


class Springy(Asked, Campaign):
    pass


@pytest.fixture
def site() -> Site:
    return Site()


def test_without_a_block_the_reason_is_the_command_that_asks_for_one(site: Site) -> None:
    first, second = site.call(2)
    assert site.why(first) == {(first,): "there is no block: `balsamfut queue submit` asks for one"}
    assert site.answers[-1].waiting[0].count == 2 and site.answers[-1].waiting[0].app == "f"
    assert site.why(first, second).keys() == {(first, second)}


def test_a_block_that_waits_is_the_reason_with_the_batch_systems_words() -> None:
    site = Site(AURORA)
    task, = site.call()
    answer = site.ask_block(queue="debug", project="demo", params={"filesystems": "home"})
    assert not answer.error
    assert site.why(task) == {(task,): "block 1 of queue debug is being asked for"}
    row = site.core.book.blocks[1]
    site.core.batch.told(BlockStatus(row.token, BlockState.QUEUED, "7.server", text="Not Running: no nodes"), site.now)
    assert site.why(task) == {(task,): "block 1 waits for its nodes in queue debug: Not Running: no nodes"}
    site.core.batch.told(BlockStatus(row.token, BlockState.RUNNING, "7.server"), site.now)
    assert site.why(task) == {(task,): "block 1 has begun, and its pilot is starting"}
    site.core.batch.arrivals.missed(site.core.book.blocks[1], "the end of its output", site.now)
    assert site.why(task) == {(task,): "block 1 runs, but its pilot is not there after 0 s: the end of its output"}


def test_blocks_that_would_not_take_a_task_say_why_not(site: Site) -> None:
    serial, tagged = site.call()[0], site.call(kind="post")[0]
    wide, long = site.ask_for(Options(), Resources(num_nodes=4)), site.ask_for(Options(walltime=3600.0))
    site.ask_block(2, tags={"kind": "post"})
    reasons = site.why(serial, tagged, wide, long)
    assert reasons[(tagged,)].startswith("block 1 waits") or reasons[(tagged,)].startswith("block 1 is being asked")
    assert reasons[(serial, wide, long)] == "block 1 takes only tasks with kind=post"
    site = Site()
    wide, long = site.ask_for(Options(), Resources(num_nodes=4)), site.ask_for(Options(walltime=3600.0))
    site.ask_block(2)
    assert site.why(wide, long) == {
        (wide,): "block 1 has too few nodes: 2, and they ask for 4",
        (long,): "block 1 is too short: 10 min, and they take 1 h"}


def test_where_pilots_run_the_reason_is_what_keeps_a_task_from_them(site: Site) -> None:
    site.block(mode="mpi")
    serial = site.call(3)
    assert site.why(*serial) == {tuple(serial): "the pilots here that they would fit take only mpi tasks"}
    long = site.ask_for(Options(walltime=3600.0))
    pilot, = site.block()
    assert isinstance(pilot, PretendPilot) and set(serial) & set(pilot.held)
    more = site.call(20)
    waits = site.why(long, *more)
    assert "all places that they fit are taken" in waits.values()


def test_an_executor_that_limits_itself_is_the_reason() -> None:
    class Limited(Site):
        def start(self) -> None:
            super().start()
            self.client(Hello(PROTOCOL, self.token, self.campaign, 1, "host", max_workers=1))
            self.turn()

    site = Limited()
    site.block()
    running, waits = site.call(2)
    assert site.why(running, waits) == {(waits,): "max_workers of their Executor is 1, and so many run"}


def test_a_task_of_a_campaign_that_nobody_runs_is_said_to_be_one(site: Site) -> None:
    assert site.why(12345) == {(12345,): "nobody runs their campaign now: run its script again, or `balsamfut resume`"}


def test_what_the_elastic_queue_says_of_its_pause_its_project_and_its_plan_is_the_reason() -> None:
    world = Springy()
    task, = world.tasks(1)
    assert world.why(task) == {(task,): "there is no block; the elastic queue is about to ask for one"}
    world.ask_elastic("pause")
    assert world.why(task) == {(task,): "there is no block; no block is asked for: the elastic queue is paused "
                                        "(`balsamfut queue resume`)"}
    world = Springy(Elastic(enabled=True))
    task, = world.tasks(1)
    assert "aurora wants to know which project pays" in world.why(task)[(task,)]
    world = Springy(Elastic(enabled=True, project="demo", max_nodes=1, queues="debug"))
    cls = TaskClass(b"app", b"pool", Resources(num_nodes=2), Options())
    world.client(Submit([TaskSpec(world.next_n, 9)], [(9, cls)], [AppSpec("wide", AppKind.PYTHON, b"app")],
                        [(b"app", b"c")], [(b"pool", Pool("python", (), "/"))]))
    world.turn()
    wide = world.ids[world.next_n]
    world.next_n += 1
    assert "(2 nodes, " in world.why(wide)[(wide,)] and "fits no further block" in world.why(wide)[(wide,)]
    assert ON.enabled


def test_a_split_block_says_what_its_parts_take(site: Site) -> None:
    task, = site.call(ranks=2)
    site.ask_block(2, parts=[Part(1, "serial"), Part(1, "any", {"kind": "post"})])
    assert site.why(task) == {
        (task,): "block 1 takes only serial tasks; block 1 takes only tasks with kind=post"}
