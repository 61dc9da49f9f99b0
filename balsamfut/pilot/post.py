"""One worker as the agent holds it: both sockets, the cell, and what waits to be sent.  Decides nothing."""

from __future__ import annotations

import mmap
import os
import socket
from collections import deque
from typing import Final

import msgspec

from balsamfut.pilot import hand
from balsamfut.pilot.events import Key

_BUFFER: Final = 1 << 20
_READ: Final = 1 << 18

_encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(hand.Head).decode
_said = msgspec.msgpack.Decoder(hand.FromWorker).decode


class Post:
    """The agent's ends.  `fds` are the worker's ends, for the start; `started` closes what only the worker needs."""

    def __init__(self) -> None:
        self._queue, self._unread = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._queue.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._queue.setblocking(False)
        self._control.setblocking(False)
        self._memory = os.memfd_create("balsamfut-cell", os.MFD_CLOEXEC)
        os.ftruncate(self._memory, hand.CELL.size)
        self._map = mmap.mmap(self._memory, hand.CELL.size)
        self.cell = memoryview(self._map)
        self._frames = hand.Frames()
        self._orders: deque[tuple[Key, bytes]] = deque()   # that did not fit into the queue yet
        self._words = bytearray()                          # the same for the control channel
        self.deaf = False                                  # the worker has closed its end

    @property
    def fds(self) -> dict[int, int]:
        return {3: self._unread.fileno(), 4: self._far.fileno(), 5: self._memory}

    def started(self) -> None:
        self._far.close()
        os.close(self._memory)
        self._memory = -1

    def fileno(self) -> int:
        return self._control.fileno()

    @property
    def backlog(self) -> bool:
        return bool(self._orders or self._words)

    def order(self, key: Key, data: bytes) -> None:
        """Put one encoded Order into the worker's queue."""
        if self._orders:
            self._orders.append((key, data))
            return
        try:
            self._queue.send(data)
        except BlockingIOError:
            self._orders.append((key, data))
        except (BrokenPipeError, ConnectionError):   # its end will be seen; what is here is taken back then
            self._orders.append((key, data))

    def tell(self, message: hand.ToWorker) -> None:
        """Say something on the control channel."""
        self._words += hand.frame(_encode(message))
        self.push()

    def push(self) -> None:
        """Send what waits, as far as it goes."""
        try:
            while self._words:
                del self._words[:self._control.send(self._words)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionError):
            self._words.clear()
        try:
            while self._orders:
                self._queue.send(self._orders[0][1])
                self._orders.popleft()
        except (BlockingIOError, BrokenPipeError, ConnectionError):
            pass

    def steal(self) -> list[Key]:
        """Take back what the worker has not read, in order."""
        keys: list[Key] = []
        while True:
            try:
                head = _head(self._unread.recv(_READ, socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
            keys.append((head.task, head.attempt))
        keys.extend(key for key, _ in self._orders)
        self._orders.clear()
        return keys

    def hear(self) -> list[hand.FromWorker]:
        """What the worker has said since the last time; sets `deaf` at the end of what it will ever say."""
        messages: list[hand.FromWorker] = []
        while not self.deaf:
            try:
                data = self._control.recv(_READ)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                self.deaf = True
                break
            messages.extend(map(_said, self._frames.feed(data)))
            if len(data) < _READ:
                break
        return messages

    def end(self) -> None:
        """No more orders: the worker leaves when it has read what is there."""
        self._queue.close()

    def running(self) -> hand.Running | None:
        return hand.read(self.cell)

    def close(self) -> None:
        for each in (self._queue, self._unread, self._control, self._far):
            each.close()
        if self._memory >= 0:
            os.close(self._memory)
        self.cell.release()
        self._map.close()
