"""What PBS prints, read: tables, JSON that may be damaged, texts, exit codes.  Pure; starts nothing.

Written after what OpenPBS 23.06.06 and its releases print.  Their JSON is not always JSON: what a user put into a
variable is written as it is if it looks like a number ("A":00), older releases do not escape, and bytes need not be
UTF-8.  So every value is taken as text, and what cannot be read at all is asked for again as plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from balsamfut.provider.base import BlockState
from balsamfut.provider.dialect import Sight

ID: Final = re.compile(r"^(\d+(?:\[\d*\])?(?:\.[\w.-]+)?)\s*$", re.MULTILINE)

_ROW: Final = re.compile(r"(?P<id>\d+(?:\[\d*\])?\.?[\w.-]*)(?P<cut>\*?)\s+\S+\s+\S+\s+\S+\s+(?P<state>[A-Z])\s+\S+\s*")
_UNKNOWN: Final = re.compile(r"Unknown Job Id (\S+)")
_NO_HISTORY: Final = re.compile(r"PBS is not configured to maintain job history *(\S*)")
_FINISHED: Final = re.compile(r"(\S+) Job has finished")
_DOWN: Final = re.compile(r"cannot connect to server|Connection refused|No route to host|Connection timed out|"
                          r"Unknown Host|errno=15010|pbs_iff|Server shutting down", re.IGNORECASE)

# Exit codes of the commands: PBS's error numbers modulo 256.
UNKNOWN_JOB: Final = 153       # PBSE_UNKJOBID
HAS_FINISHED: Final = 35       # PBSE_HISTJOBID
EXITING: Final = 168           # PBSE_BADSTATE
NOT_THE_SERVERS: Final = frozenset({1, 2})   # of the client itself, or of a wrapper around it: who knows what it did
NO_MOM: Final = 222            # PBSE_NORELYMOM
DOWN: Final = frozenset({
    162,    # PBSE_SYSTEM, with "cannot connect to server"
    185,    # PBSE_NOCONNECTS
    212,    # PBSE_SVRDOWN
    13,     # PBSE_CONNFULL
    255,    # qstat that could not connect
})
UNCLEAR: Final = frozenset({
    163,    # PBSE_INTERNAL
    172,    # PBSE_EXPIRED: the client ran out of time
    179,    # PBSE_OBJBUSY
    183,    # PBSE_PROTOCOL
    57,     # PBSE_SAVE_ERR
    134,    # it was aborted: qsub does so when its environment is odd
})
MAY_PASS: Final = frozenset({
    38, 39,     # PBSE_ENTLIMCT, PBSE_ENTLIMRESC: so many jobs or resources of this user or project are there already
    173,        # PBSE_QUNOENB: the queue is disabled
    196, 70,    # PBSE_RESCUNAV, PBSE_RESCBUSY
    198,        # PBSE_MAXQUED
    251,        # PBSE_NOSCHEDULER
})


class Ending(NamedTuple):
    """An Exit_status below 0: PBS's doing, not the job's."""

    name: str
    text: str
    again: bool    # the same job may well run next time


ENDINGS: Final[Mapping[int, Ending]] = {
    -1: Ending("JOB_EXEC_FAIL1", "it could not be started (before its files were there)", False),
    -2: Ending("JOB_EXEC_FAIL2", "it could not be started (after its files were there)", False),
    -3: Ending("JOB_EXEC_RETRY", "it could not be started, and was to be tried again", True),
    -4: Ending("JOB_EXEC_INITABT", "the node's PBS was restarted under it", True),
    -5: Ending("JOB_EXEC_INITRST", "the node's PBS was restarted under it", True),
    -6: Ending("JOB_EXEC_INITRMG", "the node's PBS was restarted under it", True),
    -7: Ending("JOB_EXEC_BADRESRT", "it could not be restarted", True),
    -10: Ending("JOB_EXEC_FAILUID", "the node does not know this user or group", False),
    -11: Ending("JOB_EXEC_RERUN", "it was put back in the queue", True),
    -12: Ending("JOB_EXEC_CHKP", "it was checkpointed and killed", True),
    -13: Ending("JOB_EXEC_FAIL_PASSWORD", "the user's password was refused", False),
    -14: Ending("JOB_EXEC_RERUN_SIS_FAIL", "its nodes could not reach each other", True),
    -15: Ending("JOB_EXEC_QUERST", "it was put back in the queue to restart from a checkpoint", True),
    -16: Ending("JOB_EXEC_FAILHOOK_RERUN", "a hook of the site refused it for now", True),
    -17: Ending("JOB_EXEC_FAILHOOK_DELETE", "a hook of the site refused it", False),
    -18: Ending("JOB_EXEC_HOOK_RERUN", "a hook of the site put it back in the queue", True),
    -19: Ending("JOB_EXEC_HOOK_DELETE", "a hook of the site deleted it", False),
    -20: Ending("JOB_EXEC_RERUN_MS_FAIL", "its first node was lost", True),
    -21: Ending("JOB_EXEC_FAIL_SECURITY", "PBS's own directory on the node is not safe", True),
    -22: Ending("JOB_EXEC_HOOKERROR", "a hook of the site failed or took too long", True),
    -23: Ending("JOB_EXEC_FAIL_KRB5", "it had no Kerberos credentials", False),
    -24: Ending("JOB_EXEC_KILL_NCPUS_BURST", "it used more CPUs than it had asked for", False),
    -25: Ending("JOB_EXEC_KILL_NCPUS_SUM", "it used more CPU time than its CPUs allow", False),
    -26: Ending("JOB_EXEC_KILL_VMEM", "it used more virtual memory than it had asked for", False),
    -27: Ending("JOB_EXEC_KILL_MEM", "it used more memory than it had asked for", False),
    -28: Ending("JOB_EXEC_KILL_CPUT", "it used more CPU time than it had asked for", False),
    -29: Ending("JOB_EXEC_KILL_WALLTIME", "its walltime was over", False),
    -30: Ending("JOB_EXEC_JOINJOB", "one of its nodes did not join it", True),
    -31: Ending("JOB_EXEC_KILL_HPMEM", "it used more huge pages than it had asked for", False),
    -32: Ending("JOB_EXEC_RERUN_ZOMBIE_JOB", "its node had forgotten it", True),
}


def is_down(text: str) -> bool:
    """Whether this says that the server could not be reached."""
    return bool(_DOWN.search(text))


def no_history(text: str) -> bool:
    """Whether this says that the server forgets jobs as soon as they are over."""
    return bool(_NO_HISTORY.search(text))


def one_line(text: str, command: str) -> str:
    """What a command said, in one line and without its name; once, where it said it of each job."""
    lines = list(dict.fromkeys(line.strip().removeprefix(f"{command}:").strip() for line in text.splitlines()))
    usage = next((i for i, line in enumerate(lines) if line.lower().startswith("usage:")), len(lines))
    return " ".join(filter(None, lines[:usage] or lines))


def match(name: str, ids: Iterable[str], cut: bool = False) -> str | None:
    """Which of these ids is called so: in full, by its number, or by its beginning where it was cut."""
    for id in ids:
        if id == name or id.split(".")[0] == name or name.split(".")[0] == id or (cut and id.startswith(name)):
            return id
    return None


def table(out: str, err: str, ids: Sequence[str]) -> dict[str, Sight]:
    """Plain `qstat ID...`.  A cut id is matched by its beginning; names, which are cut too, are not looked at."""
    found: dict[str, Sight] = {}
    for line in out.splitlines():
        if (row := _ROW.fullmatch(line)) and (id := match(row["id"], ids, bool(row["cut"]))):
            found[id] = _by_letter(row["state"])
    for pattern, state in ((_FINISHED, BlockState.ENDED), (_UNKNOWN, None)):
        for name in pattern.findall(err):
            if id := match(name, ids):
                found[id] = Sight(state)
    return found


def details(out: str, err: str, ids: Sequence[str]) -> dict[str, Sight]:
    """`qstat -f`, as JSON or as text: what it says of these jobs; of those that cannot be read, nothing."""
    found = {}
    for name, record in (_json(out) if out.lstrip().startswith("{") else _text(out)).items():
        if (id := match(name, ids)) and "job_state" in record:
            found[id] = sight(record)
    for line in err.splitlines():
        said = _UNKNOWN.search(line) or _NO_HISTORY.search(line)
        if said and (id := match(said[1], ids)) and id not in found:
            found[id] = Sight(None, one_line(line, "qstat"))
    return found


def _json(out: str) -> dict[str, dict[str, str]]:
    try:
        whole = json.loads(out, strict=False)
    except ValueError:
        return {}
    jobs = whole.get("Jobs") if isinstance(whole, dict) else None
    if not isinstance(jobs, dict):
        return {}
    return {name: {key: _word(value) for key, value in job.items() if not isinstance(value, dict | list)}
            for name, job in jobs.items() if isinstance(job, dict)}


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _text(out: str) -> dict[str, dict[str, str]]:
    """Blocks of `    name = value` after `Job Id: ID`; a long value goes on in lines that begin with a tab."""
    jobs: dict[str, dict[str, str]] = {}
    record: dict[str, str] = {}
    name = ""
    for line in out.splitlines():
        if line.startswith("Job Id:"):
            record = jobs.setdefault(line[7:].strip(), {})
            name = ""
        elif line.startswith("\t") and name:
            record[name] += line[1:]
        elif line.startswith("    ") and " = " in line:
            name, _, value = line.strip().partition(" = ")
            record[name] = value
    return jobs


def _by_letter(letter: str) -> Sight:
    """What a job's state letter says."""
    if letter in "FX":
        return Sight(BlockState.ENDED)
    if letter in "RB":
        return Sight(BlockState.RUNNING, "")
    if letter == "E":    # for minutes, where its output cannot be brought to its place
        return Sight(BlockState.RUNNING, "exiting: what it ran has ended, PBS clears up after it")
    if letter in "SU":
        return Sight(BlockState.RUNNING, "suspended")
    if letter in "QHWT":
        return Sight(BlockState.QUEUED)
    return Sight(None, f"this server has no such job any more (state {letter})")   # M: it was moved to another one


