"""`balsamfut queue` where no interchange runs: dry runs, what is refused, and how blocks are listed."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from balsamfut import Site, cli, settings, sites
from balsamfut.cli import common
from balsamfut.errors import InterchangeLost, UsageError
from balsamfut.infos import BlockInfo
from balsamfut.interchange.records import BlockRow, PilotRow, Writes
from balsamfut.interchange.store import Store
from balsamfut.provider.base import BlockState
from balsamfut.queuemessages import Part

NOW = time.time()
ASKED = ("queue", "submit", "--site", "here", "-q", "debug-scaling", "-A", "demo", "-t", "10")
WAITS = "Not Running: User has reached queue debug-scaling running job limit."


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site on Aurora by the name of `here` that was never started."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("BALSAMFUT_SITE", raising=False)
    sites.init(tmp_path / "site", "here", "aurora")
    return tmp_path / "site"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], site: Path) -> Any:
    """Run a command: exit code, stdout, stderr."""
    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def keep(site: Path, *blocks: BlockRow) -> None:
    """Have these blocks in the site's database, as if it had been started."""
    (site / "interchange.owner").touch()
    store = Store(settings.load(site).database_url(site), synchronous="NORMAL")
    store.open()
    pilots = [PilotRow(number, f"{row.token}-{number}", "", 0, "aurora", part.nodes, 0.0)
              for row in blocks for number, part in row.pilots()]
    store.commit(Writes(blocks=list(blocks), pilots=pilots))
    store.close()


def block(number: int, state: BlockState = BlockState.QUEUED, **more: Any) -> BlockRow:
    return BlockRow(number, f"bf-{number}", "pbs", f"812345{number}.aurora-pbs-0001.cm", "debug-scaling", "demo", 4,
                    3600.0, more.pop("mode", "any"), more.pop("params", {}), state, more.pop("text", ""),
                    NOW - 900.0, **more)


# ---- dry runs


def test_a_dry_run_prints_the_script_alone_and_says_apart_what_would_be_run(run: Any, site: Path) -> None:
    code, out, err = run(*ASKED, "-n", "2", "-x", "filesystems=home", "--tag", "kind=post", "--dry-run")
    assert code == 0 and out.startswith("#!/bin/bash -l\n#PBS -N bf-dry-run\n#PBS -A demo\n#PBS -q debug-scaling\n")
    assert "#PBS -l filesystems=home\n" in out and f"--site {site}" in out
    assert err == "balsamfut: nothing is submitted; block 1 would be: `qsub -f` with this on its stdin\n"
    assert not (site / "balsamfut.db").exists()
    code, out, err = run(*ASKED, "-n", "2", "--dry-run", "--json")
    told = json.loads(out)["block"]
    assert (told["command"], err) == ("qsub -f", "") and told["script"].startswith("#!/bin/bash")


def test_python_is_given_the_text_of_the_script(site: Path) -> None:
    queue = Site("here").queue
    text = queue.submit(4, 10, queue="debug-scaling", project="demo", dry_run=True,
                        parts=[{"job_mode": "mpi", "num_nodes": 3}, {"num_nodes": 1, "filter_tags": {"run": 7}}])
    assert "#PBS -l select=4" in text and "--parts 3,1" in text
    with pytest.raises(InterchangeLost, match="site start"):
        queue.submit(1, 10, queue="debug", project="demo")


