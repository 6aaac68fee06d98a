"""Rules of named ops that need more than their bodies show.

None of them yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jax.extend.core import JaxprEqn
from jaxtyping import Array

from ....models.named_ops import Option
from ...mesh import Collective
from .division import Division
from .rule import Rule

__all__ = ["NAMED", "Implementations", "NamedRule"]

Implementations = Mapping[str, Callable[..., object]]


@dataclass(frozen=True)
class NamedRule:
    """How a named op is divided, computed in parts, and what it sends inside."""

    derive: Callable[[JaxprEqn, Mapping[str, Option]], Rule]
    evaluate: Callable[[JaxprEqn, Sequence[Array], Division, Implementations], Sequence[Array]]
    collectives: Callable[[JaxprEqn, Division], tuple[Collective, ...]] = lambda equation, division: ()


NAMED: dict[str, NamedRule] = {}
