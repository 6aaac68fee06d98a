"""Products of bf16 values on the tile registers (AMX) that some x86-64 processors have, from code that numba compiles.

A tile is 16 rows of 64 bytes. The left operand of a product has a row of values in each; the right one has pairs of
rows, [pairs, columns, 2]; results are f32. A thread configures the registers before it uses them, and releases them.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils

from ..compiled import instruction

__all__ = ["TILE_ROWS", "TILE_VALUES", "are_permitted", "for_context", "for_size", "release", "scores", "weighted_sums"]

TILE_ROWS = 16
TILE_VALUES = 32  # of bf16 in a row
_ROW_BYTES = 64
_NUM_TILES = 8
_LEFT, _RIGHT = 4, 6  # the first tiles of each operand; results are in those before
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # system call, what is asked, and for what

_INT8, _INT64 = ir.IntType(8), ir.IntType(64)
_POINTER = ir.PointerType(_INT8)


@functools.cache
def are_permitted() -> bool:
    """Whether this processor has tiles of bf16, and the kernel lets this process use them: a process has to ask."""
    features = binding.get_host_cpu_features()
    if platform.system() != "Linux" or not (features.get("amx-bf16") and features.get("amx-tile")):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def _configuration(left_bytes: int, right_rows: int) -> bytes:
    """Returns what configures all registers: results in 16 x 16, operands in the sizes given."""
    shapes = [(TILE_ROWS, _ROW_BYTES)] * _LEFT + [(TILE_ROWS, left_bytes)] * 2 + [(right_rows, _ROW_BYTES)] * 2
    data = bytearray(64)
    data[0] = 1  # the palette
    for tile, (rows, row_bytes) in enumerate(shapes):
        data[16 + 2 * tile] = row_bytes
        data[48 + tile] = rows
    return bytes(data)


def _call(builder: ir.IRBuilder, name: str, *operands: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), operands)


def _tile(number: int) -> ir.Constant:
    return ir.Constant(_INT8, number)


def _word(number: int) -> ir.Constant:
    return ir.Constant(_INT64, number)


def _move(builder: ir.IRBuilder, name: str, tile: int, address: Any, row: Any) -> None:
    _call(builder, name, _tile(tile), builder.inttoptr(address, _POINTER), row)


def _configuring(left_bytes: int, right_rows: int) -> Any:
    data = _configuration(left_bytes, right_rows)

    @instruction
    def configure(context):
        def generate(context, builder, _, __):
            _call(builder, "ldtilecfg", builder.bitcast(context.insert_const_bytes(builder.module, data), _POINTER))
            return context.get_dummy_value()

        return types.void(), generate

    return configure


for_size = _configuring(_ROW_BYTES, TILE_ROWS)  # products along the size of a head, 32 values at a time
for_context = _configuring(_ROW_BYTES // 2, TILE_ROWS // 2)  # products along the tokens of a block


@instruction
def release(context):
    """(): gives the registers back."""

    def generate(context, builder, _, __):
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def _multiply(builder: ir.IRBuilder, groups: int) -> None:
    for group in range(groups):
        for column in range(2):
            _call(builder, "tdpbf16ps", *(_tile(each) for each in (2 * group + column, _LEFT + group, _RIGHT + column)))


def _outs(builder: ir.IRBuilder, out: Any, out_row: Any, groups: int) -> list[Any]:
    """Returns the addresses of all results: two side by side for each group of rows."""
    group_bytes = builder.mul(out_row, _word(TILE_ROWS))
    firsts = [builder.add(out, builder.mul(group_bytes, _word(group))) for group in range(groups)]
    return [builder.add(first, _word(_ROW_BYTES * column)) for first in firsts for column in range(2)]


def scores(groups: int) -> Any:
    """Makes a function that multiplies rows of queries with the keys of two blocks.

    It takes addresses and distances in bytes, all int64: `queries`, `query_row`, `first`, `second` (the blocks),
    `steps` (of 32 values of a head), `out`, `out_row`.

    Args:
        groups: Of 16 rows, 1 or 2.
    """

    @instruction
    def product(context, queries, query_row, first, second, steps, out, out_row):
        def generate(context, builder, _, given):
            queries, query_row, first, second, steps, out, out_row = given
            for tile in range(2 * groups):
                _call(builder, "tilezero", _tile(tile))
            with cgutils.for_range(builder, steps) as loop:
                below = builder.mul(loop.index, _word(TILE_ROWS * _ROW_BYTES))
                for column, block in enumerate((first, second)):
                    _move(builder, "tileloadd64", _RIGHT + column, builder.add(block, below), _word(_ROW_BYTES))
                across = builder.add(queries, builder.mul(loop.index, _word(_ROW_BYTES)))
                for group in range(groups):
                    rows = builder.add(across, builder.mul(query_row, _word(TILE_ROWS * group)))
                    _move(builder, "tileloadd64", _LEFT + group, rows, query_row)
                _multiply(builder, groups)
            for tile, address in enumerate(_outs(builder, out, out_row, groups)):
                _move(builder, "tilestored64", tile, address, out_row)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return product


def weighted_sums(groups: int) -> Any:
    """Makes a function that adds the values of blocks, each token's times its weight, to 32 columns of sums.

    It takes addresses and distances in bytes, all int64: `weights`, `weight_row`, `blocks` (of the address of each
    block's values), `offset` (of the columns in a block), `value_row` (of a pair of tokens), `num_blocks`, `out`,
    `out_row`.

    Args:
        groups: Of 16 rows, 1 or 2.
    """

    @instruction
    def product(context, weights, weight_row, blocks, offset, value_row, num_blocks, out, out_row):
        def generate(context, builder, _, given):
            weights, weight_row, blocks, offset, value_row, num_blocks, out, out_row = given
            outs = _outs(builder, out, out_row, groups)
            for tile, address in enumerate(outs):
                _move(builder, "tileloadd64", tile, address, out_row)
            with cgutils.for_range(builder, num_blocks) as loop:
                entry = builder.add(blocks, builder.mul(loop.index, _word(8)))
                block = builder.add(builder.load(builder.inttoptr(entry, _INT64.as_pointer())), offset)
                for column in range(2):
                    values = builder.add(block, _word(_ROW_BYTES * column))
                    _move(builder, "tileloadd64", _RIGHT + column, values, value_row)
                across = builder.add(weights, builder.mul(loop.index, _word(_ROW_BYTES // 2)))
                for group in range(groups):
                    rows = builder.add(across, builder.mul(weight_row, _word(TILE_ROWS * group)))
                    _move(builder, "tileloadd64", _LEFT + group, rows, weight_row)
                _multiply(builder, groups)
            for tile, address in enumerate(outs):
                _move(builder, "tilestored64", tile, address, out_row)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return product
