"""What PBS prints is read as it is printed: every command of the transcripts, and damage that was seen or can be."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from balsamfut.provider import pbs_text
from balsamfut.provider.base import BlockState
from balsamfut.provider.commands import Result
from balsamfut.provider.dialect import Answer, Sight
from balsamfut.provider.pbs import Pbs, PbsRules

HERE = Path(__file__).parents[1] / "transcripts" / "openpbs"
SERVER = "aurora-pbs-0001.hostmgmt.cm.aurora.lab"
PBS = Pbs(PbsRules())


class Call(NamedTuple):
    """A command of a transcript and what came of it."""

    argv: tuple[str, ...]
    result: Result
    where: str

    @property
    def ids(self) -> list[str]:
        """The jobs that it is about, as their full ids."""
        words = [word for word in self.argv[1:] if re.fullmatch(r"\d+(\[\d*\])?(\.[\w.-]+)?", word)]
        return [word if "." in word else f"{word}.{SERVER}" for word in words]


def calls() -> list[Call]:
    found = []
    head = re.compile(r"^\[[\d:]+\] \w+@[\w-]+\$ (.*?)\n(?:--- stdin:\n.*?)?--- stdout:\n(.*?)--- stderr:\n(.*?)"
                      r"--- exit code: (\d+)", re.MULTILINE | re.DOTALL)
    for path in sorted(HERE.glob("[0-9]*.txt")):
        for line, out, err, code in head.findall(path.read_text()):
            if re.search(r"[|;<&]|\$\(", line):   # the shell has had its hands on the output
                continue
            argv = [word for word in shlex.split(line) if not word.startswith("LD_LIBRARY_PATH")]
            argv[0] = argv[0].rpartition("/")[2]
            out = out.replace("<no newline at end>", "")
            found.append(Call(tuple(argv), Result(tuple(argv), int(code), out, err), f"{path.name}: {line}"))
    return found


CALLS = calls()


def of(command: str, *with_words: str, without: tuple[str, ...] = ()) -> list[Call]:
    return [call for call in CALLS if call.argv[0] == command and set(with_words) <= set(call.argv)
            and not set(without) & set(call.argv)]


def names(some: list[Call]) -> list[str]:
    return [call.where for call in some]


FULL = [call for call in of("qstat", "-f", "json") + of("qstat", "-f", without=("-F", "-t")) if call.ids]
PLAIN = [call for call in of("qstat", without=("-f", "-t", "-x")) if call.ids]


def test_the_transcripts_hold_what_these_tests_are_about() -> None:
    assert len(FULL) >= 15 and len(PLAIN) >= 6 and len(of("qsub")) >= 60 and len(of("qdel")) >= 8


@pytest.mark.parametrize("call", FULL, ids=names(FULL))
def test_the_full_listing_says_something_of_each_job(call: Call) -> None:
    said = pbs_text.details(call.result.out, call.result.err, call.ids)
    for id in call.ids:
        number = id.split(".")[0]
        if f"Unknown Job Id {number}." in call.result.err or "maintain job history" in call.result.err:
            assert said[id].state is None and number in (said[id].text or "")
        elif f'"{id}"' in call.result.out or f"Job Id: {id}" in call.result.out:
            assert said[id].state is not None
        else:   # said in another way: another server's, or finished and asked without -x; or left out
            assert id not in said


def test_a_job_that_is_left_out_behind_an_unknown_one_is_not_taken_for_unknown() -> None:
    call = next(call for call in FULL if len(call.ids) == 3 and "-x" in call.argv)
    assert set(pbs_text.details(call.result.out, call.result.err, call.ids)) == {f"44.{SERVER}", f"99999.{SERVER}"}


@pytest.mark.parametrize("call", PLAIN, ids=names(PLAIN))
def test_the_plain_listing_says_something_of_each_job(call: Call) -> None:
    said = pbs_text.table(call.result.out, call.result.err, call.ids)
    assert set(said) == set(call.ids)
    for id, sight in said.items():
        unknown = f"Unknown Job Id {id}" in call.result.err
        assert (sight.state is None) == unknown


def test_json_and_text_say_the_same_of_a_job() -> None:
    """The running job 44, in JSON, as folded text and as wide text."""
    listings = [call for call in FULL if call.ids == [f"44.{SERVER}"] and "-x" not in call.argv and call.result.out
                and call.result.code == 0]
    assert {call.argv[2] for call in listings} == {"-F", f"44.{SERVER}", "-w"}
    assert {pbs_text.details(call.result.out, "", call.ids)[f"44.{SERVER}"] for call in listings} == {
        Sight(BlockState.RUNNING, "")}


def test_a_job_that_can_never_run_says_so() -> None:
    call = next(call for call in FULL if call.ids == [f"43.{SERVER}"])
    assert pbs_text.details(call.result.out, "", call.ids)[f"43.{SERVER}"] == Sight(
        BlockState.QUEUED, "Can Never Run: Insufficient amount of resource: ncpus (R: 64 A: 32 T: 32)", stuck=True)


def test_a_deleted_job_that_never_ran_has_no_exit_code_in_either_dialect_of_json() -> None:
    for number in ("4008", "5261"):
        call = next(call for call in FULL if call.ids == [f"{number}.{SERVER}"])
        ended = pbs_text.details(call.result.out, "", call.ids)[f"{number}.{SERVER}"]
        assert (ended.state, ended.exit_code, ended.again) == (BlockState.ENDED, None, False)
        assert "never ran" in (ended.text or "")


SUMMARIES = [json.loads(line[2:]) for path in sorted(HERE.glob("[0-9]*.txt")) for line in path.read_text().splitlines()
             if line.startswith('# {"job_state"')]


def test_every_end_that_was_seen_is_read() -> None:
    ends = {(record["Exit_status"], pbs_text.sight({k: str(v) for k, v in record.items()}).exit_code)
            for record in SUMMARIES if record["job_state"] == "F" and "Exit_status" in record}
    assert {(-29, None), (271, -15), (265, -9), (266, -10), (0, 0), (1, 1)} <= ends
    for status, code in ends:
        assert code == (None if status < 0 else 256 - status if status >= 256 else status)


def test_every_state_that_was_seen_is_read() -> None:
    states = {(record["job_state"], pbs_text.sight({k: str(v) for k, v in record.items()}).state)
              for record in SUMMARIES}
    assert states == {("H", BlockState.QUEUED), ("R", BlockState.RUNNING), ("F", BlockState.ENDED)}
    assert {letter: pbs_text.sight({"job_state": letter}).state for letter in "QWTEBSUXM"} == {
        **dict.fromkeys("QWT", BlockState.QUEUED), **dict.fromkeys("EBSU", BlockState.RUNNING), "X": BlockState.ENDED,
        "M": None}


def test_an_end_of_which_pbs_has_forgotten_the_words_is_told_in_ours() -> None:
    """Comments are lost for good when the server is killed, or ends in order, while a job runs."""
    assert pbs_text.sight({"job_state": "F", "Exit_status": "0"}).text == (
        "it ended with code 0, PBS says no more of it")
    assert pbs_text.sight({"job_state": "F", "Exit_status": "271"}).text == "signal 15 ended it, PBS says no more of it"


def test_what_is_said_of_each_of_many_jobs_is_told_once() -> None:
    said = "Connection refused\nqstat: cannot connect to server pbs1 (errno=15010)\n" * 3
    assert pbs_text.one_line(said, "qstat") == "Connection refused cannot connect to server pbs1 (errno=15010)"


def test_a_job_whose_output_pbs_still_brings_away_is_told_from_one_that_runs() -> None:
    assert "exiting" in (pbs_text.sight({"job_state": "E"}).text or "")
    assert pbs_text.sight({"job_state": "R"}).text == ""


def test_a_held_job_says_who_holds_it() -> None:
    held = [pbs_text.sight({k: str(v) for k, v in record.items()}).text for record in SUMMARIES
            if record["job_state"] == "H"]
    assert {"held (u)", "held (s)", "held (u): Job held by alice on Mon Nov 23 09:47:25 2026"} <= set(held)


# ---------------------------------------------------------------- commands

QSUBS = [call for call in of("qsub") if "--version" not in call.argv]


@pytest.mark.parametrize("call", QSUBS, ids=names(QSUBS))
def test_a_submission_gives_an_id_or_is_refused_in_pbs_s_words(call: Call) -> None:
    answer = PBS.submitted(call.result)
    if call.result.code == 0:
        assert answer == Answer(ids=(call.result.out.strip(),))
    elif "cannot connect to server" in call.result.err:
        assert answer.down and not answer.refused
    else:
        assert answer.refused and answer.refused in " ".join(
            call.result.err.replace("qsub: ", "").split()) or answer.refused == call.result.err.strip()
        assert "usage" not in answer.refused or call.result.err.startswith("usage")


def test_limits_on_the_number_of_jobs_may_pass_and_limits_on_their_size_may_not() -> None:
    by_text = {PBS.submitted(call.result).refused: PBS.submitted(call.result).again for call in QSUBS}
    assert by_text["would exceed queue generic's per-user limit"]
    assert by_text["would exceed queue debug-scaling's per-project limit"]
    assert by_text["Queue is not enabled"]
    for text in ("Job violates queue and/or server resource limits", "Unknown queue", "Access to queue is denied",
                 "filesystems resource must be specified example: -l filesystems=home:flare"):
        assert not by_text[text]


@pytest.mark.parametrize("result", [
    Result(("qsub",), None, error="qsub did not answer within 60 s"),
    Result(("qsub",), 134, err="double free or corruption (out)\nAborted"),
    Result(("qsub",), -9),
    Result(("qsub",), 0, out="Warning: the file system is slow\n"),
    Result(("qsub",), 183, err="qsub: Protocol (ASN.1) error"),
])
def test_a_submission_that_may_have_succeeded_is_neither_accepted_nor_refused(result: Result) -> None:
    answer = PBS.submitted(result)
    assert answer.unclear and not (answer.ids or answer.refused or answer.down)


@pytest.mark.parametrize("result", [
    Result(("qsub",), 162, err=f"Connection refused\nqsub: cannot connect to server {SERVER} (errno=15010)"),
    Result(("qsub",), 162, err=f"No route to host\nqsub: cannot connect to server {SERVER} (errno=15010)"),
    Result(("qsub",), 212, err="qsub: Server shutting down"),
])
def test_a_server_that_cannot_be_reached_is_no_refusal(result: Result) -> None:
    answer = PBS.submitted(result)
    assert answer.down and not (answer.ids or answer.refused or answer.unclear)


def test_an_id_is_found_after_what_a_wrapper_of_the_site_says() -> None:
    out = f"Job will be charged to project X, 120 node-hours left\n5279.{SERVER}\n"
    assert PBS.submitted(Result(("qsub",), 0, out)).ids == (f"5279.{SERVER}",)


def test_qselect_gives_the_ids_of_a_name_or_none() -> None:
    some = PBS.found(of("qselect", "-x", "-N", "selme")[0].result)
    assert some is not None and len(some.ids) >= 1 and all(id.endswith(SERVER) for id in some.ids)
    assert PBS.found(of("qselect", "-N", "nosuch")[0].result) == Answer()
    assert PBS.found(Result(("qselect",), 36, err="qselect: PBS is not configured to maintain job history")) is None


QDELS = [call for call in of("qdel") if len(call.ids) == 1]


@pytest.mark.parametrize("call", QDELS, ids=names(QDELS))
def test_a_deletion_is_done_unless_it_is_somebody_elses_job(call: Call) -> None:
    answer = PBS.deleted(call.result)
    if "Unauthorized" in call.result.err:
        assert answer.refused.startswith("it cannot be ended: Unauthorized Request")
    else:
        assert answer == Answer()


def test_a_deletion_that_cannot_reach_the_node_wants_force() -> None:
    assert PBS.deleted(Result(("qdel",), 222, err="qdel: Server could not connect to MOM 1.x")).force
    assert PBS.delete("1.x", True) == ("qdel", "-W", "force", "1.x")


def test_codes_are_those_of_pbs() -> None:
    lines = (HERE / "errno-and-exit-codes.txt").read_text().splitlines()
    table = {name: int(code) for name, _, code in (line.split() for line in lines if line.startswith("PBSE_"))}
    source = Path(pbs_text.__file__).read_text()
    claims = re.findall(r"(\d+)(?:, (\d+))?(?:,|\s)\s*# (PBSE_\w+)(?:, (PBSE_\w+))?", source)
    assert len(claims) >= 12
    for code, other, name, second in claims:
        assert table[name] == int(code)
        assert not other or table[second] == int(other)


# ---------------------------------------------------------------- damage

WHOLE = next(call for call in FULL if call.ids == [f"44.{SERVER}"] and "-x" in call.argv).result.out


@pytest.mark.parametrize(("old", "new"), [
    ('"VAR":\t1', '"VAR":\t00'), ('"VAR":\t1', '"VAR":\t.5'), ('"VAR":\t1', '"VAR":\t+1'), ('"VAR":\t1', '"VAR":\tnan'),
    ('"proj"', '""q\\""'), ('"VAR":\t1', '"VAR":\t'),
])
def test_json_that_is_none_says_nothing(old: str, new: str) -> None:
    assert old in WHOLE
    assert pbs_text.details(WHOLE.replace(old, new, 1), "", [f"44.{SERVER}"]) == {}


@pytest.mark.parametrize(("old", "new"), [
    ('"running"', "123"), ('"running"', "1e999"), ('"proj"', '"^\x03^\udce9"'), ('"proj"', "null"),
    ('"VAR":\t1', '"VAR":\t1, "VAR":\t2'), ('"comment":', '"comment":\t123, "was":'), ('"2:ncpus=1"', "2"),
    ('"substate":\t92', '"substate":\t"92"'), ('"Exit_status":\t0', '"Exit_status":\t"0"'),
    ('"VAR":\t1', '"VAR":\tNaN'),
])
def test_odd_values_do_no_harm(old: str, new: str) -> None:
    assert old in WHOLE
    ended = pbs_text.details(WHOLE.replace(old, new, 1), "", [f"44.{SERVER}"])[f"44.{SERVER}"]
    assert (ended.state, ended.exit_code) == (BlockState.ENDED, 0)


@pytest.mark.parametrize("size", range(0, len(WHOLE) - 5, 97))
def test_json_that_was_cut_off_says_nothing(size: int) -> None:
    assert pbs_text.details(WHOLE[:size], "", [f"44.{SERVER}"]) == {}


@pytest.mark.parametrize("out", ["", "[]", "null", "3", '{"Jobs": []}', '{"Jobs": {"44.x": 3}}', "<html>502</html>"])
def test_what_is_no_listing_says_nothing(out: str) -> None:
    assert pbs_text.details(out, "", [f"44.{SERVER}"]) == {}
    assert pbs_text.table(out, "", [f"44.{SERVER}"]) == {}


def test_another_users_job_is_not_taken_for_ours() -> None:
    ids = [f"4.{SERVER}", f"144.{SERVER}"]
    assert pbs_text.details(WHOLE, "", ids) == {}
    row = "44.aurora-pbs-00* running          alice             00:00:00 F debug-scaling   \n"
    assert pbs_text.table(row, "", ids) == {}
    assert pbs_text.table(row, "", [*ids, f"44.{SERVER}"]) == {f"44.{SERVER}": Sight(BlockState.ENDED)}


def test_a_server_that_is_down_says_nothing_of_any_job_and_an_unknown_job_is_no_trouble() -> None:
    ids = [f"44.{SERVER}", f"45.{SERVER}"]
    down = Result(("qstat",), 255, "", f"Connection refused\nqstat: cannot connect to server {SERVER} (errno=15010)\n")
    assert PBS.looked(down, ids).jobs == {} and "cannot connect" in PBS.looked(down, ids).down
    assert "did not answer" in PBS.asked(Result(("qstat",), None, error="qstat did not answer within 60 s"), ids).down
    unknown = Result(("qstat",), 153, "", f"qstat: Unknown Job Id 44.{SERVER}\n")
    assert PBS.looked(unknown, ids).jobs == {f"44.{SERVER}": Sight(None)} and not PBS.looked(unknown, ids).down


def test_every_negative_exit_status_has_a_name_and_walltime_is_not_worth_another_try() -> None:
    assert set(range(-7, 0)) | set(range(-32, -9)) == set(pbs_text.ENDINGS)
    assert not pbs_text.ENDINGS[-29].again and pbs_text.ENDINGS[-20].again and pbs_text.ENDINGS[-3].again
    odd = pbs_text.sight({"job_state": "F", "Exit_status": "-77", "comment": "odd"})
    assert odd.exit_code is None and "-77" in (odd.text or "")
