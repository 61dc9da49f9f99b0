"""Slurm.

One `squeue` about all jobs at once says where they are and why they wait, those included that were over a moment ago
(MinJobAge, 300 s unless the site says otherwise); `scontrol show job` says how one ended.  sacct is not needed, since
not every site has it.  Columns and not JSON are asked for: they are the same in every version, the JSON is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from balsamfut.provider.base import BlockSpec, BlockState
from balsamfut.provider.batch import BatchProvider
from balsamfut.provider.commands import Result
from balsamfut.provider.dialect import Answer, Look, Sight
from balsamfut.provider.pace import Pace
from balsamfut.provider.script import clock, job_script

_DOWN: Final = re.compile(r"Unable to contact slurm controller|Connection refused|No route to host|standby mode|"
                          r"Resource temporarily unavailable", re.IGNORECASE)
_UNCLEAR: Final = re.compile(r"timed out|Zero Bytes were transmitted|Unexpected message|Transport endpoint|"
                             r"communication|Socket", re.IGNORECASE)
_MAY_PASS: Final = re.compile(r"submit limit|MaxSubmit|not available|is down|inactive|MaxJobs", re.IGNORECASE)
_GONE: Final = re.compile(r"Invalid job id|already (?:completing|completed)", re.IGNORECASE)
_ID: Final = re.compile(r"^(\d+)(?:;\S*)?\s*$", re.MULTILINE)
_WAITING: Final = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
                             "SPECIAL_EXIT"})
_AGAIN: Final = frozenset({"NODE_FAIL", "PREEMPTED", "BOOT_FAIL"})   # not the job's doing
_OVER: Final = _AGAIN | {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "REVOKED"}
_STUCK: Final = re.compile("REQUEUE_HOLD|SPECIAL_EXIT|JobHeld|JobHoldMaxRequeue|requeued[_ ]held|BadConstraints|"
                           "PartitionNodeLimit|PartitionTimeLimit|NeverSatisfied", re.IGNORECASE)
_COLUMNS: Final = "%i|%T|%r"
_NO_SIGNAL: Final = 65   # 125 stands for want of memory


class SlurmRules(msgspec.Struct, frozen=True):
    """What a machine's Slurm wants to be told; from the `[scheduler]` table of its platform file, of which the rest is
    ignored."""

    partition: str = ""                 # for every block
    constraint: str = ""
    queue_option: Literal["partition", "qos"] = "partition"   # what a block's queue is there

    @classmethod
    def of(cls, scheduler: Mapping[str, Any]) -> SlurmRules:
        """Raises msgspec.ValidationError for a value that it cannot be."""
        return msgspec.convert(dict(scheduler), cls)


def script(spec: BlockSpec, rules: SlurmRules) -> str:
    """The job script of a block."""
    by_queue = bool(spec.queue) and rules.queue_option == "partition"
    asked = [
        f"--job-name={spec.token}",
        f"--account={spec.project}" if spec.project else "",
        f"--{rules.queue_option}={spec.queue}" if spec.queue else "",
        f"--partition={rules.partition}" if rules.partition and not by_queue else "",
        f"--constraint={rules.constraint}" if rules.constraint else "",
        f"--nodes={spec.nodes}",
        "--exclusive",
        f"--time={clock(spec.walltime)}" if spec.walltime else "",
        f"--output={spec.log.replace('%', '%%')}",
        "--open-mode=append",
        "--no-requeue",    # it would start a second pilot under the same name
        "--export=NONE",   # the environment of whoever submits is not the block's
        *spec.directives,
    ]
    # With --export=NONE alone, every srun within would start its ranks without an environment.
    return job_script(spec, "#SBATCH", filter(None, asked), first=["unset SLURM_EXPORT_ENV"])


class Slurm:
    """The Dialect of Slurm."""

    name = "Slurm"
    at_once = 1

    def __init__(self, rules: SlurmRules) -> None:
        self._rules = rules

    def script(self, spec: BlockSpec) -> str:
        return script(spec, self._rules)

    def submit(self, spec: BlockSpec) -> Sequence[str]:
        return "sbatch", "--parsable"    # the script on its stdin

    def submitted(self, result: Result) -> Answer:
        said = _one_line(result)
        if result.code is None:
            return Answer(unclear=said) if result.began else Answer(refused=said)
        if result.code == 0:
            ids = _ID.findall(result.out)
            return Answer(ids=(ids[-1],)) if ids else Answer(unclear=f"sbatch gave no id, but said: {said}")
        if _DOWN.search(result.err):
            return Answer(down=said)
        if _UNCLEAR.search(result.err) or result.code < 0:
            return Answer(unclear=said)
        return Answer(refused=said, again=bool(_MAY_PASS.search(said)))

    def find(self, token: str, way: int) -> Sequence[str] | None:
        return ("squeue", "--noheader", "--states=all", f"--name={token}", "--format=%i") if way == 0 else None

    def found(self, result: Result) -> Answer | None:
        return Answer(ids=tuple(_ID.findall(result.out))) if result.code == 0 else Answer(down=_one_line(result))

    def look(self, ids: Sequence[str]) -> Sequence[str]:
        return "squeue", "--noheader", "--states=all", f"--format={_COLUMNS}", f"--jobs={','.join(ids)}"

    def looked(self, result: Result, ids: Sequence[str]) -> Look:
        if result.code != 0 and not (len(ids) == 1 and _GONE.search(result.err)):   # one alone, unknown, is an error
            return Look(down=_one_line(result))
        jobs = {id: Sight(None) for id in ids}
        for line in result.out.splitlines():
            id, _, rest = line.strip().partition("|")
            state, bar, reason = rest.partition("|")
            if bar and id in jobs:
                jobs[id] = sight(state, reason)
        return Look(jobs)

    def ask(self, ids: Sequence[str], past: bool, way: int) -> Sequence[str] | None:
        return ("scontrol", "--oneliner", "show", "job", ids[0]) if way == 0 else None

    def asked(self, result: Result, ids: Sequence[str]) -> Look:
        if _GONE.search(result.err):
            return Look({ids[0]: Sight(None, _one_line(result))})
        if result.code != 0:
            return Look(down=_one_line(result))
        record = dict(word.split("=", 1) for word in result.out.split() if "=" in word)
        if record.get("JobId") != ids[0] or "JobState" not in record:
            return Look()
        return Look({ids[0]: sight(record["JobState"], record.get("Reason", ""), record.get("ExitCode", ""))})

    def delete(self, id: str, force: bool) -> Sequence[str]:
        return "scancel", id

    def deleted(self, result: Result) -> Answer:
        if result.code == 0 or _GONE.search(result.err):
            return Answer()
        said = _one_line(result)
        if result.code is None or _DOWN.search(result.err) or _UNCLEAR.search(result.err):
            return Answer(down=said)
        return Answer(refused=f"it cannot be ended: {said}")

    def dropped(self, spec: BlockSpec | None) -> str:
        return "Slurm gave it an id and does not know it any more"


def sight(state: str, reason: str, exit_code: str = "") -> Sight:
    """What a state (PENDING), the reason for it and `ExitCode` ("7:0": code and signal) say."""
    words = state if reason in ("", "None") else f"{state} ({reason})"
    if state in _OVER:
        code, _, number = exit_code.partition(":")
        ran: int | None = None
        if code.isdigit() and number.isdigit() and int(number) < _NO_SIGNAL:
            ran = -int(number) or int(code)
        if ran == 0 and state != "COMPLETED":   # it never ran, or Slurm ended it
            ran = None
        return Sight(BlockState.ENDED, words, ran, state in _AGAIN)
    if state in _WAITING:
        return Sight(BlockState.QUEUED, words, stuck=bool(_STUCK.search(words)))
    return Sight(BlockState.RUNNING, "" if state == "RUNNING" else words)


def _one_line(result: Result) -> str:
    """What a command said, in one line and without its name."""
    lines = [re.sub(r"^(?:sbatch|squeue|scontrol|scancel|slurm_load_jobs)(?:: error| error)?: ", "", line.strip())
             for line in result.text.splitlines()]
    return " ".join(filter(None, lines))


class SlurmProvider(BatchProvider):
    """The Provider for Slurm."""

    def __init__(self, rules: SlurmRules | None = None, pace: Pace | None = None) -> None:
        super().__init__(Slurm(rules or SlurmRules()), pace)
