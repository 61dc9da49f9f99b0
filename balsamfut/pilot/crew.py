"""The Python workers as the brain sees them: what each has in its hand, which are idle, how many may be.  Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

from balsamfut.messages import Fault
from balsamfut.model import Resources
from balsamfut.pilot.events import Environ, Slot
from balsamfut.pilot.queue import Attempt, Group

Kind = tuple[bytes, Environ, int]
"""(digest of the Pool, environment that depends on the place, host): those of one kind can stand in for each other."""

DEATHS: Final = 3
"""So many workers in a row that died before they ran anything mean that the pool is broken."""


class Worker:
    """One worker, from the order to start it until nothing of it is left."""

    __slots__ = ("id", "kind", "hand", "group", "slot", "seat", "resources", "place", "ready", "blocked", "victim",
                 "cause", "retiring", "running")

    def __init__(self, id: int, kind: Kind) -> None:
        self.id = id
        self.kind = kind
        self.hand: deque[Attempt] = deque()   # the first is the one that runs, or will
        self.group: Group | None = None       # of what is in the hand
        self.slot: Slot | None = None         # None: idle, or its task is blocked
        self.seat: Slot | None = None         # the slot that its blocked task had
        self.resources = Resources()          # what the slot was asked for
        self.place = ""
        self.ready = False                    # it has said so
        self.blocked = False                  # the task that it runs waits for another one, and has no slot
        self.victim: Attempt | None = None    # the attempt for whose sake we are ending it ...
        self.cause = Fault.NONE               # ... and why
        self.running: tuple[int, int] | None = None    # what it said that it runs, when its hand was last taken back
        self.retiring = False                 # it was told to leave; nothing is handed to it any more


class Crew:
    """All workers of one pilot."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.workers: dict[int, Worker] = {}
        self.broken: dict[bytes, tuple[bytes, str]] = {}   # pools whose workers cannot start: exception, one line
        self.blocked = 0
        self._idle: dict[Kind, list[Worker]] = {}
        self._deaths: dict[bytes, int] = {}
        self._next = 0

    def hire(self, kind: Kind) -> tuple[Worker, bool]:
        """An idle worker of this kind, else a new one; the second value says that it is new."""
        idle = self._idle.get(kind)
        if idle:
            return idle.pop(), False       # the one that ran last: its caches are warm
        return self.enlist(kind), True

    def enlist(self, kind: Kind) -> Worker:
        """A new worker, which has to be started."""
        self._next += 1
        worker = self.workers[self._next] = Worker(self._next, kind)
        return worker

    def idle(self, kind: Kind) -> Worker | None:
        """An idle worker of this kind that can run something at once, taken."""
        idle = self._idle.get(kind)
        return idle.pop() if idle and idle[-1].ready else None

    def full(self) -> bool:
        """There are as many workers as there are cores, and all have something to do."""
        return len(self.workers) >= self.cores + self.blocked and not any(self._idle.values())

    def rest(self, worker: Worker) -> None:
        """It has nothing to do."""
        worker.group = None
        if worker.victim is None and not worker.retiring:
            self._idle.setdefault(worker.kind, []).append(worker)

    def surplus(self) -> list[Worker]:
        """Idle workers, those that rested longest first, that are more than there is room for: they are to leave."""
        if len(self.workers) <= self.cores + self.blocked:
            return []
        staying = sum(not worker.retiring for worker in self.workers.values())
        count = staying - self.cores - self.blocked
        gone: list[Worker] = []
        for idle in self._idle.values():
            while idle and len(gone) < count:
                gone.append(idle.pop(0))
        for worker in gone:
            worker.retiring = True
        return gone

    def lose(self, worker: Worker) -> None:
        """It is dead."""
        del self.workers[worker.id]
        idle = self._idle.get(worker.kind)
        if idle and worker in idle:
            idle.remove(worker)
        if worker.blocked:
            self.blocked -= 1

    def ready(self, worker: Worker) -> None:
        worker.ready = True
        self._deaths[worker.kind[0]] = 0

    def stillborn(self, worker: Worker) -> bool:
        """Count a worker that died before it was ready; True: this was one too many, and it is not only its host."""
        pool, _, host = worker.kind
        deaths = self._deaths[pool] = self._deaths.get(pool, 0) + 1
        return deaths >= DEATHS and not any(other.ready and other.kind[0] == pool and other.kind[2] != host
                                            for other in self.workers.values())
