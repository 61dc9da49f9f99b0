"""Job scripts, word for word, for each machine; `python tests/pure/test_pbs_scripts.py` writes them anew."""

from __future__ import annotations

import shlex
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from balsamfut import platforms
from balsamfut.provider.base import BlockSpec
from balsamfut.provider.batch import BatchProvider
from balsamfut.provider.pbs import PbsProvider, PbsRules
from balsamfut.provider.pbs import script as pbs_script
from balsamfut.provider.script import bad_directive, bad_token, clock, refusal
from balsamfut.provider.slurm import SlurmRules
from balsamfut.provider.slurm import script as slurm_script

GOLDEN = Path(__file__).parents[1] / "golden"
QUEUES = {"aurora": "debug-scaling", "polaris": "preemptable", "crux": "workq-route", "sophia": "by-node",
          "perlmutter-gpu": "regular", "frontier": "batch"}


def spec(platform: str, **more: object) -> BlockSpec:
    return BlockSpec(**{  # type: ignore[arg-type]
        "token": "bf-scan-12", "cwd": "/project/me/scan", "log": "/project/me/scan/log/block-12.log", "nodes": 2,
        "argv": ("/project/me/venv/bin/python", "-P", "-m", "balsamfut.pilot.agent", "--site", "/project/me/scan",
                 "--pilot", "12", "--token", "bf-scan-12", "--platform", platform, "--nodes", "2"),
        "walltime": 5400.0, "queue": QUEUES[platform], "project": "MyProject",
        "environ": (("OMP_NUM_THREADS", "1"), ("NOTE", "it's me")),
        "preamble": 'module load frameworks\nsource "$venv/bin/activate"\n', "params": (("venv", "/project/me/venv"),),
        **more})


def written(platform: str) -> str:
    scheduler = platforms.load(platform).scheduler
    if scheduler["kind"] == "slurm":
        if platform.startswith("perlmutter"):   # its queues are qualities of service
            scheduler = {**scheduler, "queue_option": "qos"}
        return slurm_script(spec(platform), SlurmRules.of(scheduler))
    more = {"directives": ("-l singularity_fakeroot=true",)} if platform == "polaris" else {}
    return pbs_script(spec(platform, **more), PbsRules.of(scheduler))


@pytest.mark.parametrize("platform", QUEUES)
def test_the_job_script_of_a_machine_is_as_it_was_read_by_a_person(platform: str) -> None:
    assert written(platform) == (GOLDEN / f"{platform}.sh").read_text()


def test_nothing_of_the_submitters_environment_goes_along() -> None:
    for platform in QUEUES:
        assert not [line for line in written(platform).splitlines() if line.startswith(("#PBS -V", "#PBS -v"))]
    assert "#SBATCH --export=NONE" in written("frontier").splitlines()


def test_several_nodes_are_several_hosts_wherever_a_machine_says_nothing_else() -> None:
    several = BlockSpec("bf-1", ("true",), "/site/log", "/site", nodes=3)
    assert "#PBS -l select=3\n#PBS -l place=scatter\n" in pbs_script(several, PbsRules())
    assert "#PBS -l place=pack\n" in pbs_script(several, PbsRules(place="pack"))


def test_what_was_not_asked_for_is_not_in_the_script() -> None:
    bare = BlockSpec("bf-1", ("true",), "/site/log", "/site")
    assert pbs_script(bare, PbsRules()) == (
        "#!/bin/bash -l\n#PBS -N bf-1\n#PBS -l select=1\n#PBS -j oe\n#PBS -o /site/log\n#PBS -k doe\n#PBS -r n\n"
        "#PBS -m n\n\ncd /site\n\nexec true\n")


def test_a_dry_run_gives_the_script_or_says_why_there_is_none() -> None:
    provider: BatchProvider = PbsProvider(PbsRules(place="scatter"))
    assert provider.script(spec("aurora")) == pbs_script(spec("aurora"), PbsRules(place="scatter"))
    with pytest.raises(ValueError, match="queue = 'a b' cannot be given to the batch system"):
        provider.script(spec("aurora", queue="a b"))
    provider.close()


def test_a_directive_may_be_given_as_it_stands_in_a_script() -> None:
    bare = BlockSpec("bf-1", ("true",), "/site/log", "/site", directives=("#PBS -p 10", "-W umask=022"))
    assert "#PBS -p 10\n#PBS -W umask=022\n\n" in pbs_script(bare, PbsRules())


@pytest.mark.parametrize(("rules", "scheduler", "words"), [
    (PbsRules, {"select": "select=2"}, "must begin with select= and contain {nodes}"),
    (PbsRules, {"place": 3}, "Expected `str`"),
    (SlurmRules, {"queue_option": "queue"}, "Invalid enum value 'queue'"),
])
def test_a_machine_that_is_described_wrongly_is_refused(rules: type[PbsRules], scheduler: dict[str, object],
                                                       words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        rules.of(scheduler)


@pytest.mark.parametrize(("seconds", "text"), [
    (90 * 60, "1:30:00"), (59.2, "0:01:00"), (3600, "1:00:00"), (0.5, "0:00:01"), (7 * 86400, "168:00:00")])
def test_a_walltime_is_written_in_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(("more", "words"), [
    ({"environ": (("A-B", "1"),)}, "'A-B' cannot be the name of a variable"),
    ({"params": (("1st", "1"),)}, "'1st' cannot be the name of a variable"),
    ({"project": "a\n#PBS -q other"}, "project = "),
    ({"project": "-P"}, "it begins with '-'"),
    ({"log": "/a b/log/pilot-1.log"}, "takes no file's name with ' '"),
    ({"directives": ("-l a=1\nrm -rf /",)}, "more than one line"),
    ({"log": "log/x"}, "must be an absolute path"),
    ({"nodes": 0}, "1 node or more"),
])
def test_what_a_script_cannot_say_is_refused_in_one_sentence(more: dict[str, object], words: str) -> None:
    why = refusal(spec("aurora", **more)) or bad_directive(spec("aurora", **more))
    assert why is not None and words in why


@pytest.mark.parametrize("token", ["", "9lives", "a b", "a/b", "a[1]", "x" * 201, "é"])
def test_a_token_that_batch_systems_would_not_take_is_refused(token: str) -> None:
    assert bad_token(token) is not None
    assert bad_token("bf-site.12_a") is None


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=80), min_size=1,
                max_size=12))
def test_any_command_arrives_word_by_word(words: list[str]) -> None:
    assume(not any("\\\n" in word for word in words))     # which this test could not tell from a line that goes on
    text = pbs_script(BlockSpec("bf-1", ("run", *words), "/l", "/"), PbsRules())
    assert shlex.split(text.partition("\nexec ")[2].replace("\\\n", "")) == ["run", *words]


if __name__ == "__main__":
    for each in QUEUES:
        (GOLDEN / f"{each}.sh").write_text(written(each))
