"""Task keys: 16-byte names of calls, equal for equal calls in every interpreter, on every day, under every hash seed.

A key is a Merkle hash (blake2b-128) of the app's code and a canonical form of the arguments: sets and dicts sorted by
the hashes of their keys, no trace of object identity, addresses, file names, line numbers or comments.  Futures
contribute the key of their task, so a key is known before anything has run.  Code is `balsamfut.codekeys`' part.
What cannot be written down canonically is refused with `Unhashable`.  This module pickles nothing and runs no task.
"""

from __future__ import annotations

import copyreg
import marshal
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import contextmanager
from hashlib import blake2b
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GenericAlias,
    MappingProxyType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from balsamfut.codekeys import CodeScope

_SCALARS: Final = frozenset({int, float, complex, str, bytes, bool, type(None), type(...)})
_all_scalars: Final = _SCALARS.issuperset
_all_text: Final = frozenset({str}).issuperset
_VERSION: Final = b"1"
"""Of this way of hashing: another number makes all keys new."""


class Unhashable(TypeError):
    """Something has no canonical form; the message says what, and where.  Calls with it have no key."""


def call_key(app_key: bytes, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, names: tuple[str, ...] = (),
             ignore: Iterable[str] = ()) -> bytes:
    """The key of one call: 16 bytes.

    names: the names of the leading positional parameters (see `parameter_names`); with them f(1) and f(x=1) are the
    same call.  ignore: parameters that do not count (positional ones: only where `names` tells them).
    Raises Unhashable.
    """
    if names and args:
        kwargs = {**dict(zip(names, args)), **kwargs}   # noqa: B905 - there may be more of either
        args = args[len(names):]
    if ignore:
        left_out = set(ignore)
        kwargs = {name: value for name, value in kwargs.items() if name.lstrip("/") not in left_out}
    if _all_scalars(map(type, args)) and (not kwargs or _all_scalars(map(type, kwargs.values()))):
        plain = marshal.dumps((args, sorted(kwargs.items())) if kwargs else args, 2)
        return blake2b(app_key + b"p" + plain, digest_size=16).digest()
    encoder = Encoder()
    parts = [b"a", *encoder.each("argument {}", args)]
    for name in sorted(kwargs):
        with encoder.at(f"argument {name!r}"):
            parts += [digest(name.encode()), encoder.encode(kwargs[name])]
    return digest(app_key, *parts)


def code_key(func: Callable[..., Any], hooks: Iterable[Callable[..., Any]] = (), version: str | None = None) -> bytes:
    """The app's part of its calls' keys: 16 bytes.

    With a version: the function's name and that alone.  Else its code, that of its hooks, and of all functions of the
    user's own that they use, with the plain values of the globals that they read.
    Raises Unhashable (a default or an enclosed variable without a canonical form).
    """
    name = getattr(func, "__qualname__", type(func).__qualname__)
    if version is not None:
        return digest(b"version", _VERSION, name.encode(), b"=", str(version).encode())
    encoder = Encoder()
    with encoder.at(f"function {name}"):
        parts = [encoder.encode(func)]
        if not isinstance(func, type) and isinstance(getattr(type(func), "__call__", None), FunctionType):  # noqa: B004
            parts.append(encoder.encode(type(func)))   # an object with __call__: that is the code
    for hook in hooks:
        with encoder.at(f"hook {getattr(hook, '__qualname__', hook)}"):
            parts.append(encoder.encode(hook))
    return digest(b"code", _VERSION, digest(name.encode()), *parts)


