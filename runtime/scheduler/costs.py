"""What a request for a model would cost now, for whoever routes it."""

from __future__ import annotations

from ..foresight import Foresight
from .state import State

__all__ = ["StateCosts"]


class StateCosts:
    """Reads costs off the scheduler's memory; see `routing.Costs`."""

    def __init__(self, state: State, foresight: Foresight) -> None:
        self._state = state
        self._foresight = foresight

    def switch_seconds(self, model: str) -> float:
        """Returns how long a model that is not hot takes to become so, if nothing is in its way."""
        return self._foresight.reload_seconds(model)

    def is_coming(self, model: str) -> bool:
        """Whether somebody waits for the model already, or it is on its way."""
        transfer = self._state.transfer
        return bool(self._state.queues[model].waiting) or (transfer is not None and transfer.model == model)

    def is_healthy(self, model: str) -> bool:
        """Whether the model has failed no check."""
        return model not in self._state.unhealthy

    def num_requests(self, model: str) -> int:
        """Returns how many requests a model has, those that wait included."""
        queue = self._state.queues[model]
        return len(queue.waiting) + queue.num_running
