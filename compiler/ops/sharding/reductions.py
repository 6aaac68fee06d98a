"""Rules of reductions and scans along a dim."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from ...mesh import Reduction
from ..arrays import shape_of
from .registry import Factors, PrimitiveRule, variables
from .rule import Rule

__all__ = ["REDUCTIONS"]


def _reduction(how: Reduction | None) -> PrimitiveRule:
    """A reduction over a divided dim leaves a partial result; without a way to combine it, the dim stays whole."""

    def derive(equation: JaxprEqn) -> Rule:
        factors, axes = Factors(), equation.params["axes"]
        dims = factors.dims(shape_of(equation.invars[0]), blocked=() if how else axes)
        result = tuple(dim for i, dim in enumerate(dims) if i not in axes)
        partial: list[tuple[int, Reduction]] = []
        if how is not None:
            partial = [(factor, how) for axis in axes for factor in dims[axis]]
        linear = [{0}] if how == "sum" and variables(equation) else []
        return factors.rule([dims] * len(equation.invars), [result], partial=partial, linear=linear)

    return PrimitiveRule(derive)


def _cumulative(equation: JaxprEqn) -> Rule:
    factors = Factors()
    dims = factors.dims(shape_of(equation.invars[0]), blocked=[equation.params["axis"]])
    is_linear = equation.primitive.name == "cumsum" and bool(variables(equation))
    return factors.rule([dims], [dims], linear=[{0}] if is_linear else [])


REDUCTIONS: dict[str, PrimitiveRule] = {
    "reduce_sum": _reduction("sum"),
    "reduce_max": _reduction("max"),
    "reduce_min": _reduction("min"),
    **dict.fromkeys(("reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin"), _reduction(None)),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), PrimitiveRule(_cumulative)),
}
