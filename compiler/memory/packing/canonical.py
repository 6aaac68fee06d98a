"""The exact search: buffers placed one by one as low as they can, and taken back.

Comes in: buffers, and a ceiling. Goes out: offsets below it, or that there are none. After M. Moffitt, "MiniMalloc: A
Lightweight Memory Allocator for Hardware-Accelerated Machine Learning" (ASPLOS 2023), and Giffler and Thompson's
branching for job shops. If there is a packing, there is one in which nothing can be moved down. So a buffer that is at
its floor and has no other one under it is either placed there, or stands on another one: that is the branch. What
follows from it is in `propagate.py`.

The rest is taken apart into components that have no moment in common; if one of them has no packing, the others are
not tried again. In a component, a buffer that is live all the time can as well be on top, where it lowers the ceiling.
Buffers that are alike are refused together. `verify/packing.py` checks offsets; that there are none is checked in
tests, by trying all orders of few buffers.
"""

from __future__ import annotations

import numpy as np

from ...compiled import compiled
from .choose import choose
from .propagate import aligned, propagate
from .split import split
from .state import (
    ABOVE,
    BEGIN,
    CEILING,
    CELLS,
    CHANGED,
    CHANGED_END,
    CHOSEN,
    COUNT,
    END,
    FLOOR,
    HIGH,
    LOW,
    NEED,
    NEXT,
    PARENT,
    PENDING,
    RAISED,
    REMOVED,
    Buffers,
    State,
)

__all__ = ["EXHAUSTED", "FOUND", "STOPPED", "search"]

FOUND, EXHAUSTED, STOPPED = 1, 0, -1
_STOP_EVERY = 64  # nodes between two looks at whether to stop


@compiled
def search(
    buffers: Buffers,
    state: State,
    ceiling: int,
    key: np.ndarray,
    is_urgent: bool,
    pull: float,
    most_nodes: int,
    stop: np.ndarray,
) -> int:
    """Searches a packing below the ceiling.

    Args:
        buffers: At least one.
        state: Of as many buffers and moments. Its `offset` is the packing that was found, its `weight` goes on.
        ceiling: In units.
        key: See `choose`.
        is_urgent: See `choose`.
        pull: See `choose`.
        most_nodes: Nodes after which to give up.
        stop: [1], not 0 to give up.

    Returns:
        FOUND, EXHAUSTED (there is none) or STOPPED.
    """
    state.num_nodes[0] = 0
    depth = int(state.num_nodes[0])  # no literal, for which everything would be compiled once more
    _begin(buffers, state, depth, ceiling)
    while True:
        if split(buffers, state, depth):
            if state.frame[depth, PENDING] < 0:
                return FOUND
            depth += 1
            _open(buffers, state, depth)
        else:
            depth -= 1
            if depth < 0:
                return EXHAUSTED
            _refuse(buffers, state, depth)
        while not propagate(buffers, state, depth):
            depth = state.frame[depth, PARENT]
            if depth < 0:
                return EXHAUSTED
            _refuse(buffers, state, depth)
        state.num_nodes[0] += 1
        if state.num_nodes[0] > most_nodes or (state.num_nodes[0] % _STOP_EVERY == 0 and stop[0] != 0):
            return STOPPED
        state.frame[depth, CHOSEN] = choose(buffers, state, depth, key, is_urgent, pull)
        _place(buffers, state, depth)
        depth += 1


@compiled
def _begin(buffers: Buffers, state: State, depth: int, ceiling: int) -> None:
    """Makes the first frame, which is one after a decision."""
    rest, known, moments = state.rest[depth], state.known[depth], state.moment[depth]
    for moment in range(len(moments)):
        moments[moment, NEED] = 0
    for buffer in range(len(buffers.size)):
        rest[buffer] = buffer
        known[buffer, LOW], known[buffer, FLOOR], known[buffer, HIGH] = 0, 0, ceiling - buffers.size[buffer]
        for moment in range(buffers.begin[buffer], buffers.end[buffer]):
            moments[moment, NEED] += buffers.size[buffer]
    frame = state.frame[depth]
    frame[BEGIN], frame[END], frame[CEILING], frame[PARENT] = 0, len(moments), ceiling, -1
    frame[COUNT], frame[PENDING], frame[CELLS], frame[REMOVED] = len(buffers.size), -1, 0, 1


