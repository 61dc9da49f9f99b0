"""The house keeps its own rules: who imports whom, how large a module may be, what an import costs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import balsamfut

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "balsamfut"
BENCH = ROOT / "bench"
LINES = 400
HEAVY = ("sqlalchemy", "zmq", "jinja2", "rich", "click", "cloudpickle", "tblib", "psutil", "asyncio", "msgspec")


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_imports_go_down_only() -> None:
    pytest.importorskip("importlinter")
    lint = "from importlinter.cli import lint_imports_command as lint; lint()"
    done = subprocess.run([sys.executable, "-c", lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_is_listed_in_the_import_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    assert contract["exhaustive"] is True
    listed = {name.strip(" ()") for layer in contract["layers"] for name in layer.replace("|", ":").split(":")}
    there = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert there - {"__init__"} <= listed


def test_no_module_is_longer_than_a_person_reads_at_once() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines())
               for path in (*PACKAGE.rglob("*.py"), *BENCH.glob("*.py"))}
    assert {path: n for path, n in lengths.items() if n > LINES} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")
              if (text := path.read_text().strip()) and not text.startswith('"""')]
    assert silent == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert modules_after("import balsamfut") & set(HEAVY) == set()


def test_an_app_without_a_template_loads_no_jinja_and_no_database() -> None:
    loaded = modules_after("from balsamfut import app; app(lambda: None); app.shell(lambda: 'true')")
    assert loaded & {"jinja2", "sqlalchemy", "zmq", "rich", "click", "cloudpickle"} == set()


def test_the_public_names_are_there_and_a_wrong_one_is_named() -> None:
    assert {"app", "Executor", "TaskFuture", "ShellResult", "TaskState"} <= set(dir(balsamfut))
    assert balsamfut.TaskState.__module__ == "balsamfut.model"
    with pytest.raises(AttributeError, match="no attribute 'Exekutor'; its names are"):
        balsamfut.Exekutor  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_is_the_same_in_both_places() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == balsamfut.__version__
