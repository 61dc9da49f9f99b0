"""Who belongs to whom: marks, rows of /proc and families, without any process."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsamfut.pilot import guardian
from balsamfut.pilot.guardian import MARK, Row, family, mark_in, strike


def row(parent: int, session: int, state: str = "S", threads: int = 1) -> Row:
    fields = [b"0"] * 50
    fields[0] = state.encode()
    fields[1:4] = [str(parent).encode(), str(session).encode(), str(session).encode()]
    fields[17] = str(threads).encode()
    fields[19:22] = [b"4242", b"0", b"7"]
    return Row(fields)


def test_a_row_has_the_fields_of_proc_stat() -> None:
    each = row(12, 34)
    assert (each.parent, each.group, each.session, each.start, each.pages) == (12, 34, 34, 4242, 7)


def test_a_zombie_is_dead_unless_other_threads_of_it_go_on() -> None:
    assert row(1, 1, "Z").dead and row(1, 1, "X").dead
    assert not row(1, 1, "Z", threads=3).dead
    assert not any(row(1, 1, state).dead for state in "RSDTt")


def test_a_mark_is_found_wherever_it_stands_and_only_by_its_whole_name() -> None:
    mark = f"{MARK}=tok:7:1".encode()
    assert mark_in(mark) == mark_in(mark + b"\0A=b\0") == mark_in(b"A=b\0" + mark + b"\0") == "tok:7:1"
    assert mark_in(b"") is None
    assert mark_in(b"NOT_" + mark) is None
    assert mark_in(b"A=" + mark + b"\0") is None


def test_a_family_is_descendants_and_the_sessions_that_they_lead() -> None:
    rows = {
        1: row(0, 1), 10: row(1, 10),                       # init, and an agent
        20: row(10, 20), 21: row(20, 20), 22: row(21, 22),  # an attempt, its child, whose child leads a session
        23: row(1, 22),                                     # ... a member of which has lost its parent
        30: row(10, 30), 31: row(1, 20),                    # another attempt; an orphan of the first one
    }
    assert family(rows, [20]) == {20, 21, 22, 23, 31}
    assert family(rows, [21]) == {21, 22, 23}
    assert family(rows, [], sessions=[20]) == {20, 21, 22, 23, 31}
    assert family(rows, [30, 99]) == {30}


def test_the_dead_are_left_out_but_what_descends_from_them_is_not() -> None:
    rows = {20: row(10, 20, "Z"), 21: row(10, 20), 22: row(21, 20)}
    assert family(rows, [20]) == {21, 22}


def struck(monkeypatch: pytest.MonkeyPatch, before: dict[int, Row], now: dict[int, Row], victims: set[int]) -> set[int]:
    sent: list[int] = []
    monkeypatch.setattr(guardian, "row", now.get)
    monkeypatch.setattr(guardian, "_send", sent.append)
    strike(before, victims)
    return set(sent)


def test_a_group_is_killed_as_one_only_if_all_of_it_is_to_die(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {20: row(10, 20), 21: row(20, 20), 30: row(10, 30), 31: row(30, 30)}
    assert struck(monkeypatch, rows, rows, {20, 21, 31}) == {-20, 20, 21, 31}


def test_a_process_that_got_the_pid_of_one_that_we_saw_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, now = {20: row(10, 20), 21: row(20, 20), 22: row(20, 20)}, {20: row(10, 20), 21: row(20, 20)}
    now[21].start += 1
    assert struck(monkeypatch, rows, now, {20, 21, 22}) == {-20, 20}
    now[20].start += 1
    assert struck(monkeypatch, rows, now, {20, 21, 22}) == set()
    assert struck(monkeypatch, {21: row(20, 20)}, {20: row(1, 20), 21: row(20, 20)}, {21}) == {21}


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=30), st.data())
@settings(max_examples=60, deadline=None)
def test_a_family_is_closed_and_has_nobody_whose_ancestors_and_session_are_all_outside(
        forks: list[tuple[int, bool]], data: st.DataObject) -> None:
    # Processes 1..n: each forked by an earlier one; some lead a session of their own, the others inherit it.
    rows = {1: row(0, 1)}
    for pid, (parent, leads) in enumerate(forks, start=2):
        parent = 1 + parent % (pid - 1)
        rows[pid] = row(parent, pid if leads else rows[parent].session)
    seeds = data.draw(st.sets(st.sampled_from(sorted(rows))))
    found = family(rows, seeds)
    assert seeds <= found
    for pid, each in rows.items():
        reason = pid in seeds or each.parent in found or each.session in found
        assert (pid in found) == reason


def test_parents_are_killed_before_their_children_whatever_their_numbers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(guardian, "_send", sent.append)
    rows = {900: row(1, 900), 20: row(900, 20), 500: row(20, 500), 3: row(500, 500)}  # numbers start again
    monkeypatch.setattr(guardian, "row", rows.get)
    strike(rows, set(rows))
    assert [pid for pid in sent if pid > 0] == [900, 20, 500, 3]
    assert [-pid for pid in sent if pid < 0] == [900, 20, 500]
