"""Sockets and framing: the only module that imports zmq.

A Door is where many peers come in (ROUTER), a Link is one peer's way to it (DEALER); one message is one msgpack frame,
and several that go to one peer at once travel together, since what costs is waking it.
A frame that does not decode by the union of the door is logged and dropped: it is never fatal, and never half used.
Nothing here blocks but `Poller.poll`.  This module knows no message's meaning.

A door is an `ipc://` socket in a directory that only its owner may enter, so whoever reaches it is that owner; or a
`tcp://` socket with CURVE keys, which lets in whoever has a key that it knows.  There is one door per role, since what
a peer may say follows from the way it came in.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections import deque
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from balsamfut.errors import SiteError
from balsamfut.messages import Message

log = logging.getLogger(__name__)

MAX_MESSAGE: Final = 1 << 30
"""Bytes: a frame above this is refused by the socket.  Payloads above the inline limit travel as files."""

_encode = msgspec.msgpack.Encoder().encode


def runtime_dir() -> Path:
    """A directory for sockets that only this user may enter; raises SiteError where it is somebody else's.

    A Unix socket's path has at most 107 bytes, so sockets cannot lie in the site's own directory.
    """
    path = Path(os.environ.get("BALSAMFUT_RUNTIME_DIR") or Path(tempfile.gettempdir()) / f"balsamfut-{os.getuid()}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise SiteError(f"{path} must be a directory that is yours alone (owner {os.getuid()}, mode 0700); "
                        "remove it, or name another in BALSAMFUT_RUNTIME_DIR")
    return path


def local_address(site: Path, name: str) -> str:
    """The address of a door of this site on this machine, new for each process."""
    digest = hashlib.blake2b(os.fsencode(site.absolute()), digest_size=6).hexdigest()
    path = runtime_dir() / f"{digest}-{os.getpid()}-{name}"
    if len(os.fsencode(path)) > 100:
        raise SiteError(f"the socket path {path} is too long (a Unix socket's path has at most 107 bytes); "
                        "name a shorter directory in BALSAMFUT_RUNTIME_DIR")
    return f"ipc://{path}"


class Keys(msgspec.Struct, frozen=True):
    """CURVE keys (Z85): one's own pair, and public keys of others: the door's for a link, of all let in for a door."""

    public: bytes
    secret: bytes
    others: tuple[bytes, ...]


def key_pair() -> tuple[bytes, bytes]:
    """A new public and secret key."""
    return zmq.curve_keypair()


class _Guests:
    """Who may come in, asked by the authenticator: the keys that a door knows, by the door's domain."""

    def __init__(self) -> None:
        self.allowed: dict[str, frozenset[bytes]] = {}
        self._thread: Any = None

    def admit(self, keys: frozenset[bytes]) -> str:
        """The domain of a door that lets these in."""
        domain = f"door-{len(self.allowed)}"
        self.allowed[domain] = keys
        if self._thread is None:
            from zmq.auth.thread import ThreadAuthenticator  # 30 ms, which only doors on a network are worth

            self._thread = ThreadAuthenticator(zmq.Context.instance())
            self._thread.start()
        self._thread.configure_curve_callback(domain, self)
        return domain

    def callback(self, domain: str, key: bytes) -> bool:
        """What the authenticator asks for each guest; the key in Z85."""
        return key in self.allowed.get(domain, ())


_guests = _Guests()


def _socket(kind: int, linger: float = 0.0) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.LINGER, int(linger * 1000))
    socket.setsockopt(zmq.SNDHWM, 0)       # ROUTER drops what is above the mark: what is sent must not be lost silently
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
    return socket


def _secure(socket: zmq.Socket[bytes], keys: Keys) -> None:
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)


