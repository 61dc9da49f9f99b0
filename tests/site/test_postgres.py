"""The whole path with PostgreSQL behind it: the same script, the same record, the same survival."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from balsamfut import query
from balsamfut.model import TaskState

SCRIPT = """
import os, sys, time
from balsamfut import Executor, app

@app
def step(i, before=None):
    with open("side", "a") as side:
        side.write(f"{i}\\n")
    if i == 20:
        open("halfway", "w").close()
        while not os.path.exists("go-on"):
            time.sleep(0.01)
    return i

@app.shell("echo {{ word }} {{ number }}")
def say(word: str, number: int): ...

if __name__ == "__main__":
    with Executor("postgres", max_workers=1):
        steps = [step(i) for i in range(40)]
        said = say("it's", steps[-1])
        print(sum(f.result() for f in steps), open(said.result().stdout).read().strip())
"""


@pytest.fixture
def database(tmp_path: Path, postgres_url: str) -> Iterator[str]:
    """A database that is dropped when the interchange has written its last word."""
    yield postgres_url
    with open(tmp_path / ".balsamfut" / "interchange.owner") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)


def site_of(directory: Path, url: str) -> Path:
    site = directory / ".balsamfut"
    site.mkdir(mode=0o700)
    (site / "settings.toml").write_text(f'[database]\nurl = "{url}"\n')
    (directory / "script.py").write_text(SCRIPT)
    return site


def run(directory: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "script.py"], cwd=directory, env={**os.environ, **more}, capture_output=True,
                          text=True, timeout=60, check=False)


def test_a_campaign_in_postgresql_is_killed_and_goes_on(tmp_path: Path, database: str) -> None:
    site = site_of(tmp_path, database)
    killed = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "halfway").exists():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (tmp_path / "go-on").touch()
    again = run(tmp_path)
    assert (again.returncode, again.stdout) == (0, "780 it's 39\n"), again.stderr
    marks = Counter((tmp_path / "side").read_text().split())
    assert set(marks) == {str(i) for i in range(40)}
    assert all(marks[str(i)] == 1 for i in range(20)), "what was done was run again"
    with query.open_site(database, site) as reader:
        assert Counter(task.state for task in reader.tasks()) == {TaskState.DONE.name: 41}


def test_an_interchange_is_killed_over_postgresql_and_the_script_goes_on(tmp_path: Path, database: str) -> None:
    site_of(tmp_path, database)
    (tmp_path / "go-on").touch()
    for point in ("interchange.commit.before:4", "interchange.commit.after:4", "interchange.send.middle:5"):
        once = tmp_path / point
        result = run(tmp_path, BALSAMFUT_CRASH=point, BALSAMFUT_CRASH_ONCE=str(once))
        assert (result.returncode, result.stdout) == (0, "780 it's 39\n"), result.stderr
    assert max(Counter((tmp_path / "side").read_text().split()).values()) == 1
