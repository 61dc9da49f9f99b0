"""What users rely on, as numbered rows: commands, their streams and files, and where they run."""

from __future__ import annotations

import concurrent.futures
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import open_gate, until

from balsamfut import Executor, ShellResult, app
from balsamfut.errors import (
    BadStdStream,
    InvalidOption,
    MissingInputs,
    MissingOutputs,
    ShellError,
    TaskError,
    TemplateError,
)
from balsamfut.query import open_site


@pytest.fixture(autouse=True, scope="module")
def ex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAMFUT_INTERCHANGE_LINGER", "0.05")
        with Executor(site=tmp_path_factory.mktemp("site"), max_workers=2) as executor:
            yield executor


@app.shell
def bash(command: str) -> str:
    return command


@app.shell
def argv(words: list[Any]) -> list[Any]:
    return words


@app.shell("echo {{ word }}")
def echo(word: Any) -> None: ...


def output(result: ShellResult) -> str:
    return result.stdout.read_text()


# ---- 27, 46, 47: how commands end


def test_a_command_returns_its_code_and_where_its_output_is() -> None:
    result = echo("hello").result(20)
    assert isinstance(result, ShellResult)
    assert (result.returncode, output(result)) == (0, "hello\n")
    assert result.stdout.parent == result.workdir


@pytest.mark.parametrize(("command", "code"), [
    ("exit 15", 15), ("no_such_command_here", 127), ("./plain", 126), ("exit $((1 / 0))", 1), ("kill -9 $$", -9)])
def test_row_46_the_exit_code_is_on_the_exception(tmp_path: Path, command: str, code: int) -> None:
    (tmp_path / "plain").write_text("not to be executed")
    call = bash.options(workdir=tmp_path)(command)
    exc = call.exception(20)
    assert isinstance(exc, ShellError)
    assert exc.returncode == code
    assert exc.host == os.uname().nodename
    assert exc.workdir == str(call.workdir)


def test_row_46_the_exception_has_the_end_of_stderr() -> None:
    exc = bash("echo one >&2; echo the reason >&2; exit 3").exception(20)
    assert isinstance(exc, ShellError)
    assert "the reason" in exc.tail
    assert "the reason" in str(exc)
    assert "3" in str(exc)


@pytest.mark.parametrize(("words", "code"), [(["no_such_command_here"], 127), (["./plain"], 126), (["./absent"], 127)])
def test_row_27_a_command_that_cannot_be_started_is_an_error_and_no_hang(
        tmp_path: Path, words: list[str], code: int) -> None:
    (tmp_path / "plain").write_text("not to be executed")
    exc = argv.options(workdir=tmp_path)(words).exception(20)
    assert isinstance(exc, ShellError)
    assert exc.returncode == code
    assert words[0] in str(exc)


@pytest.mark.parametrize("returned", [None, 5, b"true", {"a": 1}, object], ids=repr)
def test_row_47_a_function_that_returns_no_command_is_a_specific_error(returned: object) -> None:
    @app.shell
    def no_command() -> Any:
        return returned

    exc = no_command().exception(20)
    assert isinstance(exc, TypeError | TemplateError | TaskError)
    assert "no_command" in str(exc)


# ---- 48, 49: streams


def test_row_48_a_stream_by_name_is_appended_to_and_with_w_truncated(tmp_path: Path) -> None:
    for mode, expected in (("", "a\nb\n"), ("a", "a\nb\n"), ("w", "b\n")):
        path = tmp_path / f"out{mode}"
        for word in "ab":
            result = echo.options(stdout=(path, mode) if mode else path)(word).result(20)
            assert result.stdout == path
        assert path.read_text() == expected


def test_row_48_stderr_goes_with_the_output_unless_it_is_asked_for_apart(tmp_path: Path) -> None:
    both = bash("echo out; echo err >&2").result(20)
    assert output(both) == "out\nerr\n"
    apart = bash.options(stderr=(tmp_path / "err", "w"))("echo out; echo err >&2").result(20)
    assert (output(apart), (tmp_path / "err").read_text()) == ("out\n", "err\n")
    assert apart.stderr == tmp_path / "err"


