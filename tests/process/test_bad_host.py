"""A host that kills every worker which is given something there: found out, put out, and the work goes elsewhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from test_many_nodes import NAMES, started

from balsamfut.messages import Fault, NodeState
from balsamfut.model import TILE, Resources


def picky(bad: str) -> str:
    """Where this ran; nothing survives it on the bad host."""
    import time

    host = os.uname().nodename
    if host == bad:
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(0.2)
    return host


@pytest.mark.timeout(120)
def test_a_host_on_which_workers_die_is_given_nothing_more(
        can_have_hosts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(tmp_path, monkeypatch) as block:
        play = block.play
        play.until(lambda: play.enrolments, 60)
        bad = block.names[1]            # one that work goes to before it goes to others
        app = play.app(picky, resources=Resources(gpu_shares=TILE))
        tasks = play.launch(*(play.item(app, bad) for _ in range(120)))
        play.until(lambda: len(play.exits.keys() & set(tasks)) == 120, 60)
        assert {name: news.state for name, news in play.nodes.items()} == {bad: NodeState.QUARANTINED}
        assert "different tasks in a row failed here" in play.nodes[bad].reason
        lost = [task for task in tasks if play.exits[task].fault is not Fault.NONE]
        assert 3 <= len(lost) <= 36 and all(play.exits[task].place.startswith("1:") for task in lost)
        charged = {task for task in lost if play.exits[task].fault is Fault.WORKER}
        assert charged == set(play.nodes[bad].tasks), "those are forgiven; what died later was not charged at all"
        assert {play.exits[task].fault for task in lost} <= {Fault.WORKER, Fault.NODE}
        assert {play.value(task) for task in tasks if task not in lost} == set(NAMES) - {bad}

        later = play.launch(*(play.item(app, bad) for _ in range(60)))
        assert {play.value(task) for task in later} == set(NAMES) - {bad}, "and no worker died"
