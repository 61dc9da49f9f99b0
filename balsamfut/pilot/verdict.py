"""Whose fault it was that a launch ended, from its exit code and the end of what it wrote.  Pure.

Launchers mix their own failures with those of the ranks, each flavour in its own way: Hydra's code is the bitwise OR of
the ranks' codes and the bare number of a signal, Open MPI has codes of its own above 180, PALS and srun tell the truth
in text.  So the text decides where it says something, in the order in which it was written: what follows the first
failure is mostly its consequence.  What no rule knows is the task's own failure.  A node is blamed only where the
launcher names the one that was lost, as opposed to the one that tells of it.
"""

from __future__ import annotations

import enum
import re
import signal
from typing import Final, NamedTuple

from balsamfut.messages import Fault


class Cause(enum.Enum):
    """What ended a launch."""

    NONE = Fault.NONE, 0
    TASK = Fault.TASK, 1        # a rank's exit code
    SIGNAL = Fault.TASK, 2      # a rank died from a signal
    REQUEST = Fault.LAUNCHER, 3    # the launcher refuses what it was asked for: by us, or by the task's launch_params
    LAUNCHER = Fault.LAUNCHER, 4
    VNI = Fault.LAUNCHER, 5     # no Slingshot network isolation key was left: it works without one
    NODE = Fault.NODE, 6
    MEMORY = Fault.MEMORY, 7

    @property
    def fault(self) -> Fault:
        return self.value[0]


class Verdict(NamedTuple):
    """How a launch ended."""

    cause: Cause
    line: str = ""     # for people; "" for success
    host: str = ""     # that is to be used no more, as the launcher calls it

    @property
    def fault(self) -> Fault:
        return self.cause.fault


Rules = list[tuple[re.Pattern[str], Cause]]


def _rules(*rows: tuple[str, Cause]) -> Rules:
    return [(re.compile(pattern), cause) for pattern, cause in rows]


_REFUSAL: Final = (r"([Uu]n(recognized|known) (option|argument|PMI)|[Ii]nvalid \w+ binding|[Ff]ailed to parse"
                   r"|requires an argument)")   # not what may be an errno's text
