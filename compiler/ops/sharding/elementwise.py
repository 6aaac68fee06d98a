"""Rules of elementwise primitives: every dim can be divided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from ..arrays import dtype_of, is_inexact, shape_of
from .division import Division
from .registry import Factors, PrimitiveRule, is_zero, variables
from .rule import Rule

__all__ = ["ELEMENTWISE"]

_Sets = Callable[[JaxprEqn], Iterable[Iterable[int]]]


def _elementwise(linear: _Sets) -> PrimitiveRule:
    def derive(equation: JaxprEqn) -> Rule:
        factors = Factors()
        dims = factors.dims(shape_of(equation.outvars[0]))
        # A scalar goes with any shape, a dim of size 1 with any size.
        operands = [
            tuple(dim if size != 1 else () for dim, size in zip(dims, shape_of(atom), strict=False))
            for atom in equation.invars
        ]
        return factors.rule(operands, [dims] * len(equation.outvars), linear=linear(equation))

    return PrimitiveRule(derive)


def _none(equation: JaxprEqn) -> Iterable[Iterable[int]]:
    del equation
    return ()


def _first(equation: JaxprEqn) -> Iterable[Iterable[int]]:
    is_square = len(equation.invars) > 1 and equation.invars[0] is equation.invars[1]
    return ({0},) if 0 in variables(equation) and not is_square else ()


def _sum(equation: JaxprEqn) -> Iterable[Iterable[int]]:
    """A sum is linear in all its terms together; a constant term would be added once on each device."""
    terms = variables(equation)
    constants = [atom for i, atom in enumerate(equation.invars) if i not in terms]
    is_bool = dtype_of(equation.outvars[0]) == jnp.dtype(bool)
    return (terms,) if all(map(is_zero, constants)) and not is_bool else ()


def _product(equation: JaxprEqn) -> Iterable[Iterable[int]]:
    if len({id(atom) for atom in equation.invars}) < len(equation.invars):
        return ()
    return tuple({position} for position in variables(equation))


def _conversion(equation: JaxprEqn) -> Iterable[Iterable[int]]:
    both = is_inexact(equation.invars[0]) == is_inexact(equation.outvars[0])
    return ({0},) if both and dtype_of(equation.outvars[0]) != jnp.dtype(bool) else ()


def _select(equation: JaxprEqn) -> Iterable[Iterable[int]]:
    """A selection is linear in its cases, of which those that are zero count as any sum."""
    cases = [i for i in range(1, len(equation.invars)) if not is_zero(equation.invars[i])]
    return (cases,) if set(cases) <= set(variables(equation)) else ()


def _as_it_is(equation: JaxprEqn, operands: Sequence[Array], division: Division) -> Sequence[Array]:
    del equation, division
    return operands


_PLAIN = (
    *("abs", "acos", "acosh", "and", "asin", "asinh", "atan", "atan2", "atanh"),
    *("bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "clz", "complex", "conj", "cos"),
    *("cosh", "digamma", "eq", "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2"),
    *("expm1", "floor", "ge", "gt", "igamma", "igamma_grad_a", "igammac", "integer_pow", "is_finite"),
    *("le", "le_to", "lgamma", "log", "log1p", "logistic", "lt", "lt_to", "max"),
    *("min", "ne", "nextafter", "not", "or", "polygamma", "population_count", "pow", "random_gamma_grad"),
    *(
        "reduce_precision",
        "regularized_incomplete_beta",
        "rem",
        "round",
        "rsqrt",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
    ),
    *("sin", "sinh", "sqrt", "square", "tan", "tanh", "threefry2x32", "xor", "zeta", "log2", "one_minus_square"),
)
_COPIES = ("copy", "copy_p", "neg", "real", "imag", "stop_gradient", "name")

ELEMENTWISE: dict[str, PrimitiveRule] = {
    **dict.fromkeys(_PLAIN, _elementwise(_none)),
    **dict.fromkeys(_COPIES, _elementwise(_first)),
    **dict.fromkeys(("add", "add_any", "sub"), _elementwise(_sum)),
    "mul": _elementwise(_product),
    "div": _elementwise(_first),
    "convert_element_type": _elementwise(_conversion),
    "select_n": _elementwise(_select),
    "sharding_constraint": PrimitiveRule(_elementwise(_first).derive, _as_it_is),  # the plan decides
}
