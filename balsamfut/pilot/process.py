"""Start, reap and kill processes: the only module of the pilot that does.

An attempt is a session of its own with its mark in its environment (balsamfut.pilot.guardian.MARK).  Ranks and daemons
leave process groups and sessions, so an attempt is found by its session, its descendants and its mark together; and
this process is a child subreaper, so that what loses its parent comes to us and not to init.  Therefore nothing else in
this process may start or wait for children while a Processes is open (those that were there before are left alone).

This module knows no task, no placement, no message and no clock: keys are whatever the caller likes, times are the
caller's.  It is for single-threaded use: a spawn changes the directory and the affinity of this process for an instant.

Why posix_spawn: with session, signals, directory and descriptors it takes 70 us of this process, against 60 us bare
and 125 us for subprocess.Popen (vfork, too).  It cannot set a directory, hence the chdir.  Why pidfds in an epoll: they
cost 5 us a child more than one SIGCHLD wakeup, which is one per process, wants the main thread, and can be lost.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import signal
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from balsamfut.errors import BadStdStream
from balsamfut.pilot import guardian
from balsamfut.pilot.command import NOT_RUN, Finder, StartError, copies, refusal
from balsamfut.pilot.guardian import MARK, Row, family, mark_of, sweep, sweep_mark

__all__ = ["MARK", "Child", "Exit", "Processes", "StartError", "Stream", "become_subreaper", "signal_ranks",
           "sweep", "sweep_mark"]

Stream = int | str | os.PathLike[str]
"""A descriptor of ours, or a path; relative ones lie under the child's directory."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PR_SET_CHILD_SUBREAPER: Final = 36
# Signals that we, or who started us (nohup, a shell's `&`), may ignore: an ignored signal stays so in children.
DEFAULTS: Final = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT,
                    signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD]
_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY
# Appending in any case: what others write to the same file meanwhile is not to be overwritten.
_FLAGS: Final = {"r": os.O_RDONLY | os.O_NOCTTY, "a": _APPEND, "w": _APPEND | os.O_TRUNC}
spared: set[int] = set()  # children that no Processes may touch: guardians


