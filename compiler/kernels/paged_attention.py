"""Attention over a paged KV pool as one kernel: what is new is written into the pool, then every query attends.

A unit of work is some queries of one sequence that share a KV head. It goes through the context in chunks of a fixed
number of tokens with a running softmax, each sum in the order of tokens: a query's result depends neither on what else
is in the step nor on how a prompt is cut.

Of a block, keys are kept as [size, tokens] and values as [tokens, size]: sixteen tokens of a key's element, and sixteen
elements of a token's value, are then one vector, and no block is ever rearranged.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..configuration import BLOCK_TOKENS
from .memory import copy_scalar, load_int32, load_scalar, record_reader, store_scalar
from .threads import SHARED_FIELDS
from .vectors import (
    COLUMNS,
    LANES,
    add,
    broadcast,
    divide,
    exponential,
    first_lane,
    from_index,
    greatest_lane,
    keep_lanes,
    load,
    maximum,
    multiply,
    prefetch,
    product_of_rows,
    store,
    subtract,
    sum_of_lanes,
)

__all__ = ["JOB", "MASKED", "attend", "num_units_per_head", "scratch_bytes", "write_new"]

MASKED = np.float32(-1e30)  # finite, so that what has seen nothing yet stays free of NaN

_ROWS = 32  # queries of a unit
_CHUNK_TOKENS = 128  # of the context at once
_ZERO, _ONE = np.float32(0), np.float32(1)
_LINE_BYTES = 64

JOB = np.dtype(  # beside what is shared: addresses, sizes, options
    [
        *SHARED_FIELDS,
        *((name, "i8") for name in ("query", "key", "value", "pool", "tables", "start", "slopes", "sinks", "out")),
        *((name, "i8") for name in ("batch", "new", "heads", "kv_heads", "size", "num_blocks", "table_width")),
        *((name, "i8") for name in ("window", "value_bytes", "units_per_head")),
        *((name, "f4") for name in ("scale", "cap")),
    ]
)

_job_at = record_reader(JOB)

_copy16, _copy32 = copy_scalar(16), copy_scalar(32)
_scores4, _scores4_wide, _scores8, _scores8_wide = (
    product_of_rows(rows, is_wide=is_wide, is_added=False) for rows in (4, 8) for is_wide in (False, True)
)
_values4, _values4_wide, _values8, _values8_wide = (
    product_of_rows(rows, is_wide=is_wide, is_added=True) for rows in (4, 8) for is_wide in (False, True)
)


@njit(nogil=True)
def _run_of(job, sequence, block, part, head):
    """Returns the address of what a block of a sequence holds of one head: keys are part 0, values part 1."""
    number = load_int32(job.tables + 4 * (sequence * job.table_width + block))
    number = min(max(number, 0), job.num_blocks - 1)  # a sequence has no block where it has no tokens
    return job.pool + ((number * 2 + part) * job.kv_heads + head) * BLOCK_TOKENS * job.size * job.value_bytes


@njit(nogil=True)
def _write_token(job, sequence, index, position):
    """Writes keys and values of a new token into its block; where there is none they are dropped."""
    block = position // BLOCK_TOKENS
    if block >= job.table_width:
        return
    number = load_int32(job.tables + 4 * (sequence * job.table_width + block))
    if number < 0 or number >= job.num_blocks:
        return
    width, size, slot = job.value_bytes, job.size, position % BLOCK_TOKENS
    for head in range(job.kv_heads):
        source = ((sequence * job.new + index) * job.kv_heads + head) * size * width
        key = _run_of(job, sequence, block, 0, head) + slot * width
        value = _run_of(job, sequence, block, 1, head) + slot * size * width
        for element in range(size):
            if width == 2:
                _copy16(job.key + source + 2 * element, key + element * BLOCK_TOKENS * 2)
                _copy16(job.value + source + 2 * element, value + 2 * element)
            else:
                _copy32(job.key + source + 4 * element, key + element * BLOCK_TOKENS * 4)
                _copy32(job.value + source + 4 * element, value + 4 * element)


@njit(nogil=True)
def write_new(job_address):
    job = _job_at(job_address)
    for sequence in range(job.batch):
        start = max(load_int32(job.start + 4 * sequence), 0)
        for index in range(job.new):
            _write_token(job, sequence, index, start + index)


@njit(nogil=True)
def _prefetch_run(address, num_bytes):
    for offset in range(0, num_bytes, _LINE_BYTES):
        prefetch(address + offset)


@njit(nogil=True)
def _score(job, queries, num_rows, first, second, out):
    """Writes the products of all rows with the keys of two blocks."""
    row_bytes, below, out_row = 4 * job.size, BLOCK_TOKENS * job.value_bytes, 4 * _CHUNK_TOKENS
    row = 0
    while row < num_rows:
        left, to = queries + row * row_bytes, out + row * out_row
        then = to + 4 * BLOCK_TOKENS
        if row + 8 <= num_rows:
            if job.value_bytes == 2:
                _scores8(left, row_bytes, first, second, below, job.size, to, then, out_row)
            else:
                _scores8_wide(left, row_bytes, first, second, below, job.size, to, then, out_row)
            row += 8
        else:
            if job.value_bytes == 2:
                _scores4(left, row_bytes, first, second, below, job.size, to, then, out_row)
            else:
                _scores4_wide(left, row_bytes, first, second, below, job.size, to, then, out_row)
            row += 4


@njit(nogil=True)
def _weigh(job, weights, num_rows, values, out):
    """Adds the values of a block, each times its weight, to all rows."""
    row_bytes, below, weights_row = 4 * job.size, job.size * job.value_bytes, 4 * _CHUNK_TOKENS
    row = 0
    while row < num_rows:
        step = 8 if row + 8 <= num_rows else 4
        left = weights + row * weights_row
        for column in range(0, job.size, COLUMNS):
            beside = LANES if column + LANES < job.size else 0  # of a half panel both halves are the same
            first = values + column * job.value_bytes
            second = first + beside * job.value_bytes
            to = out + row * row_bytes + 4 * column
            then = to + 4 * beside
            if step == 8:
                if job.value_bytes == 2:
                    _values8(left, weights_row, first, second, below, BLOCK_TOKENS, to, then, row_bytes)
                else:
                    _values8_wide(left, weights_row, first, second, below, BLOCK_TOKENS, to, then, row_bytes)
            elif job.value_bytes == 2:
                _values4(left, weights_row, first, second, below, BLOCK_TOKENS, to, then, row_bytes)
            else:
                _values4_wide(left, weights_row, first, second, below, BLOCK_TOKENS, to, then, row_bytes)
        row += step


@njit(nogil=True)
def _shape_scores(job, scores, num_tokens, first, position, slope):
    """Caps the scores of a query, lowers them by the distance, masks what it does not see; returns the greatest."""
    begin = max(position - job.window + 1, 0) if job.window else 0
    greatest = broadcast(MASKED)
    for offset in range(0, num_tokens, LANES):
        at, token = scores + 4 * offset, first + offset
        score = load(at)
        if job.cap != _ZERO:
            # cap * tanh(s / cap), by e to the 2 s / cap
            power = exponential(multiply(score, broadcast(np.float32(2) / job.cap)))
            below = divide(broadcast(np.float32(2)), add(power, broadcast(_ONE)))
            score = multiply(broadcast(job.cap), subtract(broadcast(_ONE), below))
        if slope != _ZERO:
            distance = subtract(broadcast(np.float32(position)), from_index(token))
            score = subtract(score, multiply(broadcast(slope), distance))
        score = keep_lanes(score, begin - token, position + 1 - token, MASKED)
        store(at, score)
        greatest = maximum(greatest, score)
    return greatest_lane(greatest)


@njit(nogil=True)
def _to_weights(scores, num_tokens, greatest):
    """Replaces scores by e to what they are above the greatest; returns their sum."""
    total, shift = broadcast(_ZERO), broadcast(greatest)
    for offset in range(0, num_tokens, LANES):
        weight = exponential(subtract(load(scores + 4 * offset), shift))
        store(scores + 4 * offset, weight)
        total = add(total, weight)
    return sum_of_lanes(total)


@njit(nogil=True)
def _scale(address, size, factor):
    for offset in range(0, 4 * size, 4 * LANES):
        store(address + offset, multiply(load(address + offset), broadcast(factor)))


@njit(nogil=True)
def _query_of(job, sequence, head, row):
    """Returns the offset of a row's query, in values: rows are the heads of a group at one position, then the next."""
    group = job.heads // job.kv_heads
    return ((sequence * job.new + row // group) * job.heads + head * group + row % group) * job.size


@njit(nogil=True)
def _begin(job, sequence, head, first, num_rows, padded, queries, sums, state):
    """Lays out the queries of a unit, zeros behind them, and the state of their softmax: greatest score and sum."""
    group = job.heads // job.kv_heads
    for row in range(padded):
        for offset in range(0, job.size, LANES):
            at = row * job.size + offset
            store(sums + 4 * at, broadcast(_ZERO))
            if row < num_rows:
                source = job.query + 4 * (_query_of(job, sequence, head, first + row) + offset)
                store(queries + 4 * at, multiply(load(source), broadcast(job.scale)))
            else:
                store(queries + 4 * at, broadcast(_ZERO))
        if row < num_rows:
            sink = load_scalar(job.sinks + 4 * (head * group + (first + row) % group))
            store_scalar(state + 8 * row, sink)
            store_scalar(state + 8 * row + 4, _ONE)  # one that is masked shrinks to nothing


@njit(nogil=True)
def _attend_chunk(job, sequence, head, first, num_rows, padded, begin, num_tokens, queries, sums, state, scores):
    """Takes one chunk of the context into the softmax of all rows."""
    group, run_bytes = job.heads // job.kv_heads, BLOCK_TOKENS * job.size * job.value_bytes
    first_block, num_blocks = begin // BLOCK_TOKENS, num_tokens // BLOCK_TOKENS
    for block in range(0, num_blocks, 2):
        is_last = block + 1 == num_blocks  # its products stand in the place of the next one's too, where nobody looks
        one = _run_of(job, sequence, first_block + block, 0, head)
        two = one if is_last else _run_of(job, sequence, first_block + block + 1, 0, head)
        for ahead in range(block, min(block + 2, num_blocks)):
            _prefetch_run(_run_of(job, sequence, first_block + ahead, 1, head), run_bytes)
        _score(job, queries, padded, one, two, scores + 4 * BLOCK_TOKENS * block)
    start = max(load_int32(job.start + 4 * sequence), 0)
    for row in range(num_rows):
        position, at = start + (first + row) // group, scores + 4 * _CHUNK_TOKENS * row
        slope = load_scalar(job.slopes + 4 * (head * group + (first + row) % group))
        before = load_scalar(state + 8 * row)
        greatest = max(before, _shape_scores(job, at, num_tokens, begin, position, slope))
        shrink = first_lane(exponential(broadcast(before - greatest)))
        total = load_scalar(state + 8 * row + 4) * shrink + _to_weights(at, num_tokens, greatest)
        store_scalar(state + 8 * row, greatest)
        store_scalar(state + 8 * row + 4, total)
        _scale(sums + 4 * job.size * row, job.size, shrink)
    for block in range(num_blocks):
        _weigh(
            job, scores + 4 * BLOCK_TOKENS * block, padded, _run_of(job, sequence, first_block + block, 1, head), sums
        )


@njit(nogil=True)
def attend(job_address, unit, scratch):
    """Computes one unit: queries of a sequence that share a KV head."""
    job = _job_at(job_address)
    group = job.heads // job.kv_heads
    head, sequence = unit // job.units_per_head % job.kv_heads, unit // job.units_per_head // job.kv_heads
    first = unit % job.units_per_head * _ROWS
    num_rows = min(_ROWS, job.new * group - first)
    padded = (num_rows + 3) // 4 * 4
    scores, queries = scratch, scratch + 4 * _ROWS * _CHUNK_TOKENS
    sums = queries + 4 * _ROWS * job.size
    state = sums + 4 * _ROWS * job.size
    _begin(job, sequence, head, first, num_rows, padded, queries, sums, state)

    start = max(load_int32(job.start + 4 * sequence), 0)
    end = min(start + (first + num_rows - 1) // group + 1, job.table_width * BLOCK_TOKENS)
    seen = max(start + first // group - job.window + 1, 0) if job.window else 0
    for begin in range(seen // _CHUNK_TOKENS * _CHUNK_TOKENS, end, _CHUNK_TOKENS):
        num_tokens = min((end - begin + BLOCK_TOKENS - 1) // BLOCK_TOKENS * BLOCK_TOKENS, _CHUNK_TOKENS)
        _attend_chunk(job, sequence, head, first, num_rows, padded, begin, num_tokens, queries, sums, state, scores)
    for row in range(num_rows):
        own = sums + 4 * job.size * row
        _scale(own, job.size, _ONE / load_scalar(state + 8 * row + 4))
        out = job.out + 4 * _query_of(job, sequence, head, first + row)
        for offset in range(0, 4 * job.size, 4 * LANES):
            store(out + offset, load(own + offset))


@njit(nogil=True)
def scratch_bytes(job_address):
    return 4 * _ROWS * (_CHUNK_TOKENS + 2 * _job_at(job_address).size) + 8 * _ROWS


@njit(nogil=True)
def num_units_per_head(num_queries):
    """Returns how many units the queries of a sequence are that share a KV head."""
    return (num_queries + _ROWS - 1) // _ROWS
