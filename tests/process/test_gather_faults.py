"""The beginning of a pilot of several hosts whose launcher refuses at first: a fake PALS, real followers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from balsamfut import platforms
from balsamfut.pilot.desk import Desk
from balsamfut.pilot.gather import Gathering
from balsamfut.pilot.staff import Staff

PALS = Path(__file__).resolve().parents[1] / "fake_site" / "pals" / "bin" / "mpiexec"


def test_agents_for_which_there_is_no_vni_are_launched_again_without_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("LOG", ""), ("FAULTS", "vni *")):
        (tmp_path / name).write_text(text)
        monkeypatch.setenv(f"FAKE_PALS_{name}", str(tmp_path / name))
    platform = platforms.load("workstation", {"max_nodes": 3, "launcher": {"flavour": "pals", "exe": str(PALS)}})
    names = ["localhost", "x1", "x2"]
    desk = Desk(site=tmp_path, pilot=1, token=f"gather-{os.getpid()}", host="localhost", platform=platform, names=names,
                pretend=False, apart=True)
    staff = Staff(desk)
    try:
        gathering = Gathering(desk, staff, platform, 1, 20.0, time.time())
        while not gathering.over(time.time()):
            staff.listen(time.time())
            gathering.company.listen(time.time())
            time.sleep(0.01)
        assert gathering.company.complete and not gathering.company.missing
        launches = [json.loads(line) for line in (tmp_path / "LOG").read_text().splitlines()]
        assert [("--no-vni" in launch["argv"], launch["hosts"]) for launch in launches] == [
            (False, ["x1", "x2"]), (True, ["x1", "x2"])]
    finally:
        leave(gathering, staff)


def test_hosts_that_ssh_does_not_reach_are_given_up_and_the_pilot_goes_on(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\necho ssh: connect to host $1 port 22: Connection refused >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o700)
    platform = platforms.load("workstation", {"max_nodes": 2, "launcher": {"flavour": "ssh",
                                                                           "exe": str(tmp_path / "ssh")}})
    desk = Desk(site=tmp_path, pilot=1, token=f"gather-{os.getpid()}", host="localhost", platform=platform,
                names=["localhost", "x1"], pretend=False, apart=True)
    staff = Staff(desk)
    gathering = Gathering(desk, staff, platform, 1, 20.0, time.time())
    try:
        while not gathering.over(time.time()):
            staff.listen(time.time())
            gathering.company.listen(time.time())
            time.sleep(0.01)
        assert list(gathering.company.missing) == [1]
        assert "Connection refused" in (tmp_path / "run" / "pilot-1" / "agents.log").read_text()
    finally:
        leave(gathering, staff)


def leave(gathering: Gathering, staff: Staff) -> None:
    gathering.company.disband()
    while not gathering.company.empty:
        gathering.company.listen(time.time())
        staff.listen(time.time())
        time.sleep(0.01)
    staff.end()
