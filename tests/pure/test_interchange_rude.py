"""The interchange's brain where orders and losses cross."""

from __future__ import annotations

from interchange_world import Harness

from balsamfut.messages import Cancel, Exited, Fault, KillTasks, Watch
from balsamfut.model import TaskState


def test_a_task_that_is_to_be_killed_is_not_tried_again_when_it_could_not_be_started() -> None:
    h = Harness()
    pilot = h.new_pilot()
    h.submit()
    h.turn()
    request = h.ask(KillTasks, [1])
    h.finish_task(pilot, 1, Fault.LAUNCHER)     # said before the order came
    h.turn()
    assert h.answers == {request: [True]}
    assert h.settled == {1: TaskState.CANCELLED}


def test_orders_to_a_pilot_that_is_away_are_given_when_it_is_back() -> None:
    h = Harness()
    pilot = h.new_pilot()
    h.submit()
    h.submit()
    h.turn()
    h.start_task(pilot, 1)
    h.turn()
    h.start()                                   # a new interchange, which the client finds before the pilot does
    h.client(Watch([1, 2]))
    kill, cancel = h.ask(KillTasks, [1]), h.ask(Cancel, [2])
    h.turn()
    assert h.answers == {}
    h.enrol(pilot)
    h.turn()
    h.turn()
    assert h.answers == {kill: [True], cancel: [True]}
    assert h.settled == {1: TaskState.CANCELLED, 2: TaskState.CANCELLED}


def test_a_task_that_is_read_alone_waits_for_what_it_needs() -> None:
    h = Harness()
    pilot = h.new_pilot()
    for needs in ((), (), (-2,), (-3,)):        # 1 returns the future of 4, which needs 3, which needs 2
        h.submit(needs)
    h.turn()
    h.campaign, h.token = "another", "another"  # after a restart nobody runs the campaign at first
    h.start()
    pilot.held.pop(1)
    h.enrol(pilot)
    h.say(pilot, [Exited(1, 1, Fault.NONE, b"template", h.now, h.now, "0:0", joins=[4])])
    h.turn()
    assert [h.db.rows[task]["state"] for task in (1, 3, 4)] == [TaskState.WAITING] * 3
    h.campaign, h.token = "campaign", "session"
    h.hello()
    h.client(Watch([1, 2, 3, 4]))
    assert 4 not in h.launched
    h.run_out()
    assert {row["state"] for row in h.db.rows.values()} == {TaskState.DONE}
    assert all(attempts == [1] for attempts in h.launched.values())


def test_a_task_that_is_put_aside_is_not_counted_against_its_sessions_limit() -> None:
    world = Harness()
    world.session().limit = 1
    pilot = world.new_pilot()
    first, second = world.submit(), world.submit()
    world.turn()
    assert list(pilot.held) == [world.ids[first]]
    world.core.flow.hold_anyway(world.core.book.tasks[world.ids[first]], "a report of it does not fit")
    world.turn()
    assert world.ids[second] in pilot.held
