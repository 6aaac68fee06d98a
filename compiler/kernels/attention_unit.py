"""A unit of paged attention: some queries of one sequence that share a KV head, and what is known of their softmax.

Each row is a query. All that a thread needs for a unit is in one piece of memory, this record first.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..configuration import BLOCK_TOKENS
from .attention_job import job_at, query_offset, start_of
from .memory import load_scalar, record_reader, store_scalar
from .vectors import (
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
    store,
    store_bf16,
    subtract,
    sum_of_lanes,
)

__all__ = [
    "CHUNK_BLOCKS",
    "CHUNK_TOKENS",
    "MASKED",
    "ROWS",
    "SCORE_ROW",
    "WEIGHT_ROW",
    "begin_unit",
    "soften",
    "take_results",
    "unit_at",
    "unit_bytes",
    "units_per_head",
]

ROWS = 32  # of a unit at most
CHUNK_TOKENS = 128  # of the context at once
CHUNK_BLOCKS = CHUNK_TOKENS // BLOCK_TOKENS
SCORE_ROW, WEIGHT_ROW = 4 * CHUNK_TOKENS, 2 * CHUNK_TOKENS  # bytes
MASKED = np.float32(-1e30)  # finite, so that what has seen nothing yet stays free of NaN

_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_ADDRESSES = ("scores", "weights", "queries", "sums", "state", "keys", "values")
_UNIT = np.dtype([(name, "i8") for name in ("sequence", "head", "first", "num_rows", "start", *_ADDRESSES)])
_HEADER_BYTES = 128
_RUNS_BYTES = 8 * CHUNK_BLOCKS
unit_at = record_reader(_UNIT)


@njit(nogil=True)
def units_per_head(num_queries):
    """Returns how many units the queries of a sequence are that share a KV head."""
    return (num_queries + ROWS - 1) // ROWS


@njit(nogil=True)
def unit_bytes(job_address):
    """Returns how much memory a thread needs for a unit of a job."""
    size = job_at(job_address).size
    per_row = SCORE_ROW + WEIGHT_ROW + 4 * size + 4 * size + 8
    return _HEADER_BYTES + ROWS * per_row + 2 * _RUNS_BYTES


@njit(nogil=True)
def begin_unit(job, number, memory):
    """Lays a unit out: scores (f32) and weights (bf16) of a chunk, queries, sums, the state of the softmax."""
    unit = unit_at(memory)
    unit.head = number // job.units_per_head % job.kv_heads
    unit.sequence = number // job.units_per_head // job.kv_heads
    unit.first = number % job.units_per_head * ROWS
    group = job.heads // job.kv_heads
    unit.num_rows = min(ROWS, job.new * group - unit.first)
    unit.start = start_of(job, unit.sequence)
    unit.scores = memory + _HEADER_BYTES
    unit.weights = unit.scores + ROWS * SCORE_ROW
    unit.queries = unit.weights + ROWS * WEIGHT_ROW
    unit.sums = unit.queries + ROWS * 4 * job.size
    unit.state = unit.sums + ROWS * 4 * job.size  # of each row the greatest score and the sum of weights
    unit.keys = unit.state + ROWS * 8  # room for the addresses of a chunk's runs
    unit.values = unit.keys + _RUNS_BYTES
    for offset in range(0, ROWS * 4 * job.size, 4 * LANES):
        store(unit.sums + offset, broadcast(_ZERO))
    for row in range(unit.num_rows):
        sink = load_scalar(job.sinks + 4 * (unit.head * group + (unit.first + row) % group))
        store_scalar(unit.state + 8 * row, sink)
        store_scalar(unit.state + 8 * row + 4, _ONE)  # a sink that is masked shrinks to nothing


@njit(nogil=True)
def _capped(score, cap):
    """Returns cap * tanh(score / cap), by e to the power of 2 score / cap."""
    power = exponential(multiply(score, broadcast(_TWO / cap)))
    return multiply(broadcast(cap), subtract(broadcast(_ONE), divide(broadcast(_TWO), add(power, broadcast(_ONE)))))


@njit(nogil=True)
def _scaled(scores, num_tokens, scale):
    """Scales a query's scores, all of which it sees as they are; returns the greatest."""
    greatest, factor = broadcast(MASKED), broadcast(scale)
    for offset in range(0, 4 * num_tokens, 4 * LANES):
        score = multiply(load(scores + offset), factor)
        store(scores + offset, score)
        greatest = maximum(greatest, score)
    return greatest_lane(greatest)


