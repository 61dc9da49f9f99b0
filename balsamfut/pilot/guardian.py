"""The guardian of an agent: when the agent has gone, even by kill -9, nothing that it started outlives it.

The agent starts `python -I -S -E guardian.py` with a pipe as standard input and writes one line: its token.  A byte
after that line is a goodbye: nothing is left, the guardian ends at once.  The end of the pipe without one means that
the agent has died: the guardian kills all that carry the token in their environment, and what descends from them,
until it finds none.  It removes nothing else.  What gave up its parents, its session and its environment, all three,
is out of its sight; the agent itself still finds that, by adopting it.

The agent looks for processes with the same functions (balsamfut.pilot.process), so they stand here: this file runs by
itself and must import nothing of balsamfut, and of the standard library only what starts fast (no typing, no signal).
It never carries a token in its own environment, or it would find itself.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # mypy knows this name; importing typing for it would double the time to start
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

MARK = "BALSAMFUT_MARK"
"""The variable that everything carries that an agent starts: `<token>:<task>:<attempt>`."""

_MARK = b"\0" + MARK.encode() + b"="
_RANKS = tuple(b"\0" + name + b"=" for name in (b"PMI_RANK", b"PMIX_RANK", b"PALS_RANKID", b"SLURM_PROCID"))
_SIGKILL = 9
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of linux/sched.h


class Row:
    """One process, as /proc/<pid>/stat tells it."""

    __slots__ = ("parent", "group", "session", "start", "pages", "dead")

    def __init__(self, fields: list[bytes]) -> None:
        self.parent = int(fields[1])
        self.group = int(fields[2])
        self.session = int(fields[3])
        self.start = int(fields[19])  # clock ticks since boot: with the pid, the name of a process for ever
        self.pages = int(fields[21])  # resident
        # The leader of a process whose other threads go on is a zombie too, and that process is alive.
        self.dead = fields[0] in b"ZX" and int(fields[17]) <= 1


def _contents(path: str, size: int) -> bytes:
    """All of a file of /proc; empty where there is none, or none for us."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        data = part = os.read(file, size)
        while len(part) == size:
            part = os.read(file, size)
            data += part
        return data
    except OSError:  # it ended while we were reading
        return b""
    finally:
        os.close(file)


def row(pid: int) -> Row | None:
    """What /proc says of this process now; None: there is none, or it is a thread of the kernel."""
    # The name, in brackets, may hold anything, brackets and blanks too: only the last bracket is its end.
    fields = _contents(f"/proc/{pid}/stat", 4096).rpartition(b")")[2].split()
    if len(fields) < 22 or int(fields[6]) & _KERNEL_THREAD:
        return None
    return Row(fields)


def table() -> dict[int, Row]:
    """All processes of this host."""
    rows = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            found = row(int(name))
            if found is not None:
                rows[int(name)] = found
    return rows


def mark_in(environ: bytes) -> str | None:
    """The mark in the environment of a process, as /proc/<pid>/environ has it; None: there is none."""
    at = (b"\0" + environ).find(_MARK)
    if at < 0:
        return None
    return os.fsdecode(environ[at + len(_MARK) - 1:].split(b"\0", 1)[0])


def share(pid: int) -> int | None:
    """The proportional set size of a process, in bytes; None where the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), None)
    except OSError:
        return None


def mark_of(pid: int) -> str | None:
    """The mark that a process was started with; None: none, or it is another user's."""
    return mark_in(_contents(f"/proc/{pid}/environ", 1 << 14))


def ranks(pids: Iterable[int]) -> set[int]:
    """Those of these processes that an MPI launcher has started as ranks, and what those have started."""
    environs = {pid: b"\0" + _contents(f"/proc/{pid}/environ", 1 << 14) for pid in pids}
    return {pid for pid, environ in environs.items() if any(name in environ for name in _RANKS)}


