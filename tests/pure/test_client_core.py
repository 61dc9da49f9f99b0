"""What a session remembers of its calls: numbers, acknowledgements, what is sent again to a new interchange."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balsamfut import serialize
from balsamfut.errors import DeserializationError, InitializerFailed, TaskError, TaskKilled, UpstreamFailed
from balsamfut.executor.core import Ask, Call, Definition, Kept, Refusal, Session, Wish
from balsamfut.executor.deliver import Deliverer
from balsamfut.futures import FINISHED, TaskFuture
from balsamfut.messages import (
    Accepted,
    Answer,
    Cancel,
    Ending,
    Keep,
    KillTasks,
    Rejected,
    Running,
    Settled,
    Submit,
    Watch,
)
from balsamfut.model import AppKind, AppSpec, Options, Resources, TaskClass, TaskState

APP = AppSpec("f", AppKind.PYTHON, b"d" * 16)
CLASS = TaskClass(APP.digest, b"p" * 16, Resources(), Options())
DEFINED = Definition([(1, CLASS)], [APP], [(APP.digest, b"code")])
READY, DONE, FAILED = TaskState.READY, TaskState.DONE, TaskState.FAILED


def call(*needs: TaskFuture[Any]) -> Call:
    return Call((TaskFuture(None, 0, APP), 1, b"args", needs))


def submit(session: Session, *calls: Call) -> Submit:
    (message,) = session.take(calls)
    assert isinstance(message, Submit)
    return message


def accepted(session: Session, *pairs: tuple[int, int]) -> None:
    assert session.handle(Accepted([(n, task, READY, False) for n, task in pairs])) == []


def test_calls_are_numbered_in_the_order_in_which_they_are_sent_and_definitions_go_before_them() -> None:
    session = Session()
    first, second = call(), call()
    (message,) = session.take([DEFINED, first, second])
    assert isinstance(message, Submit)
    assert [spec.n for spec in message.specs] == [1, 2] and message.classes == [(1, CLASS)]
    assert (first[0]._n, second[0]._n) == (1, 2)
    assert submit(session, call()).classes == [], "told once"


def test_a_need_is_a_task_id_once_there_is_one_and_a_call_number_before() -> None:
    session = Session()
    known, new = call(), call()
    submit(session, known)
    accepted(session, (1, 70))
    message = submit(session, new, call(known[0], new[0]))
    assert message.specs[1].needs == (70, -2)


def test_acked_is_the_last_number_below_which_all_is_acknowledged() -> None:
    session = Session()
    assert submit(session, call(), call(), call()).acked == 0
    accepted(session, (2, 8))
    assert submit(session, call()).acked == 0
    accepted(session, (1, 7), (3, 9))
    assert submit(session, call()).acked == 3


def test_an_acknowledgement_that_comes_twice_or_for_nothing_changes_nothing() -> None:
    session = Session()
    submit(session, call())
    accepted(session, (1, 7), (1, 7), (5, 9))
    assert session.outstanding == 1
    assert len(session.handle(Settled([Ending(7, DONE), Ending(7, DONE), Ending(9, DONE)]))) == 1
    assert session.outstanding == 0


def test_equal_calls_may_share_a_task() -> None:
    session = Session()
    one, two = call(), call()
    submit(session, one, two)
    accepted(session, (1, 7), (2, 7))
    assert session.outstanding == 1
    ending = Ending(7, DONE, b"x")
    assert session.handle(Settled([ending])) == [(one[0], ending), (two[0], ending)]


def test_running_is_told_to_the_future() -> None:
    session = Session()
    one = call()
    submit(session, one)
    accepted(session, (1, 7))
    session.handle(Running([(7, True), (99, True)]))
    assert one[0].running()
    session.handle(Running([(7, False)]))
    assert not one[0].running()


def test_a_rejected_call_is_over_and_knows_what_it_needed() -> None:
    session = Session()
    base = call()
    dependent = call(base[0])
    submit(session, base, dependent)
    rejected = Rejected(2, "InvalidResources", "too large")
    ((future, refusal),) = session.handle(rejected)  # type: ignore[misc]
    assert future is dependent[0] and refusal == Refusal(rejected, (base[0],))
    assert session.handle(rejected) == []
    assert session.outstanding == 1


def test_a_question_goes_after_the_calls_that_it_is_about_and_its_answer_after_their_end() -> None:
    session = Session()
    sent, new, done = call(), call(), call()
    submit(session, sent)
    accepted(session, (1, 7))
    done[0].settle(FINISHED, 1)
    ask = Ask(Wish.CANCEL, [sent[0], new[0], done[0]])
    submitted, cancel = session.take([new, ask])
    assert isinstance(submitted, Submit) and cancel == Cancel(1, [7, -2])
    assert session.handle(Answer(1, [False, True])) == [(new[0], None), ask]
    assert ask.results == [False, True, False]
    assert session.outstanding == 1
    assert session.handle(Answer(1, [True, True])) == [], "answered once"


def test_a_killed_task_stays_open_until_its_end_is_told() -> None:
    session = Session()
    one = call()
    submit(session, one)
    accepted(session, (1, 7))
    ask = Ask(Wish.KILL, [one[0]])
    assert session.take([ask]) == [KillTasks(1, [7])]
    assert session.handle(Answer(1, [True])) == [ask] and ask.results == [True]
    assert session.outstanding == 1


def test_a_question_about_nothing_that_is_open_is_answered_here() -> None:
    session = Session()
    done = call()[0]
    done.settle(FINISHED, 1)
    ask = Ask(Wish.CANCEL, [done])
    assert session.take([ask]) == []
    assert ask.answered.is_set() and ask.results == [False]


def test_a_new_interchange_is_told_everything_that_is_open() -> None:
    session = Session()
    known, open_, promise, unsent = call(), call(), call(), call()
    dependent = call(known[0], promise[0])
    kept = Kept(promise[0], True, b"value")
    session.take([DEFINED, known, open_, promise])
    accepted(session, (1, 7), (2, 8))
    session.handle(Settled([Ending(7, DONE, b"x")]))
    session.take([dependent, kept, Ask(Wish.CANCEL, [open_[0]])])
    resent, watch, keep, cancel = session.resend()
    assert isinstance(resent, Submit) and resent.resent
    assert [(spec.n, spec.needs) for spec in resent.specs] == [(3, ()), (4, (7, -3))]
    assert resent.classes == [(1, CLASS)] and resent.codes == DEFINED.codes and resent.acked == 2
    assert watch == Watch([8]) and keep == Keep(3, True, b"value") and cancel == Cancel(2, [8])
    assert [spec.n for spec in submit(session, unsent).specs] == [5]
    accepted(session, (3, 9))
    session.handle(Settled([Ending(9, DONE, b"value")]))
    assert not any(isinstance(message, Keep) for message in session.resend()), "a promise that is over was kept"


class SessionMachine(RuleBasedStateMachine):
    """The model: what the user was promised (a future for each call) against interchanges that die at any moment.

    The interchange records calls by number; what it had sent but we had not read is lost with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.session = Session()
        self.calls: list[Call] = []
        self.recorded: dict[int, int] = {}      # the database: number -> task
        self.over: set[int] = set()             # tasks
        self.inbox: list[Any] = []              # what this interchange has sent
        self.watched: set[int] = set()          # tasks of which this interchange will tell
        self.told: dict[int, int] = {}          # by id of the future
        self.resumed = False

    def process(self, message: Any) -> None:
        if isinstance(message, Submit):
            for spec in message.specs:
                for need in spec.needs:
                    assert need > 0 or -need in self.recorded or any(other.n == -need for other in message.specs)
                assert message.resent or spec.n not in self.recorded, "only a resend repeats a number"
                assert not self.resumed or self.defined, "a new interchange knows no class"
                task = self.recorded.setdefault(spec.n, 1000 + spec.n)
                self.watched.add(task)
                self.inbox.append(Accepted([(spec.n, task, READY, False)]))
                if task in self.over:
                    self.inbox.append(Settled([Ending(task, DONE, b"x")]))
        elif isinstance(message, Watch):
            self.watched.update(message.tasks)
            self.inbox.extend(Settled([Ending(task, DONE, b"x")]) for task in message.tasks if task in self.over)

    def send(self, messages: list[Any]) -> None:
        for message in messages:
            self.defined = self.defined or bool(message.classes) if isinstance(message, Submit) else self.defined
            self.process(message)

    defined = False

    @rule(data=st.data(), count=st.integers(1, 3))
    def submit(self, data: st.DataObject, count: int) -> None:
        entries: list[Any] = [] if self.calls else [DEFINED]
        for _ in range(count):
            needs = data.draw(st.lists(st.sampled_from(self.calls), max_size=2)) if self.calls else []
            entries.append(call(*[need[0] for need in needs]))
            self.calls.append(entries[-1])
        self.send(self.session.take(entries))

    @precondition(lambda self: self.inbox)
    @rule()
    def read(self) -> None:
        for future, _ in self.session.handle(self.inbox.pop(0)):  # type: ignore[misc]
            self.told[id(future)] = self.told.get(id(future), 0) + 1
            future.settle(FINISHED, 1)

    @precondition(lambda self: set(self.recorded.values()) - self.over)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(set(self.recorded.values()) - self.over)))
        self.over.add(task)
        if task in self.watched:
            self.inbox.append(Settled([Ending(task, DONE, b"x")]))

    @rule()
    def die(self) -> None:
        self.inbox.clear()
        self.watched.clear()
        self.defined = False
        self.resumed = True
        self.send(self.session.resend())

    @invariant()
    def check(self) -> None:
        assert all(count == 1 for count in self.told.values()), "each future is told once"
        open_ = [future for future, *_ in self.calls if not future.done()]
        assert {id(future) for future in self.session.futures()} == {id(future) for future in open_}
        for future in open_:
            assert future._n in self.recorded, "what was sent is recorded"
            assert self.recorded[future._n] in self.watched, "somebody will tell how it ends"

    def teardown(self) -> None:
        self.over.update(self.recorded.values())
        self.die()
        while self.inbox:
            self.read()
        assert self.session.outstanding == 0
        assert all(future.done() for future, *_ in self.calls)


SessionMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestSessionMachine = SessionMachine.TestCase


# ---- endings into futures


@pytest.fixture
def deliverer(tmp_path: Path) -> Deliverer:
    return Deliverer(tmp_path)


def future(task: int = 7) -> TaskFuture[Any]:
    made: TaskFuture[Any] = TaskFuture(None, 1, APP)
    made._id = task
    return made


def failure(exc: BaseException) -> bytes:
    return serialize.dumps_exception(exc, host="nid1", worker="worker 2")


def test_a_result_that_does_not_unpickle_fails_its_future_alone(deliverer: Deliverer) -> None:
    bad, good = future(), future(8)
    deliverer.deliver((bad, Ending(7, DONE, b"garbage")))
    deliverer.deliver((good, Ending(8, DONE, serialize.dumps_result([1])[0])))
    assert isinstance(bad.exception(), DeserializationError) and good.result() == [1]


def test_a_callback_that_exits_does_not_end_the_thread(deliverer: Deliverer, caplog: pytest.LogCaptureFixture) -> None:
    made = future()
    made.add_done_callback(lambda _: (_ for _ in ()).throw(SystemExit(3)))
    deliverer.deliver((made, Ending(7, DONE, serialize.dumps_result(1)[0])))
    assert made.result() == 1 and "SystemExit" in caplog.text


