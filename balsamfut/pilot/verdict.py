"""Whose fault it was that a launch ended, from its exit code and the end of what it wrote.  Pure.

Launchers mix their own failures with those of the ranks, each flavour in its own way: Hydra's code is the bitwise OR of
the ranks' codes and the bare number of a signal, Open MPI has codes of its own above 180, PALS and srun tell the truth
in text.  So the text decides where it says something, in the order in which it was written: what follows the first
failure is mostly its consequence.  What no rule knows is the task's own failure.
"""

from __future__ import annotations

import re
import signal
from typing import Final

from balsamfut.messages import Fault

_LAUNCHER, _NODE, _TASK, _MEMORY = Fault.LAUNCHER, Fault.NODE, Fault.TASK, Fault.MEMORY

Rules = list[tuple[re.Pattern[str], Fault]]


def _rules(*rows: tuple[str, Fault]) -> Rules:
    return [(re.compile(pattern), fault) for pattern, fault in rows]


_OURS: Final = _rules(
    (r".*balsamfut-wrapper: .*", _LAUNCHER),
    (r"taskset: failed to set .*", _LAUNCHER),   # the cores of the platform's description are not ours here
)
_TEXT: Final[dict[str, Rules]] = {
    "pals": _rules(
        (r"(\S+: )?shepherd died from signal 9\b.*", _NODE),
        (r"(\S+: )?shepherd died from signal .*", _LAUNCHER),
        (r"(launch|start|ping) failed on .*", _LAUNCHER),
        (r"ping RPC timeout from .*", _LAUNCHER),
        (r".*No VNIs available.*", _LAUNCHER),
        (r".*Couldn't forward RPC .*", _LAUNCHER),
        (r"(\S+: )?rank \d+ exited with code \d+.*", _TASK),
        (r"(\S+: )?rank \d+ died from signal (?!15\b)\d+.*", _TASK),
    ),
    "hydra": _rules(
        (r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: .*", _TASK),
        (r"=\s+(BAD TERMINATION OF|EXIT CODE: ).*", _TASK),   # before the lines of proxies that lose their ranks
        (r"ssh: .*", _LAUNCHER),
        (r"\[(mpiexec|proxy).*(bind process failed|cpubind failed|execvp error|unrecognized argument)", _LAUNCHER),
        (r"\[(mpiexec|proxy).*(Launch proxy failed|unable to .*|[Cc]ould not .*|error parsing .*)", _LAUNCHER),
    ),
    "openmpi": _rules(
        (r".*There are not enough slots available.*", _LAUNCHER),
        (r".*(lost communication with|has lost connection to) a remote daemon.*", _NODE),
        (r".*was unable to (launch|start) the specified application.*", _LAUNCHER),
        (r"An unrecognized option was included.*", _LAUNCHER),
        (r"A daemon failed to report back.*", _LAUNCHER),
        (r".*(PRTE|ORTE)( daemon)? (was unable to|has failed|failed to) .*", _LAUNCHER),
        (r"ssh: .*", _LAUNCHER),
        (r".*noticed that process rank \d+ .*", _TASK),   # the signal is on the next line, and in the code
        (r"Exit code:\s+\d+.*", _TASK),
    ),
    "srun": _rules(
        (r"(srun|slurmstepd): error: .*([Nn]ode failure|NODE FAIL).*", _NODE),
        (r"(srun|slurmstepd): error: .*([Oo]ut [Oo]f [Mm]emory|oom.kill).*", _MEMORY),
        (r"srun: error: .*tasks? [-\d,]+: .*", _TASK),   # "Exited with exit code 3", "Segmentation fault" ...
        (r"srun: (error: )?.*[Uu]nable to (create|confirm|resolve|contact|allocate).*", _LAUNCHER),
        (r"srun: (error: )?.*([Ss]tep creation temporarily disabled|[Mm]ore processors requested than).*", _LAUNCHER),
        (r"srun: (error: )?.*([Ii]nvalid (node|job)|[Ss]ocket timed out|unrecognized option).*", _LAUNCHER),
        (r"srun: error: .*[Tt]ask launch .*failed.*", _LAUNCHER),
    ),
}
_CODES: Final[dict[str, dict[int, tuple[Fault, str]]]] = {
    "openmpi": {213: (_LAUNCHER, "mpiexec refused the request (213)"),
                183: (_LAUNCHER, "mpiexec found no program (183)")},
    "srun": {253: (_MEMORY, "the step ran out of memory (253)")},
}
_LONGEST: Final = 300   # characters of a line that are worth telling


def judge(flavour: str, returncode: int, stderr_tail: str) -> tuple[Fault, str]:
    """Whose fault, and one line for people ("" for success).

    flavour: of the launcher, "" for a process without one.  returncode: negative: ended by that signal.  stderr_tail:
    the end of what it wrote; for MPI tasks with stdout, if that is apart, as Hydra tells of signals there.
    """
    if returncode == 0:
        return Fault.NONE, ""
    if not flavour:
        return _TASK, _plainly(returncode)
    rules = _OURS + _TEXT[flavour]
    for line in stderr_tail.splitlines():
        for pattern, fault in rules:
            found = pattern.match(line.strip())
            if found:
                return fault, _told(returncode, found[0], stderr_tail)
    if returncode in _CODES.get(flavour, {}):
        return _CODES[flavour][returncode]
    return _TASK, _plainly(returncode)


def _told(returncode: int, line: str, text: str) -> str:
    exit_string = re.search(r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: (.*)", text)
    if exit_string and line.startswith(("=", "YOUR ")):   # Hydra, whose code does not tell a signal from an exit
        return exit_string[1][:_LONGEST]
    if line.startswith(("=", "Exit code:", "prterun noticed")):   # the code says more
        return _plainly(returncode)
    return line[:_LONGEST]


def _plainly(returncode: int) -> str:
    if returncode < 0:
        return f"ended by {_signal(-returncode)}"
    if 128 < returncode < 128 + 32:
        return f"exit code {returncode} (a process was ended by {_signal(returncode - 128)})"
    return f"exit code {returncode}"


def _signal(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
