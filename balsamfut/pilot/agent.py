"""The agent: the pilot's process on a node.  One loop that hears, lets the brain think, and performs what it decides.

    python -m balsamfut.pilot.agent --site DIR --pilot N --token T --address ADDRESS --platform NAME --nodes K

One agent holds K nodes (pretend ones, where the platform is another machine's) and is leader and agent at once.  If the
interchange goes away it goes on with what it holds, keeps what it has to report, and looks for a new one at the
connection file; when none has come after `--orphan-grace` seconds it ends everything, writes what nobody has
acknowledged to the spool, and leaves.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from balsamfut import faults, platforms, settings
from balsamfut.clock import Clock
from balsamfut.errors import BalsamfutError
from balsamfut.messages import PROTOCOL, Enrol, Expelled, Launch, Leaving, Message, PilotBeat, Received, Stop
from balsamfut.pilot import jobclock, smoke, spool
from balsamfut.pilot.company import Company
from balsamfut.pilot.desk import Desk
from balsamfut.pilot.dispatch import Dispatch
from balsamfut.pilot.events import Again, Commanded, Effect, Event, Finish, NodeGone, Send, WorkerGone
from balsamfut.pilot.gather import Gathering, hosts_of, node_names
from balsamfut.pilot.launching import Launching
from balsamfut.pilot.orders import Run, Signal, Take
from balsamfut.pilot.staff import SAMPLE, Order, Staff
from balsamfut.pilot.uplink import PATIENCE, Uplink, expect
from balsamfut.pilot.ward import Ward
from balsamfut.placement import Packer
from balsamfut.platforms import Platform
from balsamfut.raised import error_payload
from balsamfut.wire import Poller, Waker

log = logging.getLogger("balsamfut.pilot")

TICK: Final = 0.01
"""Seconds between looks at the cells of workers whose task may be a long one."""
BEAT: Final = 1.0
"""Seconds between signs of life, and between looks at the connection file."""
IDLE_GRACE: Final = 1.0
"""Seconds that a pilot with nothing in hand waits for an interchange."""
GATHER: Final = 0.0003
"""Seconds to wait for more when much is going on: one message for many results."""
MUCH: Final = 8
"""Reports of one turn that mean that much is going on."""
SPACING: Final = 0.003
"""Seconds between reports while there is more to do than these could bring."""
FAREWELL: Final = 3.0
"""Seconds for the interchange to acknowledge the last reports."""
FENCE: Final = 100.0
"""Seconds to go on without a word from an interchange that is said to be there: after two minutes it gives our tasks to
others."""
SHORT: Final = 0.1
"""The largest part of a block that is kept for the pilot's own end."""
STOP_GRACE: Final = 5.0
"""Seconds that running tasks have, at most, when the agent is told by a signal to end: batch systems kill soon after
it."""


