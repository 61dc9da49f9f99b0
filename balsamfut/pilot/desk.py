"""What an agent knows about itself and its site, and what follows for a task: paths, environment, an error's sentence.

Opens nothing and decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from balsamfut.context import BLOCK_END
from balsamfut.errors import ShellError
from balsamfut.model import Extra, Payload, Pool, default_workdir
from balsamfut.pilot import launch
from balsamfut.platforms import Launcher, Platform, probe
from balsamfut.raised import error_payload

INLINE: Final = 64 * 1024
"""Bytes: larger payloads are files."""

PRIVATE: Final = ("BALSAMFUT_MARK", "BALSAMFUT_TASK_ID", "BALSAMFUT_ATTEMPT", "BALSAMFUT_WORKDIR", "BALSAMFUT_CORES",
                  "BALSAMFUT_NODES")
_NO_EXTRA: Final = Extra()
BATCH: Final = ("PBS_", "SLURM_", "SLURMD_", "HYDRA_LAUNCHER", "PALS_")
"""How variables begin by which a batch job is known, and how its other hosts are reached."""


class Desk:
    """See the module."""

    def __init__(self, *, site: Path, pilot: int, token: str, host: str, platform: Platform, names: list[str],
                 pretend: bool, apart: bool = False, clients: str = "", mpiexec: str = "") -> None:
        self.site = site
        self.data = str(site / "data")
        self.objects = site / "objects"
        self.pilot = pilot
        self.token = token
        self.host = host
        self.platform = platform
        self.names = names
        self.pretend = pretend           # the cores and tiles do not exist: bind what can be bound, no more
        self.apart = apart               # each node is a host of its own
        self.clients = clients           # address of the clients' door
        self.mpiexec = mpiexec           # the launcher that somebody has chosen; "": nobody has
        self.ends = 0.0                  # when this block's tasks have to be over (Unix time); 0.0: it does not end
        self.inline = INLINE
        self.codes: dict[bytes, Payload] = {}
        self.pools: dict[bytes, Pool] = {}
        self._environs: dict[int, tuple[Pool, dict[str, str]]] = {}

    def environ(self, pool: Pool) -> dict[str, str]:
        """What everything that is started for this pool has in its environment."""
        known = self._environs.get(id(pool))
        if known is None:
            ours = {name: value for name, value in os.environ.items()
                    if name.startswith("BALSAMFUT_") and name not in PRIVATE}
            # By what launchers and programs know their batch job: it is this block's, not that of where the script ran.
            job = {name: value for name, value in os.environ.items() if name.startswith(BATCH)}
            theirs = dict(pool.environ) or dict(os.environ)
            known = self._environs[id(pool)] = pool, launch.scrub({**ours, **theirs, **job})
            known[1].pop(BLOCK_END, None)        # of a block that the script ran in
            if self.ends:
                known[1][BLOCK_END] = str(int(self.ends))
        return known[1]

    def launcher(self, environ: Mapping[str, str]) -> Launcher | str:
        """The MPI launcher: the one that was chosen, else the platform's, or this host's where that is left open or its
        nodes are pretended.  Text: why there is none."""
        known = self.platform.launcher
        if self.mpiexec or self.pretend or not known.flavour:
            return probe.launcher(environ, self.mpiexec)
        return known

    # ---- paths

    def workdir(self, task: int, extra: Extra | None) -> str:
        return os.path.join(self.data, (extra.workdir if extra is not None else "") or default_workdir(task))

    def streams(self, extra: Extra | None, workdir: str) -> tuple[str, str]:
        """Where a command's output goes: stdout, stderr."""
        extra = extra or _NO_EXTRA
        stdout = os.path.join(workdir, extra.stdout or "job.out")
        return stdout, os.path.join(workdir, extra.stderr) if extra.stderr else stdout

    def shell_error(self, task: int, extra: Extra | None, app: str, returncode: int, why: str,
                    command: str) -> tuple[Payload, str]:
        """The exception of a command that ended with this code, and the same in one line."""
        workdir = self.workdir(task, extra)
        _, stderr = self.streams(extra, workdir)
        end = tail(stderr)
        how = why or (f"exit code {returncode}" if returncode >= 0 else f"signal {-returncode}")
        lines = [line for line in end.strip().splitlines() if line.strip() not in how]
        text = (f"{app} (task {task}) on {self.host}: {how}; its output is in {stderr}"
                + (f", the end of it: {lines[-1].strip()[:200]}" if lines else ""))
        error = ShellError(text, returncode=returncode, host=self.host, workdir=workdir, command=command, stderr=stderr,
                           tail=end)
        return error_payload(error), text


def tail(path: str, most: int = 2048, start: int = 0) -> str:
    """The end of a file, from `start` on, as text; empty if there is no such file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - most))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
