"""Attention over a paged KV pool as one kernel: what is new is written into the pool, then every query attends.

It goes through the context in chunks of a fixed number of tokens with a running softmax, each sum in the order of
tokens: a query's result depends neither on what else is in the step nor on how a prompt is cut.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from numba import njit

from ..configuration import BLOCK_TOKENS
from .attention_job import job_at, run_of
from .attention_unit import CHUNK_BLOCKS, CHUNK_TOKENS, begin_unit, soften, take_results, unit_at
from .memory import store_int64
from .vectors import prefetch

__all__ = ["attending"]

_LINE_BYTES = 64


@njit(nogil=True)
def _find_blocks(job, unit, first_block, num_blocks):
    """Notes where the keys and values of a chunk are, and has the values fetched."""
    for block in range(num_blocks):
        store_int64(unit.keys + 8 * block, run_of(job, unit.sequence, first_block + block, 0, unit.head))
        values = run_of(job, unit.sequence, first_block + block, 1, unit.head)
        store_int64(unit.values + 8 * block, values)
        _prefetch(values, BLOCK_TOKENS * job.size * job.value_bytes)


@njit(nogil=True)
def _prefetch_keys(job, unit, first_block, end_block):
    for block in range(first_block, end_block):
        _prefetch(run_of(job, unit.sequence, block, 0, unit.head), BLOCK_TOKENS * job.size * job.value_bytes)


@njit(nogil=True)
def _prefetch(address, num_bytes):
    for offset in range(0, num_bytes, _LINE_BYTES):
        prefetch(address + offset)


def attending(products: ModuleType) -> Any:
    """Makes the function that computes one unit of a job: it takes the job, the number of the unit, and memory for it.

    Args:
        products: `by_vectors`, or `by_tiles` where this process may use them.
    """
    lay_out_queries, score, weigh = products.lay_out_queries, products.score, products.weigh

    @njit(nogil=True)
    def attend(job_address, number, memory):
        job, unit = job_at(job_address), unit_at(memory)
        begin_unit(job, number, memory)
        lay_out_queries(job, unit)
        group = job.heads // job.kv_heads
        last = unit.start + (unit.first + unit.num_rows - 1) // group
        end = min(last // BLOCK_TOKENS + 1, job.table_width)  # block
        seen = max(unit.start + unit.first // group - job.window + 1, 0) if job.window else 0
        for block in range(seen // CHUNK_TOKENS * CHUNK_BLOCKS, end, CHUNK_BLOCKS):
            num_blocks = min(end - block, CHUNK_BLOCKS)
            _find_blocks(job, unit, block, num_blocks)
            score(job, unit, num_blocks)
            _prefetch_keys(job, unit, block + num_blocks, min(block + num_blocks + CHUNK_BLOCKS, end))
            soften(job, unit, block * BLOCK_TOKENS, num_blocks * BLOCK_TOKENS)
            weigh(job, unit, num_blocks)
        take_results(job, unit)

    return attend
