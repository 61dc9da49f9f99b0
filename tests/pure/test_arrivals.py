"""Blocks that run though their pilots are not there, or end before: people are told, and the elastic queue waits."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from interchange_world import PretendPilot
from test_block_removal import AURORA, Kept
from test_scaling import SETTLES, Campaign

from balsamfut.interchange import files
from balsamfut.interchange.blocks import Blocks
from balsamfut.interchange.records import BlockRow
from balsamfut.interchange.scaling import PERIOD
from balsamfut.messages import PROTOCOL, Hello, Notice
from balsamfut.provider.base import BlockSpec, BlockState, BlockStatus
from balsamfut.queuemessages import Part
from balsamfut.settings import Elastic

LATE, GIVE_UP, HOUR = 300.0, 900.0, 3600.0
ENDS = "/site/log/pilot-1.log ends: loading modules"
HANGS = f"block 1 runs, but its pilot is not there after 5 min: {ENDS}"


class Yard(Kept):
    """What blocks have written is what the test says."""

    output = "loading modules"

    def submitted(self, **more: object) -> int:
        number = self.ask_block(**more).block     # type: ignore[arg-type]
        self.core.batch.orders()
        return number

    def wait(self, seconds: float) -> None:
        """Time passes, and the loop looks at what there is."""
        for _ in range(int(seconds // 10)):
            super().wait(10.0)
            for row in self.core.batch.arrivals.overdue(self.now):
                self.core.batch.arrivals.missed(row, f"/site/log/pilot-{row.id}.log ends: {self.output}", self.now)
            self.turn()

    def come(self, number: int) -> None:
        token = self.core.book.pilots[number].row.token
        pilot = self.pilots[f"pilot-{number}".encode()] = PretendPilot(number, token, f"pilot-{number}".encode())
        self.enrol(pilot)
        self.turn()


@pytest.fixture
def yard() -> Yard:
    return Yard()


def test_people_are_told_once_that_a_block_runs_without_its_pilot_and_where_to_look(yard: Yard) -> None:
    number = yard.submitted()
    yard.tell(number, BlockState.QUEUED)
    yard.wait(2 * LATE)
    yard.tell(number, BlockState.RUNNING)
    yard.wait(LATE - 20.0)
    assert yard.notices == []
    yard.wait(2 * HOUR)
    assert yard.notices == [HANGS] and HANGS.endswith(yard.row(number).note)
    assert yard.unwanted() == [], "a block of a person is left alone"
    yard.core.client(b"other", Hello(PROTOCOL, "other", None, 2, "host"), yard.now)
    heard = [each.text for each in yard.core.finish(yard.now).out.clients[b"other"] if isinstance(each, Notice)]
    assert heard == [HANGS], "who comes later hears of it, too"


def test_a_pilot_that_comes_late_is_told_and_the_block_is_counted_on_again(yard: Yard) -> None:
    number = yard.submitted()
    yard.tell(number, BlockState.RUNNING)
    yard.wait(LATE + 20.0)
    yard.come(number)
    assert yard.core.batch.arrivals.overdue(yard.now) == []
    yard.wait(LATE + 20.0)
    assert yard.notices == [HANGS, "block 1 works: its pilot is there now"] and yard.row(number).note == ""
    assert yard.core.batch.arrivals.failure is None


def test_the_next_interchange_waits_anew_and_says_nothing_twice(yard: Yard) -> None:
    first, second = yard.submitted(), yard.submitted()
    yard.tell(first, BlockState.RUNNING)
    yard.wait(LATE + 20.0)
    yard.tell(second, BlockState.RUNNING)
    yard.wait(LATE - 50.0)
    yard.restart()
    del yard.notices[:]
    yard.wait(LATE - 20.0)
    assert yard.notices == [], "a pilot waits for an interchange, too"
    yard.wait(40.0)
    assert yard.notices == [HANGS.replace("1", "2")]


def test_no_pilot_is_missed_for_the_time_in_which_the_interchange_stood_still(yard: Yard) -> None:
    yard.tell(yard.submitted(), BlockState.RUNNING)
    yard.wait(LATE - 20.0)
    yard.now += HOUR
    yard.core.stalled(HOUR)
    yard.wait(10.0)
    assert yard.notices == []
    yard.wait(20.0)
    assert yard.notices == [HANGS]


def test_a_block_that_is_put_back_in_the_queue_is_not_missed(yard: Yard) -> None:
    number = yard.submitted()
    yard.tell(number, BlockState.RUNNING)
    yard.wait(LATE + 20.0)
    yard.tell(number, BlockState.QUEUED)
    yard.wait(HOUR)
    assert yard.row(number).note == ""
    yard.tell(number, BlockState.RUNNING)
    yard.wait(LATE - 20.0)
    assert yard.notices == [HANGS]
    yard.wait(40.0)
    assert yard.notices == [HANGS] * 2, "it began anew"


def test_a_part_whose_pilot_is_not_there_is_told_and_no_failure_of_all_blocks(yard: Yard) -> None:
    number = yard.submitted(nodes=2, parts=[Part(1), Part(1)])
    yard.tell(number, BlockState.RUNNING)
    yard.come(number)
    yard.wait(LATE + 20.0)
    assert yard.notices == [HANGS.replace("its pilot is", "1 of its 2 pilots is")]
    assert yard.core.batch.arrivals.failure is None


def test_a_block_that_is_being_removed_is_not_missed(yard: Yard) -> None:
    number = yard.submitted()
    yard.tell(number, BlockState.RUNNING)
    yard.remove(number)
    yard.wait(HOUR)
    assert yard.notices == []


def test_a_block_that_ends_before_its_pilot_is_there_is_told_with_the_end_of_its_output(yard: Yard) -> None:
    number = yard.submitted()
    yard.tell(number, BlockState.RUNNING)
    ended = BlockStatus("bf-1", BlockState.ENDED, "7.server", 1)
    yard.core.batch.told(ended, yard.now, "/site/log/pilot-1.log ends: no such venv")
    yard.turn()
    note = "/site/log/pilot-1.log ends: no such venv"
    assert yard.notices == [f"block 1 ended before its pilot was there: its block ended with 1; {note}"]
    assert yard.row(number).note == note


# ---- the loop reads what blocks have written


class Told:
    """A provider that says what the test says."""

    def __init__(self, *told: BlockStatus) -> None:
        self.told = list(told)

    def adopt(self, token: str, id: str, now: float, spec: BlockSpec | None = None) -> None:
        pass

    def poll(self, now: float) -> list[BlockStatus]:
        told, self.told = self.told, []
        return told

    def trouble(self) -> str:
        return ""

    def due(self) -> float | None:
        return None


def test_what_a_block_without_a_pilot_has_written_is_read_where_it_is(
        yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Told()
    monkeypatch.setattr("balsamfut.interchange.blocks.provider_of", lambda recipe: provider)
    blocks = Blocks(dataclasses.replace(AURORA, site=tmp_path))
    first, second, third = yard.submitted(), yard.submitted(), yard.submitted()
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "pilot-2.log").write_text("a\n" * 5000 + "\nbash: /venv/bin/python:\x1b[1m no such file\n\n")
    provider.told = [BlockStatus(f"bf-{number}", BlockState.RUNNING, "7.server") for number in (first, second, third)]
    blocks.ask(yard.core.batch, yard.now)
    yard.tick()
    yard.now += LATE
    blocks.ask(yard.core.batch, yard.now)
    (tmp_path / "log" / "pilot-3.log").touch()
    provider.told = [BlockStatus(f"bf-{third}", BlockState.ENDED, "7.server", 1)]
    blocks.ring()
    blocks.ask(yard.core.batch, yard.now)
    yard.turn()
    runs = "runs, but its pilot is not there after 5 min:"
    assert yard.notices == [
        f"block 1 {runs} there is no {tmp_path}/log/pilot-1.log yet",
        f"block 2 {runs} {tmp_path}/log/pilot-2.log ends: a | a | a | bash: /venv/bin/python: [1m no such file",
        f"block 3 {runs} there is no {tmp_path}/log/pilot-3.log yet",
        f"block 3 ended before its pilot was there: its block ended with 1; {tmp_path}/log/pilot-3.log is empty"]


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert files.last_words(tmp_path) == f"{tmp_path} cannot be read: Is a directory"
    assert files.last_words(tmp_path / "none") == ""


# ---- the elastic queue


def hung(world: Campaign, row: BlockRow) -> None:
    """A block starts, and its pilot never comes."""
    world.wanted.clear()
    world.status(row, BlockState.QUEUED)
    world.status(row, BlockState.RUNNING)


def wait(world: Campaign, seconds: float) -> None:
    for _ in range(int(seconds // 5)):
        world.wait(5.0)
        for row in world.core.batch.arrivals.overdue(world.now):
            world.core.batch.arrivals.missed(row, "it says nothing", world.now)


def test_a_block_that_hangs_is_not_counted_on_and_no_other_is_asked_for_until_it_was_ended() -> None:
    world = Campaign(Elastic(enabled=True, project="demo", queues="debug", backoff=300.0))
    world.tasks(12)
    wait(world, SETTLES + PERIOD)
    first, = world.wanted
    hung(world, first)
    wait(world, LATE + 20.0)
    block, = world.core.scaling.view(world.now).blocks
    assert not block.serves and world.wanted == []
    assert any("its pilot was not there: no other is asked for" in line for line in world.ask_elastic("plan").lines)
    wait(world, GIVE_UP - LATE - 60.0)
    assert world.wanted == [] and world.core.batch.unwanted == []
    wait(world, 60.0)
    assert [row.id for row in world.core.batch.unwanted] == [first.id], "it is ended"
    world.status(first, BlockState.ENDED)
    wait(world, 200.0)
    assert world.wanted == [] and any("another is asked for in" in line for line in world.ask_elastic("plan").lines)
    wait(world, 120.0)
    second, = world.wanted
    world.begin(second)
    assert world.core.batch.arrivals.failure is None, "blocks work"


def test_blocks_that_all_hang_are_asked_for_less_and_less_often_whatever_their_queues() -> None:
    world = Campaign(Elastic(enabled=True, project="demo", backoff=600.0))
    world.tasks(12)
    asked: list[float] = []
    for _ in range(720):
        for row in list(world.wanted):
            if not asked or world.now - asked[-1] > 60.0:
                asked.append(world.now)
            hung(world, row)
        for row in world.core.batch.orders()[1]:
            world.status(row, BlockState.ENDED)
        wait(world, 10.0)
    waits = [after - before for before, after in itertools.pairwise(asked)]
    assert len(waits) == 2 and waits[0] >= GIVE_UP + 600.0 and waits[1] >= GIVE_UP + 1200.0, "in two hours"


def test_a_block_is_left_to_its_walltime_where_the_settings_say_so() -> None:
    world = Campaign(Elastic(enabled=True, project="demo", give_up=0.0))
    world.tasks(12)
    wait(world, SETTLES + PERIOD)
    first, = world.wanted
    hung(world, first)
    wait(world, 2 * GIVE_UP)
    assert world.core.batch.unwanted == [] and world.wanted != [], "another one is tried after the pause"
