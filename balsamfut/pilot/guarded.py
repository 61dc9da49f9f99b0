"""The guardian process of an agent, seen from the agent: started first, let go last."""

from __future__ import annotations

import os
import signal
import sys

from balsamfut.pilot import guardian
from balsamfut.pilot.command import copies
from balsamfut.pilot.guardian import MARK, sweep
from balsamfut.pilot.process import DEFAULTS, spared


class Guardian:
    """The guardian process of this agent, seen from the agent."""

    def __init__(self, token: str, pid: int, pipe: int) -> None:
        self.token = token
        self.pid = pid
        self._pipe = pipe

    def goodbye(self) -> list[int]:
        """Kill what still carries the token, then let the guardian go.  Returns what could not be killed; while there
        is any, the guardian stays and goes on with it after our end."""
        left = sweep(self.token)
        if not left:
            try:
                os.write(self._pipe, b".")
            except BrokenPipeError:  # it was killed
                pass
        os.close(self._pipe)
        if not left:
            os.waitpid(self.pid, 0)
            spared.discard(self.pid)
        return left


def start_guardian(token: str) -> Guardian:
    """Start the process that kills all that carry this token when we die without Guardian.goodbye().

    token: what marks begin with, before a `:`.  It must be this agent's own, or the death of one agent ends the
    work of the others that share it on this host.  Raises OSError.
    """
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    opened = [read, null]
    try:
        env = {name: value for name, value in os.environ.items() if name != MARK}
        # Blocked, so from its first instant on no signal that ends a whole terminal or batch job ends it too.
        blocked = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
        pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-E", guardian.__file__], env, setsid=True,
                             file_actions=copies({0: read, 1: null, 2: null}, opened), setsigmask=blocked,
                             setsigdef=DEFAULTS)
        spared.add(pid)
        os.write(write, os.fsencode(token) + b"\n")
    finally:
        for fd in opened:
            os.close(fd)
    return Guardian(token, pid, write)
