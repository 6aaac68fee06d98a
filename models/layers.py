"""The named ops: the few functions that model code is written on, and the NNX modules that hold their weights.

The bodies here are the definition of each op (`named_ops.py`): correct, simple, dense. `moe.py` and `mla.py` have
those of their own.

Activations keep their own dtype: a product casts its input to the weight's dtype, accumulates in f32 and returns the
input's dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from .config import Activation, Rope, StoredForm
from .named_ops import Option, named_op, wide
from .quantization import dequantize_values, stored_arrays
from .rope import rope_frequencies

__all__ = [
    "ACTIVATIONS",
    "Embedding",
    "LayerNorm",
    "Linear",
    "MakeParameter",
    "RMSNorm",
    "abstract_parameter",
    "alibi_slopes",
    "attention",
    "clamped_swiglu",
    "dequantize",
    "embedding",
    "extended",
    "layer_norm",
    "linear",
    "normalize",
    "rms_norm",
    "rope",
    "rope_options",
    "rotary_tables",
    "rotate",
    "self_attention",
    "vocabulary_max",
]


class MakeParameter(Protocol):
    """Makes a model's parameters: of the model's own type, or of another where a stored form wants it."""

    def __call__(self, shape: tuple[int, ...], dtype: DTypeLike | None = None, /) -> jax.ShapeDtypeStruct | Array: ...


def abstract_parameter(dtype: DTypeLike) -> MakeParameter:
    """Returns a maker of parameters without values, for tracing models whose weights nobody needs to hold."""
    return lambda shape, own=None: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype if own is None else own))


@named_op
def dequantize(values: Array, scales: Array, *, form: StoredForm, dtype: str) -> Float[Array, "... out in"]:
    """Returns a weight of a stored form in the type that it is computed in; a conversion, so no FLOP is counted."""
    return dequantize_values(values, scales, form, dtype)


@named_op
def linear(
    x: Float[Array, "... in"], weight: Array, *scales_and_bias: Array, form: StoredForm | str = "", dtype: str = ""
) -> Array:
    """Returns `x @ weight.T (+ bias)`, [..., out], accumulated in f32.

    Args:
        x: Cast to the weight's type.
        weight: [out, in], or the values of a stored form.
        *scales_and_bias: The scales of the stored form, if there is one, and a bias [out], if there is one.
        form: The stored form.
        dtype: What a weight of a stored form is computed in.
    """
    bias = scales_and_bias
    if form:
        weight, bias = dequantize(weight, scales_and_bias[0], form=form, dtype=dtype), scales_and_bias[1:]
    y = jnp.einsum("...i,oi->...o", x.astype(weight.dtype), weight, preferred_element_type=wide(weight.dtype))
    for b in bias:
        y = y + b.astype(y.dtype)
    return y.astype(x.dtype)


@named_op
def embedding(ids: Int[Array, ...], table: Float[Array, "vocab hidden"]) -> Array:
    """Returns the rows of `table` for `ids`, [..., hidden]."""
    return table[ids]


@named_op
def rms_norm(
    x: Float[Array, "... hidden"], weight: Float[Array, " hidden"], *, epsilon: float, offset: float = 0.0
) -> Array:
    """Returns `x` scaled to unit root mean square, times `offset + weight`; computed in f32."""
    y = x.astype(wide(x.dtype))
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    factor = weight.astype(y.dtype)
    return (y * (factor + offset if offset else factor)).astype(x.dtype)


@named_op
def layer_norm(
    x: Float[Array, "... hidden"], weight: Float[Array, " hidden"], bias: Float[Array, " hidden"], *, epsilon: float
) -> Array:
    """Returns `x` shifted and scaled to zero mean and unit variance, times `weight` plus `bias`; in f32."""
    y = x.astype(wide(x.dtype))
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    return (y * weight.astype(y.dtype) + bias.astype(y.dtype)).astype(x.dtype)


def rope_options(rope: Rope) -> Mapping[str, Option]:
    """Returns what the op `rope` is told: the fields that are not at their defaults, and theta."""
    defaults = {field.name: field.default for field in fields(Rope)}
    return MappingProxyType(
        {name: value for name, value in asdict(rope).items() if name == "theta" or value != defaults[name]}
    )


@named_op
def rope(x: Float[Array, "batch seq heads size"], positions: Int[Array, "batch seq"], **options: Option) -> Array:
    """Returns `x` with rotary positions applied; the options are fields of `config.Rope`."""
    spec = Rope(**options)  # type: ignore[arg-type]
    return rotate(x, *rotary_tables(positions, spec, x.shape[-1]), spec)


def rotary_tables(positions: Int[Array, "batch seq"], spec: Rope, size: int) -> tuple[Array, Array]:
    """Returns cosines and sines, [batch, seq, half], for heads of `size` values."""
    frequencies = jnp.asarray(rope_frequencies(spec, spec.size or size), jnp.float32)
    angle = positions[..., None].astype(jnp.float32) * frequencies
    tables = jnp.cos(angle), jnp.sin(angle)
    return tables if spec.magnitude == 1.0 else (tables[0] * spec.magnitude, tables[1] * spec.magnitude)


def rotate(x: Float[Array, "batch seq heads size"], cos: Array, sin: Array, spec: Rope) -> Array:
    """Returns `x` turned by what `rotary_tables` gave."""
    size = spec.size or x.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    turning, rest = x[..., :size].astype(wide(x.dtype)), x[..., size:]
    if spec.is_interleaved:
        pairs = turning.reshape(*turning.shape[:-1], size // 2, 2)
        low, high = pairs[..., 0], pairs[..., 1]
    else:
        low, high = jnp.split(turning, 2, axis=-1)
    turned = [low * cos - high * sin, high * cos + low * sin]
    merged = jnp.stack(turned, axis=-1).reshape(turning.shape) if spec.is_interleaved else jnp.concatenate(turned, -1)
    return jnp.concatenate([merged.astype(x.dtype), rest], axis=-1) if rest.shape[-1] else merged.astype(x.dtype)


def alibi_slopes(num_heads: int) -> Float[Array, " heads"]:
    """Returns the slope of each head's bias: a geometric sequence, interleaved where heads are no power of two."""
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * head + 1) / power) for head in range(num_heads - power)]
    return jnp.asarray(slopes, jnp.float32)


