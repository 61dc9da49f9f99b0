"""Task keys within one interpreter (between interpreters: tests/process/test_keys_process.py)."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import pickle
import re
import statistics
import threading
import uuid
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsamfut.keys import Unhashable, call_key, code_key, parameter_names

APP = b"0123456789abcdef"


def key(*args, **kwargs):
    return call_key(APP, args, kwargs)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Conf:
    a: object = 1
    b: object = 2


class Loose:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


Pair = collections.namedtuple("Pair", "a b")

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=4)
    | st.tuples(inner, inner) | st.frozensets(scalars, max_size=4) | inner.map(Conf), max_leaves=12)


@settings(max_examples=50, deadline=None)
@given(values)
def test_a_copy_has_the_same_key(value):
    assert len(key(value)) == 16
    assert key(value) == key(copy.deepcopy(value)) == key(pickle.loads(pickle.dumps(value)))


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(scalars, values, max_size=6), st.randoms())
def test_the_order_of_dicts_and_keywords_does_not_count(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert key(value) == key(dict(items))
    named = {repr(name): item for name, item in value.items()}
    assert call_key(APP, (), named) == call_key(APP, (), dict(sorted(named.items(), reverse=True)))


@pytest.mark.parametrize("value", [{"a": [1], "b": [2]}, {"a": 1, "b": Conf()},
                                   {1: [], "1": {}}, {None: [1], (1, 2): {2}}])
def test_a_dict_read_backwards_has_the_same_key(value):
    assert key(value) == key(dict(reversed(value.items())))


def test_different_values_have_different_keys():
    different = [
        1, 1.0, True, "1", b"1", 1j, None, ..., 0, 0.0, -0.0, False, "", b"", bytearray(), (), [], {}, set(),
        frozenset(), [1], (1,), {1}, frozenset({1}), [[1]], [(1,)], [1, 2], [2, 1], {1: 2},
        {2: 1}, {"1": 2}, {True: 2, "a": 1},
        float("nan"), float("inf"), 2**70, -2**70, range(3), range(4), slice(3), Colour.RED, Colour.BLUE,
        Conf(), Conf(2),
        Pair(1, 2), (1, 2), Pair(1, 3), Loose(), Loose(a=1), Slotted(1), Slotted(2), decimal.Decimal("1"),
        fractions.Fraction(1), uuid.UUID(int=1), pathlib.PurePosixPath("/a"), pathlib.PurePosixPath("/b"), "/a",
        datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        datetime.timedelta(1), len, max, str.upper, "a".upper, "b".upper, int, Conf, statistics.fmean, statistics,
        functools.partial(len, [1]), functools.partial(len, [2]), functools.partial(len), re.compile("a"),
        re.compile("b"),
        collections.OrderedDict(a=1), {"a": 1}, {"a": 1.0}, collections.Counter("a"), collections.deque([1]), list[int],
        list[str], lambda x: x + 1, lambda x: x + 2, Conf(1).__eq__, Conf(2).__eq__, "\ud800",
    ]
    keys = [key(value) for value in different]
    for i, one in enumerate(keys):
        assert one not in keys[:i], f"{different[i]!r} and {different[keys.index(one)]!r}"


def test_position_and_name_count():
    keys = [key(1, 2), key(2, 1), key((1, 2)), key(1, b=2), key(a=1, b=2), key(a=2, b=1), key(1), key(),
            call_key(b"another app's key", (1, 2), {})]
    assert len(set(keys)) == len(keys)


def test_identity_does_not_count():
    shared = [Conf()]
    assert key(shared, shared) == key([Conf()], [Conf()])
    assert key([shared, shared]) == key([[Conf()], [Conf()]])


def test_sharing_does_not_cost_exponentially():
    deep = [Conf()]
    for _ in range(60):
        deep = [deep, deep]
    assert key(deep)


def test_futures_count_as_their_tasks():
    def future(of, occurrence=0):
        made = Future()
        made.key, made.occurrence = of, occurrence
        return made
    assert key([future(b"k" * 16)]) == key([future(b"k" * 16)])
    assert len({key(future(b"k" * 16)), key(future(b"l" * 16)), key(future(b"k" * 16, 1))}) == 3
    for nameless in (Future(), future(None)):
        with pytest.raises(Unhashable, match="argument 0, element 1: .* the future of something that has no key"):
            key([1, nameless])


def test_what_cannot_be_hashed_is_named_with_its_place():
    with pytest.raises(Unhashable, match="argument 'conf', key 'a', element 1, .*Conf, key 'b': .*_thread.lock"):
        key(conf={"a": [1, Conf(b=threading.Lock())]})
    ring: list = []
    ring.append(ring)
    with pytest.raises(Unhashable, match="contains itself"):
        key(ring)
    with pytest.raises(Unhashable, match="argument 0: an object of type builtins.generator"):
        key(i for i in ())
    lock = threading.Lock()
    with pytest.raises(Unhashable, match="enclosed variable 'lock'"):
        code_key(lambda: lock)
    deep: list = [Conf()]
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Unhashable, match="nested too deeply"):
        key(deep)
    while deep and isinstance(deep[0], list):
        deep = deep[0]


def test_attributes_that_a_dataclass_grows_do_not_count():
    grown = Conf()
    grown.cache = object()
    assert key(grown) == key(Conf())


def test_arrays_count_by_type_shape_and_content():
    np = pytest.importorskip("numpy")
    keys = [key(np.arange(6)), key(np.arange(6.0)), key(np.arange(6).reshape(2, 3)), key(np.arange(6).reshape(3, 2)),
            key(np.array([])), key(np.array(3)), key(np.float64(3)), key(np.array(["a", 1], dtype=object)), key([0, 1]),
            key(np.array(["2020"], dtype="M8[D]")), key(np.zeros(2, dtype=[("x", "i4"), ("y", "f8")]))]
    assert len(set(keys)) == len(keys)
    base = np.arange(12).reshape(3, 4)
    assert key(base[:, 1]) == key(base[:, 1].copy()) == key(np.asfortranarray(base)[:, 1])


# ---- names and what is left out


def example(a, /, b, *rest, c=1, **more):
    pass


def test_names_make_positional_and_keyword_arguments_the_same():
    names = parameter_names(example)
    assert names == ("/a", "b")

    def named(*args, **kwargs):
        return call_key(APP, args, kwargs, names=names)
    assert named(1, 2) == named(1, b=2) != named(1, 3)
    assert named(1, 2, a=5) != named(5, 2)
    assert named(1, 2, 3) != named(1, 2)
    assert parameter_names(print) == ()


def test_ignored_parameters_do_not_count():
    names = parameter_names(example)
    one = call_key(APP, (1, 2), {"c": 3}, names=names, ignore=("a", "c"))
    assert one == call_key(APP, (9, 2), {"c": threading.Lock()}, names=names, ignore=("a", "c"))
    assert one != call_key(APP, (1, 8), {"c": 3}, names=names, ignore=("a", "c"))


# ---- code


def load(source, name="f", file="a.py"):
    scope = {"__name__": "__main__"}
    exec(compile(source, file, "exec"), scope)
    return scope[name]


BODY = "def f(n, m=2):\n    k = [n + i for i in range(3)]\n    return sum(k) * m\n"


def test_files_lines_comments_docstrings_and_annotations_do_not_count():
    same = ["\n\n# far down\n" + BODY, BODY.replace("    k", "    # why\n\n    k"),
            BODY.replace("    k", "    'says what'\n    k"),
            BODY.replace("(n, m=2)", "(n: int, m: 'float' = 2) -> int")]
    for i, source in enumerate(same):
        assert code_key(load(source, file=f"/other/{i}.py")) == code_key(load(BODY)), source


def test_what_a_function_does_counts():
    sources = [BODY, BODY.replace("* m", "+ m"), BODY.replace("m=2", "m=3"), BODY.replace("range(3)", "range(4)"),
               BODY.replace("n + i", "n - i"), BODY.replace("sum(k)", "max(k)"),
               BODY.replace("(n, m=2)", "(n, *, m=2)"),
               BODY.replace("n, m=2", "m, n=2"), "async " + BODY, BODY.replace("f(", "g(")]
    keys = [code_key(load(source, "g" if "def g" in source else "f")) for source in sources]
    assert len(set(keys)) == len(keys)


def test_the_functions_and_plain_globals_that_it_uses_count():
    source = ("class C:\n    size = 4\n    def area(self): return self.size\nSTEP = 1\n"
              "def help(n): return n + STEP\ndef f(n): return help(n) + C().area()\n"
              "def unused(): return 0\nOTHER = 1\n")
    one = code_key(load(source))
    assert one == code_key(load(source.replace("OTHER = 1", "OTHER = 2").replace("return 0", "return 1")))
    for old, new in [("STEP = 1", "STEP = 2"), ("n + STEP", "n - STEP"), ("size = 4", "size = 5"),
                     ("return self.size", "return -self.size")]:
        assert one != code_key(load(source.replace(old, new))), new


def test_functions_that_call_each_other_have_keys():
    source = "def f(n): return g(n - 1) if n else 0\ndef g(n): return f(n) + 1\n"
    assert code_key(load(source)) == code_key(load(source)) != code_key(load(source.replace("+ 1", "+ 2")))

    def outer(step):
        def inner(n):
            return inner(n - step) if n else 0
        return inner
    assert code_key(outer(1)) == code_key(outer(1)) != code_key(outer(2))


def test_a_function_has_the_same_key_wherever_it_was_met_before():
    def recursive():
        def down(n):
            return down(n - 1) if n else 0
        return down

    def using(down):
        return lambda n, go=down: go(n)
    one, other = recursive(), recursive()
    assert key([using(one), one]) == key([using(other), one]) == key([using(one), other])


def test_running_a_function_does_not_change_its_key():
    func = load(BODY)
    before = code_key(func)
    for _ in range(1000):
        func(1)
    assert code_key(func) == before


def test_a_version_stands_for_the_code():
    one, other = load(BODY), load(BODY.replace("* m", "+ m"))
    assert code_key(one, version="1") == code_key(other, version="1")
    assert len({code_key(one, version="1"), code_key(one, version="2"), code_key(one)}) == 3
    assert code_key(load(BODY.replace("f(", "g("), "g"), version="1") != code_key(one, version="1")


def test_hooks_and_call_operators_count():
    one, other = load(BODY), load(BODY.replace("* m", "+ m"))
    assert len({code_key(one), code_key(one, (one,)), code_key(one, (other,)), code_key(one, (one, one))}) == 4

    class Calls:
        def __call__(self):
            return 1
    first = code_key(Calls())
    Calls.__call__ = lambda self: 2
    assert code_key(Calls()) != first


@pytest.mark.parametrize("func", [len, statistics.fmean, "".join, functools.partial(len), functools.lru_cache(len),
                                  Conf, Conf().__init__, re.compile("x").match])
def test_anything_callable_has_a_code_key(func):
    assert len(code_key(func)) == 16
