"""Which MPI launcher this machine has: looked for only when the first MPI task is to be launched.

A path often tells the flavour; where it does not, `mpiexec --version` is run once (some milliseconds).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from balsamfut.platforms import Launcher


def find_mpiexec(environ: Mapping[str, str]) -> str | None:
    """The `mpiexec` beside this interpreter (an MPI from a wheel), else the first on PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    if os.access(beside, os.X_OK):
        return str(beside)
    return shutil.which("mpiexec", path=environ.get("PATH", os.defpath))


def flavour_of(path: str, version: str = "") -> str:
    """pals, srun, hydra or openmpi, by the launcher's real path and its `--version`; "" if neither tells."""
    name = os.path.basename(path)
    if "/pals/" in path:
        return "pals"
    if name == "srun":
        return "srun"
    if "hydra" in name or "HYDRA" in version or "Intel(R) MPI" in version:
        return "hydra"
    if name in ("prterun", "orterun", "mpiexec.openmpi") or "Open MPI" in version or "OpenRTE" in version:
        return "openmpi"
    return ""


def launcher(environ: Mapping[str, str], chosen: str = "", timeout: float = 20.0) -> Launcher | str:
    """The launcher of this machine, or one sentence saying why there is none.  Blocks while it asks for the version.

    chosen: the one that somebody wants, a path or a name on PATH.
    """
    exe = shutil.which(chosen, path=environ.get("PATH", os.defpath)) if chosen else find_mpiexec(environ)
    if chosen and exe is None:
        return f"the MPI launcher {chosen!r} (setting pilot.mpiexec) is not there, or not on PATH"
    if exe is None:
        return "there is no mpiexec beside the Python interpreter or on PATH: install MPI, or load its module"
    flavour = flavour_of(os.path.realpath(exe))
    if not flavour:
        try:
            done = subprocess.run([exe, "--version"], env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True, errors="replace", timeout=timeout, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{exe} --version failed: {error}"
        flavour = flavour_of(exe, done.stdout + done.stderr)
    if not flavour:
        return f"{exe} is neither Hydra (MPICH, Intel MPI), Open MPI nor PALS"
    return Launcher(flavour=flavour, exe=exe)
