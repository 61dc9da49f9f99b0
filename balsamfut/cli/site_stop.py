"""`balsamfut site stop`: end a site's interchange."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

import click

from balsamfut.cli import common, output

PATIENCE: Final = 20.0
"""Seconds for it to finish writing."""
BLOCKS: Final = 120.0
"""Seconds for blocks to end: batch systems take their time."""


@click.command("stop")
@common.site_argument
@common.site_option
@click.option("--blocks", is_flag=True, help="End its blocks first; what ran there runs again when there are others.")
@common.json_option
def command(place: str | None, site: str | None, blocks: bool, as_json: bool) -> None:
    """Stop the interchange of a site; pilots go on with what they have.

    They keep what they have to report, and hand it over when it is started again.  Waits until it has ended.
    With --json: {"stopped": {"pid"}}; null: it did not run.
    """
    from balsamfut import connection
    from balsamfut.errors import UsageError

    directory = common.find_site(common.one_site(place, site))
    found = connection.read(directory)
    if found is None or not found.alive:
        tell("it does not run", None, as_json)
        return
    if blocks:
        _end_blocks(directory)
    if not found.here:
        raise UsageError(f"it runs on another host ({found.text}) and can be stopped only there: ssh {found.host} "
                         f"balsamfut site stop {directory}; if that host is gone, `balsamfut site start` here first")
    try:
        os.kill(found.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    deadline = time.monotonic() + PATIENCE
    while connection.runs(found.pid):
        if time.monotonic() > deadline:
            hint = " (a signal has stopped it: kill -CONT, or kill -KILL)" if connection.stopped(found) else ""
            raise UsageError(f"process {found.pid} has not ended after {PATIENCE:g} s{hint}; see "
                             f"{directory / 'log' / 'interchange.log'}")
        time.sleep(0.02)
    tell(f"stopped: process {found.pid}", found.pid, as_json)


def tell(text: str, pid: int | None, as_json: bool) -> None:
    if as_json:
        output.print_json("stopped", {"pid": pid})
    else:
        click.echo(text)


def _end_blocks(directory: Path) -> None:
    """Have every block ended, and wait for that.  Raises UsageError where some do not end."""
    from balsamfut.errors import UsageError
    from balsamfut.executor.site import Site

    queue = Site(directory).queue
    asked: set[int] = set()
    deadline = time.monotonic() + BLOCKS
    while left := [block for block in queue.ls() if block.state not in ("ended", "refused")]:
        for block in left:
            if block.id not in asked:
                asked.add(block.id)
                try:
                    queue.rm(block.id)
                except UsageError:      # it has just ended
                    pass
        if time.monotonic() > deadline:
            names = ", ".join(str(block.id) for block in left)
            raise UsageError(f"blocks {names} have not ended after {BLOCKS:g} s; the interchange goes on, and "
                             "`balsamfut queue ls -v` tells what the batch system says")
        time.sleep(0.1)
