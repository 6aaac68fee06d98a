"""The form in which products with weights of one shape are computed; `products.py` measures it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["KERNEL", "ProductForm", "WeightShape", "slices_of"]

WeightShape: TypeAlias = tuple[int, int, str]  # (out, in, type) of the values of a weight
KERNEL = 0  # in the place of a number of slices: plait's own kernel


@dataclass(frozen=True)
class ProductForm:
    """How products with weights of one shape are computed where there are few rows."""

    out_size: int
    in_size: int
    slices: int  # of the weight's rows, each a product of one batch; or KERNEL
    seconds: dict[int, float]  # of one product, by number of slices
    dtype: str = ""  # of the weight's values: dense ones', or "int8"; bundles of format 4 don't say


def slices_of(products: Iterable[ProductForm]) -> Mapping[WeightShape, int]:
    """Returns the chosen number of slices by weight."""
    return {(product.out_size, product.in_size, product.dtype): product.slices for product in products}
