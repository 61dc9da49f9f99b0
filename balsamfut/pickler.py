"""cloudpickle, taught what tasks need: futures, modules that workers cannot import, one home for __main__'s globals.

Three things differ from cloudpickle itself:

* Code of a module that another interpreter with the same sys.path would not find (a file loaded by hand, a notebook's
  helper) travels by value, as that of `__main__` does.
* All functions of one such module share one globals dict in a worker, also when they arrive one by one: what an
  initializer does to a global is seen by the tasks that follow.  A global that the sender has not changed does not
  overwrite what the worker made of it.
* Classes and functions that come home are the home's own: the class itself, unchanged; the function with the globals
  of the module that it is from.

Importing this module imports cloudpickle (30 ms), so `balsamfut.pickling` does it only when something needs it.
This module must not know what becomes of a future: it is told by its caller.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import os
import pickle
import sys
import types
import uuid
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import IO, Any, Final

import cloudpickle  # type: ignore[import-untyped, unused-ignore]


def _home() -> str:
    """Where namespaces begin that this process names.

    A script is known by its path: run again, its functions are the same bytes and so the same code in the record.
    What has no path (a notebook, a worker) is known by nothing but itself.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return blake2b(os.path.abspath(script).encode(), digest_size=16).hexdigest() if script else uuid.uuid4().hex


HOME: Final = _home()

Reducer = Callable[[Any], Any]


class Pickler(cloudpickle.Pickler):  # type: ignore[misc, unused-ignore]
    """`on_future` reduces every concurrent.futures.Future; `on_exception`, if given, every exception."""

    def __init__(self, file: IO[bytes], on_future: Reducer, on_exception: Reducer | None = None) -> None:
        super().__init__(file, protocol=5)
        self._on_future = on_future
        self._on_exception = on_exception

    def reducer_override(self, obj: Any) -> Any:
        # By type(obj) alone: isinstance() would look at obj.__class__, which makes lazy proxies compute themselves.
        kind = type(obj)
        if kind is types.FunctionType:
            return self._function(obj)
        if issubclass(kind, type):
            return self._class(obj)
        if issubclass(kind, Future):
            return self._on_future(obj)
        if kind is _Globals:
            return namespace, (obj.token, dict(obj))
        if kind is types.ModuleType:
            _look_at(obj.__name__)
        elif self._on_exception is not None and issubclass(kind, BaseException):
            return self._on_exception(obj)
        return NotImplemented

    def _function(self, func: types.FunctionType) -> Any:
        _look_at(func.__module__)
        scope = func.__globals__
        if id(scope) not in self.globals_ref and (token := _token(scope)):
            self.globals_ref[id(scope)] = _Globals(token)
        reduced = super().reducer_override(func)
        if reduced is NotImplemented or len(reduced) != 6:
            return reduced
        make, args, state, _, _, setter = reduced
        prints = {name: mark for name, value in state[1]["__globals__"].items() if (mark := _print(value))}
        return make, args, (setter, state, prints), None, None, settle_function

    def _class(self, cls: Any) -> Any:
        _look_at(getattr(cls, "__module__", None))
        reduced = super().reducer_override(cls)
        if reduced is NotImplemented or len(reduced) != 6:
            return reduced
        if cls not in _received:
            _native.add(cls)
        make, args, state, _, _, setter = reduced
        return make, args, (setter, state), None, None, settle_class


# ---- classes

_native: weakref.WeakSet[type] = weakref.WeakSet()     # made in this process, and sent from here
_received: weakref.WeakSet[type] = weakref.WeakSet()   # made elsewhere


def settle_class(cls: type, sent: tuple[Callable[[type, Any], Any], Any]) -> None:
    """Fill in a class that arrived by value, unless it is one of our own that comes home."""
    if cls not in _native:
        _received.add(cls)
        setter, state = sent
        setter(cls, state)


# ---- the globals of modules that travel by value


