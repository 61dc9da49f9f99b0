"""The store on real databases: SQLite in a temporary directory, and the same on PostgreSQL where there is one."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from store_samples import APP, PLAIN, POOL, SHARING, fields_of, surroundings, task, unusual

from balsamfut import schema
from balsamfut.errors import DatabaseTooNew, SettingsError, SiteTaken
from balsamfut.infos import OwnerInfo
from balsamfut.interchange import ownership
from balsamfut.interchange import store as store_module
from balsamfut.interchange.around import CHUNK
from balsamfut.interchange.records import (
    Around,
    AttemptRow,
    CampaignRow,
    EventRow,
    Lacking,
    PilotRow,
    SessionRow,
    Task,
    World,
    Writes,
)
from balsamfut.interchange.store import Owned, Store, StoreError
from balsamfut.model import Blob, Joined, TaskState

S = TaskState
Opener = Callable[..., Store]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.site)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return str(tmp_path / "site" / "balsamfut.db")


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    return tmp_path / "balsamfut.db"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Opens stores that do not wait long for locks, and closes them all."""
    monkeypatch.setattr(store_module, "PATIENCE", 0.05)
    stores = []

    def open_one(database: str | Path, **options: Any) -> Store:
        stores.append(Store(database, **options))
        stores[-1].open()
        return stores[-1]

    yield open_one
    for each in stores:
        each.close()


@pytest.fixture
def store(opened: Opener, database: str) -> Store:
    made = opened(database)
    made.commit(surroundings())
    return made


def saved(store: Store, *tasks: Task, edges: list[tuple[int, int, int]] | None = None) -> None:
    store.commit(Writes(tasks=list(tasks), edges=edges or []))


# ---- what was written is read


def test_a_new_database_knows_nothing_and_counts_from_one(opened: Opener, database: str) -> None:
    made = opened(database)
    assert made.load_world() == World()
    assert made.epoch == 1
    assert made.load_open() == []
    assert made.counts() == {}


def test_the_next_owner_reads_all_that_the_last_one_wrote_of_the_surroundings(opened: Opener, database: str) -> None:
    first = opened(database)
    first.commit(surroundings())
    first.commit(Writes(pilots=[PilotRow(3, "t", "n0", 5, "aurora", 2, 70.0)], tasks=[task(41)]))
    first.close()
    second = opened(database)
    world = second.load_world()
    written = surroundings()
    around = second.load_around(Lacking({1, 2}, {1, 2}, {1, 2, 99}))
    assert (around.campaigns, around.sessions) == (written.campaigns, written.sessions)
    assert (around.apps, around.codes) == ([APP], [(APP.digest, b"code")])
    assert (around.pools, around.classes) == ([(b"p" * 16, POOL)], [(1, PLAIN), (2, SHARING)])
    assert second.load_around(Lacking(classes={2})) == Around(
        classes=[(2, SHARING)], apps=around.apps, codes=around.codes, pools=around.pools)
    assert world.pilots == [PilotRow(3, "t", "n0", 5, "aurora", 2, 70.0)]
    assert (world.next_task, world.next_session, world.next_campaign) == (42, 3, 3)
    assert (world.next_pilot, world.next_class) == (4, 3)
    assert (second.epoch, second.site) == (2, first.site)


def test_pilots_that_ended_are_not_loaded_and_a_session_that_closed_is_known_by_its_token(store: Store) -> None:
    pilot = PilotRow(1, "t", "n0", 5, "aurora", 2, 70.0)
    store.commit(Writes(pilots=[pilot]))
    pilot.ended = 90.0
    closed = SessionRow(1, "token-1", 1, 0, "login1", 11, 51.0, 99.0)
    store.commit(Writes(pilots=[pilot], sessions=[closed]))
    assert store.load_world().pilots == []
    assert store.find_session("token-1") == closed and store.find_session("nobody's") is None
    campaign, = surroundings().campaigns[:1]
    assert store.find_campaign(campaign.name) == [campaign] and store.find_campaign("another") == []


