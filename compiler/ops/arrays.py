"""Shape and type of the operands and results of an equation, and which equations merely call another jaxpr."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

__all__ = [
    "AnyJaxpr",
    "Atom",
    "called_jaxpr",
    "closed_over",
    "dtype_of",
    "is_inexact",
    "is_key",
    "num_elements",
    "open_jaxpr",
    "shape_of",
]

Atom: TypeAlias = Var | Literal
AnyJaxpr: TypeAlias = Jaxpr | ClosedJaxpr  # one class from jax 0.11 on

# Names differ between JAX releases: a jitted call is "jit", formerly "pjit"; remat is "remat2", elsewhere "checkpoint".
_CALLS = {
    *("jit", "pjit", "call", "core_call", "closed_call"),
    *("remat", "remat2", "remat_call", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_dce_call"),
}


def shape_of(atom: Atom) -> tuple[int, ...]:
    """Returns the shape; an effect's token has no elements."""
    return tuple(map(int, getattr(atom.aval, "shape", (0,))))


def dtype_of(atom: Atom) -> np.dtype:
    """Returns the type of an element; an effect's token is boolean."""
    return getattr(atom.aval, "dtype", np.dtype(bool))


def num_elements(atom: Atom) -> int:
    """Returns the number of elements."""
    return math.prod(shape_of(atom))


def is_inexact(atom: Atom) -> bool:
    """Whether the elements are floating-point or complex."""
    return bool(jnp.issubdtype(dtype_of(atom), jnp.inexact))


def is_key(atom: Atom) -> bool:
    """Whether the elements are random keys."""
    return bool(jnp.issubdtype(dtype_of(atom), jax.dtypes.prng_key))


def open_jaxpr(jaxpr: AnyJaxpr) -> Jaxpr:
    """Returns the jaxpr without the values that it closes over."""
    inner: Jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # type: ignore[assignment]
    return inner


def closed_over(jaxpr: AnyJaxpr) -> Sequence[object]:
    """Returns the values that a jaxpr closes over, one for each of its `constvars`."""
    return getattr(jaxpr, "consts", ())


def called_jaxpr(equation: JaxprEqn) -> AnyJaxpr | None:
    """Returns the jaxpr that an equation calls once with its own operands, or None if it is no such call."""
    if equation.primitive.name not in _CALLS:
        return None
    params = equation.params
    return next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
