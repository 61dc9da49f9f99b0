"""How the other hosts of a batch job are reached: what is found, and what the script makes of its words."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from balsamfut.pilot import reach


def program(path: Path, text: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def pbs(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of PBS, whose programs are not on PATH."""
    program(tmp_path / "pbs" / "bin" / "pbs_tmrsh", 'for word; do echo "[$word]"; done')
    (tmp_path / "pbs.conf").write_text(f"PBS_SERVER=s\nPBS_EXEC={tmp_path / 'pbs'}\n")
    return {"PBS_JOBID": "1.s", "PBS_CONF_FILE": str(tmp_path / "pbs.conf"), "PATH": str(tmp_path / "nothing")}


def test_pbs_reaches_the_hosts_of_its_jobs(pbs: dict[str, str], tmp_path: Path) -> None:
    said = reach.by_pbs(pbs, tmp_path / "run")
    assert said == {"HYDRA_LAUNCHER": "rsh", "HYDRA_LAUNCHER_EXEC": str(tmp_path / "run" / "tmrsh.sh")}
    found = reach.without_mpi({**pbs, **said})
    assert found is not None and (found.flavour, found.exe) == ("ssh", said["HYDRA_LAUNCHER_EXEC"])


def test_what_somebody_has_said_stands(pbs: dict[str, str], tmp_path: Path) -> None:
    assert reach.by_pbs({**pbs, "HYDRA_LAUNCHER": "ssh"}, tmp_path / "run") == {}
    assert reach.by_pbs({**pbs, "PBS_JOBID": ""}, tmp_path / "run") == {}
    assert reach.by_pbs({**pbs, "PBS_CONF_FILE": str(tmp_path / "none")}, tmp_path / "run") == {}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [
    ["-o", "BatchMode=yes", "n7", "echo 'a  b' \"$HOME\""], ["-x", "n7", "-n", "echo 'a  b' \"$HOME\""],
    ["n7", "echo", "'a  b'", '"$HOME"']])
def test_the_script_hands_a_line_to_a_shell_there_as_ssh_does(pbs: dict[str, str], tmp_path: Path,
                                                              words: list[str]) -> None:
    script = reach.by_pbs(pbs, tmp_path / "run")["HYDRA_LAUNCHER_EXEC"]
    done = subprocess.run([script, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[n7]", "[/bin/sh]", "[-c]", "[echo 'a  b' \"$HOME\"]"]


def test_without_mpi_a_job_of_slurm_is_reached_by_srun_and_others_by_ssh(tmp_path: Path) -> None:
    srun, ssh = program(tmp_path / "a" / "srun"), program(tmp_path / "b" / "ssh")
    both = f"{srun.parent}{os.pathsep}{ssh.parent}"
    of_slurm = reach.without_mpi({"SLURM_JOB_ID": "1", "PATH": both})
    assert of_slurm is not None and of_slurm.flavour == "srun"
    other = reach.without_mpi({"PATH": both})
    assert other is not None and (other.flavour, other.exe) == ("ssh", "")
    assert reach.without_mpi({"PATH": str(srun.parent)}) is None
