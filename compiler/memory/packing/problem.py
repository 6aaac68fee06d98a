"""The packing problem: buffers with a live range and a size, read from the CSV that MiniMalloc's benchmarks have.

The header names the columns: `lower`, `upper` and `size`, and if wanted `id` and `alignment`, in any order. What an
answer is worth is said by `verify/packing.py`, which shares no code with this package.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ....errors import ConfigurationError

__all__ = ["Buffer", "check_buffers", "read_buffers"]

_NEEDED = ("lower", "upper", "size")
_KNOWN = (*_NEEDED, "id", "alignment")
_LARGEST = 2**60  # of times, and of the sum of all sizes: there is room for sums in 64 bits


@dataclass(frozen=True)
class Buffer:
    """A buffer, live at lower <= time < upper.

    Raises:
        ConfigurationError: if the range is empty, the size negative or the alignment not positive.
    """

    id: str
    lower: int  # first time at which it is live
    upper: int  # first time at which it is not any more
    size: int  # bytes
    alignment: int = 1  # the offset is a multiple of it; bytes

    def __post_init__(self) -> None:
        if not -_LARGEST <= self.lower < self.upper <= _LARGEST:
            raise ConfigurationError(
                f"buffer {self.id!r} lives from {self.lower} to {self.upper}; the range is half-open, "
                "upper is greater than lower, both are within 2**60"
            )
        if self.size < 0:
            raise ConfigurationError(f"buffer {self.id!r} has size {self.size}; give 0 or more bytes")
        if not 1 <= self.alignment <= _LARGEST:
            raise ConfigurationError(f"buffer {self.id!r} has alignment {self.alignment}; give 1 or more bytes")


def check_buffers(buffers: Sequence[Buffer]) -> None:
    """Raises unless ids are distinct and all buffers together are small enough to be reckoned with.

    Raises:
        ConfigurationError: which id is there twice, or what the sum is.
    """
    seen: set[str] = set()
    for buffer in buffers:
        if buffer.id in seen:
            raise ConfigurationError(f"there are two buffers {buffer.id!r}; ids are distinct")
        seen.add(buffer.id)
    total = sum(buffer.size + buffer.alignment for buffer in buffers)
    if total > _LARGEST:
        raise ConfigurationError(f"all buffers and alignments together have {total} bytes; at most 2**60 are packed")


def read_buffers(path: Path) -> list[Buffer]:
    """Returns the buffers in a CSV file; without a column `id` they are numbered from 0.

    Raises:
        ConfigurationError: if the file cannot be read, has other columns, or a line says something else than a buffer.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"cannot read {path}: it is no text; give a CSV file") from None
    try:
        buffers = _parse(text)
        check_buffers(buffers)
    except (ConfigurationError, csv.Error) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return buffers


def _parse(text: str) -> list[Buffer]:
    lines = csv.reader(io.StringIO(text), strict=True)
    header = [name.strip() for name in next(lines, [])]
    if not set(_NEEDED) <= set(header) <= set(_KNOWN) or len(set(header)) < len(header):
        raise ConfigurationError(
            f"the header is {','.join(header)!r}; the columns are lower, upper and size, and if wanted id and alignment"
        )
    buffers: list[Buffer] = []
    for cells in lines:
        if cells:
            buffers.append(_buffer(header, cells, lines.line_num, len(buffers)))
    return buffers


def _buffer(header: list[str], cells: list[str], line: int, number: int) -> Buffer:
    if len(cells) != len(header):
        raise ConfigurationError(f"line {line} has {len(cells)} cells, the header {len(header)}")
    row = dict(zip(header, cells, strict=True))
    values: dict[str, int] = {}
    for name in (*_NEEDED, "alignment"):
        cell = row.get(name, "1").strip()
        if not cell.removeprefix("-").isdecimal() or len(cell) > 20:
            raise ConfigurationError(f"line {line}: {name} is {cell!r}, not an integer within 2**60")
        values[name] = int(cell)
    try:
        return Buffer(row.get("id", str(number)).strip(), **values)
    except ConfigurationError as error:
        raise ConfigurationError(f"line {line}: {error}") from None
