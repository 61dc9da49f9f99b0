"""Payloads, there and back in one process (across processes: tests/process/test_serialize_process.py)."""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
import sys
import threading
import traceback
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsamfut import errors, serialize
from balsamfut.errors import DeserializationError, RemoteTraceback, SerializationError
from balsamfut.model import Blob, Joined


class TaskLike(Future):
    """What serialize knows of a TaskFuture."""

    task_id = 1

    def __reduce__(self):
        return serialize.slot_for(self)


@dataclasses.dataclass
class Box:
    inside: object


class OtherShape(Exception):
    def __init__(self, code, extra):
        super().__init__(f"failed with {code}")
        self.code = code
        self.extra = extra


class OtherShapeOS(OSError):
    def __init__(self, path):
        super().__init__(2, "no such thing", path)


class NeedsLock(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class ExitsWhenRevived(Exception):
    def __reduce__(self):
        return sys.exit, (3,)


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text today")


def never_read(blob):
    raise AssertionError("no file should be read")


def arrive(exc, host="nid1", worker="w7"):
    return serialize.loads_exception(serialize.dumps_exception(exc, host=host, worker=worker), never_read)


def raised(exc, cause=None):
    try:
        if cause is None:
            raise exc
        raise exc from cause
    except BaseException as caught:
        return caught


# ---- arguments

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    | st.tuples(inner, inner) | inner.map(Box), max_leaves=12)


@settings(max_examples=40, deadline=None)
@given(args=st.lists(values, max_size=3).map(tuple), kwargs=st.dictionaries(st.text(max_size=5), values, max_size=3))
def test_arguments_arrive_as_they_were(args, kwargs):
    data, futures = serialize.dumps_args(args, kwargs)
    assert futures == []
    assert serialize.loads_args(data) == (args, kwargs)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=8), st.sampled_from([list, tuple, Box, lambda x: {"deep": [{"er": (x,)}]},
                                                                  lambda x: functools.partial(print, x)]))
def test_futures_at_any_depth_become_slots_each_once(picks, wrap):
    pool = [TaskLike() if i % 2 else Future() for i in range(5)]
    data, futures = serialize.dumps_args((wrap([pool[i] for i in picks]),), {})
    assert futures == [pool[i] for i in dict.fromkeys(picks)]
    values = [f"value of {pool.index(future)}" for future in futures]
    (got,), _ = serialize.loads_args(data, values)
    expected = wrap([f"value of {i}" for i in picks])
    assert repr(got) == repr(expected)


def test_a_future_may_be_a_dict_key_a_set_member_and_an_attribute():
    one, two = Future(), TaskLike()
    data, futures = serialize.dumps_args(({one: two},), {"s": {one}, "b": Box(two)})
    assert futures == [one, two]
    assert serialize.loads_args(data, ["a", "b"]) == (({"a": "b"},), {"s": {"a"}, "b": Box("b")})


def test_a_value_that_cannot_be_where_its_future_was_is_a_deserialization_error():
    data, _ = serialize.dumps_args(({Future(): 1},), {})
    with pytest.raises(DeserializationError, match="unhashable"):
        serialize.loads_args(data, [[]])


def test_missing_values_are_told():
    data, _ = serialize.dumps_args((Future(), Future()), {})
    with pytest.raises(DeserializationError, match="no value for slot 1"):
        serialize.loads_args(data, ["only one"])
    with pytest.raises(DeserializationError, match="no value for slot 0"):
        serialize.loads_args(data)


def test_a_future_cannot_be_pickled_outside_of_an_argument_or_result():
    with pytest.raises(SerializationError, match="pass it as an argument"):
        pickle.dumps(TaskLike())


class PicklesWithin:
    """Pickles and unpickles something of its own on the way, as a cache or a compressing wrapper does."""

    def __init__(self, inside):
        self.inside = inside

    def __reduce__(self):
        return unpickle_within, (serialize.dumps_args((Box(1),), {})[0], pickle.dumps(self.inside))


def unpickle_within(own, inside):
    assert serialize.loads_args(own) == ((Box(1),), {})
    assert serialize.loads_args(serialize.dumps_args((Future(),), {})[0], ["inner"]) == (("inner",), {})
    return PicklesWithin(pickle.loads(inside))


