"""Rules of gathers, scatters, sorts and grouped products.

An indexed dim can be divided: a device looks only at the indices that fall into its part. A gather then leaves a
partial sum, since all other devices have zeros there; a scatter writes its own part, and drops the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jax.lax import GatherScatterMode
from jaxtyping import Array, Bool, Int

from ...mesh import Reduction
from ..arrays import dtype_of, is_inexact, shape_of
from .division import Division
from .registry import Dims, Factors, PrimitiveRule, bind, variables
from .rule import Access, Rule

__all__ = ["INDEXED"]


def _gather(equation: JaxprEqn) -> Rule:
    numbers, sizes, factors = equation.params["dimension_numbers"], equation.params["slice_sizes"], Factors()
    operand, indices = (shape_of(atom) for atom in equation.invars)
    out = shape_of(equation.outvars[0])
    of_indices = factors.dims(indices, blocked=[len(indices) - 1])
    of_operand: list[tuple[int, ...]] = []
    windows: list[tuple[int, ...]] = []
    sums: list[tuple[int, Reduction]] = []
    batching = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    for dim, size in enumerate(operand):
        if dim in batching:
            of_operand.append(of_indices[batching[dim]])
        elif dim in numbers.collapsed_slice_dims:
            of_operand.append(factors.new(size, blocked=dtype_of(equation.outvars[0]) == jnp.dtype(bool)))
            sums.extend((factor, "sum") for factor in of_operand[-1])
        else:
            is_whole = sizes[dim] == size and dim not in numbers.start_index_map
            of_operand.append(factors.new(size, blocked=not is_whole))
            windows.append(of_operand[-1] if is_whole else factors.new(sizes[dim], blocked=True))
    rows = iter(of_indices[:-1])
    cut = iter(windows)
    result = tuple(next(cut) if dim in numbers.offset_dims else next(rows) for dim in range(len(out)))
    linear = [{0}] if 0 in variables(equation) and is_inexact(equation.outvars[0]) else []
    return factors.rule([tuple(of_operand), of_indices], [result], partial=sums, linear=linear)


def _gather_part(equation: JaxprEqn, operands: Sequence[Array], division: Division) -> Sequence[Array]:
    values, indices = operands
    numbers, mode = equation.params["dimension_numbers"], equation.params["mode"]
    whole = shape_of(equation.invars[0])
    sizes = tuple(
        held if size == length else size
        for size, length, held in zip(equation.params["slice_sizes"], whole, values.shape, strict=True)
    )
    divided = _divided_dims(division, 0, numbers.collapsed_slice_dims)
    if not divided:
        return bind(equation, operands, slice_sizes=sizes)
    indices, is_known = _in_whole(indices, whole, numbers.start_index_map, mode)
    shifted, is_mine = _in_part(indices, divided, numbers.start_index_map, division)
    (rows,) = bind(
        equation, (values, shifted), slice_sizes=sizes, mode=GatherScatterMode.CLIP, indices_are_sorted=False
    )

    def over_result(mask: Array) -> Array:
        dims = [dim for dim in range(rows.ndim) if dim not in numbers.offset_dims]
        return jax.lax.broadcast_in_dim(mask, rows.shape, dims)

    rows = jnp.where(over_result(is_mine), rows, jnp.zeros_like(rows))
    if mode == GatherScatterMode.FILL_OR_DROP:
        fill = _fill_value(equation)
        first = jnp.where(_is_first(divided, division), fill, jnp.zeros_like(fill))
        rows = jnp.where(over_result(is_known), rows, first)
    return (rows,)


def _divided_dims(division: Division, operand: int, dims: Sequence[int]) -> dict[int, int]:
    """Returns the dims of an operand, of those given, that are divided, with their factors."""
    access = division.rule.operands[operand]
    return {dim: factor for dim in dims for factor in access.dims[dim] if division.axes[factor]}


def _in_whole(
    indices: Int[Array, "*rows columns"], shape: Sequence[int], dims: Sequence[int], mode: GatherScatterMode
) -> tuple[Int[Array, "*rows columns"], Bool[Array, "*rows"]]:
    """Returns indices as the mode reads them, and which are in range."""
    indices = indices.astype(jnp.int32)
    last = jnp.asarray([shape[dim] - 1 for dim in dims], jnp.int32)
    if mode == GatherScatterMode.CLIP:
        indices = jnp.clip(indices, 0, last)
    return indices, jnp.all((indices >= 0) & (indices <= last), axis=-1)


def _in_part(
    indices: Int[Array, "*rows columns"], divided: dict[int, int], dims: Sequence[int], division: Division
) -> tuple[Int[Array, "*rows columns"], Bool[Array, "*rows"]]:
    """Returns indices into this device's part, and which fall into it."""
    is_mine = jnp.ones(indices.shape[:-1], bool)
    columns: list[Array] = []
    for column, dim in enumerate(dims):
        index = indices[..., column]
        if dim in divided:
            size = division.size(divided[dim])
            index = index - (division.part(divided[dim]) * size).astype(index.dtype)
            is_mine &= (index >= 0) & (index < size)
        columns.append(index)
    return jnp.stack(columns, axis=-1), is_mine


