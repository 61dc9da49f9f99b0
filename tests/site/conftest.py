"""Fixtures of the site tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real Slurm with the nodes n1, n2, n3 of four CPUs, all on this machine; its commands find it during the test.

    BALSAMFUT_TEST_SLURM names the directory with which `.ci/slurm.sh start` was called.  The nodes are shared with
    tests that run at the same time: a job may have to wait for them.
    """
    directory = os.environ.get("BALSAMFUT_TEST_SLURM")
    if not directory:
        pytest.skip("BALSAMFUT_TEST_SLURM names no Slurm")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(Path(directory) / "slurm.conf"))
    return Path(directory)
