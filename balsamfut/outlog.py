"""Output logs: the output of many small tasks in one file, so that it need not be a file and a directory for each.

Each agent appends to a pair of files of its own: `output-HOST.log`, in which what a task wrote stands below a line that
says whose it is, and `output-HOST.idx`, in which each record says where that is.  The log alone is enough: its lines
say how many bytes follow, and what the index lacks is read there.  So neither the database nor the agent's good end is
needed to find a task's output.  This module knows paths and bytes, no task and no site.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

LOG: Final = ".log"
INDEX: Final = ".idx"
_PREFIX: Final = "output-"
_RECORD: Final = struct.Struct("<QQQQ")
_TITLE: Final = b"--- task %d, attempt %d, %d bytes\n"
_TITLES: Final = re.compile(rb"--- task (\d{1,19}), attempt (\d{1,19}), (\d{1,19}) bytes\n")
_LONGEST: Final = 100
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC


class Span(NamedTuple):
    """Bytes start to end of a file."""

    path: str
    start: int
    end: int

    def read(self) -> bytes:
        """Raises OSError, also where the file is shorter than that."""
        with open(self.path, "rb") as file:
            data = os.pread(file.fileno(), self.end - self.start, self.start)
        if len(data) < self.end - self.start:
            raise OSError(errno.ENODATA, "the output log has been cut off", self.path)
        return data


class Entry(NamedTuple):
    """The output of one attempt: bytes start to end of the log."""

    task: int
    attempt: int
    start: int
    end: int


class OutputLog:
    """The pair of files that one agent writes; made with the first output.

    folder: made if need be.  name: the agent's; where another agent has written under it, a number is added.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name.replace("/", "_")
        self._path = ""
        self._index = -1
        self._sizes = 0, 0               # of the log and of the index
        self._broken = False

    def append(self, task: int, attempt: int, data: bytes) -> Span:
        """Keep what an attempt wrote.  Raises OSError; nothing of it is there then."""
        if self._broken:
            raise OSError(errno.EIO, "an earlier write could not be taken back", self._path)
        if not self._path:
            self._make()
        title = _TITLE % (task, attempt, len(data))
        start = self._sizes[0] + len(title)
        end = start + len(data)
        text = title + data if data.endswith(b"\n") else title + data + b"\n"
        record = _RECORD.pack(task, attempt, start, end)
        try:
            # Closed each time: on a network file system others see it from then on, and it tells of a full disk.
            log = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                _write(log, text)
            finally:
                os.close(log)
            _write(self._index, record)
        except OSError:
            self._take_back()
            raise
        self._sizes = self._sizes[0] + len(text), self._sizes[1] + len(record)
        return Span(self._path, start, end)

    def _make(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = 1
        while True:
            base = str(self._folder / f"{_PREFIX}{self._name}{f'.{number}' if number > 1 else ''}")
            try:
                os.close(os.open(base + LOG, _FLAGS, 0o600))
                break
            except FileExistsError:
                number += 1
        try:
            self._index = os.open(base + INDEX, _FLAGS, 0o600)
        except OSError:
            os.unlink(base + LOG)
            raise
        self._path = base + LOG

    def _take_back(self) -> None:
        """Have the files end as before: whoever reads them finds records from the beginning on."""
        try:
            os.truncate(self._path, self._sizes[0])
            os.ftruncate(self._index, self._sizes[1])
        except OSError:
            self._broken = True

    def close(self) -> None:
        if self._index >= 0:
            os.close(self._index)
        self._index = -1
        self._broken = True


def _write(fd: int, data: bytes) -> None:
    if os.write(fd, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def entries(log: str | os.PathLike[str]) -> Iterator[Entry]:
    """What a log holds, in the order in which it was written: by its index, and beyond it by the log's own lines.

    An end that was being written when its agent died is left out.  Raises OSError if the log cannot be read.
    """
    path = os.fspath(log)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = 0
        for entry in _indexed(path.removesuffix(LOG) + INDEX):
            if not end < entry.start <= entry.end <= size:      # not what was written
                break
            yield entry
            end = entry.end
        yield from _titled(file.fileno(), end, size)


def _indexed(path: str) -> Iterator[Entry]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return
    whole = len(data) - len(data) % _RECORD.size
    yield from map(Entry._make, _RECORD.iter_unpack(data[:whole]))


def _titled(fd: int, end: int, size: int) -> Iterator[Entry]:
    """From where an output ends, and perhaps the newline that was put behind it."""
    while end < size:
        text = os.pread(fd, _LONGEST, end)
        skip = 1 if end and text.startswith(b"\n") else 0
        title = _TITLES.match(text, skip)
        if title is None:
            return
        task, attempt, length = map(int, title.groups())
        start = end + title.end()
        end = start + length
        if end > size:
            return
        yield Entry(task, attempt, start, end)


def search(folder: Path, task: int) -> Span | None:
    """The newest output of a task in the logs of a folder and of those in it (a site's log/, or one pilot's)."""
    found: list[tuple[int, float, Span]] = []
    for log in sorted(folder.rglob(f"{_PREFIX}*{LOG}")):
        try:
            for entry in entries(log):
                if entry.task == task:
                    found.append((entry.attempt, log.stat().st_mtime, Span(str(log), entry.start, entry.end)))
        except OSError:
            continue
    return max(found)[2] if found else None
