"""Sites that are kept: made once, started and stopped, and found by name from anywhere.

A site is a directory.  One that was made by `site init` has a `site.toml` that says its name; the user's own registry
(`$XDG_CONFIG_HOME/balsamfut/sites.toml`, else under ~/.config) says where the site of a name is.  Starts nothing.
"""

from __future__ import annotations

import json
import os
import re
import time
import tomllib
from pathlib import Path
from typing import Final

import msgspec

from balsamfut import platforms, settings
from balsamfut.errors import SiteError

MARK: Final = "site.toml"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Site(msgspec.Struct, frozen=True):
    """What `site.toml` says."""

    name: str
    created: float      # Unix time


def registry() -> Path:
    """The file that says where the sites of which names are."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "balsamfut" / "sites.toml"


def known() -> dict[str, Path]:
    """All sites by name.  Raises SiteError where the registry cannot be read."""
    path = registry()
    try:
        found = tomllib.loads(path.read_text()).get("sites", {})
        return {str(name): Path(place) for name, place in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, AttributeError, TypeError) as error:
        raise SiteError(f"the list of sites {path} cannot be read: {error}; mend or remove it, sites are not touched "
                        "by that") from None


def read(directory: Path) -> Site | None:
    """The site that was made there, None where none was: then scripts make do with what they find.

    Raises SiteError where the file cannot be understood.
    """
    path = directory / MARK
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Site)
    except FileNotFoundError:
        return None
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SiteError(f"{path} cannot be understood: {error}") from None


def init(directory: Path, name: str, platform: str) -> Site:
    """Make a site in this directory, which may exist but hold no site yet, and remember it by its name.

    Raises SiteError, SettingsError (no such platform).
    """
    machine = platforms.load(platform)
    if not _NAME.fullmatch(name):
        raise SiteError(f"{name!r} cannot be a site's name: letters, digits, `.`, `_` and `-` can, beginning with one "
                        "of the first two")
    there = known().get(name)
    if there is not None and there != directory and read(there) is not None:
        raise SiteError(f"there is a site of the name {name!r} already, in {there}: choose another with -n")
    if read(directory) is not None:
        raise SiteError(f"{directory} is a site already; `balsamfut site start` starts it")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (directory / "settings.toml").exists():
        chosen = settings.Settings(pilot=settings.Pilot(platform=machine.name))
        (directory / "settings.toml").write_text(settings.render(chosen))
    made = Site(name, time.time())
    (directory / MARK).write_text(f"# Made by `balsamfut site init`.\nname = {json.dumps(name)}\n"
                                  f"created = {made.created!r}\n")
    remember(name, directory)
    return made


def remember(name: str, directory: Path) -> None:
    """Have the name stand for this directory from now on."""
    sites = {**known(), name: directory}
    path = registry()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".sites.{os.getpid()}")
    lines = [f"{json.dumps(each)} = {json.dumps(str(place))}" for each, place in sorted(sites.items())]
    temporary.write_text("# Where sites are, by name.\n[sites]\n" + "\n".join(lines) + "\n")
    temporary.replace(path)


def place_of(given: str) -> Path:
    """The directory that somebody means: a path, or the name of a site, which has no slash in it."""
    path = Path(given).expanduser().absolute()
    if os.sep in given or path.exists():
        return path
    return known().get(given, path)
