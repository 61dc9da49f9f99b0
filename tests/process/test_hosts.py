"""Pretend hosts are as real as tests of many nodes need them: names, networks, processes, deaths, MPI between them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import PROGRAMS, Hosts, HostsError, wait_until_empty, why_not
from waiting import until

RANK = """
import os, sys
from pathlib import Path
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
parts = world.allgather(b"x" * 300_000)
Path(sys.argv[1], f"rank.{world.rank}").write_text(f"{os.uname().nodename} {total} {len(parts)}")
"""
HANGING_RANK = """
import os, sys, time
from pathlib import Path
from mpi4py import MPI
Path(sys.argv[1], f"up.{MPI.COMM_WORLD.rank}").touch()
time.sleep(300)
"""


def on(hosts: Hosts, name: str, *words: str) -> str:
    return subprocess.run([*hosts.enter(name), *words], capture_output=True, text=True, timeout=20, check=True).stdout


def mpi_line(hosts: Hosts, program: Path, directory: Path) -> list[str]:
    """Two ranks on each host, by the mpiexec of this environment."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if mpiexec is None:
        pytest.skip("no mpiexec")
    version = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    if "HYDRA" in version:
        words = ["-launcher", "ssh", "-launcher-exec", str(hosts.launcher_exec), "-hosts", "n1,n2,n3,n4", "-ppn", "2"]
    elif "Open MPI" in version:
        words = ["--allow-run-as-root", "--prtemca", "plm_ssh_agent", str(hosts.launcher_exec),
                 "--host", "n1:2,n2:2,n3:2,n4:2", "--map-by", "ppr:2:node:OVERSUBSCRIBE", "--bind-to", "none"]
    else:
        pytest.skip("mpiexec is neither Hydra's nor Open MPI's")
    return [*hosts.enter("n1"), mpiexec, *words, "-n", "8", sys.executable, str(program), str(directory)]


def test_each_host_has_its_own_name_address_processes_and_temporary_files(hosts: Hosts, tmp_path: Path) -> None:
    for name in hosts.names:
        assert on(hosts, name, "uname", "-n") == f"{name}\n"
        assert hosts.address(name) in on(hosts, name, "ip", "-br", "address")
        on(hosts, name, "sh", "-c", "echo $0 >/tmp/mine; echo $0 >/dev/shm/mine", name)
    assert [hosts.local(name).joinpath("mine").read_text() for name in hosts.names] == [f"{n}\n" for n in hosts.names]
    assert on(hosts, "n3", "cat", "/dev/shm/mine") == "n3\n"
    on(hosts, "n2", "touch", str(tmp_path / "shared"))
    assert (tmp_path / "shared").exists()
    listed = on(hosts, "n2", "sh", "-c", "cd /proc && echo [0-9]*").split()
    assert str(os.getpid()) not in listed and len(listed) < 5
    assert os.uname().nodename not in hosts.names


def test_hosts_are_reached_by_name_as_a_login_reaches_them(hosts: Hosts) -> None:
    ssh = [str(hosts.launcher_exec), "-x", "-o", "BatchMode=yes"]
    done = subprocess.run([*ssh, "root@n2", "uname", "-n;", "cat;", "echo $SECRET >&2; exit 5"], input=b"a" * 200_000,
                          env={**os.environ, "SECRET": "seen"}, capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, b"n2\n" + b"a" * 200_000, b"\n")
    assert on(hosts, "n4", *ssh, "-n", "n1", "uname -n") == "n1\n"
    outside = subprocess.run([*ssh, "n9", "true"], capture_output=True, text=True, timeout=20, check=False)
    assert outside.returncode == 255 and "Could not resolve hostname n9" in outside.stderr


def test_a_command_on_a_host_ends_as_the_words_before_it_say(hosts: Hosts, tmp_path: Path) -> None:
    trap = f"trap 'echo term; exit 7' TERM; touch {tmp_path}/up; while :; do sleep 0.02; done"
    polite = subprocess.Popen([*hosts.enter("n1"), "bash", "-c", trap], stdout=subprocess.PIPE, text=True)
    until((tmp_path / "up").exists)
    polite.terminate()
    assert (polite.communicate(timeout=20)[0], polite.returncode) == ("term\n", 7)
    stubborn = subprocess.Popen([*hosts.enter("n1"), "sleep", "300"])
    until(lambda: "sleep 300" in hosts.processes("n1").values())
    stubborn.kill()
    assert stubborn.wait(20) == -signal.SIGKILL
    assert wait_until_empty(hosts, "n1") == {}
    missing = subprocess.run([*hosts.enter("n1"), "no-such-program"], capture_output=True, timeout=20, check=False)
    assert missing.returncode == 127