def test_row_48_a_stream_that_cannot_be_opened_is_a_bad_std_stream(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    exc = echo.options(stdout=tmp_path / "file" / "out")("x").exception(20)
    assert isinstance(exc, BadStdStream)
    assert str(tmp_path / "file" / "out") in str(exc)


@pytest.mark.parametrize("wrong", [5, ("out", "x"), ("out", "w", "a"), (5, "w"), None, ["out"]], ids=repr)
def test_row_48_what_is_no_stream_is_refused_at_once(wrong: object) -> None:
    with pytest.raises(InvalidOption, match="stdout takes"):
        echo.options(stdout=wrong)


def test_row_49_every_task_has_a_log_of_its_own_and_it_does_not_matter_to_the_key(tmp_path: Path) -> None:
    with Executor("keys", site=tmp_path / "site", max_workers=2) as named:
        calls = [named.submit(echo, "same") for _ in range(3)]
        other = named.submit(echo.options(stdout=tmp_path / "elsewhere"), "same")
        concurrent.futures.wait([*calls, other], 20)
        logs = [call.stdout for call in calls]
        assert len(set(logs)) == 3
        assert all(log is not None and log.read_text() == "same\n" for log in logs)
        assert {call.key for call in calls} == {other.key}
        assert [call.occurrence for call in (*calls, other)] == [0, 1, 2, 3]


@app
def prints(word: str) -> None:
    print(word)
    os.system(f"echo {word} of a child")   # not through Python's sys.stdout


def test_row_49_what_python_tasks_print_is_captured_by_task() -> None:
    calls = [prints(word) for word in ("one", "two", "three")]
    concurrent.futures.wait(calls, 20)
    for call, word in zip(calls, ("one", "two", "three"), strict=True):
        assert call.stdout is not None
        assert sorted(call.stdout.read_text().splitlines()) == [word, f"{word} of a child"]


# ---- 50: scripts


def test_row_50_a_script_of_several_lines_runs_as_one(tmp_path: Path) -> None:
    @app.shell("""
        set -e
        module() { export LOADED="$1 $2"; }
        module load thing
        cd {{ where }}
        for i in 1 2; do echo "$i: $LOADED in $(basename "$PWD")"; done
        """)
    def script(where: Path) -> None: ...

    said = output(script(tmp_path).result(20)).splitlines()
    assert said == [f"{i}: load thing in {tmp_path.name}" for i in (1, 2)]


def test_row_50_the_preamble_runs_before_and_in_the_same_shell() -> None:
    assert output(bash.options(shell_preamble=["X=1", "f() { echo $X $1; }"])("f 2").result(20)) == "1 2\n"


@pytest.mark.parametrize("word", ["$(echo gotcha)", "a b", "'; echo gotcha; '", "*", "", "`id`", "a\nb", "-n"])
def test_row_50_values_in_a_template_are_words_whatever_they_hold(word: str) -> None:
    @app.shell("printf %s {{ word }}")
    def quoted(word: str) -> None: ...

    assert output(quoted(word).result(20)) == word


def test_row_50_futures_in_a_template_are_waited_for() -> None:
    assert output(echo(argv(["printf", "5"])).result(20)).startswith("ShellResult(")


# ---- 51, 52: files


@app.shell("{{ command | raw }}", outputs=["made.txt", "also/this.txt"])
def makes(command: str) -> None: ...


def test_row_51_declared_outputs_that_were_not_made_fail_the_task_by_name() -> None:
    exc = makes("echo 1 > made.txt").exception(20)
    assert isinstance(exc, MissingOutputs)
    assert [Path(path).name for path in exc.paths] == ["this.txt"]
    assert "also/this.txt" in str(exc)


def test_row_51_declared_outputs_that_were_made_can_be_read() -> None:
    call = makes("echo 1 > made.txt; mkdir -p also; echo 2 > also/this.txt")
    call.result(20)
    assert [path.read_text() for path in call.outputs] == ["1\n", "2\n"]


def test_row_51_declared_inputs_that_are_not_there_fail_the_task_by_name(tmp_path: Path) -> None:
    exc = echo.options(inputs=[tmp_path / "not there"])("x").exception(20)
    assert isinstance(exc, MissingInputs)
    assert [Path(path).name for path in exc.paths] == ["not there"]


def test_row_51_declared_inputs_are_put_into_the_workdir(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("content\n")
    result = bash.options(inputs={"here.txt": tmp_path / "data"})("cat here.txt").result(20)
    assert output(result) == "content\n"


def test_row_51_files_to_clean_up_go_when_the_task_is_done() -> None:
    result = bash.options(cleanup_files=["*.tmp"])("touch a.tmp b.tmp keep").result(20)
    assert sorted(path.name for path in result.workdir.iterdir()) == ["job.out", "keep"]


@app.shell("cat {{ before }} > next.txt; echo {{ n }} >> next.txt", outputs=["next.txt"])
def link(before: Any, n: int) -> None: ...


@link.postprocess
def made(task: Any) -> str:
    return str(task.workdir / "next.txt")


def test_row_52_files_passed_on_five_deep_keep_their_order_and_names() -> None:
    call = link("/dev/null", 0)
    for n in range(1, 5):
        call = link(call, n)
    path = Path(call.result(30))
    assert path == call.outputs[0]
    assert path.name == "next.txt"
    assert path.read_text().split() == ["0", "1", "2", "3", "4"]


# ---- 36, 37: where they run


@app.shell("echo $ZE_AFFINITY_MASK $OMP_NUM_THREADS; touch {{ gate }}.$ZE_AFFINITY_MASK;"
           " until [ -e {{ gate }} ]; do sleep 0.05; done", gpus_per_rank=1, threads_per_rank=8)
def on_a_tile(gate: Path) -> None: ...


def test_row_36_twelve_at_once_on_a_node_of_twelve_tiles_each_with_its_own_tile_and_cores(tmp_path: Path) -> None:
    with Executor(site=tmp_path / "site", platform="aurora", nodes=1) as aurora:
        calls = [aurora.submit(on_a_tile, tmp_path / "gate") for _ in range(13)]
        until(lambda: len(list(tmp_path.glob("gate.*"))) == 12, "twelve run")
        assert sum(call.done() for call in calls) == 0
        open_gate(tmp_path / "gate")
        masks, threads = zip(*(output(call.result(30)).split() for call in calls), strict=True)
        assert len(set(masks)) == 12   # the thirteenth came later, on a tile that was free again
        assert set(threads) == {"8"}
        with open_site(aurora.site) as site:
            places = [site.task(call.task_id).place for call in calls[:12]]
    cores = [core for place in places for core in numbers(place.partition(":")[2].partition("/")[0])]
    assert len(cores) == len(set(cores)) == 12 * 8


def numbers(text: str) -> list[int]:
    """ "1-3,7" -> 1, 2, 3, 7 """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def test_row_37_commands_side_by_side_are_given_cores_of_their_own(tmp_path: Path) -> None:
    command = "touch {0}.$BALSAMFUT_TASK_ID; until [ -e {0} ]; do sleep 0.02; done; echo $BALSAMFUT_CORES".format(
        tmp_path / "gate")
    with Executor(site=tmp_path / "site", max_workers=4) as four:
        calls = [four.submit(bash.options(threads_per_rank=2), command) for _ in range(3)]
        until(lambda: len(list(tmp_path.glob("gate.*"))) == 2, "two of two cores run at once")
        assert not any(call.done() for call in calls)
        open_gate(tmp_path / "gate")
        shares = [numbers(output(call.result(20))) for call in calls]
    assert sorted(shares[0] + shares[1]) == [0, 1, 2, 3]
    assert shares[2] in shares[:2]


def test_row_36_the_environment_of_an_app_reaches_its_processes() -> None:
    result = bash.options(environment={"MY_SETTING": "a b"})('echo "$MY_SETTING" $BALSAMFUT_TASK_ID').result(20)
    assert output(result).startswith("a b ")
    assert output(result).split()[2].isdigit()


# ---- and what only the owner may read


def test_row_35_the_sites_files_are_the_owners_alone(ex: Executor) -> None:
    for path in (ex.site, ex.site / "balsamfut.db", ex.site / "interchange.json", ex.site / "log"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