class _Globals(dict[str, Any]):
    """Stands for a module's globals while they are pickled."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self.token = token


@dataclass
class _Namespace:
    """The globals of a module of another process."""

    token: str
    scope: dict[str, Any] = field(default_factory=dict)
    prints: dict[str, bytes] = field(default_factory=dict)   # what was last sent, by name


_namespaces: dict[str, _Namespace] = {}       # by token
_by_scope: dict[int, _Namespace] = {}         # by id(scope); they live as long as the process


def _token(scope: dict[str, Any]) -> str:
    """The name of these globals in every process; "" where they are of no module (exec, a module that was replaced)."""
    known = _by_scope.get(id(scope))
    if known is not None:
        return known.token
    name = scope.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    return f"{HOME}:{name}" if getattr(module, "__dict__", None) is scope else ""


def namespace(token: str, first: dict[str, Any]) -> dict[str, Any]:
    """The globals of that name in this process, made with `first` in them if need be."""
    home, _, name = token.partition(":")
    if home == HOME and name in sys.modules:
        return vars(sys.modules[name])
    space = _namespaces.setdefault(token, _Namespace(token))
    _by_scope[id(space.scope)] = space
    for key, value in first.items():
        space.scope.setdefault(key, value)
    return space.scope


def _print(value: object) -> bytes:
    """A fingerprint of a global that is data; b"" for code, and for what only cloudpickle can pickle."""
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)):
        return b""
    try:
        return blake2b(pickle.dumps(value, 5), digest_size=16).digest()
    except Exception:
        return b""


def settle_function(func: types.FunctionType, sent: tuple[Callable[..., Any], Any, dict[str, bytes]]) -> None:
    """Give a function that arrived by value its state, and its namespace the globals that are news there."""
    setter, state, prints = sent
    scope, shipped = func.__globals__, state[1]["__globals__"]
    space = _by_scope.get(id(scope))
    if space is not None:
        for name, mark in prints.items():
            if name in scope and space.prints.get(name) == mark:
                del shipped[name]
        space.prints.update(prints)
    elif _token(scope):   # a function of ours that comes home
        for name in [name for name in shipped if name in scope]:
            del shipped[name]
    setter(func, state)
    if space is None:
        scope["__builtins__"] = builtins   # where cloudpickle leaves a dict


# ---- modules

_seen: dict[str, object] = {}


def _look_at(name: object) -> None:
    """See to it that cloudpickle sends what is of this module by value, if other processes could not import it."""
    if not isinstance(name, str) or name == "__main__":
        return
    module = sys.modules.get(name)
    if module is None or _seen.get(name) is module:
        return
    if isinstance(module, types.ModuleType) and module.__name__ == name and not importable(module):
        cloudpickle.register_pickle_by_value(module)
    _seen[name] = module


def importable(module: types.ModuleType) -> bool:
    """Whether a fresh interpreter with this sys.path would, by this name, import the same file.

    Modules without Python source (builtin, compiled, made by their parents) cannot travel, so they count as importable
    where their top-level package does.
    """
    name = module.__name__
    top, _, rest = name.partition(".")
    if top in sys.stdlib_module_names:
        return True
    source = getattr(module, "__file__", None)
    if source is None or not source.endswith((".py", ".pyc")):
        return bool(source) or _find(top, None) is not None
    path: Any = None
    parts = name.split(".")
    for depth in range(1, len(parts)):
        parent = sys.modules.get(".".join(parts[:depth]))
        if _find(".".join(parts[:depth]), path) is None or parent is None:
            return False
        path = getattr(parent, "__path__", None)
    spec = _find(name, path)
    return spec is not None and spec.origin is not None and _same_file(spec.origin, source)


def _find(name: str, path: Any) -> importlib.machinery.ModuleSpec | None:
    # Not importlib.util.find_spec, which answers from sys.modules what was loaded by hand.
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except Exception:   # a finder that is somebody else's, and unwell
            continue
        if spec is not None:
            return spec
    return None


def _same_file(one: str, other: str) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)
