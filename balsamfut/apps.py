"""@app and @app.shell: what turns a function into something whose call is a task.

    @app                                    a Python function; its value is the result
    @app.shell("lmp -in {{ deck }}")        a Jinja template of a bash command; the function declares its parameters
    @app.shell                              a function that returns a command: text (bash) or list (no shell)

Options are checked at decoration.  An App hands each call, as a CallPlan, to the innermost open Executor; it knows
nothing of how that one runs it.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar, cast, overload

from balsamfut.calls import AppParts, CallPlan, defined, find_app
from balsamfut.errors import InvalidOption, TemplateError
from balsamfut.model import AppKind
from balsamfut.options import NOTHING, CallOptions, combine, normalise

if TYPE_CHECKING:
    from balsamfut.futures import TaskFuture

P = ParamSpec("P")
R = TypeVar("R")
HookFunction = TypeVar("HookFunction", bound=Callable[..., Any])


class App(Generic[P, R]):
    """A decorated function.  Calling it submits a task to the innermost open Executor and returns its TaskFuture.

    `func` is the function itself, for unit tests.  `options(...)` is a view of the app with other options for the calls
    made through it.  Equal apps are the same object; an app of an importable module is pickled by name.
    """

    __balsamfut_app__: ClassVar[bool] = True
    __wrapped__: Callable[P, R]
    __qualname__: str

    def __init__(self, parts: AppParts, asked: CallOptions = NOTHING) -> None:
        functools.update_wrapper(self, parts.func, updated=())
        self.parts = parts
        self._asked = asked

    @property
    def func(self) -> Callable[P, R]:
        """The function as it was before decoration."""
        return self.parts.func

    @property
    def name(self) -> str:
        return self.parts.name

    # Any argument may be a future of what the function takes, at any depth, which types cannot say.
    def __call__(self, *args: Any, **kwargs: Any) -> TaskFuture[R]:
        """Submit a task.  Raises NoExecutor where no Executor is open, TemplateError and TypeError as `bind` does."""
        from balsamfut.executor import innermost

        return innermost().submit(cast("Callable[..., R]", self), *args, **kwargs)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallPlan:
        """The call that an Executor is to submit.  Raises TypeError where a template's parameters are not given."""
        if self.parts.template is not None:
            self.parts.parameters(args, kwargs)
        return CallPlan(self.parts, *self.parts.complete(args, kwargs), self._asked)

    def options(self, **options: object) -> App[P, R]:
        """A view of this app whose calls have these options; those of the decorator and of the Executor give way.

        Raises InvalidOption for what there is not, and for values that an option does not take.
        """
        where = f"{self.name}.options"
        asked = normalise(options, where)
        _check_texts(self.parts, asked, where)
        return type(self)(self.parts, combine(self._asked, asked))

    def preprocess(self, hook: HookFunction) -> HookFunction:
        """Decorator: called with the task before its command or function runs, in each attempt."""
        return self._hook("preprocess", hook)

    def postprocess(self, hook: HookFunction) -> HookFunction:
        """Decorator: called with the task after it succeeded; what it returns is the result of the future."""
        return self._hook("postprocess", hook)

    def on_error(self, hook: HookFunction) -> HookFunction:
        """Decorator: called with the task after an attempt failed; may return task.retry(...) for another attempt."""
        return self._hook("on_error", hook)

    def on_timeout(self, hook: HookFunction) -> HookFunction:
        """Decorator: called with the task after an attempt outran its walltime; may return task.retry(...).

        Also when the end of its block cut it off (`task.exception` is a BlockEnded): it goes on in the next one, unless
        the hook raises.
        """
        return self._hook("on_timeout", hook)

    def _hook(self, name: str, hook: HookFunction) -> HookFunction:
        where = f"@{self.name}.{name}"
        if not callable(hook):
            raise InvalidOption(f"{where} decorates a function with one parameter, the task, not {hook!r}")
        if name in self.parts.hooks:
            raise InvalidOption(f"{where}: {self.name} already has this hook, {_called(self.parts.hooks[name])}")
        if "code" in self.parts.__dict__:
            raise InvalidOption(f"{where}: {self.name} is recorded already; add its hooks where it is defined")
        try:
            inspect.signature(hook).bind(object())
        except TypeError:
            raise InvalidOption(f"{where}: {_called(hook)} must take one argument, the task") from None
        except ValueError:   # a C function that does not tell
            pass
        self.parts.hooks[name] = hook
        return hook

    @overload
    def __get__(self, instance: None, owner: type) -> App[P, R]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., TaskFuture[R]]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """In a class: a method like any other; the instance, its first argument, is pickled with the call."""
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> Any:
        if self._asked:
            return _view, (_base(self), self._asked)
        home = self.parts.home
        parts = self.parts
        return (find_app, home) if home else (_restore, (parts.name, parts.kind, parts.func, parts.template,
                                                         parts.hooks, parts.options))

    def __repr__(self) -> str:
        return f"<app {self.__module__}.{self.__qualname__}>"


