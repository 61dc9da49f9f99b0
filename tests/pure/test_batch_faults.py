"""The interchange's brain and a batch system that refuses blocks, drops them, or cannot be asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from interchange_world import CONFIG

from balsamfut import platforms
from balsamfut.errors import SettingsError
from balsamfut.interchange.batch import PASSES
from balsamfut.interchange.blocks import provider_of
from balsamfut.interchange.core import Core, Turn
from balsamfut.interchange.elastic import Failure
from balsamfut.interchange.records import BlockRow, World
from balsamfut.messages import (
    PROTOCOL,
    BlockAnswer,
    Enrol,
    Exited,
    Fault,
    Hello,
    Message,
    Notice,
    RemoveBlock,
    Reports,
    Started,
    Submit,
    SubmitBlock,
)
from balsamfut.model import AppKind, AppSpec, Options, Pool, Resources, TaskClass, TaskSpec, TaskState
from balsamfut.provider.base import BlockState, BlockStatus
from balsamfut.provider.batch import BatchProvider
from balsamfut.provider.pace import Pace
from balsamfut.provider.recipe import Recipe

DOWN = "qstat: cannot connect to server (errno=15010)"
SAID = f"the batch system cannot be asked, blocks that run go on: {DOWN}"


class Site:
    """The brain of a site that is kept, with one client, on a machine with PBS."""

    def __init__(self) -> None:
        config = replace(CONFIG, embedded=False, recipe=Recipe(Path("/site"), platforms.load("aurora"), "pbs"))
        self.now = 1000.0
        self.core = Core(World(), config, lambda enrol, resources: 2, self.now)
        self.said: list[Message] = []
        self.blocks: dict[int, BlockRow] = {}
        self.come(b"client", "first")

    def come(self, peer: bytes, token: str) -> None:
        self.core.client(peer, Hello(PROTOCOL, token, None, 1, "host"), self.now)
        self.turn()

    def turn(self) -> Turn:
        turn = self.core.finish(self.now)
        self.blocks |= {row.id: row for row in turn.writes.blocks}
        self.said += turn.out.clients.get(b"client", [])
        return turn

    def notices(self) -> list[str]:
        """What people were told since the last time."""
        said, self.said = self.said, []
        return [message.text for message in said if isinstance(message, Notice)]

    def ask(self, queue: str = "capacity", nodes: int = 1) -> str:
        """Ask for a block; its token."""
        token = f"bf-{self.core.book.next_pilot}"
        self.core.batch.submit(b"client", SubmitBlock(1, nodes, 3600.0, queue, "project"), token, self.now)
        self.turn()
        answer = self.said.pop()
        assert isinstance(answer, BlockAnswer) and not answer.error, answer
        return token

    def orders(self) -> tuple[list[str], list[str]]:
        wanted, unwanted = self.core.batch.orders()
        return [row.token for row in wanted], [row.token for row in unwanted]

    def tell(self, token: str, state: BlockState, text: str = "", *, again: bool = False, stuck: bool = False) -> None:
        self.now += 1.0
        id = "" if state in (BlockState.SUBMITTING, BlockState.REFUSED) else f"{token}.pbs"
        self.core.batch.told(BlockStatus(token, state, id, None, text, again, stuck), self.now)
        self.turn()

    def trouble(self, text: str) -> None:
        self.core.batch.trouble(text)
        self.turn()


@pytest.fixture
def site() -> Site:
    return Site()


def test_nothing_is_submitted_while_the_batch_system_cannot_be_asked(site: Site) -> None:
    first = site.ask()
    assert site.orders() == ([first], [])
    site.trouble(DOWN)
    second = site.ask()
    assert site.orders() == ([], []) and site.orders() == ([], [])
    assert site.blocks[2].text == f"it will be asked for when the batch system answers again: {DOWN}"
    site.trouble("")
    assert site.blocks[2].text == "" and site.orders() == ([second], []) and site.orders() == ([], [])


def test_blocks_that_waited_already_say_why_too(site: Site) -> None:
    site.ask()
    site.trouble(DOWN)
    assert DOWN in site.blocks[1].text and site.blocks[1].state == BlockState.SUBMITTING


def test_people_are_told_once_that_it_cannot_be_asked_and_once_that_it_can(site: Site) -> None:
    site.trouble(DOWN)
    site.trouble(DOWN)
    site.core.tick(site.now + 6.0)
    assert site.notices() == [SAID]
    site.trouble("")
    site.trouble("")
    assert site.notices() == ["the batch system answers again"]
    assert site.core.batch.news == [SAID, "the batch system answers again"], "for the log"


def test_a_client_that_comes_later_hears_of_it_once(site: Site) -> None:
    site.trouble(DOWN)
    site.core.client(b"other", Hello(PROTOCOL, "other", None, 2, "host"), site.now)
    heard = [message.text for message in site.turn().out.clients[b"other"] if isinstance(message, Notice)]
    assert heard == [SAID] and site.notices() == [SAID]


def test_a_block_that_waits_to_be_asked_for_is_withdrawn_without_asking_anybody(site: Site) -> None:
    site.trouble(DOWN)
    site.ask()
    site.notices()
    site.core.client(b"client", RemoveBlock(7, 1), site.now)
    site.turn()
    assert site.said == [BlockAnswer(7, 1, "")]
    assert (site.blocks[1].state, site.blocks[1].text) == (
        BlockState.REFUSED, "it was withdrawn before it was asked for")
    site.trouble("")
    assert site.orders() == ([], []) and not site.core.book.pilots and not site.core.batch.failures


def test_a_block_that_is_ended_is_cancelled_though_the_batch_system_cannot_be_asked(site: Site) -> None:
    token = site.ask()
    site.orders()
    site.trouble(DOWN)
    site.core.client(b"client", RemoveBlock(7, 1), site.now)
    assert site.orders() == ([], [token]), "the provider tries until it is done"


def test_of_a_block_that_was_told_to_end_the_history_says_so(site: Site) -> None:
    for number, words in ((1, "Job run at Mon Nov 23 on (n1:ncpus=1) and finished"), (2, "")):
        token = site.ask()
        site.orders()
        site.tell(token, BlockState.QUEUED)
        site.core.client(b"client", RemoveBlock(7, number), site.now)
        site.tell(token, BlockState.QUEUED, DOWN)
        assert site.blocks[number].text == DOWN
        site.tell(token, BlockState.ENDED, words)
        assert site.blocks[number].text == ": ".join(filter(None, ("it was told to end", words)))
    site.tell(site.ask(), BlockState.ENDED, "and terminated by tester@login")
    assert site.blocks[3].text == "and terminated by tester@login"


def test_a_refusal_is_told_in_the_batch_systems_words(site: Site) -> None:
    site.tell(site.ask(), BlockState.REFUSED, "Job violates queue and/or server resource limits")
    assert site.notices() == ["block 1 was refused: Job violates queue and/or server resource limits"]
    site.tell(site.ask(), BlockState.REFUSED, "would exceed limit", again=True)
    assert site.notices() == [f"block 2 was refused: would exceed limit ({PASSES})"]


def test_a_block_that_ends_before_its_pilot_is_there_is_told_and_one_that_a_person_ended_is_not(site: Site) -> None:
    token = site.ask()
    site.tell(token, BlockState.RUNNING)
    site.tell(token, BlockState.ENDED, "its first node was lost", again=True)
    assert site.notices() == [f"block 1 ended before its pilot was there: its first node was lost ({PASSES})"]
    token = site.ask()
    site.orders()
    site.core.client(b"client", RemoveBlock(7, 2), site.now)
    site.tell(token, BlockState.ENDED, "it never ran: it was deleted while it waited")
    assert site.notices() == []


def test_failures_of_a_queue_are_counted_one_after_the_other(site: Site) -> None:
    site.tell(site.ask(), BlockState.REFUSED, "no")
    site.tell(site.ask("debug"), BlockState.REFUSED, "not here")
    token = site.ask()
    site.tell(token, BlockState.QUEUED)
    site.tell(token, BlockState.RUNNING)
    assert site.core.batch.failures == {"debug": Failure(1, 1002.0, "not here")}
    site.tell(token, BlockState.ENDED, "the node's PBS was restarted under it", again=True)
    site.tell(site.ask(), BlockState.REFUSED, "no")
    assert site.core.batch.failures["capacity"] == Failure(3, 1006.0, "no")
    site.tell(site.ask(), BlockState.QUEUED)
    assert "capacity" not in site.core.batch.failures


def test_a_block_that_is_accepted_and_then_dropped_does_not_end_the_series(site: Site) -> None:
    for count in (1, 2, 3):
        token = site.ask()
        site.tell(token, BlockState.QUEUED)
        site.tell(token, BlockState.REFUSED, "dropped at once")
        assert site.core.batch.failures["capacity"].count == count


def test_news_of_a_block_that_waits_anyway_do_not_end_the_series(site: Site) -> None:
    token = site.ask()
    site.tell(token, BlockState.QUEUED)
    site.tell(site.ask(), BlockState.REFUSED, "no")
    site.tell(token, BlockState.QUEUED, "Not Running: Insufficient amount of resource")
    assert site.core.batch.failures["capacity"].count == 1


def test_blocks_that_end_as_they_should_are_no_failures(site: Site) -> None:
    token = site.ask()
    site.tell(token, BlockState.QUEUED)
    site.tell(token, BlockState.RUNNING)
    for pilot in site.core.book.pilots.values():
        pilot.row.started = 1002.0
    site.tell(token, BlockState.ENDED, "its walltime was over")
    assert not site.core.batch.failures


def test_a_block_that_ends_before_its_pilot_is_there_is_a_failure_of_its_series(site: Site) -> None:
    for count in (1, 2, 3):
        token = site.ask()
        site.tell(token, BlockState.QUEUED)
        site.tell(token, BlockState.RUNNING)
        site.tell(token, BlockState.ENDED)
        failure = site.core.batch.failures["capacity"]
        assert failure.count == count and "before its pilot was there" in failure.text


def test_a_block_that_is_put_back_in_the_queue_and_starts_again_is_one_block(site: Site) -> None:
    token = site.ask()
    site.tell(token, BlockState.RUNNING)
    site.tell(token, BlockState.QUEUED, "held (s): too many failed attempts to run")
    site.tell(token, BlockState.RUNNING)
    assert (site.blocks[1].state, site.blocks[1].started, site.blocks[1].ended) == (BlockState.RUNNING, 1001.0, 0.0)


def test_people_are_told_once_that_a_block_does_not_start_and_once_that_it_does(site: Site) -> None:
    token = site.ask()
    site.tell(token, BlockState.QUEUED)
    site.tell(token, BlockState.QUEUED, "held (s): too many failed attempts to run", stuck=True)
    site.trouble(DOWN)
    site.tell(token, BlockState.QUEUED, f"{DOWN}; before that: held (s): too many failed attempts to run", stuck=True)
    site.trouble("")
    site.tell(token, BlockState.QUEUED, "held (s): too many failed attempts to run", stuck=True)
    assert site.notices() == ["block 1 does not start: held (s): too many failed attempts to run", SAID,
                              "the batch system answers again"]
    site.tell(token, BlockState.QUEUED, "Not Running: Not enough free nodes available")
    site.tell(token, BlockState.RUNNING)
    assert site.notices() == ["block 1 is in the queue now"]


def test_people_are_told_that_a_submission_got_no_answer_and_that_it_was_done(site: Site) -> None:
    token = site.ask()
    site.tell(token, BlockState.SUBMITTING)
    assert site.notices() == []
    site.tell(token, BlockState.SUBMITTING, "qsub did not answer within 60 s")
    site.tell(token, BlockState.SUBMITTING, "qsub did not answer within 60 s")
    site.tell(token, BlockState.RUNNING)
    assert site.notices() == ["block 1 is not submitted yet: qsub did not answer within 60 s", "block 1 runs now"]


def test_tasks_wait_on_however_many_blocks_are_refused(site: Site) -> None:
    call = TaskSpec(1, 0, b"args", (), None, 0)
    site.core.client(b"client", Submit(
        [call], [(0, TaskClass(b"app", b"pool", Resources(), Options()))], [AppSpec("f", AppKind.PYTHON, b"app")],
        [(b"app", b"code")], [(b"pool", Pool("python", (), "/"))]), site.now)
    for _ in range(5):
        site.tell(site.ask(), BlockState.REFUSED, "no")
    assert {task.state for task in site.core.book.tasks.values()} == {TaskState.READY}


@pytest.mark.parametrize("kind", ["pbs", "slurm"])
def test_how_often_a_batch_system_is_asked_is_the_platforms_to_say(kind: str) -> None:
    def asked(**pace: object) -> object:
        machine = platforms.load("aurora")
        machine = msgspec.structs.replace(machine, scheduler={**machine.scheduler, "pace": pace})
        made = provider_of(Recipe(Path("/site"), machine, kind))
        assert isinstance(made, BatchProvider)
        made.close()
        return made.pace

    assert asked(every=60.0, most=600) == Pace(every=60.0, most=600.0)
    with pytest.raises(SettingsError, match=r"platform aurora: \[scheduler\]: .*evry.*pace"):
        asked(evry=60.0)
    with pytest.raises(SettingsError, match=r"platform aurora: .*> 0.*pace.every"):
        asked(every=0)


# ---- a clock that is not ours


@pytest.mark.parametrize("skew", [-3600.0, 3600.0, 0.0])
def test_times_of_a_pilot_whose_clock_is_wrong_are_put_right(site: Site, skew: float) -> None:
    site.core.client(b"client", Submit(
        [TaskSpec(1, 0, b"args", (), None, 0)], [(0, TaskClass(b"app", b"pool", Resources(), Options()))],
        [AppSpec("f", AppKind.PYTHON, b"app")], [(b"app", b"code")], [(b"pool", Pool("python", (), "/"))]), site.now)
    token = site.ask()
    site.tell(token, BlockState.RUNNING)
    site.now += 10.0
    site.core.pilot(b"pilot", Enrol(PROTOCOL, 1, token, 1, "node", "aurora", ["n"], 2, 0, 0, [], site.now + skew),
                    site.now)
    site.turn()
    task = site.core.book.tasks[1]
    started = site.now = site.now + 5.0
    site.core.pilot(b"pilot", Reports(1, [Started(1, 1, started + skew, "0:0")]), site.now)
    assert task.started == pytest.approx(started)
    ended = site.now = site.now + 7.0
    site.core.pilot(b"pilot", Reports(2, [Exited(1, 1, Fault.NONE, b"value", started + skew, ended + skew, "0:0")]),
                    site.now)
    assert (task.started, task.ended) == pytest.approx((started, ended))
    assert task.state is TaskState.DONE
