"""The attention kernel against attention as numpy computes it, in f64, over a pool that is read back into its order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numba import njit

from plait.compiler.configuration import BLOCK_TOKENS
from plait.compiler.kernels import by_vectors, paged_attention, supports_paged_attention
from plait.compiler.kernels.attention_job import JOB, write_new
from plait.compiler.kernels.attention_unit import MASKED, unit_bytes, units_per_head
from plait.compiler.kernels.paged_attention import attending


@dataclasses.dataclass(frozen=True)
class Case:
    dtype: str = "bfloat16"
    batch: int = 2
    new: int = 5
    heads: int = 6
    kv_heads: int = 2
    size: int = 64
    starts: tuple[int, ...] = (150, 0)
    blocks: int = 20  # of each sequence's table
    window: int = 0
    cap: float = 0.0
    has_slopes: bool = False
    has_sinks: bool = False
    scale: float = 0.125


CASES = {
    "decode": Case(new=1, starts=(200, 17)),
    "f32": Case(dtype="float32", new=3),
    "one head of keys": Case(heads=8, kv_heads=1),
    "as many heads of keys": Case(heads=3, kv_heads=3),
    "half a panel": Case(size=16, scale=0.25),
    "three vectors": Case(size=48),
    "large heads": Case(size=128),
    "prompt": Case(batch=1, new=150, starts=(0,)),
    "rest of a prompt": Case(batch=1, new=70, starts=(130,)),
    "window": Case(new=40, window=19, starts=(190, 3)),
    "cap": Case(cap=2.0),
    "slopes": Case(has_slopes=True),
    "sinks": Case(has_sinks=True, new=2, starts=(0, 30)),
    "all of it in f32": Case(
        dtype="float32", new=20, window=33, cap=3.0, has_slopes=True, has_sinks=True, starts=(140, 9), size=32
    ),
    "a table that ends": Case(batch=1, new=8, starts=(314,)),
}


@dataclasses.dataclass(frozen=True)
class Operands:
    query: np.ndarray  # in the pool's type, as are keys and values
    key: np.ndarray
    value: np.ndarray
    pool: np.ndarray
    tables: np.ndarray
    start: np.ndarray
    slopes: np.ndarray
    sinks: np.ndarray
    keys: np.ndarray  # f64, of all positions
    values: np.ndarray


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    return values.astype(np.float32) if dtype == "float32" else _bits(values)


def _bits(values: np.ndarray) -> np.ndarray:
    return np.asarray(jnp.asarray(values, jnp.bfloat16)).view(np.uint16)


def wide(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.float32:
        return array.astype(np.float64)
    return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def operands(case: Case, seed: int = 0) -> Operands:
    """Random ones; sequences' blocks lie anywhere in the pool."""
    draw = np.random.default_rng(seed)
    context = case.blocks * BLOCK_TOKENS
    query = draw.standard_normal((case.batch, case.new, case.heads, case.size))
    key, value = draw.standard_normal((2, case.batch, case.new, case.kv_heads, case.size))
    keys, values = (
        stored(draw.standard_normal((case.batch, context, case.kv_heads, case.size)), case.dtype) for _ in range(2)
    )
    tables = draw.permutation(case.batch * case.blocks).reshape(case.batch, case.blocks).astype(np.int32)
    pool = np.zeros((case.batch * case.blocks, 2, case.kv_heads, BLOCK_TOKENS, case.size), keys.dtype)
    for sequence in range(case.batch):
        for block, number in enumerate(tables[sequence]):
            tokens = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
            for head in range(case.kv_heads):
                pool[number, 0, head].flat = in_pool(keys[sequence, tokens, head].T)
                pool[number, 1, head].flat = in_pool(values[sequence, tokens, head])
    return Operands(
        stored(query, case.dtype),
        stored(key, case.dtype),
        stored(value, case.dtype),
        pool,
        tables,
        np.array(case.starts, np.int32),
        (draw.random(case.heads) * case.has_slopes).astype(np.float32),
        draw.standard_normal(case.heads).astype(np.float32) if case.has_sinks else np.full(case.heads, MASKED),
        wide(keys),
        wide(values),
    )


