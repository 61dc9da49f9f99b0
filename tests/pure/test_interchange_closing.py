"""The interchange's brain and blocks that come to an end: what they are sent, what comes back, what people are told."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from interchange_world import PretendPilot
from test_interchange_blocks import Yard

from balsamfut.interchange.batch import GRACE, PARTING
from balsamfut.interchange.closing import CUTS
from balsamfut.messages import PROTOCOL, Enrol, Fault, Leaving, Message, RemoveBlock, Stop, Submit, TooLate
from balsamfut.model import AppKind, AppSpec, Hook, Options, Pool, Resources, TaskClass, TaskSpec, TaskState
from balsamfut.settings import Elastic


class Ending(Yard):
    """Its pilots say how much time they have."""

    def __init__(self) -> None:
        self.left = 600.0
        self.stops: list[Stop] = []
        super().__init__()

    def enrol(self, pilot: PretendPilot) -> None:
        held = [(item.task, item.attempt) for item in pilot.held.values()]
        self.report(pilot, Enrol(PROTOCOL, pilot.number, pilot.token, 0, "host", "workstation", ["n"], 2, 0, 0, held,
                                 left=self.left))

    def to_pilot(self, peer: bytes, message: Message) -> None:
        super().to_pilot(peer, message)
        if isinstance(message, Stop):
            self.stops.append(message)

    def ask(self, number: int, count: int = 1, *, hooks: Hook = Hook(0), **options: Any) -> list[int]:  # type: ignore[override]
        """Calls of an app of their own."""
        app = b"app-%d" % number
        cls = TaskClass(app, b"pool", Resources(), Options(**options))
        specs = [TaskSpec(self.next_n + index, number) for index in range(count)]
        self.next_n += count
        self.client(Submit(specs, [(number, cls)], [AppSpec(f"f{number}", AppKind.COMMAND, app, hooks)], [(app, b"c")],
                           [(b"pool", Pool("python", (), "/"))]))
        self.turn()
        return [self.ids[spec.n] for spec in specs]

    def later(self, seconds: float) -> None:
        """Time passes, in which everybody is heard."""
        while seconds > 0.0:
            self.now += min(seconds, 20.0)
            seconds -= 20.0
            self.beats()
            self.tick()

    def cut(self, pilot: PretendPilot, task: int, **more: Any) -> None:
        """The end of the block cuts a task off that ran."""
        if task not in pilot.running:
            self.start_task(pilot, task)
        exited = self.exit_of(pilot, task, Fault.BLOCK)
        self.say(pilot, [msgspec.structs.replace(exited, payload=None, error="its block ended while it ran", **more)])
        self.turn()

    def state(self, task: int) -> tuple[TaskState, int]:
        found = self.core.book.find(task)
        assert found is not None
        return found.state, found.attempt


@pytest.fixture
def yard() -> Ending:
    return Ending()


# ---- what is sent where


def test_tasks_that_would_not_be_over_in_time_wait_for_a_block_that_has_it(yard: Ending) -> None:
    first, = yard.block()
    yard.later(400.0)
    long, short = yard.ask(1, walltime=300.0), yard.ask(2, walltime=100.0)
    assert list(first.held) == short
    second, = yard.block()
    assert list(second.held) == long


def test_what_goes_on_where_it_was_stopped_and_what_nobody_knows_are_sent_until_the_end(yard: Ending) -> None:
    pilot, = yard.block()
    yard.later(500.0)
    restarts, unknown = yard.ask(1, walltime=3600.0, checkpoint=True, stop_grace=60.0), yard.ask(2)
    assert list(pilot.held) == restarts + unknown
    yard.later(90.0)                          # less than the minute in which it would be stopped
    assert yard.ask(1, walltime=3600.0, checkpoint=True, stop_grace=60.0)[0] not in pilot.held


def test_what_is_known_to_take_long_waits_though_it_declares_nothing(yard: Ending) -> None:
    pilot, = yard.block()
    task, = yard.ask(1)
    began = yard.now
    yard.start_task(pilot, task)
    yard.later(200.0)
    exited = yard.exit_of(pilot, task, Fault.NONE)
    yard.say(pilot, [msgspec.structs.replace(exited, started=began)])
    yard.turn()
    yard.later(250.0)
    assert yard.ask(1)[0] not in pilot.held


def test_a_pilot_that_says_that_it_is_too_late_is_sent_no_more_until_it_takes_that_back(yard: Ending) -> None:
    pilot, = yard.block()
    tasks = yard.ask(1, 2)
    cls = yard.core.book.tasks[tasks[0]].cls
    yard.report(pilot, TooLate([cls]))
    yard.say(pilot, [yard.exit_of(pilot, task, Fault.RETURNED) for task in tasks])
    yard.turn()
    other = yard.ask(2)
    assert list(pilot.held) == other and yard.state(tasks[0]) == (TaskState.READY, 1)
    yard.report(pilot, TooLate([]))
    yard.turn()
    assert set(pilot.held) == {*other, *tasks}


def test_a_pilot_that_says_that_it_stops_is_not_sent_again_what_it_hands_back(yard: Ending) -> None:
    pilot, = yard.block()
    tasks = yard.ask(1, 2)
    yard.report(pilot, TooLate([], stops=True))
    yard.say(pilot, [yard.exit_of(pilot, task, Fault.RETURNED) for task in tasks])
    yard.turn()
    assert not pilot.held and [yard.state(task) for task in tasks] == [(TaskState.READY, 1)] * 2


def test_work_is_not_asked_back_for_a_pilot_that_has_no_time_for_it(yard: Ending) -> None:
    busy, = yard.block()
    yard.ask(1, 4, walltime=300.0)
    assert len(busy.held) == 4
    yard.left = 100.0
    late, = yard.block()
    yard.later(5.0)
    assert len(busy.held) == 4 and not late.held


# ---- what comes back


def test_a_task_may_span_any_number_of_blocks_and_is_never_charged(yard: Ending) -> None:
    yard.left = 10.0
    task, = yard.ask(1, checkpoint=True)
    for attempt in range(1, 30):
        pilot, = yard.block()
        assert yard.state(task) == (TaskState.ASSIGNED, attempt)
        yard.later(6.0)
        yard.cut(pilot, task)
        yard.report(pilot, Leaving("its block has come to its end"))
        yard.over(pilot.number)
        found = yard.core.book.tasks[task]
        assert (found.state, found.failures, found.losses) == (TaskState.READY, 0, 0)
    yard.tick()
    assert not [text for text in yard.notices if "cut off" in text]


def test_people_hear_once_of_a_task_that_may_be_longer_than_any_block(yard: Ending) -> None:
    pilot, = yard.block()
    plain, hooked = yard.ask(1)[0], yard.ask(2, hooks=Hook.ON_TIMEOUT)[0]
    for _ in range(CUTS + 3):
        yard.cut(pilot, plain)
        yard.cut(pilot, hooked)
        yard.tick()
    assert [text for text in yard.notices if "cut off" in text] == [
        (f"task {plain} (f1) was cut off by the end of its block {CUTS} times; if it begins anew each time it needs a "
        "block with more time (checkpoint=True says that it goes on)")]


def test_the_resources_that_a_hook_asked_for_are_those_of_the_next_attempt(yard: Ending) -> None:
    pilot, = yard.block()
    task, = yard.ask(1)
    yard.cut(pilot, task, again=Resources(threads_per_rank=2))
    assert pilot.held[task].again == Resources(threads_per_rank=2)
    yard.cut(pilot, task)
    assert pilot.held[task].again == Resources(threads_per_rank=2)


def test_a_pilot_that_is_gone_at_its_end_leaves_no_stain_on_its_tasks(yard: Ending) -> None:
    task, = yard.ask(1)
    for seconds in (100.0, 570.0, 570.0):
        pilot, = yard.block()
        yard.start_task(pilot, task)
        yard.later(seconds)
        yard.over(pilot.number)
    assert yard.state(task) == (TaskState.READY, 3) and yard.core.book.tasks[task].losses == 1


# ---- what people are told, and ask for


def test_people_hear_once_that_no_block_has_the_time_for_a_task(yard: Ending) -> None:
    yard.ask(1, walltime=7200.0)
    yard.tick()
    assert not yard.notices                   # there is no block yet
    yard.ask_block()
    for _ in range(3):
        yard.later(5.0)
    assert yard.notices == [("tasks of f1 wait: they take 120 min, and the blocks that there are have at most 10 min "
                            "left; `balsamfut queue submit` asks for another")]
    yard.ask(2, walltime=500.0)
    yard.later(5.0)
    assert len(yard.notices) == 1             # the block that waits has the time


def test_nothing_is_said_of_it_where_the_elastic_queue_asks_for_blocks(yard: Ending) -> None:
    yard.core.config = dataclasses.replace(yard.core.config, elastic=Elastic(enabled=True))
    yard.ask(1, walltime=7200.0)
    yard.ask_block()
    yard.later(5.0)
    assert not yard.notices


def test_a_block_that_somebody_ends_comes_to_its_end_by_itself_and_by_the_batch_system_if_not(yard: Ending) -> None:
    first, = yard.block()
    second, = yard.block()
    third, = yard.block()
    yard.core.batch.orders()
    for pilot in (first, second, third):
        yard.client(RemoveBlock(1, pilot.number))
    yard.turn()
    assert [stop.grace for stop in yard.stops] == [GRACE] * 3 and yard.core.batch.orders() == ([], [])
    yard.report(first, Leaving("stopped"))
    yard.over(first.number)
    for _ in range(2):                                 # once more: at once, and so every time
        yard.client(RemoveBlock(1, second.number))
        assert [row.id for row in yard.core.batch.orders()[1]] == [second.number]
    yard.later(GRACE + PARTING - 1.0)
    assert yard.core.batch.orders()[1] == []
    yard.later(2.0)
    assert [row.id for row in yard.core.batch.orders()[1]] == [third.number]


def test_a_block_whose_pilot_is_not_there_is_ended_by_the_batch_system(yard: Ending) -> None:
    number = yard.ask_block().block
    yard.core.batch.orders()
    yard.client(RemoveBlock(1, number))
    assert [row.id for row in yard.core.batch.orders()[1]] == [number] and not yard.stops
