"""The chip's grid as arrays, and the curves that visit its tiles."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "Ints"]

Ints = NDArray[np.int64]

_WIDTHS = (1, 2, 4, 8, 16)  # of bands


@dataclass(frozen=True)
class Grid:
    """Rows and columns of tiles, as on a checkerboard."""

    rows: int
    columns: int

    @functools.cached_property
    def pcus(self) -> Ints:
        """Places of all compute units, [unit, 2]."""
        tiles = _bands(self.rows, self.columns, 1)
        return tiles[tiles.sum(axis=1) % 2 == 0]

    @functools.cached_property
    def curves(self) -> tuple[Ints, ...]:
        """Orders of the places of all memory units, each [unit, 2]: bands of several widths, both ways."""
        across = [_bands(self.rows, self.columns, width) for width in _WIDTHS if width == 1 or width < self.columns]
        along = [
            _bands(self.columns, self.rows, width)[:, ::-1] for width in _WIDTHS if width == 1 or width < self.rows
        ]
        return tuple(tiles[tiles.sum(axis=1) % 2 == 1] for tiles in (*across, *along))

    def port_distance(self, columns: Ints) -> Ints:
        """Returns the links from tiles of some columns to the nearest port."""
        return np.minimum(columns + 1, self.columns - columns)


def _bands(rows: int, columns: int, width: int) -> Ints:
    """Returns all places, band after band of columns, down the first and up the next, to and fro inside."""
    row, column = np.indices((rows, columns)).reshape(2, -1)
    band, inside = column // width, column % width
    walked = np.where(band % 2 == 0, row, rows - 1 - row)
    inner = np.where(walked % 2 == 0, inside, width - 1 - inside)
    return np.stack([row, column], axis=1)[np.lexsort((inner, walked, band))]