def test_real_ranks_on_four_hosts_find_each_other(hosts: Hosts, tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    subprocess.run(mpi_line(hosts, program, tmp_path), timeout=50, check=True, stdin=subprocess.DEVNULL)
    told = [(tmp_path / f"rank.{rank}").read_text() for rank in range(8)]
    assert told == [f"n{rank // 2 + 1} 36 8" for rank in range(8)]
    assert {name: wait_until_empty(hosts, name) for name in hosts.names} == dict.fromkeys(hosts.names, {})


def test_a_host_that_is_cut_off_makes_mpiexec_fail_until_it_is_mended(hosts: Hosts, tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    line = mpi_line(hosts, program, tmp_path)
    hosts.cut("n3")
    done = subprocess.run(line, timeout=50, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode != 0 and "ssh: connect to host n3 port 22" in done.stderr
    assert list(tmp_path.glob("rank.[0-9]")) == []
    hosts.mend("n3")
    subprocess.run(line, timeout=50, check=True, stdin=subprocess.DEVNULL)
    assert (tmp_path / "rank.7").exists()


def test_a_node_that_dies_takes_everything_with_it_and_the_other_ranks_end_with_the_launcher(
        hosts: Hosts, tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text(HANGING_RANK)
    line = mpi_line(hosts, program, tmp_path)
    if "-launcher" not in line:
        pytest.skip("SIGTERM does not end Open MPI's mpiexec when one of its hosts has died")
    detached = "setsid sleep 300 </dev/null >/dev/null 2>&1 &"
    subprocess.run([*hosts.enter("n2"), "sh", "-c", detached], timeout=20, check=True)
    running = subprocess.Popen(line, stdin=subprocess.DEVNULL)
    until(lambda: len(list(tmp_path.glob("up.*"))) == 8, "all ranks are up", 40)
    victims = hosts.processes("n2")
    assert sum("rank.py" in line for line in victims.values()) >= 2 and "sleep 300" in victims.values()
    hosts.kill_all("n2")
    assert hosts.processes("n2") == {}
    assert not any(os.path.exists(f"/proc/{pid}") for pid in victims)
    assert running.poll() is None   # Hydra does not notice, ever
    running.terminate()
    assert running.wait(30) != 0
    assert {name: wait_until_empty(hosts, name) for name in hosts.names} == dict.fromkeys(hosts.names, {})
    dead = subprocess.run([*hosts.enter("n2"), "true"], capture_output=True, timeout=20, check=False)
    assert dead.returncode == 255
    hosts.boot("n2")
    again = subprocess.run([str(hosts.launcher_exec), "n2", "uname -n"], capture_output=True, timeout=20, check=False)
    assert again.stdout == b"n2\n"


def test_a_host_that_does_not_exist_is_named(hosts: Hosts) -> None:
    with pytest.raises(HostsError, match="no host is called n7; there are n1, n2, n3, n4"):
        hosts.cut("n7")


def test_hosts_of_a_killed_test_are_gone_at_once(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    code = (f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from pathlib import Path\n"
            "from hosts import Hosts\n"
            f"with Hosts(Path({str(tmp_path)!r}, 'hosts'), ['n1', 'n2']) as hosts:\n"
            "    print(hosts.enter('n1')[-1], flush=True); time.sleep(300)")
    maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    first = maker.stdout.readline().strip()
    assert first.isdigit()
    there = subprocess.Popen([sys.executable, str(PROGRAMS), "enter", first, "sleep", "300"])
    maker.kill()
    maker.communicate(timeout=20)
    assert there.wait(20) in (-signal.SIGKILL, 255)   # or it came when the host was gone
    until(lambda: not os.path.exists(f"/proc/{first}/ns/net"))
