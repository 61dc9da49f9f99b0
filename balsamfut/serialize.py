"""Payloads: what clients and workers put into the opaque bytes that everybody else only carries.

Functions (`dumps_code`), arguments with slots for futures (`dumps_args`, `loads_args`), results (`dumps_result`,
`loads`), exceptions (`dumps_exception`, `loads_exception`), and the files of large payloads (`stow`, `fetch`).
Importing this module is cheap, since the interchange does it too; it must not know tasks, sessions or sockets.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any, Final

from balsamfut.errors import DeserializationError, SerializationError
from balsamfut.model import Blob, Joined, Payload
from balsamfut.pickling import SCALARS, Slots, dump, load, one_line, plain, plain_call, slot, slot_for
from balsamfut.raised import dumps_exception, error_payload, revive_exception

if TYPE_CHECKING:
    import inspect
    from pathlib import Path

__all__ = [
    "BARE_SLOT", "AppCode", "digest16", "dumps_args", "dumps_code", "dumps_exception", "dumps_result", "error_payload",
    "fetch", "futures_in", "loads", "loads_args", "loads_code", "loads_exception", "one_line", "slot", "slot_for",
    "stow",
]

_dumps: Final = pickle.dumps
_scalars: Final = SCALARS.issuperset
Args = tuple[tuple[Any, ...], dict[str, Any]]


def digest16(data: bytes) -> bytes:
    """The 16-byte name of code or of a pool."""
    return blake2b(data, digest_size=16).digest()


# ---- code


class AppCode:
    """What a worker needs to run an app: the function, the template if it is one, the hooks by their names."""

    __slots__ = ("func", "hooks", "template")

    def __init__(self, func: Callable[..., Any] | None, template: str | None = None,
                 hooks: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self.func = func
        self.template = template
        self.hooks: dict[str, Callable[..., Any]] = dict(hooks or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return AppCode, (self.func, self.template, self.hooks)

    @property
    def name(self) -> str:
        """Of the function, for people."""
        inner: Any = self.func
        while not hasattr(inner, "__qualname__") and hasattr(inner, "func"):   # functools.partial
            inner = inner.func
        return str(getattr(inner, "__qualname__", None) or type(inner).__qualname__)

    def parameters(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, defaults included: what a template or a hook sees.

        Raises TypeError where they do not fit, as a call would.
        """
        import inspect

        try:
            signature: inspect.Signature = inspect.signature(self.func)  # type: ignore[arg-type]
        except (TypeError, ValueError):   # C functions may tell nothing
            return {"args": args, "kwargs": dict(kwargs)}
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)


def dumps_code(code: AppCode) -> bytes:
    """Raises SerializationError, naming the function, if it or a hook cannot be pickled or holds a future.

    A future in a parameter's default is left out: the caller passes it as an argument (see `futures_in`).
    """
    slots = Slots(absent=True)
    data = dump(code, slots, lambda: f"the function {code.name}")
    if slots.futures:
        defaults = {id(future) for future in futures_in((getattr(code.func, "__defaults__", None),
                                                        getattr(code.func, "__kwdefaults__", None)))}
        for future in slots.futures:
            if id(future) not in defaults:
                raise SerializationError(f"the function {code.name} uses {future!r} as a global or enclosed variable; "
                                         "pass it as an argument, then the task will wait for it and get its value")
    return data


def loads_code(data: bytes) -> AppCode:
    """Raises DeserializationError."""
    code = load(data)
    if not isinstance(code, AppCode):
        raise DeserializationError(f"this is the pickle of {type(code).__name__}, not of an app's code")
    return code


# ---- arguments


def dumps_args(args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "") -> tuple[bytes, list[Future[Any]]]:
    """(pickle, the futures found in it in the order of their slots, each once).

    name: of the function, for the message.  Raises SerializationError, which names the argument.
    """
    if not kwargs and _scalars(map(type, args)) or plain_call(args, kwargs):
        return _dumps((args, kwargs), 5), []
    slots = Slots()
    data = dump((args, kwargs), slots, lambda: _culprit(args, kwargs, name))
    return data, slots.futures


def loads_args(data: bytes, values: Sequence[object] = ()) -> Args:
    """`values` fill the slots.  Raises DeserializationError."""
    return load(data, values or None)  # type: ignore[no-any-return]


def futures_in(value: object) -> list[Future[Any]]:
    """The futures at any depth in a value, each once.  Raises SerializationError if it cannot be pickled."""
    if plain(value):
        return []
    slots = Slots()
    dump(value, slots, lambda: f"an object of type {type(value).__qualname__}")
    return slots.futures


