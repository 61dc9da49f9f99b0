"""`balsamfut site stop`: end a site's interchange."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

import click

from balsamfut.cli import common

PATIENCE: Final = 20.0
"""Seconds for it to finish writing."""


@click.command("stop")
@click.argument("site", metavar="[SITE]", required=False)
def command(site: str | None) -> None:
    """Stop the interchange of a site; pilots go on with what they have.

    They keep what they have to report, and hand it over when it is started again.
    """
    from balsamfut import connection
    from balsamfut.errors import UsageError

    directory = common.find_site(site)
    found = connection.read(directory)
    if found is None or not found.alive:
        click.echo("it does not run")
        return
    if not found.here:
        raise UsageError(f"it runs on {found.host} (process {found.pid}) and can be stopped only there: "
                         f"ssh {found.host} balsamfut site stop {directory}")
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while connection.runs(found.pid):
        if time.monotonic() > deadline:
            raise UsageError(f"process {found.pid} has not ended after {PATIENCE:g} s; see "
                             f"{directory / 'log' / 'interchange.log'}")
        time.sleep(0.02)
    click.echo(f"stopped: process {found.pid}")
