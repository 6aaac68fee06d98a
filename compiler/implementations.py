"""What runs in the place of the named ops on CPU targets.

Each function here computes what the op of the same name in `models.layers` defines, in the form that XLA's CPU
backend runs well:

- `linear`: a product with fewer than 8 rows falls into a naive loop when its weights are bf16; padded to 8 rows it is
  a library call, and its result does not depend on how many sequences share the step.
- `attention`: over a paged pool, in chunks of the context with a running softmax. The loop ends at the longest
  sequence of the step, so its cost follows what is in the cache and its temporaries never grow with the context. It
  also keeps XLA from copying the pool: a single-token update fused with a whole-context gather does that.
- `self_attention`: one sequence at a time, so that scores never exist for a whole batch.
- `vocabulary_max`: over slabs of the vocabulary, so that logits never exist for a whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..models import layers
from .configuration import BLOCK_TOKENS
from .target import Target

__all__ = ["PagedView", "implementations_for", "pool_dtype"]

_MIN_ROWS = 8
_CHUNK_TOKENS = 256  # of the context, per round of attention
_SLAB_VALUES = 1 << 20  # logits that exist at once in vocabulary_max
_MASKED = -1e30  # finite, so that a wholly masked row stays free of NaN


def implementations_for(target: Target) -> dict[str, Callable[..., object]]:
    """Returns the implementations of named ops on a target; an op that has none runs as `models.layers` defines it."""
    if not any(tier.memory_kind for tier in target.tiers.values()):
        return {}
    return {
        "linear": linear,
        "attention": attention,
        "self_attention": self_attention,
        "vocabulary_max": vocabulary_max,
    }


def pool_dtype(dtype: str) -> jnp.dtype:
    """Returns the type in which a KV pool of `dtype` is stored: bf16 as its bits, for XLA would rewrite whole pools."""
    return jnp.dtype(jnp.uint16 if dtype == "bfloat16" else dtype)


@dataclass(frozen=True)
class PagedView:
    """The KV cache of one layer in the blocks of a pool."""

    pool: Array  # [blocks, block tokens, 2, kv heads, head size], stored as `pool_dtype`
    tables: Int[Array, "batch blocks"]  # block of each BLOCK_TOKENS of each sequence; out of range where it has none
    dtype: str  # of the values

    def extended(self, keys_values: Array, positions: Int[Array, "batch new"]) -> PagedView:
        """Returns the view with keys and values [batch, new, 2, kv heads, size] written at `positions`."""
        stored = keys_values.astype(self.dtype)
        if self.pool.dtype != stored.dtype:
            stored = jax.lax.bitcast_convert_type(stored, self.pool.dtype)
        blocks = jnp.take_along_axis(self.tables, positions // BLOCK_TOKENS, axis=1)
        pool = self.pool.at[blocks, positions % BLOCK_TOKENS].set(stored, mode="drop")
        return PagedView(pool, self.tables, self.dtype)

    def chunk(self, first_block: Array, num_blocks: int) -> tuple[Array, Array]:
        """Returns f32 keys and values of some blocks of every sequence, each [batch, tokens, kv heads, size]."""
        blocks = jax.lax.dynamic_slice_in_dim(self.tables, first_block, num_blocks, axis=1)
        stored = self.pool.at[blocks].get(mode="clip")
        if self.pool.dtype != jnp.dtype(self.dtype):
            stored = jax.lax.bitcast_convert_type(stored, jnp.dtype(self.dtype))
        values = stored.astype(jnp.float32).reshape(blocks.shape[0], num_blocks * BLOCK_TOKENS, *stored.shape[3:])
        return values[:, :, 0], values[:, :, 1]


def linear(x: Float[Array, "... in"], weight: Float[Array, "out in"], *bias: Float[Array, " out"]) -> Array:
    """`layers.linear` with its rows padded to 8."""
    rows = x.reshape(-1, x.shape[-1])
    missing = max(0, _MIN_ROWS - rows.shape[0])
    padded = jnp.pad(rows, ((0, missing), (0, 0))) if missing else rows
    return layers.linear(padded, weight, *bias)[: rows.shape[0]].reshape(*x.shape[:-1], -1)


def attention(
    query: Float[Array, "batch new heads size"],
    key: Float[Array, "batch new kv_heads size"],
    value: Float[Array, "batch new kv_heads size"],
    view: PagedView,
    same_view: PagedView,
    start: Int[Array, " batch"],
    *,
    scale: float,
) -> tuple[Array, PagedView, PagedView]:
    """`layers.attention` over a paged pool; keys and values share one view."""
    assert same_view is view
    batch, new, heads, size = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    positions = start[:, None] + jnp.arange(new)
    extended = view.extended(jnp.stack([key, value], axis=2), positions)
    grouped = query.astype(jnp.float32).reshape(batch, new, kv_heads, group, size) * scale
    chunk_blocks = min(_CHUNK_TOKENS // BLOCK_TOKENS, extended.tables.shape[1])
    chunk_tokens = chunk_blocks * BLOCK_TOKENS
    num_chunks = (jnp.max(start) + new + chunk_tokens - 1) // chunk_tokens
    last_chunk = -(-extended.tables.shape[1] // chunk_blocks)

    def attend(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        index, maximum, total, out = carry
        # A slice that would pass the table's end starts earlier: its first tokens were seen in the round before.
        first = jnp.minimum(index * chunk_blocks, extended.tables.shape[1] - chunk_blocks)
        keys, values = extended.chunk(first, chunk_blocks)
        scores = jnp.einsum("bnkgd,bckd->bkgnc", grouped, keys)
        seen_at = first * BLOCK_TOKENS + jnp.arange(chunk_tokens)
        fresh = seen_at >= index * chunk_tokens
        visible = (seen_at <= positions[:, :, None]) & fresh
        scores = jnp.where(visible[:, None, None], scores, _MASKED)
        new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new_maximum[..., None])
        shrink = jnp.exp(maximum - new_maximum)
        total = total * shrink + jnp.sum(weights, axis=-1)
        out = out * shrink[..., None] + jnp.einsum("bkgnc,bckd->bkgnd", weights, values)
        return index + 1, new_maximum, total, out

    shape = (batch, kv_heads, group, new)
    initial = (jnp.int32(0), jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros((*shape, size)))
    _, _, total, out = jax.lax.while_loop(lambda carry: carry[0] < jnp.minimum(num_chunks, last_chunk), attend, initial)
    out = (out / total[..., None]).transpose(0, 3, 1, 2, 4).reshape(query.shape)
    return out.astype(query.dtype), extended, extended


def self_attention(
    query: Float[Array, "batch seq heads size"],
    key: Float[Array, "batch seq heads size"],
    value: Float[Array, "batch seq heads size"],
    lengths: Int[Array, " batch"],
    *,
    scale: float,
) -> Float[Array, "batch seq heads size"]:
    """`layers.self_attention`, one sequence after the other."""

    def one(operands: tuple[Array, ...]) -> Array:
        rows = (operand[None] for operand in operands)
        return layers.self_attention(*rows, scale=scale)[0]

    return jax.lax.map(one, (query, key, value, lengths))


def vocabulary_max(
    x: Float[Array, "batch seq hidden"],
    weight: Float[Array, "vocab hidden"],
    bias: Float[Array, " vocab"],
    lengths: Int[Array, " batch"],
) -> Float[Array, "batch vocab"]:
    """`layers.vocabulary_max`, one slab of the vocabulary after the other."""
    batch, sequence, _ = x.shape
    vocab = weight.shape[0]
    slab = min(vocab, max(64, _SLAB_VALUES // (batch * sequence)))

    def one(index: Array, out: Array) -> Array:
        first = jnp.minimum(index * slab, vocab - slab)
        rows = jax.lax.dynamic_slice_in_dim(weight, first, slab)
        shift = jax.lax.dynamic_slice_in_dim(bias, first, slab)
        part = layers.vocabulary_max(x, rows, shift, lengths)
        return jax.lax.dynamic_update_slice_in_dim(out, part, first, axis=1)

    return jax.lax.fori_loop(0, -(-vocab // slab), one, jnp.zeros((batch, vocab)))
