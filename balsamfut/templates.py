"""Jinja templates: commands, in which every value is quoted for the shell, and paths, in which none is.

Clients check and render them at decoration and submit; Python workers render the commands that had to wait for futures.
Values are quoted when they are written out, after filters and tests, so `{{ x | upper }}` is quoted and `{% if x %}` is
not disturbed.  The text of the template itself, `$VARIABLES` included, is left alone.  Jinja is imported at first use.
This module knows neither apps nor tasks: only texts and named values.
"""

from __future__ import annotations

import difflib
import functools
import os
import shlex
import types
from collections.abc import Collection, Iterable, Mapping, Set
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from balsamfut.errors import TemplateError
from balsamfut.model import Extra

if TYPE_CHECKING:
    import jinja2

_MANY = (list, tuple, types.GeneratorType, map, filter, range)   # several words; filters such as `map` make generators


class _NoWord(Exception):
    """A value that has no form on a command line, and what to do about it."""

    def __init__(self, value: object, hint: str) -> None:
        super().__init__(hint)
        self.value = value
        self.hint = hint


class _Raw(str):
    """What `| raw` marks: written out as it is."""

    __slots__ = ()


def _word(value: object) -> str:
    """The text of one value.  None, bytes and containers are more often a mistake than meant literally."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if "\0" in value:
            raise _NoWord(value, "a NUL character cannot be on a command line")
        return str.__str__(value)
    if isinstance(value, Future):
        raise _NoWord(value, "its value is not known when the task is submitted; "
                             "only the command of an app, and no path or name, may use it")
    if value is None:
        raise _NoWord(value, "leave it out with {% if ... is not none %}")
    kind = type(value)
    if isinstance(value, bytes | list | tuple | Mapping | Set) \
            or (kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__):
        raise _NoWord(value, "write a text, a number or a path instead")
    return str(value)


def _words(value: object) -> list[str]:
    """A list is several words, and so is what filters make of one, or an array."""
    if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, _MANY):
        return [word for part in value for word in _words(part)]
    return [value if isinstance(value, _Raw) else shlex.quote(_word(value))]


def _raw(value: object) -> _Raw:
    """The filter that opts out of quoting."""
    parts: Iterable[object] = value if isinstance(value, _MANY) else [value]
    return _Raw(" ".join(_word(part) for part in parts))


@functools.cache
def _environment(quoting: bool) -> jinja2.Environment:
    import jinja2

    def write(value: object) -> str:
        if isinstance(value, jinja2.Undefined):
            return str(value)   # which raises
        return " ".join(_words(value)) if quoting else _word(value)

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=write)
    environment.filters["raw"] = _raw
    return environment


@functools.lru_cache(maxsize=1024)
def _compiled(text: str, quoting: bool) -> jinja2.Template:
    import jinja2

    try:
        return _environment(quoting).from_string(text)
    except jinja2.TemplateSyntaxError as exc:
        raise TemplateError(f"line {exc.lineno} of the template is not valid Jinja: {exc.message}") from None


def check(text: str, parameters: Collection[str], where: str) -> None:
    """Refuse a template that is not valid, or that uses what is no parameter.  `where` begins the error's sentence."""
    from jinja2 import meta

    try:
        _compiled(text, True)
    except TemplateError as exc:
        raise TemplateError(f"{where}: {exc}") from None
    environment = _environment(True)
    for name in sorted(meta.find_undeclared_variables(environment.parse(text)) - set(environment.globals)):
        if name in parameters:
            continue
        close = difflib.get_close_matches(name, parameters, n=1)
        if close:
            hint = f"did you mean {close[0]}?"
        elif name == "task":
            hint = "a task's own number and directory are in $BALSAMFUT_TASK_ID and $BALSAMFUT_WORKDIR"
        else:
            hint = f"its parameters are {', '.join(parameters)}" if parameters else "it has none"
        raise TemplateError(f"{where}: the template uses {name!r}, which is not a parameter of the function; {hint}")


def _render(text: str, parameters: Mapping[str, Any], quoting: bool, where: str) -> str:
    import jinja2

    try:
        return _compiled(text, quoting).render(parameters)
    except TemplateError as exc:
        raise TemplateError(f"{where}: {exc}") from None
    except _NoWord as exc:
        names = [name for name, value in parameters.items() if value is exc.value]
        what = "a future" if isinstance(exc.value, Future) else _short(exc.value)
        subject = names[0] if names else "a value in the template"
        raise TemplateError(f"{where}: {subject} is {what}, which cannot be written there; {exc.hint}") from None
    except jinja2.TemplateError as exc:
        raise TemplateError(f"{where}: the template cannot be rendered: {exc.message}") from None
    except Exception as exc:   # whatever the user's objects and filters raise
        raise TemplateError(f"{where}: the template cannot be rendered: {type(exc).__name__}: {exc}") from exc


def _short(value: object) -> str:
    text = "None" if value is None else f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else text[:77] + "..."


def render_command(template: str, parameters: Mapping[str, Any], app: str) -> str:
    """The bash command of a call; every value is quoted.  Raises TemplateError."""
    return _render(template, parameters, True, app)


def render_extra(extra: Extra, parameters: Mapping[str, Any], app: str) -> Extra:
    """`extra` with the templates in its paths and name rendered, nothing quoted.  Raises TemplateError."""
    def render(what: str, text: str) -> str:
        if "{{" not in text and "{%" not in text:
            return text
        done = _render(text, parameters, False, f"{what} of {app}")
        if not done:
            raise TemplateError(f"{what} of {app}: {text!r} was rendered to nothing")
        return done

    return msgspec.structs.replace(
        extra,
        **{what: render(what, getattr(extra, what)) for what in ("name", "workdir", "stdout", "stderr")},
        inputs=tuple((render("inputs", path), render("inputs", name)) for path, name in extra.inputs),
        outputs=tuple(render("outputs", path) for path in extra.outputs),
    )


def command(value: object, app: str) -> str | list[str]:
    """What a function that makes a command returned: a text for bash, or the words of an argv.

    Raises TypeError for anything else, TemplateError for a word that cannot be one.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if not isinstance(value, list | tuple) or not value:
        raise TypeError(f"{app} returned {_short(value)}; a shell app returns a command: "
                        f"a text, which bash runs, or a list of words, which is run without a shell")
    try:
        return [_word(part) for part in value]
    except _NoWord as exc:
        hint = "leave it out of the list" if exc.value is None else exc.hint
        raise TemplateError(f"{app}: a word of the returned command is {_short(exc.value)}; {hint}") from None