def family(rows: dict[int, Row], seeds: Iterable[int], sessions: Collection[int] = ()) -> set[int]:
    """The seeds, the members of these sessions, the descendants of all of them, and the sessions that those lead.

    Dead ones are left out.  A session is never joined, only made or inherited: all in one that a member leads are its
    descendants, also those whose parents have gone.
    """
    members = {pid for pid in seeds if pid in rows}
    more = True
    while more:
        found = {pid for pid, each in rows.items() if pid not in members
                 and (each.parent in members or each.session in members or each.session in sessions)}
        members |= found
        more = bool(found)
    return {pid for pid in members if not rows[pid].dead}


def end(find: Callable[[dict[int, Row]], set[int]], patience: float, looks: int = 1) -> list[int]:
    """Kill all that `find` names, again and again until so many looks in a row name none.

    Returns the pids that were there after `patience` seconds of waiting: SIGKILL is pending for them, they sit in an
    uninterruptible call; or they are not ours to kill.
    """
    pause, clean = 0.001, 0
    while True:
        rows = table()
        victims = find(rows)
        clean = 0 if victims else clean + 1
        if clean >= looks:
            return []
        if patience <= 0 and victims:
            return sorted(victims)
        strike(rows, victims)
        if victims:
            time.sleep(pause)
            patience -= pause
            pause = min(2 * pause, 0.05)


def strike(rows: dict[int, Row], victims: set[int]) -> None:
    """SIGKILL to these processes, if they are still those that were seen.

    Parents come before their children: a shell whose `sleep` was killed would go on with its next line.
    """
    def depth(pid: int) -> int:
        count = 0
        while (pid := rows[pid].parent) in victims:
            count += 1
        return count

    def same(pid: int) -> bool:
        now = row(pid)
        return now is not None and pid in rows and now.start == rows[pid].start

    # By groups first: the kernel does a whole group at once, and no fork of a member gets away meanwhile.
    outside = {each.group for pid, each in rows.items() if pid not in victims}
    done: set[int] = set()
    for pid in sorted(victims, key=depth):
        group = rows[pid].group
        if group not in outside and group not in done and (same(group) or row(group) is None):  # else it is another's
            done.add(group)
            _send(-group)
        if same(pid):
            _send(pid)


def _send(target: int) -> None:
    try:
        os.kill(target, _SIGKILL)
    except OSError:  # gone, or not ours to kill: the next look tells
        pass


def sweep(token: str, patience: float = 2.0) -> list[int]:
    """Kill every process of this host whose mark is of this agent, and what descends from them, but not us.

    A follower's token is its pilot's with a dot and a number: the pilot's token is that of all its agents; but for the
    launch of agents itself.  Returns the pids that could not be killed within `patience` seconds.
    """
    prefixes, agents = (token + ":", token + "."), token + ":agents"
    return _sweep(lambda mark: mark.startswith(prefixes) and not mark.startswith(agents), patience)


def sweep_mark(mark: str, patience: float = 2.0) -> list[int]:
    """As sweep, for all that carries this very mark."""
    return _sweep(lambda found: found == mark, patience)


def _sweep(meant: Callable[[str], bool], patience: float) -> list[int]:
    me = os.getpid()

    def find(rows: dict[int, Row]) -> set[int]:
        seeds = [pid for pid in rows if pid != me and meant(mark_of(pid) or "")]
        return family(rows, seeds) - {me}

    return end(find, patience, looks=2)  # one look may miss who forks behind its back


def main() -> None:
    os.chdir("/")  # keep no file system busy
    told = b""
    while b"\n" not in told:
        part = os.read(0, 4096)
        if not part:
            return  # nobody told us for whom we watch
        told += part
    token, _, goodbye = told.partition(b"\n")
    if goodbye or os.read(0, 1):
        return
    # What outlives this has its SIGKILL pending, so it cannot fork: nothing that we could do is left undone.
    sweep(os.fsdecode(token), patience=60.0)


if __name__ == "__main__":
    main()
