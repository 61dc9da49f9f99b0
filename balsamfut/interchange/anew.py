"""Another attempt with other resources, as a hook of the task asked for it.  Part of the brain: pure.

A task is matched with pilots by its class, so one that asks for something else from now on is of another class.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from balsamfut.interchange.book import Book, Pilot
from balsamfut.interchange.records import Task
from balsamfut.messages import Enrol
from balsamfut.model import Resources
from balsamfut.placement import impossible
from balsamfut.platforms import Platform


def take(book: Book, task: Task, resources: Resources, pilot: Pilot, here: Enrol | None,
         fits: Callable[[Enrol, Resources], int], machine: Platform) -> str:
    """Have the task ask for these resources; or why nothing that there may be has them.

    pilot: where the attempt was that asks; here: what it said of itself; machine: where further blocks may be.
    """
    if pilot.block:
        why = impossible(resources, machine.node, machine.max_nodes)
    elif here is not None and not fits(msgspec.structs.replace(here, nodes=pilot.nodes), resources):
        why = "this pilot has not so much, and there is no other"
    else:
        why = None
    if why is not None:
        changed = _words(book.classes[task.cls].spec.resources, resources)
        return f"its hook wants another attempt with {changed}: {why}"
    task.again = resources
    task.cls = book.intern_class(msgspec.structs.replace(book.classes[task.cls].spec, resources=resources))
    return ""


def _words(before: Resources, now: Resources) -> str:
    """What is asked for that was not."""
    changed = {name: getattr(now, name) for name in Resources.__struct_fields__
               if getattr(now, name) != getattr(before, name)}
    return ", ".join(f"{name}={value}" for name, value in changed.items()) or "the same resources"
