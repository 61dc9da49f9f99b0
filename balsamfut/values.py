"""How the value of each option is written, and what it becomes.

READERS maps an option's name to a function that takes the name and the user's value and returns fields of
model.Resources, model.Options or model.Extra; what it cannot take it refuses with one sentence that says what would be
right.  This module does not know which places options come from, nor what they are for.
"""

from __future__ import annotations

import math
import operator
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from balsamfut.errors import InvalidOption
from balsamfut.model import TILE

Reader = Callable[[str, Any], dict[str, Any]]

LONGEST_NAME: Final = 200
"""Letters of a campaign's name."""
_NUMBER: Final = r"(\d+(?:\.\d+)?)"
_DURATION: Final = re.compile("".join(f"(?:{_NUMBER}{unit})?" for unit in ("d", "h", "m(?:in)?", "s")))
_CLOCK: Final = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")
_MEMORY: Final = re.compile(r"(\d+(?:\.\d+)?) ?(B|KB|MB|GB|TB|KIB|MIB|GIB|TIB)", re.IGNORECASE)
_UNITS: Final = {unit + kind: base ** (power + 1) for kind, base in (("B", 1000), ("IB", 1024))
                 for power, unit in enumerate("KMGT")} | {"B": 1}


def refuse(name: str, value: object, want: str) -> InvalidOption:
    text = repr(value)
    return InvalidOption(f"{name} takes {want}, not {text if len(text) <= 80 else text[:77] + '...'}")


def whole(name: str, value: object, least: int | None, want: str) -> int:
    """An integer of any kind (numpy's too), but not a bool."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise refuse(name, value, want) from None
    if isinstance(value, bool) or (least is not None and number < least) or abs(number) >= 1 << 63:
        raise refuse(name, value, want)
    return number


def real(name: str, value: object, want: str) -> float:
    """A finite number of any kind, but not a bool or a text."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise refuse(name, value, want)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise refuse(name, value, want) from None
    if not math.isfinite(number):
        raise refuse(name, value, want)
    return number


def seconds(name: str, value: object) -> float:
    """A duration: seconds, a timedelta, "90s", "20m", "1h30m", "2d", or as batch systems write it, [h:]mm:ss."""
    want = 'a duration such as "20m", "1:30:00", "90s", a number of seconds or a timedelta'
    if isinstance(value, timedelta):
        return value.total_seconds()
    if not isinstance(value, str):
        return real(name, value, want)
    text = value.strip().lower().replace(" ", "")
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, rest = clock.groups()
        if float(rest) < 60 and (hours is None or int(minutes) < 60):
            return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest)
    elif text and (parts := _DURATION.fullmatch(text)):
        units = (86400, 3600, 60, 1)
        return float(sum(float(part or 0) * unit for part, unit in zip(parts.groups(), units, strict=True)))
    elif re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    raise refuse(name, value, want)


def _sendable(text: str) -> bool:
    """No zero byte, and nothing that UTF-8 cannot write: half of a pair, a byte of a name that is not UTF-8."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text))


def path(name: str, value: object, want: str = "a path") -> str:
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str) and text and _sendable(text):
            return text
    raise refuse(name, value, want)


def place(name: str, value: object, want: str = "a path") -> str:
    """A path that may begin with ~: the home of who asks, wherever the task will run."""
    return os.path.expanduser(path(name, value, want))


def word(name: str, value: object, want: str) -> str:
    """A text, or what is written as one without doubt: a number or a path."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | os.PathLike):
        raise refuse(name, value, want)
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if not isinstance(text, str) or not _sendable(text):
        raise refuse(name, value, want)
    return text


def _count(least: int) -> Reader:
    want = "a whole number that is not negative" if least == 0 else f"a whole number, {least} or more"
    return lambda name, value: {name: whole(name, value, least, want)}


def _or_none(reader: Reader, blank: dict[str, Any]) -> Reader:
    """None takes back what a weaker place said."""
    return lambda name, value: dict(blank) if value is None else reader(name, value)