class Agent:
    """See the module."""

    def __init__(self, options: argparse.Namespace, platform: Platform) -> None:
        self.clock = Clock()
        now = self.clock.now()
        self.options = options
        self.site = Path(options.site).absolute()
        chosen = settings.load(self.site).pilot
        hosts = hosts_of(options)
        names = hosts or node_names(platform, options)
        self.lent = bool(hosts and options.part and options.part[0])   # this host is another part's
        nodes = len(names) - self.lent
        self.poller = Poller()
        self.uplink = Uplink(self.site, options.address, options.starter, self.poller, now)
        self.desk = Desk(site=self.site, pilot=options.pilot, token=options.token, host=socket.gethostname(),
                         platform=platform, names=names, pretend=options.pretend, clients=self.uplink.clients,
                         apart=bool(options.hosts or options.batch) and len(names) > 1,
                         mpiexec=chosen.mpiexec)
        cores = len(platform.node.cores)
        self.dispatch = Dispatch(self.desk)
        self.core = Ward(Packer(platform.node, names), self.dispatch.binding, error_payload,
                         cores=cores * nodes)
        self.core.planner.launching = Launching(platform.launcher, nodes)
        if self.lent:
            self.core.lend(0)
        self.desk.codes, self.desk.pools = self.core.codes, self.core.pools
        if options.walltime:
            age = jobclock.age(options.walltime, os.environ)
            margin = min(chosen.end_margin, SHORT * options.walltime)
            self.desk.ends = self.core.planner.ends = now + options.walltime - age - margin
            self.core.block, self.core.hook_time = True, 0.5 * margin
        self._plenty = MUCH + 2 * cores * nodes    # attempts that are more than run here, and as many again
        self.staff = Staff(self.desk)
        self.company: Company | None = None
        self.gathering: Gathering | None = None
        self.waker = Waker()
        self.asked_to_stop = False
        self.done = ""               # the reason, once nothing is left
        self.abandoned = False       # nobody is to be told
        self._tick = self._beat = self._reported = now
        for readable in (*self.staff.fds(), self.waker):
            self.poller.register(readable)

    # ---- the loop

    def run(self) -> None:
        """Until nothing is left to do."""
        # Attempts come and go by the thousand and hold no cycles: collect seldom, and never what is here for good.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        if self.desk.apart:
            self.gather(self.clock.now())
        else:
            self.enrol()
        while not self.done:
            readable = self.poller.poll(self.patience())
            if self.waker in readable:
                self.waker.clear()
            self.turn(self.clock.now(), self.uplink.link in readable)
        self.leave()

    def gather(self, now: float) -> None:
        """Start the agents of the other hosts; the interchange hears of us when they are here."""
        cores = self.options.cores or 0
        self.gathering = Gathering(self.desk, self.staff, self.desk.platform, cores, self.options.gather, now)
        self.company = self.gathering.company
        self.poller.register(self.company.door)

    def assemble(self, now: float) -> None:
        """Go on to work with those that are here."""
        assert self.company is not None
        self.gathering = None
        for host, reason in self.company.missing.items():
            self.handle(NodeGone(host, reason), now)
        problems = smoke.problems(self.desk.platform, self.desk.pretend)
        if problems and not self.lent:
            log.warning("this node, %s: %s", self.desk.names[0], "; ".join(problems))
            self.perform(self.core.unfit(0, "; ".join(problems)), now)
        self.enrol()

    def patience(self) -> float:
        """Seconds until something is to be done even if nobody says anything."""
        planner = self.core.planner
        now = self.clock.now()
        due = self._beat + BEAT
        if planner.watched or planner.fresh or self.staff.busy:
            due = min(due, self._tick + TICK)
        due = min(due, self.core.next_timer() + 0.001)
        if self.core.limited:
            due = min(due, self._tick + SAMPLE)
        if self.core.outbox.waiting:
            due = min(due, self._reported + SPACING)
        return max(0.0, due - now)

    def turn(self, now: float, told: bool) -> None:
        """told: the interchange has said something."""
        # What has ended comes first: an order to end it comes too late.
        for event in self.staff.listen(now):
            self.arrive(event, now)
        for event in self.company.listen(now) if self.company is not None else ():
            self.handle(event, now)
        for message in self.uplink.receive(256, now) if told else ():
            self.hear(message, now)
        if now - self._tick >= TICK:
            self.tick(now)
        if now - self._beat >= BEAT:
            self.beat(now)
        if self.asked_to_stop:
            self.asked_to_stop = False
            self.handle(Stop(STOP_GRACE), now)
        if self.gathering is not None and self.gathering.over(now):
            self.assemble(now)
        self.perform(self.core.wind_up(now), now)
        self.perform(self.core.plan(now), now)
        self.report(now)
        if self.company is not None:
            self.company.flush()

    def hear(self, message: Message, now: float) -> None:
        if isinstance(message, Launch):
            faults.point("pilot.launch")
        elif isinstance(message, Expelled):
            log.warning("the interchange does not know this pilot: %s", message.text)
            self.abandoned = True
        self.handle(message, now)

    def handle(self, event: Event, now: float) -> None:
        if isinstance(event, WorkerGone | Commanded):
            self.dispatch.forget(event)
        self.perform(self.core.handle(event, now), now)

    def tick(self, now: float) -> None:
        """Look at what nobody tells."""
        self._tick = now
        watched = self.core.planner.watched      # others' are watched where they are
        for event in self.staff.tick(now, [number for number in self.staff.squad.numbers() if number in watched]):
            self.arrive(event, now)

    def beat(self, now: float) -> None:
        """Say that we are here, and look whether the interchange is."""
        self._beat = now
        self.staff.processes.tidy()
        for event in self.company.tick(now) if self.company is not None else ():
            self.handle(event, now)
        if self.uplink.look(now) and self.gathering is None:
            self.enrol()
        elif self.gathering is not None:
            pass                 # it does not know us yet
        elif self.uplink.away is None:
            self.uplink.send(PilotBeat())
        elif now - self.uplink.away > self.grace() and not self.abandoned:
            log.warning("no interchange for %g s: ending everything", now - self.uplink.away)
            self.abandoned = True
            self.handle(Stop(0.0), now)

    def grace(self) -> float:
        """Seconds to go on without an interchange: with nothing in hand there is little to go on for.

        A block's nodes are paid for: while nobody is there who could give its tasks to others, it goes on to its end.
        """
        if self.core.block:
            return FENCE if self.uplink.replaced else math.inf
        most: float = self.options.orphan_grace
        idle = not self.core.attempts and not self.core.outbox.unacknowledged
        return min(IDLE_GRACE, most) if idle else most

    # ---- effects

    def perform(self, effects: Sequence[Effect], now: float) -> None:
        tickets: list[tuple[int, int]] = []      # what other hosts were asked for
        for effect in effects:
            ordered = self.dispatch.order_of(effect)
            if ordered is None:
                self.do(effect, tickets, now)
                continue
            host, order = ordered
            if host and self.company is not None:
                self.command_others(host, order, tickets)
            else:
                for event in self.staff.obey(order, now):
                    self.arrive(event, now)
            if type(order) is Signal and order.signal != signal.SIGKILL and self.company is not None:
                self.company.signal(order.key, order.signal)
            if type(order) is Run and self.company is not None:
                others = self.dispatch.hosts(order.job.placement)[1:]
                if others:
                    token = f"{self.desk.token}.{host}" if host else self.desk.token
                    self.company.spread(host, order.job.key, f"{token}:{order.job.task}:{order.job.attempt}", others)

    def command_others(self, host: int, order: Order, tickets: list[tuple[int, int]]) -> None:
        assert self.company is not None
        if type(order) is Take:
            tickets.append(self.company.take(host, order.worker))
        else:
            self.company.send(host, order)

    def do(self, effect: Effect, tickets: list[tuple[int, int]], now: float) -> None:
        match effect:
            case Again():
                if tickets and self.company is not None:
                    self.company.hold(tickets, effect.event)
                else:
                    self.handle(effect.event, now)
            case Send():
                self.uplink.send(effect.message)
            case Finish():
                self.done = effect.reason

    def arrive(self, event: Event, now: float) -> None:
        """An event of this host."""
        for each in self.company.arrived(event) if self.company is not None else (event,):
            self.handle(each, now)

    # ---- the interchange

    def enrol(self) -> None:
        """Say who we are and what we have, and once more everything that is not acknowledged."""
        node, options, ends, now = self.desk.platform.node, self.options, self.desk.ends, self.clock.now()
        self.desk.clients = self.uplink.clients
        self.uplink.send(Enrol(PROTOCOL, options.pilot, options.token, os.getpid(), self.desk.host,
                               self.desk.platform.name, self.desk.names, len(node.cores), len(node.tiles), node.memory,
                               self.core.held(), now, self.lent, max(0.1, ends - now) if ends else 0.0))
        for message in self.core.outbox.unacknowledged.values():
            self.uplink.send(message)

    def report(self, now: float) -> None:
        """Say what is new; while there is much to do for long, only so often: each message is a turn of others, too."""
        if now - self._reported < SPACING and len(self.core.attempts) > self._plenty:
            return
        message = self.core.outbox.pack()
        if message is None:
            return
        self._reported = now
        faults.point("pilot.report.before")
        self.uplink.send(message)
        faults.point("pilot.report.after")
        if len(message.reports) >= MUCH and not self.core.planner.commands:    # whose places would be empty meanwhile
            time.sleep(GATHER)

    def leave(self) -> None:
        """Wait a little for what we said to be acknowledged, spool it otherwise, and leave nothing behind."""
        outbox, deadline = self.core.outbox, self.clock.now() + (0.0 if self.abandoned else FAREWELL)
        while outbox.unacknowledged and self.clock.now() < deadline:
            self.poller.poll(0.05)
            for message in self.uplink.receive(256, self.clock.now()):
                if isinstance(message, Received):
                    outbox.received(message.seq)
        if outbox.unacknowledged:
            spool.write(self.site, self.options.pilot, outbox.unacknowledged.values())
        if self.company is not None:
            self.disband()
        self.uplink.send(Leaving(self.done))
        self.uplink.close(0.0 if self.abandoned else 1.0)
        self.staff.end()

    def disband(self) -> None:
        """Have the agents of the other hosts leave, and wait for that a little."""
        assert self.company is not None
        self.company.disband()
        deadline = self.clock.now() + FAREWELL
        while not self.company.empty and self.clock.now() < deadline:
            self.poller.poll(0.1)
            self.company.listen(self.clock.now())

    def stop(self, *_: object) -> None:
        """A signal handler: end in good order."""
        self.asked_to_stop = self.staff.told_to_end = True
        self.waker.arm()
        self.waker.wake()