@pytest.mark.parametrize("payload", [None, b"", b"\x80\x05N.", Blob("ab" * 32, 7), Joined(b"t", [b"x", Blob("cd", 1)]),
                                     schema.MARK, schema.MARK + b"not ours"], ids=repr)
def test_every_kind_of_payload_comes_back_as_it_was(store: Store, payload: Any) -> None:
    made = task(1, S.DONE, args=payload, payload=payload)
    saved(store, made)
    back = store.load_tasks([1])[1]
    assert (back.spec.args, back.payload) == (payload, payload)


def test_plain_payloads_are_stored_as_they_are(opened: Opener, sqlite_file: Path) -> None:
    made = opened(sqlite_file)
    saved(made, task(1, S.DONE, args=b"arguments", payload=b"result"))
    found = sqlite3.connect(sqlite_file).execute("SELECT args, payload FROM tasks").fetchall()
    assert found == [(b"arguments", b"result")]


def test_a_task_with_something_in_every_column_comes_back_whole(store: Store) -> None:
    made = unusual(9)
    saved(store, made)
    assert fields_of(store.load_tasks([9])[9]) == fields_of(made)
    assert made.stored and not made.dirty


def test_first_assignments_and_plain_successes_write_what_they_change(store: Store) -> None:
    made = [task(n) for n in (3, 4, 5, 8, 9)]
    saved(store, *made)
    for each, pilot in zip(made, (1, 1, 2, 2, 2), strict=True):
        each.state, each.attempt, each.pilot = TaskState.ASSIGNED, 1, pilot
    saved(store, *made[:2], *made[3:])
    found = store.load_tasks([3, 4, 5, 8, 9])
    assert [(found[n].state.name, found[n].attempt, found[n].pilot) for n in (3, 4, 5, 8, 9)] == [
        ("ASSIGNED", 1, 1), ("ASSIGNED", 1, 1), ("READY", 0, 0), ("ASSIGNED", 1, 2), ("ASSIGNED", 1, 2)]
    for each in made:
        each.state, each.place, each.started, each.ended = TaskState.DONE, "0:1", 5.0, 6.0
        each.payload = b"value"
    saved(store, *made)
    for number, each in store.load_tasks([3, 4, 5, 8, 9]).items():
        assert fields_of(each) == fields_of(next(t for t in made if t.id == number))


def test_a_change_writes_every_column_that_may_change(store: Store) -> None:
    made = task(9, parent=7, cls=2)
    saved(store, made, task(10))
    other = unusual(9)
    for name in ("state", "attempt", "failures", "losses", "pilot", "place", "started", "ended", "fault", "error",
                 "payload", "root", "reason", "again", "ran", "detail", "joins"):
        setattr(made, name, getattr(other, name))
    made.whole = True
    saved(store, made)
    assert fields_of(store.load_tasks([9])[9]) == fields_of(made)
    assert store.load_tasks([10])[10].state is S.READY
    for name in ("payload", "again", "ran", "detail", "joins"):
        setattr(made, name, None)
    made.whole = True
    saved(store, made)
    assert fields_of(store.load_tasks([9])[9]) == fields_of(made)


def test_text_that_a_database_cannot_take_is_written_legibly(store: Store) -> None:
    saved(store, task(1, S.FAILED, error="a\0b \udcff \u00e9"))
    assert store.load_tasks([1])[1].error == "a\\x00b \\udcff \u00e9"


