"""What is said of many measurements: percentiles, and shares with their confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ...errors import ConfigurationError
from .client import Reply

__all__ = ["Bound", "Percentiles", "parse_bound", "percentile", "usual_mean", "wilson_interval"]

_NORMAL_95 = 1.959963984540054  # 97.5 % of a standard normal distribution are below
_METRICS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True)
class Percentiles:
    """How measurements are distributed, in their own unit."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles | None:
        """Returns the percentiles of some values, None of no values."""
        if not values:
            return None
        ordered = sorted(values)
        return cls(math.fsum(ordered) / len(ordered), *(percentile(ordered, share) for share in (0.5, 0.9, 0.95, 0.99)))

    def to_json(self) -> dict[str, float]:
        """Returns them by name."""
        return asdict(self)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the value below which a share of the sorted values are, interpolated between neighbours.

    >>> percentile([0.0, 1.0, 2.0, 3.0], 0.5)
    1.5
    """
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def usual_mean(values: Sequence[float]) -> float:
    """Returns the mean of those that are at most twice the median, none of them negative, for what takes time in sum.

    >>> usual_mean([1.0, 1.0, 1.6, 90.0])
    1.2
    """
    most = 2 * statistics.median(values)
    return statistics.fmean(value for value in values if value <= most)


def wilson_interval(num_hits: int, num_trials: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share (Wilson 1927); without trials it may be anything.

    Unlike the normal approximation it is within 0 and 1 and says something when all trials hit, or none.
    """
    if num_trials == 0:
        return 0.0, 1.0
    share = num_hits / num_trials
    weight = _NORMAL_95**2 / num_trials
    centre = share + weight / 2
    spread = _NORMAL_95 * math.sqrt((share * (1 - share) + weight / 4) / num_trials)
    low = 0.0 if num_hits == 0 else (centre - spread) / (1 + weight)
    high = 1.0 if num_hits == num_trials else (centre + spread) / (1 + weight)
    return low, high


@dataclass(frozen=True)
class Bound:
    """A service level objective: what a metric may be at most."""

    metric: str
    seconds: float

    def holds(self, reply: Reply) -> bool:
        """Whether an answer keeps it: a failure does not, and an answer of one token has no TPOT to exceed."""
        if reply.failure is not None:
            return False
        values = {"ttft": reply.ttft_seconds, "tpot": reply.tpot_seconds, "e2e": reply.end_seconds}
        value = values[self.metric]
        return value is None or value <= self.seconds


def parse_bound(text: str) -> Bound:
    """Returns the bound of e.g. "ttft=0.5", in seconds.

    Raises:
        ConfigurationError: if it is none.
    """
    metric, _, value = text.partition("=")
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if metric not in _METRICS or not (math.isfinite(seconds) and seconds > 0):
        raise ConfigurationError(f"--slo {text!r}: write one of {', '.join(_METRICS)}, = and seconds, e.g. ttft=0.5")
    return Bound(metric, seconds)