def sight(record: Mapping[str, str]) -> Sight:
    """All that PBS says of a job."""
    comment = " ".join(record.get("comment", "").split())
    letter = record["job_state"]
    seen = _by_letter(letter)
    if seen.state == BlockState.ENDED:
        return _ended(record, comment)
    if seen.state == BlockState.QUEUED:
        holds = record.get("Hold_Types", "n")
        held = "" if letter != "H" else "held" if holds == "n" else f"held ({holds})"
        return Sight(BlockState.QUEUED, ": ".join(filter(None, (held, comment))),
                     stuck=bool(held) or comment.startswith("Can Never Run"))
    return seen


def _ended(record: Mapping[str, str], comment: str) -> Sight:
    try:
        status = int(record["Exit_status"])
    except (KeyError, ValueError):
        return Sight(BlockState.ENDED, comment or "it never ran: it was deleted while it waited")
    if status < 0:
        ending = ENDINGS.get(status, Ending("no code that we know", "PBS ended it", False))
        words = f"{ending.text} (Exit_status {status}, {ending.name})"
        return Sight(BlockState.ENDED, f"{words}: {comment}" if comment else words, None, ending.again)
    # 256 and more: the top process was killed by a signal, which PBS adds.  A server that was killed has lost comments.
    how = f"signal {status - 256} ended it" if status >= 256 else f"it ended with code {status}"
    code = 256 - status if status >= 256 else status
    return Sight(BlockState.ENDED, comment or f"{how}, PBS says no more of it", code)
