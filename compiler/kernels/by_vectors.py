"""The products of a unit of attention on vectors: for any processor, and any head size of whole vectors."""

from __future__ import annotations

import numpy as np
from numba import njit

from ..configuration import BLOCK_TOKENS
from .attention_job import query_offset
from .attention_unit import SCORE_ROW
from .memory import load_int64
from .vectors import COLUMNS, LANES, broadcast, load, load_bf16, product_of_rows, store

__all__ = ["lay_out_queries", "score", "weigh"]

_ZERO = np.float32(0)
_scores4, _scores8, _wide_scores4, _wide_scores8 = (
    product_of_rows(rows, of_pairs=of_pairs, is_added=False) for of_pairs in (True, False) for rows in (4, 8)
)
_values4, _values8, _wide_values4, _wide_values8 = (
    product_of_rows(rows, of_pairs=of_pairs, is_added=True) for of_pairs in (True, False) for rows in (4, 8)
)


@njit(nogil=True)
def _padded(num_rows):
    return (num_rows + 3) // 4 * 4


@njit(nogil=True)
def lay_out_queries(job, unit):
    """Writes the rows' queries, f32, one after the other, and zeros behind the last."""
    for row in range(_padded(unit.num_rows)):
        to = unit.queries + 4 * job.size * row
        source = query_offset(job, unit.sequence, unit.head, unit.first + row) if row < unit.num_rows else 0
        for offset in range(0, job.size, LANES):
            if row >= unit.num_rows:
                store(to + 4 * offset, broadcast(_ZERO))
            elif job.value_bytes == 2:
                store(to + 4 * offset, load_bf16(job.query + 2 * (source + offset)))
            else:
                store(to + 4 * offset, load(job.query + 4 * (source + offset)))


@njit(nogil=True)
def _score_pair(job, unit, first, second, out):
    """Writes the products of all rows with the keys of two blocks."""
    size, query_row, then = job.size, 4 * job.size, out + 4 * BLOCK_TOKENS
    below, half = BLOCK_TOKENS * 4, size // 2
    row, end = 0, _padded(unit.num_rows)
    while row < end:
        queries, at = unit.queries + query_row * row, SCORE_ROW * row
        if row + 8 <= end:
            if job.value_bytes == 2:
                _scores8(queries, query_row, first, second, below, half, out + at, then + at, SCORE_ROW)
            else:
                _wide_scores8(queries, query_row, first, second, below, size, out + at, then + at, SCORE_ROW)
            row += 8
        else:
            if job.value_bytes == 2:
                _scores4(queries, query_row, first, second, below, half, out + at, then + at, SCORE_ROW)
            else:
                _wide_scores4(queries, query_row, first, second, below, size, out + at, then + at, SCORE_ROW)
            row += 4


@njit(nogil=True)
def score(job, unit, num_blocks):
    """Writes the products of all rows with the keys of a chunk's blocks.

    Of an odd last one they are written twice, the second time where nobody looks.
    """
    for block in range(0, num_blocks, 2):
        first, second = load_int64(unit.keys + 8 * block), load_int64(unit.keys + 8 * min(block + 1, num_blocks - 1))
        _score_pair(job, unit, first, second, unit.scores + 4 * BLOCK_TOKENS * block)


@njit(nogil=True)
def _weigh_columns(job, unit, weights, first, second, to, then):
    """Adds 32 columns of a block's values, each token's times its weight, to all rows."""
    below, sum_row, half = 4 * job.size, 4 * job.size, BLOCK_TOKENS // 2
    row, end = 0, _padded(unit.num_rows)
    while row < end:
        left, at = weights + SCORE_ROW * row, sum_row * row
        if row + 8 <= end:
            if job.value_bytes == 2:
                _values8(left, SCORE_ROW, first, second, below, half, to + at, then + at, sum_row)
            else:
                _wide_values8(left, SCORE_ROW, first, second, below, BLOCK_TOKENS, to + at, then + at, sum_row)
            row += 8
        else:
            if job.value_bytes == 2:
                _values4(left, SCORE_ROW, first, second, below, half, to + at, then + at, sum_row)
            else:
                _wide_values4(left, SCORE_ROW, first, second, below, BLOCK_TOKENS, to + at, then + at, sum_row)
            row += 4


@njit(nogil=True)
def weigh(job, unit, num_blocks):
    """Adds the values of a chunk's blocks, each token's times its weight, to the sums of all rows."""
    for block in range(num_blocks):
        values, weights = load_int64(unit.values + 8 * block), unit.scores + 4 * BLOCK_TOKENS * block
        for column in range(0, job.size, COLUMNS):
            beside = LANES if column + LANES < job.size else 0  # both halves of a half panel are the same
            first, to = values + 4 * column, unit.sums + 4 * column
            _weigh_columns(job, unit, weights, first, first + 4 * beside, to, to + 4 * beside)
