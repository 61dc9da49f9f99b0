"""A site whose batch system misbehaves: its interchange, its blocks, real pilots and a script that waits, against a PBS
that cannot be asked, answers nonsense, forgets jobs, holds them, or does not answer at all.

The site asks as often as its platform.toml says, sixty times as often as it would: ten minutes of the provider's time
are ten seconds.  No block that lives may be taken for over, no task may be lost or run twice, and people are to be told
once, and once more when it is over.
"""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scripts import start
from test_sites import balsamfut, told
from waiting import lines, unhurried, until

from balsamfut import connection, query
from balsamfut.infos import BlockInfo
from balsamfut.model import TaskState

if TYPE_CHECKING:
    from pbs_site import FakePbs

pytest_plugins = ("pbs_site",)
pytestmark = pytest.mark.timeout(240)

FASTER = 60.0
TEN_MINUTES = 600.0 / FASTER
BACK = "the batch system answers again"

SCRIPT = """
    import os, sys, time
    from balsamfut import Executor, app

    place = os.getcwd()

    @app
    def step(n: int, wait: bool) -> int:
        while wait and not os.path.exists(f"{place}/gate"):
            time.sleep(0.05)
        with open(f"{place}/marks", "a") as file:
            file.write(f"{n}\\n")
        return n

    with Executor("faults", site="faulty") as ex:
        waits = [step(n, True) for n in range(2)]
        rest = [step(n, False) for n in range(2, 22)]
        print("submitted", flush=True)
        sys.stdin.readline()
        more = [step(n, False) for n in range(22, 32)]
        print(sum(call.result() for call in [*waits, *rest, *more]), flush=True)
    """
DONE = str(sum(range(32)))


