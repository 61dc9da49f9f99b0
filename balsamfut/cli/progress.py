"""Progress of campaigns on stderr: one moving line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from balsamfut.cli import output
from balsamfut.errors import SiteError

OFTEN: Final = 0.5     # seconds between two looks, on a terminal
SELDOM: Final = 2.0    # ... and before the second line elsewhere; each further one takes half as long again
SLOWEST: Final = 60.0
SHARE: Final = 0.05    # of the time may be spent on counting: a large database takes longer


class Progress:
    """Shows counts that it asks for itself, not more often than is useful."""

    def __init__(self, count: Callable[[], dict[str, int]], show: Callable[[dict[str, int]], None], pause: float,
                 growth: float) -> None:
        self._count = count
        self._show = show
        self._pause = pause
        self._growth = growth
        self._due = 0.0
        self._shown: dict[str, int] = {}

    def update(self) -> None:
        began = time.monotonic()
        if began < self._due:
            return
        try:
            counts = self._count()
        except SiteError:   # busy; the next look is as good
            counts = self._shown
        now = time.monotonic()
        self._due = now + max(self._pause, (now - began) / SHARE)
        if counts != self._shown:
            self._shown = counts
            self._show(counts)
            self._pause = min(self._pause * self._growth, SLOWEST)


def describe(counts: dict[str, int]) -> str:
    """How far it is, in words."""
    failed = counts.get("FAILED", 0) + counts.get("UPSTREAM_FAILED", 0)
    parts = [f"{counts.get('DONE', 0)} of {sum(counts.values())} done"]
    parts += [f"{number} {word}" for word, number in (
        ("failed", failed), ("running", counts.get("RUNNING", 0)), ("held", counts.get("HELD", 0))) if number]
    return ", ".join(parts)


@contextmanager
def progress(count: Callable[[], dict[str, int]], title: str) -> Iterator[Progress]:
    """Progress for as long as the block runs."""
    if not sys.stderr.isatty():
        yield Progress(count, lambda counts: output.say(f"{title}: {describe(counts)}"), SELDOM, 1.5)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
                          TextColumn("{task.fields[words]}"), TimeElapsedColumn()]
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task(escape(title), total=None, words="")

        def show(counts: dict[str, int]) -> None:
            over = sum(counts.get(state, 0) for state in ("DONE", "FAILED", "UPSTREAM_FAILED", "CANCELLED"))
            bar.update(shown, total=sum(counts.values()), completed=over, words=describe(counts))

        yield Progress(count, show, OFTEN, 1.0)
