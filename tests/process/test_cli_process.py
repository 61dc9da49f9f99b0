"""The command line on real databases, beside real interchanges, and after scripts that were killed."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fake_interchange import FakeInterchange
from store_samples import surroundings, task
from waiting import until

from balsamfut import cli, messages, schema, serialize
from balsamfut.cli import resuming
from balsamfut.interchange.records import AttemptRow, EventRow, PilotRow, SessionRow, Writes
from balsamfut.interchange.store import Store
from balsamfut.messages import Detail, Fault
from balsamfut.model import Extra, TaskState
from balsamfut.query import open_site

S = TaskState
COMMAND = [sys.executable, "-m", "balsamfut"]


@pytest.fixture(autouse=True)
def no_site_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALSAMFUT_SITE", raising=False)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""
    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def store(site_dir: Path) -> Iterator[Store]:
    """The database of the site in the current directory, with what tasks refer to."""
    site = site_dir / ".balsamfut"
    site.mkdir()
    made = Store(site / "balsamfut.db")
    made.open()
    made.commit(surroundings())
    yield made
    made.close()


@pytest.fixture
def filled(store: Store, site_dir: Path) -> Store:
    """Four tasks: done, failed at the second try, upstream failed, ready."""
    site = site_dir / ".balsamfut"
    workdir = site / "data" / "00000" / "2"
    workdir.mkdir(parents=True)
    (workdir / "job.out").write_text("line one\nline two\n")
    (site / "worker.out").write_text("before|mine\nall mine|after")
    value, _ = serialize.dumps_result({"answer": 42})
    store.commit(Writes(
        tasks=[task(1, S.DONE, extra=Extra(name="first", tags=(("color", "red"), ("n", "1"))), attempt=1, pilot=1,
                    place="0:1", started=200.0, ended=202.5, payload=value,
                    detail=Detail(stdout=str(site / "worker.out"), stdout_span=(7, 20))),
               task(2, S.FAILED, attempt=2, failures=2, pilot=1, place="0:2", started=210.0, ended=211.0,
                    fault=Fault.TASK, error="exit code 3", extra=Extra(tags=(("color", "red"),), command="exit 3"),
                    detail=Detail(returncode=3, stdout=str(workdir / "job.out"), stderr=str(workdir / "job.out"))),
               task(3, S.UPSTREAM_FAILED, needs=(2,), root=2, error="task 3 needs task 2"),
               task(4, S.READY, campaign=2, session=2)],
        edges=[(3, 0, 2)], attempts=[AttemptRow(2, 1, 1, "0:1", 205.0, 206.0, Fault.TASK, "exit code 4", 4)],
        events=[EventRow(207.0, "retry", 2, 1, "exit code 4")],
        pilots=[PilotRow(1, "p", "here", 1, "workstation", 1, 1.0)]))
    return store


# ---- looking at a database


def test_tasks_are_listed_by_state_app_tag_and_campaign(filled: Store, run: Any) -> None:
    def ids(*words: str) -> list[int]:
        return [each["id"] for each in json.loads(run("task", "ls", "--json", *words)[1])["tasks"]]

    assert ids() == [1, 2, 3, 4]
    assert ids("--state", "done", "--state", "FAILED") == [1, 2]
    assert ids("--tag", "color=red") == [1, 2]
    assert ids("--tag", "color=red", "--tag", "n=1") == [1]
    assert ids("--app", "lammps", "--campaign", "scan7", "--limit", "2") == [2, 3]
    code, out, _ = run("task", "ls")
    lines = out.splitlines()
    assert code == 0 and lines[0].split()[:3] == ["ID", "STATE", "APP"] and "\t" not in out
    assert "color=red n=1" in lines[1] and "2.5 s" in lines[1]
    assert lines[2].endswith("exit code 3") and lines[3].endswith("task 3 needs task 2")


def test_tasks_are_counted_by_state(filled: Store, run: Any) -> None:
    assert json.loads(run("task", "ls", "--by-state", "--json", "--campaign", "scan7")[1]) == {
        "states": {"DONE": 1, "FAILED": 1, "UPSTREAM_FAILED": 1}}
    assert json.loads(run("task", "ls", "--by-state", "--json", "--tag", "color=red", "--state", "failed")[1]) == {
        "states": {"FAILED": 1}}
    assert run("task", "ls", "--by-state")[1].split() == [
        "STATE", "TASKS", "READY", "1", "DONE", "1", "FAILED", "1", "UPSTREAM_FAILED", "1"]


@pytest.mark.parametrize("words, sentence", [
    (["task", "ls", "--state", "runing"], "there is no state runing; did you mean RUNNING?"),
    (["task", "ls", "--app", "lamps"], "there is no app 'lamps' here; did you mean lammps?"),
    (["task", "ls", "--campaign", "scan"], "there is no campaign 'scan' here; did you mean scan7?"),
    (["resume", "--campaign", "scan8"], "there is no campaign 'scan8' here; did you mean scan7?"),
    (["resume", "scan7"], "no site scan7, and a campaign of that name here: `balsamfut resume --campaign scan7`"),
    (["resume", "scan8"], "no campaign 'scan8' here; did you mean scan7? (`balsamfut resume --campaign NAME`)"),
    (["resume", "--no-wait"], "lives only while a script or a command is connected to it"),
    (["resume", "./scan7"], "there is no site here: "),
    (["resume", "--site", "scan7"], "no site of the name 'scan7'"),
    (["task", "show", "99"], "there is no task 99"),
    (["task", "logs", "99"], "there is no task 99"),
    (["task", "result", "4"], "task 4 is not over: it is READY"),
    (["task", "kill", "4", "98", "99"], "there is no task 98, 99"),
    (["task", "cancel", "4"], "no interchange runs for"),
])
def test_what_is_not_there_is_one_sentence(filled: Store, run: Any, words: list[str], sentence: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "") and err.startswith("balsamfut: ") and sentence in err and err.count("\n") == 1


def test_a_task_is_shown_with_its_attempts_events_and_the_end_of_its_output(filled: Store, run: Any) -> None:
    out = run("task", "show", "2")[1]
    for line in (r"state +FAILED", r"error +exit code 3", r"exit code +3", r"command +exit 3", r"tags +color=red",
                 r"resources +num_nodes=2 .*gpu_shares=5000.* launch_params=--cpu-bind=none", r"options +walltime=60"):
        assert re.search(f"(?m)^{line}", out), line
    assert re.search(r"1 +1 +0:1 .*exit code 4", out) and re.search(r"retry +1 +exit code 4", out)
    assert out.count("line two") == 1, "stdout and stderr are the same file"
    told = json.loads(run("task", "show", "3", "--json")[1])["task"]
    assert (told["needs"], told["root"], told["events"], told["stdout_tail"]) == ([2], 2, [], "")


def test_the_output_of_a_task_is_printed_as_it_is_and_of_a_workers_log_only_its_part(filled: Store, run: Any) -> None:
    assert run("task", "logs", "2")[:2] == (0, "line one\nline two\n")
    assert run("task", "logs", "1")[1] == "mine\nall mine"
    assert json.loads(run("task", "logs", "1", "--json")[1])["log"]["text"] == "mine\nall mine"
    assert run("task", "logs", "1", "--stderr") == (0, "", "balsamfut: task 1 wrote nothing to stderr\n")
    assert run("task", "logs", "4")[2] == "balsamfut: task 4 has not started: it is READY\n"


def test_a_log_that_is_gone_is_one_sentence(filled: Store, run: Any, site_dir: Path) -> None:
    (site_dir / ".balsamfut" / "worker.out").unlink()
    code, out, err = run("task", "logs", "1")
    assert (code, out) == (2, "") and "the stdout of task 1 cannot be read: No such file or directory" in err


def test_a_result_is_printed_and_a_failure_is_exit_code_1(filled: Store, run: Any) -> None:
    assert run("task", "result", "1")[:2] == (0, "{'answer': 42}\n")
    assert json.loads(run("task", "result", "1", "--json")[1])["result"]["value"] == {"answer": 42}
    code, out, err = run("task", "result", "2")
    assert (code, out) == (1, "") and "exit code 3" in err
    code, out, _ = run("task", "result", "3", "--json")
    assert code == 1 and "UpstreamFailed" in json.loads(out)["result"]["error"]


def test_apps_campaigns_and_the_status_are_told(filled: Store, run: Any, site_dir: Path) -> None:
    (app,) = json.loads(run("app", "ls", "--json")[1])["apps"]
    assert (app["name"], app["kind"], app["tasks"]) == ("lammps", "COMMAND", 4)
    campaigns = json.loads(run("campaign", "ls", "--json")[1])["campaigns"]
    assert campaigns[0]["name"] == "scan7" and campaigns[0]["counts"]["DONE"] == 1
    assert "1 done, 1 failed, 1 upstream failed" in run("campaign", "ls")[1]
    status = json.loads(run("status", "--json")[1])["status"]
    assert status == {"site": str(site_dir / ".balsamfut"), "interchange": None, "pilots": [],
                      "states": {"READY": 1, "DONE": 1, "FAILED": 1, "UPSTREAM_FAILED": 1}, "nodes_out": [],
                      "waits": [{"app": "", "count": 1, "tasks": [], "why": f"no interchange runs for {site_dir}/"
                                 ".balsamfut, which belongs to the scripts that work there: it comes with them, or "
                                 "with `balsamfut resume`"}]}
    assert "none runs here" in run("status")[1]


def test_a_database_of_a_newer_version_is_refused_by_every_command_and_left_as_it_is(store: Store, run: Any,
                                                                                    site_dir: Path) -> None:
    store.close()
    path = site_dir / ".balsamfut" / "balsamfut.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(sa.update(schema.meta).values(version=schema.VERSION + 1))
    engine.dispose()
    before = path.read_bytes()
    for words in (["task", "ls"], ["task", "show", "1"], ["resume"], ["status"], ["app", "ls"], ["task", "kill", "1"]):
        code, out, err = run(*words)
        assert (code, out) == (2, "") and "nothing was changed" in err and err.count("\n") == 1
    assert path.read_bytes() == before


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(store: Store, site_dir: Path) -> None:
    store.commit(Writes(tasks=[task(n, S.DONE, error="x" * 200) for n in range(1, 1001)]))
    for more in ([], ["--json"]):
        done = subprocess.run(["bash", "-c", '"$@" | head -n 1', "-", *COMMAND, "task", "ls", *more], cwd=site_dir,
                              capture_output=True, text=True, check=True, timeout=30)
        assert len(done.stdout.splitlines()) == 1 and done.stderr == ""


@pytest.mark.parametrize("words", [["task", "ls", "--json"], ["doctor"], ["--help"]])
def test_a_reader_that_is_gone_before_the_first_line_has_the_same_exit_code_always(
        store: Store, site_dir: Path, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([*COMMAND, *words], cwd=site_dir, stdout=writing, stderr=subprocess.PIPE, check=False,
                              timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_imports_no_command_and_nothing_heavy(tmp_path: Path) -> None:
    code = ("import sys; from balsamfut import cli; assert cli.main(['--help']) == 0; print('|', *sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
                          timeout=30)
    loaded = set(done.stdout.partition("|")[2].split())
    ours = {name for name in loaded if name.startswith("balsamfut")}
    assert ours == {"balsamfut", "balsamfut.errors", "balsamfut.interrupts", "balsamfut.cli"}
    assert not loaded & {"rich", "sqlalchemy", "zmq", "msgspec", "cloudpickle"}


# ---- beside an interchange that the test plays


class Keeper(FakeInterchange):
    """Knows the tasks that it is given: those end as `ends` says when they are resumed, the others do not move."""

    def __init__(self, site: Path, store: Store, open_tasks: list[int], ends: dict[int, TaskState],
                 **more: Any) -> None:
        self.store = store
        self.open_tasks = open_tasks
        self.ends = ends
        super().__init__(site, **more)

    def _handle(self, peer: bytes, message: Any) -> None:
        if isinstance(message, messages.Resume):
            self.door.send(peer, messages.Resumed({"READY": len(self.open_tasks)}, list(self.open_tasks)))
            for number, state in self.ends.items():
                self.store.commit(Writes(tasks=[ended(number, state)]))
                self.door.send(peer, messages.Settled([messages.Ending(number, state)]))
        else:
            super()._handle(peer, message)


def ended(number: int, state: TaskState) -> Any:
    made = task(number, state, attempt=1, started=1.0, ended=2.0, error="" if state is S.DONE else "bad luck")
    made.stored = made.whole = True
    return made


@pytest.fixture
def keep(store: Store, site_dir: Path) -> Iterator[Callable[..., Keeper]]:
    made: list[Keeper] = []

    def start(*args: Any, **more: Any) -> Keeper:
        made.append(Keeper(site_dir / ".balsamfut", store, *args, **more))
        return made[-1]

    yield start
    for each in made:
        if each.running:
            each.stop()


def test_resume_says_who_it_is_and_waits_until_the_named_tasks_are_over(store: Store, run: Any, keep: Any) -> None:
    store.commit(Writes(tasks=[task(1, S.DONE), task(2), task(3)]))
    keeper = keep([2, 3], {2: S.DONE, 3: S.DONE})
    code, out, err = run("resume")
    assert (code, out) == (0, "scan7: 3 done of 3\n")
    assert "scan7: " in err
    hello = keeper.hellos[0]
    assert (hello.observer, hello.pid, hello.campaign) == (True, os.getpid(), None)
    assert keeper.of(messages.Resume) == [messages.Resume("scan7", False)]
    keeper.wait(lambda: keeper.of(messages.Bye) != [])


def test_failures_are_named_with_the_command_that_tries_them_again(store: Store, run: Any, keep: Any) -> None:
    store.commit(Writes(tasks=[task(n) for n in range(1, 8)]))
    keep(list(range(1, 8)), dict.fromkeys(range(1, 8), S.FAILED))
    code, out, _ = run("resume", ".", "--campaign", "scan7", "--retry-failed")
    assert code == 1 and out.startswith("scan7: 7 failed of 7\n")
    assert out.count("  failed: task ") == 5 and "failed: task 7 (lammps): bad luck" in out and "... and 2 more" in out
    assert "balsamfut resume . --retry-failed --campaign scan7" in out


def test_failed_tasks_are_asked_for_again_only_where_that_is_wanted(store: Store, run: Any, keep: Any) -> None:
    store.commit(Writes(tasks=[task(1, S.DONE), task(2, S.FAILED)]))
    keeper = keep([2], {2: S.DONE})
    code, out, _ = run("resume")
    assert (code, keeper.got) == (0, [])
    assert out == ("nothing is unfinished here: 1 done, 1 failed; `balsamfut resume --retry-failed` tries again what "
                   "failed\n")
    assert json.loads(run("resume", "--json")[1]) == {"resume": {"campaigns": []}}
    code, out, _ = run("resume", "--retry-failed", "--json")
    assert code == 0 and keeper.of(messages.Resume) == [messages.Resume("scan7", True)]
    assert json.loads(out)["resume"]["campaigns"] == [
        {"name": "scan7", "counts": {"DONE": 2}, "failed": [], "held": []}]


def test_held_tasks_are_named_with_their_reason_and_not_waited_for(store: Store, run: Any, keep: Any) -> None:
    store.commit(Writes(tasks=[task(1), task(2, S.HELD, reason="by a person"), task(3, S.WAITING, needs=(2,))],
                        edges=[(3, 0, 2)]))
    keep([1, 2, 3], {1: S.DONE})
    code, out, _ = run("resume")
    assert code == 1
    assert out.splitlines() == ["scan7: 1 waiting, 1 done, 1 held of 3", "  held: task 2 (lammps): by a person",
                                "  waiting: 1 for held tasks, or for futures that only their script can bring"]


def test_what_waits_for_a_script_that_is_gone_is_not_waited_for(store: Store, run: Any, keep: Any) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = os.uname().nodename
    store.commit(Writes(tasks=[task(1, S.WAITING)], sessions=[SessionRow(3, "t3", 1, 0, host, gone.pid, 70.0)]))
    keep([1], {})
    code, out, _ = run("resume")
    assert code == 1 and "waiting: 1 for held tasks" in out


def test_tasks_that_were_called_meanwhile_are_resumed_and_failed_ones_tried_once(store: Store, run: Any,
                                                                                 keep: Any) -> None:
    store.commit(Writes(tasks=[task(1), task(2)]))
    keeper = keep([1], {1: S.DONE})
    keeper_handle = keeper._handle

    def second_time(peer: bytes, message: Any) -> None:
        if isinstance(message, messages.Resume) and len(keeper.of(messages.Resume)) == 2:
            keeper.open_tasks, keeper.ends = [2], {2: S.DONE}
        keeper_handle(peer, message)

    keeper._handle = second_time
    assert run("resume", "--retry-failed")[:2] == (0, "scan7: 2 done of 2\n")
    assert [message.retry_failed for message in keeper.of(messages.Resume)] == [True, False]


def test_an_interchange_that_does_not_know_us_any_more_is_asked_again(store: Store, run: Any, keep: Any) -> None:
    store.commit(Writes(tasks=[task(1)]))
    keeper = keep([1], {})
    keeper_handle = keeper._handle

    def forgetful(peer: bytes, message: Any) -> None:
        if isinstance(message, messages.Resume) and len(keeper.of(messages.Resume)) == 1:
            keeper.door.send(peer, messages.Refused("InterchangeLost", "this interchange does not know you"))
            keeper.ends = {1: S.DONE}
        else:
            keeper_handle(peer, message)

    keeper._handle = forgetful
    code, out, err = run("resume")
    assert (code, out) == (0, "scan7: 1 done of 1\n") and "lost the interchange" in err
    assert len(keeper.hellos) == 2 and keeper.hellos[0].token == keeper.hellos[1].token


def test_interchanges_may_be_lost_often_as_long_as_tasks_end_between(store: Store, run: Any, keep: Any) -> None:
    store.commit(Writes(tasks=[task(n) for n in range(1, 10)]))
    keeper = keep([], {})
    keeper_handle = keeper._handle

    def one_task_and_gone(peer: bytes, message: Any) -> None:
        if isinstance(message, messages.Resume):
            number = len(keeper.of(messages.Resume))
            keeper.open_tasks, keeper.ends = list(range(number, 10)), {number: S.DONE}
        keeper_handle(peer, message)
        if isinstance(message, messages.Resume) and number < 9:
            keeper.door.send(peer, messages.Refused("InterchangeLost", "this interchange does not know you"))

    keeper._handle = one_task_and_gone
    assert run("resume")[:2] == (0, "scan7: 9 done of 9\n")
    assert len(keeper.hellos) == 9


def test_an_interchange_that_never_gets_anywhere_is_given_up(store: Store, run: Any, keep: Any) -> None:
    store.commit(Writes(tasks=[task(1)]))
    keeper = keep([1], {})
    keeper._handle = lambda peer, message: (
        keeper.door.send(peer, messages.Refused("InterchangeLost", "this interchange does not know you"))
        if isinstance(message, messages.Resume) else FakeInterchange._handle(keeper, peer, message))
    code, out, err = run("resume")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("balsamfut: 6 interchanges of ") and "what is recorded is safe" in err


def test_a_refusal_is_told_as_the_interchange_says_it(store: Store, run: Any, keep: Any) -> None:
    store.commit(Writes(tasks=[task(1)]))
    keeper = keep([1], {})
    refused = messages.Refused("UsageError", "another script runs here")
    keeper._handle = lambda peer, message: keeper.door.send(peer, refused)
    code, out, err = run("resume")
    assert (code, out, err) == (2, "", "balsamfut: another script runs here\n")


def test_an_interchange_for_another_machine_is_waited_for_until_it_ends(store: Store, run: Any, keep: Any,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "PATIENCE", 0.5)
    store.commit(Writes(tasks=[task(1)], sessions=[
        SessionRow(3, "t3", 1, 0, "here", 1, 70.0, info={"platform": "aurora", "nodes": "2", "max_workers": "0"})]))
    keeper = keep([1], {1: S.DONE})
    code, out, err = run("resume")
    assert (code, out) == (2, "") and "runs for platform workstation with 1 nodes and does not end" in err
    assert "these campaigns ask for aurora with 2" in err and keeper.of(messages.Resume) == []
    keeper.welcome = {"platform": "aurora", "nodes": 2}
    assert run("resume")[0] == 0
    assert (keeper.hellos[-1].platform, keeper.hellos[-1].nodes) == ("aurora", 2)


def test_kill_and_cancel_tell_for_each_task_whether_it_was_ended(store: Store, run: Any, keep: Any) -> None:
    store.commit(Writes(tasks=[task(1), task(2, S.DONE)]))
    keeper = keep([], {})
    keeper.states = {1: S.READY, 2: S.DONE}
    code, out, _ = run("task", "kill", "2", "1", "2")
    assert code == 1 and re.search(r"2 +not killed: it is DONE", out) and re.search(r"1 +killed", out)
    until(lambda: keeper.of(messages.KillTasks))
    assert keeper.of(messages.KillTasks)[0].refs == [2, 1]
    keeper.states[1] = S.READY
    code, out, _ = run("task", "cancel", "1", "--json")
    assert code == 0 and json.loads(out)["cancelled"] == [{"task": 1, "ended": True, "state": "READY"}]


# ---- after real scripts


SCRIPT = """
import os, sys, time
from balsamfut import Executor, app

