"""What a call is before an Executor has seen it: the app's lasting parts, the arguments, the options of this call.

An Executor knows no apps (`balsamfut.apps` lies above it): it takes anything with `__balsamfut_app__` and asks it to
`bind(args, kwargs)`; for every other callable it uses `plain_parts`.  Knows neither sockets nor sessions, and
pickles nothing.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import msgspec

from balsamfut.errors import SerializationError
from balsamfut.model import AppKind, Extra, Hook
from balsamfut.options import NOTHING, CallOptions

if TYPE_CHECKING:
    from balsamfut.serialize import AppCode

_NO_EXTRA = Extra()
HOOKS = {"preprocess": Hook.PREPROCESS, "postprocess": Hook.POSTPROCESS,
         "on_error": Hook.ON_ERROR, "on_timeout": Hook.ON_TIMEOUT}
"""The hooks by the names under which AppCode.hooks keeps them."""


@dataclass(eq=False)
class AppParts:
    """What all calls of an app share.  One object per app, compared by identity: an Executor pickles `code` once."""

    name: str
    kind: AppKind
    func: Callable[..., Any]
    template: str | None = None
    hooks: dict[str, Callable[..., Any]] = field(default_factory=dict)   # by the names of HOOKS
    options: CallOptions = NOTHING                                       # as decorated

    @property
    def module(self) -> str:
        return getattr(self.func, "__module__", None) or ""

    @property
    def doc(self) -> str:
        """The first line of the docstring."""
        text = (getattr(self.func, "__doc__", None) or "").strip()
        return text.splitlines()[0].strip() if text else ""

    @property
    def hook_flags(self) -> Hook:
        flags = Hook(0)
        for name in self.hooks:
            flags |= HOOKS[name]
        return flags

    @functools.cached_property
    def code(self) -> AppCode:
        """What is pickled for this app: always the same object."""
        from balsamfut.serialize import AppCode

        return AppCode(_ByName(self.func, self.home) if self.home else self.func, self.template, self.hooks)

    @property
    def home(self) -> tuple[str, str] | None:
        """(module, qualified name) where any process finds this app; None where its code must travel by value.

        The function of an app is hidden by the app of the same name, so pickle does not find it by itself.
        """
        module, name = self.module, getattr(self.func, "__qualname__", "")
        if module not in sys.modules or module in ("__main__", "__mp_main__") or "<locals>" in name:
            return None
        try:
            found: Any = find_app(module, name)
        except (ImportError, AttributeError):
            return None
        if getattr(found, "parts", None) is not self:
            return None
        from balsamfut.pickler import importable

        return (module, name) if importable(sys.modules[module]) else None

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """Of the function; anything goes where it tells none (as C functions may)."""
        try:
            return inspect.signature(self.func)
        except (TypeError, ValueError):
            return inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
                                      inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])

    def parameters(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, defaults included; what *args and **kwargs took stays under their names.

        Raises TypeError as a plain call would.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{self.name}(): {exc}") from None
        bound.apply_defaults()
        return bound.arguments

    @functools.cached_property
    def _awaited(self) -> dict[str, Any]:
        """The parameters' defaults that hold futures."""
        from balsamfut.serialize import futures_in

        found = {}
        for name, parameter in self.signature.parameters.items():
            try:
                if parameter.default is not parameter.empty and futures_in(parameter.default):
                    found[name] = parameter.default
            except SerializationError:   # it is told when the function itself is pickled
                continue
        return found

    def complete(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, and with them the defaults that hold futures, for which the task must wait."""
        if not self._awaited:
            return args, kwargs
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError:   # raised where the task runs, as for every function
            return args, kwargs
        for name, default in self._awaited.items():
            bound.arguments.setdefault(name, default)
        return bound.args, bound.kwargs

    def code_key(self, version: str | None = None) -> bytes:
        """The app's part of a task's key: function, template and hooks, or the version that stands for them."""
        keys = self.__dict__.setdefault("_code_keys", {})
        if version not in keys:
            from balsamfut.keys import code_key

            hooks = tuple(self.hooks[name] for name in sorted(self.hooks))
            keys[version] = code_key(self.func, hooks, version)
            if self.template is not None and version is None:
                from balsamfut.serialize import digest16

                keys[version] = digest16(keys[version] + self.template.encode())
        return keys[version]  # type: ignore[no-any-return]


class _ByName:
    """An app's function on its way to a worker, where it is looked up instead of being copied with all its globals."""

    def __init__(self, func: Callable[..., Any], home: tuple[str, str]) -> None:
        functools.update_wrapper(self, func, updated=())
        self._home = home

    def __reduce__(self) -> tuple[Any, ...]:
        return _find_func, self._home

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]


