"""Reading a site's database, also while its interchange writes: SQLite, and PostgreSQL where there is one."""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from store_samples import surroundings, task, unusual

from balsamfut import schema, serialize
from balsamfut.errors import DatabaseTooNew, SiteError, TaskError, TaskKilled, UpstreamFailed, UsageError
from balsamfut.interchange.records import AttemptRow, EventRow, PilotRow, Writes
from balsamfut.interchange.store import Store
from balsamfut.messages import Fault
from balsamfut.model import Extra, Joined, TaskState
from balsamfut.query import AppInfo, AttemptInfo, CampaignInfo, EventInfo, PilotInfo, Reader, TaskInfo, open_site

S = TaskState


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.site)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The owner, which stays open."""
    where = request.getfixturevalue("postgres_url") if request.param == "postgresql" else tmp_path / "balsamfut.db"
    (tmp_path / "settings.toml").write_text(f'[database]\nurl = "{where}"\n')
    made = Store(where)
    made.open()
    made.commit(surroundings())
    yield made
    made.close()


@pytest.fixture
def reader(store: Store, tmp_path: Path) -> Iterator[Reader]:
    with open_site(tmp_path) as made:
        yield made


def ids(found: list[TaskInfo]) -> list[int]:
    return [each.id for each in found]


# ---- tasks


def test_a_task_is_told_with_all_that_is_known_of_it(store: Store, reader: Reader, tmp_path: Path) -> None:
    store.commit(Writes(tasks=[unusual(9)], edges=[(9, 0, 5), (9, 1, 6)],
                        attempts=[AttemptRow(9, 2, 4, "n1", 1.0, 2.0, Fault.WORKER, "died", -11),
                                  AttemptRow(9, 1, 3, "n0", 0.5, 0.0, Fault.PILOT, "", None)]))
    found = reader.task(9)
    assert (found.app, found.name, found.campaign, found.state) == ("lammps", "deck 1", "scan7", "UPSTREAM_FAILED")
    assert (found.tags, found.needs, found.parent) == ({"run": "a", "seed": "1"}, [5, 6], 7)
    assert (found.submitted, found.started, found.ended) == (109.0, 200.5, 201.25)
    assert (found.pilot, found.place, found.returncode, found.failures) == (4, "n0:1-8/0.0", 2, 1)
    assert (found.error, found.root, found.key, found.occurrence) == ("too late", 5, (b"k" * 16).hex(), 3)
    assert (found.command, found.workdir, found.stdout) == ("lmp -in deck", str(tmp_path / "data/w/1"), "/w/1/job.out")
    assert found.resources["num_nodes"] == 3   # of the newest attempt
    assert found.options["cache"] is True
    assert found.attempts == [AttemptInfo(1, 3, "n0", 0.5, None, "pilot", "", None),
                              AttemptInfo(2, 4, "n1", 1.0, 2.0, "worker", "died", -11),
                              AttemptInfo(3, 4, "n0:1-8/0.0", 200.5, 201.25, "walltime", "too late", 2)]


def test_a_task_that_was_only_submitted_has_no_attempts_and_no_times(
        store: Store, reader: Reader, tmp_path: Path) -> None:
    store.commit(Writes(tasks=[task(1234)]))
    found = reader.task(1234)
    assert (found.attempts, found.started, found.ended, found.pilot) == ([], None, None, 0)
    assert (found.needs, found.tags) == ([], {})
    assert found.workdir == str(tmp_path / "data/00001/1234")
    assert found.resources["launch_params"] == (("--cpu-bind", "none"),)


def test_a_task_can_be_written_as_json_and_read_again(store: Store, reader: Reader) -> None:
    store.commit(Writes(tasks=[unusual(9), task(10)]))
    text = msgspec.json.encode(reader.tasks())
    back = msgspec.json.decode(text, type=list[TaskInfo])
    assert [each.id for each in back] == [9, 10]
    assert msgspec.json.encode(back) == text


def test_tasks_are_chosen_by_everything_that_is_given(store: Store, reader: Reader) -> None:
    tagged = Extra(tags=(("run", "a"), ("seed", "1")))
    store.commit(Writes(tasks=[task(1, extra=tagged), task(2, S.DONE, extra=tagged), task(3, S.FAILED, campaign=2),
                               task(4, S.DONE, extra=Extra(tags=(("run", "b"),)))]))
    assert ids(reader.tasks()) == [1, 2, 3, 4]
    assert ids(reader.tasks(state="done")) == [2, 4]
    assert ids(reader.tasks(state=[S.READY, "FAILED"])) == [1, 3]
    assert ids(reader.tasks(tags={"run": "a"})) == [1, 2]
    assert ids(reader.tasks(tags={"run": "a", "seed": "2"})) == []
    assert ids(reader.tasks(state=S.DONE, tags={"run": "a"})) == [2]
    assert ids(reader.tasks(campaign="scan7")) == [1, 2, 4]
    assert ids(reader.tasks(campaign=2)) == [3]
    assert ids(reader.tasks(app="lammps")) == [1, 2, 3, 4]
    assert ids(reader.tasks(app="gromacs")) == []
    assert ids(reader.tasks(ids=[4, 2, 2, 99])) == [2, 4]


def test_a_limit_takes_the_newest(store: Store, reader: Reader) -> None:
    store.commit(Writes(tasks=[task(n) for n in range(1, 1201)]))
    assert ids(reader.tasks(limit=3)) == [1198, 1199, 1200]
    assert ids(reader.tasks(ids=range(1, 1101), limit=2)) == [1099, 1100]
    assert ids(reader.tasks(limit=0)) == ids(reader.tasks(ids=[1], limit=0)) == []
    assert len(reader.tasks(ids=range(1, 1101))) == 1100


def test_a_state_that_there_is_not_is_refused_with_close_ones(reader: Reader) -> None:
    with pytest.raises(UsageError, match="there is no state runing; did you mean RUNNING"):
        reader.tasks(state="runing")
    with pytest.raises(UsageError, match="there is no task 77"):
        reader.task(77)


# ---- results


def test_a_result_is_made_of_its_bytes_on_demand(store: Store, reader: Reader, tmp_path: Path) -> None:
    large = serialize.stow(pickle.dumps(list(range(1000))), tmp_path / "objects", 10)
    store.commit(Writes(tasks=[task(1, S.DONE, payload=pickle.dumps({"a": 1})), task(2, S.DONE, payload=large),
                               task(3, S.DONE), task(4, S.DONE, payload=Joined(pickle.dumps("whole"), []))]))
    assert reader.result(1) == {"a": 1}
    assert reader.result(2) == list(range(1000))
    assert reader.result(3) is None
    assert reader.result(4) == "whole"


def test_the_result_of_a_task_that_failed_is_its_exception(store: Store, reader: Reader) -> None:
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as exc:
        payload = serialize.dumps_exception(exc, host="n0", worker="w1")
    store.commit(Writes(tasks=[
        task(1, S.FAILED, payload=payload, error="ZeroDivisionError: by zero"), task(2, S.FAILED, error="lost"),
        task(3, S.UPSTREAM_FAILED, root=1), task(4, S.CANCELLED), task(5, S.CANCELLED, error="killed"), task(6)]))
    with pytest.raises(ZeroDivisionError, match="by zero"):
        reader.result(1)
    with pytest.raises(TaskError, match="lost"):
        reader.result(2)
    with pytest.raises(UpstreamFailed) as caught:
        reader.result(3)
    assert isinstance(caught.value.__cause__, ZeroDivisionError) and caught.value.task_id == 1
    with pytest.raises(CancelledError):
        reader.result(4)
    with pytest.raises(TaskKilled, match="killed"):
        reader.result(5)
    with pytest.raises(UsageError, match="task 6 is not over: it is READY"):
        reader.result(6)
    with pytest.raises(UsageError, match="there is no task 7"):
        reader.result(7)


# ---- the rest


def test_apps_campaigns_events_and_pilots_are_listed(store: Store, reader: Reader) -> None:
    store.commit(Writes(tasks=[task(1), task(2, S.DONE), task(3, S.DONE, cls=2)],
                        events=[EventRow(1.0, "retry", 1, 2, "again"), EventRow(2.0, "pilot-lost", 0, 2, "gone"),
                                EventRow(3.0, "held", 1)],
                        pilots=[PilotRow(1, "t", "n0", 5, "aurora", 2, 70.0, 80.0, "walltime"),
                                PilotRow(2, "u", "n1", 6, "aurora", 2, 90.0)]))
    assert reader.apps() == [AppInfo("lammps", "COMMAND", "decks", "Run one deck.", (b"a" * 16).hex(), 3)]
    assert reader.campaigns() == [CampaignInfo(1, "scan7", True, 50.0, {"READY": 1, "DONE": 2}),
                                  CampaignInfo(2, "", False, 60.0, {})]
    assert reader.events(task=1) == [EventInfo(1.0, "retry", 1, 2, "again"), EventInfo(3.0, "held", 1, 0, "")]
    assert [event.time for event in reader.events(limit=2)] == [2.0, 3.0]
    assert reader.pilots() == [PilotInfo(1, "n0", 5, "aurora", 2, 70.0, 80.0, "walltime"),
                               PilotInfo(2, "n1", 6, "aurora", 2, 90.0, None, "")]


# ---- beside the owner


def test_reading_sees_what_is_committed_and_does_not_disturb_the_owner_in_the_middle_of_a_turn(
        store: Store, reader: Reader) -> None:
    made = task(1)
    store.commit(Writes(tasks=[made]))
    with store._transaction("write to") as connection:
        connection.execute(sa.update(schema.tasks).values(error="not committed yet"))
        assert reader.task(1).error == ""
    assert reader.task(1).error == "not committed yet"
    with reader._snapshot() as snapshot:
        before = snapshot.execute(sa.select(schema.tasks.c.state)).scalar()
        made.state = S.DONE
        store.commit(Writes(tasks=[made]))   # not held up by a reader ...
        assert snapshot.execute(sa.select(schema.tasks.c.state)).scalar() == before   # ... who sees one moment
    assert reader.task(1).state == "DONE"


def test_a_reader_cannot_write(reader: Reader) -> None:
    with pytest.raises(SiteError, match="read-?only"), reader._snapshot() as connection:
        connection.execute(sa.update(schema.meta).values(epoch=99))


def test_a_database_is_opened_by_its_file_too(tmp_path: Path) -> None:
    owner = Store(tmp_path / "balsamfut.db")
    owner.open()
    large = serialize.stow(pickle.dumps("x" * 50), tmp_path / "objects", 1)
    owner.commit(Writes(tasks=[task(1, S.DONE, payload=large)], classes=surroundings().classes))
    owner.close()
    with open_site(tmp_path / "balsamfut.db") as made:
        assert made.result(1) == "x" * 50


def test_where_there_is_no_database_it_is_said_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=f"there is no database {tmp_path}/balsamfut.db; right would be"):
        open_site(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "photos.db").execute("CREATE TABLE photos (id)")
    with pytest.raises(SiteError, match=r"photos.db is no database of balsamfut's"):
        open_site(tmp_path / "photos.db")
    (tmp_path / "thesis").write_text("no database " * 100)
    with pytest.raises(SiteError, match="cannot read the database .*thesis: file is not a database"):
        open_site(tmp_path / "thesis")


def test_a_newer_database_is_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "VERSION", 0)
    with pytest.raises(DatabaseTooNew):
        open_site(tmp_path)


def test_a_database_on_a_network_file_system_is_read_while_its_owner_lives(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/home {tmp_path.resolve()} nfs4 rw 0 0\n")
    monkeypatch.setattr("balsamfut.interchange.mounts.MOUNTS", mounts)
    owner = Store(tmp_path / "balsamfut.db")
    owner.open()
    with open_site(tmp_path) as reader:
        first = reader.owner()
        assert (first.epoch, first.pid, first.host) == (1, os.getpid(), os.uname().nodename)
        owner.beat(first.beat + 1.0)
        assert reader.owner() == msgspec.structs.replace(first, beat=first.beat + 1.0)
    owner.close()