def test_pickling_within_pickling_keeps_the_slots_of_both_apart():
    first, second, third = TaskLike(), TaskLike(), TaskLike()
    data, futures = serialize.dumps_args((first, PicklesWithin([second]), third), {})
    assert futures == [first, second, third]
    (a, b, c), _ = serialize.loads_args(data, [1, 2, 3])
    assert (a, b.inside, c) == (1, [2], 3)


def test_plain_arguments_do_not_go_through_the_slow_pickler(monkeypatch):
    import balsamfut.pickler
    monkeypatch.setattr(balsamfut.pickler, "Pickler", None)
    serialize.dumps_args((1, 2.0, "x", b"y", None, True, [1, 2], {"a": 1}), {"k": (1, 2)})
    serialize.dumps_result([1, "a"])
    with pytest.raises(SerializationError):
        serialize.dumps_args((Box(1),), {})


def test_an_argument_that_cannot_be_pickled_is_named():
    with pytest.raises(SerializationError, match=r"argument 2 of simulate \(a lock\) cannot be pickled: TypeError"):
        serialize.dumps_args((1, threading.Lock()), {}, "simulate")
    with pytest.raises(SerializationError, match=r"argument 'conf' of simulate \(a dict\) cannot be pickled"):
        serialize.dumps_args((), {"conf": {"a": threading.Lock()}}, "simulate")


class Reduces:
    def __init__(self, exc):
        self.exc = exc

    def __reduce__(self):
        raise self.exc


@pytest.mark.parametrize("exc", [SystemExit(1), RuntimeError("x"), MemoryError(), RecursionError()])
def test_whatever_pickling_raises_is_a_serialization_error(exc):
    with pytest.raises(SerializationError, match="(?i)" + type(exc).__name__.removesuffix("Error")):
        serialize.dumps_args((Reduces(exc),), {})
    data, _ = serialize.dumps_args((1,), {})   # and the next one is not disturbed
    assert serialize.loads_args(data) == ((1,), {})


def test_keyboard_interrupt_passes_through():
    with pytest.raises(KeyboardInterrupt):
        serialize.dumps_args((Reduces(KeyboardInterrupt()),), {})


def test_what_is_nested_too_deeply_is_a_serialization_error():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="recursion"):
        serialize.dumps_args((deep,), {})


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps(ExitsWhenRevived())])
def test_what_does_not_unpickle_is_a_deserialization_error(data):
    with pytest.raises(DeserializationError):
        serialize.loads(data, never_read)


# ---- results


def test_a_returned_future_or_container_of_futures_has_slots():
    a, b = TaskLike(), TaskLike()
    for value, expected in [(a, 1), ([a, b, a], [1, 2, 1]), ((b, 7), (1, 7)), ({"x": a, "y": 5}, {"x": 1, "y": 5})]:
        data, futures = serialize.dumps_result(value)
        assert futures
        joined = Joined(data, [pickle.dumps(i + 1) for i in range(len(futures))])
        assert serialize.loads(joined, never_read) == expected
    assert serialize.dumps_result(a)[0] == serialize.BARE_SLOT


@pytest.mark.parametrize("hide", [Box, lambda f: [[f]], lambda f: [f, [TaskLike()]], lambda f: {f: 1}, lambda f: {f}])
def test_a_future_hidden_in_a_result_is_refused(hide):
    with pytest.raises(SerializationError, match="future hidden inside"):
        serialize.dumps_result(hide(TaskLike()))


def test_somebody_elses_future_cannot_be_returned():
    with pytest.raises(SerializationError, match="no task's future"):
        serialize.dumps_result([Future()])


def test_an_empty_container_is_a_value():
    assert serialize.dumps_result([]) == (pickle.dumps([], 5), [])


def test_a_result_that_cannot_be_pickled_is_named_by_its_type():
    with pytest.raises(SerializationError, match="of type lock, cannot be pickled"):
        serialize.dumps_result(threading.Lock())