@named_op
def attention(
    query: Float[Array, "batch new heads size"],
    key: Float[Array, "batch new kv_heads size"],
    value: Float[Array, "batch new kv_heads size"],
    key_cache: Float[Array, "batch context kv_heads size"],
    value_cache: Float[Array, "batch context kv_heads size"],
    start: Int[Array, " batch"],
    *sinks: Float[Array, " heads"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    alibi: bool = False,
) -> tuple[Array, Array, Array]:
    """Causal attention of new tokens over the KV cache, which it extends.

    The new tokens of sequence b have positions `start[b] ... start[b] + new - 1`; position p sees positions 0 ... p,
    or the last `window` of them.

    Args:
        query: Of the new tokens, as are `key` and `value`.
        key: See above.
        value: See above.
        key_cache: Keys of all positions, those from `start` on not yet written.
        value_cache: Likewise.
        start: Position of the first new token of each sequence.
        *sinks: A logit of each head that takes weight and gives nothing, if the model has them.
        scale: Factor on the scores.
        window: Positions that are seen; 0 for all.
        cap: Scores are `cap * tanh(score / cap)`; 0 for plain ones.
        alibi: Whether scores fall linearly with the distance.

    Returns:
        The heads' outputs [batch, new, heads, size] and both caches with the new keys and values written.
    """
    batch, new, heads, size = query.shape
    kv_heads = key.shape[2]
    positions = start[:, None] + jnp.arange(new)
    key_cache, value_cache = extended(key_cache, key, positions), extended(value_cache, value, positions)
    keys, values, seen_at = _seen(key_cache, value_cache, start, new, window)
    grouped = query.astype(wide(query.dtype)).reshape(batch, new, kv_heads, heads // kv_heads, size) * scale
    scores = jnp.einsum("bnkgd,bckd->bkgnc", grouped, keys.astype(grouped.dtype))
    if cap:
        scores = cap * jnp.tanh(scores / cap)
    distance = positions[:, :, None] - seen_at[:, None, :]
    if alibi:
        slopes = alibi_slopes(heads).reshape(kv_heads, -1)[None, :, :, None, None]
        scores = scores - slopes * distance[:, None, None].astype(scores.dtype)
    visible = (distance >= 0) & (distance < window) if window else distance >= 0
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    for sink in sinks:
        column = sink.astype(scores.dtype).reshape(kv_heads, -1)[None, :, :, None, None]
        scores = jnp.concatenate([scores, jnp.broadcast_to(column, (*scores.shape[:-1], 1))], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., : keys.shape[1]]
    out = jnp.einsum("bkgnc,bckd->bnkgd", weights, values.astype(weights.dtype))
    return out.reshape(query.shape).astype(query.dtype), key_cache, value_cache


def extended(
    cache: Float[Array, "batch context ..."], new: Float[Array, "batch new ..."], positions: Int[Array, "batch new"]
) -> Float[Array, "batch context ..."]:
    """Returns a cache with new entries written; those past its end are dropped."""
    # One sequence at a time, so that the tracer sees sequences that have nothing to do with each other.
    return jax.vmap(lambda old, entries, at: old.at[at].set(entries, mode="drop"))(
        cache, new.astype(cache.dtype), positions
    )


def _seen(
    key_cache: Array, value_cache: Array, start: Array, new: int, window: int
) -> tuple[Array, Array, Int[Array, "batch seen"]]:
    """Returns the part of the cache that any new token can see, and its positions."""
    batch, context = key_cache.shape[:2]
    num_seen = window + new - 1
    if not window or num_seen >= context:
        return key_cache, value_cache, jnp.broadcast_to(jnp.arange(context), (batch, context))
    first = jnp.clip(start - window + 1, 0, context - num_seen)
    seen_at = first[:, None] + jnp.arange(num_seen)
    look_up = jax.vmap(lambda cache, at: cache[at])
    return look_up(key_cache, seen_at), look_up(value_cache, seen_at), seen_at


@named_op
def self_attention(
    query: Float[Array, "batch seq heads size"],
    key: Float[Array, "batch seq heads size"],
    value: Float[Array, "batch seq heads size"],
    lengths: Int[Array, " batch"],
    *,
    scale: float,
) -> Array:
    """Bidirectional attention within each sequence, [batch, seq, heads, size]; padding is not seen."""
    dtype = wide(query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query.astype(dtype) * scale, key.astype(dtype))
    visible = jnp.arange(key.shape[1]) < lengths[:, None]
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -1e30), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value.astype(dtype)).astype(query.dtype)