def test_attempts_events_and_tags_have_rows_of_their_own(store: Store) -> None:
    store.commit(Writes(tasks=[unusual(9)], attempts=[AttemptRow(9, 1, 4, "n0", 1.0, 2.0, 2, "died", -11)],
                        events=[EventRow(5.0, "retry", 9, 4, "again"), EventRow(6.0, "held", 9)]))
    with store._transaction("read") as connection:
        def rows(table: sa.Table) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in connection.execute(sa.select(table))]
        assert rows(schema.attempts) == [(9, 1, 4, "n0", 1.0, 2.0, 2, "died", -11)]
        assert rows(schema.events) == [(1, 5.0, "retry", 9, 4, "again"), (2, 6.0, "held", 9, 0, "")]
        assert sorted(rows(schema.tags)) == [(9, "run", "a"), (9, "seed", "1")]


# ---- finding


def test_open_tasks_come_with_what_they_need_and_join_though_that_is_over(store: Store) -> None:
    saved(store, task(1, S.DONE, payload=b"one"), task(2, S.DONE), task(3, S.WAITING), task(4, S.WAITING, joins=(6,)),
          task(5, S.FAILED), task(6, S.DONE, campaign=2), edges=[(3, 0, 1), (3, 1, 4), (3, 2, 1)])
    loaded = {each.id: each for each in store.load_open()}
    assert sorted(loaded) == [1, 3, 4, 6]
    assert loaded[3].spec.needs == (1, 4, 1)
    assert loaded[1].payload == b"one"


def test_open_tasks_of_one_campaign_leave_out_the_others(store: Store) -> None:
    saved(store, task(1), task(2, campaign=2), task(3, S.HELD), task(4, S.CANCELLED))
    assert [each.id for each in store.load_open(1)] == [1, 3]
    assert [each.id for each in store.load_open()] == [1, 2, 3]


def test_failed_tasks_are_loaded_where_they_are_to_be_tried_again(store: Store) -> None:
    saved(store, task(1, S.FAILED), task(2, S.UPSTREAM_FAILED), task(3, S.CANCELLED), task(4, S.DONE),
          edges=[(2, 0, 1)])
    assert store.load_open() == []
    assert [(each.id, each.spec.needs) for each in store.load_open(retry_failed=True)] == [(1, ()), (2, (1,))]


def test_calls_are_found_by_session_and_number_however_many(store: Store) -> None:
    saved(store, *(task(n) for n in range(1, 2 * CHUNK + 10)), task(9000, session=2, n=1))
    found = store.find_calls(1, range(1, 2 * CHUNK + 20))
    assert sorted(found) == list(range(1, 2 * CHUNK + 10))
    assert all(each.id == n for n, each in found.items())


def test_keys_are_found_within_their_campaign_and_caller(store: Store) -> None:
    saved(store, task(1, key=b"k" * 16), task(2, key=b"k" * 16, occurrence=1), task(3, key=b"k" * 16, parent=1),
          task(4, key=b"k" * 16, campaign=2), task(5, key=b"l" * 16, occurrence=1))
    wanted = [(b"k" * 16, 0), (b"k" * 16, 1), (b"k" * 16, 2), (b"l" * 16, 0)]
    assert {which: each.id for which, each in store.find_keys(1, 0, wanted).items()} == {wanted[0]: 1, wanted[1]: 2}
    assert {which: each.id for which, each in store.find_keys(1, 1, wanted).items()} == {wanted[0]: 3}


def test_a_shared_result_is_the_newest_that_is_done_and_may_be_shared(store: Store) -> None:
    saved(store, task(1, S.DONE, key=b"k" * 16, cls=2), task(2, S.DONE, key=b"k" * 16, cls=2, campaign=2),
          task(3, S.FAILED, key=b"k" * 16, cls=2, occurrence=1), task(4, S.DONE, key=b"k" * 16, cls=1, occurrence=2),
          task(5, S.DONE, key=b"l" * 16, cls=1))
    assert {key: each.id for key, each in store.find_cached([b"k" * 16, b"l" * 16]).items()} == {b"k" * 16: 2}


def test_counts_are_by_state_of_one_campaign_or_all(store: Store) -> None:
    saved(store, task(1), task(2), task(3, S.DONE), task(4, S.DONE, campaign=2))
    assert store.counts(1) == {S.READY: 2, S.DONE: 1}
    assert store.counts() == {S.READY: 2, S.DONE: 2}


