"""What an agent and the ranks of its slices say to each other: frames (balsamfut.pilot.hand) on a stream socket.

A rank connects, says who it is, is told its surroundings, and from then on reads one call at a time.  Nothing here
opens, starts or decides anything.
"""

from __future__ import annotations

import msgspec

from balsamfut.messages import Detail, Fault
from balsamfut.model import Payload
from balsamfut.pilot.hand import Code, Define, Order, Setup


class Make(msgspec.Struct, array_like=True, tag=5):
    """Make this call together with these ranks of the slice, the first of which is the call's rank 0."""

    ranks: tuple[int, ...]
    order: Order


ToRank = Define | Code | Setup | Make


class Aboard(msgspec.Struct, array_like=True, tag=1):
    """A rank's first words."""

    token: str       # of the pilot
    slice: int
    rank: int        # in the whole slice
    pid: int


class Able(msgspec.Struct, array_like=True, tag=2):
    """MPI is there, the pool's initializer is done, and calls can be made."""


class Unable(msgspec.Struct, array_like=True, tag=3):
    """This rank cannot run anything; the reasons are those of slicenews.SliceBroken."""

    fault: Fault
    payload: bytes
    error: str


class Made(msgspec.Struct, array_like=True, tag=4):
    """This rank has come to the end of its part in the call."""

    task: int
    attempt: int
    ok: bool
    started: float
    ended: float
    payload: Payload | None      # None: its value was not asked for
    error: str = ""
    detail: Detail | None = None    # what it wrote to its own files


FromRank = Aboard | Able | Unable | Made
