"""Copies of bytes that go past the processor's caches.

A store to memory that no cache has reads the line first, then writes it: three bytes cross the memory bus for each that
is copied, not two. The C library's copy avoids that only where a single call copies more than most of the last cache
could hold, and a chunk of a transfer is never that large. What is copied here isn't read again soon either, and would
only take the place of what a step computes with meanwhile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ..compiler.compiled import compiled, instruction

__all__ = ["copy_bytes"]

_LINE = 64  # bytes, of a cache
_LEAST_BYTES = 1 << 16  # below, it is not worth it
_VECTOR = ir.VectorType(ir.IntType(64), _LINE // 8)


def copy_bytes(destination: np.ndarray, source: np.ndarray) -> None:
    """Copies bytes while other threads run.

    Args:
        destination: Of u8, contiguous.
        source: As many; they do not overlap.
    """
    num_bytes = len(source)
    if num_bytes < _LEAST_BYTES:
        destination[:] = source
        return
    begin = -destination.ctypes.data % _LINE
    num_lines = (num_bytes - begin) // _LINE
    end = begin + num_lines * _LINE
    destination[:begin] = source[:begin]
    _stream(destination.ctypes.data + begin, source.ctypes.data + begin, num_lines)
    destination[end:] = source[end:]


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
def _fence(context: Any) -> Any:
    """(): lets other threads see what has been moved."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, given: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def _stream(destination: int, source: int, num_lines: int) -> None:
    for line in range(num_lines):
        _move_line(destination + line * _LINE, source + line * _LINE)
    _fence()