class FaultySite:
    """A site with PBS, a script that waits for its tasks, and what people see of them."""

    def __init__(self, place: Path, fake_pbs: FakePbs) -> None:
        self.place = place
        self.pbs = fake_pbs
        self.path = place / "site"
        self.script: subprocess.Popen[str] | None = None
        self.said = place / "said"

    def make(self, preamble: str = "", **pace: float) -> None:
        """Found and start it.  pace: seconds, before they are shortened."""
        assert balsamfut("site", "init", str(self.path), "-n", "faulty", "--platform", "workstation").returncode == 0
        asked = {"every": 15.0, "soon": 2.0, "explain": 30.0, "retry": 5.0, "most": 120.0, "patience": 60.0,
                 "timeout": 900.0, **pace}
        (self.path / "platform.toml").write_text('[node]\ncores = "0-3"\nnuma = ["0-3"]\n[scheduler.pace]\n' + "".join(
            f"{name} = {seconds / FASTER}\n" for name, seconds in asked.items()))
        text = (self.path / "settings.toml").read_text().replace("# pretend = false", "pretend = true")
        text = text.replace('# provider = ""', 'provider = "pbs"')
        text = text.replace('# preamble = ""', f'preamble = "{preamble}"')
        assert 'provider = "pbs"' in text and "pretend = true" in text and "\npreamble = " in text
        (self.path / "settings.toml").write_text(text)
        self.start()

    def start(self) -> None:
        assert told("site", "start", "faulty")["new"]

    def submit(self) -> int:
        number = told("queue", "submit", "--site", "faulty", "-n", "1", "-t", "30")["id"]
        assert isinstance(number, int)
        return number

    def ls(self) -> dict[int, BlockInfo]:
        """All blocks, by number, as `queue ls` has them."""
        with query.open_site(self.path) as reader:
            return {each.id: each for each in reader.blocks(history=True)}

    def until(self, state: str, block: int = 1, text: str = "", seconds: float = 30.0) -> BlockInfo:
        """The block as soon as it is in this state, with this in its text."""
        def so() -> bool:
            found = self.ls()[block]
            return found.state == state and text in found.text

        until(so, f"block {block} is {state!r} {text!r}", seconds)
        return self.ls()[block]

    # ---- the script that waits

    def play(self) -> None:
        """Start the script; its first tasks wait for the gate, its last ones for `more`."""
        source = textwrap.dedent(SCRIPT)
        with open(self.said, "w") as said:
            self.script = start(source, self.place, err=said)
        assert self.script.stdout is not None and self.script.stdout.readline() == "submitted\n"

    def works(self, number: int = 20) -> None:
        """Wait until so many tasks are done."""
        until(lambda: len(self.marks()) >= number, f"{number} tasks are done", 60.0)

    def more(self) -> None:
        """Let the script submit more tasks."""
        assert self.script is not None and self.script.stdin is not None
        self.script.stdin.write("\n")
        self.script.stdin.flush()

    def marks(self) -> list[str]:
        return lines(self.place / "marks")

    def finish(self, seconds: float = 60.0, again: int = 0) -> None:
        """Let all tasks go; each has run once, and is recorded done once.  again: tasks that had to be begun anew."""
        (self.place / "gate").touch()
        assert self.script is not None
        out, _ = self.script.communicate("\n", seconds)
        assert (self.script.returncode, out.strip()) == (0, DONE), self.said.read_text()
        assert sorted(map(int, self.marks())) == list(range(32)), "each once"
        with query.open_site(self.path) as reader:
            tasks = reader.tasks()
            assert Counter(task.state for task in tasks) == {TaskState.DONE.name: 32}
            assert sum(len(reader.task(task.id).attempts) > 1 for task in tasks) == again

    # ---- what people see

    def heard(self, words: str) -> int:
        """How often the script was told this."""
        return sum(words in line for line in lines(self.said))

    def logged(self, words: str) -> int:
        return sum(words in line for line in lines(self.path / "log" / "interchange.log"))

    def told_once(self, *sayings: str) -> None:
        """The script and the log have these once each; the script has heard nothing else."""
        until(lambda: all(self.heard(words) for words in sayings), f"the script hears {sayings}")
        assert [(self.heard(words), self.logged(words)) for words in sayings] == [(1, 1)] * len(sayings)
        assert len(lines(self.said)) == len(sayings), self.said.read_text()

    def lost_pilots(self) -> list[str]:
        with query.open_site(self.path) as reader:
            return [pilot.reason for pilot in reader.pilots() if pilot.ended is not None]

    def close(self) -> None:
        if self.script is not None and self.script.poll() is None:
            self.script.kill()
            self.script.communicate()
        balsamfut("site", "stop", "faulty")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_pbs: FakePbs) -> Iterator[FaultySite]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("BALSAMFUT_INTERCHANGE_LINGER", raising=False)
    made = FaultySite(tmp_path, fake_pbs)
    yield made
    made.close()


