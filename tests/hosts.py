"""Several hosts on one machine: each a set of namespaces (network, host name, processes, mounts), on their own bridge.

    from hosts import Hosts

    with Hosts(tmp_path / "hosts", ["n1", "n2", "n3", "n4"], shared=[tmp_path]) as hosts:
        subprocess.run([*hosts.enter("n1"), "uname", "-n"])                      # n1
        subprocess.run([*hosts.enter("n1"), "mpiexec", "-launcher", "ssh", "-launcher-exec", str(hosts.launcher_exec),
                        "-hosts", "n1,n2", "-n", "4", program])                  # real ranks, real traffic between them
        hosts.cut("n2")          # its network is gone, what runs there goes on; mend("n2") brings it back
        hosts.kill_all("n2")     # the node dies: every process at once, and no word of it to anybody
        hosts.boot("n2")         # and is there again, empty

or the fixture `hosts`: n1 to n4, the test's directory is shared by all.  Needs root; `why_not()` says what is missing.

A host has its own addresses, host name, process numbers and /proc, /dev/shm, and /tmp: `local("n1")` is that /tmp as
seen from outside.  All other files are shared, also those below /tmp that `shared` names; so are CPUs and memory.  The
hosts know each other by name, and the one outside, where the tests run, by its own name and as `head`; outside, their
names are not known, but `address("n1")` is reached.  `launcher_exec` is a stand-in for ssh, in a directory that can be
put on a PATH (host_programs.py tells how it behaves); it works on every host and outside.

Nothing of it can be left behind: each host's first process reads a pipe from the test's process, and everything else,
the bridge included, lives as long as those.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

PROGRAMS = Path(__file__).with_name("host_programs.py")
ROOT = Path(__file__).parents[1]
NETWORKS = "198.18"      # set aside for measuring networks (RFC 2544): nobody's real one
PYTHON = [sys.executable, "-I", "-S"]
PATIENCE = 20.0          # seconds for anything that a host has to do
PR_SET_CHILD_SUBREAPER = 36
PROBE = "ip link add v0 type veth peer name v1 && ip link add b0 type bridge && ip link set v0 master b0"
NEW = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
# What makes a host of new namespaces.  $1 the hosts file, $2 its /tmp, then what of /tmp is shared.
BOOT = """
set -e
mount --bind "$1" /etc/hosts
mount -t tmpfs -o mode=1777 none /dev/shm
tmp=$2; shift 2
for path; do mkdir -p "$tmp${path#/tmp}"; mount --bind "$path" "$tmp${path#/tmp}"; done
mount --rbind "$tmp" /tmp
exec """


class HostsError(Exception):
    """A pretend host could not be made, or did not do what it was asked; the message has the details."""


@functools.cache
def why_not() -> str | None:
    """Why this machine can have no pretend hosts; None where it can."""
    if os.geteuid() != 0:
        return "pretend hosts need root"
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("mount", "mount")):
        if not shutil.which(program):
            return f"pretend hosts need `{program}` ({package})"
    done = subprocess.run([*NEW, "sh", "-ec", PROBE], capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        return f"this kernel, or this container, makes no namespaces with networks: {done.stderr.strip()}"
    return None


class Hosts:
    """Pretend hosts, as long as the context lasts."""

    def __init__(self, directory: Path, names: Sequence[str], shared: Iterable[Path] = ()) -> None:
        self.names = list(names)
        self._directory = directory
        self._shared = _below_tmp([ROOT, Path(sys.prefix), Path(sys.base_prefix), directory, *shared])
        self._lock, self._network = _free_network()
        self._switch: subprocess.Popen[str] | None = None
        self._booted: dict[str, subprocess.Popen[str]] = {}
        self._hosts_file = directory / "hosts"
        self.launcher_exec = directory / "bin" / "ssh"

    # -- making and ending them

    def __enter__(self) -> Hosts:
        self._write_files()
        _adopt(orphans=True)
        try:
            self._switch = _start(["unshare", "--net", "--fork", "--kill-child", "sh", "-c", "echo ready; read -r end"])
            _wait_ready({"the switch": self._switch})
            uplink = self._link_name(0)
            with contextlib.suppress(HostsError):   # a killed test's: the kernel ends namespaces when it has time
                _ip(f"link del {uplink}")
            _ip(f"link add {uplink} type veth peer name outside netns {self._switch.pid}",
                f"addr add {self.address('head')}/24 dev {uplink}", f"link set {uplink} up")
            self._on_switch("link add switch type bridge", "link set switch up", "link set outside master switch up")
            self._boot(self.names)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every host and everything on it."""
        for name in list(self._booted):
            self._end(name)
        if self._switch is not None:
            with contextlib.suppress(HostsError):
                _ip(f"link del {self._link_name(0)}")
            self._switch.kill()
            _reap(self._switch)
            self._switch = None
        _adopt(orphans=False)
        self._lock.close()

    def boot(self, name: str) -> None:
        """Start a host that has died.  Its /tmp is empty again."""
        if name in self._booted:
            raise HostsError(f"the host {name} is running")
        self._boot([name])

    # -- what a test asks

    def address(self, name: str) -> str:
        """The address of a host, and of the one outside, which is `head`."""
        return f"{self._network}.{254 if name == 'head' else self._number(name)}"

    def enter(self, name: str) -> list[str]:
        """The words before a command that runs it on that host, in this directory and with this environment.

        Its exit code, death by a signal and streams are those of the command.  Signals are forwarded, and a SIGKILL
        kills both; what the command has started lives on, as it would if the command alone was killed.
        """
        running = self._booted.get(name)
        return [*PYTHON, str(PROGRAMS), "enter", str(running.pid) if running else "dead"]

    @property
    def environ(self) -> dict[str, str]:
        """This environment, in which `ssh`, Hydra and Open MPI reach the hosts by themselves."""
        agent = str(self.launcher_exec)
        return {**os.environ, "HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": agent,
                "OMPI_MCA_plm_ssh_agent": agent, "PRTE_MCA_plm_ssh_agent": agent,
                "PATH": f"{self.launcher_exec.parent}:{os.environ.get('PATH', os.defpath)}"}

    def local(self, name: str) -> Path:
        """What is /tmp on that host."""
        self._number(name)
        return self._directory / name / "tmp"

    def processes(self, name: str) -> dict[int, str]:
        """The command lines of what runs on that host, by the pid outside; without what makes it a host."""
        running = self._booted.get(name)
        if running is None:
            return {}
        theirs = _namespace(running.pid, "pid_for_children")
        found = {pid: _command_line(pid) for pid in _pids() if theirs and _namespace(pid, "pid") == theirs}
        return {pid: line for pid, line in found.items() if line and str(PROGRAMS) not in line}

    def cut(self, name: str) -> None:
        """Take the network away: no packet comes or goes, and nobody is told."""
        self._on_switch(f"link set {self._link_name(self._number(name))} down")

    def mend(self, name: str) -> None:
        """Give the network back."""
        self._on_switch(f"link set {self._link_name(self._number(name))} up")

    def kill_all(self, name: str) -> None:
        """Let the node die: first its network, then every process; `boot` starts it again."""
        self.cut(name)
        self._end(name)

    # -- how

    def _number(self, name: str) -> int:
        if name not in self.names:
            raise HostsError(f"no host is called {name}; there are {', '.join(self.names)}")
        return self.names.index(name) + 1

    def _link_name(self, number: int) -> str:
        return f"bf{self._network.rpartition('.')[2]}-{number}"

    def _write_files(self) -> None:
        self.launcher_exec.parent.mkdir(parents=True)
        known = [f"{self.address(name)} {name}" for name in self.names]
        outside = f"{self.address('head')} head {os.uname().nodename}"
        self._hosts_file.write_text("\n".join(["127.0.0.1 localhost", *known, outside, ""]))
        line = shlex.join([*PYTHON, str(PROGRAMS), "ssh", str(self._hosts_file)])
        self.launcher_exec.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        self.launcher_exec.chmod(0o755)

    def _boot(self, names: list[str]) -> None:
        for name in names:
            tmp = self.local(name)
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
            tmp.chmod(0o1777)
            script = BOOT + shlex.join([*PYTHON, str(PROGRAMS), "init", name])
            words = ["sh", "-c", script, "sh", str(self._hosts_file), str(tmp), *map(str, self._shared)]
            self._booted[name] = _start([*NEW, *words])
        _wait_ready({name: self._booted[name] for name in names})
        assert self._switch is not None
        links = {name: self._link_name(self._number(name)) for name in names}
        # A host that was booted again has its old hardware address, as a real one has: the others remember it.
        _ip(*(f"link add {link} netns {self._switch.pid} type veth peer name eth0 "
              f"address 02:00:00:00:00:{self._number(name):02x} netns {self._booted[name].pid}"
              for name, link in links.items()))
        self._on_switch(*(f"link set {link} master switch up" for link in links.values()))
        for name in names:
            _ip("link set lo up", f"addr add {self.address(name)}/24 dev eth0", "link set eth0 up",
                inside=self._booted[name].pid)

    def _on_switch(self, *commands: str) -> None:
        assert self._switch is not None
        _ip(*commands, inside=self._switch.pid)

    def _end(self, name: str) -> None:
        """Kill the first process of a host: the kernel kills all others, and only then is it over."""
        running = self._booted.pop(name)
        first = [pid for pid in _pids() if _parent(pid) == running.pid] or [running.pid]
        for pid in first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap(running)
        # Sockets that still have something to say would keep the network for minutes.
        with contextlib.suppress(HostsError):
            self._on_switch(f"link del {self._link_name(self._number(name))}")