_OURS: Final = _rules(
    (r".*balsamfut-wrapper: .*", Cause.LAUNCHER),
)
_TEXT: Final[dict[str, Rules]] = {
    "pals": _rules(
        (r"(?P<host>\S+): shepherd died from signal 9\b.*", Cause.NODE),
        (r"(\S+: )?shepherd died from signal .*", Cause.LAUNCHER),     # 11 may be PMIx: nobody's node
        (r".*No VNIs available.*", Cause.VNI),
        (r"ping failed on \S+ No reply from (?P<host>\S+).*", Cause.LAUNCHER),
        (r"ping RPC timeout from (?P<host>\S+).*", Cause.LAUNCHER),
        (r".*Couldn't forward RPC .*", Cause.LAUNCHER),                # the tree of daemons is busy: nobody's node
        (rf"(launch|start) failed on .*{_REFUSAL}.*", Cause.REQUEST),
        (r"(launch|start|ping) failed on .*", Cause.LAUNCHER),
        (r"(\S+: )?rank \d+ exited with code \d+.*", Cause.TASK),
        (r"(\S+: )?rank \d+ died from signal (?!15\b)\d+.*", Cause.SIGNAL),
    ),
    "hydra": _rules(
        (r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: .*", Cause.SIGNAL),
        (r"=\s+(BAD TERMINATION OF|EXIT CODE: ).*", Cause.TASK),   # before the lines of proxies that lose their ranks
        (r"ssh: connect to host (?P<host>\S+) .*", Cause.LAUNCHER),
        (r"ssh: .*", Cause.LAUNCHER),
        (r"\[(mpiexec|proxy).*(unrecognized (argument|directive)|unable to find interface).*", Cause.REQUEST),
        (r"\[(mpiexec|proxy).*(bind process failed|cpubind failed|execvp error)", Cause.LAUNCHER),
        (r"\[(mpiexec|proxy).*(Launch proxy failed|unable to .*|[Cc]ould not .*|error parsing .*)", Cause.LAUNCHER),
    ),
    "openmpi": _rules(
        (r".*There are not enough slots available.*", Cause.LAUNCHER),
        (r".*(lost communication with|has lost connection to) a remote daemon.*", Cause.NODE),
        (r".*was unable to (launch|start) the specified application.*", Cause.LAUNCHER),
        (r"An unrecognized option was included.*", Cause.REQUEST),
        (r"A daemon failed to report back.*", Cause.LAUNCHER),
        (r"The PMIx server's listener thread failed to start.*", Cause.LAUNCHER),     # with 213, on a busy host
        (r".*(PRTE|ORTE)( daemon)? (was unable to|has failed|failed to) .*", Cause.LAUNCHER),
        (r"ssh: connect to host (?P<host>\S+) .*", Cause.LAUNCHER),
        (r"ssh: .*", Cause.LAUNCHER),
        (r".*noticed that process rank \d+ .*", Cause.SIGNAL),   # which is on the next line, and in the code
        (r"Exit code:\s+\d+.*", Cause.TASK),
    ),
    "srun": _rules(
        # Its pmi2 reads 1,024 bytes of what a rank says, and MPICH over UCX now and then says more.
        (r"slurmstepd\S*: error: mpi/pmi2: value not properly terminated.*", Cause.LAUNCHER),
        (r"(srun|slurmstepd): error: .*(Node failure on|NODE FAILURE on) (?P<host>[^\s,\[\]]+)$", Cause.NODE),
        (r"(srun|slurmstepd): error: .*([Nn]ode failure|NODE FAIL).*", Cause.NODE),
        (r"(srun|slurmstepd): error: .*([Oo]ut [Oo]f [Mm]emory|oom.kill).*", Cause.MEMORY),
        (r"srun: error: .*tasks? [-\d,]+: Exited with .*", Cause.TASK),
        (r"srun: error: .*tasks? [-\d,]+: .*", Cause.SIGNAL),   # "Killed", "Segmentation fault" ...
        (r"srun: (error: )?.*(unrecognized option|[Mm]ore processors requested than).*", Cause.REQUEST),
        (r"srun: (error: )?.*[Uu]nable to (create|confirm|resolve|contact|allocate).*", Cause.LAUNCHER),
        (r"srun: (error: )?.*[Ss]tep creation temporarily disabled.*", Cause.LAUNCHER),
        (r"srun: (error: )?.*([Ii]nvalid (node|job)|[Ss]ocket timed out).*", Cause.LAUNCHER),
        (r"srun: error: .*[Tt]ask launch .*failed.*", Cause.LAUNCHER),
    ),
}
_CODES: Final[dict[str, dict[int, tuple[Cause, str]]]] = {
    "openmpi": {213: (Cause.REQUEST, "mpiexec refused the request (213)"),
                183: (Cause.LAUNCHER, "mpiexec found no program (183)")},
    "srun": {253: (Cause.MEMORY, "the step ran out of memory (253)")},
}
_FAILED: Final = {   # the launch has failed for good, says the launcher itself: what is left is to end
    "pals": re.compile(r"^(\S+: (shepherd died from signal|rank \d+ (exited with code|died from signal))"
                       r"|ping failed on |ping RPC timeout from )", re.MULTILINE),
    "openmpi": re.compile(r"^prterun (detected that one or more processes exited|noticed that process rank"
                          r"|has exited due to process rank)"
                          r"|PMIX_ERR_UNREACH in file .*connection_hdlr", re.MULTILINE),    # a rank ended too early
}
_DAEMON: Final = re.compile(r"Remote daemon:.* on node (\S+)")   # of Open MPI: some lines after the loss is told
_SIGNALLED: Final = re.compile(r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: (.*)")   # of Hydra
_LONGEST: Final = 300   # characters of a line that are worth telling


def judge(flavour: str, returncode: int, said: str) -> Verdict:
    """Whose fault, and one line for people.

    flavour: of the launcher, "" for a process without one.  returncode: negative: ended by that signal.  said: the end
    of what it wrote to stderr; for MPI tasks with stdout, if that is apart, as Hydra tells of signals there.
    """
    if returncode == 0:
        return Verdict(Cause.NONE)
    if not flavour:
        return _plainly(returncode)
    rules = _OURS + _TEXT.get(flavour, [])    # agents come by ssh, too, which says nothing of its own
    for line in said.splitlines():
        for pattern, cause in rules:
            found = pattern.match(line.strip())
            if found:
                return _told(flavour, returncode, cause, found, said)
    if returncode in _CODES.get(flavour, {}):
        return Verdict(*_CODES[flavour][returncode])
    return _plainly(returncode)


def failed(flavour: str, said: str) -> bool:
    """The launcher, which is still there, says that the launch has failed.  Not all flavours are known to stay then."""
    pattern = _FAILED.get(flavour)
    return pattern is not None and pattern.search(said) is not None


def _told(flavour: str, returncode: int, cause: Cause, found: re.Match[str], said: str) -> Verdict:
    """The verdict of a line that a rule knows, with what other lines say about it."""
    line, host = found[0], (found.groupdict().get("host") or "").rstrip(":")
    if flavour == "hydra" and cause in (Cause.TASK, Cause.SIGNAL):   # the code does not tell a signal from an exit
        signalled = _SIGNALLED.search(said)
        return Verdict(Cause.SIGNAL, signalled[1][:_LONGEST]) if signalled else _plainly(returncode)
    if flavour == "openmpi" and cause in (Cause.TASK, Cause.SIGNAL) and returncode > 0:   # the code says more
        return _plainly(returncode)
    if flavour == "openmpi" and cause is Cause.NODE:
        daemon = _DAEMON.search(said)
        host = daemon[1] if daemon else ""
    return Verdict(cause, line[:_LONGEST], host)


def _plainly(returncode: int) -> Verdict:
    if returncode < 0:
        return Verdict(Cause.SIGNAL, f"ended by {_signal(-returncode)}")
    if 128 < returncode < 128 + 32:
        return Verdict(Cause.SIGNAL,
                       f"exit code {returncode} (a process was ended by {_signal(returncode - 128)})")
    return Verdict(Cause.TASK, f"exit code {returncode}")


def _signal(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
