"""Packing problems for tests and benchmarks: small ones tried in all orders, large ones cut out of a full rectangle."""

from __future__ import annotations

import random
from collections.abc import Sequence

from plait.compiler.memory.packing import Buffer

__all__ = ["cut_rectangle", "least_height"]

_SPIRAL_SHARE = 0.3  # of cuts that are into five around a middle one, which no straight cuts give


def least_height(buffers: Sequence[Buffer]) -> int:
    """Returns the least height of a packing: in the order of their offsets, each buffer is on top of what is under it.

    All orders in which offsets do not fall are tried, so there may be only a few buffers.
    """
    best = sum(buffer.size + buffer.alignment for buffer in buffers)
    offsets: dict[Buffer, int] = {}

    def place(last: int) -> None:
        nonlocal best
        if len(offsets) == len(buffers):
            best = min(best, max(offset + buffer.size for buffer, offset in offsets.items()))
            return
        for buffer in buffers:
            if buffer in offsets:
                continue
            below = [other for other in offsets if other.lower < buffer.upper and buffer.lower < other.upper]
            free = max((offsets[other] + other.size for other in below), default=0)
            offset = -(-free // buffer.alignment) * buffer.alignment
            if offset >= last and offset + buffer.size < best:
                offsets[buffer] = offset
                place(offset)
                del offsets[buffer]

    place(0)
    return best


def cut_rectangle(seed: int, num_buffers: int, width: int, height: int, thinned: float = 0.0) -> list[Buffer]:
    """Returns buffers that a full rectangle was cut into at random, so that a packing of its height exists.

    Args:
        seed: Of the random numbers.
        num_buffers: About as many; fewer if some are taken out.
        width: Times.
        height: Bytes.
        thinned: Share of the buffers that are taken out, shortened or made smaller, which leaves gaps.
    """
    draw = random.Random(seed)
    pieces = [(0, width, 0, height)]
    while len(pieces) < num_buffers:
        areas = [(upper - lower) * (top - bottom) for lower, upper, bottom, top in pieces]
        number = draw.choices(range(len(pieces)), areas)[0]
        pieces[number : number + 1] = _cut(draw, *pieces[number])
    spans = [(lower, upper, top - bottom) for lower, upper, bottom, top in pieces]
    spans = [span for given in spans for span in (_thinned(draw, *given) if draw.random() < thinned else [given])]
    draw.shuffle(spans)
    return [Buffer(str(number), *span) for number, span in enumerate(spans)]


def _cut(draw: random.Random, lower: int, upper: int, bottom: int, top: int) -> list[tuple[int, int, int, int]]:
    width, height = upper - lower, top - bottom
    if width >= 3 and height >= 3 and draw.random() < _SPIRAL_SHARE:
        left, right = sorted(draw.sample(range(lower + 1, upper), 2))
        low, high = sorted(draw.sample(range(bottom + 1, top), 2))
        around = [(lower, right, bottom, low), (right, upper, bottom, high), (left, upper, high, top)]
        return [*around, (lower, left, low, top), (left, right, low, high)]
    if width >= 2 and (height < 2 or draw.random() < 0.5):
        at = draw.randint(lower + 1, upper - 1)
        return [(lower, at, bottom, top), (at, upper, bottom, top)]
    if height < 2:
        return [(lower, upper, bottom, top)]
    at = draw.randint(bottom + 1, top - 1)
    return [(lower, upper, bottom, at), (lower, upper, at, top)]


def _thinned(draw: random.Random, lower: int, upper: int, size: int) -> list[tuple[int, int, int]]:
    kind = draw.random()
    if kind < 0.4:
        return []
    if kind < 0.7:
        at = draw.randint(lower, upper - 1)
        return [(at, upper, size) if draw.random() < 0.5 else (lower, at + 1, size)]
    return [(lower, upper, draw.randint(1, size))]