def parameter_names(func: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the positional parameters, for `call_key`; () where the function tells none.

    Those that are positional only begin with "/": a keyword of the same name is another argument.
    """
    import inspect

    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(("/" if parameter.kind is parameter.POSITIONAL_ONLY else "") + parameter.name
                 for parameter in parameters
                 if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD))


def digest(*parts: bytes) -> bytes:
    """16 bytes.  Parts are joined as they are: all but one must have a fixed length, or a mark in front."""
    return blake2b(b"".join(parts), digest_size=16).digest()


class Encoder:
    """Values to 16-byte digests.  One per key; not for several threads."""

    def __init__(self) -> None:
        self.scope: CodeScope | None = None      # inside a function's code: which functions have been seen in it
        self._path: list[str] = []
        self._active: set[int] = set()           # the objects that we are inside of, by id
        self._known: dict[int, tuple[object, bytes]] = {}   # saves time for what occurs often; keeps ids valid

    def encode(self, value: Any) -> bytes:
        """Raises Unhashable."""
        kind = type(value)
        if kind in _SCALARS:
            return digest(b"p", marshal.dumps(value, 2))
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        if id(value) in self._active:
            if self.scope is not None and isinstance(value, (FunctionType, type)):
                return self.scope.code(value)
            raise self.unhashable(value, "contains itself")
        self._active.add(id(value))
        try:
            found = (_KINDS.get(kind) or _special(value) or Encoder._object)(self, value)
        except RecursionError:
            raise self.unhashable(value, "is nested too deeply") from None
        finally:
            self._active.discard(id(value))
        if self.scope is None:   # inside code, digests of functions depend on where they are met
            self._known[id(value)] = (value, found)
        return found

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Adds to the path that an Unhashable names."""
        self._path.append(place)
        yield
        self._path.pop()   # not after an exception: the message has been made, and this encoder is over

    def each(self, place: str, values: Iterable[Any]) -> list[bytes]:
        found = []
        self._path.append("")
        for index, value in enumerate(values):
            self._path[-1] = place.format(index)
            found.append(self.encode(value))
        self._path.pop()
        return found

    def unhashable(self, value: object, why: str) -> Unhashable:
        places = [place for place in self._path if place]
        where = ", ".join(places if len(places) <= 10 else [*places[:10], "..."])
        return Unhashable(f"{where or 'the value'}: an object of type {_type_name(type(value))} {why}")

    # ---- containers

    def _list(self, value: list[Any] | tuple[Any, ...]) -> bytes:
        tag = b"l" if type(value) is list else b"t"
        if _all_scalars(map(type, value)):
            return digest(tag, b"p", marshal.dumps(value, 2))
        return digest(tag, *self.each("element {}", value))

    def _dict(self, value: Mapping[Any, Any]) -> bytes:
        if _all_text(map(type, value)):
            if _all_scalars(map(type, value.values())):
                return digest(b"d", b"p", marshal.dumps(sorted(value.items()), 2))
            pairs = []
            for name in sorted(value):
                with self.at(f"key {name!r}"):
                    pairs.append(digest(name.encode("utf-8", "surrogatepass")) + self.encode(value[name]))
            return digest(b"d", b"s", *pairs)
        pairs = [key + self.encode(value[name])
                 for key, name in sorted(((self.encode(name), name) for name in value), key=lambda pair: pair[0])]
        return digest(b"d", b"m", *pairs)

    def _set(self, value: set[Any] | frozenset[Any]) -> bytes:
        return digest(b"S" if type(value) is set else b"F", *sorted(self.each("an element", value)))

    # ---- names

    def _class(self, cls: type) -> bytes:
        from balsamfut.codekeys import CodeScope

        return CodeScope.of(self, cls)

    def _function(self, func: FunctionType) -> bytes:
        from balsamfut.codekeys import CodeScope

        return CodeScope.of(self, func)

    def _code(self, code: CodeType) -> bytes:
        from balsamfut.codekeys import code_digest

        return code_digest(self, code, {})

    def _module(self, module: ModuleType) -> bytes:
        return digest(b"M", module.__name__.encode())

    def _builtin(self, func: Any) -> bytes:
        owner = func.__self__
        if owner is None or isinstance(owner, ModuleType):
            return digest(b"B", f"{func.__module__}:{func.__qualname__}".encode())
        return digest(b"b", self.encode(owner), func.__name__.encode())

    def _descriptor(self, func: Any) -> bytes:   # str.upper, int.__add__
        return digest(b"D", self.encode(func.__objclass__), func.__name__.encode())

    def _method(self, method: MethodType) -> bytes:
        with self.at("its object"):
            return digest(b"m", self.encode(method.__self__), self.encode(method.__func__))

    def _alias(self, alias: Any) -> bytes:       # list[int]
        return digest(b"A", self.encode(alias.__origin__), *self.each("parameter {}", alias.__args__))

    # ---- everything else

    def _future(self, future: Future[Any]) -> bytes:
        key = getattr(future, "key", None)
        if key is None:
            raise self.unhashable(future, "is the future of something that has no key")
        return digest(b"U", digest(key), str(getattr(future, "occurrence", 0)).encode())

    def _wrapper(self, value: Any) -> bytes:     # functools.wraps, lru_cache: what it wraps, and by what
        return digest(b"W", _type_name(type(value)).encode(), b":", self.encode(value.__wrapped__))

    def _array(self, array: Any) -> bytes:
        import numpy

        if array.dtype.hasobject:
            return digest(b"O", repr(array.shape).encode(), *self.each("element {}", array.ravel().tolist()))
        data = numpy.ascontiguousarray(array)
        body = blake2b(data.reshape(-1).view(numpy.uint8).data, digest_size=16).digest()
        return digest(b"N", repr((array.dtype.descr, array.shape)).encode(), body)

    def _frame(self, frame: Any) -> bytes:       # pandas: what is shown, not how it lies in memory
        if frame.ndim == 2:
            parts = [self.encode(frame.columns), self.encode(frame.index),
                     *self.each("column {}", (frame.iloc[:, i].array for i in range(frame.shape[1])))]
        elif hasattr(frame, "index"):
            parts = [self.encode(frame.name), self.encode(frame.index), self.encode(frame.array)]
        else:
            parts = [self.encode(list(frame.names)), self.encode(frame.to_numpy())]
        return digest(b"P", digest(_type_name(type(frame)).encode()), *parts)

    def _dataclass(self, value: Any) -> bytes:   # by its fields: caches that grow beside them do not count
        fields = {name: getattr(value, name, None) for name in type(value).__dataclass_fields__}
        with self.at(_type_name(type(value))):
            return digest(b"K", self._maker(type(value)), self._dict(fields))

    def _object(self, value: Any) -> bytes:
        """By what its class tells pickle: how to make it, with what, and its state."""
        try:
            registered: Any = copyreg.dispatch_table.get(type(value))
            reduced = registered(value) if registered else value.__reduce_ex__(4)
        except Exception as exc:
            raise self.unhashable(value, f"cannot be reduced to plain values ({type(exc).__name__}: {exc})") from None
        if isinstance(reduced, str):
            return digest(b"G", f"{getattr(value, '__module__', '')}:{reduced}".encode())
        make, made_of, *rest = reduced
        state, items, pairs = ([*rest, None, None, None])[:3]
        with self.at(_type_name(type(value))):
            # By names: the class of an object tells what its state means, not what its methods do.
            parts = [self._maker(make), self._maker(type(value)),
                     digest(*[self._maker(part) if isinstance(part, type) else self.encode(part) for part in made_of]),
                     self.encode(state)]
            parts.append(digest(*self.each("item {}", items)) if items is not None else bytes(16))
            if pairs is not None:
                parts.append(self._dict(dict(pairs)))
        return digest(b"R", *parts)

    def _maker(self, make: Any) -> bytes:
        name = getattr(make, "__qualname__", None)
        if isinstance(name, str) and not isinstance(make, MethodType):
            return digest(b"C", f"{make.__module__}:{name}".encode())
        return self.encode(make)


def _type_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _special(value: Any) -> Callable[[Encoder, Any], bytes] | None:
    """What is told by its base class, or by a library that we do not import."""
    if isinstance(value, type):
        return Encoder._class
    if issubclass(type(value), Future):
        return Encoder._future
    numpy = sys.modules.get("numpy")
    if numpy is not None and type(value) in (numpy.ndarray, numpy.memmap):
        return Encoder._array
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, (pandas.DataFrame, pandas.Series, pandas.Index)):
        return Encoder._frame
    kind: Any = type(value)
    if hasattr(kind, "__dataclass_fields__") and kind.__reduce_ex__ is object.__reduce_ex__ \
            and kind.__reduce__ is object.__reduce__:
        return Encoder._dataclass
    if callable(value) and callable(getattr(value, "__wrapped__", None)):
        return Encoder._wrapper
    return None


def _bytes(tag: bytes) -> Callable[[Encoder, Any], bytes]:
    return lambda encoder, value: digest(tag, bytes(value))


_KINDS: Final[dict[type, Callable[[Encoder, Any], bytes]]] = {
    list: Encoder._list, tuple: Encoder._list, dict: Encoder._dict, set: Encoder._set, frozenset: Encoder._set,
    MappingProxyType: Encoder._dict, bytearray: _bytes(b"y"), memoryview: _bytes(b"v"), type: Encoder._class,
    FunctionType: Encoder._function, CodeType: Encoder._code, ModuleType: Encoder._module,
    BuiltinFunctionType: Encoder._builtin, MethodWrapperType: Encoder._builtin, MethodType: Encoder._method,
    WrapperDescriptorType: Encoder._descriptor, type(str.upper): Encoder._descriptor, GenericAlias: Encoder._alias,
}