@njit(nogil=True)
def _shaped(job, scores, num_tokens, first, position, slope):
    """Scales a query's scores, caps them, lowers them by the distance, masks what it does not see.

    Returns the greatest.
    """
    begin = max(position - job.window + 1, 0) if job.window else 0
    greatest = broadcast(MASKED)
    for offset in range(0, num_tokens, LANES):
        at, token = scores + 4 * offset, first + offset
        score = multiply(load(at), broadcast(job.scale))
        if job.cap != _ZERO:
            score = _capped(score, job.cap)
        if slope != _ZERO:
            distance = subtract(broadcast(np.float32(position)), from_index(token))
            score = subtract(score, multiply(broadcast(slope), distance))
        score = keep_lanes(score, begin - token, position + 1 - token, MASKED)
        store(at, score)
        greatest = maximum(greatest, score)
    return greatest_lane(greatest)


@njit(nogil=True)
def _sees_all(job, num_tokens, first, position, slope):
    """Whether a query sees all tokens of a chunk, and their scores as they are."""
    is_plain = job.cap == _ZERO and slope == _ZERO
    return is_plain and first + num_tokens - 1 <= position and (not job.window or first > position - job.window)


@njit(nogil=True)
def _to_weights(scores, weights, num_tokens, greatest):
    """Replaces scores by e to what they are above the greatest, in bf16 too; returns their sum."""
    total, shift = broadcast(_ZERO), broadcast(greatest)
    for offset in range(0, num_tokens, LANES):
        weight = exponential(subtract(load(scores + 4 * offset), shift))
        store(scores + 4 * offset, weight)
        store_bf16(weights + 2 * offset, weight)
        total = add(total, weight)
    return sum_of_lanes(total)


@njit(nogil=True)
def _scale(address, size, factor):
    for offset in range(0, 4 * size, 4 * LANES):
        store(address + offset, multiply(load(address + offset), broadcast(factor)))


@njit(nogil=True)
def soften(job, unit, first, num_tokens):
    """Turns the scores of a chunk into weights, and takes it into the state of the softmax of all rows."""
    group = job.heads // job.kv_heads
    for row in range(unit.num_rows):
        state, scores = unit.state + 8 * row, unit.scores + SCORE_ROW * row
        position = unit.start + (unit.first + row) // group
        slope = load_scalar(job.slopes + 4 * (unit.head * group + (unit.first + row) % group))
        before = load_scalar(state)
        if _sees_all(job, num_tokens, first, position, slope):
            greatest = max(before, _scaled(scores, num_tokens, job.scale))
        else:
            greatest = max(before, _shaped(job, scores, num_tokens, first, position, slope))
        shrink = first_lane(exponential(broadcast(before - greatest)))
        total = _to_weights(scores, unit.weights + WEIGHT_ROW * row, num_tokens, greatest)
        store_scalar(state, greatest)
        store_scalar(state + 4, load_scalar(state + 4) * shrink + total)
        _scale(unit.sums + 4 * job.size * row, job.size, shrink)


@njit(nogil=True)
def take_results(job, unit):
    """Writes the result of each row to where its query was."""
    for row in range(unit.num_rows):
        sums = unit.sums + 4 * job.size * row
        _scale(sums, job.size, _ONE / load_scalar(unit.state + 8 * row + 4))
        out = job.out + 4 * query_offset(job, unit.sequence, unit.head, unit.first + row)
        for offset in range(0, 4 * job.size, 4 * LANES):
            store(out + offset, load(sums + offset))
