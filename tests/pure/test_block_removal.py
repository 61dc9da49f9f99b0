"""Blocks whose end somebody wants: what is recorded before it is answered, and how the next interchange goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from interchange_world import PretendPilot
from test_interchange_blocks import Yard

from balsamfut import platforms
from balsamfut.interchange.batch import AGAIN, GRACE, PARTING
from balsamfut.interchange.blocks import Blocks
from balsamfut.interchange.records import BlockRow
from balsamfut.messages import BlockAnswer, Message, RemoveBlock, Stop
from balsamfut.provider.base import BlockSpec, BlockState, BlockStatus
from balsamfut.provider.recipe import Recipe
from balsamfut.queuemessages import Part

AURORA = Recipe(Path("/site"), platforms.load("aurora"), "pbs", python="/env/bin/python")


class Kept(Yard):
    """A site whose blocks are those of a machine with queues; what pilots are told of their end is kept."""

    def __init__(self) -> None:
        self.stops: list[tuple[int, float]] = []
        super().__init__(AURORA)

    def to_pilot(self, peer: bytes, message: Message) -> None:
        super().to_pilot(peer, message)
        if isinstance(message, Stop):
            self.stops.append((self.pilots[peer].number, message.grace))

    def ask_block(self, nodes: int = 1, **more: object) -> BlockAnswer:
        answer = super().ask_block(nodes, queue="capacity", project="demo", **more)
        assert not answer.error, answer.error
        return answer

    def block(self, nodes: int = 1, **more: object) -> list[PretendPilot]:
        pilots = super().block(nodes, **more)
        self.core.batch.orders()
        return pilots

    def remove(self, number: int, *, crash: str = "") -> None:
        self.client(RemoveBlock(1, number))
        self.turn(crash=crash)
        if not crash:
            assert self.said.pop() == BlockAnswer(1, number, "")

    def tell(self, number: int, state: BlockState, id: str = "7.server", text: str = "") -> None:
        self.core.batch.told(BlockStatus(f"bf-{number}", state, id, None, text), self.now)
        self.turn()

    def row(self, number: int) -> BlockRow:
        """As it is recorded."""
        return next(row for row in self.db.world.blocks if row.id == number)

    def unwanted(self) -> list[int]:
        return [row.id for row in self.core.batch.orders()[1]]

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.beats()
        self.tick()


@pytest.fixture
def kept() -> Kept:
    return Kept()


def asked(kept: Kept) -> int:
    """A block that the batch system has been asked for."""
    number = kept.ask_block().block
    kept.core.batch.orders()
    return number


def test_that_somebody_wants_the_end_of_a_block_is_recorded_before_it_is_answered(kept: Kept) -> None:
    number = asked(kept)
    kept.tell(number, BlockState.QUEUED)
    kept.remove(number, crash="after commit")
    assert not kept.said and kept.row(number).removal > 0.0
    kept.restart()
    kept.tick()
    assert kept.unwanted() == [number]


def test_the_end_of_a_block_goes_on_in_the_next_interchange_until_it_has_come(kept: Kept) -> None:
    number = asked(kept)
    kept.tell(number, BlockState.QUEUED)
    kept.remove(number)
    for _ in range(2):
        kept.restart()
        kept.tick()
        assert kept.unwanted() == [number], "asked by each"
        kept.wait(AGAIN / 2)
        assert kept.unwanted() == []
        kept.wait(AGAIN)
        assert kept.unwanted() == [number], "and again"
    kept.over(number)
    assert kept.notices == [] and not kept.core.batch.failures, "it was wanted"
    kept.restart()
    kept.tick()
    assert kept.unwanted() == [] and not kept.core.book.blocks


def test_pilots_that_did_not_hear_it_from_the_interchange_before_are_told_when_they_come_back(kept: Kept) -> None:
    pilot, = kept.block(2)
    task, = kept.call()
    assert task in pilot.held
    kept.remove(pilot.number, crash="after commit")
    assert kept.stops == []
    kept.restart()
    kept.turn()
    assert kept.stops == [(pilot.number, GRACE)]
    kept.tick()
    more, = kept.call()
    assert kept.unwanted() == [] and more not in pilot.held, "it takes the usual course"
    kept.wait(GRACE + PARTING + 1.0)
    assert kept.unwanted() == [pilot.number], "the batch system ends it where it does not"


def test_a_pilot_that_comes_back_while_it_ends_keeps_the_time_that_it_was_given(kept: Kept) -> None:
    pilot, = kept.block()
    kept.remove(pilot.number)
    kept.enrol(pilot)
    kept.turn()
    assert kept.stops == [(pilot.number, GRACE)] * 2


def test_a_block_that_is_removed_a_second_time_is_asked_for_at_once_after_a_restart_too(kept: Kept) -> None:
    pilot, = kept.block()
    kept.remove(pilot.number)
    kept.remove(pilot.number, crash="after commit")
    kept.restart()
    kept.tick()
    assert kept.unwanted() == [pilot.number]


def test_a_clock_of_another_host_does_not_put_off_the_end_of_a_block(kept: Kept) -> None:
    pilot, = kept.block()
    queued = asked(kept)
    kept.remove(pilot.number)
    kept.remove(queued)
    for row in kept.db.world.blocks:
        row.removal += 7200.0
    kept.restart()
    kept.tick()
    assert kept.unwanted() == [queued]
    kept.wait(GRACE + PARTING + 1.0)
    assert kept.unwanted() == [pilot.number]


def test_a_split_block_of_which_a_part_never_came_is_ended_by_the_batch_system(kept: Kept) -> None:
    number = kept.ask_block(2, parts=[Part(1), Part(1)]).block
    kept.core.batch.orders()
    kept.tell(number, BlockState.RUNNING)
    first = PretendPilot(number, f"bf-{number}", b"first")
    kept.pilots[first.peer] = first
    kept.enrol(first)
    kept.turn()
    kept.remove(number)
    kept.restart()
    kept.turn()
    kept.tick()
    assert kept.unwanted() == [number] and kept.stops == [(number, GRACE), (number, 0.0)]


class Asked:
    """A provider that notes what it is asked."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def adopt(self, token: str, id: str, now: float, spec: BlockSpec | None = None) -> None:
        self.said.append(("adopt, submit" if spec is not None else "adopt", token))

    def cancel(self, token: str, now: float) -> None:
        self.said.append(("cancel", token))

    def poll(self, now: float) -> list[BlockStatus]:
        self.said.append(("poll", ""))
        return []

    def trouble(self) -> str:
        return ""

    def due(self) -> float | None:
        return None


def test_a_submission_in_flight_is_to_be_looked_up_and_cancelled_before_it_can_be_tried_again(
        kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = asked(kept)
    kept.tell(number, BlockState.SUBMITTING, "")
    kept.remove(number)
    kept.restart()
    provider = Asked()
    monkeypatch.setattr("balsamfut.interchange.blocks.provider_of", lambda recipe: provider)
    blocks = Blocks(Recipe(tmp_path, AURORA.platform, "pbs"))
    blocks.adopt(kept.core.batch, kept.now)
    kept.tick()
    blocks.ask(kept.core.batch, kept.now)
    assert [what for what, _ in provider.said] == ["adopt, submit", "cancel", "poll"]


def test_a_block_that_was_not_asked_for_yet_is_over_when_it_is_removed(kept: Kept) -> None:
    number = kept.ask_block().block
    kept.remove(number, crash="after commit")
    assert kept.row(number).ended and kept.row(number).state == BlockState.REFUSED
    kept.restart()
    assert not kept.core.book.blocks and not kept.core.book.pilots
