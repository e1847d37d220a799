"""How answers are written: JSON for programs; for people tables, with colour on a terminal and plain aligned columns in a pipe.

It must not know what the values mean.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

_STEPS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def print_json(value: Any, *, one_line: bool = False) -> None:
    """Write a JSON value; one_line: for streams of them."""
    click.echo(json.dumps(value, indent=None if one_line else 2))


def is_terminal() -> bool:
    """Whether a person looks at the output right now."""
    return sys.stdout.isatty()


def print_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table; rows without a value in a column have "" there."""
    lines = [tuple(printable(str(cell)) for cell in row) for row in rows]
    if is_terminal():
        _print_rich(title, headers, lines)
        return
    widths = [max(len(cell) for cell in column) for column in zip(headers, *lines, strict=True)]
    click.echo(f"\n{title}" if title else "", nl=bool(title))
    for line in (tuple(header.upper() for header in headers), *lines):
        click.echo("  ".join(f"{cell or '-':{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_rich(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if title:
        console.print(Text(f"\n{title}", style="bold"))
    table = Table(box=SIMPLE_HEAD, header_style="cyan", pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell or "-") for cell in row))
    console.print(table)


def printable(text: str) -> str:
    """What another machine said, without what would steer this terminal."""
    return text if text.isprintable() else "".join(each if each.isprintable() or each == "\n" else "\ufffd" for each in text)


def mark(good: bool) -> str:
    """A sign for yes or no, coloured on a terminal (click strips it elsewhere)."""
    return click.style("✓", fg="green") if good else click.style("✗", fg="red")


def duration(seconds: float) -> str:
    """A length of time by its largest unit: "3 min"."""
    for length_s, unit in _STEPS:
        if seconds >= length_s:
            return f"{int(seconds / length_s)} {unit}"
    return f"{max(int(seconds * 1000), 0)} ms"


def ago(when_s: float, now_s: float | None = None) -> str:
    """A point in time as "3 min ago", "never" for 0."""
    if not when_s:
        return "never"
    return f"{duration((time.time() if now_s is None else now_s) - when_s)} ago"


def ahead(when_s: float, now_s: float | None = None) -> str:
    """A point in time as "in 3 min", "past" if it is over, "none" for 0."""
    if not when_s:
        return "none"
    left_s = when_s - (time.time() if now_s is None else now_s)
    return f"in {duration(left_s)}" if left_s > 0 else "past"


def size(count_bytes: int) -> str:
    """A number of bytes in the unit that fits."""
    value, unit = float(count_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count_bytes} B"


def plural(count: int, word: str) -> str:
    """ "1 pod", "2 pods"; "policy" becomes "policies"."""
    if count == 1:
        return f"1 {word}"
    return f"{count} {word[:-1]}ies" if word.endswith("y") else f"{count} {word}s"
