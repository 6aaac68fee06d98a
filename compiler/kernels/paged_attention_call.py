"""Paged attention as a call that XLA's CPU backend makes: what it is given is looked at before anything is touched.

A program may come from anywhere: operands of other shapes or types than the kernel reads are an error of the program,
and block numbers that lie outside the pool are brought inside, or not written to.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numba import njit

from ..configuration import BLOCK_TOKENS
from . import by_tiles, by_vectors, tiles
from .attention_job import JOB, job_at, write_new
from .attention_unit import MASKED, unit_bytes, units_per_head
from .call_frame import (
    BFLOAT16_BITS,
    F32,
    INT32,
    INT64,
    attribute,
    buffer_at,
    describe,
    failure,
    frame_at,
    has_type,
    operand,
    result,
    size_of,
)
from .memory import allocate, function_address, load_int64, load_scalar, text_address
from .paged_attention import attending
from .registration import register_once
from .threads import share, taking_part
from .vectors import LANES

__all__ = ["PAGED_ATTENTION", "paged_attention", "register_paged_attention", "supports_paged_attention"]

PAGED_ATTENTION = "plait_paged_attention"  # the name of the custom call

_PART = f"{PAGED_ATTENTION}_part"  # the symbol of what each thread does
_QUERY, _KEY, _VALUE, _POOL, _TABLES, _START, _SLOPES, _SINKS = range(8)  # operands
_OUT, _EXTENDED = range(2)  # results
_CAP, _SCALE, _WINDOW = range(3)  # attributes
_POOL_TYPES = {jnp.dtype(jnp.uint16), jnp.dtype(jnp.float32)}  # bf16 as its bits

_JOB_BYTES = JOB.itemsize
_part_address = function_address(_PART)
_take_part_by_vectors = taking_part(attending(by_vectors), unit_bytes)
_take_part_by_tiles = taking_part(attending(by_tiles), unit_bytes)
_message = text_address("paged attention is called with operands that it does not take")


@njit(nogil=True)
def _are_alike(first, second, rank):
    num_alike = 0
    for dimension in range(rank):
        num_alike += size_of(first, dimension) == size_of(second, dimension)
    return num_alike == rank


@njit(nogil=True)
def _has_types(frame):
    """Whether operands and results are as many as they should be, and of the right types and numbers of dimensions."""
    counts = frame_at(frame)
    if counts.num_operands != _SINKS + 1 or counts.num_results != _EXTENDED + 1 or counts.num_attributes != _WINDOW + 1:
        return False
    stored = buffer_at(operand(frame, _POOL)).kind
    return (
        (stored in (BFLOAT16_BITS, F32))
        and has_type(operand(frame, _QUERY), stored, 4)
        and has_type(operand(frame, _KEY), stored, 4)
        and has_type(operand(frame, _VALUE), stored, 4)
        and has_type(operand(frame, _POOL), stored, 5)
        and has_type(operand(frame, _TABLES), INT32, 2)
        and has_type(operand(frame, _START), INT32, 1)
        and has_type(operand(frame, _SLOPES), F32, 1)
        and has_type(operand(frame, _SINKS), F32, 1)
        and has_type(result(frame, _OUT), F32, 4)
        and has_type(result(frame, _EXTENDED), stored, 5)
        and attribute(frame, _CAP, F32) != 0
        and attribute(frame, _SCALE, F32) != 0
        and attribute(frame, _WINDOW, INT64) != 0
    )


@njit(nogil=True)
def _has_shapes(frame):
    """Whether the sizes of operands and results belong together."""
    query, key, pool = operand(frame, _QUERY), operand(frame, _KEY), operand(frame, _POOL)
    heads, size, kv_heads = size_of(query, 2), size_of(query, 3), size_of(key, 2)
    return (
        size % LANES == 0
        and heads % kv_heads == 0
        and size_of(key, 0) == size_of(query, 0)
        and size_of(key, 1) == size_of(query, 1)
        and size_of(key, 3) == size
        and _are_alike(key, operand(frame, _VALUE), 4)
        and _are_alike(query, result(frame, _OUT), 4)
        and _are_alike(pool, result(frame, _EXTENDED), 5)
        and size_of(pool, 1) == 2
        and size_of(pool, 2) == kv_heads
        and size_of(pool, 3) == BLOCK_TOKENS
        and size_of(pool, 4) == size
        and size_of(operand(frame, _TABLES), 0) == size_of(query, 0)
        and size_of(operand(frame, _START), 0) == size_of(query, 0)
        and size_of(operand(frame, _SLOPES), 0) == heads
        and size_of(operand(frame, _SINKS), 0) == heads
        and buffer_at(pool).data == buffer_at(result(frame, _EXTENDED)).data
        and load_int64(attribute(frame, _WINDOW, INT64)) >= 0
    )


@njit(nogil=True)
def _new_job(frame):
    """Returns the address of a job that does what a call asks for."""
    address = allocate(_JOB_BYTES)
    job = job_at(address)
    query, key, pool, tables = (
        operand(frame, _QUERY),
        operand(frame, _KEY),
        operand(frame, _POOL),
        operand(frame, _TABLES),
    )
    job.query, job.key, job.pool, job.tables = (
        buffer_at(query).data,
        buffer_at(key).data,
        buffer_at(pool).data,
        buffer_at(tables).data,
    )
    job.value = buffer_at(operand(frame, _VALUE)).data
    job.start = buffer_at(operand(frame, _START)).data
    job.slopes = buffer_at(operand(frame, _SLOPES)).data
    job.sinks = buffer_at(operand(frame, _SINKS)).data
    job.out = buffer_at(result(frame, _OUT)).data
    job.batch, job.new, job.heads, job.size = size_of(query, 0), size_of(query, 1), size_of(query, 2), size_of(query, 3)
    job.kv_heads, job.num_blocks, job.table_width = size_of(key, 2), size_of(pool, 0), size_of(tables, 1)
    job.value_bytes = 2 if buffer_at(pool).kind == BFLOAT16_BITS else 4
    job.window = load_int64(attribute(frame, _WINDOW, INT64))
    job.scale = load_scalar(attribute(frame, _SCALE, F32))
    job.cap = load_scalar(attribute(frame, _CAP, F32))
    job.units_per_head = units_per_head(job.new * (job.heads // job.kv_heads))
    job.num_units = job.batch * job.kv_heads * job.units_per_head
    return address


@njit(nogil=True)
def _answer(frame):
    """Carries out a call; returns 0, or the address of an error."""
    if describe(frame):
        return 0
    if not (_has_types(frame) and _has_shapes(frame)):
        return failure(frame, _message())
    job = _new_job(frame)
    write_new(job)
    share(frame, job, _part_address())
    return 0


def _part_by_vectors(version: int) -> Callable[[int], int]:
    return lambda job: _take_part_by_vectors(job) if version else 0


def _part_by_tiles(version: int) -> Callable[[int], int]:
    return lambda job: _take_part_by_tiles(job) if version else 0


def _handler(version: int) -> Callable[[int], int]:
    return lambda frame: _answer(frame) if version else 0


def register_paged_attention() -> None:
    """Makes the kernel known to XLA's CPU backend, once; several threads may ask for it."""
    part = _part_by_tiles if tiles.are_permitted() else _part_by_vectors
    register_once(PAGED_ATTENTION, _handler, _PART, part)