@compiled
def _open(buffers: Buffers, state: State, depth: int) -> None:
    """Makes the frame of the next decision, in the component that is pending first."""
    frame, cell = state.frame[depth], state.cell[state.frame[depth - 1, PENDING]]
    for field in (BEGIN, END, CEILING, PARENT):
        frame[field] = cell[field]
    frame[PENDING], frame[CELLS] = cell[NEXT], state.frame[depth - 1, CELLS]
    source, count = cell[PARENT] + 1, 0  # the frame after the decision that split it off
    rest, known, old = state.rest[depth], state.known[depth], state.known[source]
    for place in range(state.frame[source, COUNT]):
        buffer = state.rest[source, place]
        if buffer >= 0 and frame[BEGIN] <= buffers.begin[buffer] and buffers.end[buffer] <= frame[END]:
            rest[count] = buffer
            for field in range(4):
                known[buffer, field] = old[buffer, field]
            known[buffer, HIGH] = min(known[buffer, HIGH], frame[CEILING] - buffers.size[buffer])
            count += 1
    frame[COUNT] = count
    _copy_moments(state.moment[source], state.moment[depth], frame[BEGIN], frame[END])
    frame[CHANGED], frame[CHANGED_END] = frame[BEGIN], frame[END]
    if state.frame[source, REMOVED] != 0:
        return
    # Only where something is live together with the buffer that was placed has anything changed.
    placed = state.frame[source - 1, CHOSEN]
    begin, end = max(buffers.begin[placed], frame[BEGIN]), min(buffers.end[placed], frame[END])
    for place in range(count):
        buffer = rest[place]
        if buffers.begin[buffer] < buffers.end[placed] and buffers.begin[placed] < buffers.end[buffer]:
            begin, end = min(begin, buffers.begin[buffer]), max(end, buffers.end[buffer])
    frame[CHANGED], frame[CHANGED_END] = begin, end


@compiled
def _place(buffers: Buffers, state: State, depth: int) -> None:
    """Makes the frame after the decision to place the chosen buffer at its floor."""
    frame, after, chosen = state.frame[depth], state.frame[depth + 1], state.frame[depth, CHOSEN]
    old, known, rest, count = state.known[depth], state.known[depth + 1], state.rest[depth + 1], 0
    state.offset[chosen] = old[chosen, LOW]
    end = old[chosen, LOW] + buffers.size[chosen]
    frame[RAISED] = old[chosen, ABOVE]
    for place in range(frame[COUNT]):
        buffer = state.rest[depth, place]
        if buffer == chosen:
            continue
        rest[count] = buffer
        count += 1
        for field in range(4):
            known[buffer, field] = old[buffer, field]
        if buffers.begin[buffer] < buffers.end[chosen] and buffers.begin[chosen] < buffers.end[buffer]:
            least = aligned(end, int(buffers.alignment[buffer]))
            known[buffer, FLOOR] = max(known[buffer, FLOOR], least)
            known[buffer, LOW] = max(known[buffer, LOW], least)
    after[BEGIN], after[END], after[CEILING], after[PARENT] = frame[BEGIN], frame[END], frame[CEILING], depth
    after[COUNT], after[PENDING], after[CELLS], after[REMOVED] = count, frame[PENDING], frame[CELLS], 0
    moments = state.moment[depth + 1]
    _copy_moments(state.moment[depth], moments, frame[BEGIN], frame[END])
    for moment in range(buffers.begin[chosen], buffers.end[chosen]):
        moments[moment, NEED] -= buffers.size[chosen]


@compiled
def _refuse(buffers: Buffers, state: State, depth: int) -> None:
    """Takes the decision of a frame back: the chosen buffer, and those like it, stand on another one."""
    frame, chosen = state.frame[depth], state.frame[depth, CHOSEN]
    for place in range(frame[COUNT]):
        buffer = state.rest[depth, place]
        if buffers.twin[buffer] == buffers.twin[chosen]:
            state.known[depth, buffer, LOW] = max(state.known[depth, buffer, LOW], frame[RAISED])
    frame[CHANGED], frame[CHANGED_END] = buffers.begin[chosen], buffers.end[chosen]


@compiled
def _copy_moments(source: np.ndarray, target: np.ndarray, begin: int, end: int) -> None:
    for moment in range(begin, end):
        for field in range(6):
            target[moment, field] = source[moment, field]
