"""A site's settings: defaults, then `<site>/settings.toml`, then the environment; each value knows where it came from.

A variable is named BALSAMFUT_<SECTION>_<KEY>.  What is not understood is refused with one sentence: where, what, and
what would be right.  This module reads one file; it knows no machine and no process, and imports little, since every
script pays for it.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, get_type_hints

import msgspec
from msgspec import Meta

from balsamfut import options
from balsamfut.errors import InvalidOption, SettingsError

FILE: Final = "settings.toml"
PREFIX: Final = "BALSAMFUT_"
DEFAULT: Final = "default"


class Database(msgspec.Struct, frozen=True):
    url: Annotated[str, Meta(min_length=1, description=(
        "a path (SQLite; relative ones lie in the site), or postgresql://user@host/name"))] = "balsamfut.db"
    synchronous: Annotated[Literal["auto", "FULL", "NORMAL"], Meta(description=(
        "what a commit survives: FULL the loss of the machine, NORMAL the death of any process; auto: FULL for a site, "
        "NORMAL for a database that a script made for itself"))] = "auto"


class Wire(msgspec.Struct, frozen=True):
    inline_limit: Annotated[int, Meta(ge=0, le=1 << 26, description=(
        "bytes: arguments and results up to this size travel in messages and live in the database, larger ones in "
        "files"))] = 65536


class Interchange(msgspec.Struct, frozen=True):
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description=(
        "what goes into log/interchange.log"))] = "info"
    linger: Annotated[float, Meta(ge=0, description=(
        "seconds that an interchange which a script started for itself stays after its last client left"))] = 1.0
    interface: Annotated[str, Meta(description=(
        "network interface where it listens for pilots and clients on other hosts; empty: the platform's"))] = ""
    lease: Annotated[float, Meta(ge=1, description=(
        "seconds without a sign of life in the database after which an interchange on another host is taken for gone, "
        "and one on this host may take its place"))] = 40.0


class Pilot(msgspec.Struct, frozen=True):
    platform: Annotated[str, Meta(min_length=1, description=(
        "the machine's description; workstation: this machine as it is"))] = "workstation"
    nodes: Annotated[int, Meta(ge=1, description="nodes of a local pilot; pretend ones where they are not there")] = 1
    max_workers: Annotated[int, Meta(ge=0, description="tasks that run at once; 0: as many as there are cores")] = 0
    hosts: Annotated[str, Meta(description=(
        "a file with the names of the hosts of a local pilot, one a line, this host among them, such as a batch job's "
        "$PBS_NODEFILE"))] = ""
    provider: Annotated[Literal["", "pbs", "slurm", "local"], Meta(description=(
        "who is asked for blocks: pbs, slurm or local; empty: the platform's batch system"))] = ""
    mpiexec: Annotated[str, Meta(description=(
        "the MPI launcher, a path or a name on PATH; empty: the platform's, else the one beside the interpreter or on "
        "PATH"))] = ""
    preamble: Annotated[str, Meta(description=(
        "bash lines that run in a block before its pilot: modules, environments"))] = ""
    late: Annotated[float, Meta(ge=1, description=(
        "seconds that a block runs without its pilot (its preamble hangs, say) before people are told and the elastic "
        "queue counts on it no more"))] = 300.0
    end_margin: Annotated[float, Meta(ge=0, description=(
        "seconds before the end of a block at which its tasks are over, so that its pilot can hand over what they "
        "brought, and leave; a tenth of the block at most"))] = 15.0
    pretend: Annotated[bool, Meta(description=(
        "those hosts have not the cores and tiles of the platform: nothing is bound"))] = False


class Elastic(msgspec.Struct, frozen=True):
    enabled: Annotated[bool, Meta(description=(
        "blocks are asked for, and let go, as the work that waits needs them; `queue plan` tells what it would "
        "do"))] = False
    project: Annotated[str, Meta(description="who pays for those blocks")] = ""
    extra: Annotated[str, Meta(description=(
        "more for their job scripts, as -x of `queue submit`, separated by blanks: filesystems=home:flare"))] = ""
    queues: Annotated[str, Meta(description=(
        "the queues that may be used, separated by blanks; empty: all of the platform's that do not end blocks without "
        "a warning"))] = ""
    min_blocks: Annotated[int, Meta(ge=0, description="blocks that are there as long as tasks are ready")] = 0
    max_blocks: Annotated[int, Meta(ge=1, description="blocks that wait or run at a time, at most")] = 20
    min_nodes: Annotated[int, Meta(ge=1, description="nodes of one block, at least")] = 1
    max_nodes: Annotated[int, Meta(ge=0, description="nodes of one block, at most; 0: what the queues take")] = 0
    total_nodes: Annotated[int, Meta(ge=0, description="nodes of all blocks together, at most; 0: no limit")] = 0
    max_hours: Annotated[float, Meta(ge=0, description=(
        "hours that one block asks for, at most; 0: what the queues take"))] = 0.0
    node_hours: Annotated[float, Meta(ge=0, description=(
        "node-hours that all blocks of this site may use, from its beginning; 0: no limit"))] = 0.0
    idle: Annotated[float, Meta(ge=0, description=(
        "seconds that a block may run nothing, or wait for nothing, before it is let go"))] = 60.0
    give_up: Annotated[float, Meta(ge=0, description=(
        "seconds that a block of the elastic queue may run without its pilot before it is ended, and people are told; "
        "0: it is left alone, as blocks of people are"))] = 900.0
    backoff: Annotated[float, Meta(ge=1, description=(
        "seconds before a queue that refused a block is tried again, or any after a block that never had a pilot; "
        "twice as many after each further one, at most an hour"))] = 60.0


SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    "database": Database, "wire": Wire, "interchange": Interchange, "pilot": Pilot,
    "elastic": Elastic}
_HINTS: Final = {name: get_type_hints(kind, include_extras=True) for name, kind in SECTIONS.items()}


class Settings(msgspec.Struct, frozen=True):
    """Everything that is set, and from where."""

    database: Database = Database()
    wire: Wire = Wire()
    interchange: Interchange = Interchange()
    pilot: Pilot = Pilot()
    elastic: Elastic = Elastic()
    defaults: dict[str, Any] = {}   # options of apps and calls, as they were written; the weakest of all places
    sources: dict[str, str] = {}    # by "section.key": a path or the name of a variable; missing: default

    def options(self) -> options.CallOptions:
        """The defaults, normalised."""
        return options.normalise(self.defaults, "[defaults]")

    def source(self, key: str) -> str:
        """Where the value of "section.key" comes from: a path or the name of a variable, or `default`."""
        return self.sources.get(key, DEFAULT)

    def database_url(self, site: Path) -> str:
        """A URL, or the absolute path of an SQLite file."""
        url = self.database.url
        return url if "://" in url else str(Path(site).absolute() / url)

    def synchronous(self, embedded: bool) -> Literal["FULL", "NORMAL"]:
        """embedded: a script made this site for itself."""
        if self.database.synchronous == "auto":
            return "NORMAL" if embedded else "FULL"
        return self.database.synchronous

    def explain(self) -> list[tuple[str, Any, str]]:
        """(key, value, source) of every setting, for people: a password is not shown."""
        found = [(f"{section}.{name}", getattr(getattr(self, section), name)) for section in SECTIONS
                 for name in _HINTS[section]]
        found += [(f"defaults.{name}", value) for name, value in sorted(self.defaults.items())]
        return [(key, _no_password(value), self.source(key)) for key, value in found]


def _no_password(value: Any) -> Any:
    return re.sub(r"(://[^/@:]*:)[^/@]*@", r"\1***@", value) if isinstance(value, str) else value


def load(site: Path | str, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of the site in this directory (a file that is not there sets nothing).  Raises SettingsError."""
    path = Path(site) / FILE
    values: dict[str, dict[str, Any]] = {name: {} for name in (*SECTIONS, "defaults")}
    sources: dict[str, str] = {}
    for section, keys in _read(path).items():
        if section not in values:
            what = f"section [{section}]" if isinstance(keys, dict) else f"key {section} outside of the sections"
            raise SettingsError(f"{path}: there is no {what}; {_near(section, values)}")
        if not isinstance(keys, dict):
            raise SettingsError(f"{path}: {section} is a section: right would be [{section}] and its keys below it")
        for key, value in keys.items():
            values[section][key] = _value(f"{path}: [{section}]", section, key, value, strict=True)
            sources[f"{section}.{key}"] = str(path)
    for variable, text in sorted((os.environ if environ is None else environ).items()):
        section, key = _meant(variable, values)
        if section:
            values[section][key] = _value(f"the variable {variable}:", section, key, text, strict=False)
            sources[f"{section}.{key}"] = variable
    _check_defaults(values["defaults"], sources)
    built = {name: kind(**values[name]) for name, kind in SECTIONS.items()}
    made = Settings(**built, defaults=values["defaults"], sources=sources)  # type: ignore[arg-type]
    _check_bounds(made)
    _check_words(made)
    return made


