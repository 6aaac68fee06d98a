"""The verifier of packings: offsets held against the definition, pair by pair.

Two buffers that are live at the same time have no address in common. At a time only those are live that overlap it, so
that going through the times in order, with what is live sorted by offset, each pair of neighbours is looked at.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

from ...errors import VerificationError
from ..memory.packing.problem import Buffer

__all__ = ["verify_load", "verify_packing"]


def verify_packing(
    buffers: Sequence[Buffer], offsets: Mapping[str, int], height: int, capacity: int | None = None
) -> None:
    """Checks that buffers lie where they may, and that the highest one ends at the height.

    Raises:
        VerificationError: which buffer lies where it may not.
    """
    if offsets.keys() != {buffer.id for buffer in buffers}:
        raise VerificationError(f"there are {len(offsets)} offsets of {len(buffers)} buffers, or of others than these")
    for buffer in buffers:
        offset = offsets[buffer.id]
        if offset < 0 or offset % buffer.alignment:
            raise VerificationError(f"buffer {buffer.id!r} is at {offset}; its alignment is {buffer.alignment}")
    highest = max((offsets[buffer.id] + buffer.size for buffer in buffers if buffer.size), default=0)
    if highest != height:
        raise VerificationError(f"the highest buffer ends at {highest}, the height is said to be {height}")
    if capacity is not None and height > capacity:
        raise VerificationError(f"the height is {height}, the capacity {capacity}")
    _verify_apart([buffer for buffer in buffers if buffer.size], offsets)


def _verify_apart(buffers: Sequence[Buffer], offsets: Mapping[str, int]) -> None:
    """Goes through the times: at each, what ends goes before what begins comes."""
    events = [(buffer.upper, 0, number) for number, buffer in enumerate(buffers)]
    events += [(buffer.lower, 1, number) for number, buffer in enumerate(buffers)]
    live: list[tuple[int, int, int]] = []  # (offset, end, number) of what is live, apart from each other
    for time, is_begin, number in sorted(events):
        buffer = buffers[number]
        span = (offsets[buffer.id], offsets[buffer.id] + buffer.size, number)
        if not is_begin:
            del live[bisect_left(live, span)]
            continue
        place = bisect_left(live, span)
        for other in live[max(place - 1, 0) : place + 1]:
            if other[0] < span[1] and span[0] < other[1]:
                pair = f"buffers {buffer.id!r} at {span[0]} and {buffers[other[2]].id!r} at {other[0]}"
                raise VerificationError(f"{pair} overlap at time {time}")
        insort(live, span)


def verify_load(buffers: Sequence[Buffer], time: int, load: int) -> None:
    """Checks that so many bytes are live at a time; no packing is lower.

    Raises:
        VerificationError: how many there are.
    """
    found = sum(buffer.size for buffer in buffers if buffer.lower <= time < buffer.upper)
    if found != load:
        raise VerificationError(f"at time {time} {found} bytes are live, not {load}")
