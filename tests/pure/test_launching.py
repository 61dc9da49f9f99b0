from __future__ import annotations

import math

import pytest

from balsamfut import platforms
from balsamfut.messages import Exited, Fault, Item, Launch
from balsamfut.model import AppKind, AppSpec, Extra, Options, Pool, Resources, TaskClass, TaskSpec
from balsamfut.pilot import launching
from balsamfut.pilot.core import Core
from balsamfut.pilot.events import Commanded, Key, StartCommand, Tick
from balsamfut.pilot.launching import Launching, VniLatch
from balsamfut.pilot.verdict import Cause, Verdict
from balsamfut.placement import Packer
from balsamfut.platforms import Launcher


def fail(launches: Launching, key: object, at: float) -> None:
    launches.began(key, at)
    launches.ended(key, True, at + 0.1)


def test_without_limits_every_launch_begins_at_once() -> None:
    launches = Launching(Launcher("pals"))
    for key in range(10_000):
        assert launches.when(5.0) == 5.0
        launches.began(key, 5.0)


def test_launches_begin_no_faster_than_the_launch_rate() -> None:
    launches = Launching(Launcher("pals", launch_rate=4.0))
    now, began = 100.0, []
    for key in range(9):
        now = launches.when(now)
        launches.began(key, now)
        began.append(now)
    assert began == [100.0 + 0.25 * key for key in range(9)]
    assert launches.when(200.0) == 200.0      # nothing is saved up, nothing is owed


def test_no_more_launches_run_together_than_the_machine_takes() -> None:
    launches = Launching(Launcher("srun", max_concurrent=2))
    launches.began("a", 0.0)
    launches.began("b", 0.0)
    assert launches.when(1.0) == math.inf
    launches.ended("a", False, 1.0)
    launches.ended("a", False, 1.0)           # told twice
    assert launches.when(1.0) == 1.0
    launches.began("c", 1.0)
    assert launches.when(1.0) == math.inf


def test_a_budget_of_launches_is_not_exceeded() -> None:
    launches = Launching(Launcher("pals", launch_budget=2))
    for key in range(2):
        assert (launches.when(0.0), launches.left) == (0.0, 2 - key)
        launches.began(key, 0.0)
        launches.ended(key, False, 1.0)
    assert (launches.when(1e9), launches.left) == (math.inf, 0)


def test_one_launch_that_fails_slows_nobody_down() -> None:
    launches = Launching(Launcher("pals"))
    for key in range(10):
        fail(launches, key, float(key))
        launches.began(("well", key), key + 0.2)
        launches.ended(("well", key), False, key + 0.3)
        assert launches.when(key + 0.3) == key + 0.3


def test_launches_that_fail_in_a_row_halve_the_rate_and_those_that_work_double_it_again() -> None:
    launches, now, gaps = Launching(Launcher("pals", launch_rate=10.0)), 0.0, []
    for key in range(10):
        now = launches.when(now)
        fail(launches, key, now)
        gaps.append(launches.gap)
    assert gaps == [0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 45.0, 45.0, 45.0]
    assert launches.when(now) == now + 0.1 + 45.0      # after the last failure, not after its beginning
    gaps = []
    for key in range(7):
        now = launches.when(now)
        launches.began(key, now)
        launches.ended(key, False, now + 1.0)
        gaps.append(launches.gap)
    assert gaps == [22.5, 11.25, 5.625, 2.8125, 1.40625, 0.1, 0.1]


def test_many_launches_that_fail_together_halve_the_rate_once() -> None:
    launches = Launching(Launcher("pals"))
    for key in range(50):
        launches.began(key, 1.0)
    for key in range(50):
        launches.ended(key, True, 2.0)
    assert launches.gap == launching.FIRST_GAP
    assert launches.when(2.0) == 2.0 + launching.FIRST_GAP


def test_failures_on_one_of_several_nodes_slow_nobody_down_and_on_two_they_do() -> None:
    launches = Launching(Launcher("pals"), nodes=4)
    for key in range(10):
        launches.began(key, float(key), 3)
        launches.ended(key, True, key + 0.1)
    assert launches.gap == 0.0
    launches.began("other", 20.0, 1)
    launches.ended("other", True, 20.1)
    assert launches.gap == launching.FIRST_GAP


def test_a_launch_that_runs_for_long_works_though_it_has_not_ended() -> None:
    launches = Launching(Launcher("pals"))
    fail(launches, "a", 0.0)
    fail(launches, "b", 1.0)
    assert launches.gap == launching.FIRST_GAP
    launches.began("c", 10.0)
    assert launches.when(11.5) == 11.5 and launches.failures == 2
    launches.when(10.0 + launching.WORKS)
    assert (launches.failures, launches.gap) == (0, 0.0)


def test_what_fails_after_a_long_run_did_not_fail_to_start() -> None:
    launches = Launching(Launcher("pals"))
    for key in range(5):
        launches.began(key, 0.0)
        launches.ended(key, True, launching.WORKS + key)
    assert (launches.failures, launches.gap) == (0, 0.0)


# ---- Slingshot keys

NO_KEY = Verdict(Cause.VNI, "start failed on x1: No VNIs available in internal allocator")
ONE, TWO = Resources(ranks_per_node=2), Resources(num_nodes=2)


