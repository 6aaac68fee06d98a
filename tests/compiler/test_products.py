from __future__ import annotations

from plait.compiler.products import measure_products


def test_weights_of_the_same_shape_are_measured_once_and_get_the_same_form() -> None:
    shape = (512, 256, "float32")
    (first,), (again,) = measure_products({shape}), measure_products({shape})
    assert again is first
    assert first.slices == min(first.seconds, key=lambda slices: first.seconds[slices])
    assert measure_products({(64, 64, "float32")}) == ()  # too small to be worth it
