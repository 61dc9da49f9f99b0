"""Fixtures of the process tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Hosts, why_not


@pytest.fixture
def can_have_hosts() -> None:
    """Skip the test where pretend hosts cannot be made; with BALSAMFUT_TEST_HOSTS=1 they are promised, and it fails."""
    reason = why_not()
    if reason and os.environ.get("BALSAMFUT_TEST_HOSTS") == "1":
        pytest.fail(f"BALSAMFUT_TEST_HOSTS=1, but {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture
def hosts(can_have_hosts: None, tmp_path: Path) -> Iterator[Hosts]:
    """Four pretend hosts, n1 to n4, that share the test's directory."""
    with Hosts(tmp_path / "hosts", ["n1", "n2", "n3", "n4"], shared=[tmp_path]) as made:
        yield made