@app
def step(i):
    time.sleep(0.15)
    print("printed by", i, flush=True)
    with open("ran", "a") as log:
        log.write(f"{i}\\n")
    if i == 5 and not os.path.exists("mended"):
        raise ValueError("five is broken")
    return i

@app
def total(*values):
    return sum(values)

with Executor(campaign="steps", max_workers=2) as ex:
    steps = [step(i) for i in range(20)]
    totals = [total(*steps[:5]), total(steps[5], 1)]
    print("submitted", steps[-1].task_id, totals[-1].task_id, flush=True)
"""


@pytest.fixture
def killed(site_dir: Path) -> Path:
    """The directory of a script that was killed when some of its tasks were done."""
    (site_dir / "script.py").write_text(SCRIPT)
    script = subprocess.Popen([sys.executable, "script.py"], cwd=site_dir, stdout=subprocess.PIPE, text=True)
    assert script.stdout is not None and script.stdout.readline().startswith("submitted")
    wait_for(lambda: len(ran(site_dir)) >= 4)
    script.kill()
    script.wait()
    script.stdout.close()
    return site_dir


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def ran(directory: Path) -> list[int]:
    path = directory / "ran"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def connected(resume: subprocess.Popen[str]) -> None:
    """Wait until it has found an interchange and follows its tasks."""
    assert resume.stderr is not None and resume.stderr.readline().startswith("balsamfut: steps: ")


def counts(directory: Path) -> dict[str, int]:
    with open_site(directory / ".balsamfut") as reader:
        return reader.count()


def interchange_of(directory: Path) -> int | None:
    try:
        pid = json.loads((directory / ".balsamfut" / "interchange.json").read_bytes())["pid"]
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return int(pid)


def test_resume_finishes_what_a_killed_script_left_from_another_directory_and_runs_nothing_twice(
        killed: Path, tmp_path_factory: pytest.TempPathFactory, run: Any) -> None:
    finished = ran(killed)
    left = counts(killed)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    resume = start("resume", str(killed), "--json", cwd=elsewhere)
    out, err = resume.communicate(timeout=50)
    assert resume.returncode == 1, err
    (told,) = json.loads(out)["resume"]["campaigns"]
    assert told["counts"] == {"DONE": 20, "FAILED": 1, "UPSTREAM_FAILED": 1} != left
    assert [(each["id"], each["why"]) for each in told["failed"]] == [(6, "ValueError: five is broken")]
    # What ran when the interchange stopped with its script was stopped, and ran again; what was finished did not.
    assert set(ran(killed)) == set(range(20)) and ran(killed)[:len(finished)] == finished
    assert all(Counter(ran(killed))[i] == 1 for i in finished)
    code, out, _ = run("resume")
    assert (code, out) == (0, ("nothing is unfinished here: 20 done, 1 failed, 1 upstream failed; `balsamfut resume "
                               "--retry-failed` tries again what failed\n"))
    assert run("task", "logs", "6")[1] == "printed by 5\n"

    (killed / "mended").touch()
    code, out, _ = run("resume", "--retry-failed")
    assert (code, out) == (0, "steps: 22 done of 22\n")
    # Twice, and once more where it was what ran when its script was killed.
    assert Counter(ran(killed))[5] in (2, 3) and len(ran(killed)) <= 24
    assert [run("task", "result", n)[1] for n in ("21", "22")] == ["10\n", "6\n"]


def test_the_machine_that_the_script_asked_for_is_the_one_that_is_resumed_on(killed: Path) -> None:
    wait_for(lambda: interchange_of(killed) is None)
    with start("resume", cwd=killed) as resume:
        connected(resume)
        words = Path(f"/proc/{interchange_of(killed)}/cmdline").read_text().split("\0")
        assert words[words.index("--cores") + 1] == "2"
        resume.send_signal(signal.SIGINT)
        resume.wait(20)


def test_campaigns_of_different_machines_are_resumed_each_on_its_own(site_dir: Path, run: Any,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAMFUT_INTERCHANGE_LINGER", "0.3")
    (site_dir / "script.py").write_text(
        "import sys, time\nfrom balsamfut import Executor\n"
        "platform = sys.argv[1] if sys.argv[1] != 'workstation' else None\n"
        "with Executor(campaign=sys.argv[1], platform=platform) as ex:\n"
        "    print('submitted', [ex.submit(time.sleep, 0.1 + n / 1000) for n in range(9)][-1].task_id, flush=True)\n"
        "    time.sleep(60)\n")
    for platform in ("crux", "workstation"):
        script = subprocess.Popen([sys.executable, "script.py", platform], cwd=site_dir, stdout=subprocess.PIPE,
                                  text=True)
        assert script.stdout is not None and script.stdout.readline().startswith("submitted")
        script.kill()
        script.wait()
        script.stdout.close()
        wait_for(lambda: interchange_of(site_dir) is None)
    # Most of the first campaign is done: so many cores has a pretend node.  Only machines are of interest here.
    engine = sa.create_engine(f"sqlite:///{site_dir / '.balsamfut' / 'balsamfut.db'}")
    with engine.begin() as connection:
        connection.execute(sa.update(schema.tasks).values(state=S.READY.value, pilot=0, attempt=0, payload=None))
    engine.dispose()
    assert run("resume")[:2] == (0, "crux: 9 done of 9\nworkstation: 9 done of 9\n")
    with open_site(site_dir / ".balsamfut") as reader:
        platforms = {pilot.id: pilot.platform for pilot in reader.pilots()}
        assert {(each.campaign, platforms[each.pilot]) for each in reader.tasks()} == {
            ("crux", "crux"), ("workstation", "workstation")}


def test_the_interchange_may_die_while_tasks_are_resumed(killed: Path) -> None:
    resume = start("resume", cwd=killed)
    connected(resume)
    already = len(ran(killed))
    wait_for(lambda: len(ran(killed)) > already)
    os.kill(interchange_of(killed) or 0, signal.SIGKILL)
    out, err = resume.communicate(timeout=50)
    assert resume.returncode == 1 and "lost the interchange" in err
    assert out.startswith("steps: 20 done, 1 failed, 1 upstream failed of 22\n")
    assert counts(killed) == {"DONE": 20, "FAILED": 1, "UPSTREAM_FAILED": 1}


def test_ctrl_c_leaves_with_one_sentence_and_resume_goes_on_from_there(killed: Path, run: Any) -> None:
    resume = start("resume", cwd=killed)
    connected(resume)
    already = len(ran(killed))
    wait_for(lambda: len(ran(killed)) > already)
    resume.send_signal(signal.SIGINT)
    _, err = resume.communicate(timeout=20)
    assert resume.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1] == ("balsamfut: interrupted; the interchange stops unless a script uses it, what is "
                                    "recorded stays, and `balsamfut resume` goes on with it")
    wait_for(lambda: interchange_of(killed) is None)
    code, out, _ = run("resume")
    assert code == 1 and out.startswith("steps: 20 done, 1 failed, 1 upstream failed of 22\n")


def test_on_a_terminal_progress_is_a_moving_line_and_the_summary_stays(killed: Path) -> None:
    ours, theirs = pty.openpty()
    resume = subprocess.Popen([*COMMAND, "resume"], cwd=killed, stdout=subprocess.PIPE, stderr=theirs, text=True,
                              env=os.environ | {"TERM": "xterm", "COLUMNS": "100"})
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:   # the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    out, _ = resume.communicate(timeout=20)
    assert resume.returncode == 1 and out.startswith("steps: 20 done")
    assert b"of 22 done" in shown and b"\x1b[" in shown


def test_a_running_task_is_killed_and_a_waiting_one_cancelled_from_the_command_line(site_dir: Path, run: Any) -> None:
    (site_dir / "script.py").write_text(SCRIPT.replace("time.sleep(0.15)", "time.sleep(0.1 if i else 60)"))
    script = subprocess.Popen([sys.executable, "script.py"], cwd=site_dir, stdout=subprocess.PIPE, text=True)
    assert script.stdout is not None and script.stdout.readline().startswith("submitted")
    wait_for(lambda: 3 in ran(site_dir))
    status = json.loads(run("status", "--json")[1])["status"]
    assert status["interchange"]["pid"] == interchange_of(site_dir) and len(status["pilots"]) == 1
    code, out, _ = run("task", "cancel", "1", "21")
    assert code == 1 and "not cancelled: it is RUNNING" in out and re.search(r"21 +cancelled", out)
    assert run("task", "kill", "1") == (0, "TASK  WHAT\n   1  killed\n", "")
    assert script.wait(30) == 0
    script.stdout.close()
    assert 0 not in ran(site_dir)
    assert counts(site_dir) == {"DONE": 18, "FAILED": 1, "UPSTREAM_FAILED": 1, "CANCELLED": 2}
