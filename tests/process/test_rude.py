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
import zmq
from fake_interchange import FakeInterchange
from scripts import ROOT, run
from waiting import open_gate, pass_gate, reached, until

from balsamfut import Executor, TaskState, app
from balsamfut.connection import Connection
from balsamfut.errors import InvalidOption, JoinError, SerializationError
from balsamfut.executor import local
from balsamfut.interchange import files
from balsamfut.messages import (
    PROTOCOL,
    Beat,
    Bye,
    Cancel,
    Enrol,
    FromClient,
    Hello,
    Keep,
    KillTasks,
    Message,
    Refused,
    Reports,
    Resume,
    Settled,
    Started,
    Submit,
    ToClient,
    ToPilot,
    Watch,
    Welcome,
)
from balsamfut.model import AppKind, AppSpec, Options, Pool, Resources, TaskClass, TaskSpec
from balsamfut.wire import Link, Poller


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


# ---- messages that make no sense


NOBODY = Pool("python", (), "/", ())
APP, CLASS = b"a" * 16, b"p" * 16


def call(n: int = 1, **more: Any) -> Submit:
    return Submit([TaskSpec(n, 1, **more)], [(1, TaskClass(APP, CLASS, Resources(), Options()))],
                  [AppSpec("nonsense", AppKind.PYTHON, APP)], [], [(CLASS, NOBODY)])


