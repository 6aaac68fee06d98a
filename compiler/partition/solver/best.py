"""The best assignment of a core so far and the best bound so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from .core import Core

if TYPE_CHECKING:
    from .program import Outcome

__all__ = ["Best", "Progress"]

Progress: TypeAlias = Callable[[str, float, float], None]  # is told a stage, the best cost and the best bound


class Best:
    """The best labels so far and the best bound."""

    def __init__(self, core: Core, *, is_integral: bool) -> None:
        self._core, self.is_integral = core, is_integral
        self.places: np.ndarray | None = None
        self.cost, self.bound = float("inf"), -float("inf")
        self.is_infeasible = False

    @property
    def tolerance(self) -> float:
        """Cost below which a difference is none: of integers half a unit."""
        return 0.5 if self.is_integral else 1e-9 * abs(self.cost) if np.isfinite(self.cost) else 0.0

    @property
    def is_optimal(self) -> bool:
        """Whether the bound leaves no room for anything better."""
        return self.places is not None and self.cost - self.bound <= 1e-9 * abs(self.cost)

    def offer(self, places: np.ndarray) -> bool:
        """Takes labels if they are allowed and cheaper, and says whether they are."""
        cost = self._core.cost(places)
        if not cost < self.cost or not self._core.fits(places):
            return False
        self.places, self.cost = places.copy(), cost
        return True

    def prove(self, bound: float) -> None:
        """Takes a bound if it is better; between integers there is nothing."""
        if self.is_integral and np.isfinite(bound):
            bound = float(np.ceil(bound - max(1e-4, 1e-11 * abs(bound))))
        self.bound = max(self.bound, bound)
        if self.bound == float("inf"):
            self.is_infeasible = True

    def take(self, outcome: Outcome) -> None:
        """Takes what a program found."""
        if outcome.places is not None:
            self.offer(outcome.places)
        self.prove(outcome.bound)
        self.is_infeasible |= outcome.status == "infeasible"
