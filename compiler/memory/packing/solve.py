"""The packer: a bound, greedy orders, then the exact search of each part that is too high.

Comes in: buffers, and a capacity or none. Goes out: a `Packing`. With a capacity the first packing that fits is the
answer. Without one the height is minimised: first the lower bound is tried, then heights between that and the best
one known. `verify.packing.verify_packing` checks the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import numpy as np

from ....errors import ConfigurationError
from .answer import Binding, Packing, Status
from .binding import explain_load, explain_search
from .instance import make_instance
from .problem import Buffer, check_buffers

__all__ = ["solve_packing"]

_GREEDY_SHARE = 0.02  # of the time
_MOST_GREEDY_SECONDS = 0.3
_SHARE_AT_BOUND = 0.6  # of the time that is left, for a packing as low as the bound
_SHARE_BETWEEN = 0.5  # of what is left then, for each height between
_ALL = slice(None)


def solve_packing(buffers: Sequence[Buffer], capacity: int | None = None, time_limit_seconds: float = 60.0) -> Packing:
    """Returns a packing within the capacity, or the lowest that is found if there is none to keep.

    Args:
        buffers: With distinct ids.
        capacity: Bytes; None to minimise the height.
        time_limit_seconds: After which the best that is known is the answer. The first call on a machine takes about 15
            seconds longer, for compiling the search, unless greedy packing is enough.

    Raises:
        ConfigurationError: if the buffers cannot be packed at all, or the capacity is negative.
    """
    start = monotonic()
    check_buffers(buffers)
    if capacity is not None and capacity < 0:
        raise ConfigurationError(f"the capacity is {capacity}; give 0 or more bytes")
    offsets = {buffer.id: 0 for buffer in buffers if not buffer.size}
    rest = [buffer for buffer in buffers if buffer.size]
    if not rest:
        return Packing("optimal", offsets, 0, 0, monotonic() - start)
    packer = _Packer(rest, capacity, start, time_limit_seconds)
    status = packer.run()
    packed = status in ("optimal", "feasible")
    if packed:
        offsets |= packer.named_offsets()
    return Packing(
        status=status,
        offsets=offsets if packed else {},
        height=packer.height if packed else None,
        lower_bound=packer.lower_bound,
        seconds=monotonic() - start,
        nearest_height=None if packed else packer.height,
        binding=packer.binding,
    )


class _Packer:
    """The best packing so far and the best bound so far; heights are in units until they are asked for."""

    def __init__(self, buffers: Sequence[Buffer], capacity: int | None, start: float, limit_seconds: float) -> None:
        self._buffers, self._capacity = buffers, capacity
        self._instance = make_instance(buffers)
        self._bound = int(self._instance.loads.max())
        self._ceiling = None if capacity is None else capacity // self._instance.unit
        self._start, self._limit_seconds = start, limit_seconds
        self._deadline = start + limit_seconds
        self._offsets: np.ndarray | None = None
        self.binding: Binding | None = None

    @property
    def height(self) -> int | None:
        """Bytes of the best packing so far."""
        return None if self._offsets is None else self._top() * self._instance.unit

    @property
    def lower_bound(self) -> int:
        """Bytes below which there is no packing."""
        return self._bound * self._instance.unit

    def named_offsets(self) -> dict[str, int]:
        """Returns the offsets of the best packing in bytes, by id."""
        assert self._offsets is not None
        offsets = (self._offsets * self._instance.unit).tolist()
        return {buffer.id: offset for buffer, offset in zip(self._buffers, offsets, strict=True)}

    def run(self) -> Status:
        """Does all of it and returns the status."""
        if self._ceiling is not None and self._bound > self._ceiling:
            self.binding = explain_load(self._buffers, self._instance, self._capacity or 0)
            return "infeasible"
        self._pack_greedily()
        if self._ceiling is None:
            self._minimise()
        elif self._top() > self._ceiling:
            self._improve(self._ceiling, self._deadline)
            if self._bound > self._ceiling:
                self.binding = explain_search(self._buffers, self._instance, self._capacity or 0, self.lower_bound)
                return "infeasible"
            if self._top() > self._ceiling:
                return "unknown"
        return "optimal" if self._top() == self._bound else "feasible"

    def _top(self, part: np.ndarray | slice = _ALL) -> int:
        """The highest end of some buffers in the best packing so far."""
        assert self._offsets is not None
        return int((self._offsets[part] + self._instance.size[part]).max())

    def _pack_greedily(self) -> None:
        from .greedy import pack_greedily

        enough = self._bound if self._ceiling is None else self._ceiling
        share = min(_GREEDY_SHARE * self._limit_seconds, _MOST_GREEDY_SECONDS)
        self._offsets = pack_greedily(self._instance, enough, monotonic() + share)

    def _minimise(self) -> None:
        """Tries the lowest height first, then heights between the best one and those where nothing was found."""
        from .portfolio import is_searchable

        parts = self._instance.parts()
        goal = max([0, *(self._top(part) for part in parts if not is_searchable(self._instance.part(part)))])
        goal, share = max(goal, self._bound), _SHARE_AT_BOUND
        failed = goal - 1
        while self._top() > (lowest := max(goal, self._bound)) and (left := self._deadline - monotonic()) > 0:
            target = lowest if failed < lowest else (failed + self._top()) // 2
            if not self._improve(target, monotonic() + share * left):
                failed = target
            if failed >= self._top() - 1:
                failed = goal - 1  # nothing is left between them: once more
            share = _SHARE_BETWEEN

    def _improve(self, ceiling: int, deadline: float) -> bool:
        """Lowers every part that is above the ceiling, and says whether that worked; raises the bound if it cannot."""
        from .portfolio import search_packing

        assert self._offsets is not None
        for part in self._instance.parts():
            if self._top(part) <= ceiling:
                continue
            found = search_packing(self._instance.part(part), ceiling, deadline)
            if found.is_exhausted:
                self._bound = max(self._bound, ceiling + 1)
            if found.offsets is None:
                return False
            self._offsets[part] = found.offsets
        return True
