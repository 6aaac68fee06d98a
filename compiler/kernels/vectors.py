"""Sixteen f32 values as one value of code that numba compiles, and the products that are made of them.

Numba leaves it to LLVM whether a loop becomes vector instructions, and in which order it then sums. Here the vectors
and the order are written down: a row comes out bit for bit the same whatever is computed beside it, on any processor
that rounds as IEEE 754 says (LLVM divides the vectors where its registers are narrower).

An address is an int64. No function here checks one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from ..compiled import instruction

__all__ = [
    "COLUMNS",
    "LANES",
    "VECTOR",
    "WORDS",
    "add",
    "broadcast",
    "constant",
    "divide",
    "exponential",
    "fetch_ahead",
    "first_lane",
    "from_index",
    "greatest_lane",
    "intrinsic",
    "keep_lanes",
    "load",
    "load_bf16",
    "load_vector",
    "maximum",
    "multiply",
    "pairs_of",
    "prefetch",
    "product_of_rows",
    "splat",
    "store",
    "store_bf16",
    "store_vector",
    "subtract",
    "sum_of_lanes",
]

LANES = 16
COLUMNS = 2 * LANES  # of a product
_LEAST_EXPONENT = -87.0  # e to less than this is no normal number, and taken as zero
_MOST_EXPONENT = 88.0

_F32, _INT16, _INT32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)
VECTOR, _BITS16, WORDS = (ir.VectorType(each, LANES) for each in (_F32, _INT16, _INT32))
_UNDEFINED = ir.Constant(VECTOR, ir.Undefined)


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__("f32x16")


_vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, of: Any) -> None:
        super().__init__(manager, of, VECTOR)


def constant(value: float) -> ir.Constant:
    """Returns a vector of one value."""
    return ir.Constant(VECTOR, [value] * LANES)


def splat(builder: ir.IRBuilder, scalar: Any, vector: ir.VectorType = VECTOR) -> Any:
    """Returns a vector with a scalar in all lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(WORDS, [0] * LANES))


def intrinsic(builder: ir.IRBuilder, name: str, *operands: Any) -> Any:
    """Calls an LLVM intrinsic of vectors."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * len(operands))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32"), operands)


def load_vector(builder: ir.IRBuilder, address: Any, kind: ir.Type = VECTOR, *, align: int = 4) -> Any:
    """Returns what is at an address."""
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = align  # pyright: ignore[reportAttributeAccessIssue]
    return loaded


def pairs_of(builder: ir.IRBuilder, words: Any) -> tuple[Any, Any]:
    """Returns sixteen pairs of bf16 values, which are the upper halves of f32 ones: all first ones, all second ones."""
    first = builder.shl(words, ir.Constant(WORDS, [16] * LANES))
    second = builder.and_(words, ir.Constant(WORDS, [-1 << 16] * LANES))
    return builder.bitcast(first, VECTOR), builder.bitcast(second, VECTOR)


def store_vector(builder: ir.IRBuilder, address: Any, vector: Any) -> None:
    """Writes a vector to an address."""
    stored = builder.store(vector, builder.inttoptr(address, VECTOR.as_pointer()))
    stored.align = 4  # pyright: ignore[reportAttributeAccessIssue]


def _reduced(builder: ir.IRBuilder, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combines all lanes by halves."""
    width = LANES // 2
    while width:
        order = ir.Constant(WORDS, [(lane + width) % LANES for lane in range(LANES)])
        vector = combine(vector, builder.shuffle_vector(vector, _UNDEFINED, order))
        width //= 2
    return builder.extract_element(vector, ir.Constant(_INT32, 0))


@instruction
def broadcast(context, scalar):
    """(f32) -> vector: the scalar in each lane."""
    return _vector(types.float32), lambda _, builder, __, given: splat(builder, given[0])


@instruction
def from_index(context, first):
    """(int64) -> vector: first, first + 1, ... as f32."""

    def generate(_, builder, __, given):
        lanes = ir.Constant(WORDS, list(range(LANES)))
        indices = builder.add(splat(builder, builder.trunc(given[0], _INT32), WORDS), lanes)
        return builder.sitofp(indices, VECTOR)

    return _vector(types.int64), generate


