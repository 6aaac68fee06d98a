"""Rules of matrix products and convolutions."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from ...mesh import Reduction
from ..arrays import shape_of
from .registry import Dims, Factors, PrimitiveRule, variables
from .rule import Rule

__all__ = ["PRODUCTS"]


def _dot_general(equation: JaxprEqn) -> Rule:
    (contracted, batch), factors = equation.params["dimension_numbers"], Factors()
    left, right = (shape_of(atom) for atom in equation.invars)
    of_left = factors.dims(left)
    of_right: list[tuple[int, ...]] = [()] * len(right)
    for pairs in (contracted, batch):
        for one, other in zip(*pairs, strict=True):
            of_right[other] = of_left[one]
    free_right = [dim for dim in range(len(right)) if dim not in (*contracted[1], *batch[1])]
    for dim in free_right:
        of_right[dim] = factors.new(right[dim])
    free_left = [dim for dim in range(len(left)) if dim not in (*contracted[0], *batch[0])]
    result = (*(of_left[dim] for dim in (*batch[0], *free_left)), *(of_right[dim] for dim in free_right))
    summed: list[tuple[int, Reduction]] = [(factor, "sum") for dim in contracted[0] for factor in of_left[dim]]
    return factors.rule([of_left, tuple(of_right)], [result], partial=summed, linear=_each_alone(equation))


def _each_alone(equation: JaxprEqn) -> list[set[int]]:
    """A product is linear in each of its operands, if they are not the same."""
    is_square = equation.invars[0] is equation.invars[1]
    return [] if is_square else [{position} for position in variables(equation)]


def _convolution(equation: JaxprEqn) -> Rule:
    params, factors = equation.params, Factors()
    numbers = params["dimension_numbers"]
    image, kernel = (shape_of(atom) for atom in equation.invars)
    out = shape_of(equation.outvars[0])
    has_groups = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    rows = factors.new(out[numbers.out_spec[0]], blocked=params["batch_group_count"] > 1)
    columns = factors.new(out[numbers.out_spec[1]], blocked=has_groups)
    depth = factors.new(kernel[numbers.rhs_spec[1]], blocked=has_groups)

    def dims(shape: tuple[int, ...], spec: tuple[int, ...], known: list[tuple[int, ...]]) -> Dims:
        held = dict(zip(spec, known, strict=False))
        return tuple(held[d] if d in held else factors.new(size, blocked=True) for d, size in enumerate(shape))

    rows_in = factors.new(image[numbers.lhs_spec[0]], blocked=True) if params["batch_group_count"] > 1 else rows
    depth_in = factors.new(image[numbers.lhs_spec[1]], blocked=True) if has_groups else depth
    operands = [dims(image, numbers.lhs_spec, [rows_in, depth_in]), dims(kernel, numbers.rhs_spec, [columns, depth])]
    result = dims(out, numbers.out_spec, [rows, columns])
    summed: list[tuple[int, Reduction]] = [] if has_groups else [(factor, "sum") for factor in depth]
    return factors.rule(operands, [result], partial=summed, linear=_each_alone(equation))


PRODUCTS: dict[str, PrimitiveRule] = {
    "dot_general": PrimitiveRule(_dot_general),
    "conv_general_dilated": PrimitiveRule(_convolution),
}