def test_joined_payloads_are_filled_at_any_depth(tmp_path):
    inner, _ = serialize.dumps_result([TaskLike(), TaskLike()])
    outer, _ = serialize.dumps_result({"a": TaskLike(), "b": TaskLike()})
    blob = serialize.stow(pickle.dumps("from a file"), tmp_path, 0)
    payload = Joined(outer, [Joined(inner, [pickle.dumps(1), blob]), pickle.dumps(2)])
    assert serialize.loads(payload, lambda b: serialize.fetch(b, tmp_path)) == {"a": [1, "from a file"], "b": 2}


def test_a_long_chain_of_returned_futures_does_not_need_the_stack():
    payload = pickle.dumps("end")
    for _ in range(50_000):
        payload = Joined(serialize.BARE_SLOT, [payload])
    assert serialize.loads(payload, never_read) == "end"
    while isinstance(payload, Joined):   # taken apart from outside, so that its end needs no stack either
        payload = payload.parts.pop()


# ---- code


def test_code_travels_with_template_and_hooks():
    offset = 3
    code = serialize.loads_code(serialize.dumps_code(serialize.AppCode(
        lambda x, y=2: x + y + offset, "echo {{ x }}", {"postprocess": lambda task: task})))
    assert code.func(1) == 6
    assert code.template == "echo {{ x }}"
    assert code.hooks["postprocess"](5) == 5
    assert code.parameters((1,), {}) == {"x": 1, "y": 2}


def test_code_that_cannot_be_pickled_is_named():
    lock = threading.Lock()

    def simulate():
        return lock
    with pytest.raises(SerializationError, match=r"the function .*simulate cannot be pickled: TypeError: .*lock"):
        serialize.dumps_code(serialize.AppCode(simulate))


def test_a_future_enclosed_in_a_function_is_refused_and_one_in_a_default_is_left_out():
    future = TaskLike()
    with pytest.raises(SerializationError, match="pass it as an argument"):
        serialize.dumps_code(serialize.AppCode(lambda: future))

    def with_default(inputs=[future]):  # noqa: B006
        return inputs
    code = serialize.loads_code(serialize.dumps_code(serialize.AppCode(with_default)))
    assert code.func([1]) == [1]
    assert "absent" in repr(code.func())
    assert serialize.futures_in(with_default.__defaults__) == [future]


# ---- exceptions


def test_an_exception_arrives_with_its_traceback_and_where_it_was_raised():
    def fails_here():
        return 1 / 0
    try:
        fails_here()
    except ZeroDivisionError as exc:
        back = arrive(exc)
    assert type(back) is ZeroDivisionError
    assert back.args == ("division by zero",)
    assert traceback.extract_tb(back.__traceback__)[-1].name == "fails_here"
    assert type(back.__cause__) is RemoteTraceback
    assert "on nid1 in w7" in str(back.__cause__)
    assert "in fails_here" in str(back.__cause__)


def test_causes_and_contexts_survive_and_the_remote_traceback_is_the_last_cause():
    first = raised(KeyError("first"))
    second = raised(OtherShape(5, "x"), first)
    third = raised(ValueError("third"), second)
    back = arrive(third)
    assert type(back) is ValueError
    assert type(back.__cause__) is OtherShape
    assert (back.__cause__.code, back.__cause__.extra, str(back.__cause__)) == (5, "x", "failed with 5")
    assert type(back.__cause__.__cause__) is KeyError
    assert type(back.__cause__.__cause__.__cause__) is RemoteTraceback
    try:
        try:
            raise KeyError("context")
        except KeyError:
            raise ValueError("main")  # noqa: B904
    except ValueError as exc:
        assert type(arrive(exc).__context__) is KeyError


def test_chains_that_form_a_ring_arrive():
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    back = arrive(a)
    assert str(back) == "a"
    assert str(back.__cause__) == "b"


def test_an_exception_that_arrived_and_is_raised_again_has_one_remote_traceback():
    back = arrive(raised(arrive(raised(ValueError("x")), worker="child")), worker="parent")
    assert type(back.__cause__) is RemoteTraceback
    assert back.__cause__.__cause__ is None
    assert "in parent" in str(back.__cause__)
    assert "in child" in str(back.__cause__)


