"""The interchange's brain against a world that misbehaves, with a model of what was promised to whom."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from interchange_world import Harness

from balsamfut.messages import Cancel, Exited, Fault, KillTasks, Reports
from balsamfut.model import CLOSED, MOVES, TaskState

S = TaskState
CHARGED = [Fault.TASK, Fault.WORKER, Fault.WALLTIME]


class InterchangeMachine(RuleBasedStateMachine):
    """Rules are what the world may do; the model knows what each task was promised."""

    def __init__(self) -> None:
        super().__init__()
        self.h = Harness()
        self.h.new_pilot()
        self.retries: dict[int, int] = {}          # call -> retries
        self.needs: dict[int, tuple[int, ...]] = {}   # call -> calls that it needs
        self.charged: dict[int, int] = {}          # task -> charged ends that were committed
        self.succeeded: set[int] = set()           # tasks whose success was committed
        self.ended_by_us: set[int] = set()         # cancelled or killed, or asked to be
        self.told: dict[int, S] = {}

    # ---- the user

    @rule(data=st.data(), retries=st.integers(0, 2))
    def submit(self, data: st.DataObject, retries: int) -> None:
        known = list(range(1, self.h.next_n))
        some = data.draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
        needs = tuple(self.h.ids.get(n) or -n for n in some)
        n = self.h.submit(needs, retries=retries)
        self.retries[n], self.needs[n] = retries, tuple(some)

    @rule(data=st.data(), kind=st.sampled_from([Cancel, KillTasks]))
    def end_something(self, data: st.DataObject, kind: type) -> None:
        if not self.h.ids:
            return
        task = data.draw(st.sampled_from(sorted(self.h.ids.values())))
        self.ended_by_us.add(task)
        self.h.ask(kind, [task])

    # ---- the interchange

    @rule()
    def turn(self) -> None:
        self.h.turn()

    @rule(when=st.sampled_from(["before commit", "after commit", "between turns"]))
    def interchange_dies(self, when: str) -> None:
        if when != "between turns":
            self.h.turn(crash=when)
        self.h.asked.clear()
        self.h.restart()
        self.h.turn()

    # ---- the pilots

    def a_held_task(self, data: st.DataObject) -> tuple[object, int] | None:
        pairs = [(pilot, task) for pilot in self.h.pilots.values() for task in sorted(pilot.held)]
        return data.draw(st.sampled_from(pairs)) if pairs else None

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        pair = self.a_held_task(data)
        if pair is not None:
            self.h.start_task(*pair)  # type: ignore[arg-type]

    @rule(data=st.data(), fault=st.sampled_from([Fault.NONE, Fault.NONE, *CHARGED, Fault.RETURNED, Fault.NODE,
                                                 Fault.LAUNCHER]))
    def exit(self, data: st.DataObject, fault: Fault) -> None:
        pair = self.a_held_task(data)
        if pair is not None:
            self.h.finish_task(*pair, fault)  # type: ignore[arg-type]

    @rule(data=st.data())
    def say_it_again(self, data: st.DataObject) -> None:
        """A pilot resends reports that were not acknowledged."""
        pilots = [p for p in self.h.pilots.values() if p.alive and p.unreceived]
        if pilots:
            pilot = data.draw(st.sampled_from(pilots))
            for message in list(pilot.unreceived):
                self.h.report(pilot, message)

    @rule(data=st.data(), fault=st.sampled_from([Fault.NONE, *CHARGED]))
    def report_of_an_old_attempt(self, data: st.DataObject, fault: Fault) -> None:
        """A report of an attempt that is over comes late, from a pilot that lives."""
        pilots = [p for p in self.h.pilots.values() if p.alive]
        old = [(task, attempt) for task, attempts in self.h.launched.items() for attempt in attempts[:-1]]
        if pilots and old:
            task, attempt = data.draw(st.sampled_from(old))
            pilot = data.draw(st.sampled_from(pilots))
            payload = b"value-%d" % task if fault is Fault.NONE else b"error"
            now = self.h.now
            self.h.report(pilot, Reports(0, [Exited(task, attempt, fault, payload, now, now, "0:0", "late")]))

    @rule(data=st.data())
    def pilot_dies(self, data: st.DataObject) -> None:
        alive = [p for p in self.h.pilots.values() if p.alive]
        if alive:
            self.h.lose(data.draw(st.sampled_from(alive)))

    @rule()
    def pilot_comes(self) -> None:
        if sum(p.alive for p in self.h.pilots.values()) < 2:
            self.h.new_pilot()

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.h.now += seconds
        self.h.beats()
        self.h.core.tick(self.h.now)
        self.h.turn()

    # ---- what must hold

    @invariant()
    def settled_is_for_ever(self) -> None:
        for task, state in self.told.items():
            assert self.h.settled[task] is state, f"task {task} was told {state.name}, then {self.h.settled[task].name}"
            assert self.h.db.rows[task]["state"] is state
        self.told = dict(self.h.settled)

    @invariant()
    def a_result_is_what_the_task_returned(self) -> None:
        for task, state in self.h.settled.items():
            if state is S.DONE:
                assert self.h.payloads[task] == b"value-%d" % task

    @invariant()
    def attempts_only_grow(self) -> None:
        for attempts in self.h.launched.values():
            assert attempts == sorted(set(attempts)), f"an attempt was launched twice: {attempts}"

    @invariant()
    def nobody_holds_what_another_holds(self) -> None:
        seen: dict[int, int] = {}
        for pilot in self.h.core.book.pilots.values():
            for task in pilot.held.values():
                assert task.state in (S.ASSIGNED, S.RUNNING), f"task {task.id} is {task.state.name} in a pilot's hand"
                assert seen.setdefault(task.id, pilot.id) == pilot.id
            for cls, count in pilot.counts.items():
                held = [t for t in pilot.held.values() if t.cls == cls and t.id not in pilot.parents]
                assert count == len(held), f"class {cls}: counted {count}, held {len(held)}"

    @invariant()
    def open_and_recent_are_apart(self) -> None:
        book = self.h.core.book
        assert all(task.state not in CLOSED for task in book.tasks.values())
        assert all(task.state in CLOSED for task in book.recent.values())

    def teardown(self) -> None:
        self.h.resubmit()
        self.h.run_out()
        self.settled_is_for_ever()
        h = self.h
        assert not h.unacked
        for n, task in h.ids.items():
            state = h.settled.get(task)
            assert state is not None, f"call {n} (task {task}) was never settled"
            bad_need = any(h.settled[h.ids[need]] is not S.DONE for need in self.needs[n])
            if bad_need:
                assert state in (S.UPSTREAM_FAILED, S.CANCELLED)
            elif state is S.CANCELLED:
                assert task in self.ended_by_us
            elif state is S.FAILED:
                row = h.db.rows[task]
                assert row["failures"] > self.retries[n] or row["losses"] or "could not be started" in row["error"]
            else:
                assert state is S.DONE
        for request, tasks in h.asked.items():
            assert request in h.answers, "a cancel or kill was never answered"
            for task, yes in zip(tasks, h.answers[request], strict=True):
                assert not yes or h.settled[task] is S.CANCELLED


TestInterchange = InterchangeMachine.TestCase
TestInterchange.settings = settings(max_examples=60, stateful_step_count=40, deadline=None,
                                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def run(h: Harness, fault: Fault = Fault.NONE) -> None:
    """Let the pilots end everything that they hold."""
    h.turn()
    for pilot in list(h.pilots.values()):
        for task in list(pilot.held):
            h.finish_task(pilot, task, fault)
    h.turn()


def test_a_chain_runs_in_order_and_hands_values_on() -> None:
    h = Harness()
    pilot = h.new_pilot()
    first = h.submit()
    second = h.submit((-first,))
    h.turn()
    assert list(pilot.held) == [h.ids[first]]
    run(h)
    assert pilot.held[h.ids[second]].values == [b"value-1"]
    run(h)
    assert h.settled == {1: S.DONE, 2: S.DONE}


def test_a_failure_goes_down_the_graph_at_once_with_its_root() -> None:
    h = Harness()
    h.new_pilot()
    first = h.submit()
    second = h.submit((-first,))
    h.submit((-second,))
    run(h, Fault.TASK)
    assert h.settled == {1: S.FAILED, 2: S.UPSTREAM_FAILED, 3: S.UPSTREAM_FAILED}
    assert h.db.rows[3]["root"] == 1
    assert h.payloads[3] == b"error"


def test_a_rerun_finds_what_is_done_and_tries_the_rest_again() -> None:
    h = Harness()
    pilot = h.new_pilot()
    h.submit(key=b"a")
    h.turn()
    h.finish_task(pilot, 1, Fault.NONE)
    h.submit(key=b"b")
    h.turn()
    h.finish_task(pilot, 2, Fault.TASK)
    h.turn()
    h.token = "another"
    h.next_n, h.ids = 1, {}
    h.restart()
    h.submit(key=b"a")
    h.submit(key=b"b")
    h.submit(key=b"a", occurrence=1)
    h.turn()
    assert h.ids == {1: 1, 2: 2, 3: 3}
    assert sorted(pilot.held) == [2, 3]
    run(h)
    assert {task: row["state"] for task, row in h.db.rows.items()} == dict.fromkeys([1, 2, 3], S.DONE)
    assert h.launched == {1: [1], 2: [1, 2], 3: [1]}


@pytest.mark.parametrize("crash", ["before commit", "after commit"])
def test_a_rerun_finds_its_tasks_although_its_interchange_is_killed(crash: str) -> None:
    h = Harness()
    pilot = h.new_pilot()
    h.submit(key=b"a")
    run(h)
    h.token, h.next_n, h.ids = "another", 1, {}
    h.hello()
    h.submit(key=b"a")
    h.submit(key=b"b")
    h.turn(crash=crash)
    h.restart()
    h.turn()
    assert h.ids == {1: 1, 2: 2}
    assert list(pilot.held) == [2] and h.launched[1] == [1]


def test_a_task_that_was_running_when_pilots_were_lost_is_poison_in_the_end() -> None:
    h = Harness()
    h.submit(retries=2)
    for _ in range(5):
        pilot = h.new_pilot()
        h.turn()
        h.start_task(pilot, 1)
        h.turn()
        h.lose(pilot)
    h.turn()
    assert h.settled == {1: S.FAILED}
    assert "not tried again" in str(h.db.rows[1]["error"])


def test_cancel_is_answered_when_the_holder_has_given_the_task_back() -> None:
    h = Harness()
    pilot = h.new_pilot()
    h.submit()
    h.submit()
    h.turn()
    h.start_task(pilot, 1)
    h.turn()
    request = h.ask(Cancel, [1, 2])
    h.turn()
    h.turn()
    assert h.answers[request] == [False, True]
    assert h.settled == {2: S.CANCELLED}


def test_a_task_that_returns_futures_is_done_when_they_are() -> None:
    from balsamfut.model import Joined
    h = Harness()
    pilot = h.new_pilot()
    h.submit()
    h.submit()
    h.turn()
    pilot.held.pop(1)
    h.say(pilot, [Exited(1, 1, Fault.NONE, b"template", h.now, h.now, "0:0", joins=[2])])
    h.turn()
    assert h.settled == {} and h.db.rows[1]["state"] is S.WAITING
    run(h)
    assert h.payloads[1] == Joined(b"template", [b"value-2"])


@pytest.mark.parametrize("state", [s for s in S if s not in CLOSED])
def test_every_open_state_can_come_to_an_end(state: S) -> None:
    seen, stack = set(), [state]
    while stack:
        for following in MOVES[stack.pop()] - seen:
            seen.add(following)
            stack.append(following)
    assert S.DONE in seen and S.CANCELLED in seen
