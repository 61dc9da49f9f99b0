"""Sites that are kept: made once, started and stopped, and found by name from anywhere.

A site is a directory.  One that was made by `site init` has a `site.toml` that says its name and where it was made; the
user's own registry (`$XDG_CONFIG_HOME/balsamfut/sites.toml`, else under ~/.config) says where the site of a name is.
Starts nothing.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import re
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from balsamfut import platforms, settings
from balsamfut.errors import SiteError

MARK: Final = "site.toml"
EMBEDDED: Final = ".balsamfut"
"""The directory, in the one where a script runs, of a site that it makes for itself."""
FILES: Final = ("balsamfut.db", "settings.toml", "interchange.owner", "interchange.lock", "interchange.json", MARK)
"""Files one of which every site has."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Site(msgspec.Struct, frozen=True):
    """What `site.toml` says."""

    name: str
    created: float      # Unix time
    path: str = ""      # where it was made, or added


# ---- finding


def find(given: str = "") -> Path:
    """The directory of the site that somebody means, absolute; what is there is another question.

    given: a path or a name; "": $BALSAMFUT_SITE, else what the working directory says: it is a site that is kept, or in
    one, or holds a .balsamfut or will.  A directory that holds a .balsamfut stands for that.  Raises SiteError for what
    is neither a directory that is there nor a name, and where the list of names cannot be read.
    """
    given = given or os.environ.get("BALSAMFUT_SITE", "")
    if not given:
        return _around(Path.cwd())
    path = Path(given).expanduser().absolute()
    if os.sep in given or is_site(path) or is_site(path / EMBEDDED):
        return _itself(path)
    names = known()
    if given in names:
        return names[given]
    if not path.exists():
        close = difflib.get_close_matches(given, names, n=2, cutoff=0.75)
        hint = f"did you mean {' or '.join(close)}?" if close else (
            "`balsamfut site ls` lists those there are" if names else "`balsamfut site init` makes one")
        raise SiteError(f"there is no site of the name {given!r}; {hint} (a directory here of that name would be "
                        f".{os.sep}{given})")
    return path


def is_site(directory: Path) -> bool:
    """Whether there is a site, a script's own or one that is kept."""
    return any((directory / mark).is_file() for mark in FILES)


def _itself(path: Path) -> Path:
    return path / EMBEDDED if not is_site(path) and is_site(path / EMBEDDED) else path


def _around(here: Path) -> Path:
    if not (here / MARK).is_file() and not is_site(here / EMBEDDED):
        for parent in here.parents:
            if (parent / MARK).is_file():
                return parent
    return here if (here / MARK).is_file() else here / EMBEDDED


# ---- the list of names


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
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError, TypeError) as error:
        raise SiteError(f"the list of sites {path} cannot be read: {error}; mend or remove it, sites are not touched "
                        "by that") from None


def there(name: str, place: Path) -> bool:
    """Whether the site of this name still is where the list says."""
    try:
        found = read(place)
    except SiteError:
        return True     # its file is damaged
    return found is not None and found.name == name


@contextmanager
def _changing() -> Iterator[dict[str, Path]]:
    """The sites by name, to be changed: written back, one who changes them at a time."""
    path = registry()
    with _told(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path.with_name("sites.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):     # a home without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        sites = known()
        yield sites
        with _told(path):
            _write(path, "# Where sites are, by name.\n[sites]\n" + "".join(
                f"{json.dumps(each)} = {json.dumps(str(place))}\n" for each, place in sorted(sites.items())))
    finally:
        os.close(lock)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SiteError(f"the list of sites {path} cannot be written: {error.strerror}") from None


def forget(name: str) -> Path:
    """Have a name stand for nothing; the site's directory stays as it is, and is returned.  Raises SiteError."""
    with _changing() as sites:
        if name not in sites:
            close = difflib.get_close_matches(name, sites, n=2, cutoff=0.5)
            raise SiteError(f"there is no site of the name {name!r}" + (
                f"; did you mean {' or '.join(close)}?" if close else "; `balsamfut site ls` lists those there are"))
        return sites.pop(name)


# ---- making


def read(directory: Path) -> Site | None:
    """The site that was made there, None where none was: then scripts make do with what they find.

    Raises SiteError where the file cannot be understood.
    """
    path = directory / MARK
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Site)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SiteError(f"{path} cannot be understood: {error}") from None


def moved(directory: Path, site: Site) -> str | None:
    """Why this directory is not where the site was made: one sentence that says what to do; None: it is."""
    made = Path(site.path or directory)
    if made == directory:
        return None
    try:
        if made.samefile(directory):
            return None
    except OSError:
        pass
    if there(site.name, made):
        return (f"{directory} is a copy of the site {site.name} in {made}: `balsamfut site add {directory} -n NAME` "
                "makes it a site of its own")
    return (f"the site {site.name} was made in {made}, and is in {directory} now: `balsamfut site add {directory}` "
            "makes that its place")


def init(directory: Path, name: str, platform: str, project: str = "") -> Site:
    """Make a site in this directory, which may exist but hold no site yet, and remember it by its name.

    project: who pays for blocks.  Raises SiteError, SettingsError (no such platform); then nothing was made.
    """
    machine = platforms.load(platform)
    _check_name(name)
    if (directory / MARK).is_file():
        raise SiteError(f"{directory} is a site already; `balsamfut site start` starts it")
    prepared = (directory / settings.FILE).exists()
    if is_site(directory) and not (prepared and sum((directory / mark).exists() for mark in FILES) == 1):
        raise SiteError(f"{directory} is the place of a script's own site; choose a directory that is not")
    if prepared:
        settings.load(directory)
    with _changing() as sites:
        _check_free(sites, name, directory)
        made = Site(name, time.time(), str(directory))
        chosen = settings.Settings(pilot=settings.Pilot(platform=machine.name),
                                   elastic=settings.Elastic(project=project))
        existed = directory.exists()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not prepared:
                _write(directory / settings.FILE, settings.render(chosen))
            _write_site(directory, made)
        except OSError as error:
            with suppress(OSError):
                if not prepared:
                    (directory / settings.FILE).unlink(missing_ok=True)
                if not existed:
                    directory.rmdir()
            raise SiteError(f"no site can be made in {directory}: {error.strerror}") from None
        sites[name] = directory
    return made


def add(directory: Path, name: str = "") -> Site:
    """Have a site that was moved, copied, or made by somebody else, be known by its name, or by another.

    Raises SiteError.
    """
    found = read(directory)
    if found is None:
        raise SiteError(f"there is no site in {directory}: no {MARK}; `balsamfut site init` makes one")
    name = name or found.name
    _check_name(name)
    with _changing() as sites:
        _check_free(sites, name, directory)
        made = Site(name, found.created, str(directory))
        try:
            _write_site(directory, made)
        except OSError as error:
            raise SiteError(f"{directory / MARK} cannot be written: {error.strerror}") from None
        sites[name] = directory
    return made


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise SiteError(f"{name!r} cannot be a site's name: letters, digits, `.`, `_` and `-` can, beginning with one "
                        "of the first two; name it with -n")


def _check_free(sites: dict[str, Path], name: str, directory: Path) -> None:
    place = sites.get(name, directory)
    if place != directory and there(name, place):
        raise SiteError(f"there is a site of the name {name!r} already, in {place}: choose another with -n")


def _write_site(directory: Path, site: Site) -> None:
    _write(directory / MARK, f"# Made by `balsamfut site init`.\nname = {json.dumps(site.name)}\n"
           f"created = {site.created!r}\npath = {json.dumps(site.path)}\n")


def _write(path: Path, text: str) -> None:
    """So that readers see all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
