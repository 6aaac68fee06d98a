"""FLOPs of products: matrix products, convolutions, and products with ragged groups. Two for each multiply-add."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from .arrays import dtype_of, num_elements, shape_of

__all__ = ["convolution_flops", "dot_flops", "ragged_dot_flops"]


def _multiply_add_flops(equation: JaxprEqn) -> int:
    """A complex multiply-add is four real ones."""
    return 8 if jnp.issubdtype(dtype_of(equation.invars[0]), jnp.complexfloating) else 2


def dot_flops(equation: JaxprEqn) -> int:
    """2 * batch * M * N * K, whatever the order of the dimensions."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    return _dot_flops(equation, contracted)


def _dot_flops(equation: JaxprEqn, contracted: Sequence[int]) -> int:
    shape = shape_of(equation.invars[0])
    size = math.prod(shape[axis] for axis in contracted)
    return _multiply_add_flops(equation) * num_elements(equation.outvars[0]) * size


def ragged_dot_flops(equation: JaxprEqn) -> int:
    """Every row meets the weights of one group: 2 * M * N * K, however the rows are split into groups."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    flops = _dot_flops(equation, contracted)
    if set(numbers.lhs_ragged_dimensions) <= set(contracted):
        # The result has a leading dimension of groups, each of which sums over its own part of the contraction.
        return flops // max(shape_of(equation.outvars[0])[0], 1)
    return flops


def convolution_flops(equation: JaxprEqn) -> int:
    """2 for each product of a kernel element with an element of the input; padding and dilation holes are no work."""
    numbers = equation.params["dimension_numbers"]
    lhs, rhs = shape_of(equation.invars[0]), shape_of(equation.invars[1])
    out = shape_of(equation.outvars[0])
    products = math.prod(
        _valid_positions(*sizes, stride=stride, padding=padding, lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation)
        for *sizes, stride, padding, lhs_dilation, rhs_dilation in zip(
            [lhs[axis] for axis in numbers.lhs_spec[2:]],
            [rhs[axis] for axis in numbers.rhs_spec[2:]],
            [out[axis] for axis in numbers.out_spec[2:]],
            equation.params["window_strides"],
            equation.params["padding"],
            equation.params["lhs_dilation"],
            equation.params["rhs_dilation"],
            strict=True,
        )
    )
    batch, out_features = (out[axis] for axis in numbers.out_spec[:2])
    in_features = rhs[numbers.rhs_spec[1]]  # of one group
    return _multiply_add_flops(equation) * batch * out_features * in_features * products


def _valid_positions(
    in_size: int,
    kernel_size: int,
    out_size: int,
    *,
    stride: int,
    padding: tuple[int, int],
    lhs_dilation: int,
    rhs_dilation: int,
) -> int:
    """Number of (output, kernel) positions along one dimension that meet an element of the input."""
    outputs = np.arange(out_size)[:, None] * stride
    position = outputs + np.arange(kernel_size)[None, :] * rhs_dilation - padding[0]
    inside = (position >= 0) & (position <= (in_size - 1) * lhs_dilation)
    return int(np.count_nonzero(inside & (position % lhs_dilation == 0)))
