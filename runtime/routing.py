"""Routing: from the name that a request asks for to the model that answers it.

A name is a model's own, one of its aliases, or a route's: a name for models that can stand for each other, as the
bundle file declares (`routes:`). Which of them answers, the route's policy says, from where the models are and what
each would cost. Deterministic, and part of the scheduler: a simulated request is routed as a served one is.

Policies:
- cheapest: the model for which a request waits for the shortest transfers; of hot ones the one with the fewest
  requests, then the one that comes first in the route. A transfer that others wait for already counts half, so that
  requests which come one after the other don't bring a second model. What leaves to make room is not counted. One
  that has failed its check is the last choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ..compiler.bundle.manifest import ModelEntry, Route
from .events import Request
from .residency import ResidencyManager

__all__ = ["Costs", "Router"]


class Costs(Protocol):
    """What a request for a model would cost now."""

    def switch_seconds(self, model: str) -> float:
        """Returns how long a model that is not hot takes to become so, if nothing is in its way."""
        ...

    def is_coming(self, model: str) -> bool:
        """Whether somebody waits for the model already, or it is on its way."""
        ...

    def is_healthy(self, model: str) -> bool:
        """Whether the model has failed no check."""
        ...

    def num_requests(self, model: str) -> int:
        """Returns how many requests a model has, those that wait included."""
        ...


class Router:
    """Knows the names of a bundle.

    Args:
        models: Of the bundle.
        routes: By name; their models by name or alias.
    """

    def __init__(self, models: Iterable[ModelEntry], routes: Mapping[str, Route]) -> None:
        self._names = {name: entry.name for entry in models for name in (entry.name, *entry.aliases)}
        self._routes = {
            name: (tuple(dict.fromkeys(self._names[model] for model in route.models)), route.policy)
            for name, route in routes.items()
        }

    def route(self, request: Request, residency: ResidencyManager, costs: Costs) -> str:
        """Returns the model that is to answer a request."""
        if request.model in self._names:
            return self._names[request.model]
        models, policy = self._routes[request.model]
        return _POLICIES[policy](models, residency, costs)


def _cheapest(models: Sequence[str], residency: ResidencyManager, costs: Costs) -> str:
    def seconds(model: str) -> float:
        if residency.is_hot(model):
            return 0.0
        return costs.switch_seconds(model) * (0.5 if costs.is_coming(model) else 1.0)

    return min(models, key=lambda model: (not costs.is_healthy(model), seconds(model), costs.num_requests(model)))


_POLICIES = {"cheapest": _cheapest}
