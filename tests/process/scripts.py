"""Running scripts as users do: `python script.py` in a directory of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def start(source: str, directory: Path, *args: str, name: str = "script.py",
          err: IO[str] | None = None) -> subprocess.Popen[str]:
    """Start the script; its standard input, output and error are pipes, unless `err` is where it writes errors."""
    path = directory / name
    path.write_text(textwrap.dedent(source))
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.Popen([sys.executable, name, *args], cwd=directory, env=environ, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err or subprocess.PIPE)


def run(source: str, directory: Path, *args: str, name: str = "script.py", seconds: float = 40.0) -> Ran:
    """Run the script to its end.  Raises TimeoutExpired, the script killed, when that takes too long."""
    with start(source, directory, *args, name=name) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Ran(process.returncode, out, err)
