"""The Llama family of decoders (Llama, SmolLM) in Flax NNX, written on the named ops.

Comes in: a `DecoderConfig` and a maker of parameters (`abstract_parameter` for planning). Goes out: an NNX module
whose call takes new tokens and the KV cache and returns the next token's logits and the extended cache. The weights
of each layer are arrays of their own: a scan over stacked weights would copy every layer's weights on every step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .config import DecoderConfig
from .layers import Embedding, Linear, MakeParameter, RMSNorm, attention, linear, rope

__all__ = ["KVCache", "Llama"]

KVCache = list[tuple[Array, Array]]  # one (keys, values) per layer, each [batch, context, kv_heads, head_size]


class SelfAttention(nnx.Module):
    """Grouped-query attention with rotary positions over the KV cache."""

    def __init__(self, config: DecoderConfig, make: MakeParameter) -> None:
        heads, kv_heads = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        self.query = Linear(config.hidden_size, heads, make)
        self.key = Linear(config.hidden_size, kv_heads, make)
        self.value = Linear(config.hidden_size, kv_heads, make)
        self.output = Linear(heads, config.hidden_size, make)
        self.head_size = config.head_size
        self.theta = config.rope_theta

    def __call__(self, x: Array, start: Array, cache: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        batch, new, _ = x.shape
        positions = start[:, None] + jnp.arange(new)
        query = rope(self.query(x).reshape(batch, new, -1, self.head_size), positions, theta=self.theta)
        key = rope(self.key(x).reshape(batch, new, -1, self.head_size), positions, theta=self.theta)
        value = self.value(x).reshape(batch, new, -1, self.head_size)
        out, keys, values = attention(query, key, value, *cache, start, scale=self.head_size**-0.5)
        return self.output(out.reshape(batch, new, -1)), (keys, values)


class FeedForward(nnx.Module):
    """Gated SiLU feed-forward: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, make: MakeParameter) -> None:
        self.gate = Linear(config.hidden_size, config.intermediate_size, make)
        self.up = Linear(config.hidden_size, config.intermediate_size, make)
        self.down = Linear(config.intermediate_size, config.hidden_size, make)

    def __call__(self, x: Array) -> Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class DecoderLayer(nnx.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: DecoderConfig, make: MakeParameter) -> None:
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_epsilon, make)
        self.attention = SelfAttention(config, make)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_epsilon, make)
        self.mlp = FeedForward(config, make)

    def __call__(self, x: Array, start: Array, cache: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        with jax.named_scope("attention"):
            out, cache = self.attention(self.attention_norm(x), start, cache)
            x = x + out
        with jax.named_scope("mlp"):
            x = x + self.mlp(self.mlp_norm(x))
        return x, cache


class Llama(nnx.Module):
    """A decoder that turns new tokens and a KV cache into the next token's logits."""

    def __init__(self, config: DecoderConfig, make: MakeParameter) -> None:
        self.embedding = Embedding(config.vocab_size, config.hidden_size, make)
        self.layers = nnx.List([DecoderLayer(config, make) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon, make)
        self.head = None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size, make)

    def __call__(
        self,
        tokens: Int[Array, "batch new"],
        start: Int[Array, " batch"],
        lengths: Int[Array, " batch"],
        cache: KVCache,
    ) -> tuple[Float[Array, "batch vocab"], KVCache]:
        """Runs new tokens through the model.

        Args:
            tokens: New tokens, [batch, new]; those from `lengths[b]` on are padding.
            start: Number of tokens of each sequence that are in the cache already, [batch].
            lengths: Number of new tokens that count, [batch], at least 1.
            cache: Keys and values of each layer; donated and extended when compiled.

        Returns:
            f32 logits that follow token `lengths[b] - 1`, [batch, vocab], and the extended cache.
        """
        hidden, cache = self.hidden_states(tokens, start, cache)
        with jax.named_scope("head"):
            last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return self.logits(last), cache

    def hidden_states(self, tokens: Array, start: Array, cache: KVCache) -> tuple[Float[Array, "b n h"], KVCache]:
        """Returns the f32 hidden states before the final norm, [batch, new, hidden], and the extended cache."""
        with jax.named_scope("embedding"):
            x = self.embedding(tokens).astype(jnp.float32)
        extended: KVCache = []
        for index, layer in enumerate(self.layers):
            with jax.named_scope(f"layers.{index}"):
                x, layer_cache = layer(x, start, cache[index])
            extended.append(layer_cache)
        return x, extended

    def logits(self, hidden: Float[Array, "... hidden"]) -> Float[Array, "... vocab"]:
        """Returns the f32 logits of hidden states."""
        with jax.named_scope("head"):
            x = self.norm(hidden)
            return linear(x, self.embedding.weight[...]) if self.head is None else self.head(x)