def supports_paged_attention(head_size: int, pool_type: jnp.dtype) -> bool:
    """Whether the kernel attends over heads of a size in a pool of a type."""
    return head_size % LANES == 0 and jnp.dtype(pool_type) in _POOL_TYPES


def paged_attention(
    query: Array,
    key: Array,
    value: Array,
    pool: Array,
    tables: Int[Array, "batch blocks"],
    start: Int[Array, " batch"],
    slopes: Float[Array, " heads"] | None,
    sinks: Float[Array, " heads"] | None,
    *,
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Float[Array, "batch new heads size"], Array]:
    """Attention of new tokens over a pool, which it extends; for CPU only.

    Args:
        query: Of the new tokens, in the pool's type.
        key: Likewise, [batch, new, kv_heads, size].
        value: Likewise.
        pool: [blocks, 2, kv_heads, BLOCK_TOKENS, size], f32 or the bits of bf16; of keys a block and head hold
            [size, BLOCK_TOKENS], see `attention_job`.
        tables: Block of each BLOCK_TOKENS of each sequence.
        start: Position of the first new token of each sequence.
        slopes: By which scores of each head fall with the distance.
        sinks: A logit of each head that takes weight and gives nothing.
        scale: Factor on the scores.
        window: Positions that are seen; 0 for all.
        cap: Scores are `cap * tanh(score / cap)`; 0 for plain ones.

    Returns:
        The heads' outputs, and the pool.
    """
    register_paged_attention()
    heads = query.shape[2]
    call = jax.ffi.ffi_call(
        PAGED_ATTENTION,
        (jax.ShapeDtypeStruct(query.shape, jnp.float32), jax.ShapeDtypeStruct(pool.shape, pool.dtype)),
        input_output_aliases={_POOL: _EXTENDED},
    )
    out, extended = call(
        query,
        key,
        value,
        pool,
        tables,
        start,
        jnp.zeros(heads) if slopes is None else slopes,
        jnp.full(heads, MASKED) if sinks is None else sinks,
        cap=np.float32(cap),
        scale=np.float32(scale),
        window=np.int64(window),
    )
    return out, extended
