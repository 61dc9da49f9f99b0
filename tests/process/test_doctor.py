"""`balsamfut doctor`, with a batch system that is right, wrong, silent or not there, and sites in all conditions."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_sites import balsamfut, told

from balsamfut import cli, connection, platforms, sites
from balsamfut.cli import checks_batch
from balsamfut.platforms.queues import tables

if TYPE_CHECKING:
    from pbs_site import FakePbs

pytest_plugins = ("pbs_site",)
Found = dict[str, list[tuple[str, str]]]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("BALSAMFUT_SITE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    sites.init(tmp_path / "place", "kept", "workstation")
    yield tmp_path / "place"
    if connection.read(tmp_path / "place") is not None:
        balsamfut("site", "stop", "kept")


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Found]:
    """The exit code, and what was found by check."""
    code = cli.main(["doctor", "--json", *words])
    found: Found = {}
    for each in json.loads(capsys.readouterr().out)["checks"]:
        found.setdefault(each["check"], []).append((each["level"], each["text"]))
    assert code == any(level == "error" for each in found.values() for level, _ in each)
    return code, found


def aurora(tmp_path: Path) -> None:
    sites.init(tmp_path / "au", "au", "aurora")


def as_pbs_has_it(name: str = "aurora") -> dict[str, Any]:
    """The platform's table, as a PBS would be set up that has just that."""
    made: dict[str, Any] = {}
    for queue in tables(platforms.load(name)):
        bands = [{"name": f"{queue.name}-{n}", "nodes": [b.min_nodes, b.max_nodes], "walltime": [0, int(b.max_wall)]}
                 for n, b in enumerate(queue.bands)]
        made[queue.name] = {"nodes": [queue.min_nodes, queue.max_nodes], "walltime": [0, int(queue.max_wall)],
                            **({"routing": True, "bands": bands} if bands else {"max_queued": queue.max_queued})}
    return made


def test_without_a_site_and_a_batch_system_it_looks_at_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = doctor(capsys)
    assert code == 0 and {"python", "packages", "site", "platform", "network", "mpi", "batch"} == set(found)
    assert "no batch system" in found["batch"][0][1] and os.listdir() == []


def test_of_a_site_it_tells_where_it_is_what_is_in_it_and_who_serves_it(
        place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = doctor(capsys, "-s", "kept")
    assert code == 0 and "made by the first start" in found["database"][0][1]
    pid = told("site", "start", "kept")["pid"]
    code, found = doctor(capsys, "-s", "kept")
    assert code == 0 and f"process {pid} on {os.uname().nodename}, since" in found["interchange"][0][1]
    assert "balsamfut.db, tables of version" in found["database"][0][1]
    os.kill(pid, signal.SIGSTOP)
    try:
        code, found = doctor(capsys, "-s", "kept")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert code == 1 and "stopped by a signal" in found["interchange"][0][1]
    assert "kept" in balsamfut("doctor", "-s", "kept").stdout


def test_each_thing_that_is_wrong_with_a_site_is_told(place: Path, capsys: pytest.CaptureFixture[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "balsamfut.db").write_text("no database at all")
    assert doctor(capsys, "-s", "kept")[1]["database"][0][0] == "error"
    (place / "balsamfut.db").unlink()
    place.chmod(0o777)
    assert "chmod go-w" in doctor(capsys, "-s", "kept")[1]["site"][0][1]
    mounts = place.parent / "mounts"
    mounts.write_text(f"server:/flare {place.resolve()} lustre rw 0 0\n")
    monkeypatch.setattr("balsamfut.interchange.mounts.MOUNTS", mounts)
    level, text = doctor(capsys, "-s", "kept")[1]["disk"][0]
    assert level == "ok" and text.startswith("lustre, shared between hosts: SQLite works there without a write-ahead")
    (place / "settings.toml").write_text('[interchange]\ninterface = "hsn7"\n[pilot]\nmpiexec = "nompiexec"\n')
    found = doctor(capsys, "-s", "kept")[1]
    assert "no interface hsn7" in found["network"][0][1] and "'nompiexec'" in found["mpi"][0][1]
    (place / "settings.toml").write_text("[pilott]\n")
    code, found = doctor(capsys, "-s", "kept")
    assert code == 1 and "did you mean pilot?" in found["settings"][0][1] and "python" in found
    (place / "settings.toml").write_text("")
    shutil.move(place, place.with_name("away"))
    code, found = doctor(capsys, "-s", str(place.with_name("away")))
    assert code == 1 and "balsamfut site add" in found["site"][0][1]


def test_a_site_that_is_not_there_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "-s", "nosuch"]) == 2
    assert "there is no site of the name 'nosuch'" in capsys.readouterr().err


