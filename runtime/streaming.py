"""Copies of bytes that go past the processor's caches.

A store to memory that no cache has reads the line first, then writes it: three bytes cross the memory bus for each that
is copied, not two. The C library's copy avoids that only where a single call copies more than most of the last cache
could hold, and a chunk of a transfer is never that large. What is copied here isn't read again soon either, and would
only take the place of what a step computes with meanwhile.

A thread reads four parts of a piece in turns: the processor fetches ahead for each of them, and one alone waits for
memory a third of the time.

However many pieces there are, they are copied by one call: a thread that comes back to Python after each of them waits
there for whoever else runs in it. So threads that copy together agree on who copies what without Python, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Int64
from llvmlite import ir
from numba import types

from ..compiler.compiled import compiled, instruction

__all__ = ["Piece", "StreamedCopy"]

_LINE = 64  # bytes, of a cache
_NUM_STREAMS = 4
_VECTOR = ir.VectorType(ir.IntType(64), _LINE // 8)


Piece: TypeAlias = tuple[np.ndarray, np.ndarray, int, int]


class StreamedCopy:
    """A copy that threads make together: each takes the first strip that nobody has taken, and then the next.

    Args:
        strips: The pieces of each: destination, source, and which of their bytes (half-open); both contiguous, of the
            same size. No piece overlaps with another.
    """

    def __init__(self, strips: Sequence[Sequence[Piece]]) -> None:
        self._memory = strips  # is not freed meanwhile
        places = [
            (_address(destination) + begin, _address(source) + begin, end - begin)
            for pieces in strips
            for destination, source, begin, end in pieces
        ]
        self._places: Int64[np.ndarray, "pieces 3"] = np.array(places, np.int64).reshape(-1, 3)
        self._begins: Int64[np.ndarray, " strips+1"] = np.cumsum([0, *map(len, strips)], dtype=np.int64)
        self._num_taken: Int64[np.ndarray, " 1"] = np.zeros(1, np.int64)  # or more than there are
        self._is_copied: Bool[np.ndarray, " strips"] = np.zeros(len(strips), bool)

    def run(self) -> None:
        """Copies strips until none is left to take, while other threads run."""
        _stream(self._places, self._begins, self._num_taken, self._is_copied, len(self._is_copied))

    def take(self) -> bool:
        """Copies one strip, while other threads run; returns whether one was left."""
        return _stream(self._places, self._begins, self._num_taken, self._is_copied, 1) > 0

    def is_copied(self, strip: int) -> bool:
        """Returns whether all bytes of a strip have arrived."""
        return bool(self._is_copied[strip])

    def stop(self) -> None:
        """Leaves none to take; those that are taken will be copied."""
        self._num_taken[0] = len(self._is_copied)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@instruction
def _add_one(context: Any, counter: Any) -> Any:
    """(int64): adds one to the number at an address, whoever else does; returns what it was."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, given: Any) -> Any:
        number = ir.IntType(64)
        return builder.atomic_rmw("add", builder.inttoptr(given[0], number.as_pointer()), number(1), "seq_cst")

    return types.int64(types.int64), generate


@instruction
def _move_line(context: Any, destination: Any, source: Any) -> Any:
    """(int64, int64): moves a line, the destination aligned."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, given: Any) -> Any:
        to, of = (builder.inttoptr(address, _VECTOR.as_pointer()) for address in given)
        line: Any = builder.load(of)
        line.align = 1
        stored: Any = builder.store(line, to)
        stored.align = _LINE
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@instruction
def _move_byte(context: Any, destination: Any, source: Any) -> Any:
    """(int64, int64): moves a byte."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, given: Any) -> Any:
        to, of = (builder.inttoptr(address, ir.IntType(8).as_pointer()) for address in given)
        builder.store(builder.load(of), to)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@instruction
def _fence(context: Any) -> Any:
    """(): lets other threads see what has been moved."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, given: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def _stream(
    places: Int64[np.ndarray, "pieces 3"],
    begins: Int64[np.ndarray, " strips+1"],
    num_taken: Int64[np.ndarray, " 1"],
    is_copied: Bool[np.ndarray, " strips"],
    most: int,
) -> int:
    for number in range(most):
        strip = _add_one(num_taken.ctypes.data)
        if strip >= len(is_copied):
            return number
        for piece in range(begins[strip], begins[strip + 1]):
            destination, source, num_bytes = places[piece]
            _move(destination, source, num_bytes)
        _fence()
        is_copied[strip] = True
    return most


@compiled
def _move(destination: int, source: int, num_bytes: int) -> None:
    begin = min(-destination % _LINE, num_bytes)
    end = begin + (num_bytes - begin) // _LINE * _LINE
    part = (end - begin) // (_NUM_STREAMS * _LINE) * _LINE
    for byte in range(begin):
        _move_byte(destination + byte, source + byte)
    for first in range(begin, begin + part, _LINE):
        for stream in range(_NUM_STREAMS):
            line = first + stream * part
            _move_line(destination + line, source + line)
    for line in range(begin + _NUM_STREAMS * part, end, _LINE):
        _move_line(destination + line, source + line)
    for byte in range(end, num_bytes):
        _move_byte(destination + byte, source + byte)
