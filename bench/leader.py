"""What the leader of a block as large as a machine holds: the real one, before followers that only pretend to run.

    python bench/leader.py [--nodes 10624] [--tasks 200000] [--seconds 20] [--players 2] [--json]

The leader is balsamfut's own pilot process with that many hosts, tiles of Aurora and CURVE connections; each follower
is a connection of its own, but many share a process, start nothing, and say after some seconds that a command is over.
What is told: the time until all are here, memory and open files of the leader, what idling costs, and how many one-tile
commands it starts and ends in a second, with the CPU time of each.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import zmq  # noqa: E402

from balsamfut.messages import (  # noqa: E402
    PROTOCOL,
    BeatAck,
    Enrol,
    Enrolled,
    Exited,
    Fault,
    FromPilot,
    Item,
    Launch,
    PilotBeat,
    Received,
    Reports,
    Stop,
)
from balsamfut.model import (  # noqa: E402
    TILE,
    AppKind,
    AppSpec,
    Extra,
    Options,
    Pool,
    Resources,
    ShellResult,
    TaskClass,
    TaskSpec,
)
from balsamfut.pilot.events import Commanded  # noqa: E402
from balsamfut.pilot.muster import read_join  # noqa: E402
from balsamfut.pilot.orders import Disband, Enlist, News, Pulsed, Run, ToFollower  # noqa: E402
from balsamfut.wire import Door, Keys, Link, Poller  # noqa: E402

LEAD = """
import sys
sys.path.insert(0, {here!r})
from leader import plenty
plenty()
from balsamfut.pilot import agent, gather
gather.Gathering._launch = lambda self, launcher, desk: self._left.add("pretended")
gather.Desk.launcher = lambda self, environ: self.platform.launcher
agent.main(sys.argv[1:])
"""
RESULT = pickle.dumps(ShellResult(0, "/nowhere/job.out", "/nowhere/job.out", "/nowhere"), 5)


def plenty() -> None:
    """As many open files as may be."""
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    for hard in (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return
        except (OSError, ValueError):
            continue


def play(join: Path, first: int, last: int, seconds: float) -> None:
    """Followers first..last-1 in one process."""
    plenty()
    told = read_join(join)
    context = zmq.Context.instance()
    context.set(zmq.MAX_SOCKETS, last - first + 16)
    poller = Poller()
    links: dict[int, Link] = {}
    number: dict[int, int] = {}
    due: list[tuple[float, int, tuple[int, int], float]] = []
    pulse = time.time()
    coming = iter(range(first, last))
    while True:
        for host in itertools.islice(coming, 50):     # a few at a time, so that those who are here are heard
            link = links[host] = Link(told.address, ToFollower, Keys(told.public, told.secret, (told.leader,)))
            link.send(Enlist(PROTOCOL, told.token, host, told.hosts[host], os.getpid(), []))
            number[id(link)] = host
            poller.register(link)
        now = time.time()
        for link in poller.poll(0.02):
            for message in link.receive(64):
                if isinstance(message, Run):
                    heapq.heappush(due, (now + seconds, number[id(link)], message.job.key, now))
                elif isinstance(message, Disband):
                    return
        over: dict[int, list[Commanded]] = {}
        now = time.time()
        while due and due[0][0] <= now:
            _, host, key, started = heapq.heappop(due)
            over.setdefault(host, []).append(Commanded(key, 0, started, Fault.NONE, RESULT))
        for host, events in over.items():
            links[host].send(News(events))  # type: ignore[arg-type]
        if now - pulse > 4.0:
            pulse = now
            for link in links.values():
                link.send(Pulsed())


def usage(pid: int) -> tuple[float, float, int]:
    """CPU seconds, megabytes and open files of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return cpu, int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd"))


