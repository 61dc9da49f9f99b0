"""Objects to bytes and back: the plain fast path, the pickler for everything else, and slots in place of futures.

A future that is met while pickling leaves a slot behind, and whoever unpickles brings a value for each slot.  Whatever
goes wrong in either direction becomes a SerializationError or DeserializationError with the reason; KeyboardInterrupt
alone passes through.  This module must not know what is pickled (arguments, results, code): see `balsamfut.serialize`.
"""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from balsamfut.errors import DeserializationError, SerializationError

SCALARS: Final = frozenset({int, float, str, bytes, bool, type(None)})
_SMALL: Final = 64
_all_scalars: Final = SCALARS.issuperset


class Slots:
    """The futures that one pickling meets, each once, in the order of their slots."""

    def __init__(self, absent: bool = False) -> None:
        self.futures: list[Future[Any]] = []
        self._index: dict[int, int] = {}
        self._absent = absent   # nobody will bring values: leave a mark that says what was there

    def take(self, future: Future[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Record the future; the reduction that stands for it."""
        index = self._index.setdefault(id(future), len(self.futures))
        if index == len(self.futures):
            self.futures.append(future)
        return (AbsentFuture, (repr(future),)) if self._absent else (slot, (index,))


class AbsentFuture:
    """What is left of a future in something that had to travel without it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"<absent {self.text}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return AbsentFuture, (self.text,)


class _Local(threading.local):
    slots: Slots | None = None                # of the pickling that goes on in this thread
    values: Sequence[object] | None = None    # for the slots of the unpickling that goes on in this thread


_local = _Local()


def slot_for(future: Future[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The reduction of a future: a slot, while one of our picklers is at work in this thread.

    Raises SerializationError elsewhere.
    """
    slots = _local.slots
    if slots is None:
        raise SerializationError(f"{future!r} cannot be pickled or copied: pass it as an argument of a call, or return "
                                 "it from a task, and its value will be there")
    return slots.take(future)


def slot(index: int) -> object:
    """Called while unpickling: the value for this slot."""
    values = _local.values
    if values is None or index >= len(values):
        raise DeserializationError(f"there is no value for slot {index}: this pickle holds futures, and "
                                   f"{len(values or ())} values came with it")
    return values[index]


def plain(value: object) -> bool:
    """The C pickler alone may have it: scalars, and small flat tuples, lists and dicts of them.  Exact types only."""
    kind = type(value)
    if kind in SCALARS:
        return True
    if kind is tuple or kind is list:
        return len(value) <= _SMALL and _all_scalars(map(type, value))  # type: ignore[arg-type, call-overload]
    if kind is dict:
        return len(value) <= _SMALL and _all_scalars(map(type, value)) and _all_scalars(  # type: ignore[arg-type, call-overload]
            map(type, value.values()))  # type: ignore[attr-defined]
    return False


def plain_call(args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
    """`plain` of all of these: 0.2 us for the usual call."""
    return (_all_scalars(map(type, args)) or all(map(plain, args))) and (
        not kwargs or all(map(plain, kwargs.values())))


def dump(value: object, slots: Slots, what: Callable[[], str],
         on_exception: Callable[[Any], Any] | None = None) -> bytes:
    """Pickle with everything that balsamfut.pickler knows.

    Raises SerializationError; `what` says then what it was that could not be pickled.
    """
    outer = _local.slots
    _local.slots = slots
    try:
        from balsamfut.pickler import Pickler

        with io.BytesIO() as file:
            Pickler(file, slots.take, on_exception).dump(value)
            return file.getvalue()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # user code runs here: __reduce__ and __getstate__ may do anything, even sys.exit
        raise SerializationError(f"{what()} cannot be pickled: {one_line(exc)}") from exc
    finally:
        _local.slots = outer


def load(data: bytes, values: Sequence[object] | None = None) -> Any:
    """Unpickle; `values` fill the slots.  Raises DeserializationError."""
    try:
        if values is None:
            return pickle.loads(data)
        outer = _local.values
        _local.values = values
        try:
            return pickle.loads(data)
        finally:
            _local.values = outer
    except KeyboardInterrupt:
        raise
    except DeserializationError:
        raise
    except BaseException as exc:  # as in dump()
        raise DeserializationError(f"unpickling failed: {one_line(exc)}") from exc


def safe_str(value: object) -> str:
    """str(value), whatever its class does."""
    try:
        return str(value)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        return f"<{type(value).__name__} object, whose str() raised {type(exc).__name__}>"


def one_line(exc: BaseException) -> str:
    """`ValueError: its text` on one line of at most 500 characters."""
    text = " ".join(safe_str(exc)[:2000].split())
    line = f"{type(exc).__qualname__}: {text}" if text else type(exc).__qualname__
    return line if len(line) <= 500 else line[:497] + "..."
