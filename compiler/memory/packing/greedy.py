"""Greedy packing: buffers in some order, each in the lowest gap that holds it.

Comes in: buffers. Goes out: offsets, seldom the best, for any number of buffers: those that are live together with a
buffer are found in a tree over all of them by begin. The order is then improved for a while: of what sticks out on
top something is put earlier.
"""

from __future__ import annotations

import random
from time import monotonic

import numpy as np

from ...compiled import compiled
from .instance import Instance

__all__ = ["pack_greedily"]

_SHARE_MOVED = 0.3  # of an order's length, how far buffers are put forward at most


def pack_greedily(instance: Instance, enough: int, deadline: float) -> np.ndarray:
    """Returns the offsets of the lowest packing found until the deadline, or the first that is low enough.

    Args:
        instance: At least one buffer.
        enough: Height in units at which to stop.
        deadline: Of `time.monotonic`; at least one order is tried, whatever the time.
    """
    tree = _Tree(instance)
    best, lowest, best_order = None, 0, None
    for order in _orders(instance):
        offsets = tree.pack(order)
        height = int((offsets + instance.size).max())
        if best is None or height < lowest:
            best, lowest, best_order = offsets, height, order
        if lowest <= enough or monotonic() > deadline:
            break
    assert best is not None
    assert best_order is not None
    return _improve(instance, tree, best_order, best, enough, deadline)


def _orders(instance: Instance) -> list[np.ndarray]:
    """Orders that are good at different problems, the best ones first."""
    width = (instance.end - instance.begin).astype(float)
    loads = instance.loads
    load = np.maximum.reduceat(np.append(loads, 0), np.stack([instance.begin, instance.end], axis=1).ravel())[::2]
    keys = [
        (-width * instance.size,),
        (-instance.size, -width),
        (-width, -instance.size),
        (-load, -width * instance.size),
        (instance.begin, -instance.size),
    ]
    return [np.lexsort(key[::-1]) for key in keys]


def _improve(
    instance: Instance, tree: _Tree, order: np.ndarray, best: np.ndarray, enough: int, deadline: float
) -> np.ndarray:
    """Puts buffers that end on top earlier in the order, again and again."""
    draw = random.Random(0)
    lowest = int((best + instance.size).max())
    offsets = best
    while lowest > enough and monotonic() < deadline:
        high = np.flatnonzero(offsets + instance.size == lowest)
        place = int(np.flatnonzero(order == draw.choice(high.tolist()))[0])
        to = max(0, place - 1 - int(draw.random() * _SHARE_MOVED * len(order)))
        changed = np.insert(np.delete(order, place), to, order[place])
        tried = tree.pack(changed)
        height = int((tried + instance.size).max())
        if height <= lowest:
            order, offsets = changed, tried
        if height < lowest:
            best, lowest = tried, height
    return best


class _Tree:
    """Buffers by begin, and above them a tree with the latest end of those that are placed."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._order = np.argsort(instance.begin, kind="stable")
        self._begin = instance.begin[self._order]
        self._until = np.searchsorted(self._begin, instance.end)
        self._num_leaves = 1 << max(len(self._order) - 1, 1).bit_length()
        self._place = np.empty_like(self._order)
        self._place[self._order] = np.arange(len(self._order))

    def pack(self, order: np.ndarray) -> np.ndarray:
        """Returns the offsets that buffers get in this order."""
        one, latest = self._instance, np.full(2 * self._num_leaves, -1, np.int64)
        offsets = np.zeros(len(order), np.int64)
        _pack(
            one.begin, one.end, one.size, one.alignment, self._order, self._place, self._until, latest, order, offsets
        )
        return offsets


@compiled
def _pack(
    begin: np.ndarray,
    end: np.ndarray,
    size: np.ndarray,
    alignment: np.ndarray,
    by_begin: np.ndarray,
    place_of: np.ndarray,
    until: np.ndarray,
    latest: np.ndarray,
    order: np.ndarray,
    offsets: np.ndarray,
) -> None:
    """Gives each buffer the lowest offset that is free of those before it in the order."""
    found, stack = np.empty(len(order), np.int64), np.empty(128, np.int64)
    for turn in range(len(order)):
        buffer = order[turn]
        count = _placed_together(int(begin[buffer]), int(until[buffer]), by_begin, latest, found, stack)
        _sort_by_offset(found, count, offsets)
        free = 0
        for place in range(count):
            other = found[place]
            if offsets[other] >= free + size[buffer]:
                break
            after = (offsets[other] + size[other] + alignment[buffer] - 1) // alignment[buffer] * alignment[buffer]
            free = max(free, after)
        offsets[buffer] = free
        node = place_of[buffer] + len(latest) // 2
        while node > 0 and latest[node] < end[buffer]:
            latest[node] = end[buffer]
            node //= 2


@compiled
def _placed_together(
    begin: int, until: int, by_begin: np.ndarray, latest: np.ndarray, found: np.ndarray, stack: np.ndarray
) -> int:
    """Finds what is placed, begins before `until` in the tree and ends after `begin`; returns how many there are."""
    num_leaves = len(latest) // 2
    count, height, stack[0] = 0, 1, 1
    while height > 0:
        height -= 1
        node = stack[height]
        if latest[node] <= begin:
            continue
        if node >= num_leaves:
            found[count] = by_begin[node - num_leaves]
            count += 1
            continue
        # The first leaf under the right half tells whether that half is before `until`.
        right = 2 * node + 1
        first = right
        while first < num_leaves:
            first *= 2
        if first - num_leaves < until:
            stack[height] = right
            height += 1
        stack[height] = 2 * node
        height += 1
    return count


@compiled
def _sort_by_offset(found: np.ndarray, count: int, offsets: np.ndarray) -> None:
    """Sorts buffers by offset, with falling gaps (Shell's sort)."""
    gap = count // 2
    while gap > 0:
        for start in range(gap, count):
            buffer, place = found[start], start
            while place >= gap and offsets[found[place - gap]] > offsets[buffer]:
                found[place] = found[place - gap]
                place -= gap
            found[place] = buffer
        gap = gap // 2 if gap != 2 else 1
