"""Clients on this machine, watched by their processes: their end is known at once, and their silence means nothing.

Knows processes and the numbers of sessions; what the end of one means is the brain's.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from balsamfut.wire import Poller


class Watched:
    """The processes of sessions, each by a pidfd that the poller has."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._sessions: dict[int, int] = {}     # pidfd -> session

    def __contains__(self, item: object) -> bool:
        return item in self._sessions

    def watch(self, session: int, pid: int) -> bool:
        """Watch the process of a session; False where there is no such process."""
        if session in self._sessions.values():
            return True
        try:
            fd = os.pidfd_open(pid)
        except (OSError, OverflowError):
            return False
        self._sessions[fd] = session
        self._poller.register(fd)
        return True

    def ended(self, fd: int) -> int:
        """The session whose process has ended; it is watched no more."""
        self._poller.unregister(fd)
        os.close(fd)
        return self._sessions.pop(fd)

    def keep(self, open_sessions: Collection[int]) -> None:
        """Let go of the processes of other sessions: one process may open and end thousands."""
        for fd in [fd for fd, session in self._sessions.items() if session not in open_sessions]:
            self.ended(fd)
