"""Rules of primitives that move elements: reshapes, slices, concatenations, and those that make constants."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array

from ..arrays import dtype_of, shape_of
from .division import Division
from .registry import Dims, Factors, PrimitiveRule, bind, is_zero, variables
from .rule import Rule

__all__ = ["SHAPES", "shared_sizes"]


def _first(equation: JaxprEqn) -> list[set[int]]:
    return [{0}] if 0 in variables(equation) else []


def _broadcast(equation: JaxprEqn) -> Rule:
    factors, shape = Factors(), shape_of(equation.outvars[0])
    result = factors.dims(shape)
    held = zip(shape_of(equation.invars[0]), equation.params["broadcast_dimensions"], strict=True)
    operand = tuple(result[dim] if size > 1 else () for size, dim in held)
    # Zeros are a partial sum of anything, with nothing asked of the operand.
    linear = [()] if is_zero(equation.invars[0]) else _first(equation)
    return factors.rule([operand, *[()] * (len(equation.invars) - 1)], [result], linear=linear)


def _broadcast_part(equation: JaxprEqn, operands: Sequence[Array], division: Division) -> Sequence[Array]:
    return bind(equation, operands, shape=division.local_shape(0))


def _reshape(equation: JaxprEqn) -> Rule:
    factors = Factors()
    operand, result = shared_sizes(shape_of(equation.invars[0]), shape_of(equation.outvars[0]), factors)
    if equation.params.get("dimensions") is not None:
        factors.blocked.update(range(len(factors.sizes)))
    return factors.rule([operand], [result], linear=_first(equation))


def shared_sizes(before: Sequence[int], after: Sequence[int], factors: Factors) -> tuple[Dims, Dims]:
    """Splits the dims of two shapes of as many elements into factors that they share.

    Both shapes are read from the major side; between places where their products agree, each place where either has a
    boundary must divide the next, or the stretch is not understood and its factors are blocked.
    """
    old: list[tuple[int, ...]] = [()] * len(before)
    new: list[tuple[int, ...]] = [()] * len(after)
    left, right = [[dim, size] for dim, size in enumerate(before)], [[dim, size] for dim, size in enumerate(after)]
    left, right = [pair for pair in left if pair[1] > 1], [pair for pair in right if pair[1] > 1]
    while left and right:
        (one, size), (other, length) = left[0], right[0]
        common = min(size, length)
        if max(size, length) % common:
            break
        factor = factors.new(common)
        old[one] += factor
        new[other] += factor
        for rest, whole in ((left, size), (right, length)):
            rest[0][1] = whole // common
            if rest[0][1] == 1:
                rest.pop(0)
    for dims, rest in ((old, left), (new, right)):
        for dim, size in rest:
            dims[dim] += factors.new(size, blocked=True)
    return tuple(old), tuple(new)


def _reshape_part(equation: JaxprEqn, operands: Sequence[Array], division: Division) -> Sequence[Array]:
    return bind(equation, operands, new_sizes=division.local_shape(0))


def _squeeze(equation: JaxprEqn) -> Rule:
    factors = Factors()
    operand = factors.dims(shape_of(equation.invars[0]))
    result = tuple(dim for i, dim in enumerate(operand) if i not in equation.params["dimensions"])
    return factors.rule([operand], [result], linear=_first(equation))


def _expand_dims(equation: JaxprEqn) -> Rule:
    factors = Factors()
    result = factors.dims(shape_of(equation.outvars[0]))
    operand = tuple(dim for i, dim in enumerate(result) if i not in equation.params["dimensions"])
    return factors.rule([operand], [result], linear=_first(equation))


def _transpose(equation: JaxprEqn) -> Rule:
    factors = Factors()
    operand = factors.dims(shape_of(equation.invars[0]))
    return factors.rule(
        [operand], [tuple(operand[dim] for dim in equation.params["permutation"])], linear=_first(equation)
    )


def _reverse(equation: JaxprEqn) -> Rule:
    factors = Factors()
    dims = factors.dims(shape_of(equation.invars[0]), blocked=equation.params["dimensions"])
    return factors.rule([dims], [dims], linear=_first(equation))


def _kept(
    before: Sequence[int], after: Sequence[int], factors: Factors, cut: Collection[int] = ()
) -> tuple[Dims, Dims]:
    """Factors of two shapes of which a dim that stays as it is can be divided, and one that is cut cannot."""
    old: list[tuple[int, ...]] = []
    new: list[tuple[int, ...]] = []
    for dim, (size, length) in enumerate(zip(before, after, strict=True)):
        is_whole = size == length and dim not in cut
        old.append(factors.new(size, blocked=not is_whole))
        new.append(old[-1] if is_whole else factors.new(length, blocked=True))
    return tuple(old), tuple(new)


def _slice(equation: JaxprEqn) -> Rule:
    factors = Factors()
    operand, result = _kept(shape_of(equation.invars[0]), shape_of(equation.outvars[0]), factors)
    return factors.rule([operand], [result], linear=_first(equation))


def _slice_part(equation: JaxprEqn, operands: Sequence[Array], division: Division) -> Sequence[Array]:
    whole, held = shape_of(equation.invars[0]), operands[0].shape
    limits = [
        limit if size == part else part
        for limit, size, part in zip(equation.params["limit_indices"], whole, held, strict=True)
    ]
    return bind(equation, operands, limit_indices=tuple(limits))


def _pad(equation: JaxprEqn) -> Rule:
    factors, padding = Factors(), equation.params["padding_config"]
    cut = [dim for dim, config in enumerate(padding) if tuple(config) != (0, 0, 0)]
    operand, result = _kept(shape_of(equation.invars[0]), shape_of(equation.outvars[0]), factors, cut)
    linear = _first(equation) if is_zero(equation.invars[1]) else []
    return factors.rule([operand, ()], [result], linear=linear)


def _concatenate(equation: JaxprEqn) -> Rule:
    factors, dimension = Factors(), equation.params["dimension"]
    result = factors.dims(shape_of(equation.outvars[0]), blocked=[dimension])
    operands = [
        tuple(
            factors.new(size, blocked=True) if dim == dimension else result[dim]
            for dim, size in enumerate(shape_of(atom))
        )
        for atom in equation.invars
    ]
    positions = variables(equation)
    return factors.rule(operands, [result], linear=[positions] if len(positions) == len(operands) else [])


def _stack(equation: JaxprEqn) -> Rule:
    factors, axis = Factors(), equation.params["axis"]
    result = factors.dims(shape_of(equation.outvars[0]), blocked=[axis])
    positions = variables(equation)
    operands = [(*result[:axis], *result[axis + 1 :])] * len(equation.invars)
    return factors.rule(operands, [result], linear=[positions] if len(positions) == len(operands) else [])


def _unstack(equation: JaxprEqn) -> Rule:
    factors, axis = Factors(), equation.params["axis"]
    operand = factors.dims(shape_of(equation.invars[0]), blocked=[axis])
    results = [(*operand[:axis], *operand[axis + 1 :])] * len(equation.outvars)
    return factors.rule([operand], results, linear=_first(equation))


def _tile(equation: JaxprEqn) -> Rule:
    """A dim that is not repeated can be divided."""
    factors = Factors()
    operand, result = _kept(shape_of(equation.invars[0]), shape_of(equation.outvars[0]), factors)
    return factors.rule([operand], [result], linear=_first(equation))


def _split(equation: JaxprEqn) -> Rule:
    factors, axis = Factors(), equation.params["axis"]
    operand = factors.dims(shape_of(equation.invars[0]), blocked=[axis])
    results = [
        tuple(factors.new(size, blocked=True) if dim == axis else operand[dim] for dim, size in enumerate(shape))
        for shape in map(shape_of, equation.outvars)
    ]
    return factors.rule([operand], results, linear=_first(equation))


def _iota(equation: JaxprEqn) -> Rule:
    factors = Factors()
    result = factors.dims(shape_of(equation.outvars[0]))
    return factors.rule([()] * len(equation.invars), [result])


def _iota_part(equation: JaxprEqn, operands: Sequence[Array], division: Division) -> Sequence[Array]:
    shape = division.local_shape(0)
    (values,) = bind(equation, operands, shape=shape)
    counted = division.rule.results[0].dims[equation.params["dimension"]]
    if not counted or not division.axes[counted[0]]:
        return (values,)
    first = division.part(counted[0]) * shape[equation.params["dimension"]]
    return (values + first.astype(values.dtype),)


def _dynamic_slice(equation: JaxprEqn) -> Rule:
    factors = Factors()
    operand, result = _kept(shape_of(equation.invars[0]), shape_of(equation.outvars[0]), factors)
    indices = [()] * (len(equation.invars) - 1)
    return factors.rule([operand, *indices], [result], linear=_first(equation))


def _dynamic_slice_part(equation: JaxprEqn, operands: Sequence[Array], division: Division) -> Sequence[Array]:
    return bind(equation, operands, slice_sizes=division.local_shape(0))


def _dynamic_update_slice(equation: JaxprEqn) -> Rule:
    """A dim that is written in full can be divided: its index is clamped to 0, whatever it says."""
    factors = Factors()
    operand, update = _kept(shape_of(equation.invars[0]), shape_of(equation.invars[1]), factors)
    indices = [()] * (len(equation.invars) - 2)
    is_linear = not any(isinstance(atom, Literal) for atom in equation.invars[:2])
    return factors.rule([operand, update, *indices], [operand], linear=[{0, 1}] if is_linear else [])


def _bitcast(equation: JaxprEqn) -> Rule:
    factors = Factors()
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    rank = min(len(before), len(after))
    shared = factors.dims(before[:rank])  # narrower elements have one dim more, a minor one
    extra = [factors.dims(shape[rank:], blocked=range(len(shape) - rank)) for shape in (before, after)]
    return factors.rule([shared + extra[0]], [shared + extra[1]])


def _barrier(equation: JaxprEqn) -> Rule:
    factors = Factors()
    dims = [factors.dims(shape_of(atom)) for atom in equation.invars]
    return factors.rule(dims, dims)


def _empty(equation: JaxprEqn) -> Rule:
    factors = Factors()
    return factors.rule([], [factors.dims(shape_of(equation.outvars[0]))], linear=[()])


def _empty_part(equation: JaxprEqn, operands: Sequence[Array], division: Division) -> Sequence[Array]:
    del operands
    return (jnp.zeros(division.local_shape(0), dtype_of(equation.outvars[0])),)


SHAPES: dict[str, PrimitiveRule] = {
    "broadcast_in_dim": PrimitiveRule(_broadcast, _broadcast_part),
    "reshape": PrimitiveRule(_reshape, _reshape_part),
    "squeeze": PrimitiveRule(_squeeze),
    "expand_dims": PrimitiveRule(_expand_dims),
    "transpose": PrimitiveRule(_transpose),
    "rev": PrimitiveRule(_reverse),
    "slice": PrimitiveRule(_slice, _slice_part),
    "pad": PrimitiveRule(_pad),
    "concatenate": PrimitiveRule(_concatenate),
    "split": PrimitiveRule(_split),
    "stack": PrimitiveRule(_stack),
    "unstack": PrimitiveRule(_unstack),
    "tile": PrimitiveRule(_tile),
    "iota": PrimitiveRule(_iota, _iota_part),
    "dynamic_slice": PrimitiveRule(_dynamic_slice, _dynamic_slice_part),
    "dynamic_update_slice": PrimitiveRule(_dynamic_update_slice),
    "bitcast_convert_type": PrimitiveRule(_bitcast),
    "optimization_barrier": PrimitiveRule(_barrier),
    "empty": PrimitiveRule(_empty, _empty_part),
}
