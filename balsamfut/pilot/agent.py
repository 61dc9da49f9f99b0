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
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from balsamfut import faults, platforms
from balsamfut.messages import PROTOCOL, Enrol, Expelled, Launch, Leaving, Message, PilotBeat, Received, Stop
from balsamfut.pilot import spool
from balsamfut.pilot.commands import Commands
from balsamfut.pilot.core import Core
from balsamfut.pilot.desk import Desk
from balsamfut.pilot.dispatch import Dispatch
from balsamfut.pilot.events import (
    Again,
    Effect,
    EndWorker,
    Event,
    Finish,
    GrantSlot,
    Hand,
    Key,
    Send,
    SignalCommand,
    StartCommand,
    StartWorker,
    Steal,
    Tick,
    WorkerGone,
)
from balsamfut.pilot.process import Processes, start_guardian
from balsamfut.pilot.queue import Where
from balsamfut.pilot.squad import Squad
from balsamfut.pilot.uplink import Uplink
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
SAMPLE: Final = 0.5
"""Seconds between looks at the memory of tasks that are limited."""
GATHER: Final = 0.0003
"""Seconds to wait for more when much is going on: one message for many results."""
MUCH: Final = 8
"""Reports of one turn that mean that much is going on."""
SPACING: Final = 0.003
"""Seconds between reports while there is more to do than these could bring."""
FAREWELL: Final = 3.0
"""Seconds for the interchange to acknowledge the last reports."""
STOP_GRACE: Final = 3.0
"""Seconds that running tasks have when the agent is told by a signal to end."""


