"""Attention over a paged KV pool, as it runs in the place of the named ops.

On a CPU it is a kernel of our own (`kernels/`). Elsewhere, and for what the kernel does not take, it goes through the
context in chunks of a fixed number of tokens with a running softmax, and ends at the longest sequence of the step: its
cost follows what is in the cache, and its temporaries never grow with the context. Every row of a product is computed
alike whatever shares the step, so that an answer does not depend on the batch or on how a prompt is cut: rows are
padded to 8, chunks begin at multiples of their size, and one after a row's last adds zero.

What the layout of a pool is chosen for there: the tokens of one head in a block are one run of memory, which XLA
gathers as a row, and a chunk of a head is what the library's products want as an operand. With tokens outside heads, it
copies every chunk once more and computes the products one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..models import layers, mla
from .batch_invariant import by_heads, padded_rows, row_sums
from .configuration import BLOCK_TOKENS
from .kernels import paged_attention, supports_paged_attention

__all__ = ["PagedView", "attention", "latent_attention"]

_CHUNK_TOKENS = 128  # of the context, per round
_QUERY_TOKENS = 128  # of a prompt at once: those before see fewer rounds
_MASKED = -1e30  # finite, so that a wholly masked row stays free of NaN


@dataclass(frozen=True)
class PagedView:
    """What attention keeps of one layer, in the blocks of a pool."""

    pool: Array  # [blocks, parts, heads, block tokens, size], stored as `pool_dtype`; parts are keys and values
    tables: Int[Array, "batch blocks"]  # block of each BLOCK_TOKENS of each sequence; out of range where it has none
    dtype: str  # of the values

    def extended(self, parts: Sequence[Float[Array, "batch new heads size"]], positions: Array) -> PagedView:
        """Returns the view with new entries written at `positions` [batch, new]."""
        stored = _stored(jnp.stack(parts, axis=2), self.dtype, self.pool.dtype)
        # A padding token may lie beyond the table: its block is out of range, and its entry is dropped.
        blocks = jnp.take_along_axis(self.tables, positions // BLOCK_TOKENS, axis=1, mode="clip")
        blocks = jnp.where(positions < self.tables.shape[1] * BLOCK_TOKENS, blocks, self.pool.shape[0])
        runs = self._runs(blocks)  # [parts, heads, batch, new]
        rows = jnp.moveaxis(runs * BLOCK_TOKENS + positions % BLOCK_TOKENS, (0, 1), (2, 3))
        pool = self.pool.reshape(-1, self.pool.shape[-1]).at[rows].set(stored, mode="drop")
        return PagedView(pool.reshape(self.pool.shape), self.tables, self.dtype)

    def tokens(self, part: int, first_block: Array, num_blocks: int) -> Float[Array, "heads batch tokens size"]:
        """Returns one part of the entries in some blocks of every sequence."""
        _, _, heads, _, size = self.pool.shape
        blocks = jax.lax.dynamic_slice_in_dim(self.tables, first_block, num_blocks, axis=1)
        runs = self._runs(jnp.minimum(blocks, self.pool.shape[0] - 1))[part].reshape(-1)

        def gathered() -> Array:
            stored = self.pool.reshape(-1, BLOCK_TOKENS * size).at[runs].get(mode="promise_in_bounds")
            return _values(stored, self.dtype)

        # As a branch of its own it is a copy of runs. Fused with what reshapes it, as XLA would, every value is looked
        # up by itself, which takes four times as long.
        entries = jax.lax.cond(
            first_block >= 0,
            gathered,
            lambda: jnp.zeros((runs.size, BLOCK_TOKENS * size), self.dtype),
        )
        return entries.reshape(heads, blocks.shape[0], num_blocks * BLOCK_TOKENS, size)

    def _runs(self, blocks: Int[Array, "batch some"]) -> Int[Array, "parts heads batch some"]:
        """Returns the number of each block's run of tokens, of every part and head."""
        _, parts, heads, _, _ = self.pool.shape
        first = jnp.arange(parts * heads, dtype=jnp.int32).reshape(parts, heads, 1, 1)
        return blocks * (parts * heads) + first


