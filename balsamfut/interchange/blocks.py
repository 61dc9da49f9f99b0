"""Pilots on this machine and blocks of a batch system, as the interchange's loop starts and watches them.

An embedded interchange has one local block: a pilot process that it starts and that ends with it.  A site that is kept
asks its batch system for blocks, which outlive the interchange.  This module starts and asks through a provider and
tells what became of it; what that means for tasks is the brain's.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from pathlib import Path
from typing import Final

from balsamfut.interchange import files
from balsamfut.interchange.batch import Batch
from balsamfut.interchange.records import BlockRow, PilotRow
from balsamfut.interchange.sessions import Shape
from balsamfut.provider.base import BlockSpec, Provider
from balsamfut.provider.local import LocalProvider
from balsamfut.provider.recipe import Recipe, dialect_of, rules

log = logging.getLogger(__name__)

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
        words = files.last_words(self._log(pilot)) if code else ""
        return said + (f", {words}" if words else "")

    def owns(self, pilot: int) -> bool:
        """Whether the end of this pilot will be told by poll."""
        return pilot in self._pilots.values()

    def hurry(self, now: float) -> None:
        """This interchange is ending: pilots that do not end by themselves in time are ended."""
        self._hurried = self._hurried or now
        if now - self._hurried > PATIENCE:
            for token in self._pilots:
                self._provider.cancel(token, now)


class Blocks:
    """The blocks that a site has asked for."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._provider = provider_of(recipe)
        self._rung = True              # the provider has something to tell ...
        self._due: float | None = None   # ... or will, at the latest, by then

    def fds(self) -> tuple[int, ...]:
        """Readable when poll has something to tell."""
        return self._provider.fds()

    def ring(self) -> None:
        """One of fds is readable."""
        self._rung = True

    def adopt(self, brain: Batch, now: float) -> None:
        """Watch over the blocks that an earlier interchange has asked for."""
        for row in brain.book.blocks.values():
            pilots = [pilot for pilot in brain.book.pilots.values() if pilot.block == row.id]
            fresh = not row.batch_id and bool(pilots) and not any(pilot.row.started for pilot in pilots)
            self._provider.adopt(row.token, row.batch_id, now, self._spec(row) if fresh else None)

    def ask(self, brain: Batch, now: float) -> None:
        """Ask for what the brain wants, which is recorded by now, and tell it what the batch system says."""
        wanted, unwanted = brain.orders()
        late = brain.arrivals.overdue(now)
        if not (wanted or unwanted or late or self._rung or (self._due is not None and now >= self._due)):
            return
        self._rung = False
        for row in wanted:
            self._provider.submit(self._spec(row), now)
        for row in unwanted:
            self._provider.cancel(row.token, now)
        told = self._provider.poll(now)
        brain.trouble(self._provider.trouble())
        for status in told:
            over = brain.row(status.token) if status.over else None
            unmanned = over is not None and brain.arrivals.never_came(over)
            brain.told(status, now, files.last_words(self._log(over)) if over is not None and unmanned else "")
        for row in late:
            path = self._log(row)
            brain.arrivals.missed(row, files.last_words(path) or f"there is no {path} yet", now)
        for text in brain.news:
            log.warning("%s", text)
        brain.news.clear()
        self._due = self._provider.due()

    def _log(self, row: BlockRow) -> Path:
        """What the block writes."""
        return self._recipe.site / "log" / f"pilot-{row.id}.log"

    def _spec(self, row: BlockRow) -> BlockSpec:
        """What is asked for; its script is kept beside the log, for people."""
        spec = self._recipe.spec(row, row.id, row.token)
        path = self._recipe.site / "log" / f"block-{row.id}.sh"
        try:
            path.touch(0o600)      # the token in it is the pilot's
            path.write_text(self._recipe.script(spec)[1])
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error)
        return spec

    def close(self) -> None:
        """Blocks go on."""
        self._provider.close()


def new_token() -> str:
    """Of a block: unique for ever, and a job's name in every batch system."""
    return f"bf-{secrets.token_hex(6)}"


def provider_of(recipe: Recipe) -> Provider:
    """Raises SettingsError for a batch system that there is no provider for."""
    dialect = dialect_of(recipe.provider, recipe.platform)
    if dialect is None:
        return LocalProvider()
    from balsamfut.provider.batch import BatchProvider
    from balsamfut.provider.pace import Pace

    return BatchProvider(dialect, rules(Pace.of, recipe.platform))
