"""The routes of a bundle: names for models that can stand for each other, and who of them answers next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing, closing

from ...compiler.bundle.manifest import Route
from ..events import Request, RouteWork
from ..request import ModelStatus, Residency, RouteStatus
from .exchange import Exchange
from .served import Served, ServedModels

__all__ = ["Routes"]

_CLOSEST_FIRST: tuple[Residency, ...] = ("hot", "warm", "cold")


class Routes:
    """Finds models by name, alias or route.

    Args:
        routes: By name.
        served: The models.
        exchange: With the engine, whose scheduler chooses.
    """

    def __init__(self, routes: Mapping[str, Route], served: ServedModels, exchange: Exchange) -> None:
        self._routes = routes
        self._served = served
        self._exchange = exchange

    def choose(self, name: str) -> Served:
        """Returns the model that answers to a name now.

        Raises:
            ModelNotFoundError: if there is none of that name.
            RequestError: if the engine takes no requests.
        """
        if name not in self._routes:
            return self._served[name]
        with closing(self._exchange.outcomes(self._request(name))) as outcomes:
            return self._served[next(outcomes).model]

    async def choose_async(self, name: str) -> Served:
        """Returns the model that answers to a name now; as `choose`."""
        if name not in self._routes:
            return self._served[name]
        async with aclosing(self._exchange.outcomes_async(self._request(name))) as outcomes:
            return self._served[(await anext(outcomes)).model]

    def status(self, models: Sequence[ModelStatus]) -> tuple[RouteStatus, ...]:
        """Returns every route, with what its models have in common."""
        known = {status.name: status for status in models}
        found: list[RouteStatus] = []
        for name, route in self._routes.items():
            members = [known[self._served.resolve(model)] for model in route.models]
            shared = set(members[0].capabilities).intersection(*(member.capabilities for member in members))
            found.append(
                RouteStatus(
                    name=name,
                    models=tuple(member.name for member in members),
                    policy=route.policy,
                    capabilities=tuple(one for one in members[0].capabilities if one in shared),
                    residency=next(one for one in _CLOSEST_FIRST if one in {m.residency for m in members}),
                    context_length=min(member.context_length for member in members),
                    max_completion_tokens=min(member.max_completion_tokens for member in members),
                )
            )
        return tuple(found)

    def _request(self, name: str) -> Request:
        return self._exchange.request(name, RouteWork())