@pytest.mark.parametrize("exc", [
    OtherShape(1, [2]), OtherShapeOS("/there"), SystemExit(4), KeyboardInterrupt(), StopIteration(5),
    OSError(2, "no", "name"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), ImportError("x", name="n", path="p"),
    errors.ShellError("bad", returncode=3, host="h"), errors.UpstreamFailed("up", task_id=9),
    ExceptionGroup("two", [ValueError(1), OtherShape(1, 2)]), NoText()], ids=lambda exc: type(exc).__name__)
def test_exceptions_come_back_as_themselves(exc):
    back = arrive(raised(exc))
    assert type(back) is type(exc)
    assert repr(back.args) == repr(exc.args)
    assert repr(vars(back)) == repr(vars(exc))
    for name in ("errno", "strerror", "filename", "code", "value", "reason", "name", "path"):
        assert repr(getattr(back, name, None)) == repr(getattr(exc, name, None))


def test_notes_survive():
    exc = ValueError("x")
    exc.add_note("look here")
    assert arrive(exc).__notes__ == ["look here"]


def test_an_exception_that_cannot_be_pickled_is_told_by_its_text():
    back = arrive(raised(NeedsLock("the text")))
    assert type(back) is SerializationError
    assert "NeedsLock was raised" in str(back)
    assert "the text" in str(back)
    assert "Traceback (most recent call last)" in str(back)


def test_an_exception_that_cannot_be_unpickled_is_told_by_its_text():
    back = arrive(raised(ExitsWhenRevived("the text")))
    assert type(back) is DeserializationError
    assert "ExitsWhenRevived was raised" in str(back)
    assert "the text" in str(back)


def test_a_cause_that_cannot_be_pickled_does_not_cost_the_exception():
    back = arrive(raised(ValueError("main"), NeedsLock("cause")))
    assert type(back) is ValueError
    assert "NeedsLock: cause" in str(back.__cause__)


def test_a_recursion_error_arrives_with_a_shortened_traceback():
    def down():
        return down()
    try:
        down()
    except RecursionError as exc:
        back = arrive(exc)
    assert type(back) is RecursionError
    assert len(traceback.extract_tb(back.__traceback__)) < 100


def test_garbage_and_missing_files_in_place_of_an_exception_are_told(tmp_path):
    assert type(serialize.loads_exception(b"garbage", never_read)) is DeserializationError
    gone = serialize.loads_exception(Blob("ab" * 32, 5), lambda blob: serialize.fetch(blob, tmp_path))
    assert "cannot be read" in str(gone)


def test_our_own_errors_need_no_traceback():
    back = serialize.loads_exception(serialize.error_payload(errors.JoinError("x", task_ids=(1, 2))), never_read)
    assert type(back) is errors.JoinError
    assert back.task_ids == (1, 2)
    assert back.__cause__ is None


# ---- files


def test_large_payloads_are_files_named_by_their_content(tmp_path):
    assert serialize.stow(b"x" * 10, tmp_path, 10) == b"x" * 10
    blob = serialize.stow(b"x" * 11, tmp_path, 10)
    assert isinstance(blob, Blob)
    path = tmp_path / blob.digest[:2] / blob.digest
    assert path.read_bytes() == b"x" * 11
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert serialize.fetch(blob, tmp_path) == b"x" * 11
    before = os.stat(path).st_ino
    assert serialize.stow(b"x" * 11, tmp_path, 10, sync=True) == blob
    assert os.stat(path).st_ino == before
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_was_cut_short_is_seen_and_written_anew(tmp_path):
    blob = serialize.stow(b"y" * 100, tmp_path, 10)
    path = tmp_path / blob.digest[:2] / blob.digest
    path.write_bytes(b"y")
    with pytest.raises(DeserializationError, match="has 1 bytes; 100 were written"):
        serialize.fetch(blob, tmp_path)
    serialize.stow(b"y" * 100, tmp_path, 10)
    assert serialize.fetch(blob, tmp_path) == b"y" * 100


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(src, dst):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        serialize.stow(b"z" * 100, tmp_path, 10)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
