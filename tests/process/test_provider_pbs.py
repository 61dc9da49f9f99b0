"""The PBS provider against the fakes of qsub, qstat, qdel and qselect, and the ways in which a server misbehaves."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from balsamfut.provider.base import BlockSpec, BlockState, BlockStatus
from balsamfut.provider.batch import Pace
from balsamfut.provider.pbs import PbsProvider, PbsRules

if TYPE_CHECKING:
    from pbs_site import FakePbs

pytest_plugins = ("pbs_site",)

START = 1_000_000.0
PACE = Pace()


class Site:
    """A provider and its loop, on a clock that jumps to when the provider wants to be called."""

    def __init__(self, directory: Path, pace: Pace = PACE) -> None:
        self.directory = directory
        self.now = START
        self.provider = PbsProvider(PbsRules("select={nodes}:system=aurora", "scatter", "home:flare"), pace)
        self.news: list[BlockStatus] = []

    def spec(self, *argv: str, token: str = "bf-b1", **more: object) -> BlockSpec:
        return BlockSpec(token, argv, log=str(self.directory / "log" / f"{token}.log"), cwd=str(self.directory),
                         **more)  # type: ignore[arg-type]

    def bash(self, text: str, **more: object) -> str:
        return self.provider.submit(self.spec("/bin/bash", "-c", text, **more), self.now)

    def turn(self) -> list[BlockStatus]:
        """One turn of the loop: wait for a command that runs, or let time pass until something is due."""
        due = self.provider.due()
        limit = self.provider._commands.due()
        if due is not None and due <= self.now:
            pass
        elif limit is not None:
            assert select.select(self.provider.fds(), [], [], 15)[0], "a command hangs, and the test did not expect it"
        elif not select.select(self.provider.fds(), [], [], 0)[0]:
            assert due is not None, "nothing is awaited any more"
            self.now = due
        news = self.provider.poll(self.now)
        self.news += news
        return news

    def until(self, condition: Callable[[BlockStatus], bool] | BlockState, turns: int = 400) -> BlockStatus:
        """The next news of this kind or state; what came before it is in `news`."""
        test = condition if callable(condition) else lambda status: status.state == condition
        for _ in range(turns):
            for status in self.turn():
                if test(status):
                    return status
        raise AssertionError(f"nothing of the kind in {turns} turns: {self.news}")

    def pass_time(self, seconds: float) -> list[BlockStatus]:
        """What comes within so much time of the provider's clock."""
        before, end = len(self.news), self.now + seconds
        while (due := self.provider.due()) is not None and due < end:
            self.turn()
        return self.news[before:]


@pytest.fixture
def site(fake_pbs: FakePbs, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.provider.close()


def test_a_block_is_queued_runs_with_its_nodes_and_ends_with_its_exit_code(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("wait", "0.3")
    site.bash('cat "$PBS_NODEFILE"; echo "$SAID $tool"; exit 7', nodes=2, walltime=3600.0, queue="debug", project="P",
              environ=(("SAID", "it's"),), preamble='export tool=hammer-$version', params=(("version", "3"),))
    queued = site.until(BlockState.QUEUED)
    assert queued.id.startswith("1000.") and not queued.over
    fake_pbs.wait("F")
    ended = site.until(BlockState.ENDED)
    assert (ended.token, ended.id, ended.exit_code, ended.over) == ("bf-b1", queued.id, 7, True)
    assert ended.text.endswith("and failed")
    lines = (site.directory / "log" / "bf-b1.log").read_text().split()
    assert lines == ["x1000c0s0b0n0.hostmgmt.cm.aurora.lab", "x1000c0s1b0n0.hostmgmt.cm.aurora.lab", "it's", "hammer-3"]
    job = fake_pbs.jobs()[0]
    assert job["wants"] == {"select": "2:system=aurora", "place": "scatter", "walltime": "1:00:00",
                            "filesystems": "home:flare"}
    assert (job["queue"], job["account"], job["name"], job["rerunable"]) == ("debug", "P", "bf-b1", False)
