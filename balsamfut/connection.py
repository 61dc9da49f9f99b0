"""The connection file: which interchange serves a site, where it listens, and whether it is still there.

The interchange writes it, clients, pilots and commands read it.  This module knows no messages.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

NAME = "interchange.json"


class Connection(msgspec.Struct, frozen=True):
    """What the connection file says."""

    pid: int
    host: str
    epoch: int
    clients: str       # addresses of its two doors
    pilots: str
    protocol: int
    started: float     # Unix time, by its host's clock
    directory: str = ""     # the site's, as it has it
    inode: int = 0          # ... and which one that is: a copy has another

    @property
    def here(self) -> bool:
        """It runs on this host."""
        return self.host == os.uname().nodename

    @property
    def alive(self) -> bool:
        """Its process is there, as far as can be told: of another host's it cannot be, it has to be asked."""
        return not self.here or runs(self.pid)

    @property
    def near(self) -> bool:
        """It can be reached from this host, if it lives."""
        return self.here or self.clients.startswith("tcp://")

    @property
    def text(self) -> str:
        """For people."""
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"process {self.pid} on {self.host}, since {when}"


def read(site: Path) -> Connection | None:
    """The connection file, None where there is none, it is not whole, or it was copied here from another site."""
    try:
        found = msgspec.json.decode((site / NAME).read_bytes(), type=Connection)
        if found.directory in ("", str(site)) or site.stat().st_ino == found.inode:
            return found
    except (OSError, msgspec.DecodeError):
        pass
    return None


def stopped(found: Connection) -> bool:
    """Whether it is a process of this host that a signal has stopped."""
    try:
        with open(f"/proc/{found.pid}/stat", "rb") as file:
            return found.here and file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def runs(pid: int) -> bool:
    """Whether a process of this number runs on this host.

    One that has ended does not, also while nobody has reaped it: where a container's first process reaps nobody, that
    is for ever.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        pass
    try:            # a /proc that hides others' processes
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.path.exists("/proc/self/stat")    # else it ended between the two looks
