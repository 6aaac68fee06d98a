"""The product of a few rows against sums that are written down, and against XLA's products of more rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plait.compiler.batch_invariant import kernel_linear
from plait.compiler.kernels import FEW_ROWS_PRODUCT, few_rows_product, supports_few_rows_product


def drawn(*sizes: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(sizes, np.float32), jnp.bfloat16)


def summed_in_pairs(x: jax.Array, weight: jax.Array) -> np.ndarray:
    """The product with each output summed pair after pair, the second value of a pair first, each time rounded."""
    rows, columns = (np.asarray(each, np.float64) for each in (x, weight))
    total = np.zeros((len(rows), len(columns)), np.float32)
    for pair in range(0, rows.shape[1], 2):
        for index in (pair + 1, pair):
            total = (total + rows[:, None, index] * columns[None, :, index]).astype(np.float32)
    return total


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 13])
@pytest.mark.parametrize(("out_size", "in_size"), [(16, 32), (48, 96), (1040, 64)])
def test_every_output_is_summed_pair_after_pair(rows: int, out_size: int, in_size: int) -> None:
    x, weight = drawn(rows, in_size), drawn(out_size, in_size, seed=1)
    np.testing.assert_array_equal(np.asarray(few_rows_product(x, weight)), summed_in_pairs(x, weight))


def test_a_row_comes_out_the_same_whatever_is_beside_it() -> None:
    x, weight = drawn(8, 576), drawn(960, 576, seed=1)
    together = np.asarray(few_rows_product(x, weight))
    for row in range(8):
        np.testing.assert_array_equal(np.asarray(few_rows_product(x[row : row + 1], weight))[0], together[row])


def test_many_calls_at_once_do_not_get_in_each_others_way() -> None:
    x, weights = drawn(2, 256), [drawn(4096, 256, seed=seed) for seed in range(1, 5)]
    both = jax.jit(lambda x, weights: [few_rows_product(x, weight) for weight in weights])
    alone = [np.asarray(few_rows_product(x, weight)) for weight in weights]
    for _ in range(50):
        for found, expected in zip(both(x, weights), alone, strict=True):
            np.testing.assert_array_equal(np.asarray(found), expected)


def test_rows_of_any_shape_and_a_bias() -> None:
    x, weight, bias = drawn(2, 3, 64).astype(jnp.float32), drawn(32, 64, seed=1), drawn(32, seed=2)
    found = kernel_linear(x, weight, bias)
    expected = summed_in_pairs(x.reshape(6, 64).astype(jnp.bfloat16), weight) + np.asarray(bias, np.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(found), expected.reshape(2, 3, 32))


@pytest.mark.parametrize(
    ("x", "weight", "out"),
    [
        ((2, 64), (32, 96), (2, 32)),
        ((2, 48), (32, 48), (2, 32)),
        ((2, 64), (24, 64), (2, 24)),
        ((2, 64), (32, 64), (3, 32)),
        ((2, 64), (32, 64), (2, 48)),
        ((1, 2, 64), (32, 64), (2, 32)),
    ],
)
def test_operands_that_do_not_belong_together_are_an_error(
    x: tuple[int, ...], weight: tuple[int, ...], out: tuple[int, ...]
) -> None:
    few_rows_product(drawn(1, 32), drawn(16, 32))  # is registered with the first call
    call = jax.ffi.ffi_call(FEW_ROWS_PRODUCT, jax.ShapeDtypeStruct(out, jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="operands that it does not take"):
        jax.block_until_ready(call(drawn(*x), drawn(*weight)))


def test_what_it_takes() -> None:
    assert supports_few_rows_product(32, 64, "bfloat16")
    assert not supports_few_rows_product(24, 64, "bfloat16")
    assert not supports_few_rows_product(32, 48, "bfloat16")
    assert not supports_few_rows_product(32, 64, "float32")
