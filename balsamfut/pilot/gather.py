"""The beginning of a pilot of several hosts: the leader starts the followers and waits until they are here.

Knows when enough have come, and starts the launch that brings them; what they do afterwards is the company's.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from balsamfut.errors import SiteError
from balsamfut.network import own_address
from balsamfut.pilot import dialects, muster, reach
from balsamfut.pilot.company import Company
from balsamfut.pilot.desk import Desk, tail
from balsamfut.pilot.muster import Join
from balsamfut.pilot.process import Exit
from balsamfut.pilot.staff import Staff
from balsamfut.pilot.verdict import Cause, judge
from balsamfut.platforms import Platform
from balsamfut.wire import Keys, key_pair

log = logging.getLogger("balsamfut.pilot")


class Gathering:
    """See the module.  patience: seconds for all followers to come; the nodes of those that do not are not used."""

    def __init__(self, desk: Desk, staff: Staff, platform: Platform, cores: int, patience: float, now: float) -> None:
        (leader, leader_secret), (public, secret) = key_pair(), key_pair()
        self._staff = staff
        self._run = desk.site / "run" / f"pilot-{desk.pilot}"
        self._deadline = now + patience
        self._patience = patience
        self._left: set[str] = set()            # launches that run
        self._failed = False                    # the launch of all has
        self._alone: dict[str, int] = {}        # launches of a single host, once that of all has failed
        self._params: dict[str, str] = {}       # of the launches from now on
        self._token = desk.token
        address = own_address(platform.network.get("callback_interface", ""), desk.names[0])
        self.company = Company(desk, desk.names, f"tcp://{address}:*", Keys(leader, leader_secret, (public,)), now)
        muster.prepare(self._run, Join(
            self.company.door.address, leader, public, secret, desk.token, desk.pilot, str(desk.site), desk.names,
            platform.name, cores, desk.pretend, desk.mpiexec, desk.ends))
        staff.other = self._ended
        os.environ.update(reach.by_pbs(os.environ, self._run))      # for MPI tasks too
        found = desk.launcher(os.environ)
        chosen = reach.without_mpi(os.environ) if isinstance(found, str) else found
        if chosen is None:
            raise SiteError(f"the agents of the other nodes cannot be started: {found}; and there is no ssh")
        self._launcher = chosen
        self._launch()

    def _launch(self) -> None:
        hosts = self.company.hosts[1:]
        log.info("starting agents on %d other hosts by %s", len(hosts), self._launcher.flavour)
        for number, argv in enumerate(muster.launches(self._launcher, hosts, self._run, params=self._params)):
            self._start(f"agents-{number}", argv)

    def _start(self, key: str, argv: list[str]) -> None:
        env = {**os.environ, **dialects.environment(self._launcher.flavour)}
        self._staff.processes.spawn(key, argv, env=env, cwd=str(self._run), mark=f"{self._token}:{key}:0",
                                    stdout=str(self._run / "agents.log"))
        self._left.add(key)

    def _launch_singly(self, hosts: list[int]) -> None:
        """One host that cannot be reached ends the launch of all: each gets a launch of its own now."""
        names = self.company.hosts
        for host in hosts:
            for argv in muster.launches(self._launcher, [names[host]], self._run, host, self._params):
                self._alone[f"agents-{host}-alone"] = host
                self._start(f"agents-{host}-alone", argv)

    def _ended(self, exit: Exit) -> None:
        """A launch is over."""
        self._staff.processes.remains(exit.key)
        self._left.discard(str(exit.key))
        if exit.returncode and not self._params and not self._alone and self._without_vni(exit.returncode):
            return
        host = self._alone.get(str(exit.key), 0)
        if host in self.company.absent():
            self._give_up(host, "its agent could not be started")
        if exit.returncode:
            log.warning("the launch of agents ended with %d; see %s", exit.returncode, self._run / "agents.log")
            self._failed |= not self._alone

    def _without_vni(self, returncode: int) -> bool:
        """Launch once more without a Slingshot key, which agents do not need, if it was for want of one that nobody
        could be started."""
        verdict = judge(self._launcher.flavour, returncode, tail(str(self._run / "agents.log"), 65536))
        if verdict.cause is Cause.VNI:
            log.warning("%s: agents are launched again without a VNI", verdict.line)
            self._params = {"no_vni": "yes"}
            self._launch()
        return verdict.cause is Cause.VNI

    def over(self, now: float) -> bool:
        """Everybody is here, or will not come: then those are given up."""
        company = self.company
        if self._failed and not self._left:
            self._failed = False
            self._launch_singly(company.anew(now))
        if company.complete:
            return True
        if self._left and now < self._deadline:
            return False
        why = f"its agent did not come within {self._patience:g} s" if self._left else "its agent could not be started"
        for host in company.absent():
            self._give_up(host, why)
        return True

    def _give_up(self, host: int, why: str) -> None:
        self.company.give_up(host, f"{why}; see {self._run / 'agents.log'}")


def hosts_of(options: argparse.Namespace) -> list[str]:
    """The hosts that were given, this one first; none: this is the only one.  Raises SiteError."""
    hosts = hosts_of_job(os.environ) if options.batch else read_hosts(options.hosts) if options.hosts else []
    if not hosts or not options.part:
        return hosts
    first, count = options.part
    mine = hosts[first:first + count]
    if not mine:
        raise SiteError(f"this part of the block begins behind node {first}, and the batch system gave {len(hosts)}")
    return mine if not first else [hosts[0], *mine]


def node_names(platform: Platform, options: argparse.Namespace) -> list[str]:
    first, count = options.part or (0, options.nodes)
    if options.pretend or options.nodes > 1:
        return [f"{platform.name}-{index}" for index in range(first, first + count)]
    return [socket.gethostname()]


def hosts_of_job(environ: Mapping[str, str]) -> list[str]:
    """The hosts of the batch job that this process is in, this host first.  Raises SiteError."""
    nodefile, nodelist = environ.get("PBS_NODEFILE", ""), environ.get("SLURM_JOB_NODELIST", "")
    if nodefile:
        return read_hosts(Path(nodefile), first=True)     # a batch system starts its script on the first of them
    if nodelist:
        try:
            done = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True,
                                  timeout=60, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise SiteError(f"scontrol does not say which hosts {nodelist} are: {error}") from None
        # Where several nodes are one host, as in tests, Slurm's own name tells which of them this is.
        own = environ.get("SLURMD_NODENAME") or socket.gethostname()
        return muster.order_hosts(done.stdout.split(), own, first=True)
    return []


def read_hosts(path: Path, *, first: bool = False) -> list[str]:
    """The host names in a file, one a line, this host first.  first: it is, by whatever name.  Raises SiteError."""
    try:
        lines = path.read_text().split()
    except OSError as error:
        raise SiteError(f"the list of hosts {path} cannot be read: {error.strerror}") from None
    return muster.order_hosts(lines, socket.gethostname(), first=first)