@pytest.mark.parametrize(("more", "says"), [
    ({"tags": ["kind"]}, "tags takes a mapping"),
    ({"parts": [{"nodes": 2}]}, "a part has num_nodes, and may have job_mode and filter_tags"),
    ({"parts": [{"num_nodes": "2"}]}, "num_nodes is a number of nodes, at least 1, not '2'"),
    ({"parts": [{"num_nodes": 2, "filter_tags": "kind"}]}, "filter_tags: tags takes a mapping"),
    ({"parts": [{"num_nodes": 2, "job_mode": "gpu"}]}, "mode 'gpu' was asked; there are any, mpi, serial"),
    ({"wall_time_min": 600}, "debug-scaling takes at most 1 h"),
    ({"wall_time_min": "ten"}, "wall_time_min is a number of minutes above 0"),
    ({"wall_time_min": float("inf")}, "above 0 min and at most 366 days, not inf min"),
    ({"num_nodes": 1 << 70, "dry_run": False}, "nodes was asked; a block has 1 to 65536"),
])
def test_what_cannot_be_asked_for_in_python_is_one_sentence(site: Path, more: dict[str, Any], says: str) -> None:
    words = {"num_nodes": 2, "wall_time_min": 10, "queue": "debug-scaling", "project": "demo", "dry_run": True, **more}
    with pytest.raises(UsageError) as caught:
        Site("here").queue.submit(**words)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("words", "says"), [
    (["-n", "400"], "400 nodes for 10 min was asked, but debug-scaling takes 2 to 256 nodes; prod would"),
    (["-n", "2", "--tag", "kind"], "--tag takes NAME=VALUE, not 'kind'"),
    (["-n", "2", "--part", "mpi"], "--partition takes MODE:NODES[:NAME=VALUE]..., such as mpi:3"),
    (["-n", "2", "--part", "mpi:2:kind"], "--partition takes NAME=VALUE, not 'kind'"),
    (["-n", "4", "--part", "mpi:3"], "the parts have 3 nodes, and the block has 4"),
    (["-n", "2", "--part", "gpu:2"], "a part with mode 'gpu' was asked"),
    (["-n", "2", "-t", "nan"], "a block's walltime is above 0 min and at most 366 days, not nan min"),
    (["-n", "2", "-t", "inf"], "a block's walltime is above 0 min and at most 366 days, not inf min"),
    (["-n", "2", "-t", "1h"], "'1h' is not a valid number"),
    (["-n", "2", "--tag", "kind=a", "--tag", "kind=b"], "--tag kind is given twice, as a and as b: a task has one"),
    (["-n", "2", "-x", "a=1", "-x", "a=2"], "-x a is given twice, as 1 and as 2"),
    (["-n", "2", "--part", "any:2:kind=a:kind=b"], "--partition kind is given twice"),
    (["-n", "2", "--part", "any:2", "-j", "mpi"], "give each part its own mode and tags"),
])
def test_a_dry_run_is_checked_like_a_block_that_is_asked_for(run: Any, words: list[str], says: str) -> None:
    code, out, err = run(*ASKED, *words, "--dry-run")
    assert (code, out) == (2, "") and says in err and "Traceback" not in err


def test_a_dry_run_knows_the_blocks_that_there_are_while_no_interchange_runs(run: Any, site: Path) -> None:
    keep(site, block(1, parts=[Part(3), Part(1)]))
    code, _, err = run(*ASKED, "-n", "2", "--dry-run")
    assert code == 2 and "debug-scaling takes at most 1 block of one user at a time, and 1 queued" in err
    code, out, _ = run(*ASKED, "-n", "1", "-q", "debug", "--dry-run")
    assert code == 0 and "--pilot 3 " in out, "each part has a number"


def test_a_dry_run_for_the_site_of_a_script_says_that_it_has_no_blocks(run: Any, site: Path) -> None:
    (site / "site.toml").unlink()
    code, out, err = run(*ASKED, "-n", "2", "--dry-run")
    assert (code, out) == (2, "") and "is no site that is kept, so it has no blocks" in err


# ---- how they stand


def test_blocks_are_listed_in_a_line_each_with_the_batch_systems_words(run: Any, site: Path) -> None:
    keep(site, block(1, text=WAITS, tags={"kind": "post"}),
         block(2, BlockState.RUNNING, started=NOW - 300.0, parts=[Part(3, "mpi"), Part(1, "serial", {"run": "7"})]),
         block(4, BlockState.ENDED, started=NOW - 60.0, ended=NOW, exit_code=271, mode="mpi"))
    code, out, _ = run("queue", "ls", "--site", "here")
    head, first, second = out.splitlines()
    assert head.split() == ["ID", "STATE", "BATCH", "ID", "QUEUE", "NODES", "TIME", "RAN", "TAKES", "WHY"]
    assert code == 0 and first.split()[:7] == ["1", "queued", "8123451", "debug-scaling", "4", "1", "h"]
    assert "kind=post" in first and first.endswith(WAITS) and "mpi:3 + serial:1" in second
    assert len(run("queue", "ls", "--site", "here", "--history")[1].splitlines()) == 4