def test_what_a_failure_took_down_has_the_roots_own_exception_as_cause(deliverer: Deliverer) -> None:
    root, child, grandchild = future(1), future(2), future(3)
    payload = failure(ValueError("x"))
    deliverer.deliver((root, Ending(1, FAILED, payload)))
    deliverer.deliver((child, Ending(2, TaskState.UPSTREAM_FAILED, payload, root=1)))
    deliverer.deliver((grandchild, Ending(3, TaskState.UPSTREAM_FAILED, payload, root=1)))
    for taken in (child, grandchild):
        exc = taken.exception()
        assert isinstance(exc, UpstreamFailed) and exc.__cause__ is root.exception()
        assert "1" in str(exc) and exc.task_id == 1
        assert taken.state is TaskState.UPSTREAM_FAILED


def test_the_cause_comes_with_the_message_where_nobody_has_the_roots_future(deliverer: Deliverer) -> None:
    child = future(2)
    deliverer.deliver((child, Ending(2, TaskState.UPSTREAM_FAILED, failure(ValueError("x")), root=1)))
    exc = child.exception()
    assert exc is not None and isinstance(exc.__cause__, ValueError)


def test_cancelled_killed_and_failed_without_an_exception(deliverer: Deliverer) -> None:
    cancelled, killed, failed = future(1), future(2), future(3)
    deliverer.deliver((cancelled, Ending(1, TaskState.CANCELLED, None, "it was cancelled")))
    deliverer.deliver((killed, Ending(2, TaskState.CANCELLED, serialize.error_payload(TaskKilled("by you")))))
    deliverer.deliver((failed, Ending(3, FAILED, None, "the disk is full")))
    assert cancelled.cancelled()
    assert isinstance(killed.exception(), TaskKilled)
    assert isinstance(failed.exception(), TaskError) and "disk" in str(failed.exception())


def test_a_failed_initializer_breaks_the_session(deliverer: Deliverer) -> None:
    deliverer.deliver((future(), Ending(7, FAILED, serialize.error_payload(InitializerFailed("no licence")))))
    assert deliverer.broken is not None and "no licence" in str(deliverer.broken)


def test_a_rejected_call_raises_the_error_that_was_named(deliverer: Deliverer) -> None:
    made, need = future(0), future(0)
    cause = KeyError("k")
    need.settle(FINISHED, exception=cause)
    deliverer.deliver((made, Refusal(Rejected(1, "UpstreamFailed", "call 1 failed"), [need])))
    exc = made.exception()
    assert isinstance(exc, UpstreamFailed) and exc.__cause__ is cause
