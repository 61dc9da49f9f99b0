"""`balsamfut resume`: go on with what campaigns left unfinished; what it says, and how it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from balsamfut.cli import common, output
from balsamfut.errors import SiteError, UsageError

if TYPE_CHECKING:
    from balsamfut.query import Reader

NAMED = 5   # failed or held tasks that are told of one by one


@click.command("resume")
@click.argument("place", metavar="[SITE]", required=False)
@click.option("--campaign", metavar="NAME", help="Only this campaign.")
@click.option("--retry-failed", is_flag=True, help="Try again, too, what failed, and what could not run for that.")
@click.option("--wait/--no-wait", default=True, help="Wait until all is over.  --no-wait is refused where the "
              "interchange lives only while somebody waits, as that of a site which a script made for itself does.")
@common.site_option
@common.json_option
def command(place: str | None, campaign: str | None, retry_failed: bool, wait: bool, site: str | None,
            as_json: bool) -> int:
    """Go on with what campaigns left unfinished, without their scripts.

    Finds or starts the interchange of SITE (default: as for --site), with the platform, nodes and max_workers that each
    campaign's newest script asked for, and waits until its tasks are over.  Held tasks are named and not waited for.
    Cancelled ones stay cancelled.

    The exit code is 1 if tasks of these campaigns have failed or are held.  With --json: {"resume": {"campaigns":
    [{"name", "counts", "failed", "held"}]}}; what goes on meanwhile is told on stderr.
    """
    from balsamfut import sites
    from balsamfut.cli import resuming

    named = common.one_site(place, site)
    directory = which_site(place, site)
    if not wait:
        raise UsageError(why_wait(directory))
    again = f"balsamfut resume{_quoted(named)}"
    with common.open_reader(directory) as reader:
        plans = resuming.plan(reader, common.known_campaign(reader, campaign), retry_failed)
        if not plans:
            return nothing_to_do(reader, campaign, again, as_json)
        try:
            for number, one in enumerate(plans):
                if number:
                    resuming.wait_for_end(directory)   # it runs for another machine
                resuming.Resumption(directory, reader, one, retry_failed).run()
        except KeyboardInterrupt:
            output.say("interrupted; the site goes on with it" if sites.read(directory) is not None else
                       "interrupted; the interchange stops unless a script uses it, what is recorded stays, and "
                       f"`{again}` goes on with it")
            return 130
        return summarize(reader, [name for one in plans for name in one.campaigns], again, as_json)


def why_wait(site: Path) -> str:
    """Why --no-wait cannot be."""
    from balsamfut import sites

    kept = sites.read(site)
    if kept is not None:
        return (f"--no-wait is not needed: the site {kept.name} goes on with all that is not over while it runs "
                f"(`balsamfut site start {kept.name}`), and Ctrl-C ends no more than the wait")
    return ("--no-wait cannot be: the interchange of this site lives only while a script or a command is connected to "
            "it, and here that is this command; leave --no-wait out, or let the shell keep it running: nohup balsamfut "
            "resume &")


def which_site(place: str | None, site: str | None) -> Path:
    """The site that is meant.  Raises UsageError, saying how a campaign is named where the argument may be one."""
    from balsamfut import sites

    try:
        return common.find_site(common.one_site(place, site))
    except (UsageError, SiteError):
        here = sites.find()
        if place is None or site or os.sep in place or not sites.is_site(here):
            raise
    with common.open_reader(here) as reader:
        names = [each.name for each in reader.campaigns()]
    if place in names:
        raise UsageError(f"there is no site {place}, and a campaign of that name here: `balsamfut resume --campaign"
                         f"{_quoted(place)}`")
    raise UsageError(f"there is no site and no campaign {place!r} here; {common.close_names(place, names)} "
                     "(`balsamfut resume --campaign NAME`)")


def nothing_to_do(reader: Reader, campaign: str | None, again: str, as_json: bool) -> int:
    counts = reader.count(campaign=campaign)
    if as_json:
        output.print_json("resume", {"campaigns": []})
        return 0
    failed = counts.get("FAILED", 0) + counts.get("UPSTREAM_FAILED", 0)
    hint = f"; `{again} --retry-failed` tries again what failed" if failed else ""
    where = f"in campaign {campaign}" if campaign else "here"
    click.echo(f"nothing is unfinished {where}: {output.counted(counts)}{hint}")
    return 0


def summarize(reader: Reader, campaigns: list[str], again: str, as_json: bool) -> int:
    """Tell how the campaigns stand; returns the exit code."""
    told = [standing(reader, name) for name in campaigns]
    if as_json:
        output.print_json("resume", {"campaigns": told})
    else:
        for one in told:
            print_standing(one, again)
    bad = ("FAILED", "UPSTREAM_FAILED", "HELD", "WAITING")
    return 1 if any(one["counts"].get(state) for one in told for state in bad) else 0


def standing(reader: Reader, name: str) -> dict[str, Any]:
    """Counts, and the failed and held tasks: the first of them."""
    def first(state: str) -> list[dict[str, Any]]:
        found = reader.tasks(state=state, campaign=name, limit=NAMED) if counts.get(state) else []
        return [{"id": task.id, "app": task.app, "why": output.line(task.reason or task.error)} for task in found]

    counts = reader.count(campaign=name)
    return {"name": name, "counts": counts, "failed": first("FAILED"), "held": first("HELD")}


def print_standing(one: dict[str, Any], again: str) -> None:
    name, counts = one["name"], one["counts"]
    click.echo(f"{output.line(name)}: {output.counted(counts)} of {sum(counts.values())}")
    for kind, state in (("failed", "FAILED"), ("held", "HELD")):
        for task in one[kind]:
            click.echo(f"  {kind}: task {task['id']} ({task['app']}): {task['why']}")
        if counts.get(state, 0) > len(one[kind]):
            click.echo(f"  ... and {counts[state] - len(one[kind])} more: balsamfut task ls --state {state.lower()} "
                       f"--campaign{_quoted(name)}")
    if counts.get("WAITING"):
        click.echo(f"  waiting: {counts['WAITING']} for held tasks, or for futures that only their script can bring")
    if counts.get("FAILED") or counts.get("UPSTREAM_FAILED"):
        click.echo(f"  to try again what failed: {again} --retry-failed --campaign{_quoted(name)}")


def _quoted(word: str | Path | None) -> str:
    import shlex

    return f" {shlex.quote(str(word))}" if word else ""
