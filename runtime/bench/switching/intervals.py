"""How sure a figure is: percentile bootstrap over what was measured (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "estimate", "ratio"]

_NUM_RESAMPLES = 2000
_SEED = 7
_TAILS = (2.5, 97.5)  # percent


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Returns the three by name."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def text(self, factor: float = 1.0, digits: int = 3) -> str:
        """Returns the figure with its interval, times a factor."""
        value, low, high = (f"{number * factor:.{digits}g}" for number in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def estimate(values: Sequence[float], statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Returns a statistic of measurements.

    Args:
        values: What was measured, at least once.
        statistic: Maps an array [..., n] to [...].
    """
    array = np.asarray(values, float)
    return _estimate(float(statistic(array)), statistic(_resampled(array, _SEED)))


def ratio(values: Sequence[float], others: Sequence[float], statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Returns a statistic of some measurements over that of others; both are resampled, independently."""
    above, below = np.asarray(values, float), np.asarray(others, float)
    spread = statistic(_resampled(above, _SEED)) / statistic(_resampled(below, _SEED + 1))
    return _estimate(float(statistic(above) / statistic(below)), spread)


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    return values[np.random.default_rng(seed).integers(len(values), size=(_NUM_RESAMPLES, len(values)))]


def _estimate(value: float, spread: np.ndarray) -> Estimate:
    low, high = np.percentile(spread, _TAILS)
    return Estimate(value, float(low), float(high))
