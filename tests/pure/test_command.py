"""Where commands are found, what their descriptors become, and whose fault it is that one does not start."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsamfut.pilot.command import Finder, StartError, copies, refusal


def tool(folder: Path, name: str = "tool", mode: int = 0o755) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(mode)
    return str(folder / name)


def test_the_first_file_in_the_path_that_can_be_run_is_the_command(tmp_path: Path) -> None:
    tool(tmp_path / "a", mode=0o644)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tool").mkdir()
    wanted = tool(tmp_path / "c")
    tool(tmp_path / "d")
    assert Finder().find("tool", ":".join(str(tmp_path / name) for name in "abcd")) == wanted


def test_a_name_with_a_slash_is_not_looked_for() -> None:
    assert Finder().find("./x", "/bin") == "./x"


def test_a_file_that_is_there_but_cannot_be_run_is_126_and_none_at_all_127(tmp_path: Path) -> None:
    tool(tmp_path / "a", mode=0o644)
    with pytest.raises(StartError) as caught:
        Finder().find("tool", str(tmp_path / "a"))
    assert (caught.value.returncode, caught.value.errno) == (126, errno.EACCES)
    with pytest.raises(StartError) as caught:
        Finder().find("other", str(tmp_path / "a"))
    assert (caught.value.returncode, caught.value.errno) == (127, errno.ENOENT)


def test_where_a_command_is_is_remembered_until_it_is_forgotten(tmp_path: Path) -> None:
    finder, path = Finder(), f"{tmp_path}/a:{tmp_path}/b"
    second = tool(tmp_path / "b")
    assert finder.find("tool", path) == second
    first = tool(tmp_path / "a")
    assert finder.find("tool", path) == second
    finder.forget("tool", path)
    assert finder.find("tool", path) == first


def test_what_lies_in_a_relative_folder_depends_on_the_directory(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "one")
    (tmp_path / "two").mkdir()
    finder = Finder()
    monkeypatch.chdir(tmp_path / "one")
    assert finder.find("tool", "") == "./tool"
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(StartError):
        finder.find("tool", "")


def test_what_the_machine_lacks_is_not_the_commands_fault() -> None:
    for number in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.EIO):
        assert refusal("x", number).returncode is None
    for number in (errno.EACCES, errno.ENOEXEC, errno.E2BIG):
        assert refusal("x", number).returncode == 126
    assert str(refusal("x", errno.EACCES)) == "cannot run 'x': Permission denied"


@given(st.dictionaries(st.integers(0, 8), st.integers(0, 8), min_size=1))
@settings(max_examples=80, deadline=None)
def test_copies_give_each_number_what_it_was_meant_to_have(wanted: dict[int, int]) -> None:
    duplicates: dict[int, int] = {}

    def duplicate(fd: int, _: int, least: int) -> int:
        new = max([8, least - 1, *duplicates]) + 1  # 0 to 8 are open
        duplicates[new] = fd
        return new

    opened: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fcntl.fcntl", duplicate)
        actions = copies(wanted, opened)
    table = {fd: fd for fd in range(9)} | duplicates    # descriptor: what is behind it
    for kind, source, target in actions:
        assert kind == os.POSIX_SPAWN_DUP2
        table[target] = table[source]
    assert all(table[number] == fd for number, fd in wanted.items())
    assert opened == list(duplicates)
