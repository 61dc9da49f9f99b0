"""What the command line says of tasks that are READY and wait."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, run
from test_sites import balsamfut, told

SCRIPT = """
    from balsamfut import Executor, app

    @app.shell("echo {{ n }}")
    def hello(n: int): ...

    with Executor("hello", site="kept", wait=False):
        for n in range(3):
            hello.options(tags={"n": n})(n)
    """
NO_BLOCK = "there is no block: `balsamfut queue submit` asks for one"


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A site by the name of `kept` that runs, with three tasks and no block."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "place"
    told("site", "init", str(place), "-n", "kept", "--platform", "workstation")
    assert told("site", "start", "kept")["new"]
    assert run(SCRIPT, tmp_path).code == 0
    yield place
    balsamfut("site", "stop", "kept")


def seen_on_a_terminal(*words: str, columns: int = 60) -> str:
    here, there = pty.openpty()
    environ = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": str(columns), "TERM": "dumb"}
    child = subprocess.Popen([sys.executable, "-m", "balsamfut", *words], stdout=there, env=environ)
    os.close(there)
    seen = b""
    try:
        while some := os.read(here, 65536):
            seen += some
    except OSError:      # it has ended
        pass
    os.close(here)
    assert child.wait(30) == 0
    return seen.decode().replace("\r\n", "\n")


def test_a_site_that_has_no_block_says_so_wherever_people_look(stuck: Path) -> None:
    tasks = told("task", "ls", "--site", "kept")
    assert {(task["state"], task["reason"]) for task in tasks} == {("READY", NO_BLOCK)}
    table = balsamfut("task", "ls", "--site", "kept").stdout.splitlines()
    assert len(table) == 4 and all(line.endswith(NO_BLOCK) for line in table[1:])
    assert f"reason     {NO_BLOCK}" in balsamfut("task", "show", "1", "--site", "kept").stdout
    assert told("task", "show", "1", "--site", "kept")["reason"] == NO_BLOCK
    assert balsamfut("status", "--site", "kept").stdout.endswith(f"\n\n3 of hello ready: {NO_BLOCK}\n")
    assert told("status", "--site", "kept")["waits"] == [{"app": "hello", "why": NO_BLOCK, "count": 3, "tasks": []}]
    assert seen_on_a_terminal("task", "ls", "--site", "kept").endswith(f"\n\n3 ready: {NO_BLOCK}\n")


def test_where_the_site_is_not_running_that_is_the_reason(stuck: Path) -> None:
    assert balsamfut("site", "stop", "kept").returncode == 0
    said = f"the site kept ({stuck}) is not running: `balsamfut site start kept`"
    assert {task["reason"] for task in told("task", "ls", "--site", "kept")} == {said}
    assert said in balsamfut("task", "show", "2", "--site", "kept").stdout
    assert balsamfut("status", "--site", "kept").stdout.endswith(f"\n\n3 ready: {said}\n")
    done = balsamfut("task", "ls", "--site", "kept", "--state", "ready", "--json")
    assert done.stderr == "" and len(json.loads(done.stdout)["tasks"]) == 3


def test_orders_answer_in_json_too(stuck: Path) -> None:
    assert told("queue", "pause", "--site", "kept") == {"enabled": False, "paused": True}
    assert told("queue", "resume", "--site", "kept") == {"enabled": False, "paused": False}
    pid = told("status", "--site", "kept")["interchange"]["pid"]
    assert told("site", "stop", "kept") == {"pid": pid}
    assert told("site", "stop", "kept") == {"pid": None}
