"""The interchange's brain and what people say of a block: the tasks it takes, how it is split, what a dry run shows."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interchange_world import CONFIG, Database, Harness, PretendPilot

from balsamfut import platforms
from balsamfut.interchange.core import BALANCE, RETURN, Core
from balsamfut.interchange.records import World, Writes
from balsamfut.messages import PROTOCOL, BlockAnswer, Enrol, Fault, Hello, Message, Notice, RemoveBlock, Submit
from balsamfut.model import AppKind, AppSpec, Extra, Options, Pool, Resources, TaskClass, TaskSpec, TaskState
from balsamfut.provider.base import BlockState, BlockStatus
from balsamfut.provider.recipe import Recipe
from balsamfut.queuemessages import Part, SubmitBlock

AURORA = Recipe(Path("/site"), platforms.load("aurora"), "pbs", python="/env/bin/python")


class Blocks(Database):
    """Keeps the blocks, too."""

    def commit(self, writes: Writes) -> None:
        super().commit(writes)
        for row in writes.blocks:
            self.world.blocks[:] = [old for old in self.world.blocks if old.id != row.id] + [copy.deepcopy(row)]

    def load_world(self) -> World:
        world = super().load_world()
        world.blocks = [row for row in world.blocks if not row.ended]
        return world


class Yard(Harness):
    """A site that is kept; its pilots hold two tasks a node."""

    def __init__(self, recipe: Recipe = CONFIG.recipe) -> None:
        self.config = dataclasses.replace(CONFIG, embedded=False, recipe=recipe)
        self.notices: list[str] = []
        self.said: list[BlockAnswer] = []
        super().__init__()

    def start(self) -> None:
        if not isinstance(self.db, Blocks):
            self.db = Blocks()
        self.core = Core(self.db.load_world(), self.config, lambda enrol, resources: 2 * len(enrol.nodes), self.now)
        self.inherit()
        self.turn()
        self.client(Hello(PROTOCOL, self.token, self.campaign, 1, "host"))
        self.turn()

    def to_client(self, message: Message) -> None:
        super().to_client(message)
        if isinstance(message, Notice):
            self.notices.append(message.text)
        elif isinstance(message, BlockAnswer):
            self.said.append(message)

    def call(self, count: int = 1, *, ranks: int = 1, priority: int = 0, **tags: str) -> list[int]:
        """Tasks with these tags; their numbers."""
        extra = Extra(tags=tuple(sorted(tags.items()))) if tags else None
        number = 10 * priority + ranks
        cls = TaskClass(b"app", b"pool", Resources(ranks_per_node=ranks), Options(priority=priority))
        specs = [TaskSpec(self.next_n + index, number, extra=extra) for index in range(count)]
        self.next_n += count
        self.client(Submit(specs, [(number, cls)], [AppSpec("f", AppKind.COMMAND, b"app")], [(b"app", b"code")],
                           [(b"pool", Pool("python", (), "/"))]))
        self.turn()
        return [self.ids[spec.n] for spec in specs]

    def ask_block(self, nodes: int = 1, **more: Any) -> BlockAnswer:
        wanted = SubmitBlock(1, nodes, 600.0, **more)
        self.core.batch.submit(b"client", wanted, f"bf-{self.core.book.next_pilot}", self.now)
        self.turn()
        return self.said.pop()

    def block(self, nodes: int = 1, **more: Any) -> list[PretendPilot]:
        """A block whose pilots are here."""
        answer = self.ask_block(nodes, **more)
        assert not answer.error
        row = self.core.book.blocks[answer.block]
        self.core.batch.told(BlockStatus(row.token, BlockState.RUNNING, "7.server"), self.now)
        made = []
        for number, _ in row.pilots():
            pilot = PretendPilot(number, self.core.book.pilots[number].row.token, f"pilot-{number}".encode())
            self.pilots[pilot.peer] = pilot
            made.append(pilot)
            self.enrol(pilot)
        self.turn()
        return made

    def enrol(self, pilot: PretendPilot) -> None:
        names = [f"n{index}" for index in range(self.core.book.pilots[pilot.number].part.nodes)]
        held = [(item.task, item.attempt) for item in pilot.held.values()]
        self.report(pilot, Enrol(PROTOCOL, pilot.number, pilot.token, 0, "host", "workstation", names, 2, 0, 0, held))

    def over(self, block: int) -> None:
        """The batch system says so."""
        row = self.core.book.blocks[block]
        for number, _ in row.pilots():
            self.pilots.pop(f"pilot-{number}".encode(), None)
        self.core.batch.told(BlockStatus(row.token, BlockState.ENDED, "7.server"), self.now)
        self.turn()

    def tick(self) -> None:
        self.core.tick(self.now)
        self.turn()


@pytest.fixture
def yard() -> Yard:
    return Yard()


# ---- which tasks a block takes


def test_a_block_with_tags_takes_only_tasks_that_have_all_of_them(yard: Yard) -> None:
    plain, half, whole = yard.call(), yard.call(kind="post"), yard.call(kind="post", run="7", more="x")
    narrow, = yard.block(tags={"kind": "post", "run": "7"})
    assert list(narrow.held) == whole
    wide, = yard.block()
    assert list(wide.held) == plain + half


def test_tasks_that_come_later_and_those_that_come_back_are_told_apart_too(yard: Yard) -> None:
    narrow, = yard.block(tags={"kind": "post"})
    yard.call(3)
    assert not narrow.held
    mine, = yard.call(kind="post")
    assert list(narrow.held) == [mine]
    yard.finish_task(narrow, mine, Fault.LAUNCHER)         # tried again later
    yard.now += 60.0
    yard.beats()
    yard.tick()
    assert list(narrow.held) == [mine]
    yard.finish_task(narrow, mine, Fault.RETURNED)
    yard.turn()
    assert list(narrow.held) == [mine], "nobody else takes it, and it takes nothing else"


def test_what_a_lost_block_with_tags_had_is_given_to_one_that_takes_everything(yard: Yard) -> None:
    mine = yard.call(2, kind="post")
    narrow, = yard.block(tags={"kind": "post"})
    assert list(narrow.held) == mine
    wide, = yard.block()
    yard.over(narrow.number)
    assert sorted(wide.held) == mine


def test_tasks_go_by_priority_and_age_though_they_queue_apart(yard: Yard) -> None:
    old, tagged, urgent = yard.call(), yard.call(kind="post"), yard.call(priority=1, kind="other")
    young = yard.call()
    yard.block(tags={"kind": "none"})
    yard.block(tags={"kind": "post", "never": "so"})
    wide, = yard.block()
    assert list(wide.held) == [*urgent, *old, *tagged, *young]


def test_queues_are_made_anew_only_when_another_filter_comes_or_the_last_one_goes(yard: Yard) -> None:
    yard.call(5)
    tagged = yard.call(5, kind="post")
    first, = yard.block(tags={"kind": "pre"})
    assert [line[2] for line in yard.core.queues.lines()] == [0]
    second, = yard.block(tags={"kind": "post"})
    returned = list(second.held)
    assert {line[2] for line in yard.core.queues.lines()} == {0, 1} and set(returned) < set(tagged)
    yard.over(first.number)
    yard.over(second.number)
    assert [line[2] for line in yard.core.queues.lines()] == [0] and yard.core.queues.size == 10
    wide, = yard.block(5)
    assert list(wide.held) == [*returned, *(each for each in range(1, 11) if each not in returned)]


def test_values_that_are_all_different_make_no_more_queues_than_there_are_filters(yard: Yard) -> None:
    yard.block(tags={"index": "none"})
    for index in range(50):
        yard.call(index=str(index))
    assert len(yard.core.queues.lines()) == 1


def test_a_block_for_mpi_takes_no_serial_task_and_the_other_way_round(yard: Yard) -> None:
    serial, wide = yard.call(), yard.call(ranks=4)
    for_mpi, = yard.block(mode="mpi")
    assert list(for_mpi.held) == wide
    for_serial, = yard.block(mode="serial")
    assert list(for_serial.held) == serial


def test_people_hear_once_that_the_pilots_here_do_not_take_what_waits(yard: Yard) -> None:
    yard.block(mode="mpi", tags={"kind": "post"})
    yard.call(ranks=4)
    yard.tick()
    yard.tick()
    assert yard.notices == ["tasks of f wait: the pilots here that they would fit take only mpi tasks with kind=post"]
    yard.call()
    yard.tick()
    assert len(yard.notices) == 2
    yard.block()
    yard.tick()
    assert len(yard.notices) == 2


def test_what_fitted_no_pilot_fits_when_another_one_comes_and_people_are_told_once_while_it_does_not(
        yard: Yard) -> None:
    queues = yard.core.queues
    first, = yard.block(mode="mpi")
    tasks = yard.call(5)
    yard.tick()
    yard.block(mode="mpi")
    yard.tick()
    assert len(yard.notices) == 1 and queues.unfit
    wide, = yard.block()
    yard.tick()
    assert list(wide.held) == tasks[:4] and not queues.unfit, "the rest waits for room, and not for another pilot"
    yard.over(wide.number)
    yard.tick()
    assert queues.unfit and len(yard.notices) == 2, "this is news again"
    for number in list(yard.core.book.blocks):
        yard.over(number)
    yard.tick()
    assert not queues.unfit, "whoever comes next may take it"
    yard.block(mode="mpi")
    yard.tick()
    assert queues.unfit and len(yard.notices) == 2


def test_an_interchange_that_starts_again_knows_what_its_blocks_take(yard: Yard) -> None:
    narrow, = yard.block(tags={"kind": "post"})
    first, second = yard.block(3, parts=[Part(1, "mpi"), Part(2, "serial", {"kind": "x"})])
    yard.restart()
    yard.turn()
    plain, mine, theirs = yard.call(), yard.call(kind="post"), yard.call(kind="x")
    wide = yard.call(ranks=4)
    assert (list(narrow.held), list(first.held), list(second.held)) == (mine, wide, theirs)
    assert yard.db.task(plain[0]).state is TaskState.READY
    yard.now += 4000.0
    yard.beats()
    yard.tick()
    assert len(yard.core.book.pilots) == 3, "blocks may wait for long"


def test_what_waits_in_a_full_pilot_goes_to_one_with_a_filter_only_if_that_takes_it(yard: Yard) -> None:
    wide, = yard.block()
    plain, tagged = yard.call(3), yard.call(1, kind="post")
    assert list(wide.held) == plain + tagged
    for task in plain[:2]:
        yard.start_task(wide, task)
    narrow, = yard.block(tags={"kind": "post"})
    for _ in range(3):
        yard.now += BALANCE
        yard.tick()
    assert (list(wide.held), list(narrow.held)) == (plain, tagged)


TAGS = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"))
PARTS = st.builds(Part, st.just(1), st.sampled_from(["any", "mpi", "serial"]), TAGS)
STEPS = st.one_of(
    st.tuples(st.just("call"), TAGS, st.sampled_from([1, 4])),
    st.tuples(st.just("block"), st.lists(PARTS, min_size=1, max_size=2)),
    st.tuples(st.sampled_from(["over", "done", "returned", "lost", "fails to start", "restart", "time"])))


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=20), st.randoms(use_true_random=False))
def test_whatever_happens_a_pilot_has_only_what_it_takes_and_no_task_is_forgotten(
        steps: list[tuple[Any, ...]], random: Random) -> None:
    yard = Yard()
    tags: dict[int, dict[str, str]] = {}
    for what, *more in steps:
        live = list(yard.pilots.values())
        holders = [pilot for pilot in live if pilot.held]
        if what == "call":
            wanted, ranks = more
            tags[yard.call(ranks=ranks, **wanted)[0]] = wanted
        elif what == "block":
            first, *others = more[0]
            if others:
                yard.block(2, parts=[first, *others])
            else:
                yard.block(mode=first.mode, tags=first.tags)
        elif what == "over" and yard.core.book.blocks:
            yard.over(random.choice(list(yard.core.book.blocks)))
        elif what == "restart":
            yard.restart()
        elif what == "time":
            yard.now += 60.0
            yard.beats()
            yard.tick()
        elif holders:
            pilot = random.choice(holders)
            fault = {"done": Fault.NONE, "returned": Fault.RETURNED, "lost": Fault.PILOT,
                     "fails to start": Fault.LAUNCHER}.get(what)
            if fault is not None:
                yard.finish_task(pilot, random.choice(list(pilot.held)), fault)
        yard.turn()
        for pilot in yard.pilots.values():
            part = yard.core.book.pilots[pilot.number].part
            for task in pilot.held:
                assert part.tags.items() <= tags[task].items()
                resources = yard.core.book.classes[yard.core.book.tasks[task].cls].spec.resources
                assert part.mode in ("any", "serial" if resources.serial else "mpi")
    wide, = yard.block()
    for _ in range(200):
        yard.now += 60.0
        yard.beats()
        yard.tick()
        for pilot in yard.pilots.values():
            for task in list(pilot.held):
                yard.finish_task(pilot, task, Fault.NONE)
        yard.turn()
    assert {task: row["state"] for task, row in yard.db.rows.items() if row["state"] is not TaskState.DONE} == {}
    assert len(yard.db.rows) == len(tags)


# ---- parts


def test_each_part_of_a_block_is_a_pilot_that_takes_what_it_says(yard: Yard) -> None:
    wide, serial, post = yard.call(8, ranks=4), yard.call(2), yard.call(2, kind="post")
    parts = yard.block(4, parts=[Part(3, "mpi"), Part(1, "serial", {"kind": "post"})])
    assert [len(pilot.held) for pilot in parts] == [8, 2]
    assert set(parts[0].held) <= set(wide) and set(parts[1].held) == set(post)
    assert [row.nodes for row in yard.db.world.pilots] == [3, 1]
    assert {yard.db.task(number).state for number in serial} == {TaskState.READY}


def test_a_block_that_is_over_takes_all_its_pilots_along(yard: Yard) -> None:
    tasks = yard.call(2, ranks=4)
    first, second = yard.block(2, parts=[Part(1, "mpi"), Part(1, "serial")])
    later, = yard.block(2)
    assert later.number == 3, "each part has a number"
    yard.over(first.number)
    assert list(yard.core.book.pilots) == [later.number]
    assert sorted(later.held) == tasks


def test_blocks_that_are_withdrawn_before_they_start_fail_no_task(yard: Yard) -> None:
    tasks = yard.call(3)
    for number in range(1, 9, 2):
        assert yard.ask_block(2, parts=[Part(1, "mpi"), Part(1)]).block == number
    asked, _ = yard.core.batch.orders()
    assert len(asked) == 4
    for number in range(1, 9, 2):
        yard.client(RemoveBlock(1, number))
        yard.over(number)
    assert {yard.db.task(number).state for number in tasks} == {TaskState.READY}


@pytest.mark.parametrize(("more", "says"), [
    ({"parts": [Part(1), Part(2)]}, "the parts have 1 + 2 nodes, and the block has 2: together"),
    ({"parts": [Part(1, "mp"), Part(1)]}, "a part with mode 'mp' was asked; there are any, mpi, serial"),
    ({"parts": [Part(0), Part(2)]}, "a part of 0 nodes was asked; each has at least 1"),
    ({"parts": [Part(1), Part(1)], "mode": "mpi"}, "give each part its own mode and tags"),
    ({"parts": [Part(1), Part(1)], "tags": {"a": "b"}}, "give each part its own mode and tags"),
    ({"mode": "all"}, "mode 'all' was asked; there are any, mpi, serial"),
    ({"params": {"a b": "c"}}, "'a b' cannot be the name of a variable in a job script"),
])
@pytest.mark.parametrize("dry_run", [False, True])
def test_what_cannot_be_is_refused_in_a_sentence_and_nothing_is_recorded(
        yard: Yard, more: dict[str, object], says: str, dry_run: bool) -> None:
    answer = yard.ask_block(2, dry_run=dry_run, **more)
    assert says in answer.error and not answer.block and not answer.script
    assert not yard.db.world.blocks and not yard.core.batch.wanted


# ---- a dry run


def test_a_dry_run_shows_the_script_of_the_block_that_it_would_be_and_records_nothing() -> None:
    yard = Yard(AURORA)
    yard.block(2, queue="debug-scaling", project="demo")
    answer = yard.ask_block(2, queue="debug-scaling", project="demo", dry_run=True)
    assert "debug-scaling takes at most 1 block of one user" in answer.error, "what is there counts"
    answer = yard.ask_block(1, queue="debug", project="demo", dry_run=True)
    assert (answer.block, answer.error, answer.command) == (2, "", "qsub -f")
    assert "#PBS -A demo\n#PBS -q debug\n" in answer.script and "--pilot 2 " in answer.script
    assert len(yard.db.world.blocks) == 1 and yard.core.book.next_pilot == 2


def test_a_split_block_starts_an_agent_for_each_part() -> None:
    answer = Yard(AURORA).ask_block(4, queue="debug-scaling", project="demo", dry_run=True,
                                    parts=[Part(3, "mpi"), Part(1, "serial", {"kind": "post"})])
    assert "#PBS -l select=4" in answer.script and "from balsamfut.pilot.parts import main" in answer.script
    assert "--parts 3,1" in answer.script


def test_a_block_takes_everything_only_if_nothing_is_said_of_its_tasks(yard: Yard) -> None:
    yard.block()
    yard.block(mode="mpi")
    yard.block(tags={"a": "b"})
    yard.block(2, parts=[Part(1), Part(1)])
    assert [row.takes_everything for row in yard.core.book.blocks.values()] == [True, False, False, False]


def test_a_part_whose_pilot_died_without_an_interchange_does_not_keep_its_tasks() -> None:
    yard = Yard()
    yard.ask_block(2, parts=[Part(1), Part(1)])
    row, = yard.core.batch.wanted
    yard.core.batch.told(BlockStatus(row.token, BlockState.RUNNING, "1"), yard.now)
    yard.turn()
    gone, other = (PretendPilot(number, yard.core.book.pilots[number].row.token, b"p%d" % number)
                   for number, _ in row.pilots())
    for pilot in (gone, other):
        yard.pilots[pilot.peer] = pilot
        yard.enrol(pilot)
    yard.turn()
    tasks = yard.call(4)
    assert len(gone.held) == len(other.held) == 2
    gone.alive = False
    yard.restart()
    for task in list(other.held):
        yard.finish_task(other, task, Fault.NONE)
    end = yard.now + RETURN + 40.0
    while yard.now < end:
        assert gone.number in yard.core.book.pilots or yard.now > end - 60.0
        yard.now += 10.0
        yard.beats()
        yard.core.tick(yard.now)
        yard.turn()
    assert sorted(other.held) == [task for task in tasks if task in gone.held]
    assert row.id in yard.core.book.blocks
