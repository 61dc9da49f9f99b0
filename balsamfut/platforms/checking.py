"""What is wrong in a machine's description, said to people: which key, where, and what would be right.  Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args

import msgspec

OPEN: Final[dict[str, tuple[str, ...]]] = {
    "scheduler": ("kind", "account_required", "queues", "pace", "filesystems", "signals", "select", "place",
                  "constraint", "partition", "queue_option"),
    "network": ("callback_interface", "suffix", "proxy"),
    "filesystem": ("project", "node_tmp"),
}
"""The keys of tables that are read by those whom they concern, as plain data."""
KINDS: Final = ("pbs", "slurm", "local")

_EXPECTED: Final = re.compile(r"Expected `([^`]+)`, got `([^`]+)`(?: - at `\$?\.?([^`]*)`)?")
_WORDS: Final = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false",
                 "array": "a list", "object": "a table", "null": "nothing"}


def check_names(raw: Mapping[str, Any], kind: type[msgspec.Struct], where: str = "") -> None:
    """Raises ValueError for a key that there is not, naming those that are near."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        if key not in fields:
            raise ValueError(f"there is no {_place(where, key, value)}; {near(key, fields)}")
        inner = f"{where}.{key}" if where else key
        struct = next((each for each in (fields[key], *get_args(fields[key])) if _is_struct(each)), None)
        if struct is not None:
            for each in value if isinstance(value, list) else (value,):
                if isinstance(each, Mapping):
                    check_names(each, struct, inner)


def check_open(raw: Mapping[str, Any]) -> None:
    """The same for tables whose keys no struct has."""
    for table, names in OPEN.items():
        found = raw.get(table, {})
        for key in found if isinstance(found, Mapping) else ():
            if key not in names:
                raise ValueError(f"there is no {_place(table, key, found[key])}; {near(key, names)}")
    scheduler = raw.get("scheduler", {})
    kind = scheduler.get("kind", "local") if isinstance(scheduler, Mapping) else "local"
    if kind not in KINDS:
        raise ValueError(f"[scheduler] kind is one of {', '.join(KINDS)}, not {kind!r}")


def near(name: str, names: Iterable[str]) -> str:
    """A hint for a name that there is not."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"


def plain(error: Exception) -> str:
    """What msgspec, or we ourselves, said, in plain words."""
    found = _EXPECTED.search(str(error))
    if found is None:
        return str(error).replace("`$.", "`")
    wanted = " or ".join(_WORDS.get(word.strip(), word.strip()) for word in found[1].split("|"))
    return f"{found[3] or 'it'} takes {wanted}, not {_WORDS.get(found[2], found[2])}"


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _place(where: str, key: str, value: object) -> str:
    if isinstance(value, Mapping):
        return f"table [{where}.{key}]" if where else f"table [{key}]"
    return f"key {key} in [{where}]" if where else f"key {key} outside of the tables"
