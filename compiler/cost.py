"""What a graph costs on a target: a roofline over the whole step.

A step takes at least as long as its FLOPs at the target's peak, and at least as long as its bytes at the memory's
bandwidth; the larger of the two and the launch make the estimate. Bytes here are those that must move even if every
op is fused: what the step looks at of weights, caches, optimizer state and inputs, its results, and what it overwrites
of weights and optimizer state, once each. Of experts those that can be chosen are read, of an embedding the rows of
the step's tokens. So the estimate is a lower bound as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from .graph import Graph
from .memory import MemoryPlan
from .target import Target

__all__ = ["StepCost", "operation_seconds", "peak_flops_per_s", "step_cost"]

_SHORT_NAMES = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class StepCost:
    """Time of one step and what bounds it."""

    compute_seconds: float
    memory_seconds: float
    launch_seconds: float

    @property
    def seconds(self) -> float:
        """The estimate."""
        return max(self.compute_seconds, self.memory_seconds) + self.launch_seconds

    @property
    def bound(self) -> str:
        """What takes longest: "compute", "memory" or "launch"."""
        terms = {"compute": self.compute_seconds, "memory": self.memory_seconds, "launch": self.launch_seconds}
        return max(terms, key=lambda name: terms[name])


def step_cost(graph: Graph, memory: MemoryPlan, dtype: str, target: Target) -> StepCost:
    """Returns the cost of one step on one device of a target.

    Args:
        graph: The step.
        memory: Its memory plan.
        dtype: That products are computed in, which decides the peak; weights may be stored in fewer bits.
        target: The machine.
    """
    moved = sum(graph.input_bytes_read) + memory.constant_bytes + memory.output_bytes + memory.rewritten_bytes
    return StepCost(
        compute_seconds=graph.flops / peak_flops_per_s(target, dtype),
        memory_seconds=moved / target.tiers["hbm"].bandwidth_bytes_per_s,
        launch_seconds=target.compute.launch_seconds,
    )


def operation_seconds(flops: float, moved_bytes: float, dtype: str, target: Target) -> float:
    """Returns the time of one operation on one device: its FLOPs at the peak or its bytes at the bandwidth.

    Args:
        flops: Of this device's part.
        moved_bytes: That this device reads from its memory or writes there.
        dtype: That products are computed in, which decides the peak.
        target: The machine.
    """
    return max(flops / peak_flops_per_s(target, dtype), moved_bytes / target.tiers["hbm"].bandwidth_bytes_per_s)


def peak_flops_per_s(target: Target, dtype: str) -> float:
    """Returns the peak of one device in a type; of one that the target does not name the lowest."""
    peaks = target.compute.flops_per_s
    return peaks.get(_SHORT_NAMES.get(dtype, dtype), min(peaks.values()))
