"""Products of integers against numpy's, whatever the number of slices and rows."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from plait.compiler.batch_invariant import int8_linear
from plait.models.quantization import quantize


@pytest.mark.parametrize("slices", [1, 3])
def test_a_product_of_integers_is_exact_up_to_its_two_scales(slices: int) -> None:
    generator = np.random.default_rng(5)
    x = generator.normal(size=(3, 40)).astype(np.float32)
    x[1] = 0.0
    values, scales = quantize(generator.normal(size=(12, 40)).astype(np.float32), "int8")
    bias = generator.normal(size=12).astype(np.float32)
    steps = np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-30) / np.float32(127)
    sums = np.rint(x / steps).astype(np.int64) @ values.astype(np.int64).T
    expected = sums * steps.astype(np.float64) * scales[:, 0] + bias
    ours = np.asarray(int8_linear(*map(jnp.asarray, (x, values, scales, bias)), slices=slices))
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 5, 20])
def test_a_row_has_the_same_bits_whatever_is_computed_with_it(num_rows: int) -> None:
    generator = np.random.default_rng(6)
    x = jnp.asarray(generator.normal(size=(20, 64)).astype(np.float32))
    weight = [jnp.asarray(array) for array in quantize(generator.normal(size=(48, 64)).astype(np.float32), "int8")]
    whole = np.asarray(int8_linear(x, *weight))
    assert np.array_equal(np.asarray(int8_linear(x[:num_rows], *weight)), whole[:num_rows])