class Interchange:
    """As much of one as a pilot needs."""

    def __init__(self, site: Path, total: int) -> None:
        self.door = Door(f"ipc://{site}/pilots", FromPilot)
        self.poller = Poller()
        self.poller.register(self.door)
        self.total = total
        self.sent = self.ended = 0
        self.peer = b""
        self.nodes: list[str] = []
        self.acknowledged = 0

    def turn(self, seconds: float) -> None:
        self.poller.poll(seconds)
        for peer, message in self.door.receive(1000):
            if isinstance(message, Enrol):
                self.peer, self.nodes = peer, message.nodes
                self.door.send(peer, Enrolled(0, []))
            elif isinstance(message, Reports):
                self.ended += sum(isinstance(report, Exited) for report in message.reports)
                self.door.send(peer, Received(message.seq))
            elif isinstance(message, PilotBeat):
                self.door.send(peer, BeatAck())

    def feed(self, ahead: int) -> None:
        """Send more, so that so many are there."""
        count = min(self.total - self.sent, ahead - (self.sent - self.ended), 5000)
        if count <= 0:
            return
        items = [Item(number, 1, 1, TaskSpec(number, 1, extra=Extra(command="true")))
                 for number in range(self.sent + 1, self.sent + count + 1)]
        more = {} if self.sent else {
            "classes": [(1, TaskClass(b"A" * 16, b"P" * 16, Resources(gpu_shares=TILE), Options(walltime=3600.0)))],
            "apps": [AppSpec(name="true", kind=AppKind.TEMPLATE, digest=b"A" * 16)],
            "pools": [(b"P" * 16, Pool(sys.executable, (), "/", ()))]}
        self.sent += count
        self.door.send(self.peer, Launch(items, **more))  # type: ignore[arg-type]


def measure(options: argparse.Namespace, site: Path) -> dict[str, float]:
    figures: dict[str, float] = {"nodes": options.nodes}
    (site / "log").mkdir(parents=True)
    name = os.uname().nodename
    (site / "hosts").write_text("\n".join([name, *(f"x{i:05d}.hsn.example" for i in range(1, options.nodes))]) + "\n")
    interchange = Interchange(site, options.tasks)
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    began = time.time()
    leader = subprocess.Popen([
        sys.executable, "-c", LEAD.format(here=str(HERE)), "--site", str(site), "--pilot", "1", "--token", "bench",
        "--pretend",
        "--address", interchange.door.address, "--platform", "aurora", "--hosts", str(site / "hosts"),
        "--gather", "600"], env=env)
    join = site / "run" / "pilot-1" / "join"
    players = []
    try:
        while not (site / "run" / "pilot-1" / "start.sh").exists():
            time.sleep(0.05)
        figures["leader ready, s"] = time.time() - began
        bounds = [1 + (options.nodes - 1) * i // options.players for i in range(options.players + 1)]
        players = [subprocess.Popen([sys.executable, __file__, "--play", str(join), str(a), str(b),
                                     "--seconds", str(options.seconds)], env=env)
                   for a, b in zip(bounds, bounds[1:], strict=False)]
        while not interchange.peer:
            interchange.turn(0.1)
            if leader.poll() is not None:
                raise SystemExit("leader: it ended")
        figures["all followers here, s"] = time.time() - began
        figures["nodes enrolled"] = len(interchange.nodes)
        cpu, _, _ = usage(leader.pid)
        idle = time.time()
        while time.time() - idle < 8.0:
            interchange.turn(0.1)
        after, memory, files = usage(leader.pid)
        figures |= {"idle, % of a core": 100 * (after - cpu) / 8.0, "memory, MB": memory, "open files": files,
                    "messages a second when idle": 2 * options.nodes / 4.0}
        began, cpu = time.time(), after
        while interchange.ended < options.tasks:
            interchange.feed(2 * 12 * options.nodes)
            interchange.turn(0.05)
            if leader.poll() is not None:
                raise SystemExit("leader: it ended")
        took = time.time() - began
        after, memory, _ = usage(leader.pid)
        figures |= {"commands a second": options.tasks / took, "memory with work, MB": memory,
                    "leader's CPU for one, us": 1e6 * (after - cpu) / options.tasks}
        interchange.door.send(interchange.peer, Stop(0.0))
        leader.wait(60)
    finally:
        for process in (leader, *players):
            process.kill()
            process.wait()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=10_624)
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="that a command takes")
    parser.add_argument("--players", type=int, default=2, help="processes that play the followers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--play", nargs=3, metavar=("JOIN", "FIRST", "LAST"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play(Path(options.play[0]), int(options.play[1]), int(options.play[2]), options.seconds)
        return
    with tempfile.TemporaryDirectory() as directory:
        figures = measure(options, Path(directory) / "site")
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:32} {value:12,.1f}")


if __name__ == "__main__":
    main()
