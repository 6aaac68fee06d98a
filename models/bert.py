"""The BERT family of encoders (MiniLM, SPLADE) in Flax NNX, written on the named ops.

Comes in: an `EncoderConfig` and a maker of parameters. Goes out: an NNX module that turns padded token sequences into
one vector each: a pooled, normalized embedding, or SPLADE's sparse vector over the vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .config import EncoderConfig
from .layers import Embedding, LayerNorm, Linear, MakeParameter, normalize, self_attention, vocabulary_max

__all__ = ["Bert"]


class EncoderEmbeddings(nnx.Module):
    """Sum of word, position and token-type embeddings, normalized."""

    def __init__(self, config: EncoderConfig, make: MakeParameter) -> None:
        self.word = Embedding(config.vocab_size, config.hidden_size, make)
        self.position = Embedding(config.max_positions, config.hidden_size, make)
        self.token_type = Embedding(config.num_token_types, config.hidden_size, make)
        self.norm = LayerNorm(config.hidden_size, config.norm_epsilon, make)

    def __call__(self, tokens: Int[Array, "batch seq"]) -> Array:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = self.word(tokens) + self.position(positions) + self.token_type(jnp.zeros_like(tokens))
        return self.norm(x.astype(jnp.float32))


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each added to its input and normalized after."""

    def __init__(self, config: EncoderConfig, make: MakeParameter) -> None:
        size = config.hidden_size
        self.query = Linear(size, size, make, bias=True)
        self.key = Linear(size, size, make, bias=True)
        self.value = Linear(size, size, make, bias=True)
        self.attention_output = Linear(size, size, make, bias=True)
        self.attention_norm = LayerNorm(size, config.norm_epsilon, make)
        self.up = Linear(size, config.intermediate_size, make, bias=True)
        self.down = Linear(config.intermediate_size, size, make, bias=True)
        self.output_norm = LayerNorm(size, config.norm_epsilon, make)
        self.num_heads = config.num_heads

    def __call__(self, x: Array, lengths: Array) -> Array:
        batch, sequence, hidden = x.shape
        size = hidden // self.num_heads
        with jax.named_scope("attention"):
            query, key, value = (
                product(x).reshape(batch, sequence, self.num_heads, size)
                for product in (self.query, self.key, self.value)
            )
            out = self_attention(query, key, value, lengths, scale=size**-0.5)
            x = self.attention_norm(x + self.attention_output(out.reshape(x.shape)))
        with jax.named_scope("mlp"):
            return self.output_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class MaskedLMHead(nnx.Module):
    """BERT's masked-language-model head before the product with the tied word embeddings."""

    def __init__(self, config: EncoderConfig, make: MakeParameter) -> None:
        self.transform = Linear(config.hidden_size, config.hidden_size, make, bias=True)
        self.norm = LayerNorm(config.hidden_size, config.norm_epsilon, make)
        self.bias = nnx.Param(make((config.vocab_size,)))

    def __call__(self, x: Array, word_embeddings: Array, lengths: Array) -> Array:
        x = self.norm(jax.nn.gelu(self.transform(x), approximate=False))
        return vocabulary_max(x, word_embeddings, self.bias[...], lengths)


class Bert(nnx.Module):
    """An encoder that turns each sequence into one vector; `EncoderConfig.head` says which."""

    def __init__(self, config: EncoderConfig, make: MakeParameter) -> None:
        self.embeddings = EncoderEmbeddings(config, make)
        self.layers = nnx.List([EncoderLayer(config, make) for _ in range(config.num_layers)])
        self.head = MaskedLMHead(config, make) if config.head == "masked_lm" else None

    def __call__(
        self, tokens: Int[Array, "batch seq"], lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch output_size"]:
        """Encodes sequences.

        Args:
            tokens: Token ids with the tokenizer's special tokens, [batch, seq]; padding from `lengths[b]` on.
            lengths: Number of tokens that count in each sequence, [batch].

        Returns:
            f32 vectors, [batch, hidden] (unit length) or [batch, vocab] (SPLADE). A sequence of length 0 gives zeros.
        """
        with jax.named_scope("embeddings"):
            x = self.embeddings(tokens)
        for index, layer in enumerate(self.layers):
            with jax.named_scope(f"layers.{index}"):
                x = layer(x, lengths)
        with jax.named_scope("head"):
            if self.head is not None:
                return self.head(x, self.embeddings.word.weight[...], lengths)
            valid = jnp.arange(x.shape[1]) < lengths[:, None]
            pooled = jnp.sum(jnp.where(valid[:, :, None], x, 0.0), axis=1) / jnp.maximum(lengths, 1)[:, None]
            return normalize(pooled)
