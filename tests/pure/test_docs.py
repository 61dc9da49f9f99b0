"""What the documents say of the code is so: files and names that they speak of exist, and their scripts are right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from balsamfut import messages, settings
from balsamfut.cli import COMMANDS
from balsamfut.pilot import hand

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "balsamfut"
JOURNEY = (ROOT / "docs" / "journey.md").read_text()
README = (ROOT / "README.md").read_text()
SOURCE = "\n".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_modules_of_the_journey_exist() -> None:
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", JOURNEY))
    assert len(named) > 10
    missing = [name for name in sorted(named) if not ((ROOT / name).exists() or list(PACKAGE.rglob(name)))]
    assert missing == []


def test_the_messages_of_the_journey_exist() -> None:
    named = set(re.findall(r"\*\*([A-Z][a-z]+)\*\*", JOURNEY))
    kinds = {name for module in (messages, hand) for name, value in vars(module).items() if isinstance(value, type)}
    prose = {"Think", "Drain", "Commit", "Send"}
    assert {"Submit", "Launch", "Exited", "Settled"} <= named
    assert named - prose - kinds == set()


def test_the_functions_of_the_journey_are_in_the_code() -> None:
    named = set(re.findall(r"`(?:[\w]+\.)*(\w+)\.(\w+)`", JOURNEY))
    missing = []
    for owner, name in sorted(named):
        if name == "py" or (PACKAGE / owner).is_dir():
            continue
        place = SOURCE
        if owner[0].isupper():
            assert re.search(rf"^class {owner}\b", SOURCE, re.MULTILINE), owner
        else:
            found = list(PACKAGE.rglob(f"{owner}.py"))
            assert found, owner
            place = "\n".join(path.read_text() for path in found)
        if not re.search(rf"(def|class) {name}\b|^ *{name}\b *[:=]", place, re.MULTILINE):
            missing.append(f"{owner}.{name}")
    assert missing == []


def test_the_commands_of_the_readme_exist() -> None:
    commands = {}
    for name, entry in COMMANDS.items():
        commands[name] = () if isinstance(entry, str) else tuple(entry[1])
    used = re.findall(r"balsamfut (\w+)(?: (\w+))?", "\n".join(blocks(README, "sh")))
    assert used
    for name, sub in used:
        assert name in commands
        assert not commands[name] or sub in commands[name]
    for name in ("task logs", "task result", "task cancel", "app ls", "campaign ls", "platform ls"):
        group, sub = name.split()
        assert sub in commands[group]


def test_what_the_readme_says_of_limits_is_the_default() -> None:
    assert "above 64 KiB" in README
    assert settings.Wire().inline_limit == 64 * 1024


@pytest.mark.parametrize("number", range(1, len(blocks(README, "python"))))
def test_the_readmes_apps_can_be_decorated(number: int) -> None:
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(blocks(README, "python")[number], "README.md", "exec"), names)
    assert {"lammps", "spectral"} <= set(names)


def test_the_documents_link_to_files_that_exist() -> None:
    for path in (ROOT / "README.md", ROOT / "docs" / "journey.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
