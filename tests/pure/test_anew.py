"""A hook asks for another attempt with other resources: the interchange looks for pilots that have them."""

from __future__ import annotations

import msgspec
import pytest
from test_interchange_blocks import AURORA, Yard

from balsamfut.interchange.core import Core
from balsamfut.messages import Fault
from balsamfut.model import Resources, TaskState


class Wide(Yard):
    """Pilots know how many nodes they have."""

    def start(self) -> None:
        super().start()
        self.core.attempts.fits = lambda enrol, resources: 2 * len(enrol.nodes) // resources.num_nodes // 2


@pytest.fixture
def yard() -> Wide:
    return Wide(AURORA)


def block(yard: Wide, nodes: int) -> object:
    queue = "debug" if nodes == 1 else "debug-scaling"
    pilot, = yard.block(nodes, queue=queue, project="demo", params={"filesystems": "home"})
    return pilot


def fail(yard: Wide, pilot: object, task: int, again: Resources, fault: Fault = Fault.TASK) -> None:
    yard.start_task(pilot, task)  # type: ignore[arg-type]
    exited = yard.exit_of(pilot, task, fault)  # type: ignore[arg-type]
    yard.say(pilot, [msgspec.structs.replace(exited, again=again)])  # type: ignore[arg-type, list-item]
    yard.turn()


@pytest.mark.parametrize("fault", [Fault.TASK, Fault.BLOCK])
def test_another_attempt_goes_to_a_pilot_that_has_what_it_asks_for(yard: Wide, fault: Fault) -> None:
    small = block(yard, 1)
    task, = yard.call()
    assert list(small.held) == [task]  # type: ignore[attr-defined]
    fail(yard, small, task, Resources(num_nodes=2), fault)
    known = yard.core.book.tasks[task]
    assert known.state is TaskState.READY and not small.held, "one node is too little"  # type: ignore[attr-defined]
    other, = yard.call()
    assert list(small.held) == [other], "the others of its app ask for what they did"  # type: ignore[attr-defined]
    large = block(yard, 2)
    assert list(large.held) == [task]  # type: ignore[attr-defined]
    assert large.held[task].again == Resources(num_nodes=2)  # type: ignore[attr-defined]
    yard.finish_task(large, task, Fault.NONE)  # type: ignore[arg-type]
    yard.turn()
    assert yard.settled[task] is TaskState.DONE


def test_what_was_asked_for_is_remembered_by_the_next_interchange(yard: Wide) -> None:
    small = block(yard, 1)
    task, = yard.call()
    fail(yard, small, task, Resources(num_nodes=2))
    before = yard.core.book.tasks[task]
    assert yard.core.book.classes[before.cls].spec.resources == before.again == Resources(num_nodes=2)
    assert yard.db.rows[task]["cls"] == before.cls and isinstance(yard.core, Core)


def test_what_no_node_of_the_machine_has_fails_the_task_with_what_was_asked_and_what_there_is(yard: Wide) -> None:
    pilot = block(yard, 1)
    task, = yard.call()
    fail(yard, pilot, task, Resources(memory=10**16))
    assert yard.settled[task] is TaskState.FAILED
    error = yard.core.book.recent[task].error
    assert error.startswith("its hook wants another attempt with memory=10000000000000000: asked 1e+07 GB of memory ")
    assert "an aurora node has" in error
