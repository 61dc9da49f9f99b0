"""Exceptions on their way from where they were raised to where they are raised again.

They travel as themselves: with their attributes, their tracebacks (flattened here, rebuilt by tblib) and all that hangs
on `__cause__` and `__context__`.  Around the pickle lies a plain tuple (pickle, remote traceback, type, text, reason),
which can always be read: an exception that cannot be pickled, or not be unpickled, is told by its text.
Must not know tasks, nor who is to blame.
"""

from __future__ import annotations

import pickle
from types import FunctionType, SimpleNamespace, TracebackType
from typing import Any, Final

from balsamfut.errors import DeserializationError, RemoteTraceback, SerializationError
from balsamfut.pickling import Slots, dump, load, one_line, safe_str

_TEXT: Final = 50_000     # characters of a text that are kept, from its beginning and from its end
_FRAMES: Final = 40       # frames of a traceback that are kept, from its beginning and from its end

Frames = list[tuple[str, str, int, str, str]]   # (file, function, line, module's name, module's file)
Wrapped = tuple[bytes | None, str, str, str, str]


def dumps_exception(exc: BaseException, *, host: str, worker: str) -> bytes:
    """Pickle an exception that was raised in this process, for `loads_exception`.  Never raises.

    host, worker: for people, in the remote traceback.
    """
    where = " ".join(part for part in (f"on {host}" if host else "", f"in {worker}" if worker else "") if part)
    text = f"Raised {where}\n{_formatted(exc)}" if where else _formatted(exc)
    inner, reason = _inner(exc)
    wrapped: Wrapped = (inner, text, type(exc).__qualname__, _cut(safe_str(exc)), reason)
    return pickle.dumps(wrapped, 5)


def error_payload(exc: BaseException) -> bytes:
    """Pickle an exception that our own processes made and nobody raised: no traceback, no cloudpickle."""
    wrapped: Wrapped = (pickle.dumps(exc, 5), "", type(exc).__qualname__, safe_str(exc), "")
    return pickle.dumps(wrapped, 5)


def revive_exception(data: bytes) -> BaseException:
    """What `dumps_exception` or `error_payload` pickled, with a RemoteTraceback at the end of its causes.

    Never raises: returns SerializationError where it could not be pickled, DeserializationError where it cannot be
    unpickled, with the original's type and text.
    """
    try:
        inner, remote, name, text, reason = pickle.loads(data)
    except Exception as exc:
        return DeserializationError(f"this is no pickled exception: {one_line(exc)}")
    revived: BaseException
    if inner is None:
        kind = DeserializationError if reason.startswith("un") else SerializationError
        revived = kind(_told(name, text, reason, remote))
    else:
        try:
            revived = load(inner)
            if not isinstance(revived, BaseException):
                raise DeserializationError(f"it unpickled to {type(revived).__name__}, which is no exception")
        except DeserializationError as exc:
            revived = DeserializationError(_told(name, text, safe_str(exc), remote))
    if remote:
        _end_of_causes(revived).__cause__ = RemoteTraceback(remote)
    return revived


def _told(name: str, text: str, reason: str, remote: str) -> str:
    return f"{name} was raised, and cannot be brought here as it is ({reason}). Its text: {text}\n{remote}"


def _end_of_causes(exc: BaseException) -> BaseException:
    """The last of the explicit causes that is not itself a remote traceback (the new one tells that one too)."""
    seen = {id(exc)}
    while (cause := exc.__cause__) is not None and id(cause) not in seen and type(cause) is not RemoteTraceback:
        exc = cause
        seen.add(id(exc))
    return exc


def _formatted(exc: BaseException) -> str:
    import traceback

    try:
        return _cut("".join(traceback.format_exception(exc)))
    except Exception as again:   # a class that breaks even the formatter
        return f"{type(exc).__qualname__} (no traceback: {one_line(again)})\n"


def _cut(text: str) -> str:
    return text if len(text) <= 2 * _TEXT else f"{text[:_TEXT]}\n[...]\n{text[-_TEXT:]}"


