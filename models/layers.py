"""The named ops: the few functions that model code is written on, and the NNX modules that hold their weights.

Each op is a jitted function whose name survives tracing, so that the tracer sees one node with its own FLOPs, bytes
and sharding rule, and `compiler.lower` can put a target's implementation in its place (paged attention, padded rows).
Static options are part of the name: `plait.rms_norm[epsilon=1e-05]`; `parse_op_name` reads them back. The bodies here
are the definition of each op: correct, simple, dense.

Activations keep their own dtype: a product casts its input to the weight's dtype, accumulates in f32 and returns the
input's dtype.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

__all__ = [
    "Embedding",
    "LayerNorm",
    "Linear",
    "MakeParameter",
    "RMSNorm",
    "abstract_parameter",
    "attention",
    "embedding",
    "layer_norm",
    "linear",
    "normalize",
    "parse_op_name",
    "rms_norm",
    "rope",
    "self_attention",
    "vocabulary_max",
]

Option: TypeAlias = float | int | str | bool
MakeParameter: TypeAlias = Callable[[tuple[int, ...]], jax.ShapeDtypeStruct | Array]


def abstract_parameter(dtype: DTypeLike) -> MakeParameter:
    """Returns a maker of parameters without values, for tracing models whose weights nobody needs to hold."""
    return lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def _named_op(function: Callable[..., Array | tuple[Array, ...]]):
    """Makes `function(*arrays, **options)` a named op: one jitted call per set of options."""

    @functools.cache
    def jitted(options: tuple[tuple[str, Option], ...]):
        def op(*arrays: Array):
            return function(*arrays, **dict(options))

        text = ",".join(f"{name}={value!r}" for name, value in options)
        name = _PREFIX + function.__name__
        op.__name__ = op.__qualname__ = f"{name}[{text}]" if text else name
        return jax.jit(op)

    @functools.wraps(function)
    def call(*arrays: ArrayLike, **options: Option):
        return jitted(tuple(sorted(options.items())))(*arrays)

    NAMED_OPS.add(function.__name__)
    return call


NAMED_OPS: set[str] = set()

_PREFIX = "plait."  # no function of a user's has a dot in its name
_OP_NAME = re.compile(r"plait\.(\w+)(?:\[(.*)\])?")


def parse_op_name(name: str) -> tuple[str, dict[str, Option]] | None:
    """Splits the name of a jitted call into a named op and its static options.

    Returns:
        `("rms_norm", {"epsilon": 1e-05})` for `plait.rms_norm[epsilon=1e-05]`, or None if the name is no named op's.
    """
    match = _OP_NAME.fullmatch(name)
    if match is None or match[1] not in NAMED_OPS:
        return None
    options = (item.split("=", 1) for item in match[2].split(",")) if match[2] else ()
    return match[1], {key: ast.literal_eval(value) for key, value in options}


@_named_op
def linear(x: Float[Array, "... in"], weight: Float[Array, "out in"], *bias: Float[Array, " out"]) -> Array:
    """Returns `x @ weight.T (+ bias)`, [..., out], accumulated in f32."""
    y = jnp.einsum("...i,oi->...o", x.astype(weight.dtype), weight, preferred_element_type=jnp.float32)
    for b in bias:
        y = y + b.astype(jnp.float32)
    return y.astype(x.dtype)


@_named_op
def embedding(ids: Int[Array, ...], table: Float[Array, "vocab hidden"]) -> Array:
    """Returns the rows of `table` for `ids`, [..., hidden]."""
    return table[ids]


@_named_op
def rms_norm(x: Float[Array, "... hidden"], weight: Float[Array, " hidden"], *, epsilon: float) -> Array:
    """Returns `x` scaled to unit root mean square, times `weight`; computed in f32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    return (y * weight.astype(jnp.float32)).astype(x.dtype)


@_named_op
def layer_norm(
    x: Float[Array, "... hidden"], weight: Float[Array, " hidden"], bias: Float[Array, " hidden"], *, epsilon: float
) -> Array:
    """Returns `x` shifted and scaled to zero mean and unit variance, times `weight` plus `bias`; in f32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    return (y * weight.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


@_named_op
def rope(x: Float[Array, "batch seq heads size"], positions: Int[Array, "batch seq"], *, theta: float) -> Array:
    """Returns `x` with rotary positions applied, in the half-split form: (x[i], x[i + size/2]) is a pair."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    low, high = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


