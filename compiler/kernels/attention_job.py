"""What a call of paged attention asks for, and how its pool is laid out.

Of a block, a head's keys are kept as [size, tokens] and its values as [tokens, size], in bf16 with two rows side by
side: [size / 2, tokens, 2] and [tokens / 2, size, 2]. Keys of sixteen tokens, or sixteen elements of a token's value,
are then one run of memory, as the products of `by_vectors` and `by_tiles` want them, and no block is rearranged.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..configuration import BLOCK_TOKENS
from .memory import copy_scalar, load_int32, record_reader
from .threads import SHARED_FIELDS

__all__ = ["JOB", "job_at", "query_offset", "run_of", "start_of", "write_new"]

JOB = np.dtype(  # beside what is shared: addresses, sizes, options
    [
        *SHARED_FIELDS,
        *((name, "i8") for name in ("query", "key", "value", "pool", "tables", "start", "slopes", "sinks", "out")),
        *((name, "i8") for name in ("batch", "new", "heads", "kv_heads", "size", "num_blocks", "table_width")),
        *((name, "i8") for name in ("window", "value_bytes", "units_per_head")),
        *((name, "f4") for name in ("scale", "cap")),
    ]
)
job_at = record_reader(JOB)

_copy16, _copy32 = copy_scalar(16), copy_scalar(32)


@njit(nogil=True)
def start_of(job, sequence):
    """Returns the position of a sequence's first new token."""
    return max(load_int32(job.start + 4 * sequence), 0)


@njit(nogil=True)
def run_of(job, sequence, block, part, head):
    """Returns the address of what a block of a sequence holds of one head: keys are part 0, values part 1."""
    number = load_int32(job.tables + 4 * (sequence * job.table_width + block))
    number = min(max(number, 0), job.num_blocks - 1)  # a sequence has no block where it has no tokens
    return job.pool + ((number * 2 + part) * job.kv_heads + head) * BLOCK_TOKENS * job.size * job.value_bytes


@njit(nogil=True)
def query_offset(job, sequence, head, row):
    """Returns where a row's query is, in values: rows are the heads of a group at one position, then at the next."""
    group = job.heads // job.kv_heads
    return ((sequence * job.new + row // group) * job.heads + head * group + row % group) * job.size


@njit(nogil=True)
def _write_halves(key, value, size, keys, values, slot):
    """Writes a token's key and value in bf16 into the runs of a block."""
    for pair in range(size // 2):
        _copy32(key + 4 * pair, keys + 4 * (pair * BLOCK_TOKENS + slot))
    for element in range(size):
        _copy16(value + 2 * element, values + 4 * (slot // 2 * size + element) + 2 * (slot % 2))


@njit(nogil=True)
def _write_wide(key, value, size, keys, values, slot):
    """Writes a token's key and value in f32."""
    for element in range(size):
        _copy32(key + 4 * element, keys + 4 * (element * BLOCK_TOKENS + slot))
        _copy32(value + 4 * element, values + 4 * (slot * size + element))


@njit(nogil=True)
def _write_token(job, sequence, index, position):
    """Writes keys and values of a new token into its block; where there is none they are dropped."""
    block = position // BLOCK_TOKENS
    if block >= job.table_width:
        return
    number = load_int32(job.tables + 4 * (sequence * job.table_width + block))
    if number < 0 or number >= job.num_blocks:
        return
    for head in range(job.kv_heads):
        source = ((sequence * job.new + index) * job.kv_heads + head) * job.size * job.value_bytes
        key, value = job.key + source, job.value + source
        keys, values = run_of(job, sequence, block, 0, head), run_of(job, sequence, block, 1, head)
        if job.value_bytes == 2:
            _write_halves(key, value, job.size, keys, values, position % BLOCK_TOKENS)
        else:
            _write_wide(key, value, job.size, keys, values, position % BLOCK_TOKENS)


@njit(nogil=True)
def write_new(job_address):
    """Writes keys and values of all new tokens into the pool."""
    job = job_at(job_address)
    for sequence in range(job.batch):
        for index in range(job.new):
            _write_token(job, sequence, index, start_of(job, sequence) + index)
