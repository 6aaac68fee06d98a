"""Ops whose every row comes out bit for bit the same, however many rows are computed with it.

XLA's CPU backend picks how to sum by the size of the whole operand, and how to multiply by the number of rows. Its
library's products of 8 rows and more give each row the same bits; a sum over a row is taken as a product with ones.
An answer then does not depend on what shares its steps, nor on how its prompt was cut.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Int8

from ..models import layers
from ..models.named_ops import Option, wide
from .kernels import few_rows_product

__all__ = [
    "MIN_ROWS",
    "by_heads",
    "int8_linear",
    "kernel_linear",
    "layer_norm",
    "linear",
    "materialized",
    "padded_rows",
    "rms_norm",
    "row_sums",
    "sliced_linear",
]

MIN_ROWS = 8  # of a product: with fewer there is no library call for bf16, and other sums for f32
_MIN_COLUMNS = 8
_SMALLEST = 1e-30  # of the largest value of a row that is rounded to int8


def padded_rows(rows: Array, *, axis: int) -> Array:
    """Returns rows with zeros after them until there are enough for a product."""
    missing = max(0, MIN_ROWS - rows.shape[axis])
    return jnp.pad(rows, [(0, missing if i == axis else 0) for i in range(rows.ndim)]) if missing else rows


def row_sums(x: Float[Array, "... size"]) -> Float[Array, ...]:
    """Returns the sum of each row."""
    size = x.shape[-1]
    return _by_rows(lambda rows: jnp.dot(rows, jnp.ones((size, _MIN_COLUMNS), x.dtype)), x)[..., 0]


def materialized(x: Float[Array, "... size"]) -> Float[Array, "... size"]:
    """Returns `x`, computed once for all who take it.

    XLA would compute it anew in every loop that takes it, a barrier or not. A product it keeps; by ones it is exact.
    """
    return _by_rows(lambda rows: jnp.dot(rows, jnp.eye(x.shape[-1], dtype=x.dtype)), x)


def linear(x: Float[Array, "... in"], *arrays: Array, **options: Option) -> Float[Array, "... out"]:
    """`layers.linear` with its rows padded."""
    return _by_rows(lambda rows: layers.linear(rows, *arrays, **options), x)


def sliced_linear(
    x: Float[Array, "... in"], weight: Float[Array, "out in"], *biases: Float[Array, " out"], slices: int
) -> Float[Array, "... out"]:
    """`linear` as a batch of products with slices of the weight's rows: another way to compute the same bits."""

    def product(rows: Array) -> Array:
        parts, operand = weight.reshape(slices, -1, weight.shape[1]), rows.astype(weight.dtype)
        y = jnp.einsum("ri,soi->sro", operand, parts, preferred_element_type=wide(weight.dtype))
        y = y.transpose(1, 0, 2).reshape(rows.shape[0], -1)
        return sum((bias.astype(y.dtype) for bias in biases), y).astype(rows.dtype)

    return _by_rows(product, x)


def kernel_linear(
    x: Float[Array, "... in"], weight: BFloat16[Array, "out in"], *biases: Float[Array, " out"]
) -> Float[Array, "... out"]:
    """`linear` of a few rows by plait's kernel, on a CPU; the same bits where a bundle was made that uses it."""
    rows = x.reshape(-1, x.shape[-1]).astype(weight.dtype)

    def elsewhere(rows: Array, weight: Array) -> Array:
        return linear(rows.astype(jnp.float32), weight)

    y = jax.lax.platform_dependent(rows, weight, cpu=few_rows_product, default=elsewhere)
    y = sum((bias.astype(y.dtype) for bias in biases), y).astype(x.dtype)
    return y.reshape(*x.shape[:-1], -1)


def int8_linear(
    x: Float[Array, "... in"],
    values: Int8[Array, "out in"],
    scales: Float[Array, "out 1"],
    *biases: Float[Array, " out"],
    slices: int = 1,
) -> Float[Array, "... out"]:
    """A product of integers: each row of `x` is rounded to int8 by its own scale, and sums are exact.

    Args:
        x: Rows.
        values: Of a weight that is stored as `int8`.
        scales: Of its rows.
        *biases: Added, if there is one.
        slices: Of the weight's rows, as in `sliced_linear`.
    """

    def product(rows: Array) -> Array:
        wide_rows = rows.astype(jnp.float32)
        steps = jnp.maximum(jnp.max(jnp.abs(wide_rows), axis=1, keepdims=True), _SMALLEST) / 127
        operand = jnp.round(wide_rows / steps).astype(jnp.int8)
        parts = values.reshape(slices, -1, values.shape[1])
        y = jnp.einsum("ri,soi->sro", operand, parts, preferred_element_type=jnp.int32)
        y = y.transpose(1, 0, 2).reshape(rows.shape[0], -1).astype(jnp.float32) * steps * scales[:, 0]
        return sum((bias.astype(y.dtype) for bias in biases), y).astype(rows.dtype)

    return _by_rows(product, x)


def _by_rows(product: Callable[[Array], Array], x: Float[Array, "... in"]) -> Float[Array, "... out"]:
    rows = x.reshape(-1, x.shape[-1])
    y = product(padded_rows(rows, axis=0))
    return y[: rows.shape[0]].reshape(*x.shape[:-1], -1)


def by_heads(
    x: Float[Array, "batch new heads size"], weight: Float[Array, "heads size out"]
) -> Float[Array, "batch new heads out"]:
    """Returns the product of each head with its own weight, in the weight's type, accumulated in f32."""
    batch, new, heads, size = x.shape
    rows = padded_rows(x.transpose(2, 0, 1, 3).reshape(heads, batch * new, size).astype(weight.dtype), axis=1)
    product = jnp.einsum("hri,hio->hro", rows, weight, preferred_element_type=wide(weight.dtype))
    return product[:, : batch * new].reshape(heads, batch, new, -1).transpose(1, 2, 0, 3)


def rms_norm(
    x: Float[Array, "... hidden"], weight: Float[Array, " hidden"], *, epsilon: float, offset: float = 0.0
) -> Float[Array, "... hidden"]:
    """`layers.rms_norm`."""
    y = x.astype(wide(x.dtype))
    y = y * jax.lax.rsqrt(_means(y * y) + epsilon)
    factor = weight.astype(y.dtype)
    return (y * (factor + offset if offset else factor)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "... hidden"], weight: Float[Array, " hidden"], bias: Float[Array, " hidden"], *, epsilon: float
) -> Float[Array, "... hidden"]:
    """`layers.layer_norm`."""
    y = x.astype(wide(x.dtype))
    y = y - _means(y)
    y = y * jax.lax.rsqrt(_means(y * y) + epsilon)
    return (y * weight.astype(y.dtype) + bias.astype(y.dtype)).astype(x.dtype)


def _means(x: Float[Array, "... size"]) -> Float[Array, "... 1"]:
    return row_sums(x)[..., None] / x.shape[-1]
