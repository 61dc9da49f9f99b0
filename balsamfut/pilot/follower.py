"""The agent of a host that follows: it does what its leader orders, tells it what happened, and decides nothing.

    python -m balsamfut.pilot.follower --join FILE [--remove DIR]

The join file (balsamfut.pilot.muster) says where the leader is and what this pilot is; keys in it let us in.  A
follower that has heard nothing for SILENCE seconds ends everything and leaves: its leader takes it for lost soon after
that, so nothing ever runs twice.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from balsamfut import platforms
from balsamfut.clock import Clock
from balsamfut.messages import PROTOCOL, Message
from balsamfut.pilot import launch, smoke
from balsamfut.pilot.desk import Desk
from balsamfut.pilot.events import Event, Tick
from balsamfut.pilot.muster import Join, follower_of, named, read_join
from balsamfut.pilot.orders import (
    Clean,
    Cleaned,
    Disband,
    Enlist,
    Enlisted,
    Equip,
    Gone,
    News,
    Pulse,
    Pulsed,
    SignalRanks,
    ToFollower,
)
from balsamfut.pilot.process import signal_ranks
from balsamfut.pilot.staff import Staff
from balsamfut.platforms import Platform
from balsamfut.wire import Keys, Link, Poller, Waker

log = logging.getLogger("balsamfut.pilot")

TICK: Final = 0.01
"""Seconds between looks at the cells of workers that run something."""
LONG: Final = 0.01
"""Seconds after which what a worker runs is told to the leader."""
PULSE: Final = 4.0
"""Seconds between signs of life."""
SILENCE: Final = 15.0
"""Seconds without a word from the leader after which everything is ended."""
WELCOME: Final = 60.0
"""Seconds for the leader's first word."""


class Agent:
    """See the module."""

    def __init__(self, join: Join, platform: Platform, host: int) -> None:
        self.join = join
        name = join.hosts[host] if host >= 0 else socket.gethostname()
        self.desk = Desk(site=Path(join.site), pilot=join.pilot, token=f"{join.token}.{host}", host=name,
                         platform=platform, names=join.hosts, pretend=join.pretend, apart=True, mpiexec=join.mpiexec)
        self.desk.ends = join.ends
        self.host = host
        # What another host's launcher has started here is to end with us, too; but where several agents share a host
        # (its own name is none of theirs), each ends what is its own.
        alone = named(join.hosts, socket.gethostname()) == host
        self.staff = Staff(self.desk, join.token if alone else "")
        self.link = Link(join.address, ToFollower, Keys(join.public, join.secret, (join.leader,)))
        self.poller = Poller()
        self.waker = Waker()
        self.clock = Clock()
        self.news: list[Event] = []
        self.done = ""
        self._heard = self._pulsed = self._tick = self.clock.now()
        self._patience = WELCOME
        self._seen: dict[int, tuple[int, int]] = {}     # worker -> what we have told that it runs
        for readable in (*self.staff.fds(), self.link, self.waker):
            self.poller.register(readable)

    def run(self, remove: str = "") -> None:
        """Until the leader says so, or has gone.  remove: the directory that this runs from."""
        gc.collect()
        gc.freeze()
        self.link.send(Enlist(PROTOCOL, self.join.token, self.host, self.desk.host, os.getpid(),
                              smoke.problems(self.desk.platform, self.desk.pretend)))
        while not self.done:
            busy = self.staff.busy or self.staff.squad.numbers()
            self.poller.poll(TICK if busy else 0.5)
            self.waker.clear()
            self.turn(self.clock.now())
        log.info("leaving: %s", self.done)
        self.staff.end()
        if remove:
            shutil.rmtree(remove, ignore_errors=True)    # once the leader knows, our launcher is ended, and we with it
        self.link.send(Gone())
        self.link.close(1.0)

    def turn(self, now: float) -> None:
        if now - self._tick > 1.0:
            self._heard += now - self._tick - TICK      # we stood still ourselves
        self.news += self.staff.listen(now)
        for message in self.link.receive(256):
            self._heard = now
            self.hear(message, now)
        if now - self._tick >= TICK:
            self._tick = now
            self.tick(now)
        if self.news:
            self.link.send(News(self.news))  # type: ignore[arg-type]
            self.news = []
        if now - self._pulsed > PULSE:
            self._pulsed = now
            self.staff.processes.tidy()
            self.link.send(Pulsed())
        if now - self._heard > self._patience:
            self.done = f"nothing was heard of the leader for {self._patience:g} s"

    def tick(self, now: float) -> None:
        """Tell of workers whose task turns out to be a long one, once for each."""
        there = self.staff.squad.numbers()
        self._seen = {worker: key for worker, key in self._seen.items() if worker in there}
        for event in self.staff.tick(now, there):
            if isinstance(event, Tick):
                event.seen = [(number, running) for number, running in event.seen
                              if now - running.started > LONG and self._news_of(number, running.task, running.attempt)]
                if not event.seen and not event.memory:
                    continue
            self.news.append(event)

    def _news_of(self, worker: int, task: int, attempt: int) -> bool:
        if self._seen.get(worker) == (task, attempt):
            return False
        self._seen[worker] = task, attempt
        return True

    def hear(self, message: Message, now: float) -> None:
        if isinstance(message, Enlisted):
            self._patience = SILENCE
            self.desk.clients = message.clients
        elif isinstance(message, Equip):
            self.desk.codes.update(message.codes)
            self.desk.pools.update(message.pools)
        elif isinstance(message, Clean):
            self.link.send(Cleaned(message.mark, self.staff.clean(message.mark)))
        elif isinstance(message, SignalRanks):
            signal_ranks(message.mark, message.signal)
        elif isinstance(message, Disband):
            self.done = "the leader says so"
        elif not isinstance(message, Pulse):
            self.news += self.staff.obey(message, now)  # type: ignore[arg-type]

    def stop(self, *_: object) -> None:
        """A signal handler."""
        self.staff.told_to_end = True
        self.done = "a signal"
        self.waker.arm()
        self.waker.wake()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m balsamfut.pilot.follower", description=__doc__.splitlines()[0])
    parser.add_argument("--join", required=True, type=Path, help="the leader's file")
    parser.add_argument("--remove", default="", help="a directory to be removed at the end: the one this runs from")
    parser.add_argument("--host", type=int, default=0, help="which of the pilot's hosts this is; 0: found out")
    options = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO,
                        format=f"%(asctime)s {socket.gethostname()} %(levelname)s %(message)s")
    try:
        join = read_join(options.join)
        name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        host = options.host or follower_of(join.hosts, name, os.environ)
        # What a launcher set for us would make our tasks believe that they are ranks of its launch.
        for name in os.environ.keys() - launch.scrub(os.environ).keys():
            del os.environ[name]
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        platform = platforms.at(Path(join.site), join.platform, join.cores or None)
        agent = Agent(join, platform, host)
        signal.signal(signal.SIGTERM, agent.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        agent.run(options.remove)
    finally:
        if options.remove:
            shutil.rmtree(options.remove, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
