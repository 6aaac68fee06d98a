"""What a loop repeats: the layout of a `scan`, and how often a `while` runs, where its jaxpr tells.

A known trip count takes a counter that starts at a known integer, moves by a known step and is compared with a known
bound: the forms that `lax.fori_loop` and hand-written counted loops take. The condition and the body are evaluated on
affine values, "carry k plus an offset"; whatever is not affine is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var

from .arrays import AnyJaxpr, Atom, called_jaxpr, closed_over, dtype_of, open_jaxpr, shape_of

__all__ = ["Affine", "fold", "known_integer", "scan_layout", "trip_count"]

_COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne"}


@dataclass(frozen=True)
class Affine:
    """An integer scalar: a carry of the loop plus an offset, or a plain known number."""

    carry: int | None  # position among the carries; None: the number is `offset`
    offset: int


@dataclass(frozen=True)
class _Comparison:
    name: str
    left: Affine
    right: Affine


_Abstract = Affine | _Comparison | None  # None: unknown


def known_integer(value: object) -> int | None:
    """Returns a concrete integer scalar as an int, anything else as None."""
    dtype = getattr(value, "dtype", None)
    if isinstance(value, bool) or getattr(value, "shape", ()) != ():
        return None
    if isinstance(value, int) or (dtype is not None and jnp.issubdtype(dtype, jnp.integer)):
        return int(value)  # type: ignore[call-overload]
    return None


def fold(equation: JaxprEqn, operands: Sequence[int | None]) -> int | None:
    """Returns the integer that an equation yields for known operands, or None."""
    result = _apply(equation, [None if number is None else Affine(None, number) for number in operands])
    return result.offset if isinstance(result, Affine) else None


def scan_layout(equation: JaxprEqn) -> tuple[int, int]:
    """Returns the number of constants and of carries of a `scan`, which come before the arrays that it scans.

    Read off the shapes, as the parameters that say so have changed between JAX releases: what is scanned or stacked
    has one dimension more outside the body than inside.
    """
    body = open_jaxpr(equation.params["jaxpr"])
    num_scanned = _num_of_other_rank(equation.invars, body.invars)
    num_carries = len(body.outvars) - _num_of_other_rank(equation.outvars, body.outvars)
    return len(body.invars) - num_scanned - num_carries, num_carries


def _num_of_other_rank(outer: Sequence[Atom], inner: Sequence[Atom]) -> int:
    return sum(len(shape_of(x)) != len(shape_of(y)) for x, y in zip(outer, inner, strict=True))


def trip_count(equation: JaxprEqn, operands: Sequence[int | None]) -> int | None:
    """Returns how often the body of a `while` equation runs, or None if that depends on data.

    Args:
        equation: The `while` equation.
        operands: The value of each operand, where it is a known integer.
    """
    num_cond, num_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    known = [None if number is None else Affine(None, number) for number in operands]
    initial = list(operands[num_cond + num_body :])
    carries = [Affine(index, 0) for index in range(len(initial))]
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    (test,) = _evaluate(condition, [*known[:num_cond], *carries])
    if not isinstance(test, _Comparison):
        return None
    advanced = _evaluate(body, [*known[num_cond : num_cond + num_body], *carries])
    steps = [
        value.offset if isinstance(value, Affine) and value.carry == index else None
        for index, value in enumerate(advanced)
    ]
    left, right = (_line(side, initial, steps) for side in (test.left, test.right))
    if left is None or right is None:
        return None
    count = _first_failure(test.name, left.start - right.start, left.step - right.step)
    dtypes = [dtype_of(var) for var in open_jaxpr(body).invars[num_body:]]
    return count if count is not None and not _wraps(initial, steps, count, dtypes) else None


@dataclass(frozen=True)
class _Line:
    start: int  # value before the first trip
    step: int  # change with each trip


def _line(side: Affine, initial: Sequence[int | None], steps: Sequence[int | None]) -> _Line | None:
    """Returns how a side of the comparison moves, if that is known."""
    if side.carry is None:
        return _Line(side.offset, 0)
    start, step = initial[side.carry], steps[side.carry]
    return None if start is None or step is None else _Line(start + side.offset, step)


def _first_failure(name: str, difference: int, step: int) -> int | None:
    """Returns the first n at which `difference + n * step` compared with 0 is false, or None if there is none."""
    match name:
        case "lt":
            return 0 if difference >= 0 else (-difference + step - 1) // step if step > 0 else None
        case "le":
            return _first_failure("lt", difference - 1, step)
        case "gt" | "ge":
            return _first_failure("lt" if name == "gt" else "le", -difference, -step)
        case "ne":
            if difference == 0:
                return 0
            hits = step != 0 and difference % step == 0 and -difference // step > 0
            return -difference // step if hits else None
        case _:
            return 0 if difference != 0 else 1 if step != 0 else None


def _wraps(initial: Sequence[int | None], steps: Sequence[int | None], count: int, dtypes: Sequence[np.dtype]) -> bool:
    """Whether a counter leaves the range of its type on the way, in which case it starts over and counts on."""
    for start, step, dtype in zip(initial, steps, dtypes, strict=True):
        if start is None or step is None or not jnp.issubdtype(dtype, jnp.integer):
            continue
        last = start + count * step
        if not np.iinfo(dtype).min <= last <= np.iinfo(dtype).max:
            return True
    return False


def _evaluate(jaxpr: AnyJaxpr, arguments: Sequence[_Abstract]) -> list[_Abstract]:
    inner = open_jaxpr(jaxpr)
    env: dict[Var, _Abstract] = dict(zip(inner.invars, arguments, strict=True))
    for var, const in zip(inner.constvars, closed_over(jaxpr), strict=True):
        number = known_integer(const)
        env[var] = None if number is None else Affine(None, number)

    def read(atom: Var | Literal) -> _Abstract:
        if not isinstance(atom, Literal):
            return env.get(atom)
        number = known_integer(atom.val)
        return None if number is None else Affine(None, number)

    for equation in inner.eqns:
        operands = [read(atom) for atom in equation.invars]
        called = called_jaxpr(equation)
        results = [_apply(equation, operands)] if called is None else _evaluate(called, operands)
        env.update(zip(equation.outvars, results, strict=False))
    return [read(atom) for atom in inner.outvars]


def _apply(equation: JaxprEqn, operands: Sequence[_Abstract]) -> _Abstract:
    name = equation.primitive.name
    if not equation.outvars or shape_of(equation.outvars[0]) != ():
        return None
    numbers = [x for x in operands if isinstance(x, Affine)]
    if len(numbers) < len(operands):
        return None
    if name in _COMPARISONS and len(numbers) == 2:
        return _Comparison(name, numbers[0], numbers[1])
    return _arithmetic(name, numbers) if jnp.issubdtype(dtype_of(equation.outvars[0]), jnp.integer) else None


def _arithmetic(name: str, operands: Sequence[Affine]) -> Affine | None:
    match name, list(operands):
        case "convert_element_type", [x]:
            return x
        case "add", [x, Affine(None, step)]:
            return Affine(x.carry, x.offset + step)
        case "add", [Affine(None, step), x]:
            return Affine(x.carry, x.offset + step)
        case "sub", [x, Affine(None, step)]:
            return Affine(x.carry, x.offset - step)
        case "mul", [Affine(None, x), Affine(None, y)]:
            return Affine(None, x * y)
        case _:
            return None
