"""Around one Python task in a worker: where its prints go, its directory, its environment, its cores.

Output is captured at the level of file descriptors: 1 and 2 are files of the worker, opened for appending, and a task's
part of them is told by their sizes before and after.  Knows no messages and no hooks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from balsamfut.errors import BadStdStream, LaunchFailed
from balsamfut.messages import Detail
from balsamfut.model import Extra

_MAKE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
# Appending in any case: what others write to the same file meanwhile is not to be overwritten.
_FLAGS = {"a": _MAKE | os.O_APPEND, "w": _MAKE | os.O_APPEND | os.O_TRUNC}


def size(fd: int) -> int:
    """Bytes in the file behind a descriptor that is open for appending; 0 where there is no telling."""
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError:      # the task has closed it, or put a pipe there
        return 0


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # closed or replaced by the task
            pass


def settle(whole_lines: bool = False) -> None:
    """Make this process's prints reach the files at once: a task may be killed in the middle of a line.

    whole_lines: only then, since others write to the same files; print() would write a line and its end apart.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace", write_through=not whole_lines, line_buffering=whole_lines)
    import ctypes

    libc = ctypes.CDLL(None)
    stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    libc.setvbuf(stdout, None, 1, 0)     # _IOLBF: what C code prints, line by line


class Captured:
    """The two output files of a worker, and how large they were when the task began."""

    def __init__(self, stdout: str, stderr: str) -> None:
        self._paths = stdout, stderr
        self.before = size(1), size(2)

    def detail(self, attempt: int) -> Detail | None:
        """What the task wrote; None for nothing, as usual.  Its end is the next one's beginning."""
        flush()
        after = size(1), size(2)
        if after == self.before:
            return None
        spans = [span if span[0] < span[1] else None for span in zip(self.before, after, strict=True)]
        self.before = after
        out, err = spans
        return Detail(stdout=self._paths[0] if out else "", stdout_span=out or (0, 0),
                      stderr=self._paths[1] if err else "", stderr_span=err or (0, 0), attempt=attempt)


def target(path: str, workdir: str) -> str:
    return os.path.join(workdir or os.getcwd(), path)


@contextmanager
def redirected(extra: Extra, workdir: str) -> Iterator[tuple[str, str]]:
    """Descriptors 1 and 2 are the files that the task asked for.  The paths; "" for what it did not ask for.

    Raises BadStdStream for a file that cannot be opened.
    """
    out = target(extra.stdout, workdir) if extra.stdout else ""
    err = target(extra.stderr, workdir) if extra.stderr else out
    saved: list[tuple[int, int]] = []
    flush()
    try:
        for number, path, name, mode in ((1, out, "stdout", extra.stdout_mode), (2, err, "stderr", extra.stderr_mode)):
            if not path:
                continue
            kept = os.dup(number)
            os.set_inheritable(kept, False)
            saved.append((number, kept))
            if number == 2 and path == out:
                os.dup2(1, 2)
                continue
            try:
                fd = os.open(path, _FLAGS[mode], 0o666)
            except OSError as exc:
                raise BadStdStream(f"cannot open the file {path!r} for {name}: {exc.strerror}") from None
            os.dup2(fd, number)
            os.close(fd)
        yield out, err
    finally:
        flush()
        for number, kept in saved:
            os.dup2(kept, number)
            os.close(kept)


def no_workdir(app: str, workdir: str, host: str, exc: OSError) -> str:
    """The sentence about a directory in which a task cannot run."""
    return f"{app} cannot run in its workdir {workdir!r} on {host}: {exc.strerror or exc}"


@contextmanager
def surroundings(workdir: str, environment: tuple[tuple[str, str], ...], app: str,
                 make: Callable[[str], None]) -> Iterator[None]:
    """The task's directory, which is made, and its environment variables, which are as before afterwards.

    Whoever calls this goes back to where it was.  Raises LaunchFailed for a directory that cannot be.
    """
    environ = None
    if workdir:
        try:
            make(workdir)
            os.chdir(workdir)
        except OSError as exc:
            raise LaunchFailed(no_workdir(app, workdir, os.uname().nodename, exc)) from None
    if environment:
        environ = dict(os.environ)
        os.environ.update(environment)
    try:
        yield
    finally:
        if environ is not None:
            os.environ.clear()
            os.environ.update(environ)
