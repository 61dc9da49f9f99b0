"""What kind of file system a path is on, since SQLite's write-ahead log needs one that is local.

Reads the text of /proc/mounts, and nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/mounts")
NETWORK: Final = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "daos", "dfuse", "dvs", "glusterfs", "gpfs", "lustre", "nfs", "nfs3", "nfs4",
    "orangefs", "panfs", "pvfs2", "quobyte", "smb3", "smbfs", "sshfs", "vast", "virtiofs", "wekafs"})


def filesystem(path: Path, mounts: str) -> str:
    """The type of the file system that `path` (absolute, resolved) is on, by the text of /proc/mounts, or ""."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1]))   # a space is \040
        if path.is_relative_to(point) and len(point.parts) >= best:   # the later of two on one point hides the other
            best, kind = len(point.parts), fields[2]
    return kind


def here(path: Path) -> str:
    """The type of the file system that `path` is on; "" where this machine does not tell."""
    try:
        return filesystem(path.resolve(), MOUNTS.read_text(errors="surrogateescape"))
    except OSError:
        return ""   # no Linux: a workstation


def network(kind: str) -> bool:
    """Whether several hosts may see a file system of this type."""
    return kind.removeprefix("fuse.") in NETWORK
