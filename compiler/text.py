"""Numbers and tables as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Table", "format_bytes", "format_count", "format_flops", "format_seconds"]


@dataclass(frozen=True)
class Table:
    """Rows under heads; a column whose head ends in a space is left-aligned, the others right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # below

    def as_text(self) -> str:
        """Returns the title, the rows, one a line, and the note."""
        note = (self.note,) if self.note else ()
        return "\n".join([self.title, *(self._lines() if self.rows else ()), *note])

    def _lines(self) -> Iterator[str]:
        heads = tuple(column.rstrip() for column in self.columns)
        widths = [max(map(len, cells)) for cells in zip(heads, *self.rows, strict=True)]
        for row in (heads, *self.rows):
            cells = zip(self.columns, row, widths, strict=True)
            yield "  ".join(
                text.ljust(width) if head.endswith(" ") else text.rjust(width) for head, text, width in cells
            ).rstrip()


def format_bytes(num_bytes: float) -> str:
    """Returns bytes in the largest binary unit of which there is at least one."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Returns a time in s, ms or µs; from a thousand seconds on in min, h or days."""
    if seconds == 0:
        return "0"
    for unit_seconds, unit, fewest in ((86_400, "days", 100_000), (3600, "h", 10_000), (60, "min", 1000)):
        if seconds >= fewest:
            return f"{seconds / unit_seconds:.3g} {unit}"
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def format_count(count: float) -> str:
    """Returns a number in thousands (k), millions (M), billions (B) or trillions (T)."""
    for suffix in ("", "k", "M", "B"):
        if abs(count) < 1000:
            return f"{count:.4g}{suffix}"
        count /= 1000
    return f"{count:.4g}T"


def format_flops(flops: float) -> str:
    """Returns a number of floating-point operations with a decimal prefix."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(flops) < 1000:
            return f"{flops:.3g} {prefix}FLOP"
        flops /= 1000
    return f"{flops:.3g} EFLOP"
