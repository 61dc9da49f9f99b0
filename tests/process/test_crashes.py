"""kill -9 of script, interchange and pilot at every numbered commit and send point: nothing is lost or run again.

The points are counted beforehand by a run that is left alone.  A killed interchange or pilot is replaced while the
script waits; a killed script is run again, or its campaign is resumed.  Marks that tasks leave in a file tell what ran.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from balsamfut import query
from balsamfut.model import TaskState

SCRIPT = Path(__file__).with_name("crash_campaign.py")
TASKS = {*(f"part{i}" for i in range(4)), *(f"shell{i}" for i in range(2)), "total"}
INTERCHANGE = ["interchange.commit.before", "interchange.commit.after", "interchange.send.before",
               "interchange.send.middle", "interchange.send.after"]
PILOT = ["pilot.launch", "pilot.report.before", "pilot.report.after"]
CLIENT = ["client.send.Submit:1", "client.send.Submit:2", "client.send.Bye:1"]


class Campaign:
    """The script, run in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.side = directory / "side"

    def run(self, argv: list[str], crash: str = "") -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "SIDE": str(self.side)}
        if crash:
            environ |= {"BALSAMFUT_CRASH": crash, "BALSAMFUT_CRASH_ONCE": str(self.directory / "crashed")}
        return subprocess.run([sys.executable, *argv], cwd=self.directory, env=environ, capture_output=True, text=True,
                              timeout=90, check=False)

    def script(self, crash: str = "") -> subprocess.CompletedProcess[str]:
        return self.run([str(SCRIPT)], crash)

    def marks(self) -> Counter[str]:
        return Counter(self.side.read_text().split()) if self.side.exists() else Counter()

    def states(self) -> dict[int, str]:
        with query.open_site(self.directory / ".balsamfut") as site:
            return {task.id: task.state for task in site.tasks()}

    def done_marks(self) -> set[str]:
        """The marks of the tasks that the record says are done."""
        names: set[str] = set()
        if not (self.directory / ".balsamfut" / "balsamfut.db").exists():
            return names
        with query.open_site(self.directory / ".balsamfut") as site:
            # The script calls its apps in one order, so the ids are in that order too.
            order = [*(f"part{i}" for i in range(4)), *(f"shell{i}" for i in range(2)), "total"]
            for task in site.tasks():
                if task.state == TaskState.DONE.name:
                    names.add(order[task.id - 1])
        return names

    def is_complete(self) -> None:
        assert self.states() == dict.fromkeys(range(1, 8), TaskState.DONE.name)
        assert set(self.marks()) == TASKS


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("point", INTERCHANGE)
def test_an_interchange_is_killed_and_the_script_goes_on(campaign: Campaign, point: str, count: int) -> None:
    result = campaign.script(f"{point}:{count}")
    assert (result.returncode, result.stdout) == (0, "TOTAL 16\n"), result.stderr
    campaign.is_complete()
    assert max(campaign.marks().values()) == 1, "the pilot kept its results, so nothing had to be run twice"


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("point", PILOT)
def test_a_pilot_is_killed_and_another_goes_on(campaign: Campaign, point: str, count: int) -> None:
    result = campaign.script(f"{point}:{count}")
    assert (result.returncode, result.stdout) == (0, "TOTAL 16\n"), result.stderr
    campaign.is_complete()


@pytest.mark.parametrize("again", ["script", "resume"])
@pytest.mark.parametrize("point", CLIENT)
def test_a_script_is_killed_and_its_campaign_goes_on(campaign: Campaign, point: str, again: str) -> None:
    killed = campaign.script(point)
    assert killed.returncode == -9 and (campaign.directory / "crashed").exists()
    done = campaign.done_marks()
    before = campaign.marks()
    if again == "script" or not (campaign.directory / ".balsamfut" / "balsamfut.db").exists():
        result = campaign.script()
        assert (result.returncode, result.stdout) == (0, "TOTAL 16\n"), result.stderr
        campaign.is_complete()
    else:
        result = campaign.run(["-m", "balsamfut", "resume", "--campaign", "crashes"])
        assert result.returncode == 0, result.stderr
        assert set(campaign.states().values()) <= {TaskState.DONE.name}
    after = campaign.marks()
    assert all(after[mark] == before[mark] == 1 for mark in done), "what was finished was run again"


def test_a_worker_is_killed_as_it_answers_and_only_its_task_is_charged(campaign: Campaign) -> None:
    result = campaign.script("worker.result:1")
    assert result.returncode == 1 and "WorkerLost" in result.stderr
    again = campaign.script()
    assert (again.returncode, again.stdout) == (0, "TOTAL 16\n"), again.stderr
    campaign.is_complete()
    assert sum(campaign.marks().values()) == len(TASKS) + 1, "only the task that was lost is run again"
