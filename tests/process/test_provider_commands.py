"""Commands that may hang, with real processes on a clock of the test's own."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import psutil
import pytest

from balsamfut.provider.commands import Commands, Result

NOW = 1000.0


class Desk:
    def __init__(self) -> None:
        self.before = {child.pid for child in psutil.Process().children()}     # of other tests in this process
        self.commands = Commands()
        self.results: list[Result] = []

    def children(self, recursive: bool = False) -> list[psutil.Process]:
        """Those that were started since, and theirs."""
        mine = [child for child in psutil.Process().children() if child.pid not in self.before]
        return mine + [each for child in mine for each in child.children(recursive=True)] if recursive else mine

    def start(self, *argv: str, limit: float = 60.0, text: str = "") -> None:
        self.commands.start(argv, NOW, limit, lambda result, now: self.results.append(result), text)

    def bash(self, script: str, limit: float = 60.0, text: str = "") -> None:
        self.start("/bin/bash", "-c", script, limit=limit, text=text)

    def wait(self, number: int, now: float = NOW) -> list[Result]:
        """Poll as a loop does until so many results have come."""
        while len(self.results) < number:
            assert select.select(self.commands.fds(), [], [], 10)[0], "nothing came"
            self.commands.poll(now)
        return self.results


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.commands.close()


def test_a_command_gets_its_stdin_and_gives_its_output_and_code(desk: Desk) -> None:
    desk.bash("read line; echo out $line; echo err >&2; exit 3", text="it's\n")
    assert desk.wait(1) == [Result(("/bin/bash", "-c", "read line; echo out $line; echo err >&2; exit 3"), 3,
                                   "out it's\n", "err\n")]


def test_much_output_holds_nobody_up(desk: Desk) -> None:
    desk.bash("head -c 3000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero | tr '\\0' y >&2")
    result = desk.wait(1)[0]
    assert (result.code, len(result.out), len(result.err)) == (0, 3000000, 3000000)


def test_output_that_is_no_utf8_is_read(desk: Desk) -> None:
    desk.bash("printf 'a\\xe9b'")
    assert desk.wait(1)[0].out == "a\ufffdb"


def test_a_daemon_that_a_command_leaves_behind_holds_nobody_up(desk: Desk) -> None:
    desk.bash("setsid sleep 300 & echo $!")
    daemon = psutil.Process(int(desk.wait(1)[0].out))
    assert daemon.is_running()
    daemon.kill()


def test_a_command_that_hangs_is_ended_with_its_children_and_reaped(desk: Desk) -> None:
    desk.bash("trap '' TERM; sleep 300 & echo $! $$ >&2; wait", limit=5.0)
    assert desk.commands.due() == NOW + 5
    while len(desk.children(recursive=True)) < 2:
        select.select([], [], [], 0.01)
    family, (shell,) = desk.children(recursive=True), desk.children()
    desk.commands.poll(NOW + 4.9)
    assert desk.results == []
    desk.commands.poll(NOW + 5)
    assert [(result.code, result.error, result.began) for result in desk.results] == [
        (None, "/bin/bash did not answer within 5 s", True)]
    assert desk.commands.due() is None
    while shell.is_running() and shell.ppid() == os.getpid():      # its child may become ours, and be left to others
        assert select.select(desk.commands.fds(), [], [], 10)[0]
        desk.commands.poll(NOW + 6)
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert not alive and len(desk.results) == 1


def test_a_command_that_ended_in_time_counts_though_nobody_looked_until_later(desk: Desk) -> None:
    desk.bash("exit 0", limit=5.0)
    assert desk.wait(1, now=NOW + 500)[0].code == 0


def test_a_command_that_is_not_there_is_told_by_poll_and_has_done_nothing(desk: Desk) -> None:
    desk.start("no-such-command")
    assert desk.results == []
    result = desk.wait(1)[0]
    assert (result.code, result.began) == (None, False)
    assert result.text == "cannot start no-such-command: it is not on the PATH of this process"


def test_only_some_run_at_a_time_and_the_time_of_the_others_begins_when_they_do(desk: Desk) -> None:
    for _ in range(4):
        desk.bash("sleep 300", limit=5.0)
    desk.bash("echo mine", limit=5.0)
    assert len(desk.children()) == 4
    desk.commands.poll(NOW + 5)
    assert [result.code for result in desk.results] == [None] * 4
    assert desk.wait(5, now=NOW + 6)[-1].out == "mine\n"


def test_what_is_called_when_a_command_is_over_may_start_another(desk: Desk) -> None:
    desk.commands.start(["true"], NOW, 60.0, lambda result, now: desk.bash("echo second"))
    assert desk.wait(1)[0].out == "second\n"


def test_closing_ends_what_runs(desk: Desk) -> None:
    commands = Commands()
    commands.start(["sleep", "300"], NOW, 60.0, lambda result, now: pytest.fail("told after the end"))
    child = psutil.Process().children()[-1]
    commands.close()
    assert not child.is_running()
