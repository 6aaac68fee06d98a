"""Evaluating a traced graph on one device, with implementations in the place of named ops."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.extend import core

from ..models.named_ops import parse_op_name
from .apply import Implementations
from .trace import Traced

__all__ = ["evaluate_graph"]


def evaluate_graph(traced: Traced, arguments: Sequence[object], implementations: Implementations) -> list[object]:
    """Evaluates the equations of a graph on one device; values may be opaque to it."""
    values: dict[int, object] = {**traced.constants, **dict(zip(traced.graph.inputs, arguments, strict=True))}
    for operation, flat in zip(traced.graph.operations, traced.equations, strict=True):
        operands = [values[o] if isinstance(o, int) else o.val for o in flat.operands]
        with jax.named_scope(operation.path or "top"):
            values.update(zip(flat.results, _apply(flat.equation, operands, implementations), strict=True))
    return [values[value] for value in traced.graph.outputs]


def _evaluate_body(
    jaxpr: core.Jaxpr, consts: Sequence[object], arguments: Sequence[object], implementations: Implementations
) -> list[object]:
    """Evaluates the body of a call, putting implementations in the place of named ops."""
    values: dict[core.Var, object] = {}

    def read(atom: core.Var | core.Literal) -> object:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        results = _apply(equation, [read(atom) for atom in equation.invars], implementations)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: core.JaxprEqn, operands: list[object], implementations: Implementations) -> Sequence[object]:
    if equation.primitive.name == "jit":
        op = parse_op_name(equation.params["name"])
        if op is not None and op[0] in implementations:
            result = implementations[op[0]](*operands, **op[1])
            return result if isinstance(result, tuple) else (result,)
        inner = equation.params["jaxpr"]
        return _evaluate_body(getattr(inner, "jaxpr", inner), inner.consts, operands, implementations)
    result = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
    return result if equation.primitive.multiple_results else (result,)
