"""Models made hot, or dropped from memory, because somebody says so rather than because a request needs it."""

from __future__ import annotations

from contextlib import aclosing, closing
from typing import Literal

from ...compiler.bundle.manifest import ModelEntry
from ...errors import InvalidRequestError, ModelStateError
from ..events import LoadWork, Request, UnloadWork
from .exchange import Exchange

__all__ = ["Loading"]


class Loading:
    """Has models loaded and unloaded.

    Args:
        exchange: With the engine.
        is_tiered: Whether there is a tier between disk and hbm.
    """

    def __init__(self, exchange: Exchange, *, is_tiered: bool) -> None:
        self._exchange = exchange
        self._is_tiered = is_tiered

    def load(self, entry: ModelEntry) -> Request:
        """Returns a request to make a model hot."""
        return self._exchange.request(entry.name, LoadWork())

    def unload(self, entry: ModelEntry, tier: Literal["ddr", "disk"]) -> Request:
        """Returns a request to drop a model from the tiers above one.

        Raises:
            InvalidRequestError: if there is no such tier.
            ModelStateError: if the model is pinned above it.
        """
        if tier == "ddr" and not self._is_tiered:
            raise InvalidRequestError("this machine has no ddr beside hbm; unload to disk", param="tier")
        if entry.pin is not None and entry.pin != tier:
            raise ModelStateError(
                f"model {entry.name!r} is pinned to {entry.pin} by the bundle file and stays there", code="model_pinned"
            )
        return self._exchange.request(entry.name, UnloadWork(tier))

    def run(self, request: Request, *, wait: bool) -> None:
        """Hands a load or an unload in, and waits until it is done if that is wanted.

        Raises:
            RequestError: if it is not taken, or waited for too long.
            ExecutionError: if the model's bytes could not be moved.
        """
        if not wait:
            self._exchange.post(request)
            return
        with closing(self._exchange.outcomes(request)) as outcomes:
            next(outcomes)

    async def run_async(self, request: Request, *, wait: bool) -> None:
        """Hands a load or an unload in; as `run`. Cancellation takes it back if it has not begun."""
        if not wait:
            self._exchange.post(request)
            return
        async with aclosing(self._exchange.outcomes_async(request)) as outcomes:
            await anext(outcomes)
