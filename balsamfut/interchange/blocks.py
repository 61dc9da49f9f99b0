"""Pilots on this machine, as the interchange's loop starts and watches them.

An embedded interchange has one local block: a pilot process that it starts and that ends with it.  This module starts
processes through a provider and tells of their end; what that means for tasks is the brain's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from balsamfut.interchange.records import PilotRow
from balsamfut.interchange.sessions import Shape
from balsamfut.provider.base import BlockSpec
from balsamfut.provider.local import LocalProvider

PATIENCE: Final = 6.0
"""Seconds that pilots have to end by themselves when they are told to."""


class LocalPilots:
    """The pilots that this interchange started on its own machine."""

    def __init__(self, site: Path, address: str) -> None:
        self._site = site
        self._address = address
        self._provider = LocalProvider()
        self._pilots: dict[str, int] = {}      # the block's token -> pilot
        self._hurried: float | None = None

    def fds(self) -> tuple[int, ...]:
        """Readable when poll has something to tell."""
        return self._provider.fds()

    def start(self, row: PilotRow, shape: Shape, now: float) -> None:
        """Start a pilot of this shape."""
        argv = [sys.executable, "-P", "-m", "balsamfut.pilot.agent", "--site", str(self._site),
                "--pilot", str(row.id), "--token", row.token, "--address", self._address, "--starter", str(os.getpid()),
                "--platform", shape.platform, "--nodes", str(shape.nodes)]
        if shape.platform == "workstation":
            argv += ["--cores", str(shape.cores)]
        if shape.hosts:
            argv += ["--hosts", shape.hosts]
        if shape.pretend or (shape.platform != "workstation" and not shape.hosts):
            argv += ["--pretend"]
        self._pilots[row.token] = row.id
        self._provider.submit(
            BlockSpec(row.token, tuple(argv), str(self._log(row.id)), os.getcwd()), now)

    def _log(self, pilot: int) -> Path:
        return self._site / "log" / f"pilot-{pilot}.log"

    def poll(self, now: float) -> list[tuple[int, str]]:
        """The pilots that have ended since the last time, with what is known of why."""
        return [(pilot, self._why(pilot, status.text, status.exit_code)) for status in self._provider.poll(now)
                if status.over and (pilot := self._pilots.pop(status.token, 0))]

    def _why(self, pilot: int, text: str, code: int | None) -> str:
        """What the provider says, and the end of the pilot's log where it says anything."""
        said = text or (f"it ended with code {code}" if code is None or code >= 0 else f"signal {-code} ended it")
        try:
            lines = self._log(pilot).read_text(errors="replace").strip().splitlines()[-4:]
        except OSError:
            lines = []
        return said + (", its log: " + " | ".join(lines) if lines and code else "")

    def owns(self, pilot: int) -> bool:
        """Whether the end of this pilot will be told by poll."""
        return pilot in self._pilots.values()

    def hurry(self, now: float) -> None:
        """This interchange is ending: pilots that do not end by themselves in time are ended."""
        self._hurried = self._hurried or now
        if now - self._hurried > PATIENCE:
            for token in self._pilots:
                self._provider.cancel(token, now)
