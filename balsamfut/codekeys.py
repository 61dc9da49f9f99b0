"""The canonical form of Python code, for `balsamfut.keys`: what a function does, not where it was written.

A function is its instructions with the constants and names that they use, its defaults, the values of its enclosed
variables, and the globals that it reads: functions and classes of the user's own by their code in turn, plain values as
they are, modules by name, everything else by its type.  File names, line numbers, comments, docstrings, annotations
and the state of the interpreter's specialisation are no part of it.  Code of the standard library and of installed
packages is told by its name.  The result is for one minor version of Python.
"""

from __future__ import annotations

import dis
import enum
import inspect
import sys
from collections.abc import Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from balsamfut.keys import Encoder, digest

_PLAIN: Final = (int, float, complex, str, bytes, type(None), type(...))
_FLAGS: Final = 0xFF | 0x100 | 0x200   # what the code is (generator, *args, ...), not how it was compiled
_READS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")
_SKIPPED: Final = frozenset({"__module__", "__dict__", "__weakref__", "__doc__", "__firstlineno__", "__annotations__",
                             "__static_attributes__", "__annotate__", "__annotate_func__", "_abc_impl"})


class CodeScope:
    """The functions and classes met so far from one root: each is written out once and then referred to by number.

    So recursion, mutual or not, ends; and the numbers do not depend on anything but the code.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []   # so that no id is used twice

    @classmethod
    def of(cls, encoder: Encoder, code: Any) -> bytes:
        """The digest of a function or class, in the encoder's scope or a new one."""
        if encoder.scope is not None:
            return encoder.scope.code(code)
        encoder.scope = cls(encoder)
        try:
            return encoder.scope.code(code)
        finally:
            encoder.scope = None

    def code(self, value: Any) -> bytes:
        if not own(value):
            return digest(b"C", f"{value.__module__}:{value.__qualname__}".encode())
        number = self._numbers.setdefault(id(value), len(self._numbers))
        if number < len(self._kept):
            return digest(b"n", str(number).encode())
        self._kept.append(value)
        return self._class(value) if isinstance(value, type) else self._function(value)

    def _function(self, func: FunctionType) -> bytes:
        encoder = self.encoder
        with encoder.at(f"function {func.__qualname__}"):
            with encoder.at("defaults"):
                defaults = encoder.encode(func.__defaults__), encoder.encode(func.__kwdefaults__)
            cells = []
            for name, cell in zip(func.__code__.co_freevars, func.__closure__ or (), strict=True):
                with encoder.at(f"enclosed variable {name!r}"):
                    try:
                        value = cell.cell_contents
                    except ValueError:   # not assigned yet
                        cells.append(bytes(16))
                    else:
                        cells.append(encoder.encode(value))
            return digest(b"f", *defaults, code_digest(encoder, func.__code__, func.__globals__), *cells)

    def _class(self, cls: type) -> bytes:
        parts = [digest(cls.__qualname__.encode()), *[self.code(base) for base in cls.__bases__]]
        for name, member in sorted(vars(cls).items()):
            if name not in _SKIPPED:
                parts += [digest(name.encode()), self.used(member)]
        if issubclass(cls, enum.Enum):
            parts += [digest(name.encode()) + self.used(member.value) for name, member in cls.__members__.items()]
        return digest(b"c", *parts)

    def used(self, value: Any) -> bytes:
        """What code reads from around it; has no trouble with anything."""
        if isinstance(value, property):
            return digest(b"q", *[self.used(part) for part in (value.fget, value.fset, value.fdel)])
        if isinstance(value, (FunctionType, type)):
            return self.code(value)
        if isinstance(value, ModuleType):
            return digest(b"M", value.__name__.encode())
        wrapped = inspect.getattr_static(value, "__wrapped__", None) or getattr(type(value), "__wrapped__", None)
        if isinstance(value, (classmethod, staticmethod)):
            wrapped = value.__func__
        if isinstance(wrapped, FunctionType):
            return digest(b"W", digest(type(value).__qualname__.encode()), self.code(wrapped))
        if plain(value):
            return self.encoder.encode(value)
        return digest(b"T", f"{type(value).__module__}:{type(value).__qualname__}".encode())


def plain(value: Any, depth: int = 4) -> bool:
    """Constants: numbers, text, and small nests of them."""
    kind = type(value)
    if kind in _PLAIN or kind is bool:
        return True
    if depth == 0:
        return False
    if kind in (tuple, list, set, frozenset):
        return all(plain(part, depth - 1) for part in value)
    return kind is dict and all(plain(key, depth - 1) and plain(part, depth - 1) for key, part in value.items())


def own(value: Any) -> bool:
    """The user's own code: of a source file outside the standard library and installed packages, or of no file."""
    name = getattr(value, "__module__", None)
    if not isinstance(name, str) or name == "__main__":
        return True
    if name.partition(".")[0] in sys.stdlib_module_names or name.partition(".")[0] == "balsamfut":
        return False
    module = sys.modules.get(name)
    source = getattr(module, "__file__", None) or ""
    if module is not None and source and not source.endswith((".py", ".pyc")):
        return False
    return not any(mark in source for mark in _INSTALLED)


def code_digest(encoder: Encoder, code: CodeType, scope: Mapping[str, Any]) -> bytes:
    """The instructions, with what they use in place of its index; `scope`: the globals, for those that are read."""
    parts: list[bytes] = [
        repr((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS,
              code.co_varnames[:code.co_argcount + code.co_kwonlyargcount + 2])).encode(),
        getattr(code, "co_exceptiontable", b"")]
    reads: dict[str, None] = {}
    for step in dis.get_instructions(code):
        if step.opname == "EXTENDED_ARG":
            continue
        if step.opcode in dis.hasconst:
            used = (code_digest(encoder, step.argval, scope) if isinstance(step.argval, CodeType)
                    else encoder.encode(step.argval))
        elif step.opcode in dis.hasname or step.opcode in dis.haslocal or step.opcode in dis.hasfree:
            used = step.argrepr.encode()   # the name, and what else the instruction's argument says
            if step.opname in _READS:
                reads[step.argval] = None
            elif step.opname == "STORE_NAME" and step.argval == "__firstlineno__":
                parts.pop()   # of a class body, from Python 3.13 on
        else:
            used = str(step.arg).encode()
        parts.append(digest(step.opname.encode(), b" ", used))
    for name in reads:
        if name in scope and not (name.startswith("__") and name.endswith("__")):
            assert encoder.scope is not None
            parts += [digest(name.encode()), encoder.scope.used(scope[name])]
    return digest(b"i", *[digest(part) for part in parts])
