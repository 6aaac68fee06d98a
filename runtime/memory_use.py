"""What is in use of each tier, and was at its peak: by the plan, by the scheduler's charges, and by what JAX holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .clock import Clock
from .events import TierName
from .metrics import Metrics
from .residency import ResidencyManager

if TYPE_CHECKING:
    from .executor import JaxExecutor

__all__ = ["READING_INTERVAL_SECONDS", "MemoryUse", "TierUse"]

READING_INTERVAL_SECONDS = 10.0  # at least, between two readings of all arrays that are alive


@dataclass(frozen=True)
class TierUse:
    """Bytes of one tier: what the plan says, what the scheduler charges and what JAX holds."""

    tier: TierName
    budget_bytes: int
    charged_bytes: int  # now: weights, KV pools and the largest workspace, whether it is in use or not
    peak_charged_bytes: int
    predicted_bytes: int  # at the measured peak: by the plan, for the models and programs that were in use then
    measured_bytes: int  # at its peak: live arrays, and temporaries and results of the step that ran


class MemoryUse:
    """Looks at the tiers, on the engine thread, and keeps their peaks.

    Args:
        executor: What holds the arrays.
        residency: What the scheduler charges.
        clock: When all arrays were read.
        metrics: Told what is in use.
    """

    def __init__(self, executor: JaxExecutor, residency: ResidencyManager, clock: Clock, metrics: Metrics) -> None:
        self._executor = executor
        self._residency = residency
        self._clock = clock
        self._metrics = metrics
        self._read_at = -math.inf
        self._uses: dict[TierName, TierUse] = {}

    @property
    def tiers(self) -> tuple[TierUse, ...]:
        """The use of each tier; none before the first look."""
        return tuple(self._uses.values())

    def observe(self) -> None:
        """Looks at what is in use now; at all arrays only while none is on its way: all of them count on arrival."""
        now = self._clock.now()
        is_due = now - self._read_at >= READING_INTERVAL_SECONDS and not self._residency.is_moving
        if is_due:
            self._read_at = now
        reading = self._executor.measure(reads_arrays=is_due)
        self._note("hbm", self._residency.budget.hbm, reading.hbm_bytes)
        if self._residency.is_tiered:
            self._note("ddr", self._residency.budget.ddr, reading.ddr_bytes)

    def _note(self, tier: TierName, budget: int, measured_bytes: int) -> None:
        charged = self._residency.used_bytes(tier)
        before = self._uses.get(tier) or TierUse(tier, budget, 0, 0, 0, 0)
        is_peak = measured_bytes > before.measured_bytes
        self._uses[tier] = use = TierUse(
            tier,
            budget,
            charged,
            max(before.peak_charged_bytes, charged),
            self._predicted_bytes(tier) if is_peak else before.predicted_bytes,
            measured_bytes if is_peak else before.measured_bytes,
        )
        self._metrics.tier(tier, measured_bytes, use.measured_bytes, budget)

    def _predicted_bytes(self, tier: TierName) -> int:
        predicted = self._executor.predict()
        return predicted.hbm_bytes if tier == "hbm" else predicted.ddr_bytes
