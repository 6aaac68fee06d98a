"""Products of a few rows with a bf16 weight: each line of the weight is read once, and meets all rows in registers.

The lines of sixteen outputs are turned so that a register holds one pair of values of each. Then every output is summed
pair after pair, in its own lane, as the instruction for pairs of bf16 values sums them (VDPBF16PS: the second product
first, each rounded). Whatever else is computed beside it, a row comes out bit for bit the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils

from ..compiled import instruction
from .memory import record_reader
from .threads import SHARED_FIELDS
from .vectors import LANES, VECTOR, WORDS, constant, fetch_ahead, intrinsic, load_vector, pairs_of, splat, store_vector

__all__ = ["JOB", "OUTPUTS", "VALUES", "job_at", "multiply_unit"]

VALUES = 32  # of a line
OUTPUTS = LANES  # that are computed at once
_LINE_BYTES = 2 * VALUES
_WORD, _INT32 = ir.IntType(64), ir.IntType(32)

binding.initialize_native_asmparser()  # for the instruction for pairs, written as such

JOB = np.dtype(
    [
        *SHARED_FIELDS,
        *((name, "i8") for name in ("x", "weight", "out", "rows", "in_size", "out_size", "unit_outputs")),
    ]
)
job_at = record_reader(JOB)


def _by_quarters(*chosen: int) -> ir.Constant:
    """Returns which lanes to take of two vectors: in each quarter of the result the same of the same two quarters."""
    return ir.Constant(
        WORDS, [lane % 4 + quarter + lane // 4 * LANES for quarter in range(0, LANES, 4) for lane in chosen]
    )


def _of_quarters(*chosen: int) -> ir.Constant:
    """Returns which lanes to take of two vectors: whole quarters, of eight."""
    return ir.Constant(WORDS, [4 * quarter + lane for quarter in chosen for lane in range(4)])


def _turned(builder: ir.IRBuilder, lines: list[Any]) -> list[Any]:
    """Transposes sixteen vectors of sixteen words: first four by four within quarters, then the quarters."""
    for step, low, high in ((1, (0, 4, 1, 5), (2, 6, 3, 7)), (2, (0, 1, 4, 5), (2, 3, 6, 7))):
        first_lanes, second_lanes = _by_quarters(*low), _by_quarters(*high)
        for index in (i for i in range(LANES) if i & step == 0):
            pair = lines[index], lines[index + step]
            lines[index], lines[index + step] = (
                builder.shuffle_vector(*pair, each) for each in (first_lanes, second_lanes)
            )
    # Of four lines, those of step 1 are now in the order 0, 2, 1, 3.
    lines = [lines[index & ~3 | (0, 2, 1, 3)[index & 3]] for index in range(LANES)]
    for step in (4, 8):
        even, odd = _of_quarters(0, 2, 4, 6), _of_quarters(1, 3, 5, 7)
        for index in (i for i in range(LANES) if i & step == 0):
            pair = lines[index], lines[index + step]
            lines[index], lines[index + step] = (builder.shuffle_vector(*pair, each) for each in (even, odd))
    return lines


def _added_pairs(builder: ir.IRBuilder, total: Any, pairs: Any, factors: Any) -> Any:
    """Adds to each lane the products of two bf16 values with two others, the second first."""
    if binding.get_host_cpu_features().get("avx512bf16"):
        kind = ir.FunctionType(VECTOR, [VECTOR, WORDS, WORDS])
        return builder.call(ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v"), [total, pairs, factors])
    (first, second), (first_factor, second_factor) = (pairs_of(builder, each) for each in (pairs, factors))
    total = intrinsic(builder, "fma", second, second_factor, total)
    return intrinsic(builder, "fma", first, first_factor, total)


def _product(rows: int) -> Any:
    """Makes a function that multiplies so many rows with sixteen lines of outputs.

    It takes addresses and distances in bytes, all int64: `x`, `weight`, `row_bytes` (of either, from a row to the
    next), `num_lines` (of a row), `out`, `out_row`.
    """

    def accumulate(builder: ir.IRBuilder, given: Any) -> None:
        x, weight, row_bytes, num_lines, out, out_row = given

        def at(base: Any, distance: Any, number: int, offset: int = 0) -> Any:
            moved = builder.add(base, builder.mul(distance, ir.Constant(_WORD, number)))
            return builder.add(moved, ir.Constant(_WORD, offset))

        sums = [cgutils.alloca_once(builder, VECTOR) for _ in range(rows)]
        for total in sums:
            builder.store(constant(0.0), total)
        with cgutils.for_range(builder, num_lines) as loop:
            line = builder.mul(loop.index, ir.Constant(_WORD, _LINE_BYTES))
            below, across = builder.add(weight, line), builder.add(x, line)
            lines = [load_vector(builder, at(below, row_bytes, output), WORDS) for output in range(LANES)]
            for output in range(LANES):
                fetch_ahead(builder, at(below, row_bytes, LANES + output))
            for pair, pairs in enumerate(_turned(builder, lines)):
                for row, total in enumerate(sums):
                    address = builder.inttoptr(at(across, row_bytes, row, 4 * pair), _INT32.as_pointer())
                    factors = splat(builder, builder.load(address), WORDS)
                    builder.store(_added_pairs(builder, builder.load(total), pairs, factors), total)
        for row, total in enumerate(sums):
            store_vector(builder, at(out, out_row, row), builder.load(total))

    @instruction
    def product(context, x, weight, row_bytes, num_lines, out, out_row):
        def generate(context, builder, _, given):
            accumulate(builder, given)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return product


_one, _two, _four, _eight = (_product(rows) for rows in (1, 2, 4, 8))


@njit(nogil=True)
def multiply_unit(job_address, number, _):
    """Computes some outputs of all rows."""
    job = job_at(job_address)
    row_bytes, num_lines, out_row = 2 * job.in_size, job.in_size // VALUES, 4 * job.out_size
    first = number * job.unit_outputs
    for output in range(first, min(first + job.unit_outputs, job.out_size), OUTPUTS):
        weight, row = job.weight + output * row_bytes, 0
        while row < job.rows:
            x, out, left = job.x + row * row_bytes, job.out + row * out_row + 4 * output, job.rows - row
            if left >= 8:
                _eight(x, weight, row_bytes, num_lines, out, out_row)
                row += 8
            elif left >= 4:
                _four(x, weight, row_bytes, num_lines, out, out_row)
                row += 4
            elif left >= 2:
                _two(x, weight, row_bytes, num_lines, out, out_row)
                row += 2
            else:
                _one(x, weight, row_bytes, num_lines, out, out_row)
                row += 1
