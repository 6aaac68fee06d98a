"""Copies of bytes that go past the processor's caches.

A store to memory that no cache has reads the line first, then writes it: three bytes cross the memory bus for each that
is copied, not two. The C library's copy avoids that only where a single call copies more than most of the last cache
could hold, and a chunk of a transfer is never that large. What is copied here isn't read again soon either, and would
only take the place of what a step computes with meanwhile.

However many pieces there are, they are copied by one call: a thread that comes back to Python after each of them waits
there for whoever else runs in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64
from llvmlite import ir
from numba import types

from ..compiler.compiled import compiled, instruction

__all__ = ["StreamedCopy"]

_LINE = 64  # bytes, of a cache
_VECTOR = ir.VectorType(ir.IntType(64), _LINE // 8)


class StreamedCopy:
    """A copy that is ready to be made.

    Args:
        pieces: Destination and source of each: of u8, contiguous, as many bytes; they do not overlap.
    """

    def __init__(self, pieces: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self._memory = pieces  # is not freed meanwhile
        places = [(_address(destination), _address(source), len(source)) for destination, source in pieces]
        self._places: Int64[np.ndarray, "pieces 3"] = np.array(places, np.int64).reshape(-1, 3)

    def run(self) -> None:
        """Copies all pieces, while other threads run."""
        _stream(self._places)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


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
def _stream(places: Int64[np.ndarray, "pieces 3"]) -> None:
    for piece in range(len(places)):
        destination, source, num_bytes = places[piece]
        begin = min(-destination % _LINE, num_bytes)
        end = begin + (num_bytes - begin) // _LINE * _LINE
        for byte in range(begin):
            _move_byte(destination + byte, source + byte)
        for line in range(begin, end, _LINE):
            _move_line(destination + line, source + line)
        for byte in range(end, num_bytes):
            _move_byte(destination + byte, source + byte)
    _fence()
