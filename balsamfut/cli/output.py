"""How commands print: tables, pairs, JSON, times.  rich draws tables on a terminal; elsewhere they are plain text."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click

SEEN: Final = 20
"""Letters of a sentence that should be seen in a table, however narrow the terminal ..."""
NARROW: Final = 6
"""... as long as this is left of every other column."""


def print_json(key: str, value: Any) -> None:
    """One object with one key, which says what it holds."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode({key: value}), indent=2).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """`empty` is said (on stderr) where there are no rows.  A column of numbers only is aligned to the right."""
    cells = [[line(str(cell)) for cell in row] for row in rows]
    if not cells:
        say(empty)
        return
    right = [all(_is_number(row[i]) for row in cells) for i in range(len(columns))]
    if sys.stdout.isatty():
        _draw(columns, cells, right)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    click.echo("\n".join(
        "  ".join(cell.rjust(width) if is_right else cell.ljust(width)
                  for cell, width, is_right in zip(row, widths, right, strict=True)).rstrip()
        for row in [columns, *cells]))


def _draw(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    used = [index for index in range(len(columns)) if any(row[index] for row in cells)]
    widths = {index: max(len(row[index]) for row in [columns, *cells]) for index in used}
    _fit(widths, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    used = list(widths)
    for index in used:
        table.add_column(Text(columns[index]), justify="right" if right[index] else "left", no_wrap=True,
                         overflow="ellipsis", width=widths[index])
    for row in cells:
        table.add_row(*(Text(row[index]) for index in used))
    console.print(table)


def _fit(widths: dict[int, int], room: int) -> None:
    """Make columns narrower that do not fit: first the last, where sentences are, but something of them is to be seen;
    then the widest of the others.  Where nothing could be read that way, leave some out, the last but one first."""
    *facts, last = widths
    seen = min(SEEN, widths[last])
    while len(facts) > 2 and sum(min(NARROW, widths[index]) + 2 for index in facts) + seen + 2 > room:
        del widths[facts.pop()]
    room -= 2 * len(widths)
    while facts and sum(widths[index] for index in facts) + seen > room:
        widest = max(facts, key=widths.__getitem__)
        if widths[widest] <= NARROW:
            break
        widths[widest] -= 1
    widths[last] = max(seen, min(widths[last], room - sum(widths[index] for index in facts)))


def print_notes(notes: Iterable[str]) -> None:
    """Sentences below a table."""
    for number, note in enumerate(notes):
        click.echo(("" if number else "\n") + line(note))


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and what they are, one to a line; what is empty is left out."""
    shown = [(name, str(value)) for name, value in pairs if value not in ("", None, [], {}, ())]
    width = max((len(name) for name, _ in shown), default=0)
    click.echo("\n".join(f"{name.ljust(width)}  {line(value)}" for name, value in shown))


def coloured(text: str, colour: str) -> str:
    """In this colour, on a terminal, unless its user wants none (NO_COLOR)."""
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour)


def say(text: str) -> None:
    """One sentence for the person, apart from what was asked for."""
    click.echo(f"balsamfut: {line(text)}", err=True)


def line(text: str) -> str:
    """Text as one line that leaves the terminal alone: control characters are shown, not sent."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c in "\n\t" else repr(c)[1:-1] for c in text)


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(".", "", 1).isdigit()


def when(moment: float | None) -> str:
    """A Unix time on the clock of this machine."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else ""


def duration(seconds: float | None) -> str:
    """12.5 ms, 1.3 s, 3:05 min, 2:00:05 h."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{max(seconds, 0.0) * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d} h" if hours else f"{minutes}:{whole % 60:02d} min"


def counted(counts: dict[str, int]) -> str:
    """Tasks by state in words: `3 done, 1 failed`."""
    parts = [f"{number} {state.lower().replace('_', ' ')}" for state, number in counts.items() if number]
    return ", ".join(parts) or "no tasks"
