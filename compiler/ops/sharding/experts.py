"""The rule of a mixture of experts and of its gradient.

Rows, experts, and the inner and outer size of the experts can be divided. With experts divided, each device computes
what its own experts add to every row; with the inner size, what its part of every expert adds: partial sums both. One
axis can divide rows and experts at once: then every device sends each of its rows to the devices that hold an expert of
it and gets back what they add (expert parallelism, by all-to-all). No row is ever dropped: a device has a slot for each
row of each other device, and those that did not choose it are zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Float, Int

from ....models.moe import weighted_experts
from ....models.named_ops import Option
from ...mesh import Collective, Reduction
from ..arrays import dtype_of, shape_of
from .division import Division
from .registry import Dims, Factors
from .rule import Access, Rule

__all__ = ["backward_collectives", "derive", "derive_backward", "evaluate", "evaluate_backward", "forward_collectives"]

_ROWS, _EXPERTS, _INNER, _OUT = range(4)  # factors


@dataclass(frozen=True)
class _Layout:
    """What each operand is made of."""

    factors: Factors
    x: Dims
    chosen: Dims  # and weights
    arrays: tuple[Dims, ...]
    out: Dims

    @property
    def num_parts(self) -> int:
        """Arrays of each of gate, up and down."""
        return len(self.arrays) // 3


def _layout(x: tuple[int, ...], chosen: tuple[int, ...], arrays: Sequence[tuple[int, ...]]) -> _Layout:
    """Finds the factors. Where weights are stored in blocks, inner and outer size count in the largest block."""
    factors = Factors()
    size = len(arrays) // 3
    gates, downs = arrays[: 2 * size], arrays[2 * size :]
    inner = [shape[1] for shape in gates] + [shape[2] for shape in downs if len(shape) == 3]
    out = [x[1], *(shape[1] for shape in downs)]
    for sizes in ([x[0]], [arrays[0][0]], inner, out):
        is_even = all(length % min(sizes) == 0 for length in sizes)
        factors.sizes.append(min(sizes))  # a factor even where it is 1, for they are known by their numbers
        if not is_even or min(sizes) == 1:
            factors.blocked.add(len(factors.sizes) - 1)

    def dim(factor: int, length: int) -> tuple[int, ...]:
        if length % factors.sizes[factor]:
            return factors.new(length, blocked=True)
        return (factor, *factors.new(length // factors.sizes[factor], blocked=True))

    def array(shape: tuple[int, ...], *known: int) -> Dims:
        dims = [dim(factor, length) for factor, length in zip(known, shape, strict=False)]
        return tuple(dims) + factors.dims(shape[len(known) :], blocked=range(2))

    return _Layout(
        factors=factors,
        x=((_ROWS,), factors.new(x[1], blocked=True)),
        chosen=((_ROWS,), factors.new(chosen[1], blocked=True)),
        arrays=(
            *(array(shape, _EXPERTS, _INNER) for shape in gates),
            *(array(shape, _EXPERTS, _OUT, _INNER) for shape in downs),
        ),
        out=((_ROWS,), dim(_OUT, x[1])),
    )


def derive(equation: JaxprEqn, options: Mapping[str, Option]) -> Rule:
    """Returns the rule of `moe`."""
    del options
    x, _, chosen, *arrays = map(shape_of, equation.invars)
    layout = _layout(x, chosen, arrays)
    rule = layout.factors.rule([layout.x, layout.chosen, layout.chosen, *layout.arrays], [layout.out])
    return _with_sums(rule, [Access(layout.out, _sums(_EXPERTS, _INNER))])


def derive_backward(equation: JaxprEqn, options: Mapping[str, Option]) -> Rule:
    """Returns the rule of `moe_backward`: a gradient is a partial sum over each factor that its operand lacks."""
    del options
    _, x, _, chosen, *arrays = map(shape_of, equation.invars)
    layout = _layout(x, chosen, arrays)
    rule = layout.factors.rule(
        [layout.out, layout.x, layout.chosen, layout.chosen, *layout.arrays], [layout.x, layout.chosen, *layout.arrays]
    )
    size = layout.num_parts
    gates = [Access(dims, _sums(_ROWS, _OUT)) for dims in layout.arrays[: 2 * size]]
    downs = [
        Access(dims, _sums(_ROWS) if len(dims) == 3 else _sums(_ROWS, _INNER)) for dims in layout.arrays[2 * size :]
    ]
    rows = [Access(dims, _sums(_EXPERTS, _INNER, _OUT)) for dims in (layout.x, layout.chosen)]
    return _with_sums(rule, [*rows, *gates, *downs])


def _sums(*factors: int) -> tuple[tuple[int, Reduction], ...]:
    return tuple((factor, "sum") for factor in factors)


def _with_sums(rule: Rule, results: Sequence[Access]) -> Rule:
    exchanges = () if {_ROWS, _EXPERTS} & rule.blocked else ((_ROWS, _EXPERTS),)
    return Rule(rule.sizes, rule.operands, tuple(results), rule.blocked, rule.linear, exchanges)


def evaluate(
    equation: JaxprEqn,
    operands: Sequence[Array],
    division: Division,
    implementations: Mapping[str, Callable[..., object]],
    options: Mapping[str, Option],
) -> Sequence[Array]:
    """Computes one device's part of `moe`."""
    del equation
    x, weights, chosen, *arrays = operands
    compute = implementations.get("moe")
    return (_experts(x, weights, chosen, arrays, division, compute, options),)