def _stored(values: Array, dtype: str, pool_type: jnp.dtype) -> Array:
    """Returns values of `dtype` as a pool holds them."""
    values = values.astype(dtype)
    return values if values.dtype == pool_type else jax.lax.bitcast_convert_type(values, pool_type)


def _values(stored: Array, dtype: str) -> Array:
    """Returns what a pool holds as values of `dtype`."""
    return stored if stored.dtype == jnp.dtype(dtype) else jax.lax.bitcast_convert_type(stored, jnp.dtype(dtype))


@dataclass(frozen=True)
class _Rows:
    """The queries of a step as the rows of products: those of all heads that share keys, at all new positions."""

    queries: Float[Array, "kv_heads batch rows size"]
    positions: Int[Array, "batch rows"]
    view: PagedView
    scale: float
    window: int = 0  # positions that are seen; 0 for all
    cap: float = 0.0
    slopes: Float[Array, "kv_heads 1 rows 1"] | None = None
    value_part: int = 1  # of the view
    value_size: int = 0  # of each value, where it is the first of a larger entry; 0 for all
    sum_rows: Callable[[Array], Array] = row_sums

    def attend(self, sinks: Float[Array, "kv_heads batch rows"] | None) -> Float[Array, "kv_heads batch rows value"]:
        """Returns the softmax-weighted sums over the context; sinks are logits that take weight and give nothing."""
        num_blocks = self.view.tables.shape[1]
        chunk_blocks = min(_CHUNK_TOKENS // BLOCK_TOKENS, num_blocks)
        chunk_tokens = chunk_blocks * BLOCK_TOKENS
        last_round = jnp.minimum(jnp.max(self.positions) // chunk_tokens + 1, -(-num_blocks // chunk_blocks))
        first_seen = jnp.maximum(jnp.min(self.positions) - self.window + 1, 0) if self.window else 0

        def attend(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            index, maximum, total, out = carry
            # A slice that would pass the table's end starts earlier: its first tokens were seen in the round before.
            first = jnp.minimum(index * chunk_blocks, num_blocks - chunk_blocks)
            seen_at = first * BLOCK_TOKENS + jnp.arange(chunk_tokens)
            scores = self._scores(self.view.tokens(0, first, chunk_blocks), seen_at, index * chunk_tokens)
            new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=-1))
            # A row that has seen nothing yet weighs what is masked; the first that it sees shrinks that to nothing.
            weights = jnp.exp(scores - new_maximum[..., None])
            shrink = jnp.exp(maximum - new_maximum)
            total = total * shrink + self.sum_rows(weights)
            values = self.view.tokens(self.value_part, first, chunk_blocks)
            values = values[..., : self.value_size] if self.value_size else values
            weighted = _product("kbrc,kbcd->kbrd", weights, values)
            return index + 1, new_maximum, total, out * shrink[..., None] + weighted

        shape = self.queries.shape[:-1]
        size = self.value_size or self.view.pool.shape[-1]
        maximum, total = (jnp.full(shape, _MASKED), jnp.zeros(shape)) if sinks is None else (sinks, jnp.ones(shape))
        initial = (jnp.int32(first_seen // chunk_tokens), maximum, total, jnp.zeros((*shape, size)))
        _, _, total, out = jax.lax.while_loop(lambda carry: carry[0] < last_round, attend, initial)
        return out / total[..., None]

    def _scores(self, keys: Array, seen_at: Array, first_new: Array) -> Float[Array, "kv_heads batch rows tokens"]:
        scores = _product("kbrd,kbcd->kbrc", self.queries, keys) * self.scale
        if self.cap:
            scores = self.cap * jnp.tanh(scores / self.cap)
        distance = self.positions[:, :, None] - seen_at
        if self.slopes is not None:
            scores = scores - self.slopes * distance.astype(jnp.float32)
        visible = (distance >= 0) & (seen_at >= first_new)
        if self.window:
            visible &= distance < self.window
        return jnp.where(visible, scores, _MASKED)


def _product(equation: str, rows: Array, entries: Array) -> Array:
    """A product in the type of the cache, accumulated in f32; its rows are padded for the time of the product."""
    padded = padded_rows(rows.astype(entries.dtype), axis=2)
    return jnp.einsum(equation, padded, entries, preferred_element_type=jnp.float32)[:, :, : rows.shape[2]]


def attention(
    query: Float[Array, "batch new heads size"],
    key: Float[Array, "batch new kv_heads size"],
    value: Float[Array, "batch new kv_heads size"],
    view: PagedView,
    same_view: PagedView,
    start: Int[Array, " batch"],
    *sinks: Float[Array, " heads"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    alibi: bool = False,
    head_axes: tuple[str, ...] = (),
    sum_rows: Callable[[Array], Array] = row_sums,
) -> tuple[Array, PagedView, PagedView]:
    """`layers.attention` over a paged pool; keys and values share one view.

    Inside `shard_map` the heads are those of one device, the mesh axes `head_axes` divide them, and `sum_rows` may be
    plain sums, which depend on the number of rows.
    """
    assert same_view is view
    out, pool = _attention(
        *(query, key, value, view.pool, view.tables, start, *sinks),
        dtype=view.dtype,
        options=_Options(scale, window, cap, alibi, head_axes, sum_rows),
    )
    extended = PagedView(pool, view.tables, view.dtype)
    return out, extended, extended


class _Options(NamedTuple):
    """What all layers of a model, or all of a kind, have in common."""

    scale: float
    window: int
    cap: float
    alibi: bool
    head_axes: tuple[str, ...]
    sum_rows: Callable[[Array], Array]


@functools.partial(jax.jit, static_argnames=("dtype", "options"))
def _attention(
    query: Array,
    key: Array,
    value: Array,
    pool: Array,
    tables: Array,
    start: Array,
    *sinks: Array,
    dtype: str,
    options: _Options,
) -> tuple[Array, Array]:
    """Returns the heads' outputs and the extended pool; a program has this function once, not in each layer."""
    slopes = _own_slopes(query.shape[2], options.head_axes) if options.alibi else None

    def by_kernel(query: Array, key: Array, value: Array, pool: Array, tables: Array, start: Array):
        query_bits, key, value = (_stored(each, dtype, pool.dtype) for each in (query, key, value))
        shape = {"scale": options.scale, "window": options.window, "cap": options.cap}
        sink = next(iter(sinks), None)
        out, pool = paged_attention(query_bits, key, value, pool, tables, start, slopes, sink, **shape)
        return out.astype(query.dtype), pool

    def by_chunks(query: Array, key: Array, value: Array, pool: Array, tables: Array, start: Array):
        return _by_chunks(query, key, value, PagedView(pool, tables, dtype), start, slopes, sinks, options)

    operands = (query, key, value, pool, tables, start)
    if supports_paged_attention(query.shape[-1], pool.dtype):
        return jax.lax.platform_dependent(*operands, cpu=by_kernel, default=by_chunks)
    return by_chunks(*operands)


def _by_chunks(
    query: Array,
    key: Array,
    value: Array,
    view: PagedView,
    start: Array,
    slopes: Array | None,
    sinks: Sequence[Array],
    options: _Options,
) -> tuple[Array, Array]:
    """Attention in XLA's own operations; returns the heads' outputs and the extended pool."""
    heads, kv_heads = query.shape[2], key.shape[2]
    positions = start[:, None] + jnp.arange(query.shape[1])
    extended = view.extended((key, value), positions)

    def attend(query: Array, positions: Array) -> Array:
        batch, new = positions.shape
        of_heads = [
            None if each is None else _of_heads(each.astype(jnp.float32), kv_heads, new)
            for each in (slopes, *(sinks or (None,)))
        ]
        rows = _Rows(
            _to_rows(query, kv_heads),
            _row_positions(positions, heads // kv_heads),
            extended,
            options.scale,
            window=options.window,
            cap=options.cap,
            slopes=None if of_heads[0] is None else of_heads[0][..., None],
            sum_rows=options.sum_rows,
        )
        first = None if of_heads[1] is None else jnp.broadcast_to(of_heads[1], rows.queries.shape[:-1])
        return _from_rows(rows.attend(first), (batch, new, heads)).astype(query.dtype)

    return _by_queries(attend, query, positions), extended.pool


def latent_attention(
    query: Float[Array, "batch new heads nope"],
    rope_query: Float[Array, "batch new heads rope"],
    latent: Float[Array, "batch new 1 latent"],
    rope_key: Float[Array, "batch new 1 rope"],
    view: PagedView,
    same_view: PagedView,
    start: Int[Array, " batch"],
    *up: Array,
    scale: float,
    form: str = "",
    dtype: str = "",
) -> tuple[Array, PagedView, PagedView]:
    """`mla.latent_attention` over a paged pool of latents and rotary keys, in the latent space whatever the step.

    Keys and values of heads never exist: all heads share one entry a token.
    """
    assert same_view is view
    heads, nope = query.shape[2:]
    size = latent.shape[-1]
    to_key, to_value = mla.head_weights(up, heads, nope, form=form, dtype=dtype)
    positions = start[:, None] + jnp.arange(query.shape[1])
    extended = view.extended((jnp.concatenate([latent, rope_key], axis=-1),), positions)
    inner = jnp.concatenate([by_heads(query, to_key), rope_query.astype(jnp.float32)], axis=-1)

    def attend(inner: Array, positions: Array) -> Array:
        rows = _Rows(
            _to_rows(inner, 1), _row_positions(positions, heads), extended, scale, value_part=0, value_size=size
        )
        batch, new = positions.shape
        return _from_rows(rows.attend(None), (batch, new, heads))

    out = by_heads(_by_queries(attend, inner, positions), to_value.swapaxes(1, 2))
    return out.astype(query.dtype), extended, extended


def _by_queries(attend, query: Float[Array, "batch new heads size"], positions: Int[Array, "batch new"]) -> Array:
    """Attends for all queries, a number of positions after the other where there are many."""
    batch, new = positions.shape
    if new <= _QUERY_TOKENS or new % _QUERY_TOKENS:
        return attend(query, positions)
    count = new // _QUERY_TOKENS
    queries = jnp.moveaxis(query.reshape(batch, count, _QUERY_TOKENS, *query.shape[2:]), 1, 0)
    places = jnp.moveaxis(positions.reshape(batch, count, _QUERY_TOKENS), 1, 0)
    out = jax.lax.map(lambda part: attend(*part), (queries, places))
    return jnp.moveaxis(out, 0, 1).reshape(batch, new, *out.shape[3:])


def _to_rows(query: Float[Array, "batch new heads size"], kv_heads: int) -> Float[Array, "kv_heads batch rows size"]:
    """Returns the queries as rows, heads of a group before positions."""
    batch, new, heads, size = query.shape
    rows = query.reshape(batch, new, kv_heads, heads // kv_heads, size).transpose(2, 0, 3, 1, 4)
    return rows.reshape(kv_heads, batch, -1, size)


def _row_positions(positions: Int[Array, "batch new"], group: int) -> Int[Array, "batch rows"]:
    return jnp.tile(positions, (1, group))


def _of_heads(values: Float[Array, " heads"], kv_heads: int, new: int) -> Float[Array, "kv_heads 1 rows"]:
    """Returns a value of each head for its rows."""
    return jnp.repeat(values.reshape(kv_heads, 1, -1), new, axis=-1)


def _from_rows(rows: Array, shape: tuple[int, int, int]) -> Float[Array, "batch new heads value"]:
    """Returns rows as [batch, new, heads, value]."""
    batch, new, heads = shape
    kv_heads, _, _, size = rows.shape
    split = rows.reshape(kv_heads, batch, heads // kv_heads, new, size)
    return split.transpose(1, 3, 0, 2, 4).reshape(batch, new, heads, size)


def _own_slopes(num_heads: int, head_axes: tuple[str, ...]) -> Float[Array, " heads"]:
    """Returns the slopes of this device's heads: what they are depends on their place among all."""
    if not head_axes:
        return layers.alibi_slopes(num_heads)
    slopes = layers.alibi_slopes(num_heads * jax.lax.axis_size(head_axes))
    return jax.lax.dynamic_slice_in_dim(slopes, jax.lax.axis_index(head_axes) * num_heads, num_heads)
