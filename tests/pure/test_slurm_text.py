"""What Slurm prints is read as it is printed.  The texts are those of slurm-wlm 22.05.8."""

from __future__ import annotations

import pytest

from balsamfut.provider.base import BlockState
from balsamfut.provider.commands import Result
from balsamfut.provider.dialect import Answer, Look, Sight
from balsamfut.provider.slurm import Slurm, SlurmRules, sight

SLURM = Slurm(SlurmRules())
DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
GONE = "slurm_load_jobs error: Invalid job id specified\n"
ENDED = ("JobId=1 JobName=bf-x UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901759 Nice=0 Account=(null) "
         "QOS=(null) JobState={} Reason={} Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode={} "
         "RunTime=00:00:00 TimeLimit=01:00:00 Command=/site/a=b c.sh WorkDir=/site Power= \n")


def test_one_listing_tells_of_all_jobs_and_who_is_not_in_it_is_unknown() -> None:
    out = "1|FAILED|NonZeroExitCode\n3|PENDING|JobHeldUser\n2|RUNNING|None\n5|COMPLETING|None\n"
    look = SLURM.looked(Result(("squeue",), 0, out), ["1", "2", "3", "5", "999"])
    assert not look.down and look.jobs == {
        "1": Sight(BlockState.ENDED, "FAILED (NonZeroExitCode)"), "2": Sight(BlockState.RUNNING, ""),
        "3": Sight(BlockState.QUEUED, "PENDING (JobHeldUser)", stuck=True),
        "5": Sight(BlockState.RUNNING, "COMPLETING"),
        "999": Sight(None)}


def test_a_single_unknown_job_is_an_error_that_says_so() -> None:
    assert SLURM.looked(Result(("squeue",), 1, err=GONE), ["999"]) == Look({"999": Sight(None)})


@pytest.mark.parametrize("result", [
    Result(("squeue",), 1, err=DOWN), Result(("squeue",), None, error="squeue did not answer within 60 s"),
    Result(("squeue",), 1, "1|RUNNING|None\n", "slurm_load_jobs error: Socket timed out on send/recv operation"),
])
def test_a_controller_that_does_not_answer_says_nothing_of_any_job(result: Result) -> None:
    for look in (SLURM.looked(result, ["1"]), SLURM.asked(result, ["1"]), SLURM.looked(result, ["1", "2"])):
        assert look.down and look.jobs == {}
    assert "slurm_load_jobs" not in SLURM.looked(result, ["1"]).down


@pytest.mark.parametrize(("state", "reason", "exit_code", "ended"), [
    ("COMPLETED", "None", "0:0", Sight(BlockState.ENDED, "COMPLETED", 0)),
    ("FAILED", "NonZeroExitCode", "7:0", Sight(BlockState.ENDED, "FAILED (NonZeroExitCode)", 7)),
    ("CANCELLED", "None", "0:15", Sight(BlockState.ENDED, "CANCELLED", -15)),
    ("CANCELLED", "None", "0:0", Sight(BlockState.ENDED, "CANCELLED", None)),
    ("TIMEOUT", "TimeLimit", "0:0", Sight(BlockState.ENDED, "TIMEOUT (TimeLimit)", None)),
    ("NODE_FAIL", "None", "0:0", Sight(BlockState.ENDED, "NODE_FAIL", None, True)),
    ("PREEMPTED", "None", "0:0", Sight(BlockState.ENDED, "PREEMPTED", None, True)),
    ("OUT_OF_MEMORY", "OutOfMemory", "0:125", Sight(BlockState.ENDED, "OUT_OF_MEMORY (OutOfMemory)", None)),
])
def test_how_a_job_ended_is_told_by_scontrol(state: str, reason: str, exit_code: str, ended: Sight) -> None:
    out = ENDED.format(state, reason, exit_code)
    assert SLURM.asked(Result(("scontrol",), 0, out), ["1"]) == Look({"1": ended})


def test_a_record_of_another_job_or_none_says_nothing() -> None:
    for out in (ENDED.format("FAILED", "None", "1:0"), "", "JobId=2"):
        assert SLURM.asked(Result(("scontrol",), 0, out), ["2"]) == Look()


def test_jobs_that_were_put_back_wait_and_suspended_ones_run() -> None:
    assert sight("REQUEUE_HOLD", "JobHeldAdmin").state == BlockState.QUEUED
    assert sight("SUSPENDED", "None") == Sight(BlockState.RUNNING, "SUSPENDED")


POLICY = ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time "
          "limits)")


@pytest.mark.parametrize(("lines", "answer"), [
    (["invalid partition specified: no", "Batch job submission failed: Invalid partition name specified"],
     Answer(refused="invalid partition specified: no Batch job submission failed: Invalid partition name specified")),
    (["Invalid generic resource (gres) specification"],
     Answer(refused="Invalid generic resource (gres) specification")),
    (["AssocMaxSubmitJobLimit", POLICY], Answer(refused=f"AssocMaxSubmitJobLimit {POLICY}", again=True)),
    (["Batch job submission failed: Unable to contact slurm controller (connect failure)"],
     Answer(down="Batch job submission failed: Unable to contact slurm controller (connect failure)")),
    (["Batch job submission failed: Socket timed out on send/recv operation"],
     Answer(unclear="Batch job submission failed: Socket timed out on send/recv operation")),
])
def test_a_submission_that_failed_is_told_in_slurms_words(lines: list[str], answer: Answer) -> None:
    err = "".join(f"sbatch: error: {line}\n" for line in lines)
    assert SLURM.submitted(Result(("sbatch",), 1, err=err)) == answer


@pytest.mark.parametrize("out", ["77\n", "77;cluster\n", "Welcome.\n77\n"])
def test_a_submission_gives_an_id(out: str) -> None:
    assert SLURM.submitted(Result(("sbatch",), 0, out)) == Answer(ids=("77",))


def test_jobs_are_found_by_name() -> None:
    assert SLURM.found(Result(("squeue",), 0, "1\n4\n")) == Answer(ids=("1", "4"))
    assert SLURM.found(Result(("squeue",), 0, "")) == Answer()
    down = SLURM.found(Result(("squeue",), 1, err=DOWN))
    assert down is not None and down.down


def test_a_deletion_of_what_is_gone_is_done() -> None:
    assert SLURM.deleted(Result(("scancel",), 0)) == Answer()
    assert SLURM.deleted(Result(("scancel",), 1, err="scancel: error: Kill job error on job id 9: Invalid job id "
                                                     "specified")) == Answer()
    refused = SLURM.deleted(Result(("scancel",), 1, err="scancel: error: Kill job error on job id 9: Access/permission "
                                                        "denied"))
    assert refused.refused.endswith("Access/permission denied")
    assert SLURM.deleted(Result(("scancel",), 1, err="scancel: error: Kill job error on job id 1: Unable to contact "
                                                     "slurm controller (connect failure)")).down
