"""The fake PBS is worth its tests as far as it does what the real one was seen to do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from pbs_site import FakePbs

pytest_plugins = ("pbs_site",)

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts" / "openpbs"
QUEUES = {"debug": {"nodes": [1, 2], "walltime": [5, 3600], "max_queued": 1, "max_run": 1},
          "prod": {"routing": True, "bands": [{"name": "small", "nodes": [2, 3], "walltime": [0, 43200]},
                                              {"name": "medium", "nodes": [4, 4], "walltime": [0, 64800]}]},
          "stopped": {"started": False}, "disabled": {"enabled": False}}


def run(*words: str, text: str = "") -> tuple[int, str, str]:
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=30)
    return done.returncode, done.stdout, done.stderr


def submit(script: str, *options: str) -> str:
    code, out, err = run("qsub", *options, text=f"#!/bin/bash\n{script}\n")
    assert code == 0, err
    return out.strip()


def record(id: str) -> dict[str, Any]:
    return json.loads(run("qstat", "-x", "-f", "-F", "json", id)[1])["Jobs"][id]


def real(command: str) -> str:
    """What a command printed on the real machine."""
    text = "".join(path.read_text() for path in sorted(TRANSCRIPTS.glob("*.txt")))
    found = re.search(rf"^\[[\d:]+\] \S+\$ {re.escape(command)}\n--- stdout:\n(.*?)--- stderr:", text, re.M | re.S)
    assert found, command
    return found[1]


def test_queues_are_described_as_by_the_real_one(fake_pbs: FakePbs) -> None:
    fake_pbs.tell("queues.json", QUEUES)
    theirs = json.loads(real("qstat -Q -f -F json"))["Queue"]
    ours = json.loads(run("qstat", "-Q", "-f", "-F", "json")[1])["Queue"]
    assert {name: list(queue.items()) for name, queue in ours.items()} == {
        name: list(theirs[name].items()) for name in ours}
    assert set(ours) == {"debug", "prod", "small", "medium", "stopped", "disabled"}


def test_a_finished_job_has_the_attributes_of_a_real_one_in_their_order(fake_pbs: FakePbs) -> None:
    id = submit("exit 0", "-A", "proj", "-N", "running", "-l", "select=2:ncpus=1", "-l", "place=scatter", "-l",
                "walltime=00:01:00", "-o", "/dev/null", "-e", "/dev/null")
    fake_pbs.wait("F")
    command = "qstat -x -f -F json 44.aurora-pbs-0001.hostmgmt.cm.aurora.lab"
    theirs = next(iter(json.loads(real(command))["Jobs"].values()))
    ours = record(id)
    left_out = {"resources_used", "jobdir", "Stageout_status", "history_timestamp"}
    assert list(ours) == [name for name in theirs if name not in left_out]
    assert {name: type(value) for name, value in ours.items()} == {name: type(theirs[name]) for name in ours}
    assert (ours["substate"], ours["Exit_status"], ours["comment"].endswith("and finished")) == (92, 0, True)


@pytest.mark.parametrize(("script", "status", "substate", "words"), [
    ("exit 3", 3, 93, "and failed"), ("kill -9 $$", 137, 93, "and failed"), ("nosuchcommand", 127, 93, "and failed"),
    ("kill -TERM $$; sleep 1", 143, 93, "and failed"), ("exit 256", 0, 92, "and finished"),
])
def test_a_job_ends_with_the_exit_status_that_the_real_one_has(fake_pbs: FakePbs, script: str, status: int,
                                                              substate: int, words: str) -> None:
    id = submit(script, "-j", "oe", "-o", str(fake_pbs.directory / "out"))
    fake_pbs.wait("F")
    ours = record(id)
    assert (ours["Exit_status"], ours["substate"], ours["comment"].endswith(words)) == (status, substate, True)


def test_the_end_of_a_job_reaches_its_session_and_not_what_has_left_it(fake_pbs: FakePbs) -> None:
    site = fake_pbs.directory
    id = submit(f"cd {site}; setsid sleep 300 & echo $! >away; sleep 300 & echo $! >here; touch up; sleep 300", "-o",
                "/dev/null", "-e", "/dev/null")
    fake_pbs.wait("R")
    while not (site / "up").exists():
        psutil.wait_procs([], timeout=0.02)
    here, away = (psutil.Process(int((site / name).read_text())) for name in ("here", "away"))
    assert run("qdel", id) == (0, "", "")
    fake_pbs.wait("F")
    assert record(id)["Exit_status"] == 271
    assert not here.is_running() or here.status() == psutil.STATUS_ZOMBIE
    assert away.is_running()
    os.kill(away.pid, signal.SIGKILL)


def test_refusals_have_the_words_and_codes_of_the_real_one(fake_pbs: FakePbs) -> None:
    fake_pbs.tell("queues.json", QUEUES)
    server = "aurora-pbs-0001.hostmgmt.cm.aurora.lab"
    assert run("qsub", "-q", "nosuchq") == (170, "", "qsub: Unknown queue\n")
    assert run("qsub", "-q", "small") == (174, "", "qsub: Access to queue is denied\n")
    assert run("qsub", "-q", "disabled") == (173, "", "qsub: Queue is not enabled\n")
    assert run("qsub", "-q", "debug", "-l", "select=3", "-l", "walltime=60") == (
        188, "", "qsub: Job violates queue and/or server resource limits\n")
    assert run("qsub", "-l", "walltime=abc") == (
        166, "", "qsub: Illegal attribute or resource value Resource_List.walltime\n")
    assert run("qdel", "99999") == (153, "", f"qdel: Unknown Job Id 99999.{server}\n")
    assert run("qstat", "99999") == (153, "", f"qstat: Unknown Job Id 99999.{server}\n")
    wide = submit("true", "-q", "prod", "-l", "select=9")
    assert run("qstat", "-x", wide) == (153, "", f"qstat: Unknown Job Id {wide}\n")
    waits = submit("true", "-q", "stopped")
    while "comment" not in record(waits):
        psutil.wait_procs([], timeout=0.02)
    assert (record(waits)["job_state"], record(waits)["comment"]) == ("Q", "Not Running: Queue not started.")
    assert run("qdel", waits)[0] == 0
    assert "Exit_status" not in record(waits) and record(waits)["substate"] == 91
    assert run("qdel", waits) == (35, "", f"qdel: Job has finished {waits}\n")
