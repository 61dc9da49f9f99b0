"""Being the one interchange of a site, whichever host the one before us was on.

On one host a lock on a file tells who is there.  A lock may or may not pass from host to host, and no process of
another host can be looked at; so there the owner's sign of life in the database counts, which it changes every few
seconds.  We look at it again and again for as long as the setting `interchange.lease` says, on our own clock: no clock
of one host is ever compared with another's.  An owner that was only stopped, and wakes up, finds a newer epoch and ends
itself; so to take over too early costs a restart and harms nothing.  Knows the database as a Store, and no message.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from balsamfut.connection import runs
from balsamfut.errors import SiteError, SiteTaken
from balsamfut.infos import OwnerInfo
from balsamfut.interchange.store import Owned, Store, StoreError

log = logging.getLogger(__name__)

PATIENCE: Final = 30.0
"""Seconds for an interchange of this host that is ending."""
LOOKS: Final = 20
"""Looks at the sign of life of an owner elsewhere, at least, in the time of the lease."""
UNLOCKED: Final = 5.0
"""Seconds that somebody else's transaction may take when its owner has given no sign of life."""
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LOCK: Final = "interchange.owner"


def beat_every(lease: float) -> float:
    """Seconds between the signs of life of an owner."""
    return min(10.0, lease / 4)


def own(site: Path, store: Store, lease: float, *, at_once: bool = False) -> int:
    """Be the one interchange of this site, and open its database.  Returns the lock's descriptor.

    at_once: somebody knows that the owner before us is past, wherever it was.  Raises SiteTaken where it is not, and
    what Store.open raises.
    """
    lock = _wait_for_lock(site, store, at_once)
    try:
        owner = _open(store, at_once)
        if owner is not None:
            if not at_once:
                watch(lambda: look(store), owner, lease)
            _open_after(store, owner)
        return _new_lock(site) if lock is None else lock
    except BaseException:
        if lock is not None:
            os.close(lock)
        raise


def _open(store: Store, at_once: bool) -> OwnerInfo | None:
    """Open the database; or the owner that may live, where there is one."""
    try:
        store.open(lambda owner: at_once or not may_live(owner))
        return None
    except Owned as found:
        return found.owner
    except StoreError as error:     # locked, it may be: the owner is slow, or hangs in the middle of a transaction
        owner = look(store)
        if not error.transient or owner is None or not may_live(owner):
            raise
        return owner


def may_live(owner: OwnerInfo) -> bool:
    """Whether it cannot be said from here that this owner is past."""
    if not owner.pid:
        return False
    return owner.host != socket.gethostname() or _is_interchange(owner.pid)


def _is_interchange(pid: int) -> bool:
    """A process of this host that is an interchange: of another directory with the same database, as may be."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return runs(pid) and pid != os.getpid() and b"balsamfut.interchange.server" in words


def look(store: Store) -> OwnerInfo | None:
    """Whose the database is; None where there is none, or it cannot be read now."""
    from balsamfut.query import Reader  # imported where there is somebody to look at

    try:
        with Reader(store.url, None) as reader:
            return reader.owner()
    except SiteError:
        return None


def watch(look: Callable[[], OwnerInfo | None], owner: OwnerInfo, lease: float,
          clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return when an owner has given no sign of life for so long.  Raises SiteTaken as soon as it gives one."""
    log.info("the last owner was %s; watching for %g s whether it gives a sign of life", owner.text, lease)
    until = clock() + lease
    while clock() < until:
        sleep(lease / LOOKS)
        seen = look()
        if seen is None or seen == owner:
            continue
        if seen.epoch == owner.epoch and not seen.pid:
            return      # it has ended meanwhile
        raise SiteTaken(f"this site's interchange lives: {seen.text}; end it there (`balsamfut site stop`), or have "
                        "`balsamfut site start --take-over` replace it")


def _open_after(store: Store, owner: OwnerInfo) -> None:
    """Take over from an owner that gave no sign of life."""
    until = time.monotonic() + UNLOCKED
    while True:
        try:
            store.open(lambda now: now == owner or not now.pid)
            break
        except Owned as found:
            raise SiteTaken(f"this site's interchange lives: {found.owner.text}") from None
        except StoreError as error:
            if not error.transient or time.monotonic() > until:
                raise SiteTaken(f"{error}: it belongs to {owner.text}, which gives no sign of life; if it hangs in the "
                                f"middle of a transaction, `kill -KILL {owner.pid}` on {owner.host} frees it") from None
    log.info("took over from %s, which gave no sign of life", owner.text)


# ---- the lock


def _wait_for_lock(site: Path, store: Store, at_once: bool) -> int | None:
    """The lock, once an interchange of this host that has it has ended.  None: one of another host may have it."""
    deadline = time.monotonic() + PATIENCE
    next_look = 0.0
    while (lock := _try_lock(site)) is None:
        now = time.monotonic()
        if at_once:
            return None
        if now >= next_look:
            next_look = now + 1.0
            owner = look(store)
            if owner is not None and owner.pid and owner.host != socket.gethostname():
                return None
        if now > deadline:
            raise SiteTaken(f"another interchange of {site} is running on {socket.gethostname()}")
        time.sleep(0.01)
    return lock


def _try_lock(site: Path) -> int | None:
    lock = os.open(site / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(site / _LOCK)):
            return lock
    except (BlockingIOError, FileNotFoundError):    # the second: whoever takes over is just replacing the file
        pass
    except OSError as error:
        if error.errno in _NO_LOCKS:                # a file system without locks: the epoch alone has to do
            return lock
        raise
    os.close(lock)
    return None


def _new_lock(site: Path) -> int:
    """A lock of our own in place of the one that an owner of another host still has."""
    path = site / f"{_LOCK}.{os.getpid()}"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path.replace(site / _LOCK)
    return lock
