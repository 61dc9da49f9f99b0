"""Where the output of a task is, and reading it: files of its own, or its part of a worker's log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balsamfut.query import TaskInfo

SHELL_OUTPUT = "job.out"   # of a shell task that names no file, in its workdir
TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Place:
    """Bytes start to end of a file; end 0: its end."""

    path: Path
    start: int = 0
    end: int = 0

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.end - self.start if self.end else -1)

    def tail(self, lines: int) -> str:
        """The last lines, of at most the last 64 KiB."""
        try:
            end = self.end or self.path.stat().st_size
            start = max(self.start, end - TAIL_BYTES)
            data = Place(self.path, start, end).read() if end > start else b""
        except OSError:
            return ""
        return "\n".join(data.decode(errors="backslashreplace").splitlines()[-lines:])


def find(task: TaskInfo, which: str) -> Place | None:
    """Where the task's stdout or stderr is; None where it has none, or none is known yet.

    A stderr that went with the stdout is found as both.
    """
    named: str = getattr(task, which)
    if named:
        start, end = getattr(task, f"{which}_span")
        return Place(Path(task.workdir) / named, start, end)
    path = Path(task.workdir) / SHELL_OUTPUT
    return Place(path) if which == "stdout" and path.is_file() else None


def together(task: TaskInfo) -> bool:
    """Its stdout and stderr are the same file."""
    return bool(task.stderr) and find(task, "stdout") == find(task, "stderr")


def tail(task: TaskInfo, which: str, lines: int) -> str:
    place = find(task, which)
    return "" if place is None else place.tail(lines)
