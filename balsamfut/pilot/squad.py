"""The agent's Python workers as processes: started, fed, heard, and buried.

Performs what the brain decides about workers and tells it what they say and how they die.  It must not know queues,
placements or the interchange.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path
from typing import Final

import msgspec

from balsamfut.messages import Detail, Fault
from balsamfut.model import Pool
from balsamfut.pilot import hand
from balsamfut.pilot.desk import Desk, tail
from balsamfut.pilot.events import Environ, Event, Heard, Stolen, WorkerGone
from balsamfut.pilot.orders import Give
from balsamfut.pilot.post import Post
from balsamfut.pilot.process import Exit, Processes, StartError

_KEY: Final = "worker"
# -P and a path of our own: a file named like one of ours in the user's directory is not to be imported in its place.
_START: Final = "import sys; sys.path.append({home!r}); from balsamfut.pilot.worker import main; main()"

_encode = msgspec.msgpack.Encoder().encode


class Member:
    """One worker process."""

    __slots__ = ("id", "post", "stdout", "stderr", "coded", "ending", "pid", "failed", "memory")

    def __init__(self, id: int, post: Post, folder: Path) -> None:
        self.id = id
        self.post = post
        self.stdout = str(folder / f"worker-{id}.out")
        self.stderr = str(folder / f"worker-{id}.err")
        self.coded: set[bytes] = set()   # apps whose code it has
        self.ending = 0                  # the last signal that we sent it
        self.pid = 0
        self.failed = ""                 # why it could not be started
        self.memory = 0                  # bytes that what it runs may use; 0: not limited


class Squad:
    """All workers of one agent."""

    def __init__(self, desk: Desk, processes: Processes) -> None:
        self._desk = desk
        self._processes = processes
        self._epoll = select.epoll()
        self._members: dict[int, Member] = {}
        self._by_fd: dict[int, Member] = {}
        self._backlog: set[int] = set()
        self._stillborn: list[int] = []
        self._lingering: dict[int, Exit] = {}    # dead workers of which something is left
        self._folder = desk.site / "log" / f"pilot-{desk.pilot}"
        self._oom = oom_kills()
        self._home = str(Path(__file__).resolve().parents[2])

    def fileno(self) -> int:
        """Readable when a worker has said something."""
        return self._epoll.fileno()

    @property
    def busy(self) -> bool:
        """Something is to be done at each tick."""
        return bool(self._lingering or self._backlog or self._stillborn)

    # ---- what the brain orders

    def start(self, number: int, digest: bytes, env: Environ) -> None:
        """Start a worker; that it could not be started is told like its death."""
        desk, pool = self._desk, self._desk.pools[digest]
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        post = Post()
        member = self._members[number] = Member(number, post, self._folder)
        environ = {**desk.environ(pool), **dict(env)}
        argv = [pool.python, "-u", "-P", "-c", _START.format(home=self._home)]
        try:
            child = self._processes.spawn(
                (_KEY, number), argv, env=environ, cwd=pool.cwd or str(desk.site),
                mark=f"{desk.token}:worker-{number}:0", stdout=member.stdout, stderr=member.stderr, fds=post.fds)
        except OSError as exc:
            why = exc if isinstance(exc, StartError) else exc.strerror or exc
            member.failed = f"the Python worker on {desk.host} cannot be started: {why}"
            self._stillborn.append(number)
            return
        member.pid = child.pid
        post.started()
        self._by_fd[post.fileno()] = member
        self._epoll.register(post.fileno(), select.EPOLLIN)
        post.tell(self._setup(member, pool))

    def _setup(self, member: Member, pool: Pool) -> hand.Setup:
        desk = self._desk
        return hand.Setup(pool, str(desk.site), str(desk.objects), desk.inline, desk.clients, desk.host,
                          f"pilot-{desk.pilot}/worker-{member.id}", member.stdout, member.stderr)

    def give(self, give: Give) -> None:
        """Put attempts into a worker's queue, what they refer to first."""
        member = self._members.get(give.worker)
        if member is None:               # it has died, and its leader is about to hear of it
            return
        post = member.post
        member.memory = give.memory
        for define in give.defines:
            if define.app not in member.coded:
                member.coded.add(define.app)
                post.tell(hand.Code(define.app, self._desk.codes[define.app]))
            post.tell(define)
        for task, attempt, data in give.orders:
            if len(data) > hand.SPILL:
                data = self._spill((task, attempt), data)
            post.order((task, attempt), data)
        if post.backlog:
            self._backlog.add(member.id)

    def _spill(self, key: tuple[int, int], data: bytes) -> bytes:
        path = self._folder / f"order-{key[0]}-{key[1]}"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        return _encode(hand.Spilled(*key, str(path)))

    def steal(self, number: int) -> Stolen | None:
        """Take back what a worker has not read; None: it is dead, which is told apart."""
        member = self._members.get(number)
        if member is None:
            return None
        keys = member.post.steal()
        running = member.post.running()
        return Stolen(number, keys, None if running is None else (running.task, running.attempt))

    def grant(self, number: int, task: int) -> None:
        member = self._members.get(number)
        if member is None:
            return
        member.post.tell(hand.Grant(task))
        if member.post.backlog:
            self._backlog.add(number)

    def end(self, number: int, sig: int) -> None:
        """Let a worker leave (0), or send it and all its descendants a signal."""
        member = self._members.get(number)
        if member is None:
            return
        member.ending = sig
        if sig == 0:
            member.post.end()
        elif sig == signal.SIGKILL:
            self._processes.kill((_KEY, number))
        else:
            self._processes.signal((_KEY, number), sig)

    # ---- what the workers do

    def listen(self) -> list[Event]:
        """What workers have said."""
        events: list[Event] = []
        for fd, _ in self._epoll.poll(0):
            member = self._by_fd[fd]
            messages = member.post.hear()
            if messages:
                events.append(Heard(member.id, messages))
            if member.post.deaf:
                self._forget_fd(member)
            elif member.post.backlog:
                member.post.push()
        return events

    def _forget_fd(self, member: Member) -> None:
        if self._by_fd.pop(member.post.fileno(), None) is not None:
            self._epoll.unregister(member.post.fileno())

    def push(self) -> list[Event]:
        """At each tick: send what did not fit, look again for what dead workers left, tell of those never born."""
        for number in list(self._backlog):
            member = self._members.get(number)
            if member is not None:
                member.post.push()
            if member is None or not member.post.backlog:
                self._backlog.discard(number)
        events: list[Event] = []
        stillborn, self._stillborn = self._stillborn, []
        for number in stillborn:
            member = self._members.pop(number)
            events.append(WorkerGone(number, None, member.failed))
            member.post.close()
        for exit in list(self._lingering.values()):
            events += self.buried(exit)
        return events

    def numbers(self) -> list[int]:
        """All that there are."""
        return list(self._members)

    def limited(self) -> list[tuple[int, hand.Running, int]]:
        """Workers that run something with limited memory: (number, what, bytes)."""
        return [(number, running, member.memory) for number, member in self._members.items()
                if member.memory and (running := member.post.running()) is not None]

    def running(self, numbers: list[int]) -> list[tuple[int, hand.Running]]:
        """What the cells of these workers say."""
        return [(number, running) for number in numbers
                if (member := self._members.get(number)) is not None
                and (running := member.post.running()) is not None]

    def key(self, number: int) -> tuple[str, int]:
        return _KEY, number

    def buried(self, exit: Exit) -> list[Event]:
        """A worker's process has ended: what it said to the last, then its death, once nothing of it is left."""
        key = exit.key
        number = key[1]  # type: ignore[index]
        if self._processes.remains(key):
            self._processes.kill(key)
            if self._processes.remains(key):
                self._lingering[number] = exit
                return []
        self._lingering.pop(number, None)
        member = self._members.pop(number)
        self._forget_fd(member)
        events: list[Event] = []
        last = member.post.hear()
        while last:
            events.append(Heard(number, last))
            last = member.post.hear()
        running = member.post.running()
        fault, text = self._verdict(member, exit)
        detail = None
        if running is not None:
            text = f"task {running.task}: {text}"
            ends = [_size(member.stdout), _size(member.stderr)]
            detail = Detail(returncode=exit.returncode, host=self._desk.host, stdout=member.stdout,
                            stderr=member.stderr, stdout_span=(running.stdout, ends[0]),
                            stderr_span=(running.stderr, ends[1]),
                            attempt=running.attempt)
        events.append(WorkerGone(number, running, text, fault, detail))
        member.post.close()
        return events

    def _verdict(self, member: Member, exit: Exit) -> tuple[Fault, str]:
        """Why it died, in one sentence."""
        fault = Fault.WORKER
        code = exit.returncode
        if code >= 0:
            how = f"ended with exit code {code}"
        else:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            how = f"was ended by {name} ({signal.strsignal(-code) or 'unknown'})"
            kills = oom_kills()
            if -code == signal.SIGKILL and not member.ending and kills > self._oom:
                fault, how = Fault.MEMORY, "was ended by SIGKILL, for the system was out of memory"
            self._oom = kills
        running = member.post.running()
        last = ""
        if running is not None:
            last = last_line(member.stderr, running.stderr) or last_line(member.stdout, running.stdout)
        elif code:
            last = last_line(member.stderr, 0)
        return fault, (f"the Python worker {member.id} (process {member.pid}) on {self._desk.host} {how}"
                       + (f"; its last output: {last}" if last else ""))

    def close(self) -> None:
        for member in self._members.values():
            member.post.close()
        self._epoll.close()


def oom_kills() -> int:
    """How often the kernel has killed for want of memory here, as far as it tells."""
    try:
        with open("/proc/self/cgroup") as file:
            group = next((line.split(":", 2)[2].strip() for line in file if line.startswith("0::")), "/")
        with open(f"/sys/fs/cgroup{group}/memory.events") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError):
        pass
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError):
        return 0


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def last_line(path: str, start: int) -> str:
    lines = tail(path, 1024, start).strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""
