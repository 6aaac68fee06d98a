"""Which buffer is placed next: one at its floor under which no other one of the rest fits."""

from __future__ import annotations

import numpy as np

from ...compiled import compiled
from .state import ABOVE, BEGIN, CEILING, COUNT, END, FLOOR, HIGH, LOW, NEED, NUM_FIRST, Buffers, State

__all__ = ["choose"]


@compiled
def choose(buffers: Buffers, state: State, depth: int, key: np.ndarray, is_urgent: bool, pull: float) -> int:
    """Returns the buffer to place in a frame that was propagated; the one of those with the least end always can be.

    Args:
        buffers: All buffers.
        state: Its scratch is overwritten.
        depth: The frame.
        key: [buffers], of those that can be placed equally low the one with the largest key is taken.
        is_urgent: Whether to look only at the moment whose lowest buffer has to be placed lowest; else the lowest of
            all buffers is taken.
        pull: How much lower a moment counts for each failure there.
    """
    rest, known = state.rest[depth, : state.frame[depth, COUNT]], state.known[depth]
    moment = -1
    if is_urgent:
        begin, end = state.frame[depth, BEGIN], state.frame[depth, END]
        moment = _urgent_moment(
            buffers,
            rest,
            known,
            state.moment[depth],
            state.level,
            state.weight,
            state.frame[depth, CEILING],
            begin,
            end,
            pull,
        )
    best = -1
    for place in range(len(rest)):
        buffer = rest[place]
        if best >= 0 and known[buffer, LOW] > known[best, LOW]:
            break  # they are sorted
        is_live = moment < 0 or (buffers.begin[buffer] <= moment and moment < buffers.end[buffer])
        if is_live and known[buffer, LOW] == known[buffer, FLOOR] and known[buffer, LOW] < known[buffer, ABOVE]:
            if known[buffer, HIGH] < known[buffer, ABOVE]:
                return buffer  # there is no other offset left
            if best < 0 or key[buffer] > key[best]:
                best = buffer
    return best


@compiled
def _urgent_moment(
    buffers: Buffers,
    rest: np.ndarray,
    known: np.ndarray,
    moments: np.ndarray,
    is_open: np.ndarray,
    weight: np.ndarray,
    ceiling: int,
    begin: int,
    end: int,
    pull: float,
) -> int:
    """Returns the moment at which a buffer can be placed and the lowest one has to be placed lowest."""
    for moment in range(begin, end):
        is_open[moment] = 0
    for place in range(len(rest)):
        buffer = rest[place]
        if known[buffer, LOW] == known[buffer, FLOOR] and known[buffer, LOW] < known[buffer, ABOVE]:
            for moment in range(buffers.begin[buffer], buffers.end[buffer]):
                is_open[moment] = 1
    best, least = -1, np.inf
    for moment in range(begin, end):
        latest = ceiling - moments[moment, NEED]
        value = latest + 0.001 * moments[moment, NUM_FIRST] - pull * weight[moment]
        if is_open[moment] != 0 and value < least:
            best, least = moment, value
    return best
