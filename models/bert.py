"""The BERT family of encoders (BERT, RoBERTa, XLM-R, DistilBERT) in Flax NNX, written on the named ops.

Comes in: an `EncoderConfig` and a maker of parameters. Goes out: an NNX module that turns padded token sequences into
one vector each: a pooled, normalized embedding, SPLADE's sparse vector over the vocabulary, or a classifier's logits.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .config import EncoderConfig
from .layers import Embedding, LayerNorm, Linear, MakeParameter, normalize, self_attention, vocabulary_max
from .named_ops import wide

__all__ = ["Bert"]

_ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


class EncoderEmbeddings(nnx.Module):
    """Sum of word, position and, if the model has them, token-type embeddings, normalized."""

    def __init__(self, config: EncoderConfig, make: MakeParameter) -> None:
        self.word = Embedding(config.vocab_size, config.hidden_size, make)
        self.position = Embedding(config.position_offset + config.max_positions, config.hidden_size, make)
        self.token_type = (
            Embedding(config.num_token_types, config.hidden_size, make) if config.num_token_types else None
        )
        self.norm = LayerNorm(config.hidden_size, config.norm_epsilon, make)
        self.position_offset = config.position_offset
        self.separator_token_id = config.separator_token_id

    def __call__(self, tokens: Int[Array, "batch seq"]) -> Array:
        first = self.position_offset
        positions = jnp.broadcast_to(jnp.arange(first, first + tokens.shape[1]), tokens.shape)
        x = self.word(tokens) + self.position(positions)
        if self.token_type is not None:
            x = x + self.token_type(self._token_types(tokens))
        return self.norm(x.astype(wide(x.dtype)))

    def _token_types(self, tokens: Array) -> Array:
        if self.separator_token_id is None:
            return jnp.zeros_like(tokens)
        index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        is_separator = tokens == self.separator_token_id
        first = jnp.min(jnp.where(is_separator, index, tokens.shape[1]), axis=1, keepdims=True)
        return (index > first).astype(tokens.dtype)  # padding too, which nobody sees


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
        self.activation = config.activation

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
            return self.output_norm(x + self.down(_ACTIVATIONS[self.activation](self.up(x))))


class EmbeddingHead(nnx.Module):
    """Pools the last hidden states into one vector of unit length; it has no parameters."""

    def __init__(self, config: EncoderConfig) -> None:
        self.pooling = config.pooling

    def __call__(self, x: Array, lengths: Array) -> Array:
        valid = jnp.arange(x.shape[1]) < lengths[:, None]
        x = jnp.where(valid[:, :, None], x, 0.0)
        if self.pooling == "cls":
            return normalize(x[:, 0])
        return normalize(jnp.sum(x, axis=1) / jnp.maximum(lengths, 1)[:, None])


class MaskedLMHead(nnx.Module):
    """BERT's masked-language-model head before the product with the tied word embeddings."""

    def __init__(self, config: EncoderConfig, make: MakeParameter) -> None:
        self.transform = Linear(config.hidden_size, config.hidden_size, make, bias=True)
        self.norm = LayerNorm(config.hidden_size, config.norm_epsilon, make)
        self.bias = nnx.Param(make((config.vocab_size,)))
        self.activation = config.activation

    def __call__(self, x: Array, word_embeddings: Array, lengths: Array) -> Array:
        x = self.norm(_ACTIVATIONS[self.activation](self.transform(x)))
        return vocabulary_max(x, word_embeddings, self.bias[...], lengths)


class ClassificationHead(nnx.Module):
    """Logits from the first token's hidden state: BERT's pooler and classifier are the same two products."""

    def __init__(self, config: EncoderConfig, make: MakeParameter) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size, make, bias=True)
        self.output = Linear(config.hidden_size, len(config.labels), make, bias=True)
        self.activation = config.classifier_activation

    def __call__(self, x: Array) -> Array:
        return self.output(_ACTIVATIONS[self.activation](self.dense(x[:, 0])))


class Bert(nnx.Module):
    """An encoder that turns each sequence into one vector; `EncoderConfig.head` says which."""

    def __init__(self, config: EncoderConfig, make: MakeParameter) -> None:
        self.embeddings = EncoderEmbeddings(config, make)
        self.layers = nnx.List([EncoderLayer(config, make) for _ in range(config.num_layers)])
        match config.head:
            case "embedding":
                self.head = EmbeddingHead(config)
            case "masked_lm":
                self.head = MaskedLMHead(config, make)
            case "classification":
                self.head = ClassificationHead(config, make)

    def __call__(
        self, tokens: Int[Array, "batch seq"], lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch output_size"]:
        """Encodes sequences.

        A classifier with a `separator_token_id` takes pairs, both texts in one sequence: its tokens are of type 0 up to
        and including the first separator and of type 1 from there on. All other tokens are of type 0.

        Args:
            tokens: Token ids with the tokenizer's special tokens, [batch, seq]; padding from `lengths[b]` on.
            lengths: Number of tokens that count in each sequence, [batch].

        Returns:
            f32 vectors, [batch, hidden] (unit length), [batch, vocab] (SPLADE) or [batch, labels] (logits). A sequence
            of length 0 gives zeros, or finite logits without meaning.
        """
        with jax.named_scope("embeddings"):
            x = self.embeddings(tokens)
        for index, layer in enumerate(self.layers):
            with jax.named_scope(f"layers.{index}"):
                x = layer(x, lengths)
        with jax.named_scope("head"):
            if isinstance(self.head, MaskedLMHead):
                return self.head(x, self.embeddings.word.weight[...], lengths)
            return self.head(x) if isinstance(self.head, ClassificationHead) else self.head(x, lengths)