class Agent:
    """See the module."""

    def __init__(self, options: argparse.Namespace, platform: Platform) -> None:
        now = time.time()
        self.options = options
        self.site = Path(options.site).absolute()
        names = node_names(platform, options.nodes, options.pretend)
        self.poller = Poller()
        self.uplink = Uplink(self.site, options.address, options.starter, self.poller, now)
        self.desk = Desk(site=self.site, pilot=options.pilot, token=options.token, host=socket.gethostname(),
                         platform=platform, names=names, pretend=options.pretend, clients=self.uplink.clients)
        cores = len(platform.node.cores)
        self.dispatch = Dispatch(self.desk)
        self.core = Core(Packer(platform.node, names), self.dispatch.binding, error_payload,
                         cores=cores * options.nodes, node_cores=cores)
        self.desk.codes, self.desk.pools = self.core.codes, self.core.pools
        self._plenty = MUCH + 2 * cores * options.nodes    # attempts that are more than run here, and as many again
        self.guardian = start_guardian(options.token)
        self.processes = Processes()
        self.squad = Squad(self.desk, self.processes)
        self.commands = Commands(self.desk, self.processes)
        self.waker = Waker()
        self.asked_to_stop = False
        self.done = ""               # the reason, once nothing is left
        self.abandoned = False       # nobody is to be told
        self._tick = self._beat = self._sample = self._reported = now
        for readable in (self.squad.fileno(), *self.processes.fds(), self.waker):
            self.poller.register(readable)

    # ---- the loop

    def run(self) -> None:
        """Until nothing is left to do."""
        # Attempts come and go by the thousand and hold no cycles: collect seldom, and never what is here for good.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        self.enrol()
        while not self.done:
            readable = self.poller.poll(self.patience())
            if self.waker in readable:
                self.waker.clear()
            self.turn(time.time(), self.uplink.link in readable)
        self.leave()

    def patience(self) -> float:
        """Seconds until something is to be done even if nobody says anything."""
        planner = self.core.planner
        now = time.time()
        due = self._beat + BEAT
        if planner.watched or planner.fresh or self.squad.busy or self.commands.busy:
            due = min(due, self._tick + TICK)
        timer = self.core.next_timer()
        if timer is not None:
            due = min(due, timer + 0.001)
        if self.core.limited:
            due = min(due, self._sample + SAMPLE)
        if self.core.outbox.waiting:
            due = min(due, self._reported + SPACING)
        return max(0.0, due - now)

    def turn(self, now: float, told: bool) -> None:
        """told: the interchange has said something."""
        # What has ended comes first: an order to end it comes too late.
        for event in self.squad.listen():
            self.handle(event, now)
        self.reap(now)
        for message in self.uplink.receive(256, now) if told else ():
            self.hear(message, now)
        if now - self._tick >= TICK:
            self.tick(now)
        if now - self._beat >= BEAT:
            self.beat(now)
        if self.asked_to_stop:
            self.asked_to_stop = False
            self.handle(Stop(STOP_GRACE), now)
        self.perform(self.core.plan(now), now)
        self.report(now)

    def hear(self, message: Message, now: float) -> None:
        if isinstance(message, Launch):
            faults.point("pilot.launch")
        elif isinstance(message, Expelled):
            log.warning("the interchange does not know this pilot: %s", message.text)
            self.abandoned = True
        self.handle(message, now)

    def handle(self, event: Event, now: float) -> None:
        if type(event) is WorkerGone:
            self.dispatch.forget(event.worker)
        self.perform(self.core.handle(event, now), now)

    def reap(self, now: float) -> None:
        for exit in self.processes.reap():
            of_worker = isinstance(exit.key, tuple) and exit.key[0] == "worker"
            for event in self.squad.buried(exit) if of_worker else self.commands.ended(exit, now):
                self.handle(event, now)

    def tick(self, now: float) -> None:
        """Look at what nobody tells."""
        self._tick = now
        for event in (*self.squad.push(), *self.commands.linger()):
            self.handle(event, now)
        memory: list[tuple[Key, int]] = []
        if self.core.limited and now - self._sample >= SAMPLE:
            self._sample = now
            memory = self.memory()
        self.handle(Tick(self.squad.running(list(self.core.planner.watched)), memory), now)

    def memory(self) -> list[tuple[Key, int]]:
        """Bytes in use by the attempts that are limited."""
        owners = {}
        for task, number in self.core.limited:
            attempt = self.core.attempts[task]
            owners[task, number] = self.squad.key(attempt.worker) if attempt.where is Where.HAND else (task, number)
        used = self.processes.memory(owners.values())
        return [(key, used[owner]) for key, owner in owners.items()]

    def beat(self, now: float) -> None:
        """Say that we are here, and look whether the interchange is."""
        self._beat = now
        self.processes.tidy()
        if self.uplink.look(now):
            self.enrol()
        elif self.uplink.away is None:
            self.uplink.send(PilotBeat())
        elif now - self.uplink.away > self.grace() and not self.abandoned:
            log.warning("no interchange for %g s: ending everything", now - self.uplink.away)
            self.abandoned = True
            self.handle(Stop(0.0), now)

    def grace(self) -> float:
        """Seconds to go on without an interchange: with nothing in hand there is little to go on for."""
        most: float = self.options.orphan_grace
        idle = not self.core.attempts and not self.core.outbox.unacknowledged
        return min(IDLE_GRACE, most) if idle else most

    # ---- effects

    def perform(self, effects: Sequence[Effect], now: float) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Hand:
                self.squad.give(self.dispatch.give(effect))  # type: ignore[arg-type]
            else:
                self.do(effect, now)

    def do(self, effect: Effect, now: float) -> None:
        match effect:
            case StartWorker():
                self.squad.start(effect.worker, effect.pool, effect.env)
            case Steal():
                stolen = self.squad.steal(effect.worker)
                if stolen is not None:
                    self.handle(stolen, now)
            case GrantSlot():
                self.squad.grant(effect.worker, effect.task)
            case EndWorker():
                self.squad.end(effect.worker, effect.signal)
            case StartCommand():
                failed = self.commands.start(self.dispatch.job(effect.attempt), now)
                if failed is not None:
                    self.handle(failed, now)
            case SignalCommand():
                self.commands.signal(effect.key, effect.signal)
            case Again():
                self.handle(effect.event, now)
            case Send():
                self.uplink.send(effect.message)
            case Finish():
                self.done = effect.reason

    # ---- the interchange

    def enrol(self) -> None:
        """Say who we are and what we have, and once more everything that is not acknowledged."""
        node, options = self.desk.platform.node, self.options
        self.desk.clients = self.uplink.clients
        self.uplink.send(Enrol(PROTOCOL, options.pilot, options.token, os.getpid(), self.desk.host,
                               self.desk.platform.name, self.desk.names, len(node.cores), len(node.tiles), node.memory,
                               self.core.held()))
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
        outbox, deadline = self.core.outbox, time.time() + (0.0 if self.abandoned else FAREWELL)
        while outbox.unacknowledged and time.time() < deadline:
            self.poller.poll(0.05)
            for message in self.uplink.receive(256, time.time()):
                if isinstance(message, Received):
                    outbox.received(message.seq)
        if outbox.unacknowledged:
            spool.write(self.site, self.options.pilot, outbox.unacknowledged.values())
        self.uplink.send(Leaving(self.done))
        self.uplink.close(0.0 if self.abandoned else 1.0)
        left = self.processes.end()
        if left:
            log.warning("processes that cannot be killed: %s", left)
        self.commands.close()
        self.guardian.goodbye()
        self.squad.close()

    def stop(self, *_: object) -> None:
        """A signal handler: end in good order."""
        self.asked_to_stop = True
        self.waker.arm()
        self.waker.wake()


def node_names(platform: Platform, nodes: int, pretend: bool) -> list[str]:
    host = socket.gethostname()
    return [f"{platform.name}-{index}" for index in range(nodes)] if pretend or nodes > 1 else [host]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m balsamfut.pilot.agent", description=__doc__.splitlines()[0])
    parser.add_argument("--site", required=True)
    parser.add_argument("--pilot", required=True, type=int)
    parser.add_argument("--token", required=True)
    parser.add_argument("--address", required=True, help="of the interchange's door for pilots")
    parser.add_argument("--starter", type=int, default=0, help="process that is our parent for as long as it lives")
    parser.add_argument("--platform", default="workstation")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cores", type=int, default=None, help="of a workstation")
    parser.add_argument("--pretend", action="store_true", help="the nodes do not exist: bind nothing")
    parser.add_argument("--orphan-grace", type=float, default=8.0, help="seconds to go on without an interchange")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    local = options.platform == "workstation"
    platform = platforms.workstation(options.cores) if local else platforms.load(options.platform)
    agent = Agent(options, platform)
    signal.signal(signal.SIGTERM, agent.stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)     # of the terminal: meant for the script, which tells us
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    agent.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