def _inner(exc: BaseException) -> tuple[bytes | None, str]:
    """(the pickle, ""), or (None, why there is none).  Its causes are left behind rather than lose the exception."""
    reason = ""
    for reduce in (_reduce_with_chain, _reduce_alone):
        try:
            data = dump(exc, Slots(absent=True), lambda: "it", reduce)
            trusted = type(exc).__module__ in ("builtins", "balsamfut.errors")
            if not trusted and not isinstance(load(data), BaseException):
                raise DeserializationError("unpickling makes no exception of it")
            return data, ""
        except (SerializationError, DeserializationError) as failure:
            reason = reason or safe_str(failure)
    return None, reason


# ---- reducing an exception: used by the pickler for every one that it meets


def _reduce_with_chain(exc: BaseException) -> Any:
    return _reduce(exc, (exc.__cause__, exc.__context__, exc.__suppress_context__))


def _reduce_alone(exc: BaseException) -> Any:
    return _reduce(exc, (None, None, exc.__suppress_context__))


def _reduce(exc: BaseException, chain: tuple[BaseException | None, BaseException | None, bool]) -> Any:
    reduced = exc.__reduce_ex__(5)
    if not isinstance(reduced, tuple) or any(part is not None for part in reduced[3:]):
        return reduced
    make, args, *rest = reduced
    base = _builtin_base(type(exc))
    # A constructor of another shape cannot be called with exc.args, and need not be: the attributes travel as well.
    bare = (make is type(exc) and isinstance(type(exc).__init__, FunctionType)
            and type(exc).__reduce__ is base.__reduce__ and type(exc).__reduce_ex__ is base.__reduce_ex__)
    state = rest[0] if rest else None
    # The chain goes with the state, after the exception itself is known to the pickler: it may lead back here.
    return remake, (make, args, base if bare else None), (state, _frames(exc.__traceback__), chain), None, None, equip


def _builtin_base(cls: type[BaseException]) -> type[BaseException]:
    """The builtin class that lays out its instances: with several, the largest."""
    return max((base for base in cls.__mro__ if base.__module__ == "builtins" and issubclass(base, BaseException)),
               key=lambda base: base.__basicsize__)


def remake(make: Any, args: tuple[Any, ...], base: type[BaseException] | None) -> BaseException:
    """Called while unpickling: the exception without its state.  base: initialise that much only, in C."""
    if base is None:
        return make(*args)  # type: ignore[no-any-return]
    exc: BaseException = base.__new__(make, *args)
    base.__init__(exc, *args)
    return exc


def equip(exc: BaseException, sent: tuple[Any, Frames, tuple[Any, Any, bool]]) -> None:
    """Called while unpickling: attributes, traceback, causes."""
    state, frames, (cause, context, suppress) = sent
    if state is not None:
        exc.__setstate__(state)
    exc.__cause__, exc.__context__ = cause, context
    exc.__suppress_context__ = suppress   # last: setting __cause__ sets it
    exc.__traceback__ = _traceback(frames)


def _frames(tb: TracebackType | None) -> Frames:
    frames: Frames = []
    while tb is not None:
        code, scope = tb.tb_frame.f_code, tb.tb_frame.f_globals
        frames.append((code.co_filename, code.co_name, tb.tb_lineno,
                       safe_str(scope.get("__name__", "")), safe_str(scope.get("__file__", ""))))
        tb = tb.tb_next
    return frames if len(frames) <= 2 * _FRAMES else frames[:_FRAMES] + frames[-_FRAMES:]


def _traceback(frames: Frames) -> TracebackType | None:
    if not frames:
        return None
    import tblib

    nested = None
    for file, function, line, module, module_file in reversed(frames):
        code = SimpleNamespace(co_filename=file, co_name=function)
        frame = SimpleNamespace(f_globals={"__name__": module, "__file__": module_file}, f_code=code, f_lineno=line)
        nested = SimpleNamespace(tb_frame=frame, tb_lineno=line, tb_next=nested)
    return tblib.Traceback(nested).as_traceback()  # type: ignore[no-any-return]
