"""What makes a function a named op.

Each op is a jitted function whose name survives tracing, so that the tracer sees one node with its own FLOPs, bytes
and sharding rule, and `compiler.lower` can put a target's implementation in its place (paged attention, padded rows).
Static options are part of the name: `plait.rms_norm[epsilon=1e-05]`; `parse_op_name` reads them back.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

__all__ = ["Option", "named_op", "parse_op_name", "wide"]

Option: TypeAlias = float | int | str | bool


def named_op(
    function: Callable[..., Array | tuple[Array, ...]],
    *,
    backward: Callable[..., tuple[Array | None, ...]] | None = None,
):
    """Makes `function(*arrays, **options)` a named op: one jitted call per set of options.

    Args:
        function: The op's definition.
        backward: Gradient of the op, itself a named op: from the gradient of its result, its operands and its options
            to the gradients of its operands, None for one that has none. By default JAX differentiates the definition.
    """

    @functools.cache
    def jitted(options: tuple[tuple[str, Option], ...]):
        def op(*arrays: Array):
            return function(*arrays, **dict(options))

        text = ",".join(f"{name}={value!r}" for name, value in options)
        name = _PREFIX + function.__name__
        op.__name__ = op.__qualname__ = f"{name}[{text}]" if text else name
        return jax.jit(op)

    def gradients(options: tuple[tuple[str, Option], ...], arrays: tuple[Array, ...], gradient: Array):
        assert backward is not None
        return backward(gradient, *arrays, **dict(options))

    @functools.cache
    def differentiable(options: tuple[tuple[str, Option], ...]):
        op = jax.custom_vjp(jitted(options))
        op.defvjp(lambda *arrays: (jitted(options)(*arrays), arrays), functools.partial(gradients, options))
        return op

    @functools.wraps(function)
    def call(*arrays: ArrayLike, **options: Option):
        make = jitted if backward is None else differentiable
        return make(tuple(sorted(options.items())))(*arrays)

    NAMED_OPS.add(function.__name__)
    return call


def wide(dtype: DTypeLike) -> jnp.dtype:
    """Returns the type that values of `dtype` are accumulated in: f32, or f64 for f64."""
    return jnp.promote_types(dtype, jnp.float32)


NAMED_OPS: set[str] = set()

_PREFIX = "plait."  # no function of a user's has a dot in its name
_OP_NAME = re.compile(r"plait\.(\w+)(?:\[(.*)\])?")


def parse_op_name(name: str) -> tuple[str, dict[str, Option]] | None:
    """Splits the name of a jitted call into a named op and its static options.

    Returns:
        `("rms_norm", {"epsilon": 1e-05})` for `plait.rms_norm[epsilon=1e-05]`, or None if the name is no named op's.
    """
    match = _OP_NAME.fullmatch(name)
    if match is None or match[1] not in NAMED_OPS:
        return None
    options = (item.split("=", 1) for item in match[2].split(",")) if match[2] else ()
    return match[1], {key: ast.literal_eval(value) for key, value in options}
