"""The rest taken apart into components that have no moment in common."""

from __future__ import annotations

from ...compiled import compiled
from .state import BEGIN, CEILING, CELLS, COUNT, END, LOW, NEED, NEXT, PARENT, PENDING, REMOVED, Buffers, State

__all__ = ["split"]


@compiled
def split(buffers: Buffers, state: State, depth: int) -> bool:
    """Takes the rest of a frame apart, and puts on top what is live all the time.

    Args:
        buffers: All buffers.
        state: Components are added to the pending ones of the frame; `offset` is set of what is put on top.
        depth: The frame, one after a decision, with the range and the ceiling of the component that this was in.

    Returns:
        Whether all that was put on top is above what is placed already.
    """
    frame = state.frame[depth]
    todo = frame[CELLS]
    count = todo + 1
    _fill(state, int(todo), int(frame[BEGIN]), int(frame[END]), int(frame[CEILING]))
    while todo < count:
        cell = state.cell[todo]
        ceiling = _put_on_top(buffers, state, depth, cell[BEGIN], cell[END], cell[CEILING])
        if ceiling < 0:
            return False
        more = _cut(buffers, state, depth, cell[BEGIN], cell[END], ceiling, count)
        is_whole = more == count + 1 and ceiling == cell[CEILING]
        if is_whole and state.cell[count, BEGIN] == cell[BEGIN] and state.cell[count, END] == cell[END]:
            cell[PARENT], cell[NEXT] = frame[PARENT], frame[PENDING]
            frame[PENDING] = todo
        else:
            count = more
        todo += 1
    frame[CELLS] = count
    return True


@compiled
def _fill(state: State, cell: int, begin: int, end: int, ceiling: int) -> None:
    state.cell[cell, BEGIN], state.cell[cell, END], state.cell[cell, CEILING] = begin, end, ceiling


@compiled
def _put_on_top(buffers: Buffers, state: State, depth: int, begin: int, end: int, ceiling: int) -> int:
    """Puts what is live in all of a range of moments on top, and returns the ceiling that is left; -1 if none is.

    What was above such a buffer comes down by its size, so this is no loss, but for alignments.
    """
    for place in range(state.frame[depth, COUNT]):
        buffer = state.rest[depth, place]
        if buffers.is_aligned or buffer < 0 or buffers.begin[buffer] != begin or buffers.end[buffer] != end:
            continue
        ceiling -= int(buffers.size[buffer])
        if ceiling < state.known[depth, buffer, LOW]:
            return -1
        state.offset[buffer] = ceiling
        for moment in range(begin, end):
            state.moment[depth, moment, NEED] -= buffers.size[buffer]
        state.rest[depth, place] = -1
        state.frame[depth, REMOVED] = 1
    return ceiling


@compiled
def _cut(buffers: Buffers, state: State, depth: int, begin: int, end: int, ceiling: int, count: int) -> int:
    """Writes the components of a range of moments from cell `count` on, and returns the cell behind the last one."""
    reach = state.level
    for moment in range(begin, end):
        reach[moment] = -1
    for place in range(state.frame[depth, COUNT]):
        buffer = state.rest[depth, place]
        if buffer >= 0 and begin <= buffers.begin[buffer] and buffers.end[buffer] <= end:
            reach[buffers.begin[buffer]] = max(reach[buffers.begin[buffer]], buffers.end[buffer])
    start, stop = end, begin  # of the component at hand; there is none while it starts at the end
    for moment in range(begin, end):
        if start < end and moment >= stop:
            _fill(state, count, start, stop, ceiling)
            count, start = count + 1, end
        if reach[moment] >= 0:
            start, stop = min(start, moment), max(stop, reach[moment])
    if start < end:
        _fill(state, count, start, stop, ceiling)
        count += 1
    return count
