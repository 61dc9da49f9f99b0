"""PBS Professional and OpenPBS.

Three questions are asked: a plain `qstat` about all jobs at once, which is cheap; the full one about those that are
over or no longer known; and, now and then, the full one about those that wait, for PBS says only there why.  The plain
one is asked without the history (-x), so that it says the same whether the site keeps one.

`qsub -f`: without it, qsub leaves a daemon behind that may submit a job after its caller has given up.  One id for each
qdel: a server has been seen to crash on a list with an unknown id in it.  Never -V, and nothing of ours in -v: qsub
changes, refuses or crashes on some values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from balsamfut.provider import pbs_text
from balsamfut.provider.base import BlockSpec
from balsamfut.provider.batch import BatchProvider
from balsamfut.provider.commands import Result
from balsamfut.provider.dialect import Answer, Look
from balsamfut.provider.pace import Pace
from balsamfut.provider.script import clock, job_script


class PbsRules(msgspec.Struct, frozen=True):
    """What a machine's PBS wants to be told; from the `[scheduler]` table of its platform file, of which the rest is
    ignored."""

    select: str = "select={nodes}"   # the resource request
    place: str = ""                  # "": scatter for several nodes, since PBS itself may put several chunks on one
    filesystems: str = ""            # for blocks that name none

    def __post_init__(self) -> None:
        if "{nodes}" not in self.select or not self.select.startswith("select="):
            raise ValueError(f"select = {self.select!r} must begin with select= and contain {{nodes}}, "
                             "which stands for the number of nodes")

    @classmethod
    def of(cls, scheduler: Mapping[str, Any]) -> PbsRules:
        """Raises msgspec.ValidationError for a value that it cannot be."""
        return msgspec.convert(dict(scheduler), cls)


def script(spec: BlockSpec, rules: PbsRules) -> str:
    """The job script of a block."""
    filesystems = spec.filesystems or rules.filesystems
    place = rules.place or ("scatter" if spec.nodes > 1 else "")
    asked = [
        f"-N {spec.token}",
        spec.project and f"-A {spec.project}",
        spec.queue and f"-q {spec.queue}",
        f"-l {rules.select.replace('{nodes}', str(spec.nodes))}",
        place and f"-l place={place}",
        f"-l walltime={clock(spec.walltime)}" if spec.walltime else "",
        filesystems and f"-l filesystems={filesystems}",
        "-j oe",
        f"-o {spec.log}",
        "-k doe",    # written there from the start, not when the job is over
        "-r n",      # a block that was put back in the queue would start a second pilot under the same name
        "-m n",
        *spec.directives,
    ]
    return job_script(spec, "#PBS", filter(None, asked))


class Pbs:
    """The Dialect of PBS."""

    name = "PBS"
    at_once = 100

    def __init__(self, rules: PbsRules) -> None:
        self._rules = rules

    def script(self, spec: BlockSpec) -> str:
        return script(spec, self._rules)

    def submit(self, spec: BlockSpec) -> Sequence[str]:
        return "qsub", "-f"    # the script on its stdin

    def submitted(self, result: Result) -> Answer:
        said = pbs_text.one_line(result.text, "qsub")
        if result.code is None:
            return Answer(unclear=said) if result.began else Answer(refused=said)
        if result.code == 0:
            ids = pbs_text.ID.findall(result.out)
            return Answer(ids=(ids[-1],)) if ids else Answer(unclear=f"qsub gave no id, but said: {said}")
        if result.code in pbs_text.DOWN or pbs_text.is_down(result.err):
            return Answer(down=said)
        if result.code in pbs_text.UNCLEAR or result.code < 0:
            return Answer(unclear=said)
        return Answer(refused=said, again=result.code in pbs_text.MAY_PASS,
                      doubtful=result.code in pbs_text.NOT_THE_SERVERS)

    def find(self, token: str, way: int) -> Sequence[str] | None:
        ways = [("qselect", "-x", "-N", token), ("qselect", "-N", token)]
        return ways[way] if way < len(ways) else None

    def found(self, result: Result) -> Answer | None:
        if result.code == 0:
            return Answer(ids=tuple(pbs_text.ID.findall(result.out)))
        said = pbs_text.one_line(result.text, "qselect")
        return None if pbs_text.no_history(result.err) else Answer(down=said)

    def look(self, ids: Sequence[str]) -> Sequence[str]:
        return "qstat", *ids

    def looked(self, result: Result, ids: Sequence[str]) -> Look:
        jobs = pbs_text.table(result.out, result.err, ids)
        down = "" if jobs else _down(result)
        return Look(jobs, down)

    def ask(self, ids: Sequence[str], past: bool, way: int) -> Sequence[str] | None:
        form = [("-F", "json"), ("-w",)]
        history = ("-x",) if past else ()
        return ("qstat", *history, "-f", *form[way], *ids) if way < len(form) else None

    def asked(self, result: Result, ids: Sequence[str]) -> Look:
        jobs = pbs_text.details(result.out, result.err, ids)
        return Look(jobs, "" if jobs else _down(result))

    def delete(self, id: str, force: bool) -> Sequence[str]:
        return ("qdel", "-W", "force", id) if force else ("qdel", id)

    def deleted(self, result: Result) -> Answer:
        gone = (0, pbs_text.HAS_FINISHED, pbs_text.EXITING, pbs_text.UNKNOWN_JOB)
        said = pbs_text.one_line(result.text, "qdel")
        if result.code in gone:
            return Answer()
        if result.code == pbs_text.NO_MOM:   # its first node does not answer
            return Answer(force=True)
        if result.code is None or result.code in pbs_text.DOWN or pbs_text.is_down(result.err):
            return Answer(down=said)
        return Answer(refused=f"it cannot be ended: {said}")

    def dropped(self, spec: BlockSpec | None) -> str:
        where = f" behind {spec.queue!r}" if spec is not None and spec.queue else ""
        return ("PBS gave it an id and dropped it at once, as it does with jobs whose size or walltime no queue"
                f"{where} takes")


def _down(result: Result) -> str:
    """Why the server did not answer; "": it did."""
    if result.code is None or pbs_text.is_down(result.err):
        return pbs_text.one_line(result.text, "qstat")
    return ""


class PbsProvider(BatchProvider):
    """The Provider for PBS."""

    def __init__(self, rules: PbsRules | None = None, pace: Pace | None = None) -> None:
        super().__init__(Pbs(rules or PbsRules()), pace)