@named_op
def vocabulary_max(
    x: Float[Array, "batch seq hidden"],
    weight: Float[Array, "vocab hidden"],
    bias: Float[Array, " vocab"],
    lengths: Int[Array, " batch"],
) -> Float[Array, "batch vocab"]:
    """SPLADE's sparse vector: for each entry of the vocabulary, max over valid tokens of log1p(relu(logit))."""
    logits = jnp.einsum("bth,vh->btv", x.astype(weight.dtype), weight, preferred_element_type=wide(weight.dtype))
    valid = jnp.arange(x.shape[1]) < lengths[:, None]
    logits = jnp.where(valid[:, :, None], logits + bias.astype(logits.dtype), 0.0)
    return jnp.log1p(jax.nn.relu(jnp.max(logits, axis=1)))


@named_op
def normalize(x: Float[Array, "batch hidden"]) -> Array:
    """Returns each row scaled to unit length; a zero row stays zero."""
    y = x.astype(wide(x.dtype))
    return (y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12)).astype(x.dtype)


def clamped_swiglu(gate: Array, up: Array) -> Array:
    """gpt-oss's gate: swish of slope 1.702 times up + 1, both clamped at 7."""
    gate, up = jnp.minimum(gate, 7.0), jnp.clip(up, -7.0, 7.0)
    return (up + 1) * gate * jax.nn.sigmoid(1.702 * gate)


ACTIVATIONS: Mapping[Activation, Callable[[Array], Array]] = MappingProxyType(
    {
        "silu": jax.nn.silu,
        "gelu": functools.partial(jax.nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
        "relu": jax.nn.relu,
    }
)


class StoredWeight(nnx.Module):
    """A weight [..., out, in]: one dense array, or values and scales of a stored form."""

    def __init__(self, shape: tuple[int, ...], make: MakeParameter, form: StoredForm | None = None) -> None:
        self.form = form
        self.dtype = str(make(()).dtype)  # what it is computed in
        if form is None:
            self.weight = nnx.Param(make(shape))
        else:
            values, scales = stored_arrays(form, shape)
            self.weight = nnx.Param(make(values.shape, values.dtype))
            self.scales = nnx.Param(make(scales.shape, scales.dtype))

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The dense array, or values and scales."""
        return (self.weight[...],) if self.form is None else (self.weight[...], self.scales[...])

    @property
    def options(self) -> dict[str, str]:
        """What a named op must be told about the arrays."""
        return {} if self.form is None else {"form": self.form, "dtype": self.dtype}


class Linear(StoredWeight):
    """A product with a weight [out, in] and an optional bias [out]."""

    def __init__(
        self, in_size: int, out_size: int, make: MakeParameter, *, bias: bool = False, form: StoredForm | None = None
    ) -> None:
        super().__init__((out_size, in_size), make, form)
        self.bias = nnx.Param(make((out_size,))) if bias else None

    def __call__(self, x: Array) -> Array:
        bias = () if self.bias is None else (self.bias[...],)
        return linear(x, *self.arrays, *bias, **self.options)


class Embedding(nnx.Module):
    """A table [num_rows, size] whose rows are looked up; tied heads use its weight as a product."""

    def __init__(self, num_rows: int, size: int, make: MakeParameter) -> None:
        self.weight = nnx.Param(make((num_rows, size)))

    def __call__(self, ids: Array) -> Array:
        return embedding(ids, self.weight[...])


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a weight [size], to which `offset` is added."""

    def __init__(self, size: int, epsilon: float, make: MakeParameter, *, offset: float = 0.0) -> None:
        self.weight = nnx.Param(make((size,)))
        self.epsilon = epsilon
        self.offset = offset

    def __call__(self, x: Array) -> Array:
        offset = {"offset": self.offset} if self.offset else {}
        return rms_norm(x, self.weight[...], epsilon=self.epsilon, **offset)


class LayerNorm(nnx.Module):
    """Layer norm with a weight and a bias [size]."""

    def __init__(self, size: int, epsilon: float, make: MakeParameter) -> None:
        self.weight = nnx.Param(make((size,)))
        self.bias = nnx.Param(make((size,)))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        return layer_norm(x, self.weight[...], self.bias[...], epsilon=self.epsilon)