def pass_while(condition: Callable[[], object], seconds: float) -> None:
    """Time passes, and something is so all the while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition()
        time.sleep(0.2)


def test_a_server_that_is_down_for_ten_minutes_changes_nothing_and_is_told_once(site: FaultySite) -> None:
    site.make()
    site.submit()
    site.play()
    site.works()
    site.pbs.tell("wait", "1000")
    site.submit()
    site.until("queued", 2)
    site.pbs.tell("down")
    until(lambda: site.heard("cannot connect to server"), "it is told")
    third = site.submit()
    calls, submitted = len(site.pbs.calls("qstat")), len(site.pbs.calls("qsub"))
    site.more()
    pass_while(lambda: [each.state for each in site.ls().values()] == ["running", "queued", "submitting"],
               TEN_MINUTES)
    assert 3 <= len(site.pbs.calls("qstat")) - calls <= 12, "it is asked less and less often"
    site.works(30)
    shown = site.ls()
    assert all("cannot connect to server" in each.text for each in shown.values())
    assert balsamfut("queue", "ls", "--site", "faulty").stdout.count("cannot connect to server") == 3
    assert shown[third].text.startswith("it will be asked for when the batch system answers again")
    assert len(site.pbs.calls("qsub")) == submitted, "nothing is submitted meanwhile"
    site.pbs.untell("wait")
    site.pbs.untell("down")
    site.until("running", third)
    site.pbs.release()
    until(lambda: all(each.text == "" for each in site.ls().values()), "nobody speaks of it any more")
    site.told_once("cannot connect to server", BACK)
    site.finish()
    assert site.lost_pilots() == [] and len(site.pbs.calls("qsub")) == 3


def test_a_pilot_that_dies_while_the_server_is_down_is_over_when_the_server_says_so(site: FaultySite) -> None:
    site.make()
    site.submit()
    site.play()
    site.works()
    site.pbs.tell("down")
    until(lambda: site.heard("cannot connect to server"), "it is told")
    os.killpg(site.pbs.jobs()[0]["session"], signal.SIGKILL)
    site.pbs.wait("F", 0)
    calls = len(site.pbs.calls("qstat"))
    until(lambda: len(site.pbs.calls("qstat")) > calls + 1, "it was asked again")
    assert site.ls()[1].state == "running", "nobody knows"
    site.pbs.untell("down")
    site.until("ended", 1)
    site.submit()
    site.told_once("cannot connect to server", BACK)
    assert len(site.lost_pilots()) == 1
    (site.place / "gate").touch()
    site.more()
    assert site.script is not None
    out, _ = site.script.communicate(timeout=60)
    assert out.strip() == DONE and sorted(map(int, site.marks())) == list(range(32))
    with query.open_site(site.path) as reader:
        assert Counter(task.state for task in reader.tasks()) == {TaskState.DONE.name: 32}
        assert [attempt.fault for attempt in reader.task(1).attempts] == ["pilot", "none"], "not charged"


def test_an_interchange_that_is_killed_while_the_server_is_down_is_followed_by_one_that_keeps_all(
        site: FaultySite) -> None:
    site.make()
    site.submit()
    site.play()
    site.works()
    site.pbs.tell("down")
    until(lambda: site.heard("cannot connect to server"), "it is told")
    waits = site.submit()
    assert site.script is not None
    site.script.kill()
    site.script.communicate()
    found = connection.read(site.path)
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: not connection.runs(found.pid))
    site.start()
    site.play()
    site.more()
    site.works(30)
    assert [each.state for each in site.ls().values()] == ["running", "submitting"]
    site.pbs.untell("down")
    site.until("running", waits)
    assert len(site.pbs.calls("qsub")) == 2, "it was asked for after all"
    site.finish()
    assert site.lost_pilots() == []


def test_damaged_json_disturbs_nobody(site: FaultySite) -> None:
    site.make()
    site.pbs.tell("garbage", '{"Jobs": {"1000.x": {"A":00}}}')
    site.pbs.tell("wait", "2")
    site.submit()
    site.play()
    site.works()
    site.until("running")
    site.finish()
    balsamfut("queue", "rm", "--site", "faulty", "1")
    assert site.until("ended").text.endswith("and finished"), "read from the text"
    assert lines(site.said) == []


def test_a_job_that_is_unknown_for_a_while_is_not_over(site: FaultySite) -> None:
    site.make(patience=3600.0)
    site.submit()
    site.play()
    site.works()
    site.pbs.tell("forget", "*")
    calls = len(site.pbs.calls("qstat"))
    until(lambda: len(site.pbs.calls("qstat")) > calls + 8, "it was unknown at some looks")
    site.more()
    site.works(30)
    assert site.ls()[1].state == "running"
    site.pbs.untell("forget")
    site.finish()
    assert lines(site.said) == [] and site.lost_pilots() == []


def test_a_submission_that_got_no_answer_is_looked_up_and_told_once(site: FaultySite) -> None:
    site.make(timeout=120.0)
    site.pbs.tell("hang-after", "qsub")
    site.play()
    site.submit()
    site.until("submitting", text="qsub did not answer within 2 s")
    site.pbs.untell("hang-after")
    site.until("running")
    site.works()
    site.told_once("block 1 is not submitted yet: qsub did not answer within 2 s", "block 1 is in the queue now")
    site.finish()
    assert [call.split()[0] for call in site.pbs.calls()[:2]] == ["qsub", "qselect"]
    assert len(site.pbs.jobs()) == 1


def test_a_qsub_that_hangs_holds_up_neither_the_site_nor_other_blocks(site: FaultySite) -> None:
    site.make(timeout=180.0)
    site.submit()
    site.play()
    site.works()
    site.pbs.tell("hang", "qsub")
    site.submit()
    site.more()
    site.works(30)
    site.until("submitting", 2, "qsub did not answer within 3 s")
    assert site.ls()[1].state == "running"
    site.pbs.untell("hang")
    site.until("running", 2)
    site.told_once("block 2 is not submitted yet: qsub did not answer within 3 s", "block 2 is in the queue now")
    site.finish()
    assert len(site.pbs.jobs()) == 2


@pytest.mark.parametrize("how", ["hang", "refuse-qdel"])
def test_a_qdel_that_fails_is_tried_again_until_a_block_that_hangs_is_ended(site: FaultySite, how: str) -> None:
    site.make(timeout=120.0)
    site.submit()
    site.play()
    site.works()
    with query.open_site(site.path) as reader:
        pilot, = reader.pilots()
    os.kill(pilot.pid, signal.SIGSTOP)
    site.pbs.tell(how, "qdel" if how == "hang" else "159 Unauthorized Request")
    for _ in range(2):
        assert balsamfut("queue", "rm", "--site", "faulty", "1").returncode == 0
    until(lambda: site.pbs.calls("qdel"))
    if how == "refuse-qdel":
        site.until("removing", text="it cannot be ended: Unauthorized Request")
        site.told_once("block 1 does not end: it cannot be ended: Unauthorized Request")
    site.pbs.untell(how)
    if how == "refuse-qdel":
        assert balsamfut("queue", "rm", "--site", "faulty", "1").returncode == 0, "a person asks again"
    site.until("ended")
    site.submit()
    site.finish(again=2)


def killed(site: FaultySite) -> None:
    """The interchange dies without a word, and another takes its place."""
    found = connection.read(site.path)
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: not connection.runs(found.pid))
    site.start()


def remove(site: FaultySite, number: int = 1) -> None:
    assert balsamfut("queue", "rm", "--site", "faulty", str(number)).returncode == 0
    assert site.ls()[number].state == "removing"


@pytest.mark.parametrize("how", ["down", "hang"])
def test_a_block_that_is_removed_while_pbs_is_silent_is_ended_by_the_next_interchange(
        site: FaultySite, how: str) -> None:
    site.make(timeout=120.0)
    site.pbs.tell("wait", "1000")
    site.submit()
    site.until("queued")
    site.pbs.tell(how, "" if how == "down" else "qdel")
    remove(site)
    until(lambda: site.pbs.calls("qdel"))
    killed(site)
    asked = len(site.pbs.calls("qdel"))
    until(lambda: len(site.pbs.calls("qdel")) > asked + 1, "it is asked again and again", 60.0)
    assert site.ls()[1].state == "removing" and " removing " in balsamfut("queue", "ls", "--site", "faulty").stdout
    site.pbs.untell(how)
    site.until("ended", seconds=60.0)
    assert set(site.pbs.calls("qdel")) == {f"qdel {site.pbs.jobs()[0]['id']}"}, "one id each time"
    assert site.pbs.jobs()[0]["state"] == "F" and len(site.pbs.calls("qsub")) == 1


def test_a_submission_in_flight_when_its_block_is_removed_is_looked_up_and_deleted_by_the_next_interchange(
        site: FaultySite) -> None:
    site.make()
    site.pbs.tell("wait", "1000")
    site.pbs.tell("hang-after", "qsub")
    site.submit()
    until(site.pbs.jobs, "PBS has the job, and qsub does not return")
    remove(site)
    site.pbs.tell("down")
    killed(site)
    assert site.ls()[1].state == "removing" and site.ls()[1].batch_id == ""
    site.pbs.untell("hang-after")
    site.pbs.untell("down")
    site.until("ended", seconds=60.0)
    assert site.pbs.wait("F", 0)["id"] == site.ls()[1].batch_id and len(site.pbs.calls("qsub")) == 1


def test_a_block_that_is_removed_before_it_was_submitted_never_is(site: FaultySite) -> None:
    site.make()
    site.pbs.tell("wait", "1000")
    first = site.submit()
    site.until("queued", first)
    site.pbs.tell("down")
    until(lambda: "cannot connect" in site.ls()[first].text)
    waits, removed = site.submit(), site.submit()
    assert balsamfut("queue", "rm", "--site", "faulty", str(removed)).returncode == 0
    assert site.ls()[removed].state == "refused"
    killed(site)
    site.pbs.untell("down")
    site.until("queued", waits, seconds=60.0)
    assert len(site.pbs.calls("qsub")) == 2 and site.ls()[removed].state == "refused"


def test_a_submission_that_never_reached_pbs_is_not_tried_again_once_its_block_is_removed(site: FaultySite) -> None:
    site.make()
    site.pbs.tell("hang", "qsub")
    site.submit()
    until(lambda: site.pbs.calls("qsub"))
    remove(site)
    killed(site)
    assert site.until("refused", seconds=60.0).text == "it was cancelled before PBS had taken it"
    assert len(site.pbs.calls("qsub")) == 1
    site.pbs.untell("hang")      # the command that nobody waits for any more goes on: its job ends with this test
    until(site.pbs.jobs, "what hung is done after all")


def test_a_block_whose_preamble_hangs_is_told_once_with_the_end_of_its_output(
        site: FaultySite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAMFUT_PILOT_LATE", "3")
    site.make(preamble="echo loading modules; while [ ! -e ../gate ]; do sleep 0.1; done")
    site.submit()
    site.play()
    said = "block 1 runs, but its pilot is not there after "
    until(lambda: site.heard(said), "it is told", 60.0)
    assert site.heard(f" s: {site.path}/log/pilot-1.log ends: loading modules") == 1
    shown = balsamfut("queue", "ls", "--site", "faulty", "-v").stdout
    assert said.removeprefix("block 1 runs, but ") in shown and f"{site.path}/log/pilot-1.log\n" in shown
    (site.place / "gate").touch()
    site.works()
    site.told_once(said, "block 1 works: its pilot is there now")
    assert "not there" not in balsamfut("queue", "ls", "--site", "faulty").stdout
    site.finish()


def test_a_block_whose_script_fails_is_told_with_the_end_of_its_output(site: FaultySite) -> None:
    site.make(preamble="echo no environment here; exit 3")
    site.play()
    site.submit()
    said = f"{site.path}/log/pilot-1.log ends: no environment here"
    until(lambda: site.heard("block 1 ended before its pilot was there") and site.heard(said), "it is told", 60.0)
    site.told_once(said)
    assert said in balsamfut("queue", "ls", "--site", "faulty", "--history").stdout


def test_a_held_job_is_told_once_in_pbs_s_words_and_once_when_it_is_released(site: FaultySite) -> None:
    site.make()
    site.pbs.tell("hold", "job held by a person")
    site.play()
    site.submit()
    site.until("queued", text="held (u): job held by a person")
    calls = len(site.pbs.calls("qstat"))
    until(lambda: len(site.pbs.calls("qstat")) > calls + 6, "it was looked at again")
    site.pbs.untell("hold")
    site.pbs.release()
    site.until("running")
    site.works()
    ends = ("block 1 runs now", "block 1 is in the queue now")       # as it is when it is looked at
    until(lambda: any(map(site.heard, ends)), "it is told that the block is held no more")
    site.told_once("block 1 does not start: held (u): job held by a person", next(filter(site.heard, ends)))
    site.finish()


def test_a_block_that_starts_while_the_site_is_stopped_waits_for_it(site: FaultySite) -> None:
    site.make()
    site.pbs.tell("hold", "until the site is stopped")
    site.play()
    site.submit()
    site.until("queued", text="held")
    assert balsamfut("site", "stop", "faulty").returncode == 0
    site.pbs.untell("hold")
    site.pbs.release()
    log = site.path / "log" / "pilot-1.log"
    until(lambda: any("is running: waiting for one" in line for line in lines(log)), "the pilot waits")
    site.start()
    site.works()
    site.finish()
    assert {each.state for each in site.ls().values()} == {"running"}


def test_a_job_that_vanishes_after_routing_is_told_once_and_its_tasks_wait_for_another(site: FaultySite) -> None:
    site.make()
    site.pbs.tell("queues.json", {"workq": {"routing": True, "bands": [{"name": "small", "nodes": [2, 4]}]}})
    site.play()
    for number in (1, 2, 3):
        site.submit()
        assert "Unknown Job Id" in site.until("refused", number).text
    site.pbs.untell("queues.json")
    site.submit()
    site.works()
    site.told_once(*(f"block {number} was refused: Unknown Job Id" for number in (1, 2, 3)))
    site.finish()
    assert Counter(each.state for each in site.ls().values()) == {"refused": 3, "running": 1}


def test_a_job_that_pbs_puts_back_in_the_queue_is_the_same_block_when_it_runs(site: FaultySite) -> None:
    site.make()
    site.pbs.tell("wait", "1000")
    site.play()
    site.submit()
    site.until("queued")
    site.pbs.edit(0, state="R")      # PBS tries to start it ...
    site.until("running")
    site.pbs.edit(0, state="H", holds="s", comment="job held, too many failed attempts to run")
    site.until("queued", text="held (s): job held, too many failed attempts to run")
    site.pbs.edit(0, state="Q", waits=0.0, comment="", holds="n")
    site.until("running")
    site.works()
    site.told_once("block 1 does not start: held (s)", "block 1 runs now")
    site.finish()
    assert len(site.ls()) == 1


CLOCK = """
import os, time
_time = time.time
time.time = lambda: _time() + (0.0 if os.path.exists({place!r} + "/set right") else {ahead})
"""


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_a_node_whose_clock_is_an_hour_off_works_and_the_times_in_the_database_are_sane(
        site: FaultySite, ahead: float) -> None:
    (site.place / "clock").mkdir()
    (site.place / "clock" / "sitecustomize.py").write_text(CLOCK.format(place=str(site.place), ahead=ahead))
    began = time.time()
    site.make(f"export PYTHONPATH={site.place / 'clock'}")
    site.submit()
    site.play()
    site.works()
    (site.place / "set right").touch()      # an hour's jump in the other direction
    site.more()
    site.works(30)
    assert site.ls()[1].state == "running"
    site.finish()
    with query.open_site(site.path) as reader:
        for task in reader.tasks():
            assert task.started is not None and task.ended is not None
            assert began <= task.submitted <= task.started <= task.ended <= time.time()
            assert task.ended - task.started < time.time() - began
    assert lines(site.said) == [] and site.lost_pilots() == []


LONG = """
    from balsamfut import Executor, app

    @app.shell("trap 'exit 0' TERM; while [ ! -e go.$BALSAMFUT_ATTEMPT ]; do sleep 0.1 & wait $!; done; "
               "echo $BALSAMFUT_ATTEMPT", workdir="counts", checkpoint=True, stop_grace=2)
    def counts(): ...

    with Executor("faults", site="faulty"):
        print("submitted", flush=True)
        print(counts().result().stdout.read_text(), end="")
    """


def test_a_block_is_over_before_pbs_ends_it_and_its_task_goes_on_in_the_next(site: FaultySite) -> None:
    site.make()
    with open(site.said, "w") as said:
        site.script = start(textwrap.dedent(LONG), site.place, err=said)
    for number in (1, 2):
        minutes = f"{unhurried(12.0) / 60:.3f}"
        assert told("queue", "submit", "--site", "faulty", "-n", "1", "-t", minutes)["id"] == number
        assert site.until("ended", number).exit_code == 0
        job = site.pbs.jobs()[-1]
        assert job["exit_status"] == 0 and "walltime" not in job["comment"], job
        (site.path / "data" / "counts" / "go.2").touch()
    out, _ = site.script.communicate(timeout=30)
    assert out == "submitted\n2\n"
    assert site.lost_pilots() == ["its block has come to its end"] * 2
