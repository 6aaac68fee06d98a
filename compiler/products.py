"""Matrix products as this machine computes them fastest: the forms that are tried, timed, and chosen between.

A product of a few rows is bound by reading its weight, and how near XLA's CPU library comes to the speed of memory
depends on the shape: viewed as a batch of slices of its rows, the same weight is read up to half again as fast, or
slower; and plait has a kernel of its own for bf16. So every shape of a decode step is timed in all forms when a bundle
is made. All forms give the same bits: the kernel's are compared, and where they differ it is no form. All read the
weight as it is stored, so that a choice is for one machine and costs nothing on another but time; the kernel's bits may
differ from the others' there, which `give_other_bits` finds out.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .batch_invariant import MIN_ROWS, int8_linear, kernel_linear, linear, sliced_linear
from .graph import Graph
from .kernels import supports_few_rows_product
from .merge import Merge
from .product_form import KERNEL, ProductForm, WeightShape

__all__ = ["MAX_KERNEL_ROWS", "MAX_SLICED_ROWS", "give_other_bits", "measure_products", "product_shapes"]

MAX_SLICED_ROWS = 32  # with more, a product is bound by arithmetic, and slices don't help
MAX_KERNEL_ROWS = 8  # that the kernel multiplies with a line of a weight at once
_SLICES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_MIN_VALUES = 1 << 17  # of a weight that is worth measuring
_STREAMED_BYTES = 48 << 20  # of distinct weights, so that they come from memory and not from a cache
_REPEATS = 5
_CHECKED_OUTPUTS = 64  # where the kernel's bits are compared once more


def product_shapes(graph: Graph, merges: Sequence[Merge]) -> set[WeightShape]:
    """Returns the weights of all products that are dense or stored as `int8`, merged ones as they are stored."""
    merged = {name: merge for merge in merges for name in merge.names}
    shapes: set[WeightShape] = set()
    for operation in graph.operations:
        if operation.name == "linear" and operation.options.get("form", "int8") == "int8":
            weight = graph.values[operation.inputs[1]]
            rows = sum(merged[weight.name].sizes) if weight.name in merged else weight.shape[0]
            shapes.add((rows, weight.shape[1], weight.dtype))
    return shapes


def measure_products(shapes: Iterable[WeightShape]) -> tuple[ProductForm, ...]:
    """Times the products of a few rows with weights of these shapes in all forms, and picks the fastest of each.

    Args:
        shapes: Of weights; small ones are left out.
    """
    return tuple(_measure(shape) for shape in sorted(shapes) if shape[0] * shape[1] >= _MIN_VALUES)


def give_other_bits(products: Iterable[ProductForm]) -> bool:
    """Whether forms that were chosen on some machine give other bits on this one than products of more rows do."""
    in_sizes = {(product.in_size, product.dtype) for product in products if product.slices == KERNEL}
    is_cpu = jax.default_backend() == "cpu"  # elsewhere no program uses the kernel
    return is_cpu and not all(_has_kernel((_CHECKED_OUTPUTS, *each)) for each in in_sizes)


@functools.cache  # models of the same shapes get the same programs: a busy moment must not tell them apart
def _measure(shape: WeightShape) -> ProductForm:
    out_size, in_size, dtype = shape
    count = max(1, min(16, _STREAMED_BYTES // (out_size * in_size * jnp.dtype(dtype).itemsize)))
    is_integer = dtype == "int8"
    fill = 1 if is_integer else 1 / in_size
    weights = [(jnp.full((out_size, in_size), fill, dtype), *_scales(shape)) for _ in range(count)]
    few, most = (jnp.ones((rows, in_size), jnp.float32 if is_integer else dtype) for rows in (1, MIN_ROWS))
    calls = {slices: [most] for slices in _SLICES if out_size % slices == 0}  # as long for one row, which is padded
    if _has_kernel(shape):
        calls[KERNEL] = [few, most]
    seconds: dict[int, list[float]] = {slices: [] for slices in calls}
    forms = {slices: jax.jit(lambda x, weights, slices=slices: _chain(x, weights, slices)) for slices in calls}
    for _ in range(_REPEATS + 1):  # in turns, so that a busy moment hits all; the first of each warms up
        for slices, operands in calls.items():
            began = time.perf_counter()
            for x in operands:
                jax.block_until_ready(forms[slices](x, weights))
            seconds[slices].append((time.perf_counter() - began) / count / len(operands))
    medians = {slices: statistics.median(times[1:]) for slices, times in seconds.items()}
    fastest = min(medians, key=lambda slices: medians[slices])
    return ProductForm(out_size, in_size, fastest, medians, dtype)


def _has_kernel(shape: WeightShape) -> bool:
    """Whether plait's kernel takes a weight, and gives the bits on this machine that XLA's products give."""
    out_size, in_size, dtype = shape
    if jax.default_backend() != "cpu" or not supports_few_rows_product(out_size, in_size, dtype):
        return False
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.standard_normal((MIN_ROWS, in_size), np.float32))  # whose products come out in f32
    weight = jnp.asarray(draw.standard_normal((out_size, in_size), np.float32), dtype)
    return bool(jnp.array_equal(jax.jit(kernel_linear)(x, weight), jax.jit(linear)(x, weight)))


def _scales(shape: WeightShape) -> list[jax.Array]:
    return [jnp.full((shape[0], 1), 1 / shape[1], jnp.float32)] if shape[2] == "int8" else []


def _product(x: jax.Array, weight: jax.Array, slices: int) -> jax.Array:
    if slices == KERNEL:
        return kernel_linear(x, weight)
    return linear(x, weight) if slices == 1 else sliced_linear(x, weight, slices=slices)


def _chain(x: jax.Array, weights: Sequence[tuple[jax.Array, ...]], slices: int) -> jax.Array:
    """Multiplies with one weight after the other, each time waiting for the one before."""
    for weight, *scales in weights:
        y = int8_linear(x, weight, *scales, slices=slices) if scales else _product(x, weight, slices)
        x = x + y[:, :1] * 1e-3
    return x
