"""Starting and stopping a site's interchange: a process of its own, or one sentence that says why not."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from scripts import ROOT
from test_sites import balsamfut, told
from waiting import until

from balsamfut import connection, sites


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site that is not started."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    sites.init(tmp_path / "place", "kept", "workstation")
    yield tmp_path / "place"
    balsamfut("site", "stop", "kept")


def refused(*words: str, says: str) -> None:
    done = balsamfut(*words)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_it_is_one_small_process_that_has_nothing_of_whoever_started_it(place: Path) -> None:
    read, write = os.pipe()
    there = place.parent / "there"
    there.mkdir()
    words = [sys.executable, "-m", "balsamfut", "site", "start", "kept"]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=there, pass_fds=[write], timeout=60,
                          capture_output=True, check=False)
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert os.read(read, 1) == b"", "who waits for the end of a pipe that was open is not kept waiting"
    os.close(read)
    found = connection.read(place)
    assert found is not None
    stat = Path(f"/proc/{found.pid}/stat").read_text().rpartition(")")[2].split()
    assert (int(stat[3]), int(stat[4])) == (found.pid, 0), "a session of its own, without a terminal"
    links = [os.readlink(f"/proc/{found.pid}/fd/{number}") for number in range(3)]
    assert links == ["/dev/null", *2 * [str(place / "log" / "interchange.log")]]
    assert os.readlink(f"/proc/{found.pid}/cwd") == str(place), "the directory where it was started may go away"
    assert Path(f"/proc/{found.pid}/task/{found.pid}/children").read_text() == ""
    assert len(os.listdir(f"/proc/{found.pid}/task")) <= 4 and len(os.listdir(f"/proc/{found.pid}/fd")) <= 40


def test_settings_that_are_wrong_are_told_and_nothing_is_left_behind(place: Path) -> None:
    for text, says in (("[interchange]\nleese = 3\n", "did you mean lease?"),
                       ("[pilot]\nplatform = 'aurroa'\n", "aurora"),
                       ("[elastic]\nmax_blocks = 'many'\n", "max_blocks takes a whole number"),
                       ("[database]\nurl = 'mysql://x/y'\n", "mysql databases are not supported")):
        (place / "settings.toml").write_text(text)
        refused("site", "start", "kept", says=says)
        assert connection.read(place) is None
    (place / "settings.toml").write_text("")
    (place / "platform.toml").write_text("[node]\ncoers = '1-4'\n")
    refused("site", "start", "kept", says="coers")
    (place / "platform.toml").unlink()
    assert told("site", "start", "kept")["new"]


def test_a_directory_that_cannot_be_written_is_told_and_nothing_is_left_behind(
        can_have_hosts: None, place: Path) -> None:
    start = shlex.join([sys.executable, "-m", "balsamfut", "site", "start", str(place)])
    copy = shlex.join(["cp", "-a", f"{place}/.", "/mnt"])
    full = f"mount -t tmpfs -o size=64k none /mnt; {copy}; mount --bind /mnt {place}; {start}; echo $? $(ls {place})"
    fixed = f"mount --bind {place} {place}; mount -o remount,bind,ro {place}; {start}; echo $? $(ls {place})"
    for script, says in ((full, "No space left on device"), (fixed, "Read-only file system")):
        done = subprocess.run(["unshare", "--mount", "sh", "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)},
                              capture_output=True, text=True, timeout=60, check=False)
        assert says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stdout == "2 settings.toml site.toml\n"


def test_a_site_that_does_not_run_is_said_not_to_and_a_hanging_one_can_be_replaced(place: Path) -> None:
    assert balsamfut("site", "stop", "kept").stdout == "it does not run\n"
    first = told("site", "start", "kept")["pid"]
    os.kill(first, signal.SIGSTOP)
    try:
        assert told("site", "start", "kept") == {"pid": first, "host": os.uname().nodename, "new": False}
        assert not told("status", "-s", "kept")["interchange"]["answers"]
        assert "--take-over" in balsamfut("status", "-s", "kept").stdout
        second = told("site", "start", "kept", "--take-over")
        assert second["new"] and second["pid"] != first
    finally:
        with suppress(ProcessLookupError):
            os.kill(first, signal.SIGCONT)
    until(lambda: not connection.runs(first), "it is no more")
    found = connection.read(place)
    assert found is not None and found.pid == second["pid"] and connection.runs(found.pid)


def test_blocks_are_ended_with_the_site_where_that_is_wanted(place: Path) -> None:
    told("site", "start", "kept")
    told("queue", "submit", "-s", "kept", "-n", "1", "-t", "5")
    done = balsamfut("site", "stop", "kept", "--blocks")
    assert done.returncode == 0 and done.stdout.startswith("stopped: process"), done.stderr
    assert [each["state"] for each in told("queue", "ls", "-s", "kept", "--history")] == ["ended"]
