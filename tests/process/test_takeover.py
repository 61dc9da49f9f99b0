"""A site whose login node is gone, hangs or lives: what another login node makes of it.  Two pretend login nodes, n1
and n2, and one, n3, for the jobs of a fake PBS; their clocks are an hour apart."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hosts import Hosts
from waiting import gone, lines, until

from balsamfut import connection, query

if TYPE_CHECKING:
    from pbs_site import FakePbs

pytest_plugins = ("pbs_site",)

TASKS = """
    import sys
    from balsamfut import Executor, app

    @app
    def note(n, marks, gate):
        import os, time
        with open(marks, "a") as file:
            file.write(f"{n}\\n")
        while not os.path.exists(gate):
            time.sleep(0.02)
        return n

    with Executor("moved", site="kept", wait=False) as ex:
        calls = [note(n, *sys.argv[1:]) for n in range(6)]
        if len(sys.argv) > 2 and "wait" in sys.argv[0]:
            print(sum(call.result() for call in calls))
    """
PBS = """#!{python} -SE
import os, shlex, sys
here = os.uname().nodename
words = ["env", "FAKE_PBS_DIR={home}", "{bin}/{name}", *sys.argv[1:]]
if here == "n3":
    os.execvpe(words[2], words[2:], {{**os.environ, "FAKE_PBS_DIR": "{home}"}})
