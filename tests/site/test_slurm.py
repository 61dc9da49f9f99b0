"""The Slurm that site tests are given is a real one of three nodes: steps and batch jobs run where they were placed."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)
TELL = 'echo "$SLURMD_NODENAME $SLURM_PROCID $SLURM_LOCALID"'


def run(*words: str, seconds: float = 60) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{words}: {done.returncode} {done.stderr}"
    return done.stdout


def job(number: str) -> dict[str, str]:
    """The record of a job, running or over."""
    words = run("scontrol", "--oneliner", "show", "job", number).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def ended(number: str, seconds: float = 60) -> dict[str, str]:
    deadline = time.monotonic() + seconds
    while (record := job(number))["JobState"] in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
        assert time.monotonic() < deadline, f"job {number} is still {record['JobState']}"
        time.sleep(0.1)
    return record


def batch(directory: Path, *lines: str, options: tuple[str, ...] = ()) -> str:
    script = directory / "job.sh"
    script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    return run("sbatch", "--parsable", "--chdir", str(directory), "--output", str(directory / "out"), *options,
               str(script)).strip().split(";")[0]


def test_a_step_on_three_nodes_runs_once_on_each(slurm: Path) -> None:
    told = run("srun", "-N3", "-n3", "--ntasks-per-node=1", "sh", "-c", TELL).splitlines()
    assert sorted(told) == ["n1 0 0", "n2 1 0", "n3 2 0"]


def test_a_batch_job_places_its_steps_on_the_nodes_that_it_names(slurm: Path, tmp_path: Path) -> None:
    number = batch(tmp_path, "srun --overlap -N1 -n2 -w n3 sh -c \"$TELL\" >three",
                   "srun --overlap -N2 -n2 --ntasks-per-node=1 -w n1,n2 sh -c \"$TELL\" >two",
                   'echo "$SLURM_JOB_NODELIST"', options=("-N3", "--exclusive", f"--export=ALL,TELL={TELL}"))
    record = ended(number)
    assert record["JobState"] == "COMPLETED", (tmp_path / "out").read_text()
    assert (tmp_path / "out").read_text() == "n[1-3]\n"
    assert sorted((tmp_path / "three").read_text().splitlines()) == ["n3 0 0", "n3 1 1"]
    assert sorted((tmp_path / "two").read_text().splitlines()) == ["n1 0 0", "n2 1 0"]


def test_a_job_that_fails_and_one_that_is_cancelled_are_told_apart(slurm: Path, tmp_path: Path) -> None:
    failed = ended(batch(tmp_path, "exit 7"))
    assert (failed["JobState"], failed["ExitCode"]) == ("FAILED", "7:0")
    number = batch(tmp_path, f"touch {tmp_path}/up; exec sleep 300")
    deadline = time.monotonic() + 60
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run("scancel", number)
    assert ended(number)["JobState"] == "CANCELLED"
