"""Blocks on this machine: each a detached process of its own session, with its output in its log.

They outlive the interchange as batch jobs do: the next one adopts them by their id, `<pid>.<start>`, where start is the
process's start in clock ticks since boot, so that another process that got the pid is not taken for it.  There is no
queue: a block runs when it is submitted.  Like a batch system it ends a block at its walltime.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from dataclasses import dataclass
from typing import Final

from balsamfut.provider.base import BlockSpec, BlockState, BlockStatus, Provider

_GONE: Final = "it ended while no interchange watched: its exit code is lost"
_LOST: Final = "its exit code is lost: another interchange had started it"


@dataclass(slots=True)
class _Block:
    token: str
    pid: int
    id: str
    child: subprocess.Popen[bytes] | None   # None: adopted, not ours to wait for
    stop_at: float | None = None            # the walltime; then, once it was told to end, when SIGKILL is due
    stopping: bool = False
    text: str = ""


class LocalProvider(Provider):
    """The Provider for this machine.  grace: seconds from SIGTERM to SIGKILL."""

    def __init__(self, grace: float = 10.0) -> None:
        self._grace = grace
        self._blocks: dict[str, _Block] = {}
        self._news: list[BlockStatus] = []
        self._by_fd: dict[int, _Block] = {}  # pidfds, readable when the process has ended
        self._epoll = select.epoll()
        # Readable for as long as there is news that no process's end has brought.
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)

    def submit(self, spec: BlockSpec, now: float) -> str:
        if spec.token in self._blocks:
            raise ValueError(f"there is a block {spec.token!r} already")
        try:
            child = _start(spec)
            try:
                block = _Block(spec.token, child.pid, f"{child.pid}.{_start_of(child.pid)}", child)
                self._watch(block)
            except OSError:  # no descriptors left: nobody would see its end
                child.kill()
                child.wait()
                raise
        except (OSError, ValueError) as exc:
            where = f"{exc.filename!r}: {exc.strerror}" if isinstance(exc, OSError) and exc.filename else str(exc)
            self._tell(BlockStatus(spec.token, BlockState.REFUSED, text=f"cannot start {spec.argv[0]!r}: {where}"))
            return spec.token
        if spec.walltime > 0:
            block.stop_at = now + spec.walltime
            block.text = f"its walltime of {spec.walltime:g} s was over"
        self._tell(BlockStatus(spec.token, BlockState.RUNNING, block.id))
        return spec.token

    def adopt(self, token: str, id: str, now: float, spec: BlockSpec | None = None) -> None:
        pid, _, start = id.partition(".")
        if not (pid.isdigit() and start.isdigit()):  # submitted or not, nothing of it can be found
            self._tell(BlockStatus(token, BlockState.ENDED, id, text=_GONE))
            return
        block = _Block(token, int(pid), id, None)
        try:
            self._watch(block)
        except OSError:  # no such process
            self._tell(BlockStatus(token, BlockState.ENDED, id, text=_GONE))
            return
        # Asked after the pidfd was opened, so both are about the same process.
        if _start_of(block.pid) == int(start):
            self._tell(BlockStatus(token, BlockState.RUNNING, id))
        else:
            self._forget(block)
            self._tell(BlockStatus(token, BlockState.ENDED, id, text=_GONE))

    def poll(self, now: float) -> list[BlockStatus]:
        for fd, _ in self._epoll.poll(0):
            if fd == self._bell:
                os.eventfd_read(fd)
            else:
                self._ended(self._by_fd[fd])
        for block in self._blocks.values():
            if block.stop_at is not None and now >= block.stop_at:
                if block.stopping:
                    self._signal(block, signal.SIGKILL)
                    block.stop_at = None
                else:
                    self._stop(block, now)
        news, self._news = self._news, []
        return news

    def cancel(self, token: str, now: float) -> None:
        block = self._blocks.get(token)
        if block is not None and not block.stopping:
            block.text = "it was cancelled"
            self._stop(block, now)

    def fds(self) -> tuple[int, ...]:
        return (self._epoll.fileno(),)

    def due(self) -> float | None:
        return min((block.stop_at for block in self._blocks.values() if block.stop_at is not None), default=None)

    def trouble(self) -> str:
        return ""

    def close(self) -> None:
        for block in list(self._blocks.values()):
            if block.child is not None:
                block.child.returncode = 0  # it goes on: subprocess would complain that we do not wait for it
            self._forget(block)
        self._epoll.close()
        os.close(self._bell)

    def _stop(self, block: _Block, now: float) -> None:
        block.stopping = True
        block.stop_at = now + self._grace
        self._signal(block, signal.SIGTERM)

    def _signal(self, block: _Block, number: int) -> None:
        """To its group, shell and pilot alike, as batch systems do."""
        # The number of a child that we have not waited for is its own.  That of an adopted one may be another's by now,
        # but not while no process has it: then what is left of the group keeps it from being given away.
        if block.child is None and _start_of(block.pid) not in (0, int(block.id.partition(".")[2])):
            return
        try:
            os.killpg(block.pid, number)
        except OSError:  # it has ended
            pass

    def _ended(self, block: _Block) -> None:
        if block.stopping:
            self._signal(block, signal.SIGKILL)  # what did not end with its leader
        code = block.child.wait() if block.child is not None else None
        self._forget(block)
        text = block.text if block.stopping else "" if code is not None else _LOST
        self._tell(BlockStatus(block.token, BlockState.ENDED, block.id, code, text))

    def _watch(self, block: _Block) -> None:
        fd = os.pidfd_open(block.pid)
        self._epoll.register(fd, select.EPOLLIN)
        self._by_fd[fd] = block
        self._blocks[block.token] = block

    def _forget(self, block: _Block) -> None:
        del self._blocks[block.token]
        for fd in [fd for fd, each in self._by_fd.items() if each is block]:
            # Closing alone may leave it there: a process that is just being started may hold a copy.
            self._epoll.unregister(fd)
            os.close(fd)
            del self._by_fd[fd]

    def _tell(self, status: BlockStatus) -> None:
        self._news.append(status)
        os.eventfd_write(self._bell, 1)


def _start(spec: BlockSpec) -> subprocess.Popen[bytes]:
    argv = list(spec.argv)
    if spec.preamble:
        argv = ["/bin/bash", "-c", spec.preamble + '\nexec "$@"', "block", *argv]
    log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=spec.cwd,
                                env={**os.environ, **dict(spec.environ)}, start_new_session=True)
    finally:
        os.close(log)


def _start_of(pid: int) -> int:
    """When this process was started, in clock ticks since boot; 0: there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0
