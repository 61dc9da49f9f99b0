"""The time of a process that lives long.  Knows nothing of balsamfut but what tests make of its clock."""

from __future__ import annotations

import time

from balsamfut import faults


class Clock:
    """Unix time that never jumps: what the machine's clock said at the start, plus what has passed since."""

    def __init__(self) -> None:
        self._base = time.time() + faults.skew - time.monotonic()

    def now(self) -> float:
        return self._base + time.monotonic()