def _walltime(name: str, value: object) -> dict[str, Any]:
    limit = seconds(name, value)
    if limit <= 0:
        raise refuse(name, value, 'a duration that is more than nothing, such as "20m"; None lifts a limit')
    return {"walltime": limit}


def _wall_time_min(name: str, value: object) -> dict[str, Any]:
    want = "a number of minutes that is more than 0; None lifts a limit"
    minutes = real(name, value, want)
    if minutes <= 0:
        raise refuse(name, value, want)
    return {"walltime": minutes * 60}


def _grace(name: str, value: object) -> dict[str, Any]:
    grace = seconds(name, value)
    if grace < 0:
        raise refuse(name, value, "a duration that is not negative")
    return {name: grace}


def _memory(name: str, value: object) -> dict[str, Any]:
    want = 'bytes per node, 1 or more: a whole number, or a text such as "4GB" (1000s) or "4GiB" (1024s)'
    if isinstance(value, str):
        match = _MEMORY.fullmatch(value.strip())
        if not match:
            raise refuse(name, value, want)
        size = round(float(match[1]) * _UNITS[match[2].upper()])
    else:
        size = whole(name, value, 1, want)
    if not 1 <= size < 1 << 63:
        raise refuse(name, value, want)
    return {name: size}


def _gpus(name: str, value: object) -> dict[str, Any]:
    want = "a whole number of GPUs (tiles) per rank, or a fraction of one between 0 and 1"
    gpus = real(name, value, want)
    # Rounded down, so that seven sevenths fit on one tile; a millionth of a share is only the float's error.
    shares = math.floor(gpus * TILE + 1e-6)
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)) or (gpus > 0 and shares == 0):
        raise refuse(name, value, want)
    return {"gpu_shares": shares}


def _flag(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, bool):
        raise refuse(name, value, "True or False")
    return {name: value}


def _mpi(name: str, value: object) -> dict[str, Any]:
    if isinstance(value, str) and value == "pool":
        return {"mpi": True, "pooled": True}
    if not isinstance(value, bool):
        raise refuse(name, value, 'True or False, or "pool": on ranks that live on for the next call')
    return {"mpi": value, "pooled": False}


def _pairs(want: str, valid: Callable[[str], bool]) -> Reader:
    """A mapping of names to words, as sorted pairs: equal requests are to be equal."""
    def read(name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise refuse(name, value, want)
        for key in value:
            if not isinstance(key, str) or not valid(key):
                raise InvalidOption(f"{name} takes {want}; {key!r} is not a name")
        return {name: tuple(sorted((key, word(f"{name}[{key!r}]", entry, "a text or a number"))
                                   for key, entry in value.items()))}
    return read


def _sequence(name: str, value: object, want: str) -> Sequence[object]:
    if isinstance(value, str | os.PathLike):
        return [value]
    if isinstance(value, bytes | Mapping) or not isinstance(value, Sequence | set | frozenset):
        raise refuse(name, value, want)
    return sorted(value, key=str) if isinstance(value, set | frozenset) else list(value)


def _paths(name: str, value: object) -> dict[str, Any]:
    want = "a path or a list of paths"
    return {name: tuple(path(name, part, want) for part in _sequence(name, value, want))}


def _names(name: str, value: object) -> dict[str, Any]:
    want = "the name of a parameter, or a list of such names"
    entries = _sequence(name, value, want)
    if not all(isinstance(entry, str) and entry.isidentifier() for entry in entries):
        raise refuse(name, value, want)
    return {name: tuple(str(entry) for entry in entries)}


def _inputs(name: str, value: object) -> dict[str, Any]:
    """A list is looked for only; a mapping {name: path} is put into the workdir under those names."""
    want = "a list of paths that must exist, or a mapping from names in the workdir to paths"
    if isinstance(value, Mapping):
        return {name: tuple((place(name, source, want), path(name, target, want)) for target, source in value.items())}
    return {name: tuple((place(name, part, want), "") for part in _sequence(name, value, want))}


def _stream(name: str, value: object) -> dict[str, Any]:
    want = 'a path (appended to), or (path, "a") or (path, "w"): append or truncate'
    mode: object = "a"
    if isinstance(value, tuple) and len(value) == 2:
        value, mode = value
    if mode not in ("a", "w"):
        raise refuse(name, (value, mode), want)
    return {name: place(name, value, want), f"{name}_mode": mode}


def _preamble(name: str, value: object) -> dict[str, Any]:
    want = "bash lines: a text or a list of texts"
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str) or "\0" in value:
        raise refuse(name, value, want)
    return {name: value}