def _base(view: App[..., Any]) -> App[..., Any]:
    return App(view.parts)


def _view(base: App[P, R], asked: CallOptions) -> App[P, R]:
    return App(base.parts, asked)


def _restore(*state: Any) -> App[..., Any]:
    return App(AppParts(*state))


def _called(function: object) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _check_texts(parts: AppParts, options: CallOptions, where: str) -> None:
    """Templates among the options may use the function's parameters, cache_ignore names only those, and a command is
    asked for nothing that only functions have."""
    names = parts.signature.parameters
    for name in options.cache_ignore:
        if name not in names:
            raise InvalidOption(f"{where}: cache_ignore names {name!r}, which is no parameter of {parts.name}; "
                                f"its parameters are {', '.join(names) or 'none'}")
    if parts.kind is not AppKind.PYTHON:
        for option in ("pooled", "gather"):
            if options.given.get(option):
                name = "mpi='pool'" if option == "pooled" else option
                raise InvalidOption(f"{where}: {name} is for Python functions; {parts.name} is a command, and each of "
                                    "its calls is a launch of its own")
    if options.templated:
        from balsamfut.templates import check

        for option, text in options.texts():
            check(text, names, f"{where}: {option}")


def _make(func: Callable[P, R], kind: AppKind, template: str | None, where: str, given: dict[str, object]) -> App[P, R]:
    if isinstance(func, App):
        raise InvalidOption(f"{where}: {func.name} is an app already")
    if isinstance(func, staticmethod | classmethod):
        raise InvalidOption(f"{where} goes under @{type(func).__name__}, next to the function")
    if isinstance(func, type) or not callable(func):
        raise InvalidOption(f"{where} decorates a function, not {func!r}")
    given = dict(given)
    name = normalise({"name": given.pop("name")}, where).given["name"] if "name" in given else _name_of(func)
    where = f"{where} {name}"
    parts = AppParts(str(name), kind, func, template, {}, normalise(given, where))
    if template is not None:
        from balsamfut.templates import check

        check(template, parts.signature.parameters, where)
    _check_texts(parts, parts.options, where)
    defined.add(parts)
    return App(parts)


def _name_of(func: Callable[..., Any]) -> str:
    while isinstance(func, functools.partial):
        func = func.func
    return getattr(func, "__name__", None) or type(func).__name__


class _Decorator:
    """What `app` is: the decorator, with `shell` beside it."""

    @overload
    def __call__(self, func: Callable[P, R], /) -> App[P, R]: ...
    @overload
    def __call__(self, /, **options: object) -> Callable[[Callable[P, R]], App[P, R]]: ...
    def __call__(self, func: Any = None, /, **options: object) -> Any:
        """`@app` or `@app(option=value, ...)`: calls of this Python function are tasks.

        With several ranks (num_nodes, ranks_per_node) every rank runs the function, and rank 0's value is the result;
        with gather=True it is the list of all ranks' values.  mpi="pool" runs it on ranks that live on for the next
        call, so that many small calls cost few launches.  In both ways `MPI.COMM_WORLD` has the ranks of the call, and
        a parameter named `comm` that the call leaves open, or gives as None, gets that communicator.
        Raises InvalidOption.
        """
        if isinstance(func, str):
            raise InvalidOption(f"@app takes options by name; for a command there is @app.shell({func!r})")
        if func is None:
            normalise(options, "@app")   # the mistake is named where it was made, also when nothing is decorated
            return lambda decorated: _make(decorated, AppKind.PYTHON, None, "@app", options)
        return _make(func, AppKind.PYTHON, None, "@app", options)

    @overload
    def shell(self, template: Callable[P, R], /) -> App[P, R]: ...
    @overload
    def shell(self, template: str = ..., /, **options: object) -> Callable[[Callable[P, R]], App[P, R]]: ...
    def shell(self, template: Any = None, /, **options: object) -> Any:
        """`@app.shell("template", ...)`, `@app.shell(...)` or `@app.shell`: calls are commands.

        The template's variables are the parameters of the decorated function, which is never called.  Without a
        template the function runs where the task runs and returns the command: text for bash, or a list of words.
        Raises InvalidOption; TemplateError for a template that is not valid or uses what is no parameter.
        """
        if template is None or isinstance(template, str):
            if template is not None and not template.strip():
                raise TemplateError("@app.shell: the template is empty")
            kind = AppKind.COMMAND if template is None else AppKind.TEMPLATE
            normalise(options, "@app.shell")
            return lambda decorated: _make(decorated, kind, template, "@app.shell", options)
        return _make(template, AppKind.COMMAND, None, "@app.shell", options)


app = _Decorator()
