"""Multi-head latent attention (DeepSeek V2, V3, R1; arXiv 2405.04434) in Flax NNX, and its named op.

Comes in: `config.LatentAttention` and a maker of parameters. Goes out: a module in the place of grouped-query
attention. The cache holds one latent vector and one rotary key a token, for all heads together. A single new token
is attended in the latent space (its query is brought there, and the sum of latents back), several are attended with
every head's keys and values made from the latents: whichever form needs fewer operations.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .config import DecoderConfig, Rope, StoredForm
from .layers import Linear, MakeParameter, RMSNorm, dequantize, extended, rope, rope_options
from .named_ops import named_op, wide

__all__ = ["LatentSelfAttention", "head_weights", "latent_attention", "product"]


@named_op
def latent_attention(
    query: Float[Array, "batch new heads nope"],
    rope_query: Float[Array, "batch new heads rope"],
    latent: Float[Array, "batch new 1 latent"],
    rope_key: Float[Array, "batch new 1 rope"],
    latent_cache: Float[Array, "batch context 1 latent"],
    rope_cache: Float[Array, "batch context 1 rope"],
    start: Int[Array, " batch"],
    *up: Array,
    scale: float,
    form: StoredForm | str = "",
    dtype: str = "",
) -> tuple[Array, Array, Array]:
    """Causal attention of new tokens over the latent cache, which it extends.

    Args:
        query: The part of the queries that does not turn.
        rope_query: The part that does.
        latent: Of the new tokens.
        rope_key: Of the new tokens.
        latent_cache: Latents of all positions, those from `start` on not yet written.
        rope_cache: Rotary keys, likewise.
        start: Position of the first new token of each sequence.
        *up: Weight [heads * (nope + value), latent] that makes each head's keys and values from a latent, with its
            scales if it has a stored form.
        scale: Factor on the scores.
        form: Stored form of the weight.
        dtype: What a weight of a stored form is computed in.

    Returns:
        The heads' outputs [batch, new, heads, value] and both caches with the new entries written.
    """
    _, new, heads, nope = query.shape
    to_key, to_value = head_weights(up, heads, nope, form=form, dtype=dtype)
    positions = start[:, None] + jnp.arange(new)
    latent_cache, rope_cache = extended(latent_cache, latent, positions), extended(rope_cache, rope_key, positions)
    latents = latent_cache[:, :, 0].astype(wide(query.dtype))
    scores = jnp.einsum("bnhr,bcr->bhnc", rope_query.astype(latents.dtype), rope_cache[:, :, 0].astype(latents.dtype))
    if new == 1:
        inner = product("bnhk,hkl->bnhl", query, to_key)
        scores = scores + jnp.einsum("bnhl,bcl->bhnc", inner, latents)
    else:
        keys = product("bcl,hkl->bchk", latents, to_key)
        scores = scores + jnp.einsum("bnhk,bchk->bhnc", query.astype(latents.dtype), keys)
    visible = jnp.arange(latents.shape[1])[None, None, :] <= positions[:, :, None]
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores * scale, -jnp.inf), axis=-1)
    if new == 1:
        out = product("bnhl,hvl->bnhv", jnp.einsum("bhnc,bcl->bnhl", weights, latents), to_value)
    else:
        out = jnp.einsum("bhnc,bchv->bnhv", weights, product("bcl,hvl->bchv", latents, to_value))
    return out.astype(query.dtype), latent_cache, rope_cache


def head_weights(up: tuple[Array, ...], heads: int, nope: int, *, form: str, dtype: str) -> tuple[Array, Array]:
    """Splits the weight of keys and values into [heads, nope, latent] and [heads, value, latent]."""
    weight = dequantize(*up, form=form, dtype=dtype) if form else up[0]
    to_key, to_value = jnp.split(weight.reshape(heads, -1, weight.shape[-1]), [nope], axis=1)
    return to_key, to_value


def product(equation: str, x: Array, weight: Array) -> Float[Array, ...]:
    """A product in the weight's type, accumulated in f32."""
    return jnp.einsum(equation, x.astype(weight.dtype), weight, preferred_element_type=wide(weight.dtype))


class LatentSelfAttention(nnx.Module):
    """Attention over a cache of latent vectors."""

    def __init__(self, config: DecoderConfig, make: MakeParameter) -> None:
        latent = config.latent
        assert latent is not None
        form, hidden, heads = config.form_of("attention"), config.hidden_size, config.num_heads
        query_size = heads * (latent.nope_size + latent.rope_size)
        rank, bias = latent.query_rank, config.has_qkv_bias
        self.query_down = Linear(hidden, rank, make, bias=bias, form=form) if rank else None
        self.query_norm = RMSNorm(rank, config.norm_epsilon, make) if rank else None
        self.query = Linear(rank or hidden, query_size, make, form=form)
        self.kv_down = Linear(hidden, latent.latent_size + latent.rope_size, make, bias=bias, form=form)
        self.kv_norm = RMSNorm(latent.latent_size, config.norm_epsilon, make)
        self.kv = Linear(latent.latent_size, heads * (latent.nope_size + latent.value_size), make, form=form)
        self.output = Linear(heads * latent.value_size, hidden, make, bias=config.has_output_bias, form=form)
        self.sizes = latent
        self.rope: Rope = config.rope or Rope()
        self.scale = config.score_scale or (latent.nope_size + latent.rope_size) ** -0.5

    def __call__(self, x: Array, start: Array, cache: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        batch, new, _ = x.shape
        positions, options = start[:, None] + jnp.arange(new), rope_options(self.rope)
        low = x if self.query_down is None or self.query_norm is None else self.query_norm(self.query_down(x))
        heads = self.query(low).reshape(batch, new, -1, self.sizes.nope_size + self.sizes.rope_size)
        query, rope_query = jnp.split(heads, [self.sizes.nope_size], axis=-1)
        latent, rope_key = jnp.split(self.kv_down(x), [self.sizes.latent_size], axis=-1)
        out, latents, rope_keys = latent_attention(
            query,
            rope(rope_query, positions, **options),
            self.kv_norm(latent)[:, :, None],
            rope(rope_key[:, :, None], positions, **options),
            *cache,
            start,
            *self.kv.arrays,
            scale=self.scale,
            **self.kv.options,
        )
        return self.output(out.reshape(batch, new, -1)), (latents, rope_keys)
