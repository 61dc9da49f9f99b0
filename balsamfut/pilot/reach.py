"""How the other hosts of a batch job are reached, where neither a launcher nor ssh does it alone.

PBS starts processes on the hosts of a job by itself (`pbs_tmrsh`), also where nobody may log in; MPICH and Intel MPI
are told to use that.  A job without any MPI still needs its agents: srun, PBS or ssh starts them then.  Looks for
programs and writes one script; starts nothing.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from balsamfut.platforms import Launcher

_TMRSH: Final = """#!/bin/sh
# usage: tmrsh.sh [OPTION]... HOST [-n] WORD...: as rsh and ssh do, but by PBS; a shell there gets the words.
while :; do
    case $1 in
        -o | -l | -p) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
host=$1
shift
[ "$1" = -n ] && shift
exec {program} "$host" /bin/sh -c "$*"
"""


def tmrsh(environ: Mapping[str, str], conf: str = "/etc/pbs.conf") -> str | None:
    """PBS's program for the hosts of this job; None where it is not there, or this is no job of PBS."""
    if not environ.get("PBS_JOBID"):
        return None
    places = [environ.get("PATH", os.defpath)]
    try:
        lines = Path(environ.get("PBS_CONF_FILE", conf)).read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    places += [f"{line.split('=', 1)[1].strip()}/bin" for line in lines if line.startswith("PBS_EXEC=")]
    return shutil.which("pbs_tmrsh", path=os.pathsep.join(places))


def by_pbs(environ: Mapping[str, str], run: Path) -> dict[str, str]:
    """What Hydra has to have in its environment to reach the hosts of this job by PBS; nothing, where somebody has said
    how they are reached, or PBS has no way.  run: a directory that all hosts can read, for a script."""
    program = tmrsh(environ)
    if program is None or any(name.startswith("HYDRA_LAUNCHER") for name in environ):
        return {}
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    script = run / "tmrsh.sh"
    script.write_text(_TMRSH.format(program=shlex.quote(program)))
    script.chmod(0o700)
    return {"HYDRA_LAUNCHER": "rsh", "HYDRA_LAUNCHER_EXEC": str(script)}


def without_mpi(environ: Mapping[str, str]) -> Launcher | None:
    """What starts agents where there is no MPI launcher; environ: with what by_pbs said."""
    if environ.get("SLURM_JOB_ID") and shutil.which("srun", path=environ.get("PATH", os.defpath)):
        return Launcher(flavour="srun")
    if environ.get("HYDRA_LAUNCHER") in ("rsh", "ssh") and environ.get("HYDRA_LAUNCHER_EXEC"):
        return Launcher(flavour="ssh", exe=environ["HYDRA_LAUNCHER_EXEC"])
    return Launcher(flavour="ssh") if shutil.which("ssh", path=environ.get("PATH", os.defpath)) else None
