"""The beginning of a pilot of several hosts: the leader starts the followers and waits until they are here.

Knows when enough have come, and starts the launch that brings them; what they do afterwards is the company's.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from balsamfut.errors import SiteError
from balsamfut.network import own_address
from balsamfut.pilot import dialects, muster
from balsamfut.pilot.company import Company
from balsamfut.pilot.desk import Desk
from balsamfut.pilot.muster import Join
from balsamfut.pilot.process import Exit
from balsamfut.pilot.staff import Staff
from balsamfut.platforms import Launcher, Platform
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
        address = own_address(platform.network.get("callback_interface", ""), desk.names[0])
        self.company = Company(desk, desk.names, f"tcp://{address}:*", Keys(leader, leader_secret, (public,)), now)
        muster.prepare(self._run, Join(
            self.company.door.address, leader, public, secret, desk.token, desk.pilot, str(desk.site), desk.names,
            platform.name, cores, desk.pretend, desk.mpiexec))
        staff.other = self._ended
        found = desk.launcher(os.environ)
        if isinstance(found, str):
            raise SiteError(f"the agents of the other nodes cannot be started: {found}")
        self._launch(found, desk)

    def _launch(self, launcher: Launcher, desk: Desk) -> None:
        log.info("starting agents on %d other hosts by %s", len(desk.names) - 1, launcher.flavour)
        env = {**os.environ, **dialects.environment(launcher.flavour)}
        for number, argv in enumerate(muster.launches(launcher, desk.names[1:], self._run)):
            key = f"agents-{number}"
            self._staff.processes.spawn(key, argv, env=env, cwd=str(self._run), mark=f"{desk.token}:{key}:0",
                                        stdout=str(self._run / "agents.log"))
            self._left.add(key)

    def _ended(self, exit: Exit) -> None:
        """A launch is over."""
        self._staff.processes.remains(exit.key)
        self._left.discard(str(exit.key))
        if exit.returncode:
            log.warning("the launch of agents ended with %d; see %s", exit.returncode, self._run / "agents.log")

    def over(self, now: float) -> bool:
        """Everybody is here, or will not come: then those are given up."""
        company = self.company
        if company.complete:
            return True
        if self._left and now < self._deadline:
            return False
        why = f"its agent did not come within {self._patience:g} s" if self._left else "its agent could not be started"
        for host in company.absent():
            company.give_up(host, f"{why}; see {self._run / 'agents.log'}")
        return True


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