os.execv("{ssh}", ["{ssh}", "n3", shlex.join(words)])
"""


def stop_between_transactions(pid: int, site: Path) -> None:
    """Stop an interchange at a moment when it holds no lock of its database."""
    def stopped() -> bool:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        with closing(sqlite3.connect(site / "balsamfut.db", timeout=0.0, isolation_level=None)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
                return True
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                return False

    until(stopped, "it is stopped")


class Machine:
    """Login nodes n1 and n2, and a batch system that runs its jobs on n3."""

    def __init__(self, directory: Path, hosts: Hosts, pbs: FakePbs) -> None:
        self.directory = directory
        self.hosts = hosts
        self.site = directory / "site"
        self.marks, self.gate = directory / "marks", directory / "gate"
        commands = directory / "commands"
        commands.mkdir()
        for name in ("qsub", "qstat", "qdel", "qselect"):
            path = commands / name
            path.write_text(PBS.format(python=sys.executable, home=pbs.directory, bin=pbs.directory / "bin",
                                       name=name, ssh=hosts.launcher_exec))
            path.chmod(0o755)
        self.environ = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}",
                        "PYTHONPATH": ":".join(filter(None, sys.path)), "XDG_CONFIG_HOME": str(directory / "config")}
        self.environ.pop("BALSAMFUT_RUNTIME_DIR", None)

    def on(self, host: str, *words: str, skew: int = 0) -> subprocess.CompletedProcess[str]:
        """Run Python on a host, whose clock is so many seconds off."""
        environ = {**self.environ, "BALSAMFUT_CLOCK_SKEW": str(skew)}
        return subprocess.run([*self.hosts.enter(host), sys.executable, *words], env=environ, capture_output=True,
                              text=True, timeout=60, check=False, cwd=self.directory)

    def balsamfut(self, host: str, *words: str, skew: int = 0) -> subprocess.CompletedProcess[str]:
        return self.on(host, "-m", "balsamfut", *words, skew=skew)

    def told(self, host: str, *words: str) -> Any:
        done = self.balsamfut(host, *words, "--json")
        assert done.returncode == 0, done.stderr
        return next(iter(json.loads(done.stdout).values()))

    def owner(self, host: str) -> int:
        """The pid, as seen from outside, of the interchange on a host."""
        there = self.hosts.processes(host).items()
        (found,) = [pid for pid, line in there if "-m balsamfut.interchange.server" in line]
        return found

    def begin(self, skew: int = 0) -> None:
        """The site runs on n1, and in a block on n3 six tasks that wait for the gate."""
        done = self.balsamfut("n1", "site", "start", "kept", skew=skew)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        self.script("n1", "tasks.py")
        block = ["--site", "kept", "-n", "1", "-t", "5", "-q", "debug", "-A", "me"]
        done = self.balsamfut("n1", "queue", "submit", *block)
        assert done.returncode == 0, done.stderr
        until(lambda: len(lines(self.marks)) == 6, "all six run", 40)

    def script(self, host: str, name: str) -> str:
        path = self.directory / name
        path.write_text(textwrap.dedent(TASKS))
        done = self.on(host, str(path), str(self.marks), str(self.gate))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def finish(self, host: str) -> None:
        """The tasks end, each has run once; then everything is brought to an end from this host."""
        self.gate.touch()
        assert self.script(host, "wait.py") == "15\n"
        assert sorted(lines(self.marks)) == [str(n) for n in range(6)], "some were run again"
        with query.open_site(self.site) as reader:
            assert {(task.state, len(task.attempts)) for task in reader.tasks()} == {("DONE", 1)}
            assert len(reader.pilots()) == 1, "the block's pilot came to the new owner"

    def end(self, host: str) -> None:
        for block in self.told(host, "queue", "ls", "--site", "kept"):
            self.balsamfut(host, "queue", "rm", "--site", "kept", str(block["id"]))
        until(lambda: not self.told(host, "queue", "ls", "--site", "kept"), "the block is over")
        assert self.balsamfut(host, "site", "stop", "kept").returncode == 0

    def log(self) -> str:
        return (self.site / "log" / "interchange.log").read_text()


@pytest.fixture
def machine(can_have_hosts: None, tmp_path: Path, fake_pbs: FakePbs) -> Iterator[Machine]:
    with Hosts(tmp_path / "hosts", ["n1", "n2", "n3"], shared=[tmp_path, fake_pbs.directory]) as hosts:
        made = Machine(tmp_path, hosts, fake_pbs)
        done = made.balsamfut("n1", "site", "init", str(made.site), "-n", "kept", "--platform", "aurora")
        assert done.returncode == 0, done.stderr
        settings = (made.site / "settings.toml").read_text()
        settings = settings.replace("# pretend = false", "pretend = true").replace("# lease = 40.0", "lease = 4.0")
        (made.site / "settings.toml").write_text(settings)
        try:
            yield made
        finally:
            for job in fake_pbs.jobs():      # while their host is there
                subprocess.run([*hosts.enter("n3"), str(fake_pbs.directory / "bin" / "qdel"), "-W", "force", job["id"]],
                               check=False, capture_output=True)


def test_a_login_node_takes_over_from_one_that_hangs_and_its_tasks_end_once(machine: Machine) -> None:
    machine.begin(skew=3600)
    first = machine.owner("n1")
    stop_between_transactions(first, machine.site)
    done = machine.balsamfut("n2", "site", "start", "kept", skew=-3600)
    assert done.returncode == 0 and "on n2" in done.stdout, done.stderr
    assert "last seen on another host" in done.stderr and "on n1" in done.stderr
    machine.finish("n2")
    os.kill(first, signal.SIGCONT)
    until(lambda: gone(first), "it ends by itself")
    assert "was taken over by another interchange (process" in machine.log() and "on n2, since" in machine.log()
    found = connection.read(machine.site)
    assert found is not None and found.host == "n2" and not (machine.site / "interchange.error").exists()
    machine.end("n2")


def test_a_login_node_takes_over_from_one_that_has_died(machine: Machine) -> None:
    machine.begin(skew=-3600)
    machine.hosts.kill_all("n1")
    done = machine.balsamfut("n2", "site", "start", "kept", skew=3600)
    assert done.returncode == 0, done.stderr
    machine.finish("n2")
    machine.end("n2")


def test_an_interchange_that_lives_on_another_login_node_is_left_alone_unless_somebody_says_otherwise(
        machine: Machine) -> None:
    machine.begin()
    first = machine.owner("n1")
    done = machine.balsamfut("n2", "site", "start", "kept")
    assert done.returncode == 0 and "runs already: process" in done.stdout and "on n1, since" in done.stdout
    assert machine.told("n2", "site", "status", "-s", "kept")["interchange"]["answers"]
    before = connection.read(machine.site)
    machine.hosts.cut("n1")      # but its file system is the same
    said = machine.balsamfut("n2", "site", "status", "kept").stdout
    assert "on n1, since" in said and "does not answer: `balsamfut site start`" in said
    done = machine.balsamfut("n2", "site", "start", "kept", skew=3600)
    assert done.returncode == 2 and "lives: process" in done.stderr and "on n1, since" in done.stderr, done.stderr
    assert connection.read(machine.site) == before and not gone(first)
    done = machine.balsamfut("n2", "site", "start", "kept", "--take-over")
    assert done.returncode == 0 and "on n2" in done.stdout, done.stderr
    until(lambda: gone(first), "it ends by itself")
    machine.hosts.mend("n1")
    machine.finish("n1")         # a client there finds the new one
    machine.end("n2")


def test_a_site_that_was_stopped_starts_on_another_login_node_at_once(machine: Machine) -> None:
    settings = (machine.site / "settings.toml").read_text()
    (machine.site / "settings.toml").write_text(settings.replace("lease = 4.0", "lease = 3600.0"))
    for host in ("n1", "n2"):
        assert machine.balsamfut(host, "site", "start", "kept").returncode == 0
        assert machine.balsamfut(host, "site", "stop", "kept").returncode == 0


OWN = """
    import sys
    from balsamfut import Executor, app

    @app
    def note(n, marks, gate):
        import os, time
        with open(marks, "a") as file:
            file.write(f"{n}\\n")
        while n and not os.path.exists(gate):
            time.sleep(0.02)
        return n

    with Executor("own", max_workers=2):
        print(sum(call.result() for call in [note(n, *sys.argv[1:]) for n in range(4)]))
    """


def test_a_scripts_own_interchange_that_died_with_its_host_has_a_successor_on_another(machine: Machine) -> None:
    machine.environ["BALSAMFUT_INTERCHANGE_LEASE"] = "2"
    script = machine.directory / "own.py"
    script.write_text(textwrap.dedent(OWN))
    words = [sys.executable, str(script), str(machine.marks), str(machine.gate)]
    first = subprocess.Popen([*machine.hosts.enter("n1"), *words], env=machine.environ, cwd=machine.directory)
    until(lambda: len(lines(machine.marks)) >= 2, "it works", 40)
    machine.hosts.kill_all("n1")
    first.wait(20)
    machine.gate.touch()
    done = machine.on("n2", *words[1:])
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr
    assert "was last seen on another host" in done.stderr
    assert lines(machine.marks).count("0") == 1, "what was done is not done again"
