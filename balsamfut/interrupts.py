"""Ctrl-C while a program waits for us: one sentence and the exit status of an interrupted one, however often it came.

A terminal, `timeout` and batch systems may send SIGINT twice in the same instant, to a process and to its group.  The
second would be raised in whatever we do about the first.  Knows nothing of balsamfut.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Final

GRACE: Final = 1.0
"""Seconds after a Ctrl-C in which another one is taken for the same."""

_SAID: Final = "_balsamfut_said"
_OURS: Final = "_balsamfut_waited"


_last = -GRACE    # when the last one came, by the monotonic clock


def _handle(number: int, frame: FrameType | None) -> None:
    """Python's own handler, but for repetitions."""
    global _last
    now = time.monotonic()
    if now - _last >= GRACE:
        _last = now
        raise KeyboardInterrupt


def heed_once() -> bool:
    """From now on a Ctrl-C and its repetitions are one KeyboardInterrupt.  False: somebody else handles it, or not
    here."""
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not plain or threading.current_thread() is not threading.main_thread():
        return False
    signal.signal(signal.SIGINT, _handle)
    return True


def came() -> None:
    """A Ctrl-C has come: its repetitions are heeded no more."""
    global _last
    _last = time.monotonic()
    heed_once()


class Waiting:
    """`with Waiting():` the caller waits for us, and nothing of its own is interrupted by a Ctrl-C."""

    __slots__ = ("_heeding",)

    def __enter__(self) -> None:
        self._heeding = heed_once()

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None,
                 trace: TracebackType | None) -> None:
        if isinstance(exc, KeyboardInterrupt):
            setattr(exc, _OURS, True)      # and its repetitions, which may still come, stay one with it
        elif self._heeding:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def said(exc: BaseException) -> None:
    """People have been told about this KeyboardInterrupt: its traceback is not printed, if all it shows is a wait."""
    if not getattr(exc, _OURS, False):
        return
    setattr(exc, _SAID, True)
    hook = sys.excepthook

    def quietly(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if not getattr(value, _SAID, False):
            hook(kind, value, trace)

    sys.excepthook = quietly


_ended_by_signal = False


def end_by_signal() -> None:
    """This process, which is about to end anyway, is to end as an interrupted one does: by SIGINT, 130 in shells."""
    global _ended_by_signal
    _ended_by_signal = True


def _end() -> None:
    if _ended_by_signal:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):    # closed, or nobody reads
                pass
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


atexit.register(_end)
