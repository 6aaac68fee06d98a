from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from plait.compiler.batch_invariant import kernel_linear, linear
from plait.compiler.product_form import KERNEL, ProductForm
from plait.compiler.products import give_other_bits, measure_products


def test_weights_of_the_same_shape_are_measured_once_and_get_the_same_form() -> None:
    shape = (512, 256, "float32")
    (first,), (again,) = measure_products({shape}), measure_products({shape})
    assert again is first
    assert first.slices == min(first.seconds, key=lambda slices: first.seconds[slices])
    assert measure_products({(64, 64, "float32")}) == ()  # too small to be worth it


def test_the_kernel_is_a_form_where_it_gives_the_bits_of_the_others() -> None:
    (form,) = measure_products({(512, 1024, "bfloat16")})
    draw = np.random.default_rng(1)
    x, weight = (jnp.asarray(draw.standard_normal((rows, 1024), np.float32)) for rows in (8, 512))
    weight = weight.astype(jnp.bfloat16)
    is_equal = bool(jnp.array_equal(jax.jit(kernel_linear)(x, weight), jax.jit(linear)(x, weight)))
    assert (KERNEL in form.seconds) == is_equal


def test_bits_of_the_kernel_are_looked_at_where_a_bundle_runs() -> None:
    (form,) = measure_products({(512, 1024, "bfloat16")})
    chosen = ProductForm(512, 1024, KERNEL, {KERNEL: 1.0}, "bfloat16")
    assert give_other_bits([chosen]) == (KERNEL not in form.seconds)
    assert give_other_bits([chosen, ProductForm(512, 48, KERNEL, {KERNEL: 1.0}, "bfloat16")])  # none that it takes
    assert not give_other_bits([ProductForm(512, 48, 1, {1: 1.0}, "bfloat16")])
