"""What commands print: tables for people, JSON for programs, progress on the side.

Data goes to standard output, everything else to standard error. A table that isn't written to a terminal is as wide as
its contents, so that no pipe ever gets a cut line. Progress shows on a terminal only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..compiler.text import Table, format_bytes, format_count, format_flops, format_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = [
    "Bars",
    "format_bytes",
    "format_count",
    "format_flops",
    "format_seconds",
    "note",
    "print_facts",
    "print_json",
    "print_table",
    "print_tables",
    "progress_bars",
    "spinner",
]

_UNLIMITED_WIDTH = 10_000


def print_json(data: object) -> None:
    """Prints data as JSON on standard output."""
    print(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False), flush=True)


def print_tables(tables: Iterable[Table]) -> None:
    """Prints tables on standard output, an empty line between two."""
    for number, table in enumerate(tables):
        if number:
            print()
        if table.rows:
            print_table(table.columns, table.rows, title=table.title)
        else:
            print(table.title)
        if table.note:
            print(table.note)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Prints a table on standard output; columns whose name ends in a space are left-aligned, the others right.

    Args:
        columns: Heads of the columns.
        rows: Cells, one for each column.
        title: A line above the table.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.rstrip(), justify="left" if column.endswith(" ") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = _console()
    if title is not None:
        console.print(title, style="bold")
    console.print(table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Prints names with their values on standard output, one a line, the values aligned."""
    known = [(name, str(value)) for name, value in facts]
    width = max(len(name) for name, _ in known)
    for name, value in known:
        print(f"{name:<{width}}  {value}")


def note(text: str) -> None:
    """Prints a line on standard error."""
    print(f"plait: {text}", file=sys.stderr, flush=True)


class Bars:
    """Progress bars, one for each label, made when first heard of."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def update(self, label: str, done: int, total: int, *, are_bytes: bool = False) -> None:
        """Shows that `done` of `total` are finished."""
        amount = f"{format_bytes(done)} of {format_bytes(total)}" if are_bytes else f"{done} of {total}"
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total, amount=amount)
        self._progress.update(self._tasks[label], completed=done, total=total, amount=amount)


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Shows progress bars on standard error, if that is a terminal, until the block ends."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn())
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bars(progress)


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Shows that something is done, on standard error if that is a terminal; yields what changes the text."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(text) as status:
        yield status.update


def _console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _UNLIMITED_WIDTH
    return Console(width=width, markup=False, highlight=False, emoji=False)