class Door:
    """Where peers come in.  `decoder` is the union of the messages that they may send.

    A tcp:// address needs keys; its port may be `*`: `address` says which it became.  Raises SiteError.
    """

    def __init__(self, address: str, decoder: Any, keys: Keys | None = None) -> None:
        local = address.startswith("ipc://")
        if not local and keys is None:
            raise SiteError(f"cannot listen at {address}: a door on a network needs keys")
        self._socket = _socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._decode: Callable[[bytes], Message] = msgspec.msgpack.Decoder(decoder).decode
        self._path = Path(address.removeprefix("ipc://")) if local else None
        if keys is not None:
            domain = _guests.admit(frozenset(keys.others))
            self._socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)
            self._socket.setsockopt(zmq.CURVE_SERVER, 1)
            _secure(self._socket, keys)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            raise SiteError(f"cannot listen at {address}: {error}") from None
        if self._path is not None:
            self._path.chmod(0o600)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def pollable(self) -> Any:
        return self._socket

    def receive(self, limit: int) -> list[tuple[bytes, Message]]:
        """What has arrived in at most `limit` sendings, with who sent it; never waits."""
        got: list[tuple[bytes, Message]] = []
        receive, decode = self._socket.recv_multipart, self._decode
        try:
            for _ in range(limit):
                peer, *frames = receive(zmq.NOBLOCK)
                for frame in frames:
                    try:
                        got.append((peer, decode(frame)))
                    except (ValueError, msgspec.DecodeError, RecursionError) as error:
                        log.warning("dropped a message of %d bytes from %s that is not in the protocol: %s",
                                    len(frame), peer.hex(), error)
        except zmq.Again:
            pass
        return got

    def send(self, peer: bytes, *messages: Message) -> None:
        """Queue messages for a peer; those for a peer that has gone are dropped."""
        self._socket.send_multipart((peer, *map(_encode, messages)), zmq.NOBLOCK, copy=True)

    def close(self, linger: float = 0.0) -> None:
        """Close; what is queued is sent for up to `linger` seconds."""
        self._socket.close(linger=int(linger * 1000))
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Link:
    """One peer's way to a door.  `decoder` is the union of the messages that come back."""

    def __init__(self, address: str, decoder: Any, keys: Keys | None = None) -> None:
        self._socket = _socket(zmq.DEALER)
        if keys is not None:
            self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.others[0])
            _secure(self._socket, keys)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._decode: Callable[[bytes], Message] = msgspec.msgpack.Decoder(decoder).decode
        self._unsent: deque[bytes] = deque()
        self._socket.connect(address)
        self.address = address

    @property
    def pollable(self) -> Any:
        return self._socket

    def receive(self, limit: int) -> list[Message]:
        """What has arrived in at most `limit` sendings; never waits."""
        if self._unsent:
            self._push()
        got: list[Message] = []
        receive, decode = self._socket.recv_multipart, self._decode
        try:
            for _ in range(limit):
                for frame in receive(zmq.NOBLOCK):
                    try:
                        got.append(decode(frame))
                    except (ValueError, msgspec.DecodeError, RecursionError) as error:
                        log.warning("dropped a message of %d bytes that is not in the protocol: %s", len(frame), error)
        except zmq.Again:
            pass
        return got

    def send(self, message: Message) -> None:
        """Queue a message; it waits here while the door is away."""
        self._unsent.append(_encode(message))
        self._push()

    def _push(self) -> None:
        # A socket whose peer has just refused it takes nothing until it tries again.
        try:
            while self._unsent:
                self._socket.send(self._unsent[0], zmq.NOBLOCK)
                self._unsent.popleft()
        except zmq.Again:
            pass

    def close(self, linger: float = 0.0) -> None:
        """Close; what is queued is sent for up to `linger` seconds (in the background)."""
        self._socket.close(linger=int(linger * 1000))


class Waker:
    """Wakes a Poller from another thread or a signal handler.

    The sleeper calls `arm()`, looks once more whether there is work, polls, and calls `clear()`; `wake()` costs a
    system call only between the two, so that a busy sleeper is not rung for each piece of work.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._armed = True

    def fileno(self) -> int:
        return self._fd

    def arm(self) -> None:
        self._armed = True

    def wake(self) -> None:
        if self._armed and self._fd >= 0:
            self._armed = False
            os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        self._armed = False
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            pass

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Poller:
    """Waits for doors, links, wakers, file descriptors (int, or objects with fileno()) to become readable."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._objects: dict[Any, Any] = {}

    @staticmethod
    def _key(item: Any) -> Any:
        if isinstance(item, Door | Link):
            return item.pollable
        return item if isinstance(item, int) else item.fileno()

    def register(self, item: Any) -> None:
        key = self._key(item)
        self._objects[key] = item
        self._poller.register(key, zmq.POLLIN)

    def unregister(self, item: Any) -> None:
        """Forget an object; call it before the object is closed."""
        key = self._key(item)
        if self._objects.pop(key, None) is not None:
            self._poller.unregister(key)

    def poll(self, seconds: float) -> list[Any]:
        """The registered objects that are readable, waiting up to so many seconds (negative: for ever) for one."""
        objects = self._objects
        return [objects[key] for key, _ in self._poller.poll(-1 if seconds < 0 else ceil(seconds * 1000))]