def test_a_batch_system_whose_queues_are_as_the_table_says_is_all_right(
        tmp_path: Path, fake_pbs: FakePbs, capsys: pytest.CaptureFixture[str]) -> None:
    aurora(tmp_path)
    fake_pbs.tell("queues.json", {**as_pbs_has_it(), "M1234": {}})
    code, found = doctor(capsys, "-s", "au")
    assert code == 0, found["batch"]
    assert found["batch"][0][0] == "ok"
    (level, text), = found["queues"]
    assert (level, text) == ("ok", "debug, debug-scaling, capacity, prod are as PBS says; PBS has others too: M1234")
    assert "who pays" in found["project"][0][1]
    assert "nothing here looks like it" in found["platform"][0][1]


def test_queues_that_are_not_as_the_table_says_are_told_one_by_one(
        tmp_path: Path, fake_pbs: FakePbs, capsys: pytest.CaptureFixture[str]) -> None:
    aurora(tmp_path)
    real = as_pbs_has_it()
    real["debug"]["nodes"] = [1, 4]
    real["debug-scaling"]["enabled"] = False
    real["prod"]["bands"][2]["walltime"] = [0, 7200]
    del real["capacity"]
    fake_pbs.tell("queues.json", real)
    settings = tmp_path / "au" / "settings.toml"
    settings.write_text(settings.read_text().replace('# queues = ""', 'queues = "debgu"'))
    code, found = doctor(capsys, "-s", "au")
    assert code == 1 and "names debgu, and aurora has no such queue; did you mean debug" in found["queues"].pop(0)[1]
    settings.write_text("[pilot]\nplatform = 'aurora'\n")
    code, found = doctor(capsys, "-s", "au")
    assert code == 0 and {level for level, _ in found["queues"]} == {"warning"}
    texts = [text for _, text in found["queues"]]
    assert texts[0].startswith("debug: the table says at most 2 nodes, PBS 4; put it right under [[scheduler.queues]]")
    assert texts[1] == "debug-scaling: it is disabled: nothing can be submitted to it now"
    assert texts[2].startswith("capacity: PBS has no such queue")
    assert texts[3].startswith("prod: the table says at most 1 day for 2000 to 10624 nodes, PBS 2 h (in prod-2)")


@pytest.mark.parametrize(("name", "text", "check", "says"), [
    ("hang", "qstat", "batch", "did not answer within"), ("down", "Connection refused", "batch", "Connection refused"),
])
def test_a_batch_system_that_does_not_answer_is_told_in_its_words(
        tmp_path: Path, fake_pbs: FakePbs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
        name: str, text: str, check: str, says: str) -> None:
    monkeypatch.setattr(checks_batch.ask, "__defaults__", (1.0,))
    aurora(tmp_path)
    fake_pbs.tell(name, text)
    code, found = doctor(capsys, "-s", "au")
    assert code == 1 and found[check][0][0] == "error" and says in found[check][0][1]


def test_commands_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    aurora(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, found = doctor(capsys, "-s", "au")
    assert code == 1 and found["batch"][0][1].startswith("qsub, qstat, qdel, qselect of PBS not on PATH")


def test_what_keeps_the_elastic_queue_from_asking_is_an_error_also_where_no_batch_system_answers(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    aurora(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "au" / "settings.toml").write_text("""
[pilot]
platform = "aurora"
[elastic]
enabled = true
queues = "debug capasity"
""")
    code, found = doctor(capsys, "-s", "au")
    assert code == 1
    (level, said), = found["project"]
    assert level == "error" and "[elastic] is enabled without a project, so no block is asked for: set project" in said
    assert ("error", "[elastic] queues names capasity, and aurora has no such queue; did you mean capacity?"
            ) in found["queues"]
    settings = (tmp_path / "au" / "settings.toml").read_text()
    (tmp_path / "au" / "settings.toml").write_text(settings.replace("enabled = true", "enabled = false"))
    assert [level for level, _ in doctor(capsys, "-s", "au")[1]["project"]] == ["ok"]
