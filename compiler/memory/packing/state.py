"""The state of the search: a stack of frames, two for each decision.

The frame of a decision has the buffers of one component that are not placed yet, and what is known of each. The frame
after it has the same once the chosen buffer is placed, and the components into which that splits the rest. A component
is a range of moments such that no buffer of the rest crosses its ends; the next frame opens one that is pending.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "ABOVE",
    "BEGIN",
    "CEILING",
    "CELLS",
    "CHANGED",
    "CHANGED_END",
    "CHOSEN",
    "COUNT",
    "END",
    "FIRST",
    "FLOOR",
    "HIGH",
    "INFINITE",
    "LOW",
    "NEED",
    "NEXT",
    "NUM_FIRST",
    "PARENT",
    "PENDING",
    "RAISED",
    "REMOVED",
    "SECOND",
    "TOP",
    "TOPMOST",
    "Buffers",
    "State",
    "make_state",
    "state_bytes",
]

INFINITE = 2**61
# Fields of a frame; a cell, which is a pending component, has the first four and NEXT in place of COUNT.
BEGIN, END, CEILING, PARENT, COUNT, PENDING, CELLS, CHOSEN, RAISED, REMOVED, CHANGED, CHANGED_END = range(12)
NEXT = COUNT
# What is known of a buffer in a frame: the least offset that it has left, the highest end of what is placed below it,
# the greatest offset that it has left, and the least offset on top of another one of the rest.
LOW, FLOOR, HIGH, ABOVE = range(4)
# What is known of a moment: units of the rest, the least end that one of them can have and which one that is, the least
# end of all others, how many may be the lowest, and one of these.
NEED, TOP, TOPMOST, SECOND, NUM_FIRST, FIRST = range(6)


class Buffers(NamedTuple):
    """Buffers, see `Instance`."""

    begin: np.ndarray  # [buffers]
    end: np.ndarray  # [buffers]
    size: np.ndarray  # [buffers]
    alignment: np.ndarray  # [buffers]
    twin: np.ndarray  # [buffers], the same number for buffers that are alike in all of this
    is_aligned: bool  # whether any alignment is not 1


class State(NamedTuple):
    """What the search writes to."""

    frame: np.ndarray  # [frames, fields]
    cell: np.ndarray  # [cells, fields]
    rest: np.ndarray  # [frames, buffers], those not placed yet, lowest first; -1 is none
    known: np.ndarray  # [frames, buffers, LOW to ABOVE], what is known of each of the rest
    moment: np.ndarray  # [frames, moments, NEED to FIRST], what is known of the rest at each moment
    level: np.ndarray  # [moments], scratch
    weight: np.ndarray  # [moments], how often the search failed there
    offset: np.ndarray  # [buffers], the answer
    num_nodes: np.ndarray  # [1]


def state_bytes(num_buffers: int, num_moments: int) -> int:
    """Returns the bytes of a state."""
    return 8 * (2 * num_buffers + 4) * (5 * num_buffers + 6 * num_moments)


def make_state(num_buffers: int, num_moments: int) -> State:
    """Returns a state for so many buffers and moments."""
    num_frames = 2 * num_buffers + 4

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int64)

    return State(
        frame=zeros(num_frames, 12),
        cell=zeros(8 * (num_buffers + num_moments) + 64, 5),
        rest=zeros(num_frames, num_buffers),
        known=zeros(num_frames, num_buffers, 4),
        moment=zeros(num_frames, num_moments, 6),
        level=zeros(num_moments),
        weight=np.ones(num_moments),
        offset=zeros(num_buffers),
        num_nodes=zeros(1),
    )