@_named_op
def attention(
    query: Float[Array, "batch new heads size"],
    key: Float[Array, "batch new kv_heads size"],
    value: Float[Array, "batch new kv_heads size"],
    key_cache: Float[Array, "batch context kv_heads size"],
    value_cache: Float[Array, "batch context kv_heads size"],
    start: Int[Array, " batch"],
    *,
    scale: float,
) -> tuple[Array, Array, Array]:
    """Causal attention of new tokens over the KV cache, which it extends.

    The new tokens of sequence b have positions `start[b] ... start[b] + new - 1`; position p sees positions 0 ... p.

    Returns:
        The heads' outputs [batch, new, heads, size] and both caches with the new keys and values written.
    """
    batch, new, heads, size = query.shape
    kv_heads = key.shape[2]
    positions = start[:, None] + jnp.arange(new)
    rows = jnp.arange(batch)[:, None]
    key_cache = key_cache.at[rows, positions].set(key.astype(key_cache.dtype), mode="drop")
    value_cache = value_cache.at[rows, positions].set(value.astype(value_cache.dtype), mode="drop")
    grouped = query.astype(jnp.float32).reshape(batch, new, kv_heads, heads // kv_heads, size) * scale
    scores = jnp.einsum("bnkgd,bckd->bkgnc", grouped, key_cache.astype(jnp.float32))
    visible = jnp.arange(key_cache.shape[1])[None, None, :] <= positions[:, :, None]
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -jnp.inf), axis=-1)
    out = jnp.einsum("bkgnc,bckd->bnkgd", weights, value_cache.astype(jnp.float32))
    return out.reshape(query.shape).astype(query.dtype), key_cache, value_cache


@_named_op
def self_attention(
    query: Float[Array, "batch seq heads size"],
    key: Float[Array, "batch seq heads size"],
    value: Float[Array, "batch seq heads size"],
    lengths: Int[Array, " batch"],
    *,
    scale: float,
) -> Array:
    """Bidirectional attention within each sequence, [batch, seq, heads, size]; padding is not seen."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query.astype(jnp.float32) * scale, key.astype(jnp.float32))
    visible = jnp.arange(key.shape[1]) < lengths[:, None]
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -1e30), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value.astype(jnp.float32)).astype(query.dtype)


@_named_op
def vocabulary_max(
    x: Float[Array, "batch seq hidden"],
    weight: Float[Array, "vocab hidden"],
    bias: Float[Array, " vocab"],
    lengths: Int[Array, " batch"],
) -> Float[Array, "batch vocab"]:
    """SPLADE's sparse vector: for each entry of the vocabulary, max over valid tokens of log1p(relu(logit))."""
    logits = jnp.einsum("bth,vh->btv", x.astype(weight.dtype), weight, preferred_element_type=jnp.float32)
    valid = jnp.arange(x.shape[1]) < lengths[:, None]
    logits = jnp.where(valid[:, :, None], logits + bias.astype(jnp.float32), 0.0)
    return jnp.log1p(jax.nn.relu(jnp.max(logits, axis=1)))


@_named_op
def normalize(x: Float[Array, "batch hidden"]) -> Array:
    """Returns each row scaled to unit length; a zero row stays zero."""
    y = x.astype(jnp.float32)
    return (y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12)).astype(x.dtype)


class Linear(nnx.Module):
    """A product with a weight [out, in] and an optional bias [out]."""

    def __init__(self, in_size: int, out_size: int, make: MakeParameter, *, bias: bool = False) -> None:
        self.weight = nnx.Param(make((out_size, in_size)))
        self.bias = nnx.Param(make((out_size,))) if bias else None

    def __call__(self, x: Array) -> Array:
        return linear(x, self.weight[...], *(() if self.bias is None else (self.bias[...],)))


class Embedding(nnx.Module):
    """A table [num_rows, size] whose rows are looked up; tied heads use its weight as a product."""

    def __init__(self, num_rows: int, size: int, make: MakeParameter) -> None:
        self.weight = nnx.Param(make((num_rows, size)))

    def __call__(self, ids: Array) -> Array:
        return embedding(ids, self.weight[...])


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a weight [size]."""

    def __init__(self, size: int, epsilon: float, make: MakeParameter) -> None:
        self.weight = nnx.Param(make((size,)))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.weight[...], epsilon=self.epsilon)


class LayerNorm(nnx.Module):
    """Layer norm with a weight and a bias [size]."""

    def __init__(self, size: int, epsilon: float, make: MakeParameter) -> None:
        self.weight = nnx.Param(make((size,)))
        self.bias = nnx.Param(make((size,)))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        return layer_norm(x, self.weight[...], self.bias[...], epsilon=self.epsilon)