@dataclass(frozen=True, slots=True)
class Child:
    """What was started.  bound: it was given the cores that were asked for; False where this machine lacks one."""

    key: Hashable
    pid: int
    bound: bool


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended; what it left behind is not counted.

    returncode: the exit code, or minus the signal.  cpu: seconds, user and system.  max_rss: bytes; Linux gives a
    child at least the peak of the process that started it, so smaller values cannot be seen.
    """

    key: Hashable
    returncode: int
    max_rss: int
    cpu: float


@dataclass(slots=True)
class _Attempt:
    key: Hashable
    pid: int
    mark: str
    exited: bool = False


@functools.cache
def become_subreaper() -> None:
    """Have descendants that lose their parent become our children.  Not inherited by children.  Raises OSError."""
    import ctypes  # 8 ms, and only agents need it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process cannot become a child subreaper (prctl)")


class Processes:
    """The children of this process: one key each, a session each."""

    def __init__(self) -> None:
        become_subreaper()
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # inherited; the kernel would throw exit codes away
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for name in os.listdir("/proc/self/fd"):  # what who started us left open is not for tasks
            with contextlib.suppress(OSError):  # the descriptor of this listing
                os.set_inheritable(int(name), int(name) <= 2)
        self._null = os.open(os.devnull, os.O_RDWR)
        self._home = os.open(".", os.O_PATH | os.O_DIRECTORY)
        self._cpus = self._own = frozenset(os.sched_getaffinity(0))
        self._epoll = select.epoll()
        self._me = os.getpid()
        try:
            self._offspring = os.open(f"/proc/{self._me}/task/{self._me}/children", os.O_RDONLY)
        except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
            self._offspring = -1
        self._attempts: dict[Hashable, _Attempt] = {}  # until they have ended and nothing of them is left
        self._by_fd: dict[int, _Attempt] = {}          # those that run
        self._by_pid: dict[int, Hashable] = {}         # all, by the pid (and session) of their first process
        self._running: set[int] = set()                # pids
        self._orphans: dict[int, set[Hashable]] = {}   # adopted: whose they may be
        self._finder = Finder()
        self._before = self._children()                # not ours to touch

    # ---- starting

    def keep_to(self, cores: Collection[int]) -> None:
        """Run on these cores from now on, in so far as there are any of them; what is started is not bound by that."""
        own = self._cpus.intersection(cores)
        if own and own != self._cpus:
            self._own = own
            os.sched_setaffinity(0, own)

    def spawn(self, key: Hashable, argv: Sequence[str], *, env: Mapping[str, str], cwd: str | os.PathLike[str],
              mark: str, stdin: Stream | None = None, stdout: Stream | None = None, stderr: Stream | None = None,
              stdout_mode: str = "a", stderr_mode: str = "a", fds: Mapping[int, int] | None = None,
              cores: Collection[int] | None = None) -> Child:
        """Start argv in a session of its own.

        env: all of its environment; the mark is added.  argv[0] is looked up in env's PATH.  stdin, stdout: None is
        /dev/null; stderr: None goes with stdout.  Modes: "a" appends, "w" truncates (paths only).  fds: further
        descriptors, {number in the child: ours}; no other is inherited.  cores: to bind it to; where this machine lacks
        one of them, it is not bound.  Raises StartError (an OSError), BadStdStream, and ValueError for a key in use.
        """
        if key in self._attempts:
            raise ValueError(f"{key!r} was started before and is not over: kill it, or ask remains() after its end")
        opened: list[int] = []
        try:
            self._enter(cwd, argv)
            wanted = {0: self._stream(stdin, "stdin", "r", opened),
                      1: self._stream(stdout, "stdout", stdout_mode, opened)}
            same = stderr is None or (stderr == stdout and not isinstance(stderr, int))
            wanted[2] = wanted[1] if same else self._stream(stderr, "stderr", stderr_mode, opened)
            wanted.update(fds or {})
            bound = bool(cores) and self._cpus.issuperset(cores or ())
            if bound or self._own is not self._cpus:
                os.sched_setaffinity(0, cores if bound and cores else self._cpus)
            pid = self._execute(list(argv), {**env, MARK: mark}, copies(wanted, opened))
        finally:
            os.fchdir(self._home)
            if cores or self._own is not self._cpus:
                os.sched_setaffinity(0, self._own)
            for fd in opened:
                os.close(fd)
        return self._enlist(_Attempt(key, pid, mark), bound)

    def _enter(self, cwd: str | os.PathLike[str], argv: Sequence[str]) -> None:
        try:
            os.chdir(cwd)
        except OSError as exc:
            raise StartError(exc.errno or 0, f"cannot run {argv[0]!r} in the directory {os.fspath(cwd)!r}: "
                             f"{exc.strerror}", None) from None

    def _stream(self, where: Stream | None, name: str, mode: str, opened: list[int]) -> int:
        if where is None:
            return self._null
        if isinstance(where, int):
            return where
        try:
            fd = os.open(where, _FLAGS[mode], 0o666)
        except OSError as exc:
            raise BadStdStream(f"cannot open the file {os.fspath(where)!r} for {name}: {exc.strerror}") from None
        opened.append(fd)
        return fd

    def _execute(self, argv: list[str], env: Mapping[str, str], actions: list[tuple[int, int, int]]) -> int:
        path = env.get("PATH", os.defpath)
        file = self._finder.find(argv[0], path)
        try:
            return os.posix_spawn(file, argv, env, file_actions=actions, setsid=True, setsigmask=(),
                                  setsigdef=DEFAULTS)
        except ValueError as exc:  # a NUL, or a variable with `=` in its name
            raise StartError(errno.EINVAL, f"cannot run {argv[0]!r}: its arguments or its environment are not "
                             f"acceptable to the system ({exc})", NOT_RUN) from None
        except OSError as exc:
            self._finder.forget(argv[0], path)
            if exc.errno == errno.ENOENT and self._finder.find(argv[0], path) != file:  # moved since we looked
                return self._execute(argv, env, actions)
            raise refusal(argv[0], exc.errno or 0) from None

    def _enlist(self, attempt: _Attempt, bound: bool) -> Child:
        try:
            fd = os.pidfd_open(attempt.pid)
        except OSError as exc:  # no descriptors left: we could not see its end
            os.kill(attempt.pid, signal.SIGKILL)
            os.waitpid(attempt.pid, 0)
            raise StartError(exc.errno or 0, f"cannot watch a new process: {exc.strerror}", None) from None
        self._epoll.register(fd, select.EPOLLIN)
        self._attempts[attempt.key] = self._by_fd[fd] = attempt
        self._by_pid[attempt.pid] = attempt.key
        self._running.add(attempt.pid)
        return Child(attempt.key, attempt.pid, bound)

    # ---- ending

    def fds(self) -> tuple[int, ...]:
        """Descriptors that are readable when reap() has something; the same ones for the life of this object."""
        return (self._epoll.fileno(),)

    def reap(self) -> list[Exit]:
        """The children that have ended since the last call.  Never blocks.  Ask remains() for each."""
        exits = []
        for fd, _ in self._epoll.poll(0):
            attempt = self._by_fd[fd]
            pid, status, usage = os.wait4(attempt.pid, os.WNOHANG)
            if pid:
                del self._by_fd[fd]
                # Closing alone may leave it there: a child that is just being started holds a copy until its exec.
                self._epoll.unregister(fd)
                os.close(fd)
                self._running.discard(pid)
                attempt.exited = True
                exits.append(Exit(attempt.key, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024,
                                  usage.ru_utime + usage.ru_stime))
        return exits

    def remains(self, key: Hashable, *, thorough: bool = False) -> list[int]:
        """Processes that an attempt left behind when it ended; none: it is over, and its key is free.

        Costs microseconds: what a child of ours leaves behind has been adopted by us when its end is seen.
        thorough: looks at all processes of this host for its mark, for attempts whose processes a daemon started
        that is not ours (MPI launchers' daemons); milliseconds.
        """
        attempt = self._attempts.get(key)
        if attempt is None:
            return []
        self.tidy()
        left = sorted(pid for pid, owners in self._orphans.items() if owners <= {key})
        if thorough:
            left = sorted(self._members(guardian.table(), [attempt]))
        if attempt.exited and not left:
            del self._attempts[key]
            if self._by_pid.get(attempt.pid) == key:
                del self._by_pid[attempt.pid]
            for owners in self._orphans.values():
                owners.discard(key)
        return left

    def kill(self, *keys: Hashable, patience: float = 1.0) -> list[int]:
        """SIGKILL to all of these attempts: session, descendants, all that carry the mark; until none is found.

        Blocks while they die: milliseconds, at most about `patience` seconds.  Returns the pids that could not be
        killed.  The ends of children that ran are reported by reap(), as always.
        """
        attempts = [self._attempts[key] for key in keys if key in self._attempts]
        return guardian.end(lambda rows: self._members(rows, attempts), patience) if attempts else []

    def signal(self, key: Hashable, number: int, *, ranks: bool = False) -> None:
        """Send a signal to all processes of an attempt; one that is over is no error.

        ranks: to those alone that an MPI launcher has started, if there are any: each launcher does something else when
        it is told to stop, and each ends in order when its ranks do.  Else the one that we started comes first: it
        shall not go on as if nothing had been, because its children ended.
        """
        attempt = self._attempts.get(key)
        if attempt is None:
            return
        members = self._members(guardian.table(), [attempt])
        launched = guardian.ranks(members) if ranks else set()
        send(sorted(launched or members, key=lambda pid: pid != attempt.pid), number)

    def end(self, patience: float = 2.0) -> list[int]:
        """Kill all that we started and adopted.  Returns the pids that could not be killed."""
        def find(rows: dict[int, Row]) -> set[int]:
            self.tidy()
            seeds = {pid for pid, each in rows.items() if each.parent == self._me} - self._before - spared
            return family(rows, seeds) | self._members(rows, list(self._attempts.values()))

        return guardian.end(find, patience)

    def close(self) -> None:
        """Let go of our descriptors; kills nothing."""
        self._epoll.close()
        for fd in (self._null, self._home, self._offspring, *self._by_fd):
            if fd >= 0:
                os.close(fd)
        self._by_fd.clear()

    # ---- looking

    @property
    def strangers(self) -> bool:
        """There are adopted processes, as far as we have looked."""
        return bool(self._orphans)

    def memory_of(self, key: Hashable, *, exact: bool = False) -> int:
        """Resident bytes of an attempt's processes, pages that they share counted for each; 0: it is not there.

        exact: shared pages are counted by their share (milliseconds a process): worth a look before killing for it.
        """
        return self.memory([key], exact=exact)[key]

    def memory(self, keys: Iterable[Hashable], *, exact: bool = False) -> dict[Hashable, int]:
        """memory_of() for several attempts in one look at this host."""
        rows = guardian.table()
        sizes: dict[Hashable, int] = {}
        for key in keys:
            members = self._members(rows, [self._attempts[key]]) if key in self._attempts else set()
            sizes[key] = sum((guardian.share(pid) if exact else None) or rows[pid].pages * _PAGE for pid in members)
        return sizes

    def tidy(self) -> None:
        """Reap adopted processes that have ended.  remains() does it too; call it at times while long attempts run."""
        strangers = self._children() - self._running - self._before - spared
        for pid in [pid for pid in self._orphans if pid not in strangers]:
            del self._orphans[pid]
        for pid in strangers:
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._orphans.pop(pid, None)
            elif pid not in self._orphans:
                self._orphans[pid] = self._owners(pid)

    def _owners(self, pid: int) -> set[Hashable]:
        """Whose an adopted process may be.  One that left its session and its environment behind may be anybody's who
        is there when it is found: it is left alone until all of them are over."""
        leader = os.getsid(pid)
        if leader in self._by_pid:
            return {self._by_pid[leader]}
        mark = mark_of(pid)
        return {key for key, each in self._attempts.items() if each.mark == mark} or set(self._attempts)

    def _children(self) -> set[int]:
        """Our children, dead ones too until they are reaped."""
        if self._offspring < 0:
            return {pid for pid, each in guardian.table().items() if each.parent == self._me}
        data = part = os.pread(self._offspring, 1 << 16, 0)
        while len(part) > 2048:  # it comes in pages: what is shorter is the last
            part = os.pread(self._offspring, 1 << 16, len(data))
            data += part
        return set(map(int, data.split()))

    def _members(self, rows: dict[int, Row], attempts: Iterable[_Attempt]) -> set[int]:
        """All living processes of these attempts."""
        self.tidy()
        keys, marks, seeds, sessions = set(), set(), set(), set()
        for each in attempts:
            keys.add(each.key)
            marks.add(each.mark)
            if not each.exited:
                seeds.add(each.pid)
            if not (each.exited and each.pid in rows):  # else its pid is another's by now
                sessions.add(each.pid)
        seeds.update(pid for pid, owners in self._orphans.items() if owners <= keys)
        seeds.update(pid for pid in rows if pid != self._me and mark_of(pid) in marks)
        return family(rows, seeds, sessions) - {self._me} - spared


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to those of these processes that are there and ours."""
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended meanwhile, or has become another user
            os.kill(pid, number)


def signal_ranks(mark: str, number: int) -> None:
    """Send a signal to the ranks on this host that carry a mark."""
    rows = guardian.table()
    send(guardian.ranks(pid for pid in rows if mark_of(pid) == mark), number)
