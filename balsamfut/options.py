"""The options of apps, calls and Executors: their names, and how those of one place override those of another.

`normalise` is the only way in: it refuses what it does not know, with the names that are close, and turns every value
into the integers, seconds and tuples of `balsamfut.model`.  Precedence is `combine`'s, weakest first.  This module
knows neither apps nor Executors, and no machine: whether a request fits is `placement`'s question.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from balsamfut.errors import InvalidOption
from balsamfut.model import Extra, Options, Resources
from balsamfut.values import READERS

RESOURCES: Final = frozenset(Resources.__struct_fields__)
OPTIONS: Final = frozenset(Options.__struct_fields__)
EXTRA: Final = frozenset(Extra.__struct_fields__)
_RENDERED: Final = ("workdir", "stdout", "stderr", "inputs", "outputs", "name")   # may be templates


class CallOptions:
    """Options as they were given in one place, or joined from several; never changed, compared by identity."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given: Final[Mapping[str, Any]] = given
        """By the names of model.Resources, model.Options and model.Extra, with their kinds of values; and version, key,
        cache_ignore."""

    def __bool__(self) -> bool:
        return bool(self.given)

    def __repr__(self) -> str:
        return f"CallOptions({', '.join(f'{name}={value!r}' for name, value in self.given.items())})"

    def __reduce__(self) -> tuple[type[CallOptions], tuple[dict[str, Any]]]:
        return CallOptions, (dict(self.given),)

    @functools.cached_property
    def resources(self) -> Resources:
        given = {name: value for name, value in self.given.items() if name in RESOURCES}
        if self.given.get("gather"):      # a list also where there is one rank
            given["mpi"] = True
        return Resources(**given)

    @functools.cached_property
    def options(self) -> Options:
        return Options(**{name: value for name, value in self.given.items() if name in OPTIONS})

    @functools.cached_property
    def extra(self) -> Extra:
        """Templates in it are not rendered."""
        return Extra(**{name: value for name, value in self.given.items() if name in EXTRA})

    @functools.cached_property
    def templated(self) -> bool:
        """A path or name in `extra` is a template."""
        return any(True for _ in self.texts())

    def texts(self) -> Iterator[tuple[str, str]]:
        """(option, template): the paths and names that are templates."""
        for name in _RENDERED:
            for text in _flat(self.given.get(name, ())):
                if "{{" in text or "{%" in text:
                    yield name, text

    @property
    def version(self) -> str | None:
        return self.given.get("version")

    @property
    def key(self) -> Callable[..., object] | str | bytes | int | None:
        return self.given.get("key")

    @property
    def cache_ignore(self) -> tuple[str, ...]:
        return self.given.get("cache_ignore", ())  # type: ignore[no-any-return]


def _flat(value: str | tuple[Any, ...]) -> Iterator[str]:
    """The texts in an option's value."""
    if isinstance(value, str):
        yield value
    else:
        for part in value:
            yield from _flat(part)


NOTHING: Final = CallOptions({})


def normalise(given: Mapping[str, object], where: str = "") -> CallOptions:
    """Read options as a user wrote them.  `where` ("@app lammps") begins the error's sentence.

    Raises InvalidOption for a name that is no option and for a value that the option does not take.
    """
    if not given:
        return NOTHING
    values: dict[str, Any] = {}
    for name, value in given.items():
        reader = READERS.get(name)
        if reader is None:
            raise unknown(name, where)
        try:
            values.update(reader(name, value))
        except InvalidOption as exc:
            raise InvalidOption(f"{where}: {exc}" if where else str(exc)) from None
    if "walltime" in given and "wall_time_min" in given:
        raise InvalidOption(f"{where + ': ' if where else ''}walltime and wall_time_min mean the same; give one")
    return CallOptions(values)


def unknown(name: str, where: str = "") -> InvalidOption:
    close = difflib.get_close_matches(name, READERS, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(READERS)}"
    return InvalidOption(f"{where + ': ' if where else ''}there is no option {name!r}; {hint}")


@functools.lru_cache(maxsize=4096)
def combine(*layers: CallOptions) -> CallOptions:
    """Join options of several places, weakest first: settings, decorator, Executor, call.

    tags and environment are joined entry by entry; everything else is replaced.  The same layers give the same object.
    """
    layers = tuple(layer for layer in layers if layer)
    if len(layers) < 2:
        return layers[0] if layers else NOTHING
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.given.items():
            if name in ("tags", "environment") and name in values:
                value = tuple(sorted((dict(values[name]) | dict(value)).items()))
            values[name] = value
    return CallOptions(values)
