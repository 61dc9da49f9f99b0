"""The text of a job script: the batch system's directives, then a few lines of bash that end in what the block runs.

Pure.  Short and readable, because people read it when something goes wrong, and can hand it to the batch system
themselves.  Knows no batch system.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Final

from balsamfut.provider.base import BlockSpec

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,199}")
_WIDTH: Final = 118   # a longer command is written with one option a line


def bad_token(token: str) -> str | None:
    """Why this cannot be the name of a job; None: it can."""
    if _TOKEN.fullmatch(token):
        return None
    return f"{token!r} cannot be a job's name: it takes a letter, then up to 199 letters, digits, '.', '_' or '-'"


def refusal(spec: BlockSpec) -> str | None:
    """Why no job script can be written for this block, in one sentence; None: one can."""
    for name, _ in (*spec.environ, *spec.params):
        if not _NAME.fullmatch(name):
            return f"{name!r} cannot be the name of a variable in a job script: it takes letters, digits and '_'"
    for field in ("log", "cwd"):
        if not getattr(spec, field).startswith("/"):
            return f"{field} = {getattr(spec, field)!r} must be an absolute path"
    for line in spec.directives:
        if "\n" in line:
            return f"the directive {line!r} has more than one line: give one directive for each"
    if spec.nodes < 1 or spec.walltime < 0:
        return f"a block has 1 node or more and a walltime of 0 s or more, not {spec.nodes} and {spec.walltime:g} s"
    return None


def bad_directive(spec: BlockSpec) -> str | None:
    """Why a batch system cannot be told of this block, in one sentence; None: it can.  For what ends up in the first
    lines of a job script, where words end at a blank, and what begins with a dash is an option."""
    if bad := re.search(r"\s", spec.log):
        return (f"the block's log would be {spec.log!r}, and a batch system takes no file's name with {bad[0]!r}: move "
                "the site to a directory without, then `balsamfut site add`")
    for field in ("queue", "project", "filesystems"):
        value = getattr(spec, field)
        if bad := re.search(r"\s", value):
            return f"{field} = {value!r} cannot be given to the batch system: it contains {bad[0]!r}"
        if value.startswith("-"):
            return f"{field} = {value!r} cannot be given to the batch system: it begins with '-'"
    return None


def clock(seconds: float) -> str:
    """H:MM:SS, rounded up."""
    whole = -int(-seconds // 1)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def job_script(spec: BlockSpec, prefix: str, directives: Iterable[str], first: Iterable[str] = ()) -> str:
    """The script, its directives after `prefix` ("#PBS"), then the lines in `first`."""
    lines = ["#!/bin/bash -l"]   # a login shell: it knows `module`
    lines += (f"{prefix} {line.removeprefix(prefix).strip()}" for line in directives)
    lines += ["", *first, f"cd {shlex.quote(spec.cwd)}"]
    lines += (f"export {name}={shlex.quote(value)}" for name, value in spec.environ)
    lines += (f"{name}={shlex.quote(value)}" for name, value in spec.params)
    if spec.preamble.strip():
        lines += ["", spec.preamble.strip("\n")]
    # exec: a shell that waits for its child passes no signal on.
    lines += ["", f"exec {_command(spec.argv)}", ""]
    return "\n".join(lines)


def _command(argv: Iterable[str]) -> str:
    words = [shlex.quote(word) for word in argv]
    whole = " ".join(words)
    if len(whole) <= _WIDTH:
        return whole
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--") and lines[-1]:
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(" ".join(line) for line in lines)
