"""Nodes that fail what they are given: pretended ones, real processes, and what people are told of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_samples import surroundings
from waiting import until

from balsamfut import Executor, ShellResult, TaskFuture, app, cli, schema
from balsamfut.infos import NodeInfo
from balsamfut.interchange.records import NodeRow, PilotRow, Writes
from balsamfut.interchange.store import Store
from balsamfut.messages import NodeState
from balsamfut.query import open_site

Run = Callable[..., str]
FIRST = {"meta", "campaigns", "sessions", "apps", "codes", "pools", "classes", "tasks", "edges", "attempts", "tags",
         "events", "pilots"}
"""The tables of the schema's first version."""


@app.shell("echo $BALSAMFUT_NODES; sleep 0.05; test $BALSAMFUT_NODES != aurora-2", gpus_per_rank=1, retries=20)
def picky(n: int) -> None: ...


@app.shell("exit 3", gpus_per_rank=1)
def broken(n: int) -> None: ...


@app.shell("true", num_nodes=4)
def wide() -> None: ...


@pytest.fixture
def run(site_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; what it printed."""
    def run(*words: str) -> str:
        capsys.readouterr()
        assert cli.main(words) == 0
        return capsys.readouterr().out

    return run


def nodes(**how: bool) -> dict[str, NodeInfo]:
    with open_site(".balsamfut") as reader:
        return {node.name: node for node in reader.nodes(**how)}


def where(future: TaskFuture[ShellResult]) -> str:
    """The node that the task ran on in the end."""
    return future.result(timeout=30).stdout.read_text().split()[-1]


def test_a_node_that_fails_its_tasks_is_put_out_and_every_task_succeeds_elsewhere(run: Run) -> None:
    with warnings.catch_warnings(), Executor(platform="aurora", nodes=4):
        warnings.simplefilter("ignore")
        first = [picky(n) for n in range(150)]
        assert {where(future) for future in first} == {"aurora-0", "aurora-1", "aurora-3"}
        states = {name: node.state for name, node in nodes().items()}
        assert states == {"aurora-0": "up", "aurora-1": "up", "aurora-2": "quarantined", "aurora-3": "up"}
        why = nodes()["aurora-2"].reason
        assert "different tasks in a row failed here" in why and "none did" in why and "exit code 1" in why

        # A request that needs all four is not run any more, and is not lost: it waits.
        all_four = wide()
        assert all_four.task_id
        second = [picky(n) for n in range(150, 250)]
        assert {where(future) for future in second} == {"aurora-0", "aurora-1", "aurora-3"}
        with open_site(".balsamfut") as reader:
            tried = [task for task in reader.tasks(app="picky") if task.id >= second[0].task_id]
            assert all(len(task.attempts) == 1 for task in tried), "none of these saw the bad node"
            assert reader.task(all_four.task_id).state == "READY"
        assert all_four.cancel()

        listed = run("node", "ls").splitlines()
        assert listed[0].split() == ["PILOT", "NODE", "STATE", "SINCE", "WHY"]
        assert listed[1].split()[:3] == ["1", "aurora-2", "quarantined"] and "tasks in a row" in listed[1]
        assert [line.split()[1] for line in listed[2:]] == ["aurora-0", "aurora-1", "aurora-3"]
        assert "nodes that are given no work: 1 (aurora-2)" in run("status")
        assert [each["name"] for each in json.loads(run("status", "--json"))["status"]["nodes_out"]] == ["aurora-2"]
    until(lambda: not nodes(), "the pilot is over, so its nodes are no more")
    assert len(nodes(over=True)) == 4


def test_a_program_that_fails_everywhere_puts_no_node_out(site_dir: Path) -> None:
    with Executor(platform="aurora", nodes=4):
        wait([broken(n) for n in range(200)], timeout=40)
        assert {node.state for node in nodes().values()} == {"up"}


# ---- the record


@pytest.fixture
def store(site_dir: Path) -> Iterator[Store]:
    (site_dir / ".balsamfut").mkdir()
    made = Store(site_dir / ".balsamfut" / "balsamfut.db")
    made.open()
    made.commit(surroundings())
    yield made
    made.close()


def up(pilot: int, count: int) -> list[NodeRow]:
    return [NodeRow(pilot, f"x{index:04}", NodeState.UP, "", 100.0) for index in range(count)]


def test_many_nodes_that_are_up_are_counted_and_the_others_named(store: Store, run: Run) -> None:
    gone = NodeRow(1, "x0017", NodeState.LOST, "its agent was not heard of for 20 s", 200.0)
    store.commit(Writes(pilots=[PilotRow(1, "a", "here", 1, "aurora", 300, 1.0)], nodes=up(1, 300)))
    store.commit(Writes(nodes=[gone]))
    first, second = run("node", "ls").splitlines()[1:]
    assert first.split()[:3] == ["1", "x0017", "lost"] and first.endswith("its agent was not heard of for 20 s")
    assert second.split()[:4] == ["1", "299", "nodes", "up"]
    assert len(run("node", "ls", "--all").splitlines()) == 301
    assert len(json.loads(run("node", "ls", "--json"))["nodes"]) == 300


def test_nodes_of_pilots_that_are_over_are_listed_on_request(store: Store, run: Run) -> None:
    store.commit(Writes(pilots=[PilotRow(1, "a", "here", 1, "aurora", 2, 1.0, ended=9.0),
                                PilotRow(2, "b", "here", 1, "aurora", 1, 10.0)], nodes=up(1, 2) + up(2, 1)))
    assert [line.split()[0] for line in run("node", "ls").splitlines()[1:]] == ["2"]
    assert [line.split()[0] for line in run("node", "ls", "--all").splitlines()[1:]] == ["1", "1", "2"]
    assert [line.split()[0] for line in run("node", "ls", "--pilot", "1").splitlines()[1:]] == ["1", "1"]
    assert run("node", "ls", "--pilot", "3") == ""


def test_a_database_without_nodes_is_read_and_upgraded(store: Store, site_dir: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{site_dir}/.balsamfut/balsamfut.db")
    with engine.begin() as connection:
        for name in schema.metadata.tables.keys() - FIRST:
            schema.metadata.tables[name].drop(connection)
        connection.execute(sa.update(schema.meta).values(version=1))
    assert nodes() == {}
    store.close()
    again = Store(site_dir / ".balsamfut" / "balsamfut.db")
    again.open()
    again.commit(Writes(pilots=[PilotRow(1, "a", "here", 1, "aurora", 2, 1.0)], nodes=up(1, 2)))
    again.close()
    assert list(nodes()) == ["x0000", "x0001"]
    with engine.connect() as connection:
        assert connection.execute(sa.select(schema.meta.c.version)).scalar() == schema.VERSION
    engine.dispose()
