"""The elastic queue of a site that is kept: blocks of a fake PBS that come with the work and go without it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scripts import run
from test_sites import balsamfut, told
from waiting import until

if TYPE_CHECKING:
    from pbs_site import FakePbs

pytest_plugins = ("pbs_site",)

SCRIPT = """
    from balsamfut import Executor, app

    @app.shell("echo {{ n }}")
    def hello(n: int): ...

    with Executor("hello", site="springy", wait=False):
        for n in range(40):
            hello.options(walltime="4m", gpus_per_rank=1)(n)
    """


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_pbs: FakePbs) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    place = tmp_path / "site"
    assert balsamfut("site", "init", str(place), "-n", "springy", "--platform", "aurora").returncode == 0
    (place / "settings.toml").write_text("""
[pilot]
platform = "aurora"
pretend = true
[elastic]
enabled = true
project = "demo"
queues = "debug"
idle = 3.0
""")
    return place


def states() -> set[str]:
    return {task["state"] for task in told("task", "ls", "--site", "springy")}


def test_blocks_come_with_the_work_and_go_without_it(site: Path, tmp_path: Path, fake_pbs: FakePbs) -> None:
    assert told("site", "start", "springy")["new"]
    try:
        assert told("queue", "plan", "--site", "springy")["steps"] == []
        done = run(SCRIPT, tmp_path)
        assert (done.code, done.err) == (0, "")
        until(lambda: states() == {"DONE"}, "all are done", 60)
        until(lambda: not told("queue", "ls", "--site", "springy"), "the block is let go", 40)
        block, = told("queue", "ls", "--site", "springy", "--history")
        assert (block["state"], block["queue"], block["project"]) == ("ended", "debug", "demo")
        assert "node-hours are ready" in block["why"] and block["exit_code"] == 0
        assert len(fake_pbs.calls("qsub")) == 1 and fake_pbs.calls("qdel") == []
    finally:
        balsamfut("site", "stop", "springy")


def test_a_block_that_hangs_is_ended_and_no_other_is_asked_for_until_a_pause_is_over(
        site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_pbs: FakePbs) -> None:
    for name, seconds in (("PILOT_LATE", 3), ("ELASTIC_GIVE_UP", 8), ("ELASTIC_BACKOFF", 3600)):
        monkeypatch.setenv(f"BALSAMFUT_{name}", str(seconds))
    monkeypatch.setenv("BALSAMFUT_PILOT_PREAMBLE", "echo loading modules; sleep 1000")
    assert told("site", "start", "springy")["new"]
    try:
        assert run(SCRIPT, tmp_path).code == 0
        until(lambda: fake_pbs.jobs() and fake_pbs.jobs()[0]["state"] == "F", "it is ended", 90)
        until(lambda: not told("queue", "ls", "--site", "springy"), "that is seen", 60)
        block, = told("queue", "ls", "--site", "springy", "--history")
        assert block["started"] and block["note"].endswith("log/pilot-1.log ends: loading modules")
        plan = " ".join(told("queue", "plan", "--site", "springy")["lines"])
        assert "block 1 ran and its pilot was not there: another is asked for in 1 h" in plan
        assert len(fake_pbs.calls("qsub")) == 1 and len(fake_pbs.calls("qdel")) == 1 and states() == {"READY"}
    finally:
        balsamfut("site", "stop", "springy")


def test_a_pause_is_remembered_and_told(site: Path, tmp_path: Path, fake_pbs: FakePbs) -> None:
    assert told("site", "start", "springy")["new"]
    try:
        assert "until `balsamfut queue resume`" in balsamfut("queue", "pause", "--site", "springy").stdout
        balsamfut("site", "stop", "springy")
        assert told("site", "start", "springy")["new"]
        assert run(SCRIPT, tmp_path).code == 0
        plan = told("queue", "plan", "--site", "springy")
        assert plan["paused"] and plan["steps"] == [] and "is paused" in " ".join(plan["lines"])
        assert fake_pbs.calls("qsub") == []
        assert "asks for blocks again" in balsamfut("queue", "resume", "--site", "springy").stdout
        until(lambda: states() == {"DONE"}, "all are done", 60)
    finally:
        balsamfut("site", "stop", "springy")


def test_without_an_interchange_the_commands_say_how_to_start_one(site: Path) -> None:
    for order in ("plan", "pause", "resume"):
        done = balsamfut("queue", order, "--site", "springy")
        assert done.returncode == 2 and "site start" in done.stderr and "Traceback" not in done.stderr
