"""The elastic queue in the interchange's brain: what it sees, asks for and lets go; the batch system is ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
from interchange_world import CONFIG, Database, Harness

from balsamfut import platforms
from balsamfut.interchange import matcher, scaling
from balsamfut.interchange.backlog import Phase
from balsamfut.interchange.batch import AGAIN, GRACE, PARTING
from balsamfut.interchange.book import Pilot
from balsamfut.interchange.core import Core
from balsamfut.interchange.elastic import Plan
from balsamfut.interchange.records import BlockRow, PilotRow, Task, Writes
from balsamfut.interchange.scaling import PERIOD, SETTLES, offers, pairs
from balsamfut.messages import (
    PROTOCOL,
    BlockAnswer,
    Cancel,
    ElasticAnswer,
    ElasticOrder,
    Enrol,
    Fault,
    Message,
    NodeState,
    RemoveBlock,
    Stop,
    SubmitBlock,
)
from balsamfut.model import TaskState
from balsamfut.platforms.queues import Queue
from balsamfut.provider.base import BlockState, BlockStatus
from balsamfut.provider.recipe import Recipe
from balsamfut.settings import Elastic

HOUR = 3600.0
ON = Elastic(enabled=True, project="demo", idle=60.0)


class Recorder(Database):
    """Keeps what was written about blocks, too."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: dict[int, BlockRow] = {}

    def commit(self, writes: Writes) -> None:
        super().commit(writes)
        self.blocks |= {row.id: dataclasses.replace(row) for row in writes.blocks}


