"""The command line without a site: its commands, its words, its refusals, and what is resumed together."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

from balsamfut import __version__, cli, sites
from balsamfut.cli import common, output, progress, resuming, task_result
from balsamfut.errors import SiteError, UsageError
from balsamfut.executor.local import Wanted
from balsamfut.query import CampaignInfo, SessionInfo

Ran = tuple[int, str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], site_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in an empty directory: exit code, stdout, stderr."""
    monkeypatch.delenv("BALSAMFUT_SITE", raising=False)

    def call(*words: str) -> Ran:
        code = cli.main(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def commands() -> list[tuple[list[str], str]]:
    found: list[tuple[list[str], str]] = []
    for name, entry in cli.COMMANDS.items():
        below = {} if isinstance(entry, str) else entry[1]
        found += [([name, sub], text) for sub, text in below.items()] or [([name], str(entry))]
    return found


# ---- which commands there are


@pytest.mark.parametrize("words, text", commands(), ids=lambda value: " ".join(value) * isinstance(value, list))
def test_each_command_says_of_itself_what_the_overview_says_of_it(words: list[str], text: str) -> None:
    command = import_module(f"balsamfut.cli.{'_'.join(words)}").command
    assert isinstance(command, click.Command)
    assert (command.help or "").split("\n\n")[0].replace("\n", " ") == text
    assert command.name == words[-1]


def test_the_overview_names_every_command_and_the_exit_codes(run: Any) -> None:
    code, out, _ = run("--help")
    assert code == 0 and "Exit codes" in out and all(f"  {name} " in out for name in cli.COMMANDS)
    assert all(f"  {name} " in run("task", "-h")[1] for name in ("ls", "show", "logs", "result", "kill", "cancel"))


def test_the_version_is_that_of_the_package(run: Any) -> None:
    assert run("--version") == (0, f"balsamfut {__version__}\n", "")


@pytest.mark.parametrize("words, hint", [
    (["tsk"], "There is no command 'tsk'; did you mean task?"),
    (["task", "lst"], "There is no command 'lst'; did you mean ls"),
    (["show"], "There is no command 'show'; did you mean task show or platform show?"),
    (["xyzzy"], "There is no command 'xyzzy'; there are resume, status, site, queue, task"),
    (["task", "ls", "--stat", "x"], "--state"),
    (["resume", "--retry-fialed"], "--retry-failed"),
    (["submit"], "There is no command 'submit'; did you mean queue submit?"),
    (["rm"], "There is no command 'rm'; did you mean site rm or queue rm?"),
    (["task", "show", "seven"], "'seven' is not a valid whole number"),
    (["task", "show", str(1 << 70)], "is not in the range"),
    (["site", "start", "here", "--site", "there"], "SITE is given twice"),
    (["site", "stop", "here", "--site", "there"], "SITE is given twice"),
    (["site", "status", "here", "--site", "there"], "SITE is given twice"),
    (["task", "show", "0"], "0 is not in the range"),
    (["task", "kill"], "Missing argument 'ID...'"),
    (["task", "ls", "--tag", "novalue"], "--tag takes NAME=VALUE, not 'novalue'"),
    (["task", "ls", "--by-state", "--limit", "3"], "--limit and --by-state cannot be used together"),
    (["resume", "here", "--site", "there"], "SITE is given twice"),
])
def test_what_is_mistyped_is_refused_with_what_would_be_right(run: Any, words: list[str], hint: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert hint in err and "Traceback" not in err


@pytest.mark.parametrize("words", [["status"], ["resume"], ["task", "ls"], ["task", "kill", "1"], ["campaign", "ls"]])
def test_where_no_site_is_the_sentence_says_where_it_was_looked_for(run: Any, site_dir: Path, words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"balsamfut: there is no site here: {site_dir}/.balsamfut is none") and err.count("\n") == 1
    assert list(site_dir.iterdir()) == []
    assert "there is no site of the name 'x'" in run(*words, "--site", "x")[2]
    (site_dir / "x").mkdir()
    assert f"neither {site_dir}/x nor {site_dir}/x/.balsamfut is one, and no site has the name x" in run(
        *words, "--site", "x")[2]


def test_resume_says_of_a_site_that_is_kept_that_nobody_need_wait(run: Any, site_dir: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(site_dir / "config"))
    sites.init(site_dir / "place", "kept", "workstation")
    code, out, err = run("resume", "-s", "kept", "--no-wait")
    assert (code, out) == (2, "") and "the site kept goes on with all that is not over while it runs" in err


@pytest.mark.parametrize("width", [30, 40, 60, 100])
def test_a_table_on_a_narrow_terminal_leaves_columns_out_rather_than_show_none(width: int) -> None:
    widths = {0: 3, 1: 9, 2: 12, 3: 80, 4: 30, 5: 20, 6: 19, 7: 8, 8: 10, 9: 90}
    output._fit(widths, width)
    assert list(widths)[:2] == [0, 1] and 9 in widths, "what it is, how it stands, and why"
    assert sum(widths.values()) + 2 * len(widths) <= width or len(widths) == 3
    assert widths[0] == 3 and all(each >= min(6, each) for each in widths.values()) and widths[9] >= 20
    assert width < 100 or len(widths) == 10


def test_colours_are_left_out_for_those_who_want_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.coloured("ok", "green") == "\x1b[32mok\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.coloured("ok", "green") == "ok"


def test_the_settings_are_told_with_their_sources_also_without_a_site(run: Any,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAMFUT_PILOT_NODES", "3")
    told = {each["key"]: each for each in json.loads(run("settings", "--json")[1])["settings"]}
    assert told["pilot.nodes"] == {"key": "pilot.nodes", "value": 3, "source": "BALSAMFUT_PILOT_NODES"}
    assert told["wire.inline_limit"]["source"] == "default"
    assert run("settings", "--site", "nowhere")[0] == 2


def test_a_broken_settings_file_is_one_sentence(run: Any, site_dir: Path) -> None:
    (site_dir / ".balsamfut").mkdir()
    (site_dir / ".balsamfut" / "settings.toml").write_text("[pilot]\nnode = 2\n")
    for words in (["settings"], ["status"], ["resume"], ["task", "ls"]):
        code, out, err = run(*words)
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert "there is no setting node; did you mean nodes?" in err


def test_platforms_are_listed_and_told_and_close_names_are_named(run: Any) -> None:
    assert "aurora" in run("platform", "ls")[1]
    told = json.loads(run("platform", "show", "aurora", "--json")[1])["platform"]
    assert (told["name"], len(told["node"]["tiles"])) == ("aurora", 12)
    assert "ZE_AFFINITY_MASK" in run("platform", "show", "aurora")[1]
    code, _, err = run("platform", "show", "arora")
    assert code == 2 and "did you mean aurora" in err


# ---- the site that is meant


@pytest.mark.parametrize("mark", sites.FILES)
def test_a_site_is_found_by_itself_and_by_the_directory_that_holds_it(site_dir: Path, monkeypatch: pytest.MonkeyPatch,
                                                                      mark: str) -> None:
    monkeypatch.delenv("BALSAMFUT_SITE", raising=False)
    site = site_dir / ".balsamfut"
    site.mkdir()
    (site / mark).touch()
    assert {common.find_site(given) for given in (None, ".", ".balsamfut", str(site_dir))} == {site}
    monkeypatch.setenv("BALSAMFUT_SITE", str(site_dir / "elsewhere"))
    with pytest.raises(UsageError, match="elsewhere"):
        common.find_site(None)


# ---- words


def test_durations_and_counts_are_told_in_words() -> None:
    assert [output.duration(each) for each in (None, 0.0123, 1.26, 59.0, 185.2, 7205)] == [
        "", "12.3 ms", "1.3 s", "59.0 s", "3:05 min", "2:00:05 h"]
    assert output.counted({"DONE": 3, "UPSTREAM_FAILED": 1, "HELD": 0}) == "3 done, 1 upstream failed"
    assert output.counted({}) == "no tasks"
    assert progress.describe({"DONE": 3, "FAILED": 1, "UPSTREAM_FAILED": 1, "RUNNING": 2}) == (
        "3 of 7 done, 2 failed, 2 running")


def test_a_table_that_is_piped_is_aligned_text_that_leaves_the_terminal_alone(
        capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("ID", "NAME", "WHY"), [(7, "a\tb\nc", ""), (1234, "\x1b[31mred", "é")], empty="nothing")
    assert capsys.readouterr().out.splitlines() == [
        "  ID  NAME         WHY",
        "   7  a b c",
        "1234  \\x1b[31mred  é"]
    output.print_table(("ID",), [], empty="nothing")
    assert capsys.readouterr() == ("", "balsamfut: nothing\n")


def test_a_tag_may_hold_an_equals_sign_in_its_value() -> None:
    assert common.pair("--tag", "a=b=c") == ("a", "b=c")


def test_a_value_that_json_has_not_is_null() -> None:
    assert (task_result.plain({"a": (1, 2)}), task_result.plain(object()), task_result.plain({1j: 2})) == (
        {"a": [1, 2]}, None, None)


# ---- progress


def test_progress_is_told_when_it_changes_and_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, counts = [0.0], {"DONE": 0}
    told: list[Any] = []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = progress.Progress(lambda: dict(counts), lambda now: told.append((clock[0], now["DONE"])), 2.0, 2.0)
    for second in range(64):
        clock[0] = float(second)
        if not 14 < second < 40:
            counts["DONE"] = second
        shown.update()
    assert told == [(0.0, 0), (2.0, 2), (6.0, 6), (14.0, 14), (62.0, 62)]   # nothing had changed at 30


def test_a_database_that_is_busy_does_not_end_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy() -> dict[str, int]:
        raise SiteError("busy")

    told: list[Any] = []
    progress.Progress(busy, told.append, 1.0, 1.0).update()
    assert told == []


# ---- what is resumed together


class FakeReader:
    def __init__(self, **campaigns: tuple[dict[str, int], dict[str, str] | None]) -> None:
        self._all = campaigns

    def campaigns(self) -> list[CampaignInfo]:
        return [CampaignInfo(n, name, True, 1.0, counts) for n, (name, (counts, _)) in enumerate(self._all.items(), 1)]

    def newest_session(self, campaign: str) -> SessionInfo | None:
        info = self._all[campaign][1]
        return None if info is None else SessionInfo(1, campaign, "host", 1, 1.0, None, info)


def planned(reader: FakeReader, campaign: str | None = None, retry_failed: bool = False) -> list[tuple[Wanted, Any]]:
    return [(one.wanted, one.campaigns) for one in resuming.plan(reader, campaign, retry_failed)]  # type: ignore[arg-type]


def test_campaigns_of_one_machine_are_resumed_together_and_finished_ones_not_at_all() -> None:
    aurora = {"platform": "aurora", "nodes": "2", "max_workers": "0"}
    reader = FakeReader(a=({"READY": 1}, aurora), b=({"DONE": 3}, aurora), c=({"HELD": 1}, {}),
                        d=({"WAITING": 1, "DONE": 1}, dict(aurora)), e=({"FAILED": 1}, None))
    machine = Wanted("aurora", 2, 0)
    assert planned(reader) == [(machine, ("a", "d")), (Wanted(), ("c",))]
    assert planned(reader, retry_failed=True) == [(machine, ("a", "d")), (Wanted(), ("c", "e"))]
    assert planned(reader, "d") == [(machine, ("d",))]
    assert planned(reader, "b") == []


def test_settings_show_what_a_site_says_of_its_machine(
        run: Any, site_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAMFUT_SITE", str(site_dir))
    (site_dir / "settings.toml").write_text("[pilot]\nplatform = 'aurora'\n")
    (site_dir / "platform.toml").write_text("[node]\nsmt = 1\n")
    code, out, _ = run("settings", "--json")
    shown = {each["key"]: (each["value"], each["source"]) for each in json.loads(out)["settings"]}
    assert code == 0 and shown["platform.node.smt"] == (1, str(site_dir / "platform.toml"))
    assert shown["pilot.platform"] == ("aurora", str(site_dir / "settings.toml"))
    (site_dir / "platform.toml").write_text("[node]\nsmtt = 1\n")
    code, _, err = run("settings")
    assert code == 2 and "did you mean smt" in err
