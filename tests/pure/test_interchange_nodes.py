"""The interchange's brain and the nodes of pilots: what it records, what then fits, and which tasks are poison."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from interchange_world import Database, Harness, PretendPilot

from balsamfut.interchange import fits
from balsamfut.interchange.poison import FALLEN, nodes_of
from balsamfut.interchange.records import NodeRow, Writes
from balsamfut.messages import PROTOCOL, Enrol, Exited, Fault, NodeNews, NodeState, Notice, Reports, Spent
from balsamfut.model import Options, Resources, TaskState

NAMES = ["n0", "n1", "n2", "n3"]


class Recorder(Database):
    """Keeps what was written about nodes, too."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[tuple[int, str], NodeRow] = {}
        self.written = 0
        self.kinds: list[str] = []

    def commit(self, writes: Writes) -> None:
        super().commit(writes)
        self.written += len(writes.nodes)
        self.nodes |= {(row.pilot, row.name): row for row in writes.nodes}
        self.kinds += [event.kind for event in writes.events]


class Cluster(Harness):
    """Pilots of four nodes, on each of which one task fits."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        super().__init__()
        self.db: Recorder = Recorder()
        self.start()

    def start(self) -> None:
        super().start()
        self.core.attempts.fits = lambda enrol, resources: len(enrol.nodes)

    def to_client(self, message: object) -> None:
        super().to_client(message)  # type: ignore[arg-type]
        if isinstance(message, Notice):
            self.notices.append(message.text)

    def enrol(self, pilot: PretendPilot) -> None:
        held = [(item.task, item.attempt) for item in pilot.held.values()]
        self.report(pilot, Enrol(PROTOCOL, pilot.number, pilot.token, 0, "host", "workstation", NAMES, 2, 0, 0, held))

    def news(self, pilot: PretendPilot, name: str, state: NodeState, again: bool = False) -> None:
        self.report(pilot, NodeNews(name, state, f"{name} is as it is", 500.0, again))
        self.turn()

    def retry(self, retries: int) -> None:
        """Task 1 may be tried so often."""
        info = self.core.book.classes[self.core.book.tasks[1].cls]
        info.spec = msgspec.structs.replace(info.spec, options=Options(retries=retries))

    def falls(self, pilot: PretendPilot, task: int, place: str, fault: Fault = Fault.WORKER) -> None:
        """The worker of a task dies at this place."""
        item = pilot.held.pop(task)
        pilot.seq += 1
        self.report(pilot, Reports(pilot.seq, [Exited(task, item.attempt, fault, b"lost", self.now, self.now, place,
                                                      "signal 11 ended its worker")]))
        self.turn()


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_a_node_from_which_a_pilot_is_only_led_counts_for_nothing(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    cluster.report(pilot, Enrol(PROTOCOL, pilot.number, pilot.token, 0, "host", "workstation", NAMES, 2, 0, 0, [],
                                lent=True))
    known = cluster.core.book.pilots[pilot.number]
    cluster.submit()
    cluster.turn()
    assert known.row.nodes == 3 and list(known.capacity.values()) == [3]
    assert nodes_of("1-2:0", known) == ["n1", "n2"], "places count all that it has named"
    cluster.news(pilot, "n1", NodeState.LOST)
    cluster.submit()
    cluster.turn()
    assert list(known.capacity.values()) == [2]


def test_the_nodes_of_a_pilot_are_recorded_when_it_is_here_for_the_first_time(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    assert {key: row.state for key, row in cluster.db.nodes.items()} == {(1, name): NodeState.UP for name in NAMES}
    cluster.enrol(pilot)
    cluster.turn()
    cluster.restart()
    cluster.turn()
    assert cluster.db.written == 4, "once is enough"


def test_what_becomes_of_a_node_is_recorded_and_told(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    cluster.news(pilot, "n2", NodeState.QUARANTINED)
    assert cluster.db.nodes[1, "n2"] == NodeRow(1, "n2", NodeState.QUARANTINED, "n2 is as it is", 500.0)
    assert cluster.notices == ["node n2 is quarantined and used no more: n2 is as it is"]
    cluster.news(pilot, "n2", NodeState.UP)
    assert cluster.db.nodes[1, "n2"].state == NodeState.UP
    assert cluster.db.kinds == ["node-quarantined", "node-released"] and len(cluster.notices) == 2


def test_a_pilot_holds_less_without_a_node_and_more_with_it_again(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    number = cluster.core.book.pilots[1]
    cluster.submit()
    cluster.turn()
    cls = next(iter(cluster.core.book.classes))
    assert cluster.core.attempts.capacity(number, cls) == 4
    for name, state, left in (("n2", NodeState.LOST, 3), ("n0", NodeState.QUARANTINED, 2), ("n2", NodeState.UP, 3),
                              ("n2", NodeState.UP, 3), ("no such node", NodeState.LOST, 3)):
        cluster.news(pilot, name, state)
        assert cluster.core.attempts.capacity(number, cls) == left


def test_failures_that_were_a_nodes_fault_are_charged_no_more(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    cluster.submit(retries=2)
    cluster.turn()
    cluster.falls(pilot, 1, "2:1", Fault.TASK)
    cluster.falls(pilot, 1, "2:1", Fault.TASK)
    cluster.report(pilot, NodeNews("n2", NodeState.QUARANTINED, "bad", 500.0, tasks=[1, 1, 1, 77]))
    cluster.turn()
    assert cluster.db.rows[1]["failures"] == 0
    cluster.falls(pilot, 1, "1:1", Fault.TASK)
    cluster.falls(pilot, 1, "1:1", Fault.TASK)
    assert not cluster.settled


def test_tasks_are_not_sent_to_a_pilot_that_has_no_node_left_for_them_and_are_when_it_has(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    for name in NAMES:
        cluster.news(pilot, name, NodeState.QUARANTINED)
    cluster.submit()
    cluster.turn()
    assert not pilot.held
    cluster.core.tick(cluster.now)
    cluster.turn()
    assert "does not fit any pilot that runs here" in cluster.notices[-1]
    cluster.news(pilot, "n3", NodeState.UP)
    cluster.core.tick(cluster.now)
    cluster.turn()
    assert list(pilot.held) == [1] and not cluster.core.queues.unfit


def test_what_an_earlier_interchange_was_told_counts_but_is_no_event_any_more(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    cluster.news(pilot, "n1", NodeState.LOST)
    cluster.restart()
    cluster.news(pilot, "n1", NodeState.LOST, again=True)
    assert cluster.core.book.pilots[1].out == {"n1": NodeState.LOST}
    assert cluster.db.kinds == ["node-lost"] and len(cluster.notices) == 1


def test_people_hear_of_the_first_nodes_by_name_and_of_the_others_once(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    for name in NAMES:
        cluster.news(pilot, name, NodeState.LOST)
    assert len(cluster.notices) == 4 and "`balsamfut node ls` says why" in cluster.notices[-1]


def test_news_from_a_pilot_that_has_not_enrolled_are_ignored(cluster: Cluster) -> None:
    cluster.core.pilot(b"stranger", NodeNews("n1", NodeState.LOST, "gone", 500.0), 1000.0)
    turn = cluster.core.finish(1000.0)
    assert not turn.writes and turn.out.pilots == {}, "it is not expelled: it is about to enrol"


# ---- poison


def test_a_task_whose_worker_dies_on_several_good_nodes_is_poison(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    cluster.submit()
    cluster.turn()
    cluster.retry(50)
    for node in range(FALLEN - 1):
        for _ in range(2):
            cluster.falls(pilot, 1, f"{node}:1-2/0.0")
    assert not cluster.settled
    cluster.falls(pilot, 1, f"{FALLEN}:1-2/0.0")
    assert cluster.settled == {1: TaskState.FAILED}
    error = str(cluster.db.rows[1]["error"])
    assert error.startswith("the worker of task 1 died on 3 different nodes (n0, n1, n3) that are well otherwise")
    assert cluster.db.kinds[-1] == "poison" and b"PoisonTask" in cluster.payloads[1]  # type: ignore[operator]


def test_deaths_on_nodes_that_are_out_make_no_poison(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    cluster.submit()
    cluster.turn()
    cluster.retry(50)
    cluster.falls(pilot, 1, "0:1")
    cluster.news(pilot, "n0", NodeState.QUARANTINED)
    cluster.falls(pilot, 1, "1:1")
    cluster.falls(pilot, 1, "2:1")
    assert not cluster.settled and pilot.held[1].attempt == 4
    cluster.falls(pilot, 1, "3:1")
    assert b"PoisonTask" in cluster.payloads[1]  # type: ignore[operator]


def test_a_task_whose_retries_are_used_up_fails_as_it_did(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    cluster.submit(retries=2)
    cluster.turn()
    for node in range(3):
        cluster.falls(pilot, 1, f"{node}:1")
    assert cluster.settled == {1: TaskState.FAILED} and cluster.payloads[1] == b"lost"


@pytest.mark.parametrize("place, names", [
    ("0:1-8/0.0", ["n0"]), ("0-1,3:1-8 2:9", ["n0", "n1", "n3", "n2"]), ("", []), ("7:1", []), ("0:1 1-...", ["n0"]),
    ("login: what", []),
])
def test_the_nodes_of_a_place_are_named(place: str, names: list[str]) -> None:
    pilot = Harness().new_pilot()
    row = type("Pilot", (), {"nodes": NAMES, "id": pilot.number})()
    assert nodes_of(place, row) == names


def test_what_fits_into_a_pilot_is_counted_by_the_nodes_that_it_uses() -> None:
    def enrol(nodes: list[str]) -> Enrol:
        return Enrol(PROTOCOL, 1, "t", 1, "h", "aurora", nodes, 102, 12, 0, [])

    found = fits.Fits(Path("/no/site"))
    assert [found(enrol(NAMES[:count]), Resources(num_nodes=2)) > 0 for count in range(5)] == [
        False, False, True, True, True]
    assert found(enrol(NAMES[:2]), Resources()) == 2 * found(enrol(NAMES[:1]), Resources())


def test_a_pilot_without_launches_is_given_serial_tasks_only_and_people_hear_of_it_once(cluster: Cluster) -> None:
    pilot = cluster.new_pilot()
    cluster.submit()
    cluster.turn()
    number = cluster.core.book.pilots[1]
    cls = next(iter(cluster.core.book.classes))
    info = cluster.core.book.classes[cls]
    cluster.report(pilot, Spent("all 2 launches are used"))
    assert cluster.core.attempts.capacity(number, cls) > 0
    info.spec = msgspec.structs.replace(info.spec, resources=Resources(ranks_per_node=2))
    cluster.report(pilot, Spent("all 2 launches are used", again=True))
    assert cluster.core.attempts.capacity(number, cls) == 0
    cluster.turn()
    assert cluster.notices == ["pilot 1 takes no more MPI tasks: all 2 launches are used"]
    assert cluster.db.kinds == ["launches-spent"]
