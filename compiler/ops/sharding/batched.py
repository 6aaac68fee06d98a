"""Rules of windows, transforms and decompositions: the dims that they treat as a batch can be divided."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from jax.extend.core import JaxprEqn

from ..arrays import shape_of
from .registry import Dims, Factors, PrimitiveRule, variables
from .rule import Rule

__all__ = ["BATCHED"]


def _over_batch(equation: JaxprEqn, free: Collection[int], *, linear: Iterable[Iterable[int]] = ()) -> Rule:
    """Returns the rule under which dims `free`, which all arrays have alike, can be divided, and no other."""
    factors, sizes = Factors(), shape_of(equation.invars[0])
    shared = {dim: factors.new(sizes[dim]) for dim in free}

    def dims(shape: tuple[int, ...]) -> Dims:
        return tuple(
            shared[dim] if dim in shared else factors.new(size, blocked=True) for dim, size in enumerate(shape)
        )

    operands, results = (list(map(shape_of, atoms)) for atoms in (equation.invars, equation.outvars))
    return factors.rule([dims(shape) for shape in operands], [dims(shape) for shape in results], linear=linear)


def _window(*, is_sum: bool = False) -> PrimitiveRule:
    """Of a reduction over windows: a dim of which each window has one element is a batch."""

    def derive(equation: JaxprEqn) -> Rule:
        params = equation.params
        sizes = params["window_dimensions"]
        plain = (1,) * len(sizes)
        steps = (params.get(name) or plain for name in ("window_strides", "base_dilation", "window_dilation"))
        looks = zip(sizes, *steps, strict=True)
        padding = params["padding"]
        free = [dim for dim, look in enumerate(looks) if set(look) == {1} and tuple(padding[dim]) == (0, 0)]
        return _over_batch(equation, free, linear=[{0}] if is_sum and variables(equation) else ())

    return PrimitiveRule(derive)


def _leading(num_own: Callable[[JaxprEqn], int]) -> PrimitiveRule:
    """Of an operation on the last dims of its first operand, as many as `num_own` says."""

    def derive(equation: JaxprEqn) -> Rule:
        return _over_batch(equation, range(len(shape_of(equation.invars[0])) - num_own(equation)))

    return PrimitiveRule(derive)


def _matrix(equation: JaxprEqn) -> int:
    del equation
    return 2


_DECOMPOSITIONS = (
    *("cholesky", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu"),
    *("ormqr", "qr", "schur", "svd", "triangular_solve", "tridiagonal"),
)

BATCHED: dict[str, PrimitiveRule] = {
    "reduce_window_sum": _window(is_sum=True),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window"), _window()),
    **dict.fromkeys(("select_and_scatter_add", "select_and_gather_add"), _window()),
    "fft": _leading(lambda equation: len(equation.params["fft_lengths"])),
    **dict.fromkeys(_DECOMPOSITIONS, _leading(_matrix)),
}
