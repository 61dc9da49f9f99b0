"""Blocks on this machine: real processes, time given by the test."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import psutil
import pytest

from balsamfut.provider.base import BlockSpec, BlockState, BlockStatus
from balsamfut.provider.local import LocalProvider

NOW = 1000.0
_unread: WeakKeyDictionary[LocalProvider, list[BlockStatus]] = WeakKeyDictionary()


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    made = LocalProvider(grace=10.0)
    yield made
    for block in list(made._blocks.values()):
        os.killpg(block.pid, signal.SIGKILL)
    made.close()


@pytest.fixture
def spec(tmp_path: Path):
    def make(*argv: str, token: str = "b1", **more: object) -> BlockSpec:
        return BlockSpec(token, argv, log=str(tmp_path / "block.log"), cwd=str(tmp_path), **more)  # type: ignore[arg-type]
    return make


def bash(text: str) -> tuple[str, ...]:
    return "/bin/bash", "-c", text


def until(provider: LocalProvider, state: BlockState, now: float = NOW) -> BlockStatus:
    """Poll as a loop does, by descriptor, until a block is in this state; what else came is kept for the next call."""
    kept = _unread.setdefault(provider, [])
    for _ in range(20):
        for status in kept:
            if status.state == state:
                kept.remove(status)
                return status
        assert select.select(provider.fds(), [], [], 10)[0], f"nothing came while waiting for {state!r}"
        kept += provider.poll(now)
    raise AssertionError(f"no block became {state!r}")


def wait_for_line(path: Path, line: str) -> None:
    for _ in ticks():
        if path.exists() and line in path.read_text():
            return
    raise AssertionError(f"{line!r} never came into {path}")


def ticks(seconds: float = 10.0) -> Iterator[None]:
    poll = select.poll()
    for _ in range(int(seconds / 0.01)):
        yield None
        poll.poll(10)


def test_a_block_is_told_running_with_an_id_and_then_ended_with_its_exit_code(provider, spec) -> None:
    assert provider.submit(spec(*bash("exit 7")), NOW) == "b1"
    running = until(provider, BlockState.RUNNING)
    assert running.id and not running.over
    ended = until(provider, BlockState.ENDED)
    assert (ended.token, ended.id, ended.exit_code, ended.over) == ("b1", running.id, 7, True)
    assert provider.poll(NOW) == []


def test_a_block_runs_in_its_directory_and_session_with_its_environment_preamble_and_log(
        provider, spec, tmp_path) -> None:
    show = bash('echo "$PWD $A $B $0 $1"; ps -o sid= -p $$ | tr -d " "')
    provider.submit(spec(*show, "zero", "one two", environ=(("A", "a b"),), preamble="export B=$A/b\ntrue"), NOW)
    pid = until(provider, BlockState.RUNNING).id.partition(".")[0]
    until(provider, BlockState.ENDED)
    assert (tmp_path / "block.log").read_text() == f"{tmp_path} a b a b/b zero one two\n{pid}\n"


def test_what_cannot_be_started_is_refused_by_poll_in_one_sentence(provider, spec) -> None:
    provider.submit(spec("/no/such/pilot"), NOW)
    refused = until(provider, BlockState.REFUSED)
    assert refused.over and "/no/such/pilot" in refused.text and "No such file" in refused.text
    provider.submit(spec("true", token="b2", walltime=0.0), NOW)
    assert until(provider, BlockState.ENDED).token == "b2"


def test_a_log_that_cannot_be_opened_refuses_the_block(provider, tmp_path) -> None:
    provider.submit(BlockSpec("b", ("true",), log=str(tmp_path / "no" / "log"), cwd="/"), NOW)
    assert "no/log" in until(provider, BlockState.REFUSED).text


def test_a_token_is_taken_once(provider, spec) -> None:
    provider.submit(spec("sleep", "100"), NOW)
    with pytest.raises(ValueError, match="b1"):
        provider.submit(spec("sleep", "100"), NOW)


def test_cancel_asks_first_and_the_block_may_end_in_its_own_way(provider, spec, tmp_path) -> None:
    provider.submit(spec(*bash("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done")), NOW)
    wait_for_line(tmp_path / "block.log", "ready")
    provider.cancel("b1", NOW)
    ended = until(provider, BlockState.ENDED)
    assert ended.exit_code == 3 and "cancel" in ended.text


def test_a_block_that_does_not_listen_is_killed_when_its_grace_is_over_and_not_before(provider, spec, tmp_path) -> None:
    provider.submit(spec(*bash("trap '' TERM; echo ready; while :; do sleep 0.05; done")), NOW)
    wait_for_line(tmp_path / "block.log", "ready")
    pid = int(until(provider, BlockState.RUNNING).id.partition(".")[0])
    provider.cancel("b1", NOW)
    provider.cancel("b1", NOW + 9)           # again: does not begin the grace anew
    assert provider.due() == NOW + 10
    assert provider.poll(NOW + 9.9) == [] and psutil.pid_exists(pid)
    provider.poll(NOW + 10)
    assert until(provider, BlockState.ENDED).exit_code == -signal.SIGKILL
    assert provider.due() is None


def test_cancel_ends_the_children_of_the_block_too(provider, spec, tmp_path) -> None:
    provider.submit(spec(*bash("(trap '' TERM; echo child $BASHPID; exec sleep 100) & wait")), NOW)
    wait_for_line(tmp_path / "block.log", "child")
    child = psutil.Process(int((tmp_path / "block.log").read_text().split()[1]))
    provider.cancel("b1", NOW)
    until(provider, BlockState.ENDED)
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert gone and not alive


def test_a_block_is_ended_at_its_walltime(provider, spec) -> None:
    provider.submit(spec("sleep", "100", walltime=60.0), NOW)
    until(provider, BlockState.RUNNING)
    assert provider.due() == NOW + 60 and provider.poll(NOW + 59) == []
    provider.poll(NOW + 60)
    ended = until(provider, BlockState.ENDED)
    assert ended.exit_code == -signal.SIGTERM and "walltime" in ended.text


def test_cancel_of_what_is_over_or_unknown_does_nothing(provider, spec) -> None:
    provider.cancel("never", NOW)
    provider.submit(spec("true"), NOW)
    until(provider, BlockState.ENDED)
    provider.cancel("b1", NOW)
    assert provider.poll(NOW + 100) == []


def test_blocks_outlive_their_interchange_and_the_next_one_adopts_them(provider, spec, tmp_path) -> None:
    code = ("import sys; from balsamfut.provider.base import BlockSpec; from balsamfut.provider.local import *\n"
            "p = LocalProvider(); p.submit(BlockSpec('b1', ('sleep', '100'), log=sys.argv[1], cwd='/'), 0.0)\n"
            "print(p.poll(0.0)[0].id)")
    id = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, text=True,
                        check=True).stdout.strip()
    provider.adopt("b1", id, NOW)
    assert until(provider, BlockState.RUNNING).id == id
    provider.cancel("b1", NOW)
    ended = until(provider, BlockState.ENDED)
    assert ended.exit_code is None and ended.text


def test_a_block_that_ended_unseen_or_whose_pid_is_anothers_by_now_is_over_and_nobody_is_hurt(provider) -> None:
    other = subprocess.Popen(["sleep", "100"], start_new_session=True)
    try:
        for id in (f"{other.pid}.1", "4194303.5", "", "nonsense"):
            provider.adopt("b1", id, NOW)
            assert until(provider, BlockState.ENDED).exit_code is None
            provider.cancel("b1", NOW)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_closing_leaves_blocks_running(spec) -> None:
    provider = LocalProvider()
    provider.submit(spec("sleep", "100"), NOW)
    pid = int(until(provider, BlockState.RUNNING).id.partition(".")[0])
    provider.close()
    process = psutil.Process(pid)
    assert process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    process.kill()
    os.waitpid(pid, 0)
