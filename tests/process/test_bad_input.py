"""What is wrong is said in one sentence: a script's last line, its exit code is not 0, and nothing is lost."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from balsamfut import query

WRONG = {
    "an unknown option": (
        "@app(num_node=2)\ndef f(): ...", "num_node", "num_nodes"),
    "an unknown option of a call": (
        "@app\ndef f(): ...\nwith Executor() as ex:\n    f.options(wall_time='1m')()", "wall_time", "walltime"),
    "a value that cannot be": (
        "@app(walltime='soon')\ndef f(): ...", "walltime", '"20m"'),
    "a request that nothing here satisfies": (
        "@app(ranks_per_node=4096)\ndef f(): ...\nwith Executor() as ex:\n    f()", "4096 cores", "this machine has"),
    "a template variable that is not declared": (
        "@app.shell('echo {{ wrod }}')\ndef f(word): ...", "wrod", "word"),
    "a template parameter that is not given": (
        "@app.shell('echo {{ word }}')\ndef f(word): ...\nwith Executor() as ex:\n    f()", "word", "missing"),
    "an argument that cannot be pickled": (
        "import threading\nwith Executor() as ex:\n    ex.submit(print, threading.Lock()).result()",
        "cannot be pickled", "argument 1 of print"),
    "no executor": ("@app\ndef f(): ...\nf()", "NoExecutor", "with Executor"),
    "a platform that there is none of": ("Executor(platform='aurorra')", "'aurorra'", "did you mean aurora?"),
}


def run(directory: Path, lines: str) -> subprocess.CompletedProcess[str]:
    script = directory / "script.py"
    script.write_text("from balsamfut import Executor, app\n" + lines)
    return subprocess.run([sys.executable, str(script)], cwd=directory, capture_output=True, text=True, timeout=60,
                          env=dict(os.environ), check=False)


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_named_with_what_would_be_right(tmp_path: Path, what: str) -> None:
    lines, wrong, right = WRONG[what]
    result = run(tmp_path, lines)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode != 0
    assert wrong in last and right in last, result.stderr


def test_broken_settings_are_named_by_file_and_line(tmp_path: Path) -> None:
    site = tmp_path / ".balsamfut"
    site.mkdir()
    (site / "settings.toml").write_text("[pilot]\nmax_workers = many\n")
    result = run(tmp_path, "Executor()")
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode != 0 and "settings.toml" in last and "line 2" in last, result.stderr


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    assert run(tmp_path, "with Executor() as ex:\n    ex.submit(pow, 2, 3).result()").returncode == 0
    path = tmp_path / ".balsamfut" / "balsamfut.db"
    with open(path.with_name("interchange.owner")) as owner:     # the interchange has ended
        fcntl.flock(owner, fcntl.LOCK_EX)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET version = 999")
    database.close()
    result = run(tmp_path, "Executor()")
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode != 0 and last.startswith("balsamfut.errors.DatabaseTooNew: ") and "999" in last
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM tasks WHERE state = 5").fetchone() == (1,)
        database.execute("UPDATE meta SET version = 1")
    database.close()
    with query.open_site(tmp_path / ".balsamfut") as reader:
        assert [task.state for task in reader.tasks()] == ["DONE"]
