"""Named ops whose rules need more than their bodies show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from jax.extend.core import JaxprEqn
from jaxtyping import Array

from ....models.named_ops import Option
from ...mesh import Collective
from . import experts
from .division import Division
from .rule import Rule

__all__ = ["NAMED", "Implementations", "NamedRule"]

Implementations: TypeAlias = Mapping[str, Callable[..., object]]
_Options: TypeAlias = Mapping[str, Option]


@dataclass(frozen=True)
class NamedRule:
    """How a named op is divided, computed in parts, and what it sends inside."""

    derive: Callable[[JaxprEqn, _Options], Rule]
    evaluate: Callable[[JaxprEqn, Sequence[Array], Division, Implementations, _Options], Sequence[Array]]
    collectives: Callable[[JaxprEqn, Division], tuple[Collective, ...]]


NAMED: Mapping[str, NamedRule] = MappingProxyType(
    {
        "moe": NamedRule(experts.derive, experts.evaluate, experts.forward_collectives),
        "moe_backward": NamedRule(experts.derive_backward, experts.evaluate_backward, experts.backward_collectives),
    }
)
