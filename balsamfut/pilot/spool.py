"""What a pilot could not hand over, on disk: `<site>/spool/pilot-<n>`, messages for the next interchange, with lengths.

Knows no sockets and decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from balsamfut.messages import Reports
from balsamfut.pilot.hand import frame


def write(site: Path, pilot: int, messages: Iterable[Reports]) -> None:
    """All or nothing, and on the disk when this returns.  Raises OSError."""
    encode = msgspec.msgpack.Encoder().encode
    folder = site / "spool"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f".pilot-{pilot}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        for message in messages:
            file.write(frame(encode(message)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / f"pilot-{pilot}")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
