"""What a primitive's rule consists of, and how rules are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array

from ...mesh import Reduction
from ..arrays import Atom, shape_of
from .division import Division
from .rule import Access, Rule

__all__ = ["Dims", "Evaluate", "Factors", "PrimitiveRule", "bind", "is_zero", "variables"]

Dims: TypeAlias = tuple[tuple[int, ...], ...]  # of each dim its factors, major to minor
Evaluate: TypeAlias = Callable[[JaxprEqn, Sequence[Array], Division], Sequence[Array]]


@dataclass(frozen=True)
class PrimitiveRule:
    """How a primitive is divided, and how one device computes its part."""

    derive: Callable[[JaxprEqn], Rule]
    evaluate: Evaluate | None = None  # by default the primitive is bound to the parts with its own parameters


@dataclass
class Factors:
    """The factors of a rule, as they are found."""

    sizes: list[int] = field(default_factory=list)
    blocked: set[int] = field(default_factory=set)

    def new(self, size: int, *, blocked: bool = False) -> tuple[int, ...]:
        """Adds a factor; a dim of size 1 has none."""
        if size == 1:
            return ()
        self.sizes.append(size)
        if blocked or size == 0:
            self.blocked.add(len(self.sizes) - 1)
        return (len(self.sizes) - 1,)

    def dims(self, shape: Iterable[int], *, blocked: Iterable[int] = ()) -> Dims:
        """Adds a factor for each dim of a shape, those at the positions `blocked` for ever whole."""
        held = set(blocked)
        return tuple(self.new(size, blocked=dim in held) for dim, size in enumerate(shape))

    def rule(
        self,
        operands: Sequence[Dims],
        results: Sequence[Dims],
        *,
        partial: Sequence[tuple[int, Reduction]] = (),
        linear: Iterable[Iterable[int]] = (),
    ) -> Rule:
        """Returns the rule; a factor that is the minor part of a dim is blocked.

        Args:
            operands: Factors of each operand's dims.
            results: Factors of each result's dims.
            partial: Factors that all results are partial in when they are divided.
            linear: Sets of operands that the results are linear in.
        """
        minor = {factor for dims in (*operands, *results) for dim in dims for factor in dim[1:]}
        return Rule(
            sizes=tuple(self.sizes),
            operands=tuple(Access(dims) for dims in operands),
            results=tuple(Access(dims, tuple(partial)) for dims in results),
            blocked=frozenset(self.blocked | minor),
            linear=tuple(frozenset(positions) for positions in linear),
        )


def bind(equation: JaxprEqn, operands: Sequence[Array], **changed: object) -> Sequence[Array]:
    """Applies an equation's primitive, some of its parameters changed."""
    params = equation.primitive.get_bind_params({**equation.params, **changed})
    result = equation.primitive.bind(*operands, **params)
    return result if equation.primitive.multiple_results else (result,)


def variables(equation: JaxprEqn) -> tuple[int, ...]:
    """Returns the positions of operands that are no literals."""
    return tuple(i for i, atom in enumerate(equation.invars) if not isinstance(atom, Literal))


def is_zero(atom: Atom) -> bool:
    """Whether an operand is the literal 0."""
    return isinstance(atom, Literal) and shape_of(atom) == () and not bool(atom.val)