NONSENSE: dict[str, Message] = {
    "a process that there cannot be": Hello(PROTOCOL, "a", None, 1 << 40, os.uname().nodename),
    "a negative process": Hello(PROTOCOL, "b", None, -5, os.uname().nodename),
    "a parent that there is not": Hello(PROTOCOL, "c", None, 1, "elsewhere", parent=999_999),
    "a parent that there cannot be": Hello(PROTOCOL, "d", None, 1, "elsewhere", parent=1 << 63),
    "a class that was never defined": Submit([TaskSpec(1, 77)]),
    "a need that there is not": call(needs=(12_345_678, 0, -1)),
    "a need that there cannot be": call(needs=(1 << 63,)),
    "a call number that no row has room for": call(1 << 63),
    "an occurrence that no row has room for": call(5, key=b"k" * 16, occurrence=1 << 63),
    "no nodes at all": Submit([TaskSpec(1, 1)], [(1, TaskClass(APP, CLASS, Resources(num_nodes=0), Options()))],
                              [AppSpec("nonsense", AppKind.PYTHON, APP)], [], [(CLASS, NOBODY)]),
    "watching": Watch([1 << 63, 5_555_555, -7, 0]),
    "cancelling": Cancel(1, [0, -5, 99_999_999, 1 << 63]),
    "killing": KillTasks(2, [0, -5, 99_999_999]),
    "a promise of somebody else's": Keep(1, True, b"x"),
    "a campaign that there is not": Resume("nobody's"),
    "a pilot with a wrong token": Enrol(PROTOCOL, 1, "wrong", 1, "h", "workstation", ["n"], 2, 0, 0, [(1, 1)]),
    "a pilot that there is not": Enrol(PROTOCOL, 1 << 40, "wrong", 1, "h", "?", [], -2, 0, 0, [(1 << 63, 1)]),
    "a stranger's reports": Reports(1, [Started(1 << 63, 1, 0.0, "")]),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_messages_without_sense_do_not_end_the_interchange(ex: Executor, what: str) -> None:
    message = NONSENSE[what]
    door, union = ("clients", ToClient) if isinstance(message, FromClient) else ("pilots", ToPilot)
    link, poller = Link(said(ex)[door], union), Poller()
    poller.register(link)
    if door == "clients" and not isinstance(message, Hello):
        observer = not isinstance(message, Submit)
        link.send(Hello(PROTOCOL, what, None, os.getpid(), os.uname().nodename, observer=observer))
    link.send(message)
    if door == "clients":
        link.send(Beat())
    poller.poll(0.3)
    poller.unregister(link)
    link.close(0.2)


def test_a_session_that_is_over_is_not_opened_again_by_its_token(ex: Executor) -> None:
    hello = Hello(PROTOCOL, "over", None, os.getpid(), os.uname().nodename)
    answers: list[Message] = []
    for message in (hello, Bye(), hello):
        link, poller = Link(said(ex)["clients"], ToClient), Poller()
        poller.register(link)
        if isinstance(message, Bye):
            link.send(hello)
        link.send(message)
        poller.poll(5.0)
        answers += link.receive(1)
        poller.unregister(link)
        link.close(0.2)
    assert [type(answer) for answer in answers] == [Welcome, Welcome, Refused]
    assert "the session of this token is over" in answers[-1].text  # type: ignore[attr-defined]


def test_noise_at_the_doors_does_not_end_the_interchange(ex: Executor) -> None:
    for door in ("clients", "pilots"):
        with zmq.Context.instance().socket(zmq.DEALER) as socket:
            socket.connect(said(ex)[door])
            socket.send_multipart([b"", b"\xff" * 100, bytes(range(256)) * 10, b"\xc1"])
            socket.close(linger=500)


# ---- values and words that cannot travel


@app
def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 0


def test_values_of_returned_futures_that_nest_without_end_fail_their_task_alone(ex: Executor) -> None:
    value = ex.submit(nested, 100).result(20)
    for _ in range(100):
        (value,) = value
    assert value == 0
    with pytest.raises(JoinError, match="deep"):
        ex.submit(nested, 300).result(20)


@pytest.mark.parametrize("options", [{"priority": 10**30}, {"retries": 1 << 63}, {"memory": 1 << 70},
                                     {"memory": "99999999999TB"}, {"tags": {"a": "\udc80"}}, {"workdir": "\udcff"},
                                     {"name": "\ud800"}], ids=str)
def test_options_that_cannot_be_recorded_are_refused(ex: Executor, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        ex.options(**options)


@app.shell("echo {{ word }}")
def say(word: str) -> None: ...


def test_a_command_that_utf_8_cannot_write_fails_its_own_call(ex: Executor) -> None:
    with pytest.raises(SerializationError, match="UTF-8"):
        ex.submit(say, "\udc80").result(20)


def test_variables_and_arguments_that_are_not_utf_8_do_not_keep_a_script_from_running(tmp_path: Path) -> None:
    source = """
        import os, sys
        from balsamfut import Executor
        with Executor() as ex:
            print(ex.submit(os.getenv, "PLAIN").result(20), len(sys.argv))
        """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ODD", "\udcff")
        patch.setenv("PLAIN", "ü")
        ran = run(source, tmp_path, "\udcfe")
    assert (ran.code, ran.out) == (0, "ü 2\n"), ran.err


def test_a_working_directory_that_is_not_utf_8_is_refused_in_one_sentence(tmp_path: Path) -> None:
    odd = tmp_path / "lat\udce9n"
    odd.mkdir()
    ran = run("from balsamfut import Executor\nExecutor()\n", odd)
    assert ran.code == 1
    assert "InvalidOption" in ran.err.splitlines()[-1] and "UTF-8" in ran.err.splitlines()[-1]


# ---- leaving, and being given up


def test_what_a_script_detaches_runs_to_its_end_without_it(tmp_path: Path) -> None:
    source = """
        import time
        from balsamfut import Executor
        def slow(name):
            time.sleep(0.15)
            open(name, "w").close()
        ex = Executor(max_workers=2)
        for number in range(8):
            ex.submit(slow, f"done-{number}")
        ex.detach()
        """
    assert run(source, tmp_path).code == 0
    assert len(list(tmp_path.glob("done-*"))) < 8
    until(lambda: len(list(tmp_path.glob("done-*"))) == 8)
    until(lambda: not (tmp_path / ".balsamfut" / "interchange.json").exists())


LEAVES = """
    import os, time
    from balsamfut import Executor, app

    @app
    def slow(gate):
        while not os.path.exists(gate):
            time.sleep(0.02)
        return 7

    @app
    def double(x):
        return 2 * x

    with Executor("left", wait=False):
        left = slow("gate")
    print(left.state.name in ("READY", "ASSIGNED", "RUNNING"), "when its script left it behind" in repr(left))
    print(left.exception())
    """


def test_a_future_that_was_left_behind_says_so_and_calls_of_its_site_may_wait_for_its_task(tmp_path: Path) -> None:
    ran = run(LEAVES + """
    with Executor("left"):
        waits = double(left)
        open("gate", "w").close()
        print(waits.result())
    """, tmp_path)
    assert ran.code == 0, ran.err
    known, said, value = ran.out.splitlines()
    assert (known, value) == ("True True", "14")
    assert said == (f"task 1 goes on without this script, whose Executor was detached; its result will be in the site "
                    f"{tmp_path}/.balsamfut: `balsamfut task result 1`, or call it again by the campaign's name")


def test_a_call_of_another_site_cannot_wait_for_a_future_that_was_left_behind(tmp_path: Path) -> None:
    ran = run(LEAVES + """
    open("gate", "w").close()
    with Executor("other", site="./elsewhere"):
        print(repr(double(left).exception()))
    """, tmp_path)
    assert ran.code == 0 and ran.out.splitlines()[-1] == (
        f"LeftBehind('double cannot wait for task 1 of the site {tmp_path}/.balsamfut, whose Executor was detached: "
        "call double in an Executor of that site, or keep that other Executor open')"), ran.err


def test_an_interchange_that_is_dead_and_that_nobody_has_reaped_is_not_there(tmp_path: Path) -> None:
    zombie = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    try:
        local.make(tmp_path / "site")
        doors = [f"ipc://{tmp_path}/{name}" for name in ("clients", "pilots")]
        files.announce(tmp_path / "site", Connection(zombie, os.uname().nodename, 1, *doors, PROTOCOL, 0.0))
        with Executor(site=tmp_path / "site", max_workers=1) as own:
            assert own.submit(double, 4).result(20) == 8
    finally:
        os.waitpid(zombie, 0)


def test_a_session_that_the_interchange_had_given_up_comes_back(tmp_path: Path) -> None:
    fake = FakeInterchange(tmp_path, hold=True)
    try:
        with Executor(site=tmp_path) as own:
            running = own.submit(double, 4)
            assert running.task_id
            fake.say(Refused("InterchangeLost", "this interchange does not know you"))
            fake.wait(lambda: len(fake.of(Hello)) == 2)
            assert len({hello.token for hello in fake.of(Hello)}) == 1
            fake.release()
            assert running.result(20) == 8
    finally:
        fake.stop()


def test_watching_a_task_that_the_database_does_not_have_is_answered(ex: Executor) -> None:
    link, poller = Link(said(ex)["clients"], ToClient), Poller()
    poller.register(link)
    link.send(Hello(PROTOCOL, "watcher", None, os.getpid(), os.uname().nodename, observer=True))
    link.send(Watch([5_555_555]))
    heard: list[Any] = []

    def answered() -> bool:
        heard.extend(link.receive(10))
        return any(isinstance(message, Settled) for message in heard)

    until(answered)
    (ending,) = next(message for message in heard if isinstance(message, Settled)).endings
    assert ending.state is TaskState.FAILED and "database" in ending.error
    poller.unregister(link)
    link.close()
