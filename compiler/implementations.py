"""What runs in the place of the named ops on CPU targets.

Each function here computes what the op of the same name in `models.layers` defines, in the form that XLA's CPU
backend runs well:

- `linear`: a product with fewer than 8 rows falls into a naive loop when its weights are bf16; padded to 8 rows it is
  a library call, and its result does not depend on how many sequences share the step.
- `attention`: over a paged pool, in chunks of the context with a running softmax. The loop ends at the longest
  sequence of the step, so its cost follows what is in the cache and its temporaries never grow with the context. It
  also keeps XLA from copying the pool: a single-token update fused with a whole-context gather does that.
- `latent_attention`: likewise, over latents; keys and values of heads never exist.
- `moe`: one expert after the other, those that nobody chose passed over.
- `self_attention`: one sequence at a time, so that scores never exist for a whole batch.
- `vocabulary_max`: over slabs of the vocabulary, so that logits never exist for a whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..models import layers, mla
from ..models.config import Activation
from ..models.moe import expert_activation
from ..models.named_ops import Option
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
        "latent_attention": latent_attention,
        "moe": moe,
        "self_attention": self_attention,
        "vocabulary_max": vocabulary_max,
    }


def pool_dtype(dtype: str) -> jnp.dtype:
    """Returns the type in which a KV pool of `dtype` is stored: bf16 as its bits, for XLA would rewrite whole pools."""
    return jnp.dtype(jnp.uint16 if dtype == "bfloat16" else dtype)


@dataclass(frozen=True)
class PagedView:
    """What attention keeps of one layer, in the blocks of a pool."""

    pool: Array  # [blocks, block tokens, *entry], stored as `pool_dtype`
    tables: Int[Array, "batch blocks"]  # block of each BLOCK_TOKENS of each sequence; out of range where it has none
    dtype: str  # of the values

    def extended(self, entries: Array, positions: Int[Array, "batch new"]) -> PagedView:
        """Returns the view with entries [batch, new, *entry] written at `positions`."""
        stored = entries.astype(self.dtype)
        if self.pool.dtype != stored.dtype:
            stored = jax.lax.bitcast_convert_type(stored, self.pool.dtype)
        blocks = jnp.take_along_axis(self.tables, positions // BLOCK_TOKENS, axis=1)
        pool = self.pool.at[blocks, positions % BLOCK_TOKENS].set(stored, mode="drop")
        return PagedView(pool, self.tables, self.dtype)

    def chunk(self, first_block: Array, num_blocks: int) -> Float[Array, "batch tokens ..."]:
        """Returns the f32 entries in some blocks of every sequence."""
        blocks = jax.lax.dynamic_slice_in_dim(self.tables, first_block, num_blocks, axis=1)
        stored = self.pool.at[blocks].get(mode="clip")
        if self.pool.dtype != jnp.dtype(self.dtype):
            stored = jax.lax.bitcast_convert_type(stored, jnp.dtype(self.dtype))
        return stored.astype(jnp.float32).reshape(blocks.shape[0], num_blocks * BLOCK_TOKENS, *stored.shape[3:])


@dataclass(frozen=True)
class _Chunks:
    """The rounds in which attention goes through the context of a step."""

    view: PagedView
    positions: Int[Array, "batch new"]  # of the new tokens
    window: int  # positions that are seen; 0 for all

    def attend(
        self,
        scores_and_values: Callable[[Array, Array], tuple[Array, Callable[[Array], Array]]],
        shape: tuple[int, ...],
        value_size: int,
        sinks: Array | None = None,
    ) -> Float[Array, "*shape value"]:
        """Returns the softmax-weighted sums over the context, by a running softmax.

        Args:
            scores_and_values: From f32 entries [batch, tokens, *entry] and their positions [tokens] to scores
                [*shape, tokens] and a function that sums values by weights of that shape.
            shape: [batch, ..., new].
            value_size: Of each sum.
            sinks: Logits of `shape` that take weight and give nothing.
        """
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
            scores, weighted_sum = scores_and_values(self.view.chunk(first, chunk_blocks), seen_at)
            distance = self.positions[:, :, None] - seen_at
            visible = (distance >= 0) & (seen_at >= index * chunk_tokens)
            if self.window:
                visible &= distance < self.window
            between = (1,) * (len(shape) - 2)
            visible = visible.reshape(shape[0], *between, shape[-1], chunk_tokens)
            scores = jnp.where(visible, scores, _MASKED)
            new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=-1))
            # A row that has seen nothing yet weighs nothing: exp(_MASKED - _MASKED) would be 1.
            weights = jnp.where(visible, jnp.exp(scores - new_maximum[..., None]), 0.0)
            shrink = jnp.exp(maximum - new_maximum)
            total = total * shrink + jnp.sum(weights, axis=-1)
            return index + 1, new_maximum, total, out * shrink[..., None] + weighted_sum(weights)

        maximum, total = (jnp.full(shape, _MASKED), jnp.zeros(shape)) if sinks is None else (sinks, jnp.ones(shape))
        initial = (jnp.int32(first_seen // chunk_tokens), maximum, total, jnp.zeros((*shape, value_size)))
        _, _, total, out = jax.lax.while_loop(lambda carry: carry[0] < last_round, attend, initial)
        return out / jnp.where(total > 0, total, 1.0)[..., None]  # a padding row may have seen nothing


def linear(
    x: Float[Array, "... in"], weight: Array, *scales_and_bias: Array, **options: Option
) -> Float[Array, "... out"]:
    """`layers.linear` with its rows padded to 8."""
    rows = x.reshape(-1, x.shape[-1])
    missing = max(0, _MIN_ROWS - rows.shape[0])
    padded = jnp.pad(rows, ((0, missing), (0, 0))) if missing else rows
    product = layers.linear(padded, weight, *scales_and_bias, **options)
    return product[: rows.shape[0]].reshape(*x.shape[:-1], -1)


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
) -> tuple[Array, PagedView, PagedView]:
    """`layers.attention` over a paged pool; keys and values share one view.

    Inside `shard_map` the heads are those of one device, the mesh axes `head_axes` divide them.
    """
    assert same_view is view
    batch, new, heads, size = query.shape
    kv_heads = key.shape[2]
    shape = (batch, kv_heads, heads // kv_heads, new)
    positions = start[:, None] + jnp.arange(new)
    extended = view.extended(jnp.stack([key, value], axis=2), positions)
    grouped = query.astype(jnp.float32).reshape(batch, new, kv_heads, heads // kv_heads, size) * scale
    slopes = _own_slopes(heads, head_axes).reshape(kv_heads, -1)[:, :, None, None]

    def scores_and_values(entries: Array, seen_at: Array) -> tuple[Array, Callable[[Array], Array]]:
        scores = jnp.einsum("bnkgd,bckd->bkgnc", grouped, entries[:, :, 0])
        if cap:
            scores = cap * jnp.tanh(scores / cap)
        if alibi:
            distance = (positions[:, :, None] - seen_at)[:, None, None].astype(jnp.float32)
            scores = scores - slopes * distance
        return scores, lambda weights: jnp.einsum("bkgnc,bckd->bkgnd", weights, entries[:, :, 1])

    taken = [jnp.broadcast_to(s.astype(jnp.float32).reshape(1, kv_heads, -1, 1), shape) for s in sinks]
    out = _Chunks(extended, positions, window).attend(scores_and_values, shape, size, *taken)
    out = out.transpose(0, 3, 1, 2, 4).reshape(query.shape)
    return out.astype(query.dtype), extended, extended


def _own_slopes(num_heads: int, head_axes: tuple[str, ...]) -> Float[Array, " heads"]:
    """Returns the slopes of this device's heads: what they are depends on their place among all."""
    if not head_axes:
        return layers.alibi_slopes(num_heads)
    slopes = layers.alibi_slopes(num_heads * jax.lax.axis_size(head_axes))
    return jax.lax.dynamic_slice_in_dim(slopes, jax.lax.axis_index(head_axes) * num_heads, num_heads)


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
    """`mla.latent_attention` over a paged pool of latents and rotary keys, in the latent space whatever the step."""
    assert same_view is view
    batch, new, heads, nope = query.shape
    size = latent.shape[-1]
    to_key, to_value = mla.head_weights(up, heads, nope, form=form, dtype=dtype)
    positions = start[:, None] + jnp.arange(new)
    extended = view.extended(jnp.concatenate([latent, rope_key], axis=-1)[:, :, None], positions)
    inner = jnp.concatenate([mla.product("bnhk,hkl->bnhl", query, to_key), rope_query.astype(jnp.float32)], axis=-1)

    def scores_and_values(entries: Array, seen_at: Array) -> tuple[Array, Callable[[Array], Array]]:
        entries = entries[:, :, 0, 0]
        scores = jnp.einsum("bnhl,bcl->bhnc", inner, entries) * scale
        return scores, lambda weights: jnp.einsum("bhnc,bcl->bhnl", weights, entries[:, :, :size])

    sums = _Chunks(extended, positions, 0).attend(scores_and_values, (batch, heads, new), size)
    out = mla.product("bhnl,hvl->bnhv", sums, to_value)
    return out.astype(query.dtype), extended, extended


