"""`balsamfut doctor`: whether everything is as it has to be, and what to do where it is not."""

from __future__ import annotations

import os
import socket
from typing import Final

import click

from balsamfut.cli import common, output

COLOURS: Final = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command("doctor")
@common.site_option
@common.json_option
def command(site: str | None, as_json: bool) -> int:
    """Look whether everything is there that a site needs, and say what to do where it is not.

    Without a site: at the software and the machine.  Changes nothing; asks a batch system only what its queues are.

    With --json: {"checks": [{"check", "level" (ok, warning, error), "text"}]}.  Exit code 0 if nothing is an error.
    """
    from balsamfut import platforms, settings, sites
    from balsamfut.cli import checks, checks_batch
    from balsamfut.errors import BalsamfutError, UsageError

    try:
        place = common.find_site(site)
    except UsageError:
        if site is not None or os.environ.get("BALSAMFUT_SITE") or sites.find().exists():
            raise
        place = None
    try:
        subject = checks.subject_of(place, platforms.detect(socket.getfqdn(), os.environ))
    except BalsamfutError as error:     # nothing else can be said of such a site
        found = [*checks.software(settings.Settings()), checks.Check("settings", "error", str(error))]
    else:
        found = list(checks.software(subject.settings))
        for name, check in (("site", checks.site), ("database", checks.database), ("platform", checks.machine),
                            ("network", checks.network), ("mpi", checks.launcher), ("batch", checks_batch.batch)):
            found += checks.guarded(name, lambda check=check: check(subject))  # type: ignore[misc]
    if as_json:
        output.print_json("checks", found)
    else:
        width = max(len(each.check) for each in found)
        for each in found:
            click.echo(f"{output.coloured(f'{each.level:7}', COLOURS[each.level])}  {each.check:{width}}  {each.text}")
    return int(any(each.level == "error" for each in found))
