"""What follows from what is placed: offsets that are ruled out, until nothing changes or something has none left.

Everything here holds for packings in which what is not placed yet lies as low as it can: a buffer that is not at its
floor stands on another one of the rest.
"""

from __future__ import annotations

import numpy as np

from ...compiled import compiled
from .state import (
    ABOVE,
    CEILING,
    CHANGED,
    CHANGED_END,
    COUNT,
    FIRST,
    FLOOR,
    HIGH,
    INFINITE,
    LOW,
    NEED,
    NUM_FIRST,
    SECOND,
    TOP,
    TOPMOST,
    Buffers,
    State,
)

__all__ = ["aligned", "propagate"]


@compiled
def aligned(offset: int, alignment: int) -> int:
    """Returns the least multiple of the alignment that is not below the offset."""
    return offset if alignment == 1 else (offset + alignment - 1) // alignment * alignment


@compiled
def propagate(buffers: Buffers, state: State, depth: int) -> bool:
    """Rules out offsets in a frame, and says whether every buffer has one left.

    Args:
        buffers: All buffers.
        state: What the frame knows is changed; `weight` counts what failed.
        depth: The frame, with the range of moments in which something has changed.
    """
    ceiling, known = state.frame[depth, CEILING], state.known[depth]
    begin, end = state.frame[depth, CHANGED], state.frame[depth, CHANGED_END]
    rest = state.rest[depth, : state.frame[depth, COUNT]]
    while begin < end:
        _sort(rest, known)
        _sweep(buffers, rest, known, state.moment[depth], state.level, ceiling, begin, end)
        for moment in range(begin, end):
            if state.level[moment] > ceiling:
                state.weight[moment] += 1.0
                return False
        begin, end = _raise(buffers, rest, known, state.moment[depth], state.weight, ceiling, begin, end)
    return begin != INFINITE


@compiled
def _sort(rest: np.ndarray, known: np.ndarray) -> None:
    """Sorts buffers by their least offset; they mostly are already."""
    for start in range(1, len(rest)):
        buffer, place = rest[start], start
        least = known[buffer, LOW]
        while place > 0 and known[rest[place - 1], LOW] > least:
            rest[place] = rest[place - 1]
            place -= 1
        rest[place] = buffer


@compiled
def _sweep(
    buffers: Buffers,
    rest: np.ndarray,
    known: np.ndarray,
    moments: np.ndarray,
    level: np.ndarray,
    ceiling: int,
    begin: int,
    end: int,
) -> None:
    """Finds for each moment how high the rest reaches at least, and which buffers may be the lowest.

    Each moment is a machine with jobs that are released at their least offsets. Taken in that order, they end first.
    """
    for moment in range(begin, end):
        moments[moment, TOP], moments[moment, TOPMOST], moments[moment, SECOND] = INFINITE, -1, INFINITE
        moments[moment, NUM_FIRST], level[moment] = 0, 0
    for place in range(len(rest)):
        buffer = rest[place]
        least, size = known[buffer, LOW], buffers.size[buffer]
        top = least + size
        for moment in range(max(begin, buffers.begin[buffer]), min(end, buffers.end[buffer])):
            if least <= ceiling - moments[moment, NEED]:
                moments[moment, NUM_FIRST] += 1
                moments[moment, FIRST] = buffer
            if top < moments[moment, TOP]:
                moments[moment, SECOND] = moments[moment, TOP]
                moments[moment, TOP], moments[moment, TOPMOST] = top, buffer
            elif top < moments[moment, SECOND]:
                moments[moment, SECOND] = top
            level[moment] = max(level[moment], least) + size


@compiled
def _raise(
    buffers: Buffers,
    rest: np.ndarray,
    known: np.ndarray,
    moments: np.ndarray,
    weight: np.ndarray,
    ceiling: int,
    begin: int,
    end: int,
) -> tuple[int, int]:
    """Rules out offsets of the buffers that are live in a range of moments.

    Returns:
        The range of moments of which something has changed, empty if nothing has; (INFINITE, INFINITE) if a buffer has
        no offset left.
    """
    changed_begin, changed_end = INFINITE - 1, -1
    for place in range(len(rest)):
        buffer = rest[place]
        first, last = buffers.begin[buffer], buffers.end[buffer]
        if last <= begin or first >= end:
            continue
        least = _least(buffers, known, moments, buffer, ceiling)
        if least > known[buffer, LOW]:
            known[buffer, LOW] = least
            changed_begin, changed_end = min(changed_begin, int(first)), max(changed_end, int(last))
        if least > known[buffer, HIGH]:
            for moment in range(first, last):
                weight[moment] += 1.0 / (last - first)
            return INFINITE, INFINITE
    return changed_begin, changed_end


@compiled
def _least(buffers: Buffers, known: np.ndarray, moments: np.ndarray, buffer: int, ceiling: int) -> int:
    """Returns the least offset that a buffer has left; sets ABOVE, and HIGH if it has to be the lowest somewhere.

    At a moment the lowest buffer of the rest leaves room for all others. If only one can, the others are above it.
    """
    least, above, high = known[buffer, LOW], INFINITE, known[buffer, HIGH]
    for moment in range(buffers.begin[buffer], buffers.end[buffer]):
        end = moments[moment, SECOND] if moments[moment, TOPMOST] == buffer else moments[moment, TOP]
        above = min(above, end)
        if moments[moment, NUM_FIRST] == 1:
            first = moments[moment, FIRST]
            if first == buffer:
                high = min(high, ceiling - moments[moment, NEED])
            else:
                least = max(least, known[first, LOW] + buffers.size[first])
    above, least = aligned(above, buffers.alignment[buffer]), aligned(least, buffers.alignment[buffer])
    known[buffer, HIGH], known[buffer, ABOVE] = high, above
    return max(least, above) if least > known[buffer, FLOOR] else least  # then it stands on another one
