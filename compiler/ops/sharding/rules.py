"""The rule of any equation: how it can be divided, and how one device computes its part."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from ....models.named_ops import parse_op_name
from ...mesh import Collective
from ..arrays import dtype_of, is_key, shape_of
from .batched import BATCHED
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
    {**ELEMENTWISE, **SHAPES, **REDUCTIONS, **PRODUCTS, **INDEXED, **BATCHED}
)
_EMPTY: Mapping[str, Callable[..., object]] = MappingProxyType({})
_MOST_COMPOSITES = 4096  # that are kept: more than one graph has, so that no walk through it does anything twice


def derive(equation: JaxprEqn) -> Rule:
    """Returns how an equation can be divided; without a rule for it, every device computes all of it, and why."""
    if (named := _named(equation)) is not None:
        return named[0].derive(equation, named[1])
    if is_composite(equation):
        return _composite(equation).rule
    has_keys = any(map(is_key, (*equation.invars, *equation.outvars)))
    if not has_keys and (known := PRIMITIVES.get(equation.primitive.name)) is not None:
        return _without_sums(equation, known.derive(equation))
    ranks = (tuple(len(shape_of(atom)) for atom in atoms) for atoms in (equation.invars, equation.outvars))
    note = "random keys are whole" if has_keys else "no sharding rule"
    return replicated(*ranks, note=f"{note} for {equation.primitive.name}")


def _without_sums(equation: JaxprEqn, rule: Rule) -> Rule:
    """Truth values don't add up: an array of them is never a partial sum."""
    truths = {i for i, atom in enumerate(equation.invars) if dtype_of(atom) == jnp.dtype(bool)}
    if all(dtype_of(var) != jnp.dtype(bool) for var in equation.outvars):
        return replace(rule, linear=tuple(each for each in rule.linear if each.isdisjoint(truths)))
    sums = {factor for access in (*rule.operands, *rule.results) for factor, how in access.partial if how == "sum"}
    return replace(rule, linear=(), blocked=rule.blocked | sums)


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
    if known is None or known.evaluate is None or not division.rule.sizes:
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


@dataclass(frozen=True, eq=False)
class _Looked:
    """An equation with a body, as a key: two are equal that have one body. It keeps the body, and so its identity."""

    equation: JaxprEqn
    body: object

    def __hash__(self) -> int:
        return id(self.body)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Looked) and other.body is self.body


def _composite(equation: JaxprEqn) -> Composite:
    """JAX traces equal calls once: their equations share a jaxpr, and so they share what is found of it."""
    shares = equation.primitive.name in ("jit", "pjit")
    return _analysed(_Looked(equation, equation.params["jaxpr"] if shares else equation))


@functools.lru_cache(maxsize=_MOST_COMPOSITES)
def _analysed(looked: _Looked) -> Composite:
    return analyse(looked.equation, derive)