@instruction
def load(context, address):
    """(int64) -> vector: sixteen f32 values."""
    return _vector(types.int64), lambda _, builder, __, given: load_vector(builder, given[0])


@instruction
def load_bf16(context, address):
    """(int64) -> vector: sixteen bf16 values, the upper halves of f32 ones."""

    def generate(_, builder, __, given):
        bits = builder.zext(load_vector(builder, given[0], _BITS16, align=2), WORDS)
        return builder.bitcast(builder.shl(bits, ir.Constant(WORDS, [16] * LANES)), VECTOR)

    return _vector(types.int64), generate


@instruction
def store_bf16(context, address, vector):
    """(int64, vector): sixteen values written as bf16, rounded to the nearest, ties to even; none may be NaN."""

    def generate(context, builder, _, given):
        address, vector = given
        bits, sixteen, one = builder.bitcast(vector, WORDS), *(ir.Constant(WORDS, [n] * LANES) for n in (16, 1))
        is_odd = builder.and_(builder.lshr(bits, sixteen), one)
        rounded = builder.add(builder.add(bits, ir.Constant(WORDS, [0x7FFF] * LANES)), is_odd)
        half = builder.trunc(builder.lshr(rounded, sixteen), _BITS16)
        builder.store(half, builder.inttoptr(address, _BITS16.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(types.int64, _vector), generate


@instruction
def store(context, address, vector):
    """(int64, vector): sixteen f32 values written."""

    def generate(context, builder, _, given):
        store_vector(builder, *given)
        return context.get_dummy_value()

    return types.void(types.int64, _vector), generate


def fetch_ahead(builder: ir.IRBuilder, address: Any) -> None:
    """Has the line at an address fetched into the caches; there need be nothing."""
    pointer = ir.PointerType(ir.IntType(8))
    kind = ir.FunctionType(ir.VoidType(), [pointer, _INT32, _INT32, _INT32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    builder.call(function, [builder.inttoptr(address, pointer), *(ir.Constant(_INT32, each) for each in (0, 3, 1))])


@instruction
def prefetch(context, address):
    """(int64): `fetch_ahead`."""

    def generate(context, builder, _, given):
        fetch_ahead(builder, given[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _lane_by_lane(operation: str) -> Any:
    """Makes a function of two vectors: (vector, vector) -> vector."""

    @instruction
    def apply(context, left, right):
        return _vector(_vector, _vector), lambda _, builder, __, given: getattr(builder, operation)(*given)

    return apply


add, subtract, multiply, divide = (_lane_by_lane(operation) for operation in ("fadd", "fsub", "fmul", "fdiv"))


@instruction
def maximum(context, left, right):
    """(vector, vector) -> vector: the greater ones."""
    return _vector(_vector, _vector), lambda _, builder, __, given: intrinsic(builder, "maxnum", *given)


@instruction
def keep_lanes(context, vector, begin, end, other):
    """(vector, int64, int64, f32) -> vector: lanes begin ... end - 1 of it, `other` elsewhere."""

    def generate(_, builder, __, given):
        values, begin, end, other = given
        lanes = ir.Constant(WORDS, list(range(LANES)))
        low, high = (splat(builder, builder.trunc(each, _INT32), WORDS) for each in (begin, end))
        kept = builder.and_(builder.icmp_signed(">=", lanes, low), builder.icmp_signed("<", lanes, high))
        return builder.select(kept, values, splat(builder, other))

    return _vector(_vector, types.int64, types.int64, types.float32), generate


@instruction
def exponential(context, vector):
    """(vector) -> vector: e to each power, within 2 units in the last place; zero below -87, e to 88 above 88."""
    logarithm_high, logarithm_low = 0.693359375, -2.12194440e-4  # of 2: the first times any exponent is exact
    series = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)

    def generate(_, builder, __, given):
        x = intrinsic(builder, "maxnum", given[0], constant(_LEAST_EXPONENT))
        x = intrinsic(builder, "minnum", x, constant(_MOST_EXPONENT))
        power = intrinsic(builder, "floor", intrinsic(builder, "fma", x, constant(1.4426950408889634), constant(0.5)))
        rest = intrinsic(builder, "fma", power, constant(-logarithm_high), x)
        rest = intrinsic(builder, "fma", power, constant(-logarithm_low), rest)
        value = constant(series[0])
        for factor in (*series[1:], 1.0, 1.0):
            value = intrinsic(builder, "fma", value, rest, constant(factor))
        exponent = builder.add(builder.fptosi(power, WORDS), ir.Constant(WORDS, [127] * LANES))
        value = builder.fmul(value, builder.bitcast(builder.shl(exponent, ir.Constant(WORDS, [23] * LANES)), VECTOR))
        return builder.select(builder.fcmp_ordered(">=", given[0], constant(_LEAST_EXPONENT)), value, constant(0.0))

    return _vector(_vector), generate


@instruction
def first_lane(context, vector):
    """(vector) -> f32."""
    return types.float32(_vector), lambda _, builder, __, given: builder.extract_element(
        given[0], ir.Constant(_INT32, 0)
    )


@instruction
def sum_of_lanes(context, vector):
    """(vector) -> f32."""
    return types.float32(_vector), lambda _, builder, __, given: _reduced(builder, given[0], builder.fadd)


@instruction
def greatest_lane(context, vector):
    """(vector) -> f32."""

    def generate(_, builder, __, given):
        return _reduced(builder, given[0], lambda left, right: intrinsic(builder, "maxnum", left, right))

    return types.float32(_vector), generate


def product_of_rows(rows: int, *, of_pairs: bool, is_added: bool) -> Any:
    """Makes a function that multiplies a few rows with a matrix, all sums held in registers.

    The function takes addresses and distances in bytes, all int64: `left`, `left_row` (from a row to the next),
    `first`, `second` (the matrix: of each of its rows the first and the second sixteen columns), `right_row`, `depth`
    (its rows), `out_first`, `out_second`, `out_row`. Of each row of f32 values on the left it writes the product, f32,
    to `out_first` and `out_second`.

    Args:
        rows: On the left.
        of_pairs: Whether the matrix has bf16 values, of two rows side by side ([pairs, columns, 2]), which count as one
            row of it; or f32 ones.
        is_added: Whether products are added to what is there.
    """

    def accumulate(builder: ir.IRBuilder, given: Any) -> None:
        left, left_row, first, second, right_row, depth, out_first, out_second, out_row = given
        width = 2 if of_pairs else 1

        def word(number: int) -> ir.Constant:
            return ir.Constant(depth.type, number)

        outs = [
            builder.add(out, builder.mul(out_row, word(row))) for row in range(rows) for out in (out_first, out_second)
        ]
        sums = [cgutils.alloca_once(builder, VECTOR) for _ in outs]
        for total, out in zip(sums, outs, strict=True):
            builder.store(load_vector(builder, out) if is_added else constant(0.0), total)
        with cgutils.for_range(builder, depth) as loop:
            below = builder.mul(loop.index, right_row)
            at = [builder.add(each, below) for each in (first, second)]
            columns = [
                pairs_of(builder, load_vector(builder, each, WORDS)) if of_pairs else (load_vector(builder, each),)
                for each in at
            ]
            across = builder.add(left, builder.mul(loop.index, word(4 * width)))
            for row in range(rows):
                for step in range(width):
                    address = builder.add(across, builder.add(builder.mul(left_row, word(row)), word(4 * step)))
                    factor = splat(builder, builder.load(builder.inttoptr(address, _F32.as_pointer())))
                    for total, column in zip(sums[2 * row : 2 * row + 2], columns, strict=True):
                        builder.store(intrinsic(builder, "fma", factor, column[step], builder.load(total)), total)
        for total, out in zip(sums, outs, strict=True):
            store_vector(builder, out, builder.load(total))

    @instruction
    def product(context, left, left_row, first, second, right_row, depth, out_first, out_second, out_row):
        def generate(context, builder, _, given):
            accumulate(builder, given)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return product
