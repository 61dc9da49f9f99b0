"""When an owner on another host is taken for gone: by signs of life, counted on the candidate's clock."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsamfut.errors import SiteTaken
from balsamfut.infos import OwnerInfo
from balsamfut.interchange.ownership import beat_every, may_live, watch


class World:
    """A clock, and an owner that gives signs of life by a clock of its own."""

    def __init__(self, owner: Callable[[float], OwnerInfo | None]) -> None:
        self.now = 5.0
        self.owner = owner

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def watch(self, lease: float) -> float:
        """Seconds until it was taken for gone."""
        first = self.owner(self.now)
        assert first is not None
        watch(lambda: self.owner(self.now), first, lease, lambda: self.now, self.sleep)
        return self.now - 5.0


def beating(every: float, skew: float) -> Callable[[float], OwnerInfo]:
    return lambda now: OwnerInfo(3, now // every * every + skew, "elsewhere", 17, skew)


@given(st.floats(1.0, 600.0), st.sampled_from([-3600.0, 0.0, 3600.0]))
def test_an_owner_that_beats_is_never_taken_for_gone_whatever_its_clock_says(lease: float, skew: float) -> None:
    with pytest.raises(SiteTaken, match="process 17 on elsewhere, since"):
        World(beating(beat_every(lease), skew)).watch(lease)


@given(st.floats(1.0, 600.0), st.floats(-1e6, 1e6))
def test_one_that_gives_no_sign_is_taken_for_gone_after_the_lease_and_not_before(lease: float, beat: float) -> None:
    silent = OwnerInfo(3, beat, "elsewhere", 17, 0.0)
    assert lease <= World(lambda now: silent).watch(lease) + 1e-6 <= 1.2 * lease


def test_a_database_that_cannot_be_read_for_a_while_says_nothing() -> None:
    def owner(now: float) -> OwnerInfo | None:
        return OwnerInfo(3, 0.0 if now < 30.0 else 1.0, "elsewhere", 17, 0.0) if now < 6.0 or now > 25.0 else None

    with pytest.raises(SiteTaken):
        World(owner).watch(40.0)


def test_one_that_ends_while_it_is_watched_is_waited_for_no_longer() -> None:
    assert World(lambda now: OwnerInfo(3, 0.0, "elsewhere", 17 if now < 8.0 else 0, 0.0)).watch(40.0) < 10.0


def test_a_new_owner_in_its_place_lives() -> None:
    with pytest.raises(SiteTaken, match="process 18"):
        World(lambda now: OwnerInfo(3 if now < 8.0 else 4, 0.0, "elsewhere", 17 if now < 8.0 else 18, 0.0)).watch(40.0)


def test_an_owner_that_has_let_go_or_whose_process_on_this_host_is_gone_is_not_watched() -> None:
    here = os.uname().nodename
    assert not may_live(OwnerInfo(3, 0.0, "elsewhere", 0, 0.0))
    assert may_live(OwnerInfo(3, 0.0, "elsewhere", 17, 0.0))
    assert not may_live(OwnerInfo(3, 0.0, here, 1 << 22, 0.0))
    assert not may_live(OwnerInfo(3, 0.0, here, os.getppid(), 0.0)), "its number is another program's by now"
