"""Whose fault it is: nodes that are bad are put out, those under which bad tasks fell are not.

Some cases by hand, and a machine that plays a cluster with bad nodes and bad programs and recounts every decision from
the whole history.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsamfut.pilot import health
from balsamfut.pilot.health import Health, Quarantine, Release, Verdict


def names(count: int) -> list[str]:
    return [f"n{index:02}.cluster" for index in range(count)]


def busy(count: int, each: int = 50) -> Health:
    """Nodes on which tasks of kind "sim" have succeeded."""
    made = Health(names(count))
    for task in range(count * each):
        assert made.succeeded("sim", -1 - task, [task % count], 60.0) == []
    return made


def fails(made: Health, node: int, tasks: range, *, kind: str = "sim", hard: bool = True, seconds: float = 1.0,
          survivors: int = 0) -> list[Verdict]:
    return [verdict for task in tasks for verdict in made.failed(
        kind, task, [node], hard=hard, seconds=seconds, survivors=survivors, what="exit code 1")]


# ---- bad nodes


def test_a_node_that_kills_workers_which_others_do_not_is_put_out_after_three_tasks() -> None:
    made = busy(4)
    assert fails(made, 2, range(1, 3)) == []
    [verdict] = fails(made, 2, range(3, 4))
    assert verdict == Quarantine(2, "3 different tasks in a row failed here, and of 150 like them elsewhere none did "
                                    "(the last: exit code 1)", (1, 2, 3))
    assert made.out == {2}


def test_quick_exceptions_weigh_half() -> None:
    made = busy(4)
    assert fails(made, 2, range(1, 6), hard=False) == []
    assert [verdict.node for verdict in fails(made, 2, range(6, 7), hard=False)] == [2]


def test_exceptions_after_a_long_run_say_nothing() -> None:
    assert fails(busy(4), 2, range(1, 40), hard=False, seconds=31.0) == []


def test_an_exception_counts_in_full_when_the_task_succeeds_elsewhere() -> None:
    made = busy(4)
    verdicts = fails(made, 2, range(1, 4), hard=False)
    for task in (1, 2, 3):
        verdicts += made.succeeded("sim", task, [1], 60.0)
    assert [(type(verdict), verdict.node) for verdict in verdicts] == [(Quarantine, 2)]


def test_tasks_that_still_run_elsewhere_stand_for_it_that_these_do_not_fail() -> None:
    made = Health(names(4))
    assert fails(made, 2, range(1, 40)) == []        # nothing is known of the others
    made = Health(names(4))
    assert [verdict.node for verdict in fails(made, 2, range(1, 40), survivors=300)] == [2]


def test_failures_of_different_kinds_add_up_even_where_each_runs_nowhere_else() -> None:
    made = busy(4)
    verdicts = [verdict for task, kind in enumerate("abc")
                for verdict in fails(made, 2, range(task, task + 1), kind=kind)]
    assert [verdict.node for verdict in verdicts] == [2]


def test_other_kinds_that_succeed_there_do_not_end_the_streak_of_one_that_fails() -> None:
    made = busy(4)
    verdicts: list[Verdict] = []
    for task in range(3):
        verdicts += fails(made, 2, range(task, task + 1), kind="sim")
        made.succeeded("cpu only", 100 + task, [2], 1.0)
    assert [verdict.node for verdict in verdicts] == [2]


def test_wide_attempts_find_the_node_that_they_have_in_common() -> None:
    made = busy(8)
    verdicts: list[Verdict] = []
    for task in range(1, 12):
        other = (0, 1, 3, 4, 5, 6, 7)[task % 7]
        verdicts += made.failed("sim", task, sorted((2, other)), hard=True)
        verdicts += made.succeeded("sim", 100 + task, [other, (other + 1) % 8 if other != 1 else 3], 60.0)
    assert [(type(verdict), verdict.node) for verdict in verdicts] == [(Quarantine, 2)]


def test_the_next_end_of_a_wide_task_tells_which_node_it_was_not() -> None:
    made = busy(8)
    verdicts: list[Verdict] = []
    for task in range(1, 5):
        verdicts += made.failed("sim", task, [1, 2], hard=True)
        verdicts += made.failed("sim", task, [2, 3], hard=True)
    assert [verdict.node for verdict in verdicts] == [2]


def test_a_wide_attempt_with_a_node_that_is_known_to_be_bad_accuses_no_other() -> None:
    made = busy(8)
    fails(made, 2, range(1, 4))
    assert [made.failed("sim", task, [2, 3], hard=True) for task in range(10, 30)] == [[]] * 20


@pytest.mark.parametrize("lost", [True, False])
def test_a_node_that_turns_out_to_be_bad_explains_what_failed_on_it_and_its_neighbour(lost: bool) -> None:
    made = busy(8)
    verdicts: list[Verdict] = []
    for task in range(1, 20):
        verdicts += made.failed("sim", task, [1, 2], hard=True)
    assert [(type(verdict), verdict.node) for verdict in verdicts] == [(Quarantine, 1), (Quarantine, 2)]
    made = busy(4)
    for task in range(1, 20):
        made.failed("sim", task, [1, 2], hard=True)
    assert made.out == {1}, "one of four at most"
    verdicts = made.lost(2) if lost else made.blame(2, "it does not answer")[1:]
    assert verdicts == [Release(1, "what failed here failed because of another node")]
    assert made.out == {2}


# ---- bad tasks


def test_one_task_that_fails_ever_again_accuses_no_node() -> None:
    made = busy(4)
    assert [verdict for _ in range(50) for verdict in made.failed("sim", 7, [2], hard=True)] == []


def test_tasks_that_fail_on_different_nodes_are_their_own_fault() -> None:
    made = busy(4)
    for task in range(1, 30):
        assert made.failed("sim", task, [3], hard=True) + made.failed("sim", task, [2], hard=True) == []


def test_a_kind_that_runs_on_one_node_only_accuses_it_of_nothing() -> None:
    assert fails(busy(4), 2, range(1, 60), kind="broken") == []


def test_a_program_that_was_deployed_wrongly_puts_no_node_out() -> None:
    made = busy(16)
    task = 0
    for _ in range(40):
        for node in range(16):
            task += 1
            fails(made, node, range(task, task + 1), hard=False)
    assert made.out == set()


def test_a_kind_that_often_fails_is_allowed_longer_streaks() -> None:
    made = busy(4, 5)
    for task in range(100):
        fails(made, task % 4, range(task, task + 1)) if task % 2 else made.succeeded("sim", task, [task % 3], 1.0)
    assert fails(made, 3, range(200, 210)) == []


def test_where_most_fail_elsewhere_no_streak_is_long_enough() -> None:
    made = Health(names(4))
    for task in range(300):
        if task % 5 < 3:
            fails(made, task % 3, range(task, task + 1))
        else:
            made.succeeded("sim", task, [task % 3], 1.0)
    assert fails(made, 3, range(1000, 1200)) == []


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.7])
def test_chance_alone_puts_no_node_out(share: float) -> None:
    rng = random.Random(7)
    made = Health(names(16))
    for task in range(8000):
        node = rng.randrange(16)
        if rng.random() < share:
            verdicts = made.failed("sim", task, [node], hard=rng.random() < 0.5, seconds=1.0)
        else:
            verdicts = made.succeeded("sim", task, [node], 1.0)
        assert verdicts == []


# ---- bounds


def test_a_pilot_with_one_node_keeps_it() -> None:
    made = Health(names(1))
    made.succeeded("sim", 0, [0], 1.0)
    assert fails(made, 0, range(1, 100), survivors=1000) == []
    assert made.blame(0, "shepherd died from signal 9") == []


def test_the_last_usable_node_is_kept_whatever_is_said_of_it() -> None:
    made = busy(3)
    made.lost(0)
    assert made.blame(1, "n01: shepherd died from signal 9") == [Quarantine(1, "n01: shepherd died from signal 9")]
    assert made.blame(1, "again") == [] and made.blame(2, "the last") == []
    assert fails(made, 2, range(1, 50), survivors=1000) == []


def test_no_more_than_a_quarter_of_the_nodes_is_out_because_of_statistics() -> None:
    made = busy(16)
    for node in range(8):
        fails(made, node, range(100 * node, 100 * node + 30), kind=f"kind {node}", survivors=1000)
    assert made.out == {0, 1, 2, 3}


def test_a_node_comes_back_when_what_failed_there_fails_elsewhere_too() -> None:
    made = busy(4, 5)
    fails(made, 2, range(1, 10))
    assert made.out == {2}
    verdicts = [verdict for task in range(100, 130) for verdict in fails(made, task % 2, range(task, task + 1))]
    assert verdicts == [Release(2, "what failed here fails on other nodes too")]
    assert made.out == set()


# ---- everything together, recounted


@dataclass
class Model:
    """The whole history, and what follows from it by the plain words of the module."""

    count: int
    ends: list[tuple[str, int, int, str]] = field(default_factory=list)   # kind, task, node, ok | hard | plain
    out: set[int] = field(default_factory=set)
    by_numbers: set[int] = field(default_factory=set)

    def suspicious(self, node: int) -> set[int]:
        """Tasks that failed on this node since their kind last succeeded there, and failed nowhere else."""
        found: dict[int, str] = {}
        for kind, task, where, how in self.ends:
            if where == node and how == "ok":
                found = {each: its for each, its in found.items() if its != kind}
            elif where == node:
                found[task] = kind
        return {task for task in found if all(where == node or how == "ok" for _, each, where, how in self.ends
                                              if each == task)}

    def fares_well_elsewhere(self, node: int) -> bool:
        return any(where != node and how == "ok" for _, _, where, how in self.ends)

    def accept(self, verdict: Verdict) -> None:
        if isinstance(verdict, Release):
            assert verdict.node in self.by_numbers, "only what statistics took is given back"
            self.by_numbers.remove(verdict.node)
            self.out.remove(verdict.node)
            return
        assert verdict.node not in self.out
        assert len(self.suspicious(verdict.node)) >= 3, "fewer tasks than that say nothing"
        assert self.fares_well_elsewhere(verdict.node), "there is nothing to compare it with"
        self.by_numbers.add(verdict.node)
        self.out.add(verdict.node)

    def check(self, made: Health) -> None:
        assert made.out == self.out
        assert len(self.out) < self.count, "no node is left"
        assert len(self.by_numbers) <= max(1, self.count // health.SHARE)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(1, 6), st.integers(0, 2**32))
def test_whatever_happens_decisions_follow_from_the_history(data: st.DataObject, count: int, seed: int) -> None:
    """Nodes 0.. of which some fail what they are given, kinds of which some fail wherever they run."""
    rng = random.Random(seed)
    bad_nodes = data.draw(st.sets(st.integers(0, count - 1), max_size=2))
    bad_kinds = data.draw(st.sets(st.sampled_from("abc"), max_size=2))
    made, model = Health(names(count)), Model(count)
    for step in range(data.draw(st.integers(1, 120))):
        usable = [node for node in range(count) if node not in model.out]
        node, kind = rng.choice(usable), rng.choice("abc")
        task = step if rng.random() < 0.8 else rng.randrange(step + 1)
        wrong = node in bad_nodes or kind in bad_kinds or rng.random() < 0.05
        how = "ok" if not wrong else rng.choice(["hard", "plain"])
        if how == "ok":
            model.ends.append((kind, task, node, how))
            verdicts = made.succeeded(kind, task, [node], 1.0)
        else:
            model.ends.append((kind, task, node, how))
            verdicts = made.failed(kind, task, [node], hard=how == "hard", seconds=1.0)
        for verdict in verdicts:
            model.accept(verdict)
        model.check(made)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 24), st.integers(0, 2**32))
def test_a_black_hole_is_found_and_nobody_else_is_accused(count: int, seed: int) -> None:
    """A bad node ends its tasks sixty times as fast as the others do, so it takes most of them."""
    rng = random.Random(seed)
    bad = rng.randrange(count)
    made = busy(count, 10)
    eaten, verdicts = 0, list[Verdict]()
    for task in range(400):
        if bad not in made.out and rng.random() < 60 / (59 + count):
            eaten += 1
            verdicts += made.failed("sim", task, [bad], hard=rng.random() < 0.5, seconds=1.0)
        else:
            node = rng.choice([each for each in range(count) if each != bad])
            verdicts += (made.failed("sim", task, [node], hard=True, seconds=1.0) if rng.random() < 0.01
                         else made.succeeded("sim", task, [node], 60.0))
    assert [(type(verdict), verdict.node) for verdict in verdicts] == [(Quarantine, bad)]
    assert eaten <= 12


def test_the_same_history_gives_the_same_decisions() -> None:
    def play() -> list[Verdict]:
        rng, made, verdicts = random.Random(3), Health(names(12)), list[Verdict]()
        for task in range(3000):
            node = rng.randrange(12)
            verdicts += (made.failed(rng.choice("ab"), task, [node], hard=True) if node in (3, 5)
                         else made.succeeded(rng.choice("ab"), task, [node], 1.0))
        return verdicts

    first = play()
    assert {verdict.node for verdict in first} == {3, 5} and play() == first
