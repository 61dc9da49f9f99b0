"""A batch system on a virtual clock: queues, limits, routing and waits, and nothing that is real.

Waits are drawn from a seeded log-normal distribution whose median grows with width and length.  The k-th block of a
queue has the same luck whoever submits it, so that two ways of asking can be compared.  As PBS has it on Aurora, no
more blocks of one user or project than may run accrue waiting time, a queue refuses what breaks its limits, and a
routing queue takes a block that none of its bands takes and drops it without a word.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from balsamfut.platforms.queues import Queue, Taken

HOUR = 3600.0
MEDIANS = {"debug": 600.0, "debug-scaling": 1200.0, "capacity": 3600.0, "prod": 5400.0}
"""Seconds that 256 nodes (or what the queue takes of them) for one hour wait, by half of all draws."""
WIDTH, LENGTH, SPREAD = 0.5, 0.5, 0.6     # powers of width and length; sigma of the logarithm


@dataclass
class Job:
    id: int
    queue: str
    nodes: int
    wall: float
    submitted: float
    wait: float             # seconds that it has to accrue
    ours: bool
    accrued: float = 0.0
    start: float = -1.0
    end: float = -1.0       # of its walltime
    over: float = -1.0


@dataclass
class SimulatedPbs:
    """submit, cancel, finish; advance(now) tells what has started and ended by then."""

    queues: tuple[Queue, ...]
    seed: int = 0
    medians: dict[str, float] = field(default_factory=lambda: dict(MEDIANS))
    jobs: dict[int, Job] = field(default_factory=dict)       # those that are there
    over: list[Job] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)         # in its words
    now: float = 0.0

    def __post_init__(self) -> None:
        self._luck = {queue.name: random.Random(f"{self.seed} {queue.name}") for queue in self.queues}
        self._by_name = {queue.name: queue for queue in self.queues}
        self._next = 1

    def wait(self, queue: str, nodes: int, wall: float) -> float:
        widest = min(256, self._by_name[queue].max_nodes)
        median = self.medians.get(queue, 3600.0) * (nodes / widest) ** WIDTH * (wall / HOUR) ** LENGTH
        return median * math.exp(SPREAD * self._luck[queue].gauss(0.0, 1.0))

    def taken(self, queue: str, ours: bool | None = None) -> Taken:
        """What counts against the queue's limits: ours, that of others in the project, or both."""
        there = [job for job in self.jobs.values() if job.queue == queue and ours in (None, job.ours)]
        running = sum(job.start >= 0 for job in there)
        return Taken(len(there) - running, running)

    def submit(self, now: float, queue: str, nodes: int, wall: float, ours: bool = True) -> int | None:
        """The job's number; None: it was refused."""
        self.advance(now)
        table = self._by_name.get(queue)
        if table is None:
            return self._refuse("Unknown queue")
        if not (table.min_nodes <= nodes <= table.max_nodes and table.min_wall <= wall <= table.max_wall):
            return self._refuse(f"Job violates queue and/or server resource limits: {queue} {nodes} {wall:g}")
        if table.room(self.taken(queue)) < 1:
            return self._refuse(f"would exceed queue {queue}'s per-{table.per} limit")
        number, self._next = self._next, self._next + 1
        if table.bands and not any(band.min_nodes <= nodes <= band.max_nodes and wall <= band.max_wall
                                   for band in table.bands):
            self._refuse(f"Unknown Job Id {number} (routed nowhere: {nodes} {wall:g})")
            return number
        self.jobs[number] = Job(number, queue, nodes, wall, now, self.wait(queue, nodes, wall), ours)
        return number

    def _refuse(self, text: str) -> None:
        self.refused.append(text)

    def cancel(self, now: float, number: int) -> None:
        self.advance(now)
        if number in self.jobs:
            self._end(number)

    def _end(self, number: int) -> None:
        job = self.jobs.pop(number)
        job.over = self.now
        self.over.append(job)

    # ---- the clock

    def _accruing(self) -> list[Job]:
        found = []
        for queue in self.queues:
            places = queue.max_running or queue.max_queued or 1 << 30
            places -= self.taken(queue.name).running
            waiting = [job for job in self.jobs.values() if job.queue == queue.name and job.start < 0]
            found += waiting[:max(0, places)]
        return found

    def due(self) -> float:
        """When something happens next."""
        times = [job.end for job in self.jobs.values() if job.start >= 0]
        times += [self.now + max(0.0, job.wait - job.accrued) for job in self._accruing()]
        return min(times, default=math.inf)

    def advance(self, now: float) -> None:
        """Let everything happen that is due by now."""
        while True:
            due = self.due()
            step = min(due, now)
            accruing = self._accruing()
            for job in accruing:
                job.accrued += step - self.now
            self.now = step
            if due > now:
                return
            for job in accruing:
                if job.accrued >= job.wait - 1e-6:
                    job.start, job.end = self.now, self.now + job.wall
            for job in [job for job in self.jobs.values() if job.start >= 0 and job.end <= self.now + 1e-6]:
                self._end(job.id)