def part(text: str) -> tuple[int, int]:
    first, _, count = text.partition(":")
    return int(first), int(count)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m balsamfut.pilot.agent", description=__doc__.splitlines()[0])
    parser.add_argument("--site", required=True)
    parser.add_argument("--pilot", required=True, type=int)
    parser.add_argument("--token", required=True)
    parser.add_argument("--address", default="", help="of the interchange's door for pilots; else as its file says")
    parser.add_argument("--starter", type=int, default=0, help="process that is our parent for as long as it lives")
    parser.add_argument("--platform", default="workstation")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--hosts", type=Path, help="a file with the names of the hosts, one a line: a node on each")
    parser.add_argument("--batch", action="store_true", help="the hosts are those of the batch job that this is in")
    parser.add_argument("--part", type=part, metavar="FIRST:COUNT", help="so many of these nodes, from that one on")
    parser.add_argument("--walltime", type=float, default=0.0, help="seconds until this block ends; 0: for ever")
    parser.add_argument("--gather", type=float, default=60.0, help="seconds for the agents of the other hosts to come")
    parser.add_argument("--cores", type=int, default=None, help="of a workstation")
    parser.add_argument("--pretend", action="store_true", help="the nodes do not exist: bind nothing")
    parser.add_argument("--orphan-grace", type=float, default=8.0, help="seconds to go on without an interchange")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]         # thousands of followers, a file for each task's output
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    platform = platforms.at(Path(options.site), options.platform, options.cores)
    if options.walltime and not options.address:
        expect(Path(options.site).absolute(), min(PATIENCE, 0.5 * options.walltime))
    try:
        agent = Agent(options, platform)
    except BalsamfutError as error:
        log.error("%s", error)
        return 1
    signal.signal(signal.SIGTERM, agent.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)     # of the terminal: meant for the script, which tells us
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    agent.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