class Campaign(Harness):
    """A kept site on Aurora, whose batch system does what the test says."""

    def __init__(self, settings: Elastic = ON, *, embedded: bool = False, paused: bool = False) -> None:
        self.config = dataclasses.replace(CONFIG, embedded=embedded, elastic=settings, paused=paused,
                                          recipe=Recipe(Path("/site"), platforms.load("aurora"), "pbs"))
        self.elastic: list[ElasticAnswer] = []
        self.stopped: list[bytes] = []
        self.tokens = 0
        super().__init__()

    def start(self) -> None:
        if not isinstance(self.db, Recorder):
            self.db: Recorder = Recorder()
        self.core = Core(self.db.load_world(), self.config, lambda enrol, resources: 12 * len(enrol.nodes), self.now)
        self.inherit()
        self.turn()
        self.hello()

    def to_client(self, message: Message) -> None:
        super().to_client(message)
        if isinstance(message, ElasticAnswer):
            self.elastic.append(message)

    def to_pilot(self, peer: bytes, message: Message) -> None:
        super().to_pilot(peer, message)
        if isinstance(message, Stop):
            self.stopped.append(peer)

    def token_of(self) -> str:
        self.tokens += 1
        return f"bf-{self.tokens}"

    def wait(self, seconds: float, step: float = 1.0) -> None:
        """Let time pass; everybody who lives says so."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            self.core.scaling.look(self.now, self.token_of)
            self.core.batch.tick(self.now)
            self.beats()
            self.turn()

    def ask_elastic(self, order: str) -> ElasticAnswer:
        self.client(ElasticOrder(1, order))
        self.turn()
        return self.elastic[-1]

    def tasks(self, count: int) -> list[int]:
        ns = [self.submit() for _ in range(count)]
        self.turn()
        return [self.ids[n] for n in ns]

    @property
    def wanted(self) -> list[BlockRow]:
        """Blocks that are to be asked for."""
        return self.core.batch.wanted

    def status(self, row: BlockRow, state: BlockState, **more: object) -> None:
        self.core.batch.told(BlockStatus(row.token, state, f"{row.id}.pbs", **more), self.now)  # type: ignore[arg-type]
        self.turn()

    def begin(self, row: BlockRow) -> bytes:
        """The block starts, and its pilot comes."""
        from interchange_world import PretendPilot
        self.status(row, BlockState.RUNNING)
        pilot = PretendPilot(row.id, row.token, f"pilot-{row.id}".encode())
        self.pilots[pilot.peer] = pilot
        names = [f"n{index}" for index in range(row.nodes)]
        self.report(pilot, Enrol(PROTOCOL, row.id, row.token, 0, "host", "aurora", names, 12, 0, 0, []))
        self.turn()
        return pilot.peer

    def finish(self, peer: bytes, seconds: float = 1.0) -> None:
        """All that the pilot has is done."""
        pilot = self.pilots[peer]
        while pilot.held:
            reports = []
            for number in list(pilot.held):
                done = self.exit_of(pilot, number, Fault.NONE)
                reports.append(msgspec.structs.replace(done, started=self.now - seconds))
            self.say(pilot, reports)        # type: ignore[arg-type]
            self.turn()


def test_tasks_that_wait_bring_blocks_which_are_recorded_with_the_reason_before_they_are_asked_for() -> None:
    world = Campaign()
    world.wait(PERIOD)
    assert world.wanted == []
    world.tasks(50)
    world.wait(SETTLES + PERIOD)
    assert world.wanted
    for row in world.wanted:
        assert world.db.blocks[row.id].why and row.queue in {queue.name for queue in world.core.batch.recipe.queues}
        assert row.nodes <= 6, "fifty one-tile tasks need five nodes at most"


def test_what_a_waiting_block_will_do_is_asked_for_once() -> None:
    world = Campaign()
    world.tasks(12)
    world.wait(SETTLES + PERIOD)
    first = len(world.wanted)
    world.wait(20 * PERIOD)
    assert first and len(world.wanted) == first


def test_a_backlog_that_grows_is_waited_for_but_not_for_long() -> None:
    world = Campaign()
    world.tasks(20)
    began = world.now
    while not world.wanted and world.now < began + 2 * SETTLES:
        world.tasks(max(1, len(world.ids) // 10))
        world.wait(1.0)
    assert world.wanted and SETTLES - PERIOD <= world.now - began <= SETTLES + PERIOD


@pytest.mark.parametrize("case", ["off", "embedded", "paused", "trouble", "nobody pays", "no queues"])
def test_nothing_is_asked_for_where_it_shall_not(case: str) -> None:
    project = "" if case == "nobody pays" else "demo"
    world = Campaign(Elastic(enabled=case != "off", project=project), embedded=case == "embedded",
                     paused=case == "paused")
    if case == "trouble":
        world.core.batch.trouble("qstat: cannot connect to server")
    elif case == "no queues":
        world.core.scaling._offers = ()
    world.tasks(50)
    world.wait(SETTLES + 3 * PERIOD)
    assert world.wanted == []
    said = {"off": "enabled is false", "paused": "is paused", "trouble": "cannot connect to server",
            "nobody pays": "which project pays: [elastic] project", "no queues": "max_nodes and max_hours"}
    if case in said:
        assert any(said[case] in line for line in world.ask_elastic("plan").lines)


def test_pause_and_resume_are_answered_and_followed() -> None:
    world = Campaign()
    assert world.ask_elastic("pause").paused
    world.tasks(50)
    world.wait(SETTLES + PERIOD)
    assert world.wanted == []
    assert not world.ask_elastic("resume").paused
    world.wait(SETTLES + PERIOD)
    assert world.wanted


def test_a_plan_tells_what_would_be_done_and_does_nothing() -> None:
    world = Campaign(Elastic(project="demo"))
    world.tasks(50)
    plan = world.ask_elastic("plan")
    assert not plan.enabled and "enabled is false" in plan.lines[0]
    assert [step.what for step in plan.steps] == ["submit"] and plan.steps[0].nodes >= 1
    assert world.wanted == [] and world.core.book.blocks == {}


def test_an_unknown_order_and_an_embedded_interchange_say_what_would_be_right() -> None:
    assert "there are plan, pause and resume" in Campaign().ask_elastic("stop").error
    assert "site init" in Campaign(embedded=True).ask_elastic("plan").error


def test_tasks_that_no_node_can_run_are_named_and_bring_no_block() -> None:
    world = Campaign()
    world.tasks(2)
    cls = next(iter(world.core.book.classes.values()))
    cls.spec = msgspec.structs.replace(cls.spec, resources=msgspec.structs.replace(
        cls.spec.resources, threads_per_rank=4096))
    world.wait(SETTLES + PERIOD)
    assert world.wanted == []
    assert any("more than any node of aurora has" in line for line in world.ask_elastic("plan").lines)


# ---- letting go


def running(world: Campaign, tasks: int = 12) -> tuple[BlockRow, bytes]:
    """A world with one block, which runs."""
    world.tasks(tasks)
    world.wait(SETTLES + PERIOD)
    row, *_ = world.wanted
    world.wanted.clear()
    return row, world.begin(row)


def test_a_block_that_runs_nothing_is_told_to_end_after_the_idle_time() -> None:
    world = Campaign()
    row, peer = running(world)
    world.wait(200.0)
    assert world.stopped == [], "it has tasks"
    world.finish(peer)
    world.wait(ON.idle - 5.0)
    assert world.stopped == []
    world.wait(10.0)
    assert world.stopped == [peer] and world.core.batch.unwanted == []
    view = world.core.scaling.view(world.now)
    assert [block.phase for block in view.blocks] == [Phase.LEAVING]


def test_a_block_that_was_told_to_end_and_does_not_is_ended_by_the_batch_system() -> None:
    world = Campaign()
    row, peer = running(world)
    world.finish(peer)
    world.wait(ON.idle + 5.0)
    world.wait(GRACE + PARTING + 5.0)
    assert [each.id for each in world.core.batch.unwanted] == [row.id]


def test_a_block_of_a_person_is_not_let_go() -> None:
    world = Campaign()
    world.core.batch.submit(b"client", SubmitBlock(1, 1, HOUR, "debug", "project"), "bf-person", world.now)
    world.turn()
    row, = world.wanted
    world.begin(row)
    world.wait(10 * ON.idle)
    assert world.stopped == [] and world.core.batch.unwanted == []


def withdrawn() -> tuple[Campaign, BlockRow]:
    """A block that waited in the queue when its tasks were cancelled."""
    world = Campaign()
    tasks = world.tasks(12)
    world.wait(SETTLES + PERIOD)
    row, *_ = world.wanted
    world.wanted.clear()
    world.status(row, BlockState.QUEUED)
    world.ask(Cancel, tasks)
    world.turn()
    world.wait(ON.idle + 2 * PERIOD)
    return world, row


def test_a_waiting_block_is_withdrawn_when_its_tasks_were_cancelled() -> None:
    world, row = withdrawn()
    assert [each.id for each in world.core.batch.unwanted] == [row.id]
    assert world.wanted == []


def test_a_block_that_starts_though_it_was_withdrawn_is_told_to_end_and_its_end_is_asked_for_again() -> None:
    world, row = withdrawn()
    assert world.core.batch.orders() == ([], [row])
    peer = world.begin(row)
    assert world.stopped == [peer]
    for _ in range(int(2 * AGAIN)):
        world.now += 1.0
        world.core.batch.tick(world.now)
    assert world.core.batch.orders() == ([], [row, row])


# ---- what it sees


def test_the_view_has_blocks_as_they_stand_and_the_work_that_runs_in_them() -> None:
    world = Campaign()
    row, peer = running(world, 12)
    world.core.batch.submit(b"client", SubmitBlock(1, 1, HOUR, "debug", "project", mode="mpi"), "bf-mpi", world.now)
    view = world.core.scaling.view(world.now)
    mine, other = view.blocks
    assert (mine.phase, mine.ours, mine.serves, mine.end) == (Phase.RUNNING, True, True, row.started + row.walltime)
    assert mine.busy == pytest.approx(600.0 * 12 / 102), "twelve one-core tasks of ten minutes, for all that is known"
    assert (other.phase, other.ours, other.serves) == (Phase.QUEUED, False, False)
    assert [(wait.queue, wait.nodes) for wait in view.seen] == [(row.queue, row.nodes)]
    assert view.spent == pytest.approx(row.nodes * (world.now - row.started))


def test_a_blocks_time_is_what_its_pilot_says_is_left_of_it() -> None:
    world = Campaign()
    row, peer = running(world)
    world.core.book.pilots[row.id].ends = world.now + 100.0
    block, = world.core.scaling.view(world.now).blocks
    assert block.left(world.now) == pytest.approx(100.0)


def test_tasks_that_wait_for_others_are_counted_as_such() -> None:
    world = Campaign()
    first, = world.tasks(1)
    for _ in range(3):
        world.submit((first,))
    world.turn()
    demand, = world.core.scaling.view(world.now).demands
    assert (demand.count, demand.later) == (1, 3)


def test_a_queue_that_refuses_is_left_alone_for_a_while_and_what_is_over_counts_as_spent() -> None:
    world = Campaign(Elastic(enabled=True, project="demo", queues="debug", backoff=300.0))
    world.tasks(12)
    world.wait(SETTLES + PERIOD)
    row, = world.wanted
    world.wanted.clear()
    world.status(row, BlockState.REFUSED, text="qsub: would exceed queue's per-user limit")
    world.wait(200.0)
    assert world.wanted == []
    assert any("per-user limit" in line for line in world.ask_elastic("plan").lines)
    world.wait(200.0)
    again, = world.wanted
    world.begin(again)
    world.wait(100.0)
    world.status(again, BlockState.ENDED, exit_code=0)
    assert world.core.batch.past.spent == pytest.approx(again.nodes * (again.ended - again.started))
    assert world.core.batch.failures == {}


def test_to_know_how_much_there_is_to_do_nobody_looks_at_tasks() -> None:
    class Closed(dict[int, Task]):
        """Says no more than how many there are, and which one has a number."""

        def values(self) -> NoReturn:
            raise AssertionError("all tasks were looked at")

        items = __iter__ = values

    world = Campaign()
    first, second = world.tasks(2)
    world.submit(needs=(first,))
    world.turn()
    world.core.book.tasks = Closed(world.core.book.tasks)
    demand, = world.core.scaling.view(world.now).demands
    assert (demand.count, demand.later) == (2, 1)
    world.wait(SETTLES + PERIOD)
    assert len(world.wanted) == 1 and world.ask_elastic("plan").lines


def test_extra_settings_are_pairs() -> None:
    assert pairs("filesystems=home:flare a=b=c") == {"filesystems": "home:flare", "a": "b=c"}


def test_a_machine_whose_queues_are_not_described_is_asked_for_what_the_settings_say() -> None:
    described = (Queue("q", 1, 4, 60.0, HOUR),)
    assert offers(described, "slurm", 4, Elastic()) == described
    assert offers((), "slurm", 4, Elastic()) == ()
    named = offers((), "slurm", 4, Elastic(queues="a b", max_nodes=3, max_hours=2.0))
    assert [(each.name, each.max_nodes, each.max_wall) for each in named] == [("a", 3, 2 * HOUR), ("b", 3, 2 * HOUR)]
    here, = offers((), "local", 1, Elastic())
    assert (here.max_nodes, here.max_running, here.max_queued) == (1, 1, 1)


def test_near_the_end_what_takes_longest_goes_first_and_else_what_is_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Campaign()
    world.tasks(2)
    cls = next(iter(world.core.book.classes.values()))
    long = msgspec.structs.replace(cls.spec, options=msgspec.structs.replace(cls.spec.options, walltime=2 * HOUR))
    number = world.core.book.intern_class(long)
    first, last = world.core.book.tasks.values()
    world.core.queues.pop(world.core.queues.lines()[0])
    world.core.queues.pop(world.core.queues.lines()[0])
    for task in (first, last):
        world.core.book.move(task, TaskState.ASSIGNED)
    last.cls = number
    for task in (first, last):
        world.core.book.move(task, TaskState.READY)
        world.core.queues.push(task)
    pilot = Pilot(PilotRow(9, "t", "", 0, "aurora", 1, 0.0))
    pilot.enrolled, pilot.capacity = True, {first.cls: 5, number: 5}

    def order(soon: bool) -> list[int]:
        monkeypatch.setattr(scaling, "decide", lambda view, surplus: Plan((), (), longest_first=soon))
        world.wait(2 * PERIOD)
        found = [task for _, task in matcher.match(world.core.book, world.core.queues, [pilot])]
        for task in found:
            world.core.queues.push(task)
        pilot.counts.clear()
        return [task.id for task in found]

    assert order(False) == [first.id, last.id]
    assert order(True) == [last.id, first.id]
    assert order(False) == [first.id, last.id]
    assert order(True) == [last.id, first.id]
    world.now += scaling.END
    assert order(True) == [first.id, last.id], "work keeps coming: short tasks do not wait for ever"


def test_blocks_that_end_before_their_pilots_are_there_are_asked_for_less_and_less_often() -> None:
    world = Campaign(Elastic(enabled=True, project="demo", queues="debug", backoff=300.0))
    world.tasks(12)
    world.wait(SETTLES + PERIOD)
    asked, end = 0, world.now + HOUR
    while world.now < end:
        for row in list(world.wanted):
            world.wanted.clear()
            asked += 1
            world.status(row, BlockState.QUEUED)
            world.status(row, BlockState.RUNNING)
            world.status(row, BlockState.ENDED, exit_code=127)
        world.wait(5.0)
    assert asked == 4, "at once, and after 5, 10 and 20 minutes"
    why = "ended before its pilot was there: its block ended with 127"
    assert any(why in line for line in world.ask_elastic("plan").lines)


@pytest.mark.parametrize(("typical", "checkpoint", "asked"), [
    (2400.0, False, True), (2400.0, True, True), (90_000.0, True, True), (90_000.0, False, False)])
def test_tasks_are_given_the_longest_block_there_may_be_if_it_can_do(
        typical: float, checkpoint: bool, asked: bool) -> None:
    world = Campaign(Elastic(enabled=True, project="demo", max_hours=1.0))
    world.tasks(12)
    for info in world.core.book.classes.values():
        info.typical = typical
        info.spec = msgspec.structs.replace(info.spec, options=msgspec.structs.replace(
            info.spec.options, checkpoint=checkpoint))
    world.wait(SETTLES + PERIOD)
    assert bool(world.wanted) is asked


@pytest.mark.parametrize("why", ["nodes", "time", "not as described"])
def test_a_block_that_has_become_too_little_for_what_waits_is_not_counted_on_and_let_go(why: str) -> None:
    world = Campaign(Elastic(enabled=True, project="demo", idle=60.0))
    row, peer = running(world, 1)
    world.finish(peer)
    task, = world.tasks(1)
    pilot = world.core.book.pilots[row.id]
    world.finish(peer)
    world.core.attempts.fits = lambda enrol, resources: 0
    pilot.capacity = {}
    if why == "nodes":
        pilot.out[pilot.nodes[0]] = NodeState.QUARANTINED
    elif why == "time":
        pilot.closed = {1, 2, 3}
    world.tasks(1)
    world.wait(2 * PERIOD)
    assert len(world.wanted) == (why != "not as described")
    world.wait(ON.idle)
    assert (world.stopped == [peer]) is (why != "not as described")


def test_what_could_not_be_handled_is_answered_so_that_nobody_waits() -> None:
    world = Campaign()
    for message in (SubmitBlock(1, 1, HOUR), RemoveBlock(1, 7), ElasticOrder(1, "plan")):
        world.core.requests.dropped(b"client", message)
        (answer,) = world.core.finish(world.now).out.clients[b"client"]
        assert isinstance(answer, BlockAnswer | ElasticAnswer) and "its log says why" in answer.error
