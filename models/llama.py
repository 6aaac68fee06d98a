"""Grouped-query attention and the feed-forward of Llama and its kin (Mistral, Qwen, Gemma, Bloom, ...) in Flax NNX.

Comes in: a `DecoderConfig`, the number of the layer and a maker of parameters. Goes out: the two modules that
`decoder.py` puts into each layer.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from .config import Activation, DecoderConfig, Rope
from .layers import ACTIVATIONS, Linear, MakeParameter, RMSNorm, attention, rope, rope_options
from .named_ops import Option

__all__ = ["FeedForward", "SelfAttention"]


class SelfAttention(nnx.Module):
    """Grouped-query attention over the KV cache."""

    def __init__(self, config: DecoderConfig, layer: int, make: MakeParameter) -> None:
        heads, kv_heads = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        form, bias = config.form_of("attention"), config.has_qkv_bias
        offset = 1.0 if config.norm == "rms_unit_offset" else 0.0
        self.query = Linear(config.hidden_size, heads, make, bias=bias, form=form)
        self.key = Linear(config.hidden_size, kv_heads, make, bias=bias, form=form)
        self.value = Linear(config.hidden_size, kv_heads, make, bias=bias, form=form)
        self.output = Linear(heads, config.hidden_size, make, bias=config.has_output_bias, form=form)
        norm = functools.partial(RMSNorm, config.head_size, config.norm_epsilon, make, offset=offset)
        self.query_norm = norm() if config.has_qk_norm else None
        self.key_norm = norm() if config.has_qk_norm else None
        self.sinks = nnx.Param(make((config.num_heads,))) if config.has_sinks else None
        self.head_size = config.head_size
        self.rope = _layer_rope(config, layer)
        self.options = _attention_options(config, layer)

    def __call__(self, x: Array, start: Array, cache: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        batch, new, _ = x.shape
        query, key, value = (
            product(x).reshape(batch, new, -1, self.head_size) for product in (self.query, self.key, self.value)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rope is not None:
            positions, options = start[:, None] + jnp.arange(new), rope_options(self.rope)
            query, key = rope(query, positions, **options), rope(key, positions, **options)
        sinks = () if self.sinks is None else (self.sinks[...],)
        out, keys, values = attention(query, key, value, *cache, start, *sinks, **dict(self.options))
        return self.output(out.reshape(batch, new, -1)), (keys, values)


def _layer_rope(config: DecoderConfig, layer: int) -> Rope | None:
    if layer in config.ropeless_layers:
        return None
    return config.sliding_rope or config.rope if layer in config.sliding_layers else config.rope


def _attention_options(config: DecoderConfig, layer: int) -> tuple[tuple[str, Option], ...]:
    """Returns what the op `attention` is told in a layer; what is at its default is left out of the op's name."""
    options: dict[str, Option] = {"scale": config.score_scale or config.head_size**-0.5}
    if layer in config.sliding_layers:
        options["window"] = config.window
    if config.score_cap:
        options["cap"] = config.score_cap
    if config.has_alibi:
        options["alibi"] = True
    return tuple(options.items())


class FeedForward(nnx.Module):
    """Feed-forward: down(activation(gate(x)) * up(x)), or down(activation(up(x))) without a gate."""

    def __init__(self, config: DecoderConfig, intermediate_size: int, make: MakeParameter) -> None:
        hidden, bias, form = config.hidden_size, config.has_mlp_bias, config.form_of("mlp")
        self.gate = Linear(hidden, intermediate_size, make, bias=bias, form=form) if config.is_gated else None
        self.up = Linear(hidden, intermediate_size, make, bias=bias, form=form)
        self.down = Linear(intermediate_size, hidden, make, bias=bias, form=form)
        self.activation: Activation = config.activation

    def __call__(self, x: Array) -> Array:
        activate = ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(activate(self.up(x)))
        return self.down(activate(self.gate(x)) * self.up(x))