def evaluate_backward(
    equation: JaxprEqn,
    operands: Sequence[Array],
    division: Division,
    implementations: Mapping[str, Callable[..., object]],
    options: Mapping[str, Option],
) -> Sequence[Array]:
    """Computes one device's part of `moe_backward`: the gradient of its part of the op."""
    del equation, implementations
    gradient, x, weights, chosen, *arrays = operands

    def forward(x: Array, weights: Array, *arrays: Array) -> Array:
        return _experts(x, weights, chosen, arrays, division, None, options)

    _, pull_back = jax.vjp(forward, x, weights, *arrays)
    return pull_back(gradient)


def _experts(
    x: Float[Array, "rows hidden"],
    weights: Float[Array, "rows chosen"],
    chosen: Int[Array, "rows chosen"],
    arrays: Sequence[Array],
    division: Division,
    compute: Callable[..., object] | None,
    options: Mapping[str, Option],
) -> Float[Array, "rows out"]:
    """What this device's experts add to its rows, and, over exchanging axes, other devices' experts as well."""
    axes = _exchanging(division)
    count = division.mesh.num_shards(axes)
    if not axes:
        return _own_experts(x, weights, chosen, arrays, division, compute, options)
    about = jnp.concatenate([weights.astype(jnp.float32), chosen.astype(jnp.float32)], axis=-1)
    sent = [jnp.tile(part, (count, 1)) for part in (x, about)]
    rows, about = (jax.lax.all_to_all(part, axes, split_axis=0, concat_axis=0, tiled=True) for part in sent)
    held, numbers = jnp.split(about, 2, axis=-1)
    numbers = numbers.astype(chosen.dtype)
    out = _own_experts(rows, held.astype(weights.dtype), numbers, arrays, division, compute, options)
    back = jax.lax.all_to_all(out, axes, split_axis=0, concat_axis=0, tiled=True)
    summed = jnp.sum(back.reshape(count, *x.shape[:1], -1), axis=0, dtype=_wide(x.dtype))
    return summed.astype(x.dtype)


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _own_experts(
    x: Array,
    weights: Array,
    chosen: Array,
    arrays: Sequence[Array],
    division: Division,
    compute: Callable[..., object] | None,
    options: Mapping[str, Option],
) -> Array:
    num_experts = arrays[0].shape[0]
    if division.axes[_EXPERTS]:
        number = chosen - (division.part(_EXPERTS) * num_experts).astype(chosen.dtype)
        is_own = (number >= 0) & (number < num_experts)
        # An implementation passes over a number that no expert has; the definition must find a weight for it.
        elsewhere = num_experts - 1 if compute is None else num_experts
        weights, chosen = jnp.where(is_own, weights, 0), jnp.where(is_own, number, elsewhere)
    if division.axes[_INNER] and options.get("has_bias"):
        bias = arrays[-1]
        arrays = [*arrays[:-1], jnp.where(division.part(_INNER) == 0, bias, jnp.zeros_like(bias))]
    return (compute or weighted_experts)(x, weights, chosen, *arrays, **options)  # type: ignore[return-value, arg-type]


def _exchanging(division: Division) -> tuple[str, ...]:
    return tuple(axis for axis in division.axes[_ROWS] if axis in division.axes[_EXPERTS])


def forward_collectives(equation: JaxprEqn, division: Division) -> tuple[Collective, ...]:
    """Returns what `moe` sends inside: rows, weights with numbers of experts, and what they add on its way back."""
    atoms = equation.invars
    return _collectives(division, shape_of(atoms[0]), shape_of(atoms[2]), str(dtype_of(atoms[0])), 1, 1, 1)


def backward_collectives(equation: JaxprEqn, division: Division) -> tuple[Collective, ...]:
    """Returns what `moe_backward` sends inside: rows and numbers again, and gradients of both ways."""
    atoms = equation.invars
    return _collectives(division, shape_of(atoms[1]), shape_of(atoms[3]), str(dtype_of(atoms[1])), 2, 2, 1)


def _collectives(
    division: Division,
    x: tuple[int, ...],
    chosen: tuple[int, ...],
    dtype: str,
    num_rows: int,
    num_numbers: int,
    num_results: int,
) -> tuple[Collective, ...]:
    axes = _exchanging(division)
    if not axes:
        return ()
    count = division.mesh.num_shards(axes)
    slots = count * x[0] // division.num_parts(_ROWS)
    out = x[1] // division.num_parts(_OUT)

    def sent(width: int, dtype: str, times: int) -> list[Collective]:
        return [Collective("all_to_all", axes, count, slots * width, dtype)] * times

    return (
        *sent(x[1], dtype, num_rows),
        *sent(2 * chosen[1], "float32", num_numbers),
        *sent(out, dtype, num_results),
    )
