"""FLOPs of one equation, by primitive.

Conventions:
- A FLOP is one arithmetic operation on floating-point elements; a transcendental counts as one, and so does a
  comparison, a minimum, an absolute value. A complex element counts as one too.
- Integer, boolean and index arithmetic is no FLOP, random bits included. Products (`dot_general`, convolutions)
  count whatever their type, since int8 products do the same work; a complex product counts four real ones.
- A reduction of n elements to m counts n - m, a cumulative operation along a line of n counts n - 1.
- Moving, converting, selecting and exchanging data between devices is no FLOP; neither is bringing weights from a
  stored form into the type they are computed in (`CONVERSIONS`).
- What depends on an algorithm that XLA chooses (sort, factorizations, FFT), and any primitive not listed here, is an
  estimate and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from jax.extend.core import JaxprEqn

from .arrays import AnyJaxpr, is_inexact, num_elements, open_jaxpr, shape_of
from .products import convolution_flops, dot_flops, ragged_dot_flops

__all__ = ["CONVERSIONS", "PRODUCTS", "equation_flops"]

CONVERSIONS = frozenset({"dequantize"})  # named ops
PRODUCTS = frozenset({"conv_general_dilated", "dot_general", "ragged_dot_general"})  # primitives

FlopRule: TypeAlias = Callable[[JaxprEqn], int]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ELEMENTWISE = _names(
    """
    abs acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp cos cosh
    digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac integer_pow
    is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne neg nextafter polygamma pow
    random_gamma_grad regularized_incomplete_beta rem round rsqrt sign sin sinh sqrt square sub tan tanh zeta
    """
)

_INTEGER = _names(
    """
    and clz mulhi not or population_count random_bits random_clone random_fold_in random_seed random_split
    random_unwrap random_wrap rng_bit_generator shift_left shift_right_arithmetic shift_right_logical
    threefry2x32 xor
    """
)

_MOVEMENT = _names(
    """
    after_all all_gather all_gather_invariant all_to_all axis_index bitcast_convert_type broadcast_in_dim
    complex concatenate conj convert_element_type copy copy_p create_token debug_callback debug_print device_put
    dynamic_slice dynamic_update_slice empty empty2 expand_dims gather imag iota layout_constraint mesh_cast
    name optimization_barrier pad pbroadcast pcast pmax pmin ppermute psum psum2 psum_invariant pvary
    ragged_all_to_all real reduce_precision reduce_scatter reshape reshard rev rng_uniform scatter select_n
    sharding_constraint slice split squeeze stack stop_gradient tile transpose unstack
    """
)


def equation_flops(equation: JaxprEqn) -> tuple[int, bool]:
    """Counts an equation that has no loop or branch in it.

    Returns:
        FLOPs, and whether they are an estimate.
    """
    name = equation.primitive.name
    if name in _RULES:
        return _RULES[name](equation), False
    return _ESTIMATES.get(name, _elementwise)(equation), True


def _is_inexact(equation: JaxprEqn) -> bool:
    """Whether the first operand is floating-point or complex."""
    return bool(equation.invars) and is_inexact(equation.invars[0])


def _input_size(equation: JaxprEqn) -> int:
    return num_elements(equation.invars[0])


def _output_size(equation: JaxprEqn) -> int:
    return num_elements(equation.outvars[0])


def _zero(equation: JaxprEqn) -> int:
    return 0


def _elementwise(equation: JaxprEqn) -> int:
    return _output_size(equation) if _is_inexact(equation) else 0


def _reduction(equation: JaxprEqn) -> int:
    return _input_size(equation) - _output_size(equation) if _is_inexact(equation) else 0


def _general_reduction(equation: JaxprEqn) -> int:
    steps = _input_size(equation) - _output_size(equation)
    return steps * _scalar_flops(equation.params["jaxpr"])


def _scalar_flops(jaxpr: AnyJaxpr) -> int:
    """FLOPs of one application of a reducer."""
    return sum(equation_flops(equation)[0] for equation in open_jaxpr(jaxpr).eqns)


def _cumulative(equation: JaxprEqn) -> int:
    length = shape_of(equation.invars[0])[equation.params["axis"]]
    return _input_size(equation) // length * (length - 1) if length and _is_inexact(equation) else 0


def _window(equation: JaxprEqn) -> int:
    if not _is_inexact(equation):
        return 0
    return _output_size(equation) * (math.prod(equation.params["window_dimensions"]) - 1)


def _general_window(equation: JaxprEqn) -> int:
    steps = _output_size(equation) * (math.prod(equation.params["window_dimensions"]) - 1)
    return steps * _scalar_flops(equation.params["jaxpr"])


def _select_and_scatter(equation: JaxprEqn) -> int:
    """Each element of the source is compared to a window of the operand and added once."""
    return _input_size(equation) * math.prod(equation.params["window_dimensions"]) if _is_inexact(equation) else 0


def _scatter(equation: JaxprEqn) -> int:
    """One operation for each update."""
    return num_elements(equation.invars[2]) if _is_inexact(equation) else 0


def _sort(equation: JaxprEqn) -> int:
    """n * ceil(log2 n) comparisons a line of n keys."""
    shape = shape_of(equation.invars[0])
    axis = equation.params.get("dimension", equation.params.get("axis", len(shape) - 1))
    length = shape[axis] if shape else 1
    return _input_size(equation) * math.ceil(math.log2(max(length, 1))) if _is_inexact(equation) else 0


def _fft(equation: JaxprEqn) -> int:
    length = math.prod(equation.params["fft_lengths"])
    transforms = max(_input_size(equation), _output_size(equation)) // max(length, 1)
    return round(5 * transforms * length * math.log2(max(length, 2)))


def _matrix_cubed(factor: float) -> FlopRule:
    """A dense factorization of [..., m, n]: factor * m * n * min(m, n)."""

    def rule(equation: JaxprEqn) -> int:
        *_, rows, columns = shape_of(equation.invars[0])
        return round(factor * _input_size(equation) * min(rows, columns))

    return rule


def _triangular_solve(equation: JaxprEqn) -> int:
    """Forward or back substitution: n FLOPs for each element of the right-hand side."""
    return _output_size(equation) * shape_of(equation.invars[0])[-1]


_SCATTERS = ("scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max", "scatter_add", "scatter_mul")

_RULES: dict[str, FlopRule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys([*_INTEGER, *_MOVEMENT, "reduce_and", "reduce_or", "reduce_xor"], _zero),
    **dict.fromkeys(["reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "argmax", "argmin"], _reduction),
    **dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"], _cumulative),
    **dict.fromkeys(["reduce_window_sum", "reduce_window_max", "reduce_window_min"], _window),
    **dict.fromkeys(_SCATTERS, _scatter),
    "conv_general_dilated": convolution_flops,
    "dot_general": dot_flops,
    "ragged_dot_general": ragged_dot_flops,
    "reduce": _general_reduction,
    "reduce_window": _general_window,
    "select_and_scatter_add": _select_and_scatter,
    "triangular_solve": _triangular_solve,
}

_ESTIMATES: dict[str, FlopRule] = {
    **dict.fromkeys(["approx_top_k", "sort", "top_k"], _sort),
    "cholesky": _matrix_cubed(1 / 3),
    "eig": _matrix_cubed(25.0),
    "eigh": _matrix_cubed(9.0),
    "fft": _fft,
    "householder_product": _matrix_cubed(4 / 3),
    "lu": _matrix_cubed(2 / 3),
    "qr": _matrix_cubed(4 / 3),
    "svd": _matrix_cubed(20.0),
}
