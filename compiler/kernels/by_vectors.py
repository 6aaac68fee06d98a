"""The products of a unit of attention on vectors: for any processor, and any head size of whole vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ..configuration import BLOCK_TOKENS
from .attention_job import query_offset
from .attention_unit import SCORE_ROW
from .memory import load_int64
from .vectors import COLUMNS, LANES, broadcast, load, load_bf16, product_of_rows, store

__all__ = ["lay_out_queries", "score", "weigh"]

_ZERO = np.float32(0)


def _of_all_rows(*, is_added: bool) -> Any:
    """Makes a function that multiplies any number of rows, as `product_of_rows` does, eight or four at a time."""
    pairs4, pairs8, wide4, wide8 = (
        product_of_rows(rows, of_pairs=of_pairs, is_added=is_added) for of_pairs in (True, False) for rows in (4, 8)
    )

    @njit(nogil=True)
    def multiply(num_rows, of_pairs, left, left_row, first, second, right_row, depth, out_first, out_second, out_row):
        row = 0
        while row < num_rows:
            rows, one, two = left + left_row * row, out_first + out_row * row, out_second + out_row * row
            if row + 8 <= num_rows:
                if of_pairs:
                    pairs8(rows, left_row, first, second, right_row, depth // 2, one, two, out_row)
                else:
                    wide8(rows, left_row, first, second, right_row, depth, one, two, out_row)
                row += 8
            else:
                if of_pairs:
                    pairs4(rows, left_row, first, second, right_row, depth // 2, one, two, out_row)
                else:
                    wide4(rows, left_row, first, second, right_row, depth, one, two, out_row)
                row += 4

    return multiply


_products, _added_products = _of_all_rows(is_added=False), _of_all_rows(is_added=True)


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
def score(job, unit, num_blocks):
    """Writes the products of all rows with the keys of a chunk's blocks, two blocks at a time.

    Of an odd last one they are written twice, the second time where nobody looks.
    """
    num_rows, of_pairs = _padded(unit.num_rows), job.value_bytes == 2
    query_row, below = 4 * job.size, 4 * BLOCK_TOKENS
    for block in range(0, num_blocks, 2):
        first, second = load_int64(unit.keys + 8 * block), load_int64(unit.keys + 8 * min(block + 1, num_blocks - 1))
        out = unit.scores + 4 * BLOCK_TOKENS * block
        then = out + 4 * BLOCK_TOKENS
        _products(num_rows, of_pairs, unit.queries, query_row, first, second, below, job.size, out, then, SCORE_ROW)


@njit(nogil=True)
def weigh(job, unit, num_blocks):
    """Adds the values of a chunk's blocks, each token's times its weight, to the sums of all rows."""
    num_rows, of_pairs, row_bytes = _padded(unit.num_rows), job.value_bytes == 2, 4 * job.size
    for block in range(num_blocks):
        values, weights = load_int64(unit.values + 8 * block), unit.scores + 4 * BLOCK_TOKENS * block
        for column in range(0, job.size, COLUMNS):
            beside = LANES if column + LANES < job.size else 0  # both halves of a half panel are the same
            first, to = values + 4 * column, unit.sums + 4 * column
            second, then = first + 4 * beside, to + 4 * beside
            _added_products(
                num_rows, of_pairs, weights, SCORE_ROW, first, second, row_bytes, BLOCK_TOKENS, to, then, row_bytes
            )
