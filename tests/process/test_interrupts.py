"""Ctrl-C, once or several times in the same instant: one sentence, and the exit status of an interrupted program."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from scripts import Ran, start
from waiting import until

# Whoever runs the tests in the background has them ignore SIGINT.
HEAD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from balsamfut import Executor, app

@app(priority=-1)
def slow(n):
    time.sleep(30)

def soon(ex):
    # when the script waits, and all calls are recorded
    ex.submit(pow, 2, 3).add_done_callback(lambda done: print("go", flush=True))

"""
WAITS = """
with Executor() as ex:
    calls = [slow(n) for n in range(3)]
    soon(ex)
    calls[0].result()
"""
LEAVES = """
with Executor() as ex:
    calls = [slow(n) for n in range(3)]
    soon(ex)
"""
FORGETS = """
import atexit, os
atexit.register(lambda: print("cleaned up"))
ex = Executor()
calls = [ex.submit(slow, n) for n in range(3)]
soon(ex)
"""
GOES_ON = """
try:
    with Executor() as ex:
        calls = [slow(n) for n in range(3)]
        soon(ex)
        calls[0].result()
except KeyboardInterrupt:
    print("went on", flush=True)
time.sleep(1.2)
signal.raise_signal(signal.SIGINT)
"""
FAILS = """
with Executor() as ex:
    call = slow(1)
    soon(ex)
    raise ValueError("no such molecule")
"""
BUSY = """
with Executor() as ex:
    calls = [slow(n) for n in range(3)]
    soon(ex)
    while True:
        time.sleep(0.01)
"""
SENTENCE = "balsamfut: interrupted; 3 calls are not over; `balsamfut resume`"
ONCE, TWICE = [0.0], [0.0, 0.0]
GAPS = [ONCE, TWICE, [0.0, 0.0005], [0.0, 0.005], [0.0, 0.05], [0.0, 0.0, 0.001, 0.01]]


def interrupt(process: subprocess.Popen[str], gaps: Sequence[float]) -> Ran:
    """Send SIGINT after each of these seconds, and wait for the end."""
    for gap in gaps:
        time.sleep(gap)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    return Ran(process.returncode, out, err)


def play(script: str, directory: Path, gaps: Sequence[float]) -> Ran:
    process = start(HEAD + script, directory)
    assert process.stdout is not None and process.stdout.readline() == "go\n"
    return interrupt(process, gaps)


@pytest.mark.parametrize("gaps", GAPS, ids=str)
def test_a_script_that_waits_ends_with_one_sentence_however_often_it_is_interrupted(
        site_dir: Path, gaps: list[float]) -> None:
    ran = play(WAITS, site_dir, gaps)
    assert ran.code == -signal.SIGINT
    assert ran.err.startswith(SENTENCE) and len(ran.err.splitlines()) == 1, ran.err


def test_what_ended_the_with_block_is_told_while_it_waits(site_dir: Path) -> None:
    ran = play(FAILS, site_dir, [1.6])
    first, second = ran.err.splitlines()[:2]
    # How many of the two is a matter of time: the other one fails.
    assert re.match("balsamfut: ValueError: no such molecule: this has ended the `with` block of the Executor, "
                    "which waits for (1 call that is|2 calls that are) not over; Ctrl-C", first), ran.err
    assert second.startswith("balsamfut: interrupted; 1 call is not over; `balsamfut resume` goes on with it"), ran.err
    assert ran.code == -signal.SIGINT


@pytest.mark.parametrize("gaps", [ONCE, TWICE, [0.0, 0.0005]], ids=str)
@pytest.mark.parametrize("script", [LEAVES, FORGETS], ids=["at its end", "at exit"])
def test_so_does_one_that_waits_where_it_ends(site_dir: Path, script: str, gaps: list[float]) -> None:
    ran = play(script, site_dir, gaps)
    assert ran.code == -signal.SIGINT
    assert ran.err.startswith(SENTENCE) and len(ran.err.splitlines()) == 1, ran.err
    assert ran.out == ("cleaned up\n" if script == FORGETS else "")


def test_a_script_that_catches_it_goes_on_and_can_be_interrupted_again(site_dir: Path) -> None:
    ran = play(GOES_ON, site_dir, [0.0, 0.0, 0.001])
    assert ran.code == -signal.SIGINT and ran.out == "went on\n"
    lines = ran.err.splitlines()
    assert lines[0].startswith(SENTENCE) and lines[1].startswith("Traceback") and lines[-1] == "KeyboardInterrupt"
    assert ran.err.count("Traceback") == 1, "what is its own is its own"


def test_a_script_that_is_busy_itself_is_shown_where(site_dir: Path) -> None:
    ran = play(BUSY, site_dir, [0.0])
    assert ran.code == -signal.SIGINT and ran.err.startswith(SENTENCE)
    assert "time.sleep(0.01)" in ran.err and ran.err.count("Traceback") == 1


@pytest.mark.parametrize("gaps", [ONCE, TWICE, [0.0, 0.0005], [0.0, 0.05]], ids=str)
def test_a_command_that_waits_ends_with_one_sentence(site_dir: Path, gaps: list[float]) -> None:
    script = start(HEAD + WAITS, site_dir)
    assert script.stdout is not None and script.stdout.readline() == "go\n"
    script.kill()
    script.communicate()
    until(lambda: not list((site_dir / ".balsamfut").glob("interchange.json")), "its interchange has ended")
    resume = start("import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
                   "from balsamfut.cli import main\nsys.exit(main(['resume']))", site_dir, name="resume.py")
    assert resume.stderr is not None and " done" in resume.stderr.readline()
    ran = interrupt(resume, gaps)
    assert ran.code in (130, -signal.SIGINT) and "Traceback" not in ran.err     # the same for a shell
    assert sum("interrupted" in line for line in ran.err.splitlines()) == 1
