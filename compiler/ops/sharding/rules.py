"""The rule of any equation: how it can be divided, and how one device computes its part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from jax.extend.core import JaxprEqn
from jaxtyping import Array

from ....models.named_ops import parse_op_name
from ...mesh import Collective
from ..arrays import shape_of
from .composite import Composite, analyse, is_composite
from .division import Division
from .elementwise import ELEMENTWISE
from .indexed import INDEXED
from .named import NAMED, NamedRule
from .products import PRODUCTS
from .reductions import REDUCTIONS
from .registry import PrimitiveRule, bind
from .rule import Rule, replicated
from .shapes import SHAPES

__all__ = ["derive", "evaluate", "internal_collectives"]

PRIMITIVES: Mapping[str, PrimitiveRule] = MappingProxyType(
    {**ELEMENTWISE, **SHAPES, **REDUCTIONS, **PRODUCTS, **INDEXED}
)
_EMPTY: Mapping[str, Callable[..., object]] = MappingProxyType({})
_COMPOSITES: dict[object, Composite] = {}


def derive(equation: JaxprEqn) -> Rule:
    """Returns how an equation can be divided; without a rule for it, every device computes all of it, and why."""
    if (named := _named(equation)) is not None:
        return named[0].derive(equation, named[1])
    if is_composite(equation):
        return _composite(equation).rule
    if (known := PRIMITIVES.get(equation.primitive.name)) is not None:
        return known.derive(equation)
    ranks = (tuple(len(shape_of(atom)) for atom in atoms) for atoms in (equation.invars, equation.outvars))
    return replicated(*ranks, note=f"no sharding rule for {equation.primitive.name}")


def evaluate(
    equation: JaxprEqn,
    operands: Sequence[Array],
    division: Division,
    implementations: Mapping[str, Callable[..., object]] = _EMPTY,
) -> list[Array]:
    """Computes one device's part of an equation; only inside `shard_map`.

    Args:
        equation: What to compute.
        operands: This device's parts.
        division: How the equation is divided.
        implementations: Of named ops, to run in the place of their definitions.
    """

    def inner(equation: JaxprEqn, operands: Sequence[Array], division: Division) -> Sequence[Array]:
        return evaluate(equation, operands, division, implementations)

    if (named := _named(equation)) is not None:
        return list(named[0].evaluate(equation, operands, division, implementations, named[1]))
    if is_composite(equation):
        op = parse_op_name(str(equation.params.get("name", "")))
        composite = _composite(equation)
        if op is not None and op[0] in implementations and composite.is_itself(division):
            result = implementations[op[0]](*operands, **op[1])
            return list(result) if isinstance(result, tuple) else [result]  # type: ignore[list-item]
        return composite.evaluate(equation, operands, division, inner)
    known = PRIMITIVES.get(equation.primitive.name)
    if known is None or known.evaluate is None:
        return list(bind(equation, operands))
    return list(known.evaluate(equation, operands, division))


def internal_collectives(equation: JaxprEqn, division: Division) -> tuple[Collective, ...]:
    """Returns what an equation communicates inside when it is divided so."""
    named = _named(equation)
    return named[0].collectives(equation, division) if named is not None else ()


def _named(equation: JaxprEqn) -> tuple[NamedRule, dict[str, float | int | str | bool]] | None:
    if equation.primitive.name not in ("jit", "pjit"):
        return None
    op = parse_op_name(equation.params["name"])
    return (NAMED[op[0]], op[1]) if op is not None and op[0] in NAMED else None


def _composite(equation: JaxprEqn) -> Composite:
    """JAX traces equal calls once: their equations share a jaxpr, and so they share what is found of it."""
    jaxpr = equation.params.get("jaxpr")
    shares = equation.primitive.name in ("jit", "pjit")
    key = ("jaxpr", id(jaxpr)) if shares else ("equation", id(equation))
    if key not in _COMPOSITES:
        _COMPOSITES[key] = analyse(equation, derive)
    return _COMPOSITES[key]
