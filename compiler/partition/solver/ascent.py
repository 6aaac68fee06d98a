"""Dual ascent: prices and messages that prove a high bound on a large core.

Messages follow the prices by passes of TRW-S; prices follow the usage of what the messages find best, by subgradient
steps with Polyak's length in a direction that is averaged over passes. When no better bound comes up for long, the step
is shortened and the ascent goes on from the best values so far.
"""

from __future__ import annotations

import numpy as np

from .core import Core
from .dual import Dual
from .kernels import Pairs, pass_messages, round_messages

__all__ = ["Ascent"]

_MEMORY = 0.7  # share of the former direction in the new one
_PATIENCE = 20  # passes without a better bound
_SHORTER = 0.7  # of the step, after that
_SHORTEST = 1e-4
_LEAST_ROOM = 1e-3  # of the largest room, for the scale of a row
_GUESS = 0.2  # of the bound: how far above it the cost may be, as long as none is known


class Ascent:
    """The state of the ascent; the best values are kept."""

    def __init__(self, core: Core, pairs: Pairs) -> None:
        self._core, self._pairs = core, pairs
        self._node_of = np.repeat(np.arange(len(core.nodes)), core.num_labels)
        self._scale = np.maximum(core.room, _LEAST_ROOM * core.room.max(initial=1.0))
        self._prices = np.zeros(len(core.room))  # in units of the scale
        self._direction = np.zeros(len(core.room))
        self._messages = np.zeros(int(pairs.message[-1]))
        self._beliefs = np.zeros(len(core.costs))
        self._step, self._num_waited = 1.0, 0
        self._best_prices, self._best_messages = self._prices.copy(), self._messages.copy()
        self.bound = -np.inf

    @property
    def is_done(self) -> bool:
        """Whether steps have become too short to matter."""
        return self._step < _SHORTEST

    @property
    def prices(self) -> np.ndarray:
        """Prices now, [rows]."""
        return self._prices / self._scale

    def climb(self, cost: float, num_passes: int) -> None:
        """Makes passes in both directions, each with a step of the prices; `cost` is of the best assignment known."""
        for _ in range(num_passes):
            bound = self._pass()
            self._num_waited = 0 if self._keep(bound) else self._num_waited + 1
            if self._num_waited >= _PATIENCE:
                self._go_back()
            self._move(bound, cost)

    def _keep(self, bound: float) -> bool:
        if not bound > self.bound:
            return False
        self.bound = bound
        self._best_prices[:], self._best_messages[:] = self._prices, self._messages
        return True

    def _go_back(self) -> None:
        self._step *= _SHORTER
        self._num_waited = 0
        self._prices[:], self._messages[:] = self._best_prices, self._best_messages
        self._direction[:] = 0.0

    def _pass(self) -> float:
        costs = self._core.priced(self.prices)
        self._sweep(costs, is_forward=True)
        return self._sweep(costs, is_forward=False) - float(self.prices @ self._core.room) + self._core.constant

    def _move(self, bound: float, cost: float) -> None:
        excess = (self._core.usage(self._cheapest()) - self._core.room) / self._scale
        self._direction = _MEMORY * self._direction + (1 - _MEMORY) * excess
        useful = np.where((self._prices <= 0) & (self._direction < 0), 0.0, self._direction)
        target = cost if np.isfinite(cost) else bound + _GUESS * abs(bound)
        length = self._step * max(target - bound, 1e-3 * abs(target)) / max(float(useful @ useful), 1e-9)
        self._prices = np.maximum(self._prices + length * useful, 0.0)

    def _cheapest(self) -> np.ndarray:
        """Label of the least belief of each node, by place."""
        first, node_of = self._core.first, self._node_of
        least = np.minimum.reduceat(self._beliefs, first[:-1])
        hits = np.flatnonzero(self._beliefs <= least[node_of])[::-1]
        places = np.zeros(len(self._core.nodes), np.int64)
        places[node_of[hits]] = hits - first[node_of[hits]]
        return places

    def restore(self, num_passes: int) -> None:
        """Goes back to the best values and lets the messages settle there."""
        self._prices[:], self._messages[:] = self._best_prices, self._best_messages
        for _ in range(num_passes):
            self._keep(self._pass())

    def round(self) -> np.ndarray:
        """Returns labels chosen by messages and prices; they may use too much."""
        places = np.zeros(len(self._core.nodes), np.int64)
        round_messages(self._pairs, self._core.priced(self.prices), self._messages, places, True)
        return places

    def reduced_costs(self) -> np.ndarray:
        """Returns how much more than the bound any assignment costs that has a label, [labels]."""
        least = np.minimum.reduceat(self._beliefs, self._core.first[:-1])
        return self._beliefs - least[self._node_of]

    def dual(self) -> Dual:
        """Returns the best values in a form that proves the bound."""
        self.restore(0)
        messages = self._messages.copy()
        self._sweep(self._core.priced(self.prices), is_forward=True, messages=messages, is_last=True)
        return Dual(self.prices, messages)

    def _sweep(
        self, costs: np.ndarray, *, is_forward: bool, messages: np.ndarray | None = None, is_last: bool = False
    ) -> float:
        values = self._messages if messages is None else messages
        return pass_messages(self._pairs, costs, values, self._beliefs, is_forward, is_last)