def _culprit(args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> str:
    """Which argument it is that cannot be pickled."""
    places = [(f"argument {i + 1}", value) for i, value in enumerate(args)]
    places += [(f"argument {key!r}", value) for key, value in kwargs.items()]
    of = f" of {name}" if name else ""
    for place, value in places:
        try:
            futures_in(value)
        except SerializationError:
            return f"{place}{of} (a {type(value).__qualname__})"
    return f"the arguments{of}"


# ---- results


def dumps_result(value: object) -> tuple[bytes, list[Future[Any]]]:
    """(pickle, []) of a value, or (pickle with slots, the tasks' futures) of a future or a list, tuple, dict of them.

    Raises SerializationError naming the type, also where futures are hidden elsewhere in the value.
    """
    if type(value) in SCALARS or plain(value):
        return _dumps(value, 5), []
    slots = Slots()
    data = dump(value, slots, lambda: f"the result, of type {type(value).__qualname__},")
    if slots.futures:
        _check_returned(value, slots.futures)
    return data, slots.futures


def _check_returned(value: object, found: list[Future[Any]]) -> None:
    if isinstance(value, Future):
        plain_sight = [value]
    elif type(value) in (list, tuple):
        plain_sight = [part for part in value if isinstance(part, Future)]  # type: ignore[attr-defined]
    elif type(value) is dict:
        plain_sight = [part for part in value.values() if isinstance(part, Future)]
    else:
        plain_sight = []
    seen = {id(future) for future in plain_sight}
    if any(id(future) not in seen for future in found):
        raise SerializationError(f"the result, of type {type(value).__qualname__}, has a future hidden inside it; only "
                                 "a future, or a list, tuple or dict of futures, can be returned")
    for future in found:
        if not hasattr(type(future), "task_id"):   # what tells a TaskFuture, of a module above this one
            raise SerializationError(f"the result holds {future!r}, which is no task's future; return its value")


class _Bare:
    def __reduce__(self) -> tuple[Any, ...]:
        return slot, (0,)


BARE_SLOT: Final = _dumps(_Bare(), 5)
"""The template of a task that returned one future and nothing around it: its value is the value of that task."""


# ---- payloads


def loads(payload: Payload, read: Callable[[Blob], bytes]) -> Any:
    """The value of a payload; `read` brings files.  Raises DeserializationError."""
    while type(payload) is Joined and payload.template == BARE_SLOT and len(payload.parts) == 1:
        payload = payload.parts[0]   # tasks that return each other's futures may nest deeper than Python's stack
    if type(payload) is bytes:
        return load(payload)
    if isinstance(payload, Blob):
        return load(_read(payload, read))
    assert isinstance(payload, Joined)
    try:
        values = [loads(part, read) for part in payload.parts]
    except RecursionError as exc:
        raise DeserializationError("results of tasks that return futures are nested too deeply") from exc
    return load(payload.template, values)


def loads_exception(payload: Payload, read: Callable[[Blob], bytes]) -> BaseException:
    """The exception of a payload; never raises, returns the reason instead where there is no getting at it."""
    try:
        data = _read(payload, read) if isinstance(payload, Blob) else payload
        assert isinstance(data, bytes), "an exception's payload has no slots"
        return revive_exception(data)
    except Exception as exc:
        return exc if isinstance(exc, DeserializationError) else DeserializationError(one_line(exc))


def _read(blob: Blob, read: Callable[[Blob], bytes]) -> bytes:
    try:
        return read(blob)
    except DeserializationError:
        raise
    except Exception as exc:
        raise DeserializationError(f"the payload {blob.digest} cannot be read: {one_line(exc)}") from exc


# ---- files of large payloads


def stow(data: bytes, objects: Path, inline: int, *, sync: bool = False) -> Payload:
    """`data` itself up to `inline` bytes, else the name of the file under `objects` that holds it now.

    sync: not before it would survive the loss of the machine.  Raises OSError, leaving no part of a file.
    """
    if len(data) <= inline:
        return data
    digest = sha256(data).hexdigest()
    blob = Blob(digest, len(data))
    folder = objects / digest[:2]
    path = folder / digest
    try:
        if os.stat(path).st_size == len(data):
            return blob
    except FileNotFoundError:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f".{digest}.{os.getpid()}.{threading.get_ident()}"
    try:
        _write(temporary, data, sync)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        _sync(folder)
    return blob


def _write(path: Path, data: bytes, sync: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest):]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fetch(blob: Blob, objects: Path) -> bytes:
    """The bytes of a payload that was stowed.  Raises DeserializationError if the file is gone or of another size."""
    path = objects / blob.digest[:2] / blob.digest
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DeserializationError(f"the stored payload {path} cannot be read: {exc.strerror or exc}") from exc
    if len(data) != blob.size:
        raise DeserializationError(f"the stored payload {path} has {len(data)} bytes; {blob.size} were written")
    return data
