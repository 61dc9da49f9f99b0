"""How long a batch job has been running when its pilot starts: its walltime began then, not with the pilot.

PBS says nowhere in a job when that was, so the session of the job's script is looked at: modules may take minutes to
load before the pilot is started in it.  Slurm says it in a variable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping


def age(walltime: float, environ: Mapping[str, str]) -> float:
    """Seconds; 0.0 where nothing is known.  walltime (seconds): what is older is not this job."""
    return max((each for each in (_of_session(), _said(environ)) if 0.0 <= each < walltime), default=0.0)


def _of_session() -> float:
    """The age of this process's session, where it is its own or its parent's: that of a terminal is no job's."""
    leader = os.getsid(0)
    if leader not in (os.getpid(), os.getppid()):
        return 0.0
    try:
        with open(f"/proc/{leader}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _said(environ: Mapping[str, str]) -> float:
    """What Slurm says, by another host's clock."""
    try:
        return time.time() - float(environ["SLURM_JOB_START_TIME"])
    except (KeyError, ValueError):
        return 0.0
