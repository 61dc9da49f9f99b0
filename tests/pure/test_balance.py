"""Several pilots and few tasks: each is given what it can start, and what waits in one goes to another."""

from __future__ import annotations

from interchange_world import Harness, PretendPilot

from balsamfut.interchange.core import BALANCE
from balsamfut.messages import Fault
from balsamfut.model import TaskState


class Pilots(Harness):
    """Each holds two tasks that run, and is sent two ahead as long as nobody knows how long they take."""

    def submit_many(self, count: int) -> list[int]:
        ns = [self.submit() for _ in range(count)]
        self.turn()
        return [self.ids[n] for n in ns]

    def run(self, pilot: PretendPilot) -> None:
        """It starts what it can."""
        for task in list(pilot.held)[:2 - len(pilot.running)]:
            self.start_task(pilot, task)
        self.turn()

    def balance(self) -> None:
        self.now += BALANCE
        self.core.tick(self.now)
        self.turn()
        self.turn()


def test_all_pilots_are_given_what_they_can_start_before_one_is_given_work_ahead() -> None:
    world = Pilots()
    pilots = [world.new_pilot() for _ in range(3)]
    world.submit_many(6)
    assert [len(pilot.held) for pilot in pilots] == [2, 2, 2]
    world.submit_many(3)
    assert sorted(len(pilot.held) for pilot in pilots) == [2, 3, 4]


def test_what_waits_in_one_pilot_goes_to_one_that_comes_later() -> None:
    world = Pilots()
    first = world.new_pilot()
    tasks = world.submit_many(4)
    assert len(first.held) == 4
    world.run(first)
    second = world.new_pilot()
    assert not second.held
    world.balance()
    assert len(first.held) == 2 and len(second.held) == 2 and first.running == set(first.held)
    assert set(first.held) | set(second.held) == set(tasks)
    assert all(world.core.book.tasks[task].failures == 0 for task in tasks)


def test_what_a_pilot_has_started_stays_and_nothing_goes_to_and_fro() -> None:
    world = Pilots()
    first = world.new_pilot()
    world.submit_many(3)
    world.run(first)
    second = world.new_pilot()
    for _ in range(5):
        world.balance()
    world.run(second)
    assert (len(first.held), len(second.held)) == (2, 1)
    assert sorted(attempts[-1] for attempts in world.launched.values()) == [1, 1, 2]


def test_short_tasks_are_left_where_they_are() -> None:
    world = Pilots()
    first = world.new_pilot()
    done = world.submit_many(1)
    world.run(first)
    world.finish_task(first, done[0], Fault.NONE)          # in no time
    world.turn()
    world.submit_many(6)
    assert len(first.held) > 2
    world.run(first)
    second = world.new_pilot()
    world.balance()
    assert not second.held
    assert {world.core.book.tasks[task].state for task in first.held} == {TaskState.RUNNING, TaskState.ASSIGNED}