def find_app(module: str, name: str) -> AppLike:
    """The app of that qualified name in an importable module.  Raises ImportError, AttributeError."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    return found  # type: ignore[no-any-return]


def _find_func(module: str, name: str) -> Callable[..., Any]:
    return find_app(module, name).parts.func


@dataclass(eq=False, slots=True)
class CallPlan:
    """One call, ready to be submitted.

    An Executor joins the options of all places, `combine(settings, plan.app.options, its own, plan.options)`, pickles
    the arguments (which is how it learns of futures in them), and asks with both for `extra()` and `key_material()`.
    """

    app: AppParts
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: CallOptions = NOTHING    # of this call alone: .options(...)

    def extra(self, combined: CallOptions, *, futures: bool) -> Extra | None:
        """What goes into TaskSpec.extra, templates rendered; None where there is nothing to say.

        futures: pickling found some among the arguments, so that the command of a template is left to the node (it is
        None here).  Otherwise it is rendered, and unless there are hooks nobody on the node needs the arguments.
        Raises TemplateError, also where a path or name needs what only a future will bring; TypeError for arguments
        that the function does not take.
        """
        extra = combined.extra
        if combined.templated:
            from balsamfut.templates import render_extra

            extra = render_extra(extra, self._parameters(), self.app.name)
        if self.app.template is not None and not futures:
            from balsamfut.templates import render_command

            command = render_command(self.app.template, self._parameters(), self.app.name)
            extra = msgspec.structs.replace(extra, command=command)
        return None if extra == _NO_EXTRA else extra

    def _parameters(self) -> dict[str, Any]:
        return self.app.parameters(self.args, self.kwargs)

    def key_material(self, combined: CallOptions) -> tuple[bytes, tuple[Any, ...], dict[str, Any]]:
        """(app_key, args, kwargs) for keys.call_key: with `key=` its value, else the arguments without `cache_ignore`.

        Raises what the user's key= function raises.
        """
        app_key = self.app.code_key(combined.version)
        if combined.options.gather:      # another value for the same arguments
            from balsamfut.serialize import digest16

            app_key = digest16(app_key + b"gather")
        key = combined.key
        if key is not None:
            return app_key, (key(*self.args, **self.kwargs) if callable(key) else key,), {}
        if combined.cache_ignore:
            named = self.app.parameters(self.args, self.kwargs)
            return app_key, (), {name: value for name, value in named.items() if name not in combined.cache_ignore}
        return app_key, self.args, self.kwargs


@runtime_checkable
class AppLike(Protocol):
    """What an Executor knows of an app: `ex.submit(app, ...)` is `app(...)` on that Executor."""

    __balsamfut_app__: ClassVar[bool]

    @property
    def parts(self) -> AppParts: ...

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallPlan: ...


defined: weakref.WeakSet[AppParts] = weakref.WeakSet()
"""The apps of this process, for an Executor that opens."""


def plain_parts(fn: Callable[..., Any], name: str | None = None) -> AppParts:
    """The parts of a callable that is no app.  An Executor keeps them as long as it remembers the callable."""
    if not callable(fn):
        raise TypeError(f"{fn!r} cannot be called, so it cannot be submitted")
    if name is None:
        inner = fn
        while isinstance(inner, functools.partial):
            inner = inner.func
        name = getattr(inner, "__name__", None) or type(inner).__name__
    return AppParts(name, AppKind.PYTHON, fn)
