"""Partitioning: which device computes what.

One device is the only mesh there is yet: every value is whole and nothing is communicated, so the plan is optimal and
its lower bound is its cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...errors import ConfigurationError
from ..cost import StepCost

__all__ = ["Partition", "partition"]


@dataclass(frozen=True)
class Partition:
    """A sharding of a graph over a mesh, with its certificate."""

    mesh: dict[str, int]  # size by axis; empty for one device
    cost: float  # seconds of a step
    lower_bound: float  # seconds that no partition on this mesh can go below
    status: str = "optimal"
    seconds: float = 0.0  # that the search took
    collectives: tuple[str, ...] = field(default=())  # none on one device

    @property
    def gap(self) -> float:
        """How far the cost may be from the best possible, relative to it."""
        return 0.0 if self.cost == 0 else (self.cost - self.lower_bound) / self.cost


def partition(cost: StepCost, num_devices: int) -> Partition:
    """Returns the partition of a step over one device.

    Raises:
        ConfigurationError: if the target has more devices.
    """
    if num_devices != 1:
        raise ConfigurationError(f"the target has {num_devices} devices; plans for more than one are not made yet")
    return Partition(mesh={}, cost=cost.seconds, lower_bound=cost.seconds)
