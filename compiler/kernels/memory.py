"""What compiled code reads and writes at an address: scalars, records, counters that threads share, and functions.

An address is an int64. No function here checks one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils

from ..compiled import instruction

__all__ = [
    "allocate",
    "call",
    "copy_scalar",
    "fetch_and_add",
    "free",
    "function_address",
    "load_int32",
    "load_int64",
    "load_scalar",
    "load_shared",
    "record_reader",
    "store_int64",
    "store_scalar",
    "text_address",
]

_INT64 = ir.IntType(64)

allocate = types.ExternalFunction("malloc", types.int64(types.int64))
free = types.ExternalFunction("free", types.void(types.int64))


@instruction
def _pointer(context, address):
    return types.voidptr(types.int64), lambda _, builder, __, given: builder.inttoptr(given[0], cgutils.voidptr_t)


def record_reader(dtype: Any) -> Any:
    """Makes a function that takes an address and returns the record of a numpy type that is there, not a copy."""

    @njit(nogil=True)
    def record_at(address):
        return carray(_pointer(address), 1, dtype)[0]

    return record_at


def _loaded(builder: ir.IRBuilder, address: Any, kind: ir.Type) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()))


@instruction
def load_int64(context, address):
    """(int64) -> int64."""
    return types.int64(types.int64), lambda _, builder, __, given: _loaded(builder, given[0], _INT64)


@instruction
def load_int32(context, address):
    """(int64) -> int64: an int32, extended."""

    def generate(_, builder, __, given):
        return builder.sext(_loaded(builder, given[0], ir.IntType(32)), _INT64)

    return types.int64(types.int64), generate


@instruction
def load_scalar(context, address):
    """(int64) -> f32."""
    return types.float32(types.int64), lambda _, builder, __, given: _loaded(builder, given[0], ir.FloatType())


@instruction
def store_scalar(context, address, value):
    """(int64, f32)."""

    def generate(context, builder, _, given):
        builder.store(given[1], builder.inttoptr(given[0], ir.FloatType().as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@instruction
def store_int64(context, address, value):
    """(int64, int64)."""

    def generate(context, builder, _, given):
        builder.store(given[1], builder.inttoptr(given[0], _INT64.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def copy_scalar(num_bits: int) -> Any:
    """Makes a function that takes two addresses and copies a scalar of so many bits from the first to the second."""

    @instruction
    def copy(context, source, destination):
        def generate(context, builder, _, given):
            kind = ir.IntType(num_bits)
            builder.store(_loaded(builder, given[0], kind), builder.inttoptr(given[1], kind.as_pointer()))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return copy


@instruction
def fetch_and_add(context, address, amount):
    """(int64, int64) -> int64: what was there before; no other thread comes between."""

    def generate(_, builder, __, given):
        return builder.atomic_rmw("add", builder.inttoptr(given[0], _INT64.as_pointer()), given[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@instruction
def load_shared(context, address):
    """(int64) -> int64: what other threads count there; what they wrote before they counted is seen afterwards."""

    def generate(_, builder, __, given):
        return builder.load_atomic(builder.inttoptr(given[0], _INT64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@instruction
def call(context, function, argument):
    """(int64, int64) -> int64: calls the function at an address with one word and returns the word that it gives."""

    def generate(_, builder, __, given):
        kind = ir.FunctionType(_INT64, [_INT64])
        return builder.call(builder.inttoptr(given[0], kind.as_pointer()), [given[1]])

    return types.int64(types.int64, types.int64), generate


def function_address(symbol: str) -> Any:
    """Makes a function that returns the address of what is known to LLVM by a symbol."""

    @instruction
    def address(context):
        def generate(_, builder, __, ___):
            kind = ir.FunctionType(ir.VoidType(), [_INT64])
            return builder.ptrtoint(cgutils.get_or_insert_function(builder.module, kind, symbol), _INT64)

        return types.int64(), generate

    return address


def text_address(text: str) -> Any:
    """Makes a function that returns the address of a text that ends in a zero."""

    @instruction
    def address(context):
        def generate(context, builder, _, __):
            return builder.ptrtoint(context.insert_const_string(builder.module, text), _INT64)

        return types.int64(), generate

    return address