def test_a_launch_that_found_no_key_is_made_again_without_one() -> None:
    for resources in (ONE, TWO):
        again = VniLatch().again(resources, NO_KEY)
        assert again is not None and again.launch_params == (("no_vni", "yes"),)
        assert VniLatch().again(again, NO_KEY) is None      # that was no help


def test_after_the_first_launch_that_found_no_key_those_of_one_node_ask_for_none() -> None:
    latch = VniLatch()
    assert latch.adapted(ONE) is ONE
    latch.again(TWO, NO_KEY)
    assert latch.adapted(ONE) == launching.without_vni(ONE)
    assert latch.adapted(TWO) is TWO


def test_who_says_yes_or_no_to_keys_is_obeyed() -> None:
    asks = Resources(ranks_per_node=2, launch_params=(("no_vni", "no"),))
    latch = VniLatch()
    assert latch.again(asks, NO_KEY) is None
    latch.again(ONE, NO_KEY)
    assert latch.adapted(asks) is asks


@pytest.mark.parametrize("cause", [each for each in Cause if each is not Cause.VNI])
def test_no_other_failure_has_to_do_with_keys(cause: Cause) -> None:
    latch = VniLatch()
    assert latch.again(ONE, Verdict(cause)) is None
    assert latch.adapted(ONE) is ONE


# ---- which node a launcher means

NAMES = ["x1.hsn.cm", "x2.hsn.cm", "x10", "twin.a", "twin.b"]


@pytest.mark.parametrize(("host", "index"), [
    ("x1.hsn.cm", 0), ("x1", 0), ("x1.hostmgmt2000.cm", 0), ("x10.hsn.cm", 2), ("x3", None), ("twin", None),
    ("twin.b", 4), ("", None), (".hsn.cm", None)])
def test_a_node_is_found_by_any_of_its_names_unless_it_may_be_another(host: str, index: int | None) -> None:
    assert launching.named(host, NAMES) == index


# ---- in the pilot's brain

COMMAND = AppSpec("c", AppKind.TEMPLATE, b"c" * 16)
POOL = b"p" * 16


class Brain:
    """A pilot's core with ten cores; class 0 is launched by the MPI launcher, class 1 is not."""

    def __init__(self, launcher: Launcher) -> None:
        self.now = 1000.0
        self.core = Core(Packer(platforms.workstation(10).node, ["n0"]), lambda _, placement: ((), None, 0),
                         lambda exc: str(exc).encode(), cores=10)
        self.core.planner.launching = Launching(launcher)
        classes = [TaskClass(COMMAND.digest, POOL, resources, Options()) for resources in (ONE, Resources())]
        pools = [(POOL, Pool("python", (), "/"))]
        self.core.handle(Launch([], list(enumerate(classes)), [COMMAND], [], pools), self.now)

    def launch(self, *items: tuple[int, int]) -> None:
        """(task, class) ..."""
        self.core.handle(Launch([Item(task, 1, cls, TaskSpec(task, cls, extra=Extra(command="true")))
                                 for task, cls in items]), self.now)

    def turn(self) -> list[int]:
        """The tasks that are started."""
        return [effect.attempt.item.task for effect in self.core.plan(self.now) if isinstance(effect, StartCommand)]

    def sleep(self) -> float:
        """Until the brain wants to be asked; how long that was."""
        seconds = self.core.next_timer() - self.now
        if seconds < math.inf:
            self.now += seconds
            self.core.handle(Tick(), self.now)
        return seconds

    def end(self, task: int, fault: Fault = Fault.NONE) -> None:
        key: Key = task, 1
        self.core.handle(Commanded(key, int(fault is not Fault.NONE), self.now, fault, b"", ""), self.now)


def test_the_brain_keeps_to_the_launch_rate_and_starts_meanwhile_what_needs_no_launcher() -> None:
    brain = Brain(Launcher("pals", launch_rate=2.0))
    brain.launch((1, 0), (2, 0), (3, 1), (4, 0), (5, 1))
    assert brain.turn() == [1, 3, 5]
    assert brain.turn() == []
    assert brain.sleep() == 0.5
    assert brain.turn() == [2]
    assert brain.sleep() == 0.5
    assert brain.turn() == [4]
    assert brain.sleep() == math.inf


def test_the_brain_lets_no_more_launches_run_than_the_machine_takes() -> None:
    brain = Brain(Launcher("srun", max_concurrent=2))
    brain.launch((1, 0), (2, 0), (3, 0), (4, 1))
    assert brain.turn() == [1, 2, 4]
    assert brain.sleep() == math.inf
    brain.end(4)
    assert brain.turn() == []
    brain.end(1)
    assert brain.turn() == [3]


def test_the_brain_launches_less_often_while_launches_fail_and_reports_each_as_the_launchers_fault() -> None:
    brain = Brain(Launcher("pals"))
    brain.launch((1, 0), (2, 0))
    assert brain.turn() == [1, 2]
    for task in (1, 2):
        brain.end(task, Fault.LAUNCHER)
    brain.launch((3, 0))
    assert brain.turn() == []
    assert brain.sleep() == launching.FIRST_GAP
    assert brain.turn() == [3]
    reports = brain.core.outbox.pack()
    assert reports is not None
    assert [each.fault for each in reports.reports if isinstance(each, Exited)] == [Fault.LAUNCHER] * 2
