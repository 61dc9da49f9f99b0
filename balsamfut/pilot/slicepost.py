"""A slice as the agent holds it: the lines to its ranks, the calls that they are making, and what these have written.

Decides nothing, starts nothing.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

import msgspec

from balsamfut.messages import Detail
from balsamfut.model import Payload, Pool
from balsamfut.pilot.events import Key
from balsamfut.pilot.hand import Frames, Order, frame
from balsamfut.pilot.mpicall import gathered
from balsamfut.pilot.output import target
from balsamfut.pilot.poolwire import FromRank, Made, ToRank

_READ: Final = 1 << 18

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FromRank).decode


class Rank:
    """One rank as the agent holds it: its line, its process, and its two output files."""

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.slice: Slice | None = None       # it has said whose it is
        self.number = 0
        self.pid = 0
        self.pidfd = -1
        self.able = False
        self.ends = [0, 0]                    # of the files, when its latest call began
        self._frames = Frames()
        self._words = bytearray()

    def tell(self, message: ToRank) -> None:
        self._words += frame(_encode(message))
        self.push()

    def push(self) -> None:
        """Send what waits, as far as it goes."""
        try:
            while self._words:
                del self._words[:self.line.send(self._words)]
        except BlockingIOError:
            pass
        except OSError:                       # its end will be seen
            self._words.clear()

    @property
    def backlog(self) -> bool:
        return bool(self._words)

    def hear(self) -> tuple[list[FromRank], bool]:
        """What it has said since the last time, and whether that was all it will ever say."""
        messages: list[FromRank] = []
        while True:
            try:
                data = self.line.recv(_READ)
            except BlockingIOError:
                return messages, False
            except OSError:
                return messages, True
            if not data:
                return messages, True
            messages.extend(map(_decode, self._frames.feed(data)))

    def close(self) -> None:
        self.line.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Call:
    """One call that ranks are making."""

    def __init__(self, order: Order, gather: bool, ranks: tuple[int, ...]) -> None:
        self.order = order
        self.gather = gather
        self.ranks = ranks
        self.made: dict[int, Made] = {}       # by rank of the slice
        self.failed: Made | None = None       # the first that did

    def payload(self) -> Payload:
        """The value, when all went well."""
        values = [self.made[rank].payload for rank in self.ranks]
        if self.gather:
            return gathered([value for value in values if value is not None])
        assert values[0] is not None
        return values[0]


class Slice:
    """One launch."""

    def __init__(self, number: int, size: int, pool: Pool, folder: Path) -> None:
        self.number = number
        self.size = size
        self.pool = pool
        self.folder = folder
        self.ranks: dict[int, Rank] = {}
        self.calls: dict[Key, Call] = {}
        self.told: set[int] = set()           # classes that were defined to it
        self.flavour = ""
        self.first: int | None = None         # the rank that died first
        self.ending = False                   # by our order
        self.killed = False                   # by us, for its time was over
        self.deadline = 0.0                   # when what is left of it is killed; 0.0: it may live

    def path(self, rank: int, stream: str) -> str:
        return str(self.folder / f"rank-{rank}.{stream}")

    def detail(self, call: Call, host: str) -> Detail | None:
        """Where what the call has written is; None for nothing, as usual."""
        order = call.order
        spans: dict[str, list[tuple[str, int, int]]] = {"out": [], "err": []}
        for number in call.ranks:
            rank, made = self.ranks[number], call.made.get(number)
            for index, stream in enumerate(("out", "err")):
                path, start = self.path(number, stream), rank.ends[index]
                if made is None:
                    end = size(path)         # it died, or is about to
                else:
                    wrote = (0, 0) if made.detail is None else (made.detail.stdout_span, made.detail.stderr_span)[index]
                    end = wrote[1] or start
                rank.ends[index] = end
                if end > start:
                    spans[stream].append((path, start, end))
        extra = order.extra
        own = [target(extra.stdout, order.workdir) if extra is not None and extra.stdout else "",
               target(extra.stderr, order.workdir) if extra is not None and extra.stderr else ""]
        own[1] = own[1] or own[0]
        if not (any(spans.values()) or any(own)):
            return None
        out, out_span = (own[0], (0, 0)) if own[0] else self._one("out", spans["out"])
        err, err_span = (own[1], (0, 0)) if own[1] else self._one("err", spans["err"])
        return Detail(host=host, workdir=order.workdir, stdout=out, stdout_span=out_span, stderr=err,
                      stderr_span=err_span, attempt=order.attempt)

    def _one(self, stream: str, spans: list[tuple[str, int, int]]) -> tuple[str, tuple[int, int]]:
        """One part of one file with all of this: where several ranks wrote, a copy, rank after rank."""
        if not spans:
            return "", (0, 0)
        if len(spans) == 1:
            path, start, end = spans[0]
            return path, (start, end)
        path = str(self.folder / f"calls.{stream}")
        try:
            with open(path, "ab") as copy:
                begin = copy.tell()
                for source, start, end in spans:
                    with open(source, "rb") as file:
                        file.seek(start)
                        copy.write(file.read(end - start))
                return path, (begin, copy.tell())
        except OSError:                       # what rank 0 wrote is better than nothing
            return spans[0][0], spans[0][1:]


def size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
