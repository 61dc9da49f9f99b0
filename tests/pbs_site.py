"""A PBS for tests: `fake_pbs` puts tests/fake_site/bin on PATH, with a server of the test's own.

A test module gets it by `pytest_plugins = ("pbs_site",)`, and its type, for annotations, under TYPE_CHECKING.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BIN = Path(__file__).parent / "fake_site" / "bin"
PATIENCE = 60.0


class FakePbs:
    """What a test says to the fakes and sees of them; the names of the files are explained in qfake.py."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def tell(self, name: str, text: object = "") -> None:
        """Make a file that says what goes wrong, or how things are."""
        part = self.directory / f".{name}.part"
        part.write_text(text if isinstance(text, str) else json.dumps(text))
        part.replace(self.directory / name)

    def untell(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def calls(self, command: str = "") -> list[str]:
        """The commands so far, as one types them; those of one name where it is given."""
        try:
            lines = (self.directory / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line for line in lines if not command or line.split()[0] == command]

    def jobs(self) -> list[dict[str, Any]]:
        """The server's records, oldest first."""
        paths = sorted((self.directory / "jobs").glob("*.json"), key=lambda path: int(path.stem))
        return [json.loads(path.read_text()) for path in paths]

    def wait(self, state: str, index: int = -1) -> dict[str, Any]:
        """The record of a job as soon as it is in this state (a letter); the newest job, or another by index."""
        deadline = time.monotonic() + PATIENCE
        while True:
            jobs = self.jobs()
            if len(jobs) > (index if index >= 0 else 0) and jobs[index]["state"] == state:
                return jobs[index]
            if time.monotonic() > deadline:
                raise AssertionError(f"no job became {state}: {jobs}; {self.log()}")
            time.sleep(0.02)

    def release(self) -> None:
        """Let the jobs run that were held, or could never run."""
        for index, job in enumerate(self.jobs()):
            if job["state"] in "QH":
                self.edit(index, state="Q", runs=True, comment="", holds="n")

    def edit(self, index: int, **fields: object) -> None:
        """Change the server's record of a job, as the job's runner would."""
        with open(self.directory / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            job = {**self.jobs()[index], **fields}
            path = self.directory / "jobs" / f"{job['number']}.json"
            path.with_suffix(".part").write_text(json.dumps(job))
            path.with_suffix(".part").replace(path)

    def log(self) -> str:
        path = self.directory / "runner.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """End every job."""
        for name in ("down", "hang", "hang-after", "slow", "forget", "refuse-qdel"):
            self.untell(name)
        for job in self.jobs():
            if job["state"] != "F":
                qdel = [self.directory / "bin" / "qdel", "-W", "force", job["id"]]
                subprocess.run(qdel, check=False, capture_output=True)
        for index, _ in enumerate(self.jobs()):
            self.wait("F", index)


def commands(directory: Path) -> Path:
    """The fakes, started by this Python: the one on PATH may be a script that takes longer than they do."""
    directory.mkdir()
    for fake in BIN.glob("q*"):
        if not fake.suffix:
            link = directory / fake.name
            link.write_text(f"#!{sys.executable} -SEB\nimport sys\nsys.path[0] = {str(BIN)!r}\n{fake.read_text()}")
            link.chmod(0o755)
    return directory


@pytest.fixture
def fake_pbs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePbs]:
    """A PBS that answers, runs what it is given at once, and kills a second after SIGTERM."""
    made = FakePbs(tmp_path_factory.mktemp("pbs"))
    monkeypatch.setenv("FAKE_PBS_DIR", str(made.directory))
    monkeypatch.setenv("PATH", f"{commands(made.directory / 'bin')}{os.pathsep}{os.environ['PATH']}")
    made.tell("kill_delay", "1")
    yield made
    made.close()
    assert not made.log(), f"the fake has failed itself:\n{made.log()}"
