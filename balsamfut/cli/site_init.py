"""`balsamfut site init`: make a site."""

from __future__ import annotations

import os
import socket
import sys

import click

from balsamfut.cli import common, output


@click.command("init")
@click.argument("path", metavar="PATH")
@click.option("-n", "--name", help="By which the site is found from anywhere; the directory's own name if not given.")
@click.option("--platform", help="The machine; found out if not given.")
@common.json_option
def command(path: str, name: str | None, platform: str | None, as_json: bool) -> None:
    """Make a site in a directory.

    On a terminal it asks who pays for blocks, where a machine wants to know; else nothing.  settings.toml in the
    directory has every setting, explained.  With --json: {"site": {"name", "path", "platform"}}.
    """
    from pathlib import Path

    from balsamfut import platforms, sites

    if not path:
        raise click.UsageError("PATH is empty")
    directory = Path(path).expanduser().absolute()
    found = platform or platforms.detect(socket.getfqdn(), os.environ)
    project = ""
    if platforms.load(found).scheduler.get("account_required") and sys.stdin.isatty() and not as_json:
        project = click.prompt(f"The project that pays for blocks on {found} (empty: said with each block)", default="",
                               show_default=False, err=True).strip()
    made = sites.init(directory, name or directory.name, found, project)
    if as_json:
        output.print_json("site", {"name": made.name, "path": str(directory), "platform": found})
        return
    click.echo(f"made the site {made.name} in {directory}, for the platform {found}\n"
               f"look at {directory / 'settings.toml'}, then: balsamfut site start {made.name}")
