"""`balsamfut doctor` with a real Slurm: its partitions are understood, and held against a site's table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balsamfut import cli, sites

TABLE = """
[scheduler]
kind = "slurm"
[[scheduler.queues]]
name = "debug"
nodes = [1, {nodes}]
walltime_min = [1, {minutes}]
[[scheduler.queues]]
name = "nosuch"
nodes = [1, 3]
walltime_min = [1, 60]
"""


def test_a_table_is_held_against_slurms_partitions(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    sites.init(tmp_path / "place", "kept", "workstation")
    (tmp_path / "place" / "platform.toml").write_text(TABLE.format(nodes=7, minutes=60))
    assert cli.main(["doctor", "-s", "kept", "--json"]) == 0
    found = [(each["level"], each["text"]) for each in json.loads(capsys.readouterr().out)["checks"]
             if each["check"] in ("batch", "queues")]
    assert found[0][0] == "ok" and found[0][1].startswith("Slurm answers")
    assert found[1][1].startswith("debug: the table says at most 7 nodes, Slurm 3; put it right under")
    assert found[-1][1].startswith("nosuch: Slurm has no such queue")
