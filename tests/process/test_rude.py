"""What rude users and broken peers do to a running interchange: it says no, and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT
from waiting import open_gate, pass_gate, reached, until

from balsamfut import Executor


@pytest.fixture(scope="module")
def ex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """An Executor of a named campaign, which all tests share: none of them may end its interchange."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAMFUT_INTERCHANGE_LINGER", "0.05")
        with Executor("rude", site=tmp_path_factory.mktemp("site"), max_workers=2) as executor:
            yield executor


@pytest.fixture(autouse=True)
def the_interchange_lives(ex: Executor) -> Iterator[None]:
    before = said(ex)["pid"]
    yield
    assert ex.submit(abs, -1).result(20) == 1
    assert said(ex)["pid"] == before, "the interchange was lost"


def said(ex: Executor) -> dict[str, Any]:
    """The connection file."""
    found: dict[str, Any] = json.loads((ex.site / "interchange.json").read_text())
    return found



def double(x: int) -> int:
    return 2 * x


def test_resume_beside_a_running_script_disturbs_nothing(ex: Executor, tmp_path: Path) -> None:
    blockers = [ex.submit(pass_gate, tmp_path / f"gate{i}") for i in range(2)]
    until(lambda: all(reached(tmp_path / f"gate{i}") for i in range(2)))
    queued = [ex.submit(double, i) for i in range(100)]
    assert queued[-1].task_id
    with subprocess.Popen([sys.executable, "-m", "balsamfut", "resume", str(ex.site), "--campaign", "rude"],
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True) as resume:
        assert resume.stderr is not None
        assert "of" in resume.stderr.readline()    # it has been told how many there are
        for i in range(2):
            open_gate(tmp_path / f"gate{i}")
        assert [call.result(20) for call in queued] == [2 * i for i in range(100)]
        assert [blocker.result(20) for blocker in blockers] == [None, None]
        resume.stderr.read()
        assert resume.wait(20) == 0
