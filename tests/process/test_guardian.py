"""The guardian: what an agent started does not outlive it, however it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from balsamfut.pilot import guardian
from balsamfut.pilot.guardian import MARK

AGENT = """
import os, sys
from balsamfut.pilot.guarded import start_guardian
from balsamfut.pilot.process import Processes
procs = Processes()
watch = start_guardian(sys.argv[1])
script = '''
sleep 1000 & echo $!
setsid bash -c 'trap "" TERM HUP; echo $BASHPID; sleep 1000 & echo $!; wait' &
(setsid sleep 1000 & echo $!)
(setsid bash -c 'env -i /bin/sleep 1000 & echo $!; wait' & echo $!)
echo $$; sleep 0.3; echo ready; wait
'''
for key in range(2):
    procs.spawn(key, ["bash", "-c", script], env=dict(os.environ), cwd="/", mark=f"{sys.argv[1]}:{key}:1", stdout=1)
sys.stdout.write(f"guardian {watch.pid}\\n")
sys.stdout.flush()
for line in sys.stdin:
    if line == "goodbye\\n":
        print("left", watch.goodbye(), flush=True)
"""


class Agent:
    def __init__(self, token: str, **more: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", AGENT, token], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env={**os.environ, **more})
        lines: list[str] = []
        while lines.count("ready") < 2 or not any("guardian" in line for line in lines):
            line = self.line()
            assert line, f"the agent ended after {lines}"
            lines.append(line)
        self.pids = [psutil.Process(int(line)) for line in lines if line.isdigit()]
        self.guardian = next(psutil.Process(int(line.split()[1])) for line in lines if "guardian" in line)

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    made: list[Agent] = []
    yield made
    for agent in made:
        agent.kill()
        for each in [*agent.pids, agent.guardian]:
            if each.is_running():
                each.kill()


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=15)[1]


def bare(text: bytes, **more: object) -> subprocess.Popen[bytes]:
    """A guardian alone, with this on its pipe, which stays open."""
    made = subprocess.Popen([sys.executable, "-I", "-S", "-E", guardian.__file__], stdin=subprocess.PIPE,
                            env={name: value for name, value in os.environ.items() if name != MARK})
    assert made.stdin
    made.stdin.write(text)
    made.stdin.flush()
    return made


@pytest.fixture
def marked() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"], env={**os.environ, MARK: "lone:1:1"}) as made:
        yield made
        made.kill()


def test_when_an_agent_is_killed_nothing_of_it_is_left_and_the_guardian_goes_too(agents: list[Agent]) -> None:
    agents.append(Agent("tok1"))
    agent = agents[0]
    assert len(agent.pids) == 14 and all(each.is_running() for each in agent.pids)
    agent.kill()
    assert gone(agent.pids) and gone([agent.guardian])


def test_the_death_of_one_agent_is_nothing_to_another(agents: list[Agent]) -> None:
    agents += [Agent("tok"), Agent("tok2"), Agent("to")]
    agents[0].kill()
    assert gone(agents[0].pids) and gone([agents[0].guardian])
    for other in agents[1:]:
        assert all(each.is_running() for each in [*other.pids, other.guardian])


def test_signals_that_end_a_terminal_or_a_job_do_not_end_a_guardian(agents: list[Agent]) -> None:
    agents.append(Agent("tok3"))
    agent = agents[0]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        agent.guardian.send_signal(number)
    agent.kill()
    assert gone(agent.pids) and gone([agent.guardian])


def test_a_guardian_has_a_session_of_its_own_and_never_the_mark(agents: list[Agent]) -> None:
    agents.append(Agent("tok4", **{MARK: "tok4:outer:1"}))  # an agent that was itself started with the token
    guard = agents[0].guardian
    assert os.getsid(guard.pid) == guard.pid
    assert MARK not in guard.environ() and "tok4" not in " ".join(guard.cmdline()[1:])
    assert guard.cwd() == "/" or not Path(guard.cwd()).samefile(os.getcwd())


def test_goodbye_leaves_nothing_and_lets_the_guardian_go(agents: list[Agent]) -> None:
    agents.append(Agent("tok5"))
    agent = agents[0]
    assert agent.process.stdin
    agent.process.stdin.write("goodbye\n")
    agent.process.stdin.flush()
    assert agent.line() == "left []"
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in agent.pids)
    assert not agent.guardian.is_running() and agent.process.poll() is None


def test_goodbye_to_a_guardian_that_was_killed_is_no_error(agents: list[Agent]) -> None:
    agents.append(Agent("tok6"))
    agent = agents[0]
    agent.guardian.kill()
    assert agent.process.stdin
    agent.process.stdin.write("goodbye\n")
    agent.process.stdin.flush()
    assert agent.line() == "left []"


def test_after_a_goodbye_a_guardian_ends_at_once_and_sweeps_nothing(marked: subprocess.Popen[bytes]) -> None:
    guard = bare(b"lone\n.")
    assert guard.wait(15) == 0
    assert marked.poll() is None


def test_a_guardian_that_was_told_no_token_ends_and_sweeps_nothing(marked: subprocess.Popen[bytes]) -> None:
    guard = bare(b"lone")
    assert guard.stdin
    guard.stdin.close()
    assert guard.wait(15) == 0
    assert marked.poll() is None


def test_a_guardian_waits_while_its_pipe_is_open(marked: subprocess.Popen[bytes]) -> None:
    guard = bare(b"lone\n")
    assert guard.stdin
    fd = os.pidfd_open(guard.pid)
    assert not select.select([fd], [], [], 0.2)[0] and marked.poll() is None
    guard.stdin.close()
    assert guard.wait(15) == 0 and marked.wait(15) == -signal.SIGKILL
    os.close(fd)
