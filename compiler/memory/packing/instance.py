"""A packing problem as arrays: times become moments, bytes become units.

Of all times only those count at which a live set is maximal: a buffer has begun there and one ends next. A buffer is
live from its first moment up to, not including, its end. Sizes and alignments are multiples of the unit, and so are
the offsets of a packing in which everything lies as low as it can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .problem import Buffer

__all__ = ["Instance", "make_instance"]


@dataclass(frozen=True, eq=False)
class Instance:
    """Buffers as arrays, all int64."""

    begin: np.ndarray  # [buffers], first moment
    end: np.ndarray  # [buffers], moment behind the last
    size: np.ndarray  # [buffers], units
    alignment: np.ndarray  # [buffers], units; 1 where it is no matter
    times: np.ndarray  # [moments]
    unit: int  # bytes

    @property
    def loads(self) -> np.ndarray:
        """Units that are live, [moments]."""
        changes = np.zeros(len(self.times) + 1, np.int64)
        np.add.at(changes, self.begin, self.size)
        np.subtract.at(changes, self.end, self.size)
        return changes.cumsum()[:-1]

    def part(self, chosen: np.ndarray) -> Instance:
        """Returns some of the buffers, which may not be none, with the moments that they need."""
        return _compress(
            self.times[self.begin[chosen]],
            np.append(self.times, self.times[-1] + 1)[self.end[chosen]],
            self.size[chosen],
            self.alignment[chosen],
            self.unit,
        )

    def parts(self) -> list[np.ndarray]:
        """Returns the buffers in groups of which no two have a moment in common, those with the highest load first."""
        if not len(self.size):
            return []
        order = np.argsort(self.begin, kind="stable")
        reach = np.maximum.accumulate(self.end[order])
        cuts = np.flatnonzero(self.begin[order][1:] >= reach[:-1]) + 1
        loads, groups = self.loads, np.split(order, cuts)
        return sorted(groups, key=lambda group: -loads[self.begin[group].min() : self.end[group].max()].max())


def make_instance(buffers: Sequence[Buffer]) -> Instance:
    """Returns buffers, none of them empty, as arrays."""
    size = np.array([buffer.size for buffer in buffers], np.int64)
    alignment = np.array([buffer.alignment for buffer in buffers], np.int64)
    unit = math.gcd(*size.tolist()) or 1
    while (odd := alignment[unit % alignment != 0]).size and (smaller := math.gcd(unit, *odd.tolist())) < unit:
        unit = smaller
    lower = np.array([buffer.lower for buffer in buffers], np.int64)
    upper = np.array([buffer.upper for buffer in buffers], np.int64)
    alignment = np.where(unit % alignment == 0, 1, alignment // unit)
    return _compress(lower, upper, size // unit, alignment, unit)


def _compress(lower: np.ndarray, upper: np.ndarray, size: np.ndarray, alignment: np.ndarray, unit: int) -> Instance:
    starts, ends = np.unique(lower), np.unique(upper)
    # The last start before each end; starts with another start before the next end have a live set that is not maximal.
    times = starts[np.unique(np.searchsorted(starts, ends, side="left") - 1)] if len(starts) else starts
    return Instance(np.searchsorted(times, lower), np.searchsorted(times, upper), size, alignment, times, unit)
