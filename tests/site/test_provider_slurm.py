"""The Slurm provider against a real Slurm of three nodes."""

from __future__ import annotations

import select
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balsamfut.provider.base import BlockSpec, BlockState, BlockStatus
from balsamfut.provider.pace import Pace
from balsamfut.provider.slurm import SlurmProvider, SlurmRules

pytestmark = pytest.mark.timeout(180)
PACE = Pace(every=0.3, soon=0.1, retry=0.5, patience=1.0)


class Site:
    """A provider and its loop, on the real clock."""

    def __init__(self, directory: Path, rules: SlurmRules | None = None) -> None:
        self.directory = directory
        self.provider = SlurmProvider(rules, PACE)
        self.token = f"bf-{uuid.uuid4().hex[:12]}"
        self.news: list[BlockStatus] = []

    def submit(self, text: str, *directives: str, **more: object) -> str:
        # A home of its own: the profiles of whoever runs the tests may take long, or mind being killed.
        spec = BlockSpec(self.token, ("/bin/bash", "-c", text), log=str(self.directory / "log" / "block.log"),
                         cwd=str(self.directory), directives=(f"--export=HOME={self.directory}", *directives),
                         **{"walltime": 120.0, **more})  # type: ignore[arg-type]
        return self.provider.submit(spec, time.time())

    def until(self, condition: Callable[[BlockStatus], bool] | BlockState, seconds: float = 90.0) -> BlockStatus:
        test = condition if callable(condition) else lambda status: status.state == condition
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            due = self.provider.due()
            wait = min(max((due if due is not None else time.time() + 1) - time.time(), 0.0), 1.0)
            select.select(self.provider.fds(), [], [], wait)
            news = self.provider.poll(time.time())
            self.news += news
            for status in news:
                if test(status):
                    return status
        raise AssertionError(f"nothing of the kind came: {self.news}")


@pytest.fixture
def site(slurm: Path, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.provider.close()
    subprocess.run(["scancel", f"--name={made.token}"], check=False, timeout=30)


def test_a_block_runs_on_its_nodes_and_its_exit_code_is_told(site: Site) -> None:
    site.submit("srun --nodes=2 sh -c 'echo $SLURMD_NODENAME $WORD $HOME' | sort; echo $PWD; exit 7", nodes=2,
                environ=(("WORD", "it's"),), preamble="export HOME=/nowhere")
    queued = site.until(BlockState.QUEUED)
    assert queued.id.isdigit()
    ended = site.until(BlockState.ENDED)
    assert (ended.id, ended.exit_code, ended.text) == (queued.id, 7, "FAILED (NonZeroExitCode)")
    lines = (site.directory / "log" / "block.log").read_text().splitlines()
    assert len({line.split()[0] for line in lines[:2]}) == 2
    assert all(line.endswith(" it's /nowhere") for line in lines[:2]) and lines[2:] == [str(site.directory)]


def test_a_block_is_told_running_and_ended_when_it_is_cancelled(site: Site) -> None:
    site.submit("sleep 300")
    site.until(BlockState.RUNNING)
    site.provider.cancel(site.token, time.time())
    ended = site.until(BlockState.ENDED)
    assert ended.text.startswith("CANCELLED") and ended.exit_code in (None, -15)


def test_what_slurm_refuses_is_told_in_its_words(site: Site) -> None:
    site.submit("true", queue="nosuch")
    refused = site.until(BlockState.REFUSED)
    assert "Invalid partition name specified" in refused.text and not refused.again and not refused.id


def test_a_block_that_waits_says_why_and_is_cancelled_where_it_waits(site: Site) -> None:
    site.submit("true", "--hold")
    held = site.until(lambda status: status.state == BlockState.QUEUED and bool(status.text))
    assert held.text == "PENDING (JobHeldUser)"
    site.provider.cancel(site.token, time.time())
    ended = site.until(BlockState.ENDED)
    assert ended.exit_code is None and ended.text.startswith("CANCELLED")


def test_the_next_interchange_finds_a_block_by_its_id_and_by_its_name_alone(site: Site) -> None:
    site.submit("sleep 300")
    id = site.until(BlockState.QUEUED).id
    site.provider.close()
    for known in (id, ""):
        site.provider = SlurmProvider(None, PACE)
        site.provider.adopt(site.token, known, time.time())
        assert site.until(BlockState.RUNNING).id == id
        if known:
            site.provider.close()
    site.provider.cancel(site.token, time.time())
    site.until(BlockState.ENDED)


def test_a_job_that_slurm_has_never_known_is_not_waited_for_for_ever(site: Site) -> None:
    site.provider.adopt(site.token, "", time.time())
    assert "never submitted" in site.until(BlockState.ENDED).text
    site.provider.adopt(site.token, "99999999", time.time())
    assert "Invalid job id specified" in site.until(BlockState.ENDED).text


def test_a_controller_that_does_not_answer_changes_nothing(site: Site, slurm: Path, monkeypatch: pytest.MonkeyPatch,
                                                           tmp_path: Path) -> None:
    site.submit("sleep 300")
    site.until(BlockState.RUNNING)
    conf = (slurm / "slurm.conf").read_text().replace("SlurmctldPort=", "SlurmctldPort=9\n#")
    (tmp_path / "down.conf").write_text(f"{conf}\nMessageTimeout=2\n")
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_CONF", str(tmp_path / "down.conf"))
        troubled = site.until(lambda status: "Unable to contact slurm controller" in status.text)
        assert troubled.state == BlockState.RUNNING and site.provider.trouble()
    well = site.until(lambda status: status.text == "")
    assert well.state == BlockState.RUNNING and not site.provider.trouble()
    site.provider.cancel(site.token, time.time())
    site.until(BlockState.ENDED)
