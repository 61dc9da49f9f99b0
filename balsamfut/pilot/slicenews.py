"""What the pilot's brain wants done about slices (effects) and is told of them (events).  Pure data.

A slice is one MPI launch of ranks that live on: each call gets some of them, and a communicator of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from balsamfut.messages import Detail, Fault, Message
from balsamfut.model import Payload, Resources
from balsamfut.pilot.hand import Define, Order
from balsamfut.placement import Placement

if TYPE_CHECKING:
    from balsamfut.pilot.queue import Attempt

Key = tuple[int, int]
"""(task, attempt)."""


# ---- effects


class StartSlice(Message, frozen=True, tag=13):
    """resources.ranks_per_node is the number of ranks."""

    slice: int
    pool: bytes
    resources: Resources
    placement: Placement
    preamble: str = ""
    environment: tuple[tuple[str, str], ...] = ()


class GiveCall(msgspec.Struct):
    """Have these ranks, of which the first is the call's rank 0, make the call."""

    slice: int
    attempt: Attempt
    ranks: tuple[int, ...]


class HaveMade(Message, frozen=True, tag=14):
    """The same as what an agent needs for it."""

    slice: int
    ranks: tuple[int, ...]
    order: Order
    define: Define


class SignalCall(Message, frozen=True, tag=15):
    """Send a signal to the ranks that make this call."""

    slice: int
    key: Key
    signal: int


class EndSlice(Message, frozen=True, tag=16):
    """now: kill all of it; else its ranks, which have nothing to do, leave."""

    slice: int
    now: bool


# ---- events


class SliceReady(msgspec.Struct, array_like=True, tag=7):
    """All ranks are there."""

    slice: int


class SliceBroken(msgspec.Struct, array_like=True, tag=8):
    """A rank cannot run anything, and neither will those of another slice for the same pool; the slice ends.

    fault: POOL where the pool's initializer raised, TASK where MPI is not to be had.
    """

    slice: int
    fault: Fault
    payload: bytes
    error: str


class CallDone(msgspec.Struct, array_like=True, tag=9):
    """All ranks of a call have come to its end."""

    slice: int
    key: Key
    ok: bool
    payload: Payload
    error: str
    started: float
    ended: float
    detail: Detail | None = None


class CallFaltered(msgspec.Struct, array_like=True, tag=10):
    """A rank of a call raised, and others have not come to its end: they may be waiting for that rank for ever."""

    slice: int
    key: Key
    payload: Payload
    error: str


class SliceGone(msgspec.Struct, array_like=True, tag=11):
    """Nothing is left of a slice, and all that its ranks said has been heard.

    first: the rank that died before the others, where there is telling; None: not known, or there was none.
    lost: a sentence: how it ended, where.  details: what its calls have written.
    """

    slice: int
    first: int | None
    lost: str
    details: list[tuple[Key, Detail]] = []


SliceEffect = StartSlice | GiveCall | SignalCall | EndSlice
SliceOrder = StartSlice | HaveMade | SignalCall | EndSlice
SliceEvent = SliceReady | SliceBroken | CallDone | CallFaltered | SliceGone
