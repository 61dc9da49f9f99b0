"""Places where a test can have this process killed: numbered points before and after commits and sends.

`BALSAMFUT_CRASH=interchange.commit:3` makes the process that passes the point of that name for the third time end
itself with SIGKILL there, which is what a kill -9 at just that moment does.  A comma separates several;
`BALSAMFUT_CRASH_LOG` names a file to which each process appends the points that it passes (to find out which there
are), and `BALSAMFUT_CRASH_ONCE` names a file that is made at the first crash and prevents a second.
Without these variables a point costs one comparison.

`BALSAMFUT_CLOCK_SKEW` is the number of seconds by which the machine's clock is wrong for this process.
"""

from __future__ import annotations

import os
import signal

_plan: dict[str, int] = {}
_log = os.environ.get("BALSAMFUT_CRASH_LOG", "")
_once = os.environ.get("BALSAMFUT_CRASH_ONCE", "")
for _entry in filter(None, os.environ.get("BALSAMFUT_CRASH", "").split(",")):
    _name, _, _count = _entry.partition(":")
    _plan[_name] = int(_count or 1)
active = bool(_plan or _log)
"""False in all but tests: callers on hot paths may look at this first."""
skew = float(os.environ.get("BALSAMFUT_CLOCK_SKEW") or 0.0)
"""Seconds to add to what the machine's clock says; 0.0 in all but tests."""


def point(name: str) -> None:
    """Pass the point `name`."""
    if not active:
        return
    if _log:
        with open(_log, "a") as log:
            log.write(f"{os.getpid()} {name}\n")
    if name in _plan:
        _plan[name] -= 1
        if _plan[name] == 0 and (not _once or _first(name)):
            os.kill(os.getpid(), signal.SIGKILL)


def _first(name: str) -> bool:
    """This is the first crash of all processes."""
    try:
        mark = os.open(_once, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False
    os.write(mark, name.encode())
    os.close(mark)
    return True