def _is_first(divided: dict[int, int], division: Division) -> Bool[Array, ""]:
    parts = [division.part(factor) == 0 for factor in divided.values()]
    return jnp.all(jnp.stack(parts))


def _fill_value(equation: JaxprEqn) -> Array:
    """What a gather gives where an index is out of range: as `jax.lax.gather` documents it."""
    dtype = dtype_of(equation.outvars[0])
    if (given := equation.params["fill_value"]) is not None:
        return jnp.asarray(given, dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(jnp.nan, dtype)
    limits = jnp.iinfo(dtype)
    return jnp.asarray(limits.min if jnp.issubdtype(dtype, jnp.signedinteger) else limits.max, dtype)


def _scatter(equation: JaxprEqn) -> Rule:
    numbers, factors = equation.params["dimension_numbers"], Factors()
    operand, indices, updates = (shape_of(atom) for atom in equation.invars)
    adds = equation.primitive.name in ("scatter-add", "scatter_add", "scatter-sub", "scatter_sub")
    of_indices = factors.dims(indices, blocked=[len(indices) - 1])
    batching = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    lengths = iter(updates[dim] for dim in numbers.update_window_dims)
    of_operand: list[tuple[int, ...]] = []
    windows: list[tuple[int, ...]] = []
    for dim, size in enumerate(operand):
        if dim in batching:
            of_operand.append(of_indices[batching[dim]])
        elif dim in numbers.inserted_window_dims:
            of_operand.append(factors.new(size))
        else:
            length = next(lengths)
            is_whole = length == size and dim not in numbers.scatter_dims_to_operand_dims
            of_operand.append(factors.new(size, blocked=not is_whole))
            windows.append(of_operand[-1] if is_whole else factors.new(length, blocked=True))
    rows = [dims for dim, dims in enumerate(of_indices[:-1]) if dim not in numbers.scatter_indices_batching_dims]
    if not adds:
        factors.blocked.update(factor for dims in rows for factor in dims)
    cut, each = iter(windows), iter(of_indices[:-1])
    of_updates = tuple(next(cut) if dim in numbers.update_window_dims else next(each) for dim in range(len(updates)))
    operand_dims: Dims = tuple(of_operand)
    linear = [{0, 2}] if {0, 2} <= set(variables(equation)) and _is_linear(equation) else []
    rule = factors.rule([operand_dims, of_indices, of_updates], [operand_dims], linear=linear)
    # Rows that are added on several devices make partial sums; so what they are added to must be one as well.
    sums: tuple[tuple[int, Reduction], ...] = ()
    if adds:
        sums = tuple((factor, "sum") for dims in rows for factor in dims)
    accesses = (Access(operand_dims, sums), *rule.operands[1:])
    return Rule(rule.sizes, accesses, (Access(operand_dims, sums),), rule.blocked, rule.linear)


def _is_linear(equation: JaxprEqn) -> bool:
    return equation.primitive.name in ("scatter", "scatter-add", "scatter_add", "scatter-sub", "scatter_sub")


def _scatter_part(equation: JaxprEqn, operands: Sequence[Array], division: Division) -> Sequence[Array]:
    values, indices, updates = operands
    numbers, mode = equation.params["dimension_numbers"], equation.params["mode"]
    divided = _divided_dims(division, 0, numbers.inserted_window_dims)
    if not divided:
        return bind(equation, operands)
    dims = numbers.scatter_dims_to_operand_dims
    indices, is_known = _in_whole(indices, shape_of(equation.invars[0]), dims, mode)
    shifted, is_mine = _in_part(indices, divided, dims, division)
    nowhere = jnp.int32(jnp.iinfo(jnp.int32).max)  # out of every part, so dropped
    shifted = jnp.where((is_mine & is_known)[..., None], shifted, nowhere)
    return bind(equation, (values, shifted, updates), mode=GatherScatterMode.FILL_OR_DROP, indices_are_sorted=False)


def _sort(equation: JaxprEqn) -> Rule:
    factors = Factors()
    dims = factors.dims(shape_of(equation.invars[0]), blocked=[equation.params["dimension"]])
    return factors.rule([dims] * len(equation.invars), [dims] * len(equation.outvars))


def _top_k(equation: JaxprEqn) -> Rule:
    factors, shape = Factors(), shape_of(equation.invars[0])
    axis = equation.params.get("axis", equation.params.get("reduction_dimension", -1)) % len(shape)
    operand = factors.dims(shape, blocked=[axis])
    kept = factors.new(shape_of(equation.outvars[0])[axis], blocked=True)
    result = (*operand[:axis], kept, *operand[axis + 1 :])
    return factors.rule([operand], [result] * len(equation.outvars))


def _ragged_product(equation: JaxprEqn) -> Rule:
    """Rows that belong to groups stay whole, and so do the groups; everything else is as in a product."""
    numbers, factors = equation.params["ragged_dot_dimension_numbers"], Factors()
    (contracted, batch) = numbers.dot_dimension_numbers
    left, right, sizes = (shape_of(atom) for atom in equation.invars)
    ragged = numbers.lhs_ragged_dimensions
    of_left = list(factors.dims(left, blocked=ragged))
    of_right: list[tuple[int, ...]] = [()] * len(right)
    for one, other in (*zip(*contracted, strict=True), *zip(*batch, strict=True)):
        of_right[other] = of_left[one]
    groups = numbers.rhs_group_dimensions
    free_right = [d for d in range(len(right)) if d not in (*contracted[1], *batch[1], *groups)]
    for dim in (*groups, *free_right):
        of_right[dim] = factors.new(right[dim], blocked=dim in groups)
    free_left = [dim for dim in range(len(left)) if dim not in (*contracted[0], *batch[0])]
    by_group = () if groups else (factors.new(sizes[-1], blocked=True),)  # rows are summed within each group
    batches = [of_left[dim] for dim in batch[0]]
    result = (*by_group, *batches, *(of_left[d] for d in free_left), *(of_right[d] for d in free_right))
    summed: list[tuple[int, Reduction]] = [
        (factor, "sum") for dim in contracted[0] if dim not in ragged for factor in of_left[dim]
    ]
    counts = factors.dims(sizes, blocked=range(len(sizes)))
    return factors.rule([tuple(of_left), tuple(of_right), counts], [result], partial=summed, linear=[{0}, {1}])


_SCATTERS = ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")

INDEXED: dict[str, PrimitiveRule] = {
    "gather": PrimitiveRule(_gather, _gather_part),
    **{
        name: PrimitiveRule(_scatter, _scatter_part)
        for scatter in _SCATTERS
        for name in (scatter, scatter.replace("-", "_"))
    },
    "sort": PrimitiveRule(_sort),
    "top_k": PrimitiveRule(_top_k),
    "approx_top_k": PrimitiveRule(_top_k),
    "ragged_dot_general": PrimitiveRule(_ragged_product),
}
