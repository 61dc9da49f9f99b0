"""What commands share: their options, the site that they are about, and the names that people misspell."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from balsamfut.errors import UsageError

if TYPE_CHECKING:
    from balsamfut.query import Reader

F = TypeVar("F", bound=Callable[..., Any])


class Whole(click.IntRange):
    """A number of something, or of a task or block: at least 1, and one that a database can hold."""

    name = "whole number"

    def __init__(self) -> None:
        super().__init__(1, (1 << 63) - 1)


class Number(click.FloatRange):
    """A number above 0."""

    name = "number"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)


site_option: Callable[[F], F] = click.option(
    "-s", "--site", metavar="SITE", help="The site's name or directory, or a directory that holds a .balsamfut.")
json_option: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
site_argument: Callable[[F], F] = click.argument("place", metavar="[SITE]", required=False)
"""For commands about a site itself, beside the option."""
task_argument: Callable[[F], F] = click.argument("task", metavar="ID", type=Whole())


def one_site(place: str | None, site: str | None) -> str | None:
    """What names the site in commands that take it as an argument, too.  Raises click.UsageError."""
    if place and site:
        raise click.UsageError("SITE is given twice: as an argument and by --site")
    return place or site


def find_site(given: str | None) -> Path:
    """The directory of the site that is meant.  Raises UsageError saying where it was looked for."""
    from balsamfut import sites

    start = sites.find(given or "")
    if sites.is_site(start):
        return start
    places = [start] if start.name == sites.EMBEDDED else [start, start / sites.EMBEDDED]
    where = f"{places[0]} is none" if len(places) == 1 else f"neither {places[0]} nor {places[1]} is one"
    if given and os.sep not in given:
        where += f", and no site has the name {given}"
    raise UsageError(f"there is no site here: {where}; a script's Executor makes one, and --site or BALSAMFUT_SITE "
                     "name another")


def open_reader(site: Path) -> Reader:
    """The site's database, for reading."""
    from balsamfut import sites
    from balsamfut.query import open_site

    kept = sites.read(site)
    if kept is not None and not (site / "interchange.owner").exists():
        raise UsageError(f"the site {kept.name} has not been started yet, so there is nothing to see: `balsamfut site "
                         f"start {kept.name}`")
    return open_site(site)


def pair(option: str, text: str, shape: str = "NAME=VALUE") -> tuple[str, str]:
    """What stands before and behind the first `=`.  Raises UsageError."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.UsageError(f"{option} takes {shape}, not {text!r}")
    return name, value


def pairs(option: str, texts: Iterable[str], shape: str = "NAME=VALUE", why: str = "") -> dict[str, str]:
    """Each pair by its name, which is given once.  why: more to say where it is not.  Raises UsageError."""
    found: dict[str, str] = {}
    for name, value in (pair(option, text, shape) for text in texts):
        if name in found:
            raise click.UsageError(f"{option} {name} is given twice, as {found[name]} and as {value}{why}")
        found[name] = value
    return found


def close_names(name: str, names: Iterable[str]) -> str:
    """A hint for a name that there is not."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(known[-10:])}" if known else "there are none yet"


def known_campaign(reader: Reader, name: str | None) -> str | None:
    """The name, if it is a campaign's or none was given.  Raises UsageError."""
    names = [campaign.name for campaign in reader.campaigns()] if name is not None else []
    if name is not None and name not in names:
        raise UsageError(f"there is no campaign {name!r} here; {close_names(name, names)}")
    return name


def known_app(reader: Reader, name: str | None) -> str | None:
    """The name, if it is an app's or none was given.  Raises UsageError."""
    names = list(dict.fromkeys(app.name for app in reader.apps())) if name is not None else []
    if name is not None and name not in names:
        raise UsageError(f"there is no app {name!r} here; {close_names(name, names)}")
    return name