def moe(
    x: Float[Array, "rows hidden"],
    weights: Float[Array, "rows chosen"],
    chosen: Int[Array, "rows chosen"],
    *arrays: Array,
    activation: Activation,
    has_bias: bool = False,
    form: str = "",
    dtype: str = "",
) -> Float[Array, "rows hidden"]:
    """`moe.moe`, one expert after the other: those that no row chose are passed over, and nothing is gathered.

    XLA's CPU backend computes a product by groups for every group, and copies the weights that a gather picks.
    """
    size = len(arrays) // 3
    rows = jnp.pad(x, ((0, max(0, _MIN_ROWS - x.shape[0])), (0, 0)))

    def product(values: Array, part: tuple[Array, ...], expert: Array) -> Array:
        held = [jax.lax.dynamic_index_in_dim(array, expert, keepdims=False) for array in part]
        options = {"form": form, "dtype": dtype} if form else {}
        return layers.linear(values, *held, **options)

    def add(expert: Array, total: Array) -> Array:
        share = jnp.sum(jnp.where(chosen == expert, weights, 0.0), axis=1)

        def compute() -> Array:
            gate, up = (product(rows, arrays[i * size : (i + 1) * size], expert) for i in range(2))
            inner = expert_activation(gate.astype(jnp.float32), up.astype(jnp.float32), activation)
            out = product(inner, arrays[2 * size :], expert)[: x.shape[0]]
            return total + out.astype(jnp.float32) * share[:, None]

        return jax.lax.cond(jnp.any(chosen == expert), compute, lambda: total)

    del has_bias  # a product takes its bias as it comes
    total = jax.lax.fori_loop(0, arrays[0].shape[0], add, jnp.zeros(x.shape, jnp.float32))
    return total.astype(x.dtype)


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
