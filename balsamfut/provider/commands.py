"""Commands that may hang: started without waiting, ended at a time limit, their results handed back by poll.

Output goes to memory files and not through pipes, so that nobody needs to read while a command runs, and a daemon that
a command leaves behind holds nobody up.  Time is an argument (Unix time, seconds).  Knows no batch system.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

_MOST: Final = 64 << 20   # bytes of output that are read
_STUCK: Final = 8         # commands that were killed and are still there before no other one is started
_AT_ONCE: Final = 4       # login nodes count a user's processes, and a server that is slow is not helped by more of us


class Result(msgspec.Struct, frozen=True):
    """How a command ended."""

    argv: tuple[str, ...]
    code: int | None      # None: there is none, `error` says why
    out: str = ""
    err: str = ""
    error: str = ""       # it could not be started, or did not end in time
    began: bool = True    # False: it was never started, so it has done nothing

    @property
    def text(self) -> str:
        """What it said of its failure, as it said it."""
        return self.error or self.err.strip() or self.out.strip() or f"{self.argv[0]} ended with code {self.code}"


Then = Callable[[Result, float], None]


@dataclass(slots=True)
class _Running:
    argv: tuple[str, ...]
    child: subprocess.Popen[bytes]
    until: float
    limit: float
    files: list[int] = field(default_factory=list)   # its stdout and stderr
    then: Then | None = None                         # None: it was told that it did not answer


@dataclass(slots=True)
class _Waiting:
    argv: tuple[str, ...]
    limit: float
    then: Then
    text: str


class Commands:
    """Commands under way: some run, the others wait for their turn."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[int, _Running] = {}   # by pidfd, readable when the process has ended
        self._failed: list[tuple[Then, Result]] = []
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)

    def start(self, argv: Sequence[str], now: float, limit: float, then: Then, text: str = "") -> None:
        """Start a command with this text for its stdin; poll calls `then` when it or its time (seconds) is over."""
        self._waiting.append(_Waiting(tuple(argv), limit, then, text))
        self._launch(now)

    def ring(self) -> None:
        """Make fds readable until the next poll."""
        os.eventfd_write(self._bell, 1)

    def poll(self, now: float) -> None:
        """Hand back what is over.  What it calls may start other commands."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._bell:
                os.eventfd_read(fd)
            else:
                self._ended(fd, now)
        for running in [each for each in self._running.values() if each.then is not None and now >= each.until]:
            self._too_late(running, now)
        self._launch(now)
        failed, self._failed = self._failed, []
        for then, result in failed:
            then(result, now)

    def fds(self) -> tuple[int, ...]:
        return (self._epoll.fileno(),)

    def due(self) -> float | None:
        """When a command's time is over."""
        return min((each.until for each in self._running.values() if each.then is not None), default=None)

    def close(self) -> None:
        """End what runs; nobody is told."""
        for fd, running in list(self._running.items()):
            _kill(running.child)
            try:
                running.child.wait(1.0)
            except subprocess.TimeoutExpired:   # in the kernel's hands, for a file system that does not answer
                running.child.returncode = -signal.SIGKILL
            self._forget(fd, running)
        self._epoll.close()
        os.close(self._bell)

    def _launch(self, now: float) -> None:
        while self._waiting and sum(each.then is not None for each in self._running.values()) < _AT_ONCE:
            waiting = self._waiting.popleft()
            stuck = [each.argv[0] for each in self._running.values() if each.then is None]
            if len(stuck) >= _STUCK:
                self._fail(waiting, f"{len(stuck)} commands that were killed are still there: {', '.join(stuck)}")
            else:
                self._begin(waiting, now)

    def _begin(self, waiting: _Waiting, now: float) -> None:
        words = waiting.argv
        files: list[int] = []
        child = None
        try:
            files += (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdin", "stdout", "stderr"))
            os.write(files[0], waiting.text.encode())
            os.lseek(files[0], 0, os.SEEK_SET)
            child = subprocess.Popen(words, stdin=files[0], stdout=files[1], stderr=files[2], start_new_session=True)
            fd = os.pidfd_open(child.pid)
        except (OSError, ValueError) as exc:
            for each in files:
                os.close(each)
            if child is not None:   # no descriptors left: nobody would see its end
                _kill(child)
                child.wait()
            why = "it is not on the PATH of this process" if isinstance(exc, FileNotFoundError) else str(exc)
            self._fail(waiting, f"cannot start {words[0]}: {why}", began=child is not None)
            return
        os.close(files.pop(0))
        self._epoll.register(fd, select.EPOLLIN)
        self._running[fd] = _Running(words, child, now + waiting.limit, waiting.limit, files, waiting.then)

    def _fail(self, waiting: _Waiting, error: str, began: bool = False) -> None:
        self._failed.append((waiting.then, Result(waiting.argv, None, error=error, began=began)))
        self.ring()

    def _ended(self, fd: int, now: float) -> None:
        running = self._running[fd]
        code = running.child.wait()
        out, err = (_text(each) for each in running.files) if running.then else ("", "")
        self._forget(fd, running)
        if running.then is not None:
            running.then(Result(running.argv, code, out, err), now)

    def _too_late(self, running: _Running, now: float) -> None:
        """Its end is awaited still, so that nothing stays unreaped, but its story is over."""
        _kill(running.child)
        then, running.then = running.then, None
        if then is not None:
            then(Result(running.argv, None, error=f"{running.argv[0]} did not answer within {running.limit:g} s"), now)

    def _forget(self, fd: int, running: _Running) -> None:
        del self._running[fd]
        self._epoll.unregister(fd)
        for each in (fd, *running.files):
            os.close(each)


def _kill(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)   # a wrapper's children too; the number is its own until it is reaped
    except OSError:
        pass


def _text(fd: int) -> str:
    # Batch systems give back bytes as users gave them, in whatever encoding.
    return os.pread(fd, _MOST, 0).decode(errors="replace")