def _check_words(made: Settings) -> None:
    """What is more than a text: the name of a machine, pairs, the beginning of a URL."""
    from balsamfut import platforms

    try:
        platforms.check(made.pilot.platform)
    except SettingsError as exc:
        raise SettingsError(f"{made.source('pilot.platform')}: [pilot] platform: {exc}") from None
    wrong = [word for word in made.elastic.extra.split() if not word.partition("=")[0] or "=" not in word]
    if wrong:
        raise SettingsError(f"{made.source('elastic.extra')}: [elastic] extra takes key=value, separated by blanks, "
                            f"not {wrong[0]!r}")
    kind, url, _ = made.database.url.partition("://")
    if url and kind.partition("+")[0] not in ("sqlite", "postgresql", "postgres"):
        raise SettingsError(f"{made.source('database.url')}: [database] url: {kind} databases are not supported; right "
                            "would be a path or sqlite:///path (SQLite), or postgresql://user@host/name")


def _check_bounds(made: Settings) -> None:
    for least, most in (("min_blocks", "max_blocks"), ("min_nodes", "max_nodes"), ("min_nodes", "total_nodes")):
        low, high = getattr(made.elastic, least), getattr(made.elastic, most)
        if 0 < high < low:      # 0: no limit
            said = [f"{key} = {value} ({made.source(f'elastic.{key}')})"
                    for key, value in ((least, low), (most, high))]
            raise SettingsError(f"[elastic] {said[0]} is more than {said[1]}; right would be at most that")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise SettingsError(f"{path} cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        line = bytes(exc.object[:exc.start]).count(b"\n") + 1
        raise SettingsError(f"{path}, line {line}: this is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as exc:
        reason, _, where = str(exc).removesuffix(")").rpartition(" (at ")
        line_and_column = re.fullmatch(r"line (\d+), column (\d+)", where)
        place = f", line {line_and_column[1]}, column {line_and_column[2]}" if line_and_column else ", at its end"
        raise SettingsError(f"{path}{place}: {reason[:1].lower()}{reason[1:]}") from None


def _meant(variable: str, sections: Mapping[str, object]) -> tuple[str, str]:
    """Section and key of a variable, ("", "") if it is none of ours.  balsamfut has other variables, which name no
    section; one whose section is only misspelt is refused rather than ignored."""
    if not variable.startswith(PREFIX):
        return "", ""
    section, _, key = variable.removeprefix(PREFIX).lower().partition("_")
    if not key:
        return "", ""
    if section in sections:
        return section, key
    close = difflib.get_close_matches(section, sections, n=1, cutoff=0.75)
    if close:
        raise SettingsError(f"the variable {variable} names no section of the settings; did you mean "
                            f"{PREFIX}{close[0].upper()}_{key.upper()}?")
    return "", ""


def _value(where: str, section: str, key: str, value: Any, *, strict: bool) -> Any:
    if section == "defaults":
        return value if strict else _toml_or_text(value)
    hints = _HINTS[section]
    if key not in hints:
        raise SettingsError(f"{where} there is no setting {key}; {_near(key, hints)}")
    try:
        made = msgspec.convert(value, hints[key], strict=strict)
    except msgspec.ValidationError:
        _refuse(where, key, hints[key], value)
    if isinstance(made, float) and not math.isfinite(made):
        _refuse(where, key, hints[key], value)
    return made


def _refuse(where: str, key: str, hint: Any, value: Any) -> NoReturn:
    info = msgspec.inspect.type_info(hint)
    meant = ""
    while isinstance(info, msgspec.inspect.Metadata):
        meant = str((info.extra_json_schema or {}).get("description", ""))
        info = info.type
    match info:
        case msgspec.inspect.LiteralType(values=values):
            want = "one of " + ", ".join(json.dumps(v) for v in values)
        case msgspec.inspect.IntType(ge=ge, le=le):
            want = f"a whole number of at least {ge}" + (f" and at most {le}" if le is not None else "")
        case msgspec.inspect.FloatType(ge=ge):
            want = f"a number of at least {ge:g}"
        case msgspec.inspect.BoolType():
            want = "true or false"
        case msgspec.inspect.StrType(min_length=None):
            want = "a text"
        case _:
            want = "a text that is not empty"
    raise SettingsError(f"{where} {key} takes {want} ({meant}), not {value!r}")


def _near(name: str, names: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


def _toml_or_text(text: str) -> Any:
    """A variable's value as TOML where it is some (5, true, ["a"]), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_defaults(defaults: dict[str, Any], sources: Mapping[str, str]) -> None:
    for name, value in defaults.items():
        try:
            options.normalise({name: value})
        except InvalidOption as exc:
            raise SettingsError(f"{sources['defaults.' + name]}: [defaults] {exc}") from None
    try:
        options.normalise(defaults)
    except InvalidOption as exc:   # two that contradict each other
        raise SettingsError(f"[defaults] {exc}") from None


# ---- writing


def render(settings: Settings | None = None) -> str:
    """A settings.toml with every key explained; what has its default value is there as a comment.

    Loading the text gives equal settings again.
    """
    settings = settings or Settings()
    lines = ["# Settings of a balsamfut site.  Variables BALSAMFUT_<SECTION>_<KEY> override what is said here."]
    for section, kind in SECTIONS.items():
        lines += ["", f"[{section}]"]
        plain, chosen = kind(), getattr(settings, section)
        for name, hint in _HINTS[section].items():
            value = getattr(chosen, name)
            lines.append(f"# {hint.__metadata__[0].description}")
            lines.append(f"{'# ' if value == getattr(plain, name) else ''}{name} = {_toml(value)}")
    lines += ["", "[defaults]", "# Options of apps and calls that say nothing else, for example:", '# walltime = "20m"',
              "# retries = 1"]
    lines += [f"{_toml_key(name)} = {_toml(value)}" for name, value in settings.defaults.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")   # TOML takes no surrogate pairs
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{_toml_key(key)} = {_toml(v)}" for key, v in value.items()) + "}"
    raise SettingsError(f"{value!r} cannot be written as TOML; right would be text, numbers, lists and tables of them")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)