def in_pool(run: np.ndarray) -> np.ndarray:
    """A run of keys [size, tokens], or of values [tokens, size], in its order in memory."""
    rows, columns = run.shape
    pairs = run if run.dtype == np.float32 else run.reshape(rows // 2, 2, columns).transpose(0, 2, 1)
    return pairs.reshape(-1)


def expected(case: Case, given: Operands) -> np.ndarray:
    out = np.zeros((case.batch, case.new, case.heads, case.size))
    keys, values = given.keys.copy(), given.values.copy()
    context = case.blocks * BLOCK_TOKENS
    for sequence, start in enumerate(case.starts):
        end = min(start + case.new, context)
        keys[sequence, start:end] = wide(given.key)[sequence, : end - start]
        values[sequence, start:end] = wide(given.value)[sequence, : end - start]
        for index in range(end - start):
            for head in range(case.heads):
                position, kv_head = start + index, head // (case.heads // case.kv_heads)
                seen = np.arange(max(0, position - case.window + 1) if case.window else 0, position + 1)
                scores = keys[sequence, seen, kv_head] @ wide(given.query)[sequence, index, head] * case.scale
                scores = case.cap * np.tanh(scores / case.cap) if case.cap else scores
                scores = scores - given.slopes[head] * (position - seen)
                weights = np.exp(scores - scores.max())
                total = weights.sum() + np.exp(given.sinks[head] - scores.max())
                out[sequence, index, head] = weights @ values[sequence, seen, kv_head] / total
    return out


def by_xla(case: Case, given: Operands) -> tuple[np.ndarray, np.ndarray]:
    out, pool = jax.jit(
        lambda *arrays: paged_attention(*arrays, scale=case.scale, window=case.window, cap=case.cap),
        donate_argnums=3,
    )(*(jnp.asarray(array) for array in arrays_of(given)))
    return np.asarray(out), np.asarray(pool)


def arrays_of(given: Operands) -> tuple[np.ndarray, ...]:
    names = ("query", "key", "value", "pool", "tables", "start", "slopes", "sinks")
    return tuple(getattr(given, name) for name in names)


_attend_by_vectors = attending(by_vectors)


@njit
def _do_all(job: int, count: int, memory: int) -> None:
    write_new(job)
    for number in range(count):
        _attend_by_vectors(job, number, memory)


def by_vectors_alone(case: Case, given: Operands) -> tuple[np.ndarray, np.ndarray]:
    """As on a processor without tile registers, in one thread."""
    pool = given.pool.copy()
    arrays = dict(
        zip(("query", "key", "value", "pool", "tables", "start", "slopes", "sinks"), arrays_of(given), strict=True)
    )
    arrays |= {"pool": pool, "out": np.zeros(given.query.shape, np.float32)}
    job = np.zeros(1, JOB)
    for name, array in arrays.items():
        job[name] = array.ctypes.data
    job["batch"], job["new"], job["heads"], job["size"] = given.query.shape
    job["kv_heads"], job["num_blocks"], job["table_width"] = case.kv_heads, len(pool), case.blocks
    job["window"], job["cap"], job["scale"] = case.window, case.cap, case.scale
    job["value_bytes"] = pool.itemsize
    job["units_per_head"] = units_per_head(case.new * case.heads // case.kv_heads)
    count = case.batch * case.kv_heads * int(job["units_per_head"][0])
    memory = np.zeros(unit_bytes(job.ctypes.data), np.uint8)
    _do_all(job.ctypes.data, count, memory.ctypes.data)
    return arrays["out"], pool


HOW: dict[str, tuple[Callable[[Case, Operands], tuple[np.ndarray, np.ndarray]], float]] = {
    "called by XLA": (by_xla, 2e-2),  # on tile registers weights are rounded to bf16
    "on vectors": (by_vectors_alone, 2e-6),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", CASES)
def test_attention_equals_numpys(name: str, how: str) -> None:
    case, (run, tolerance) = CASES[name], HOW[how]
    given = operands(case)
    out, _ = run(case, given)
    end = case.blocks * BLOCK_TOKENS
    for sequence, start in enumerate(case.starts):
        is_inside = slice(0, max(0, min(case.new, end - start)))
        wanted = expected(case, given)[sequence, is_inside]
        bound = 2e-6 if case.dtype == "float32" else tolerance
        np.testing.assert_allclose(out[sequence, is_inside], wanted, atol=bound, rtol=bound)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["decode", "f32", "prompt", "three vectors", "a table that ends"])
def test_new_keys_and_values_are_in_the_pool_and_nothing_else_changes(name: str, how: str) -> None:
    case = CASES[name]
    given = operands(case)
    _, pool = HOW[how][0](case, given)
    wanted = given.pool.copy()
    for sequence, start in enumerate(case.starts):
        for index in range(case.new):
            block, slot = divmod(start + index, BLOCK_TOKENS)
            if block >= case.blocks:
                continue
            for head in range(case.kv_heads):
                for part, new in ((0, given.key), (1, given.value)):
                    run = wanted[given.tables[sequence, block], part, head]
                    step = 1 if case.dtype == "float32" else 2
                    grid = run.reshape(-1)
                    for element in range(case.size):
                        row, column = (element, slot) if part == 0 else (slot, element)
                        width = BLOCK_TOKENS if part == 0 else case.size
                        at = (row // step * width + column) * step + row % step
                        grid[at] = new[sequence, index, head, element]
    np.testing.assert_array_equal(pool, wanted)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("window", [0, 37])
def test_a_row_has_the_same_bits_however_a_prompt_is_cut_and_whatever_is_beside_it(
    how: str, dtype: str, window: int
) -> None:
    whole = Case(dtype=dtype, batch=1, new=150, starts=(0,), window=window)
    given = operands(whole)
    run = HOW[how][0]
    out, _ = run(whole, given)
    pool, parts = given.pool.copy(), []
    for begin, end in ((0, 1), (1, 70), (70, 78), (78, 150)):
        piece = dataclasses.replace(whole, new=end - begin, starts=(begin,))
        cut = dataclasses.replace(
            given,
            query=np.ascontiguousarray(given.query[:, begin:end]),
            key=np.ascontiguousarray(given.key[:, begin:end]),
            value=np.ascontiguousarray(given.value[:, begin:end]),
            pool=pool,
            start=np.array([begin], np.int32),
        )
        part, pool = run(piece, cut)
        parts.append(part)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), out)

    alone = Case(dtype=dtype, batch=1, new=1, starts=(149,), window=window)
    beside = operands(dataclasses.replace(alone, batch=3, starts=(149, 149, 20)))
    together, _ = run(dataclasses.replace(alone, batch=3, starts=(149, 149, 20)), beside)
    first = dataclasses.replace(
        beside,
        **{name: getattr(beside, name)[:1] for name in ("query", "key", "value", "tables", "start")},
    )
    by_itself, _ = run(alone, first)
    np.testing.assert_array_equal(by_itself[0], together[0])


def test_what_the_kernel_does_not_take_is_an_error_and_touches_nothing() -> None:
    case = CASES["decode"]
    given = operands(case)
    wrong = {
        "tables": given.tables[:1],
        "start": given.start[:1],
        "key": given.key[..., :32].copy(),
        "sinks": given.sinks[:2],
        "query": wide(given.query).astype(np.float32),
        "pool": given.pool[:, :1].copy(),
    }
    for name, array in wrong.items():
        with pytest.raises(jax.errors.JaxRuntimeError, match="operands that it does not take"):
            by_xla(case, dataclasses.replace(given, **{name: array}))


def test_tables_that_point_outside_the_pool_are_read_inside_and_not_written() -> None:
    case = CASES["decode"]
    given = operands(case)
    for number in (-5, 10**6):
        out, pool = by_xla(case, dataclasses.replace(given, tables=np.full_like(given.tables, number)))
        assert np.isfinite(out).all()
        np.testing.assert_array_equal(pool, given.pool)
    out, _ = by_xla(case, dataclasses.replace(given, start=np.array([-7, 10**6], np.int32)))
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("size", "dtype", "fits"), [(64, "uint16", True), (16, "float32", True), (24, "uint16", False)]
)
def test_which_heads_and_pools_it_takes(size: int, dtype: str, fits: bool) -> None:
    assert supports_paged_attention(size, jnp.dtype(dtype)) == fits


def test_a_pool_of_another_type_is_left_to_xla() -> None:
    assert not supports_paged_attention(64, jnp.dtype(jnp.float16))
