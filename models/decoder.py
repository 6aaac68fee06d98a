"""The decoder in Flax NNX, assembled by its configuration and written on the named ops.

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
from .layers import Embedding, LayerNorm, Linear, MakeParameter, RMSNorm, linear
from .llama import FeedForward, SelfAttention
from .mla import LatentSelfAttention
from .moe import MixtureOfExperts
from .named_ops import wide

__all__ = ["Decoder", "KVCache"]

KVCache = list[
    tuple[Array, Array]
]  # one pair a layer, each [batch, context, heads, size]; `DecoderConfig.cache_shapes`


def _norm(config: DecoderConfig, make: MakeParameter) -> RMSNorm | LayerNorm:
    if config.norm == "layer":
        return LayerNorm(config.hidden_size, config.norm_epsilon, make)
    offset = 1.0 if config.norm == "rms_unit_offset" else 0.0
    return RMSNorm(config.hidden_size, config.norm_epsilon, make, offset=offset)


class DecoderLayer(nnx.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: DecoderConfig, layer: int, make: MakeParameter) -> None:
        self.attention_norm = _norm(config, make)
        self.attention = (
            SelfAttention(config, layer, make) if config.latent is None else LatentSelfAttention(config, make)
        )
        self.attention_post_norm = _norm(config, make) if config.has_post_norms else None
        self.mlp_norm = None if config.residual == "parallel_shared_norm" else _norm(config, make)
        self.mlp = (
            MixtureOfExperts(config, make)
            if config.has_experts(layer)
            else FeedForward(config, config.intermediate_size, make)
        )
        self.mlp_post_norm = _norm(config, make) if config.has_post_norms else None
        self.is_parallel = config.residual != "sequential"

    def __call__(self, x: Array, start: Array, cache: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        before = x
        with jax.named_scope("attention"):
            normed = self.attention_norm(x)
            out, cache = self.attention(normed, start, cache)
            x = x + (out if self.attention_post_norm is None else self.attention_post_norm(out))
        with jax.named_scope("mlp"):
            out = self.mlp(normed if self.mlp_norm is None else self.mlp_norm(before if self.is_parallel else x))
            x = x + (out if self.mlp_post_norm is None else self.mlp_post_norm(out))
        return x, cache


class Decoder(nnx.Module):
    """A decoder that turns new tokens and a KV cache into the next token's logits."""

    def __init__(self, config: DecoderConfig, make: MakeParameter) -> None:
        self.embedding = Embedding(config.vocab_size, config.hidden_size, make)
        self.embedding_norm = _norm(config, make) if config.has_embedding_norm else None
        self.layers = nnx.List([DecoderLayer(config, layer, make) for layer in range(config.num_layers)])
        self.norm = _norm(config, make)
        self.head = None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size, make)
        self.embedding_scale = config.embedding_scale
        self.logit_cap = config.logit_cap

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
            cache: What attention keeps of each layer; donated and extended when compiled.

        Returns:
            f32 logits that follow token `lengths[b] - 1`, [batch, vocab], and the extended cache.
        """
        hidden, cache = self.hidden_states(tokens, start, cache)
        with jax.named_scope("head"):
            last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return self.logits(last), cache

    def verify(
        self,
        tokens: Int[Array, "batch new"],
        start: Int[Array, " batch"],
        lengths: Int[Array, " batch"],
        cache: KVCache,
    ) -> tuple[Float[Array, "batch new vocab"], KVCache]:
        """As `__call__`, with the logits that follow every new token, padding included, [batch, new, vocab]."""
        del lengths
        hidden, cache = self.hidden_states(tokens, start, cache)
        return self.logits(hidden), cache

    def hidden_states(self, tokens: Array, start: Array, cache: KVCache) -> tuple[Float[Array, "b n h"], KVCache]:
        """Returns the f32 hidden states before the final norm, [batch, new, hidden], and the extended cache."""
        with jax.named_scope("embedding"):
            x = self.embedding(tokens)
            x = x.astype(wide(x.dtype))
            if self.embedding_scale != 1.0:
                x = x * self.embedding_scale
            if self.embedding_norm is not None:
                x = self.embedding_norm(x)
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
            logits = linear(x, self.embedding.weight[...]) if self.head is None else self.head(x)
            return self.logit_cap * jnp.tanh(logits / self.logit_cap) if self.logit_cap else logits
