"""Where the time of a sharded step goes: of each operation its work, and the reshards of what it makes and reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..mesh import Layout
from ..target import Target
from .formulate import copy_seconds, division_seconds
from .plan import Sharding
from .reshard import seconds as reshard_seconds
from .skeleton import Skeleton

__all__ = ["OperationTime", "timeline"]


@dataclass(frozen=True)
class OperationTime:
    """Seconds of one operation on each device."""

    work: float  # roofline of its part, and what it communicates inside
    reshards: float  # of what it makes, for all that read it; of its operands, for itself; of outputs it makes

    @property
    def seconds(self) -> float:
        """Work, then communication: nothing overlaps but what the target says."""
        return self.work + self.reshards


def timeline(skeleton: Skeleton, sharding: Sharding, target: Target, dtype: str) -> Sequence[OperationTime]:
    """Returns the time of each operation of a graph, in order.

    Args:
        skeleton: The graph's groups.
        sharding: How it is divided.
        target: What a device computes, reads and sends in a second.
        dtype: That products are computed in.
    """
    traced, mesh = skeleton.traced, sharding.mesh
    kept = sharding.layouts(traced.graph)
    ends = dict(zip(traced.graph.outputs, sharding.outputs, strict=True))
    inputs = set(traced.graph.inputs)
    works = [
        division_seconds(group, sharding.operations[group.members[0]], mesh, target, dtype) for group in skeleton.groups
    ]

    known: dict[tuple[object, ...], float] = {}  # layers repeat

    def reshard(value: int, source: Layout, wanted: Layout) -> float:
        if source is wanted or source == wanted:
            return 0.0
        about = traced.graph.values[value]
        copied = copy_seconds(about, wanted, mesh, target) if value in inputs else 0.0
        key = (about.shape, about.dtype, source, wanted)
        if key not in known:
            known[key] = reshard_seconds(about.shape, about.dtype, source, wanted, mesh, target.network)
        return copied + known[key]

    times: list[OperationTime] = []
    for operation, flat in enumerate(traced.equations):
        division = sharding.operations[operation]
        total = 0.0
        for value, layout in zip(flat.results, division.results, strict=True):
            total += reshard(value, layout, kept[value])
            if value in ends:
                total += reshard(value, kept[value], ends[value])
        for operand, layout in zip(flat.operands, division.operands, strict=True):
            if isinstance(operand, int):
                total += reshard(operand, kept[operand], layout)
        times.append(OperationTime(works[skeleton.merged.group_of_operation[operation]], total))
    return times
