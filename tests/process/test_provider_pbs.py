"""The PBS provider against the fakes of qsub, qstat, qdel and qselect, and the ways in which a server misbehaves."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from balsamfut.provider.base import BlockSpec, BlockState, BlockStatus
from balsamfut.provider.pace import Pace
from balsamfut.provider.pbs import PbsProvider, PbsRules

if TYPE_CHECKING:
    from pbs_site import FakePbs

pytest_plugins = ("pbs_site",)

START = 1_000_000.0
PACE = Pace(every=30.0)


class Site:
    """A provider and its loop, on a clock that jumps to when the provider wants to be called."""

    def __init__(self, directory: Path, pace: Pace = PACE) -> None:
        self.directory = directory
        self.now = START
        self.provider = PbsProvider(PbsRules("select={nodes}:system=aurora", "scatter", "home:flare"), pace)
        self.news: list[BlockStatus] = []
        self._unread: list[BlockStatus] = []

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
        self._unread += news
        return news

    def until(self, condition: Callable[[BlockStatus], bool] | BlockState, turns: int = 400) -> BlockStatus:
        """The next news of this kind or state; what came before it is in `news` only."""
        test = condition if callable(condition) else lambda status: status.state == condition
        for _ in range(turns):
            while self._unread:
                if test(status := self._unread.pop(0)):
                    return status
            self.turn()
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


def test_all_blocks_are_looked_at_by_one_cheap_question_and_the_full_one_is_about_what_ended(
        site: Site, fake_pbs: FakePbs) -> None:
    ids = {}
    for n in range(3):
        site.bash(f"until [ -e done{n} ]; do sleep 0.05; done", token=f"bf-b{n}", walltime=3600.0)
        running = site.until(BlockState.RUNNING)
        ids[running.token] = running.id
    before = len(fake_pbs.calls())
    site.pass_time(5 * PACE.every)
    assert set(fake_pbs.calls()[before:]) == {f"qstat {' '.join(ids.values())}"}
    assert len(fake_pbs.calls()) - before <= 6, "more than one question in a period"
    (site.directory / "done1").touch()
    fake_pbs.wait("F", 1)
    ended = site.until(BlockState.ENDED)
    assert (ended.token, ended.exit_code) == ("bf-b1", 0)
    assert [call for call in fake_pbs.calls() if " -x " in call] == [f"qstat -x -f -F json {ids['bf-b1']}"]


@pytest.mark.parametrize("blocks", [1, 20])
def test_blocks_that_wait_cost_the_login_node_the_same_however_many_they_are(
        site: Site, fake_pbs: FakePbs, blocks: int) -> None:
    site.provider.close()
    site.provider = PbsProvider(pace=Pace())
    fake_pbs.tell("wait", "1000")
    for n in range(blocks):
        site.bash("true", token=f"bf-{n}", walltime=3600.0)
        site.pass_time(5.0)
    site.pass_time(150.0)
    before, began = len(fake_pbs.calls()), site.now
    assert site.pass_time(600.0) == []
    commands = [call.split()[:2] for call in fake_pbs.calls()[before:]]
    assert {command[0] for command in commands} == {"qstat"}
    full = commands.count(["qstat", "-f"])
    assert full == pytest.approx((site.now - began) / 120.0, abs=1.0), "why they wait"
    assert len(commands) - full == pytest.approx((site.now - began) / 15.0, abs=1.0), "how they are"


def test_a_cancelled_block_gets_sigterm_then_sigkill_and_its_end_is_told(site: Site, fake_pbs: FakePbs) -> None:
    site.bash("trap 'echo got it' TERM; touch up; while :; do sleep 0.1; done", walltime=600.0)
    site.until(BlockState.RUNNING)
    await_file(site.directory / "up")
    site.provider.cancel("bf-b1", site.now)
    ended = site.until(BlockState.ENDED, turns=2000)
    assert ended.exit_code == -15 and "terminated by" in ended.text
    assert "got it" in (site.directory / "log" / "bf-b1.log").read_text()
    assert fake_pbs.calls("qdel") == [f"qdel {ended.id}"], "one id, once"


def test_cancel_may_be_repeated_at_every_turn(site: Site, fake_pbs: FakePbs) -> None:
    site.bash("trap '' TERM; touch up; while :; do sleep 0.1; done", walltime=600.0)
    site.until(BlockState.RUNNING)
    await_file(site.directory / "up")
    while not any(status.over for status in site.news):
        site.provider.cancel("bf-b1", site.now)
        site.turn()
    # Its walltime on the test's clock is long over; on the real one a second passed.
    waited = site.now - START
    assert len(fake_pbs.calls("qdel")) <= 2 + waited / PACE.timeout


def test_a_block_whose_first_node_is_lost_is_ended_by_force(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("mom-lost")
    site.bash("sleep 300", walltime=600.0)
    running = site.until(BlockState.RUNNING)
    site.provider.cancel("bf-b1", site.now)
    assert site.until(BlockState.ENDED).exit_code == -9
    assert fake_pbs.calls("qdel") == [f"qdel {running.id}", f"qdel -W force {running.id}"]


def test_a_block_that_is_cancelled_while_it_waits_has_no_exit_code(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("wait", "1000")
    site.bash("true")
    site.until(BlockState.QUEUED)
    site.provider.cancel("bf-b1", site.now)
    ended = site.until(BlockState.ENDED)
    assert ended.exit_code is None and "never ran" in ended.text


def test_the_walltime_is_pbs_s_to_enforce_and_is_told_by_name(site: Site, fake_pbs: FakePbs) -> None:
    site.bash("sleep 300", walltime=1.0)
    ended = site.until(BlockState.ENDED, turns=2000)
    assert ended.exit_code is None and "JOB_EXEC_KILL_WALLTIME" in ended.text and not ended.again
    assert "=>> PBS: job killed: walltime" in (site.directory / "log" / "bf-b1.log").read_text()


def test_a_fault_of_the_machine_is_told_as_one_that_may_pass(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("lose", "-20")
    site.bash("true")
    ended = site.until(BlockState.ENDED)
    assert ended.again and ended.exit_code is None and "first node was lost" in ended.text


@pytest.mark.parametrize(("code", "text", "again"), [
    (188, "Job violates queue and/or server resource limits", False),
    (38, "would exceed queue generic's per-user limit", True),
    (32, "filesystems resource must be specified\nexample: -l filesystems=home:flare", False),
    (173, "Queue is not enabled", True),
])
def test_a_refusal_is_told_in_pbs_s_words_and_not_repeated(site: Site, fake_pbs: FakePbs, code: int, text: str,
                                                          again: bool) -> None:
    fake_pbs.tell("refuse", f"{code} {text}")
    site.bash("true")
    refused = site.until(BlockState.REFUSED)
    assert (refused.text, refused.again, refused.id) == (text.replace("\n", " "), again, "")
    assert site.provider.due() is None and len(fake_pbs.calls()) == 1


def test_limits_of_the_queue_are_the_servers_to_judge(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("queues.json", {"debug": {"nodes": [1, 2], "walltime": [300, 3600], "max_queued": 1}})
    fake_pbs.tell("wait", "1000")
    for token, queue, nodes in (("bf-1", "debug", 2), ("bf-2", "debug", 1), ("bf-3", "debug", 3), ("bf-4", "dbg", 1)):
        site.bash("true", token=token, queue=queue, nodes=nodes, walltime=600.0)
        site.until(lambda status: status.token == token and status.state > BlockState.SUBMITTING)  # noqa: B023
    texts = {status.token: status.text for status in site.news if status.state == BlockState.REFUSED}
    assert texts == {"bf-2": "would exceed queue generic's per-user limit",
                     "bf-3": "Job violates queue and/or server resource limits", "bf-4": "Unknown queue"}


def test_a_job_that_no_queue_behind_a_routing_queue_takes_is_told_refused_in_pbs_s_words(
        site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("queues.json", {"prod": {"routing": True, "bands": [{"name": "small", "nodes": [2, 3]}]}})
    site.bash("sleep 300", token="bf-fits", queue="prod", nodes=2)
    site.bash("true", token="bf-wide", queue="prod", nodes=9)
    refused = site.until(BlockState.REFUSED)
    assert refused.token == "bf-wide" and refused.id
    assert f"Unknown Job Id {refused.id}" in refused.text and "'prod'" in refused.text
    assert site.now - START >= PACE.patience
    assert fake_pbs.wait("R", 0)["queue"] == "small"


def test_a_held_job_and_one_that_can_never_run_say_so(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("hold", "job held, too many failed attempts to run")
    site.bash("true", token="bf-held")
    site.until(lambda status: bool(status.id))
    fake_pbs.untell("hold")
    fake_pbs.tell("never", "Can Never Run: Insufficient amount of server resource: eagle_fs")
    site.bash("true", token="bf-never")
    told = {site.until(lambda status: bool(status.text)).token: site.news[-1].text for _ in range(2)}
    assert told == {"bf-held": "held (u): job held, too many failed attempts to run",
                    "bf-never": "Can Never Run: Insufficient amount of server resource: eagle_fs"}
    fake_pbs.release()
    fake_pbs.wait("F", 0)
    fake_pbs.wait("F", 1)
    ended = {site.until(BlockState.ENDED).token for _ in range(2)}
    assert ended == {"bf-held", "bf-never"}


def test_a_server_that_is_down_for_ten_minutes_changes_nothing_and_is_told_once(site: Site, fake_pbs: FakePbs) -> None:
    site.bash("until [ -e done ]; do sleep 0.05; done; exit 3", token="bf-run", walltime=3600.0)
    site.until(BlockState.RUNNING)
    fake_pbs.tell("wait", "1000")
    site.bash("true", token="bf-wait")
    site.until(lambda status: status.token == "bf-wait" and status.state == BlockState.QUEUED)
    fake_pbs.tell("down")
    calls = len(fake_pbs.calls())
    told = site.pass_time(600.0)
    assert {status.token: status.state for status in told} == {"bf-run": BlockState.RUNNING,
                                                               "bf-wait": BlockState.QUEUED}
    assert len(told) == 2 and all("cannot connect to server" in status.text for status in told)
    assert "cannot connect to server" in site.provider.trouble()
    assert len(fake_pbs.calls()) - calls < 12, "it is asked less and less often"
    (site.directory / "done").touch()
    fake_pbs.wait("F", 0)
    fake_pbs.untell("down")
    assert site.until(BlockState.ENDED).exit_code == 3
    assert site.until(lambda status: status.text == "").token == "bf-wait"
    assert site.provider.trouble() == ""


def test_a_server_that_hangs_holds_nobody_up(site: Site, fake_pbs: FakePbs) -> None:
    site.bash("sleep 300", walltime=3600.0)
    site.until(BlockState.RUNNING)
    fake_pbs.tell("hang", "qstat")
    site.now = site.provider.due() or 0.0
    assert site.provider.poll(site.now) == []    # it returns, and the command runs
    await_calls(fake_pbs, "qstat", len(fake_pbs.calls("qstat")))
    assert site.provider.due() == site.now + PACE.timeout
    site.now += PACE.timeout
    told = site.provider.poll(site.now)
    assert [(status.state, status.text) for status in told] == [
        (BlockState.RUNNING, f"qstat did not answer within {PACE.timeout:g} s")]
    fake_pbs.untell("hang")
    assert site.until(lambda status: True).text == ""


def test_garbage_for_json_is_asked_for_again_as_text(site: Site, fake_pbs: FakePbs) -> None:
    for garbage in ("", "{", "null", '{"Jobs": {"1000.x": {"A":00}}}', "<html>502</html>"):
        fake_pbs.tell("garbage", garbage)
        token = f"bf-{len(fake_pbs.jobs())}"
        site.bash("exit 5", token=token)
        fake_pbs.wait("F")
        ended = site.until(lambda status: status.over)
        assert (ended.token, ended.state, ended.exit_code) == (token, BlockState.ENDED, 5)


def test_an_unknown_job_is_not_over_until_that_was_the_answer_for_a_while(site: Site, fake_pbs: FakePbs) -> None:
    site.bash("sleep 300", walltime=3600.0)
    site.until(BlockState.RUNNING)
    fake_pbs.tell("forget", "*")
    assert site.pass_time(PACE.patience * 0.8) == []
    fake_pbs.untell("forget")
    assert site.pass_time(2 * PACE.every) == []
    fake_pbs.tell("forget", "*")
    assert site.pass_time(PACE.patience * 0.8) == [], "an answer between starts the patience anew"
    ended = site.until(lambda status: status.over)
    assert ended.state == BlockState.ENDED and ended.exit_code is None and "Unknown Job Id" in ended.text


def test_a_site_that_keeps_no_history_is_understood(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("no-history")
    site.bash("until [ -e done ]; do sleep 0.05; done", walltime=3600.0)
    site.until(BlockState.RUNNING)
    assert site.pass_time(200.0) == []
    (site.directory / "done").touch()
    fake_pbs.wait("F")
    ended = site.until(lambda status: status.over)
    assert ended.state == BlockState.ENDED and ended.exit_code is None and "job history" in ended.text


def test_a_submission_that_got_no_answer_is_looked_up_and_not_repeated(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("hang-after", "qsub")
    site.bash("sleep 300", walltime=3600.0)
    fake_pbs.wait("R")
    site.now += PACE.timeout
    assert "did not answer" in site.until(lambda status: bool(status.text)).text
    fake_pbs.untell("hang-after")
    assert site.until(BlockState.QUEUED).id == fake_pbs.jobs()[0]["id"]
    assert len(fake_pbs.jobs()) == 1
    assert [call.split()[0] for call in fake_pbs.calls()[:2]] == ["qsub", "qselect"]


def test_a_job_that_was_submitted_by_a_qsub_that_says_it_failed_is_found(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("lose-answer", "1 the accounting of this site is away")
    site.bash("sleep 300", walltime=3600.0)
    assert site.until(BlockState.QUEUED).id == fake_pbs.jobs()[0]["id"]
    assert [call.split()[0] for call in fake_pbs.calls()[:2]] == ["qsub", "qselect"]
    assert not any(status.over for status in site.news)


def test_what_the_client_itself_refuses_is_refused_once_nothing_is_found(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("refuse", "1 cannot send environment with the job")
    site.bash("true")
    refused = site.until(BlockState.REFUSED)
    assert (refused.text, refused.again) == ("cannot send environment with the job", False)
    assert [call.split()[0] for call in fake_pbs.calls()] == ["qsub", "qselect"]
    assert site.provider.due() is None


def test_a_submission_that_was_never_made_is_made_again_after_two_looks(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("hang", "qsub")
    site.bash("sleep 300", walltime=3600.0)
    await_calls(fake_pbs, "qsub", 1)
    site.now += PACE.timeout
    site.until(lambda status: "did not answer" in status.text)
    fake_pbs.untell("hang")
    site.until(BlockState.QUEUED)
    assert [call.split()[0] for call in fake_pbs.calls()[:4]] == ["qsub", "qselect", "qselect", "qsub"]
    assert len(fake_pbs.jobs()) == 1


def test_a_submission_waits_for_a_server_that_is_down_and_can_be_cancelled_meanwhile(
        site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("down")
    site.bash("true", token="bf-kept")
    site.bash("true", token="bf-dropped")
    told = site.pass_time(600.0)
    assert all(status.state == BlockState.SUBMITTING for status in told)
    assert [sum(status.token == token for status in told) for token in ("bf-kept", "bf-dropped")] == [2, 2]
    site.provider.cancel("bf-dropped", site.now)
    fake_pbs.untell("down")
    assert site.until(lambda status: status.token == "bf-dropped" and status.over).state == BlockState.REFUSED
    assert site.until(lambda status: status.token == "bf-kept" and status.over).exit_code == 0
    assert [job["name"] for job in fake_pbs.jobs()] == ["bf-kept"]


def test_a_submission_that_is_cancelled_before_it_was_answered_is_ended_once_it_is_found(
        site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("hang-after", "qsub")
    site.bash("sleep 300", walltime=3600.0)
    fake_pbs.wait("R")
    site.provider.cancel("bf-b1", site.now)
    site.now += PACE.timeout
    site.provider.poll(site.now)
    fake_pbs.untell("hang-after")
    assert site.until(BlockState.ENDED).exit_code == -15


def test_a_qsub_that_crashes_again_and_again_is_given_up_and_never_doubled(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("refuse", "134 double free or corruption (out)")
    site.bash("true")
    refused = site.until(BlockState.REFUSED)
    assert refused.again and refused.text == "given up after 5 tries: double free or corruption (out)"
    commands = [call.split()[0] for call in fake_pbs.calls()]
    assert commands == ["qsub", "qselect", "qselect"] * PACE.tries


def test_of_two_jobs_of_one_name_the_second_is_ended(site: Site, fake_pbs: FakePbs) -> None:
    for _ in range(2):
        subprocess.run(["qsub", "-f", "-N", "bf-b1", "--", "/bin/sleep", "300"], check=True, capture_output=True,
                       cwd=site.directory)
    fake_pbs.wait("R", 0)
    fake_pbs.wait("R", 1)
    site.provider.adopt("bf-b1", "", site.now)
    assert site.until(BlockState.RUNNING).id == fake_pbs.jobs()[0]["id"]
    fake_pbs.wait("F", 1)
    assert fake_pbs.jobs()[0]["state"] == "R"


def test_a_job_that_pbs_puts_back_in_the_queue_is_told_so(site: Site, fake_pbs: FakePbs) -> None:
    site.bash("sleep 300", walltime=3600.0)
    site.until(BlockState.RUNNING)
    fake_pbs.edit(0, state="H", holds="s", comment="job held, too many failed attempts to run")
    held = site.until(lambda status: bool(status.text))
    assert (held.state, held.text) == (BlockState.QUEUED, "held (s): job held, too many failed attempts to run")
    fake_pbs.edit(0, state="R")
    assert site.until(BlockState.RUNNING).text == ""


def test_many_blocks_are_submitted_a_few_at_a_time(site: Site, fake_pbs: FakePbs) -> None:
    fake_pbs.tell("hang", "qsub")
    for n in range(9):
        site.bash("true", token=f"bf-{n}")
    await_calls(fake_pbs, "qsub", 4)
    site.provider.poll(site.now)
    assert len(fake_pbs.calls("qsub")) == 4
    fake_pbs.untell("hang")
    assert {site.until(BlockState.ENDED).token for _ in range(9)} == {f"bf-{n}" for n in range(9)}


def test_the_next_interchange_adopts_blocks_by_id_and_by_name(site: Site, fake_pbs: FakePbs) -> None:
    site.bash("sleep 300", token="bf-known", walltime=3600.0)
    id = site.until(BlockState.RUNNING).id
    site.bash("exit 4", token="bf-lost")
    fake_pbs.wait("F", 1)
    site.provider.close()
    site.provider = PbsProvider(pace=PACE)
    site.provider.adopt("bf-known", id, site.now)
    site.provider.adopt("bf-lost", "", site.now)
    site.provider.adopt("bf-never", "", site.now)
    told = [site.until(lambda status: True) for _ in range(3)]
    assert {(status.token, status.state, status.exit_code) for status in told} == {
        ("bf-known", BlockState.RUNNING, None), ("bf-lost", BlockState.ENDED, 4), ("bf-never", BlockState.ENDED, None)}


def test_closing_ends_commands_and_leaves_blocks_running(site: Site, fake_pbs: FakePbs) -> None:
    site.bash("sleep 300", walltime=3600.0)
    fake_pbs.wait("R")
    fake_pbs.tell("hang")
    site.provider.poll(site.now + 100)
    site.provider.close()
    site.provider = PbsProvider(pace=PACE)
    fake_pbs.untell("hang")
    assert fake_pbs.jobs()[0]["state"] == "R"


def test_a_machine_without_pbs_is_told_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(site.directory))
    site.bash("true")
    refused = site.until(BlockState.REFUSED)
    assert refused.text == "cannot start qsub: it is not on the PATH of this process"


@pytest.mark.parametrize(("more", "words"), [
    ({"token": "bf 1"}, "'bf 1' cannot be a job's name"),
    ({"token": "1bf"}, "'1bf' cannot be a job's name"),
])
def test_a_token_that_cannot_be_a_jobs_name_is_refused(site: Site, more: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        site.bash("true", **more)
    site.bash("true", token="bf-1")
    with pytest.raises(ValueError, match="already"):
        site.bash("true", token="bf-1")


def await_file(path: Path) -> None:
    _await(path.exists)


def await_calls(fake_pbs: FakePbs, command: str, number: int) -> None:
    _await(lambda: len(fake_pbs.calls(command)) >= number)


def _await(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        select.select([], [], [], 0.02)
    raise AssertionError("it never came to be")