def _name(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise refuse(name, value, "a printable text that is not empty")
    return {name: value}


def _version(name: str, value: object) -> dict[str, Any]:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refuse(name, value, "a text or a number that changes when the app's results do")
    return {name: str(value)}


def _key(name: str, value: object) -> dict[str, Any]:
    if isinstance(value, bool) or not (callable(value) or isinstance(value, str | bytes | int)):
        raise refuse(name, value, "a function of the call's arguments that returns what identifies it, or that value: "
                                  "a text, bytes or a whole number")
    return {name: value}


def _signal(name: str, value: object) -> dict[str, Any]:
    want = 'a signal: its number, its name ("SIGUSR1") or a member of signal.Signals'
    if isinstance(value, str):
        upper = value.upper()
        found = getattr(signal, upper if upper.startswith("SIG") else "SIG" + upper, None)
        if not isinstance(found, signal.Signals):
            raise refuse(name, value, want)
        return {name: int(found)}
    number = whole(name, value, 1, want)
    if number not in signal.valid_signals():
        raise refuse(name, value, want)
    return {name: number}


_at_least_one = _count(1)

READERS: Final[dict[str, Reader]] = {
    "num_nodes": _at_least_one,
    "ranks_per_node": _at_least_one,
    "threads_per_rank": _at_least_one,
    "threads_per_core": _at_least_one,
    "gpus_per_rank": _gpus,
    "node_packing_count": _or_none(_at_least_one, {"node_packing_count": 0}),
    "launch_params": _pairs("a mapping from the launcher's parameters, by names like cpu_bind, to values",
                            str.isidentifier),
    "memory": _or_none(_memory, {"memory": 0}),
    "mpi": _mpi,
    "gather": _flag,
    "walltime": _or_none(_walltime, {"walltime": 0.0}),
    "wall_time_min": _or_none(_wall_time_min, {"walltime": 0.0}),
    "retries": _count(0),
    "priority": lambda name, value: {name: whole(name, value, None, "a whole number; higher goes first")},
    "environment": _pairs("a mapping from variables' names to values",
                          lambda key: bool(key) and "=" not in key and "\0" not in key),
    "shell_preamble": _preamble,
    "workdir": lambda name, value: {name: place(name, value)},
    "stdout": _stream,
    "stderr": _stream,
    "inputs": _inputs,
    "link_inputs": _flag,
    "outputs": _paths,
    "cleanup_files": _paths,
    "tags": _pairs("a mapping from names to values", bool),
    "name": _name,
    "version": _version,
    "key": _key,
    "cache": _flag,
    "cache_ignore": _names,
    "stop_signal": _signal,
    "stop_grace": _grace,
    "checkpoint": _flag,
}
"""The options, in the order in which they are documented."""


def campaign(name: object) -> None:
    """Refuse what cannot be a campaign's name, which is seen in a line of a table, and typed; None: it gets one."""
    if name is None:
        return
    if not (isinstance(name, str) and name.strip()):
        raise InvalidOption(f"campaign takes a name, not {name!r}"
                            + ("; did you mean max_workers=?" if isinstance(name, int) else ""))
    surrogates = any("\ud800" <= letter <= "\udfff" for letter in name)     # they are told of as what they are
    if len(name) > LONGEST_NAME or not (surrogates or name.isprintable()):
        said = f"{name[:30]!r}..., which has {len(name)}" if len(name) > LONGEST_NAME else repr(name)
        raise InvalidOption(f"campaign takes a name of at most {LONGEST_NAME} letters, without line breaks and other "
                            f"control characters, not {said}")