# ---- all or nothing


def assert_untouched(writes: Writes) -> None:
    assert all(each.dirty and not each.stored for each in writes.tasks)


def test_a_call_cannot_be_recorded_twice_and_its_batch_leaves_no_trace(store: Store) -> None:
    saved(store, task(1))
    writes = Writes(campaigns=[CampaignRow(5, "new", 1.0, True)], tasks=[task(2), task(3, n=1)], edges=[(2, 0, 1)])
    with pytest.raises(StoreError) as caught:
        store.commit(writes)
    assert not caught.value.transient
    assert_untouched(writes)
    assert store.load_tasks([2, 3]) == {}
    assert store.load_world().next_campaign == 3
    del writes.tasks[1]
    store.commit(writes)
    assert store.load_tasks([2])[2].spec.needs == (1,)


def test_the_same_key_and_occurrence_cannot_be_recorded_twice_in_a_campaign(store: Store) -> None:
    saved(store, task(1, key=b"k" * 16), task(2), task(3))
    with pytest.raises(StoreError):
        saved(store, task(4, key=b"k" * 16))


def test_a_number_that_no_column_can_hold_is_an_error_of_the_store(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        saved(store, task(1, n=1 << 70))
    assert not caught.value.transient
    saved(store, task(1))


def test_a_locked_database_is_said_to_be_and_the_same_batch_goes_in_later(opened: Opener, sqlite_file: Path) -> None:
    made = opened(sqlite_file)
    other = sqlite3.connect(sqlite_file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writes = Writes(tasks=[task(1)])
    with pytest.raises(StoreError, match="another process is using it") as caught:
        made.commit(writes)
    assert caught.value.transient and str(sqlite_file) in str(caught.value)
    assert_untouched(writes)
    other.execute("ROLLBACK")
    made.commit(writes)
    assert sorted(made.load_tasks([1])) == [1]


def test_a_full_disk_is_said_to_be_and_the_same_batch_goes_in_later(opened: Opener, sqlite_file: Path) -> None:
    made = opened(sqlite_file)
    driver: Any = made._connection.connection.dbapi_connection
    (pages,) = driver.execute("PRAGMA page_count").fetchone()
    driver.execute(f"PRAGMA max_page_count={pages + 5}")
    writes = Writes(tasks=[task(n, args=b"x" * 4000) for n in range(1, 50)])
    with pytest.raises(StoreError, match="full") as caught:
        made.commit(writes)
    assert caught.value.transient
    assert_untouched(writes)
    assert made.counts() == {}
    driver.execute("PRAGMA max_page_count=1000000")
    made.commit(writes)
    assert made.counts() == {S.READY: 49}


@pytest.mark.site
def test_a_server_that_dropped_the_connection_is_asked_again(opened: Opener, postgres_url: str) -> None:
    made = opened(postgres_url)
    with sa.create_engine(schema.database_url(postgres_url)).begin() as other:
        other.exec_driver_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                              "WHERE application_name = 'balsamfut' AND datname = current_database()")
    writes = Writes(tasks=[task(1)])
    with pytest.raises(StoreError) as caught:
        made.commit(writes)
    assert caught.value.transient
    made.commit(writes)
    assert made.counts() == {S.READY: 1}


@pytest.mark.site
@pytest.mark.parametrize("done", [True, False])
def test_a_commit_whose_answer_was_lost_is_done_once_whether_it_had_been_done_or_not(
        opened: Opener, postgres_url: str, monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    import psycopg
    made = opened(postgres_url)
    dialect = made._engine.dialect
    really = dialect.do_commit if done else dialect.do_rollback

    def not_heard_of(connection: Any) -> None:
        really(connection)
        raise psycopg.OperationalError("the connection is lost")

    writes = Writes(tasks=[task(1)], events=[EventRow(1.0, "held", 1)])
    for _ in range(1 if done else 2):
        with monkeypatch.context() as patch, pytest.raises(StoreError):
            patch.setattr(dialect, "do_commit", not_heard_of)
            made.commit(writes)
        assert made.counts() == ({S.READY: 1} if done else {})   # reading in between does not count as a turn
    made.commit(writes)
    assert writes.tasks[0].stored
    writes.tasks[0].state = S.DONE
    made.commit(Writes(tasks=writes.tasks))
    assert made.counts() == {S.DONE: 1}


# ---- one owner


def test_who_opens_the_database_last_owns_it_and_the_one_before_writes_no_more(opened: Opener, database: str) -> None:
    first = opened(database)
    saved(first, task(1))
    second = opened(database)
    with pytest.raises(SiteTaken, match=f"process {os.getpid()}"):
        saved(first, task(2))
    with pytest.raises(SiteTaken):
        first.load_world()
    saved(second, task(3))
    assert sorted(second.load_tasks([1, 2, 3])) == [1, 3]


CHILD = """
import sys
sys.path.insert(0, sys.argv[2])
from store_samples import task
from balsamfut.errors import SiteTaken
from balsamfut.interchange.records import Writes
from balsamfut.interchange.store import Store
store = Store(sys.argv[1])
store.open()
store.commit(Writes(tasks=[task(1)]))
print("open", flush=True)
sys.stdin.readline()
try:
    store.commit(Writes(tasks=[task(2)]))
except SiteTaken as exc:
    print("taken:", exc)
"""


def child(database: str, **environ: str) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    return subprocess.Popen([sys.executable, "-c", CHILD, database, str(here)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(here.parents[1]), **environ})


def test_an_owner_that_was_stopped_and_wakes_up_cannot_write(opened: Opener, database: str) -> None:
    with child(database) as sleeper:
        assert sleeper.stdout is not None and sleeper.stdout.readline() == "open\n"
        sleeper.send_signal(signal.SIGSTOP)
        try:
            owner = opened(database)
            saved(owner, task(3))
        finally:
            sleeper.send_signal(signal.SIGCONT)
        out, _ = sleeper.communicate("go\n", timeout=20)
    assert out.startswith("taken:")
    assert sorted(owner.load_tasks([1, 2, 3])) == [1, 3]


def test_an_owner_gives_signs_of_life_until_it_lets_go_or_is_replaced(opened: Opener, database: str) -> None:
    first = opened(database)
    signs = [look(first)]
    for beat in (7.0, 8.0):
        first.beat(beat)
        signs.append(look(first))
    assert [each.beat for each in signs[1:]] == [7.0, 8.0] and len(set(signs)) == 3
    assert {(each.epoch, each.pid) for each in signs} == {(1, os.getpid())}
    first.release()
    assert look(first).pid == 0
    second = opened(database)
    for late in (lambda: first.beat(9.0), first.release):
        with pytest.raises(SiteTaken):
            late()
    assert (look(second).epoch, look(second).pid) == (2, os.getpid())


def look(store: Store) -> OwnerInfo:
    found = ownership.look(store)
    assert found is not None
    return found


def test_an_owner_that_may_live_keeps_its_database(opened: Opener, database: str) -> None:
    first = opened(database)
    with pytest.raises(Owned, match=f"process {os.getpid()} on ") as refused:
        Store(database).open(lambda owner: False)
    assert refused.value.owner == look(first)
    saved(first, task(1))
    second = Store(database)
    second.open(lambda owner: owner == refused.value.owner)
    second.close()
    with pytest.raises(SiteTaken):
        saved(first, task(2))


def test_an_owner_elsewhere_that_hangs_in_a_transaction_is_named_with_what_frees_it(
        opened: Opener, sqlite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(sqlite_file)
    with first._connection.begin():
        first._connection.execute(sa.update(schema.meta).values(host="elsewhere", pid=17))
    hanging = first._connection.begin()         # takes the one lock that writers share
    monkeypatch.setattr(ownership, "UNLOCKED", 0.1)
    with pytest.raises(SiteTaken, match="belongs to process 17 on elsewhere.* `kill -KILL 17` on elsewhere frees it"):
        ownership.own(sqlite_file.parent, Store(sqlite_file), 1.0)
    hanging.rollback()
    second = Store(sqlite_file)
    os.close(ownership.own(sqlite_file.parent, second, 1.0))
    second.close()
    with pytest.raises(SiteTaken):
        saved(first, task(1))


@pytest.mark.site
def test_an_owner_that_hangs_in_a_transaction_on_a_server_does_not_hold_up_its_successor(
        opened: Opener, postgres_url: str) -> None:
    first = opened(postgres_url)
    hanging = first._connection.begin()
    first._check_epoch(first._connection, writing=True)     # the row is locked
    second = opened(postgres_url)
    saved(second, task(1))
    with pytest.raises(sa.exc.OperationalError):           # its connection is gone
        first._check_epoch(first._connection, writing=False)
    hanging.close()
    with pytest.raises(SiteTaken):
        saved(first, task(2))


@pytest.mark.parametrize(("point", "there"), [("interchange.commit.before", []), ("interchange.commit.after", [1])])
def test_a_kill_before_the_commit_leaves_nothing_and_after_it_everything(
        opened: Opener, database: str, point: str, there: list[int]) -> None:
    with child(database, BALSAMFUT_CRASH=point) as victim:
        victim.communicate(timeout=20)
    assert victim.returncode == -signal.SIGKILL
    assert [each.id for each in opened(database).load_open()] == there


# ---- versions and files


def set_version(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET version = ?", (version,))
    connection.commit()
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(opened: Opener, sqlite_file: Path) -> None:
    opened(sqlite_file).close()
    set_version(sqlite_file, schema.VERSION + 1)
    before = hashlib.sha256(sqlite_file.read_bytes()).hexdigest()
    with pytest.raises(DatabaseTooNew, match=rf"version {schema.VERSION + 1}.* up to {schema.VERSION}: use"):
        opened(sqlite_file)
    assert hashlib.sha256(sqlite_file.read_bytes()).hexdigest() == before
    assert os.listdir(sqlite_file.parent) == [sqlite_file.name]


@pytest.mark.site
def test_a_newer_version_on_a_server_is_refused_and_its_owner_goes_on(opened: Opener, postgres_url: str) -> None:
    owner = opened(postgres_url)
    with sa.create_engine(schema.database_url(postgres_url)).begin() as other:
        other.execute(sa.update(schema.meta).values(version=schema.VERSION + 1))
    with pytest.raises(DatabaseTooNew):
        opened(postgres_url)
    saved(owner, task(1))


def test_an_older_database_is_upgraded_by_who_takes_it_over_or_stays_as_it_is(
        opened: Opener, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(database)
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)

    def upgrade(connection: sa.Connection) -> None:
        connection.execute(sa.insert(schema.events).values(kind="upgraded", time=1.0))

    def fail(connection: sa.Connection) -> None:
        upgrade(connection)
        raise RuntimeError("half way")

    monkeypatch.setitem(schema.UPGRADES, schema.VERSION - 1, fail)
    with pytest.raises(RuntimeError, match="half way"):
        opened(database)
    saved(first, task(1))
    monkeypatch.setitem(schema.UPGRADES, schema.VERSION - 1, upgrade)
    second = opened(database)
    with second._transaction("read") as connection:
        assert connection.execute(sa.select(schema.meta.c.version)).scalar() == schema.VERSION
        assert connection.execute(sa.select(schema.events.c.kind)).all() == [("upgraded",)]


LATER = {3: [("meta", "beat"), ("blocks", "tags"), ("blocks", "parts"), ("blocks", "why"), ("blocks", "removal"),
             ("blocks", "note")],
         4: [("blocks", "removal"), ("blocks", "note")], 5: [("blocks", "note")]}


@pytest.mark.parametrize("version", LATER)
def test_an_older_database_gains_the_columns_that_came_later(opened: Opener, database: str, version: int) -> None:
    opened(database).close()
    engine = sa.create_engine(schema.database_url(database))
    with engine.begin() as connection:
        for table, column in LATER[version]:
            connection.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        connection.execute(sa.text("INSERT INTO blocks (id, token, params) VALUES (7, 'old', '{}')"))
        connection.execute(sa.update(schema.meta).values(version=version))
    engine.dispose()
    block, = opened(database).load_world().blocks
    assert (block.id, block.token, block.tags, block.parts, block.why) == (7, "old", {}, [], "")
    assert (block.removal, block.note) == (0.0, "")


def test_a_file_that_is_no_database_is_refused_by_name(opened: Opener, sqlite_file: Path) -> None:
    sqlite_file.write_text("this is my thesis, not a database " * 100)
    with pytest.raises(StoreError, match=f"{sqlite_file}: file is not a database"):
        opened(sqlite_file)
    assert sqlite_file.read_text().startswith("this is my thesis")


def test_a_database_that_cannot_be_made_is_refused_by_name(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/balsamfut.db"):
        opened(tmp_path / "file" / "balsamfut.db")


@pytest.mark.parametrize("url", ["mysql://h/x", "sqlite://", "sqlite:///:memory:", "no scheme://x", "postgresql://h:port/x"])
def test_a_url_of_another_kind_is_refused_with_what_would_be_right(url: str) -> None:
    with pytest.raises(SettingsError, match="right would be"):
        Store(url)


def test_a_server_that_does_not_answer_is_named_without_the_password(opened: Opener) -> None:
    with pytest.raises(StoreError, match="cannot open the database postgresql") as caught:
        opened("postgresql://u:secret@127.0.0.1:9/x")
    assert caught.value.transient and "secret" not in str(caught.value)


def test_nobody_else_may_read_the_files(opened: Opener, tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        made = opened(tmp_path / "site" / "balsamfut.db")
        saved(made, task(1))
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "site").iterdir()}
    assert modes == {"balsamfut.db": 0o600, "balsamfut.db-wal": 0o600, "balsamfut.db-shm": 0o600}
    assert (tmp_path / "site").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("synchronous", "level"), [("NORMAL", 1), ("FULL", 2)])
def test_a_local_disk_has_a_write_ahead_log_synchronous_as_said(opened: Opener, sqlite_file: Path, synchronous: Any,
                                                                level: int) -> None:
    made = opened(sqlite_file, synchronous=synchronous)
    driver: Any = made._connection.connection.dbapi_connection
    assert driver.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert driver.execute("PRAGMA synchronous").fetchone() == (level,)
    assert made.notice is None


def test_on_a_network_file_system_there_is_no_shared_memory_and_it_is_said(
        opened: Opener, sqlite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = opened(sqlite_file)   # made on a local disk, and copied there
    saved(local, task(1))
    local.close()
    mounts = sqlite_file.with_name("mounts")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/flare {sqlite_file.parent.resolve()} lustre rw,flock 0 0\n")
    monkeypatch.setattr("balsamfut.interchange.mounts.MOUNTS", mounts)
    made = opened(sqlite_file)
    saved(made, task(2))
    driver: Any = made._connection.connection.dbapi_connection
    assert driver.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
    assert driver.execute("PRAGMA locking_mode").fetchone() == ("normal",)
    assert made.notice is not None and "lustre" in made.notice
    assert sorted(made.load_tasks([1, 2])) == [1, 2]
    assert not {f"{sqlite_file.name}-wal", f"{sqlite_file.name}-shm"} & set(os.listdir(sqlite_file.parent))
    opened(sqlite_file)
    with pytest.raises(SiteTaken):      # its lock is not in the way of a successor
        saved(made, task(3))
