"""A site's keys: who may come in at a door that is on a network, and as what.

`<site>/keys/` has a pair for each role, in files that only their owner can read.  What a peer may say follows from the
key that it has: a client's opens the clients' door, a pilot's the pilots'.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import msgspec

from balsamfut.errors import SiteError
from balsamfut.wire import Keys, key_pair

OWN: Final = "interchange"
ROLES: Final = ("client", "pilot")


class _Pair(msgspec.Struct):
    public: str
    secret: str


def make(site: Path) -> None:
    """Make the keys that there are not yet.  Raises SiteError where others could read them."""
    folder = site / "keys"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for role in (OWN, *ROLES):
        path = folder / f"{role}.json"
        if path.exists():
            continue
        public, secret = key_pair()
        temporary = folder / f".{role}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(_Pair(public.decode(), secret.decode())))
        try:
            os.link(temporary, path)          # whoever is first has made it
        except FileExistsError:
            pass
        temporary.unlink()
    for role in (OWN, *ROLES):
        _read(site, role)


def door(site: Path, role: str) -> Keys:
    """The interchange's keys for the door at which this role comes in.  Raises SiteError."""
    own = _read(site, OWN)
    return Keys(own.public.encode(), own.secret.encode(), (_read(site, role).public.encode(),))


def link(site: Path, role: str, address: str) -> Keys | None:
    """What a peer of this role needs to come in at an address; None: nothing, it is not on a network.

    Raises SiteError where the keys are not there, or others can read them.
    """
    if not address.startswith("tcp://"):
        return None
    mine = _read(site, role)
    return Keys(mine.public.encode(), mine.secret.encode(), (_read(site, OWN).public.encode(),))


def _read(site: Path, role: str) -> _Pair:
    path = site / "keys" / f"{role}.json"
    try:
        for each in (path.parent, path):
            found = each.stat()
            if found.st_uid != os.getuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise SiteError(f"{each} must be yours alone: chmod go= {each}")
        return msgspec.json.decode(path.read_bytes(), type=_Pair)
    except (OSError, msgspec.DecodeError) as error:
        raise SiteError(f"the key {path} cannot be read: {error}") from None
