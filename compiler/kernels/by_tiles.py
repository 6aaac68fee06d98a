"""The products of a unit of attention on tile registers, where values are bf16 and a head size is whole tiles."""

from __future__ import annotations

from numba import njit

from ..configuration import BLOCK_TOKENS
from . import by_vectors, tiles
from .attention_job import query_offset
from .attention_unit import SCORE_ROW, WEIGHT_ROW
from .memory import load_int64
from .tiles import TILE_ROWS, TILE_VALUES
from .vectors import COLUMNS, LANES, load, store

__all__ = ["lay_out_queries", "score", "weigh"]

_scores1, _scores2 = tiles.scores(1), tiles.scores(2)
_sums1, _sums2 = tiles.weighted_sums(1), tiles.weighted_sums(2)
_lay_out_in_f32, _score_by_vectors, _weigh_by_vectors = by_vectors.lay_out_queries, by_vectors.score, by_vectors.weigh
_for_size, _for_context, _release = tiles.for_size, tiles.for_context, tiles.release


@njit(nogil=True)
def _fits(job):
    return job.value_bytes == 2 and job.size % TILE_VALUES == 0


@njit(nogil=True)
def lay_out_queries(job, unit):
    """Writes the rows' queries one after the other, in bf16."""
    if not _fits(job):
        _lay_out_in_f32(job, unit)
        return
    for row in range(unit.num_rows):
        source = job.query + 2 * query_offset(job, unit.sequence, unit.head, unit.first + row)
        to = unit.queries + 2 * job.size * row
        for offset in range(0, 2 * job.size, 4 * LANES):
            store(to + offset, load(source + offset))


@njit(nogil=True)
def score(job, unit, num_blocks):
    """Writes the products of all rows with the keys of a chunk's blocks, of an odd last one twice."""
    if not _fits(job):
        _score_by_vectors(job, unit, num_blocks)
        return
    _for_size()
    steps, query_row = job.size // TILE_VALUES, 2 * job.size
    for block in range(0, num_blocks, 2):
        first, second = load_int64(unit.keys + 8 * block), load_int64(unit.keys + 8 * min(block + 1, num_blocks - 1))
        out = unit.scores + 4 * BLOCK_TOKENS * block
        if unit.num_rows > TILE_ROWS:
            _scores2(unit.queries, query_row, first, second, steps, out, SCORE_ROW)
        else:
            _scores1(unit.queries, query_row, first, second, steps, out, SCORE_ROW)


@njit(nogil=True)
def weigh(job, unit, num_blocks):
    """Adds the values of a chunk's blocks, each token's times its weight, to the sums of all rows."""
    if not _fits(job):
        _weigh_by_vectors(job, unit, num_blocks)
        return
    _for_context()
    value_row, sum_row = 4 * job.size, 4 * job.size
    for column in range(0, job.size, COLUMNS):
        out = unit.sums + 4 * column
        if unit.num_rows > TILE_ROWS:
            _sums2(unit.weights, WEIGHT_ROW, unit.values, 4 * column, value_row, num_blocks, out, sum_row)
        else:
            _sums1(unit.weights, WEIGHT_ROW, unit.values, 4 * column, value_row, num_blocks, out, sum_row)
    _release()
