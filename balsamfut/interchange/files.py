"""The files by which an interchange says where it is, and why it could not start; and the ends of logs.

Knows the site's directory and nothing of what an interchange does.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from balsamfut import connection
from balsamfut.connection import Connection
from balsamfut.errors import BalsamfutError
from balsamfut.messages import Reports

PAUSED: Final = "elastic.paused"
TAIL: Final = 4096
"""Bytes of the end of a log that are looked at; people are shown the last ..."""
LINES: Final = 4
"""... lines of them, and of each so many characters at most."""
WIDTH: Final = 300
LOG: Final = "log/interchange.log"
LOG_MOST: Final = 16 << 20
"""Bytes of the log, after which it begins anew; the one before is kept."""


def announce(site: Path, said: Connection) -> None:
    """Write the connection file."""
    write_file(site / connection.NAME, msgspec.json.encode(said))
    (site / "interchange.error").unlink(missing_ok=True)


def withdraw(site: Path, epoch: int) -> None:
    """Take the connection file away, if it is ours, the owner's of that epoch: nobody shall come any more."""
    found = connection.read(site)
    if found is not None and found.here and found.pid == os.getpid() and found.epoch == epoch:
        with suppress(OSError):
            (site / connection.NAME).unlink()


def paused(site: Path) -> bool:
    """Whether the elastic queue of this site is to ask for nothing."""
    return (site / PAUSED).exists()


def pause(site: Path, on: bool) -> None:
    """Remember that, for interchanges to come."""
    if on:
        write_file(site / PAUSED, b"the elastic queue asks for no blocks; `balsamfut queue resume` ends that\n")
    else:
        (site / PAUSED).unlink(missing_ok=True)


def begin_log_anew(site: Path, most: int = LOG_MOST) -> None:
    """Move the log away that this process writes, if it has become long: a site may run for years."""
    log = site / LOG
    try:
        there = os.fstat(2)
        if there.st_size < most or not os.path.samestat(there, log.stat()):
            return
        log.replace(log.with_name(f"{log.name}.1"))
        fresh = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:
        return      # it goes on where it is
    for descriptor in (1, 2):
        os.dup2(fresh, descriptor)
    os.close(fresh)


def spooled(path: Path) -> list[Reports]:
    """What a pilot wrote when there was nobody to hand it to: length-prefixed frames."""
    data = path.read_bytes()
    decoder = msgspec.msgpack.Decoder(Reports)
    found: list[Reports] = []
    start = 0
    while start + 4 <= len(data):
        size = int.from_bytes(data[start:start + 4], "little")
        found.append(decoder.decode(data[start + 4:start + 4 + size]))
        start += 4 + size
    return found


def last_words(path: Path) -> str:
    """How a log ends, on one line for people, with its path; "": there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            text = file.read(TAIL).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    lines = ["".join(c if c.isprintable() else " " for c in line).strip()[:WIDTH] for line in text.splitlines()]
    said = [line for line in lines if line][-LINES:]
    return f"{path} ends: {' | '.join(said)}" if said else f"{path} is empty"


def write_file(path: Path, data: bytes) -> None:
    """Write a private file so that readers see all of it or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
    temporary.replace(path)


def fail(site: Path, error: BalsamfutError) -> None:
    """Leave word for whoever started us."""
    known = next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == BalsamfutError.__module__)
    said = {"error": known, "text": str(error)}
    with suppress(OSError):
        write_file(site / "interchange.error", msgspec.json.encode(said))