def _below_tmp(paths: Iterable[Path]) -> list[Path]:
    """Those below /tmp, the outer ones alone."""
    found = sorted({path.resolve() for path in paths if Path("/tmp") in path.resolve().parents})
    return [path for path in found if not set(path.parents) & set(found)]


def _free_network() -> tuple[socket.socket, str]:
    """The lock on a network, which ends with this process, and the first three numbers of its addresses."""
    for number in range(1, 255):
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0balsamfut pretend hosts {number}")
            return lock, f"{NETWORKS}.{number}"
        except OSError:
            lock.close()
    raise HostsError("254 tests have pretend hosts at this moment")


def _start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def _wait_ready(started: dict[str, subprocess.Popen[str]]) -> None:
    for name, process in started.items():
        assert process.stdout is not None
        line = process.stdout.readline()
        if line != "ready\n":
            raise HostsError(f"{name} did not start: {line}{process.stdout.read()}")


def _reap(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, PATIENCE)
        _reap_orphans()
        time.sleep(0.01)


def _adopt(orphans: bool) -> None:
    """What `enter` has started on a host, and left when it was killed, becomes a child of this process, and not of the
    machine's first: a host is over when all that was on it is reaped, and in a container the first may reap nobody."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0)


def _reap_orphans() -> None:
    """Those that have ended: children that nobody here started, for they have a number on a host, too."""
    for pid in [pid for pid in _pids() if _parent(pid) == os.getpid()]:
        with contextlib.suppress(OSError):
            if len(re.findall(r"(?m)^NSpid:(.*)$", Path(f"/proc/{pid}/status").read_text())[0].split()) > 1:
                os.waitpid(pid, os.WNOHANG)


def _ip(*commands: str, inside: int | None = None) -> None:
    """Carry out commands of `ip`, in the network of that process."""
    there = [] if inside is None else ["nsenter", f"--net=/proc/{inside}/ns/net"]
    done = subprocess.run([*there, "ip", "-batch", "-"], input="\n".join([*commands, ""]), capture_output=True,
                          text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise HostsError(f"ip {'; '.join(commands)}: {done.stderr.strip()}")


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _namespace(pid: int, kind: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return None


def _command_line(pid: int) -> str:
    """Empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def wait_until_empty(hosts: Hosts, name: str, seconds: float = PATIENCE) -> dict[int, str]:
    """What is left on a host once nothing is, or when the time is over."""
    deadline = time.monotonic() + seconds
    while (left := hosts.processes(name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