def test_a_block_whose_end_somebody_wants_is_being_removed_until_it_is_over(run: Any, site: Path) -> None:
    keep(site, block(1, BlockState.RUNNING, started=NOW - 300.0, removal=NOW), block(2, removal=NOW),
         block(3, BlockState.ENDED, started=NOW - 60.0, ended=NOW, removal=NOW))
    _, out, _ = run("queue", "ls", "--site", "here", "--history")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["removing", "removing", "ended"]


def test_everything_that_is_known_of_a_block_is_told(run: Any, site: Path) -> None:
    keep(site, block(2, BlockState.ENDED, started=NOW - 60.0, ended=NOW, exit_code=0, text="it was deleted by the user",
                     parts=[Part(3, "mpi"), Part(1, "serial", {"run": "7"})], params={"filesystems": "home"},
                     why="much waits"),
         block(4, BlockState.REFUSED, ended=NOW, mode="mpi", tags={"kind": "post"}))
    (site / "log").mkdir()
    for name in ("block-2.sh", "pilot-2.log", "pilot-3.log", "pilot-4.log"):
        (site / "log" / name).touch()
    _, out, _ = run("queue", "ls", "--site", "here", "--history", "-v")
    first, second = out.split("\n\n")
    lines = [line.split(maxsplit=1) for line in first.splitlines()]
    said = {name: text for name, text in lines if name not in ("job", "log", "part")}
    assert (said["block"], said["state"], said["why"]) == ("2", "ended", "it was deleted by the user")
    assert [line[1] for line in lines if line[0] == "part"] == [
        "3 nodes: mpi tasks", "1 node: serial tasks with run=7"]
    assert [Path(line[1]).name for line in lines if line[0] == "log"] == ["pilot-2.log", "pilot-3.log"]
    assert "job script" in first and "block-2.sh" in first and "exit code          0" in first
    assert "pbs: 8123452.aurora-pbs-0001.cm" in first and "filesystems=home" in first
    assert "asked for because  much waits" in first and "mpi tasks with kind=post" in second and "exit" not in second
    told = json.loads(run("queue", "ls", "--site", "here", "--history", "--json")[1])["blocks"]
    assert set(told[0]) == set(BlockInfo.__struct_fields__) and told[0]["exit_code"] == 0
    assert told[0]["parts"] == [[3, "mpi", {}], [1, "serial", {"run": "7"}]] and told[1]["tags"] == {"kind": "post"}


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_on_a_terminal_a_block_is_one_line_whatever_its_width(
        run: Any, site: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    keep(site, block(1, text=WAITS, tags={"kind": "post"}), block(2, BlockState.RUNNING, started=NOW - 7300.0))
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = run("queue", "ls", "--site", "here")
    head, first, second = re.sub(r"\x1b\[\d*m", "", out).splitlines()
    assert max(map(len, (head, first, second))) <= columns
    assert "Not Running: User" in first, "some of why it waits can be read"
    assert (WAITS in first) == (columns == 200) and second.split()[0] == "2"


def test_blocks_that_are_not_there_or_over_are_named_and_none_is_ended(run: Any, site: Path) -> None:
    keep(site, block(1), block(2, BlockState.ENDED, ended=NOW))
    code, out, err = run("queue", "rm", "--site", "here", "1", "2", "7", "8")
    assert (code, out) == (2, "")
    assert f"there is no block 7, 8 in {site}; block 2 is over already; nothing was done" in err


def test_a_pair_is_split_at_its_first_sign() -> None:
    assert common.pair("--tag", "a=b=c") == ("a", "b=c")
