"""What all tests share: markers by directory, a directory to work in, and that no test leaves processes behind."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LEFT_BEHIND_AFTER = 10.0   # seconds
LONG = ("test_site_slurm.py", "test_site_faults.py", "test_takeover.py", "test_many_nodes.py", "test_crashes.py",
        "test_client.py", "test_block_tasks.py", "test_sites.py", "test_interrupts.py", "test_block_end.py",
        "test_launch_faults.py", "test_mpipool.py", "test_examples.py", "test_behaviours_campaigns.py")


def pytest_configure() -> None:
    """A shell that started us in the background has us, and all that we start, ignore Ctrl-C, which tests send."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in ("process", "site"):
            if HERE / name in item.path.parents:
                item.add_marker(name)
        if "can_have_hosts" in getattr(item, "fixturenames", ()):     # several hosts on this one: they take their time
            item.add_marker("site")
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """What takes longest first, so that the files which run side by side are over at about the same time."""
    if item.path.name in LONG:
        return LONG.index(item.path.name)
    return len(LONG) + (0 if HERE / "site" in item.path.parents else 1 if HERE / "process" in item.path.parents else 2)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With SITE_TESTS=1 the services are promised: a site test that is skipped has failed."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and item.get_closest_marker("site") and os.environ.get("SITE_TESTS") == "1":
        report.outcome = "failed"
        report.longrepr = f"SITE_TESTS=1 and this site test was skipped: {report.longrepr}"


@pytest.fixture
def site_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """The URL of an empty PostgreSQL database, dropped afterwards.  BALSAMFUT_TEST_POSTGRES names the server."""
    server = os.environ.get("BALSAMFUT_TEST_POSTGRES")
    if not server:
        pytest.skip("BALSAMFUT_TEST_POSTGRES names no PostgreSQL server")
    psycopg = pytest.importorskip("psycopg")
    name = f"balsamfut_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield f"{server.rsplit('/', 1)[0]}/{name}"
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def carrying(token: str) -> dict[int, str]:
    """The command lines of the processes that have `token` in their environment, by pid; without this one."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if token.encode() in Path(entry.path, "environ").read_bytes():
                line = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(entry.name)] = line
        except OSError:   # it is over, or somebody else's
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything that a process test starts inherits a token; what still carries it some seconds later has leaked."""
    if not request.node.get_closest_marker("process") and not request.node.get_closest_marker("site"):
        yield
        return
    token = f"BALSAMFUT_TEST_TOKEN={uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*token.split("="))
        patch.setenv("BALSAMFUT_INTERCHANGE_LINGER", "0.1")   # each test waits until its interchange has gone
        yield
    deadline = time.monotonic() + LEFT_BEHIND_AFTER
    while (left := carrying(token)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            pass
    if left:
        pytest.fail("processes were left behind:\n" + "\n".join(f"  {pid}: {line}" for pid, line in left.items()))
