"""Pipeline stages: where to cut a graph so that consecutive devices each run a stretch of it.

A cut is between two repetitions of a run, or at a run's ends: there the fewest values cross. The stretches are chosen
by dynamic programming over the cuts, exactly: the slowest stage is as fast as it can be while no stage holds more than
its budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..graph import Graph
from .merge import Run
from .plan import Sharding

__all__ = ["balanced_cuts", "cut_points", "handed_over", "handed_over_bytes"]


def cut_points(runs: Sequence[Run], num_operations: int) -> tuple[int, ...]:
    """Returns the operations before which a graph may be cut, its begin and end among them."""
    inside = {run.begin + i * run.period for run in runs for i in range(run.repetitions + 1)}
    return tuple(sorted({0, num_operations, *inside}))


def handed_over(graph: Graph, sharding: Sharding, cut: int) -> dict[int, int]:
    """Returns what crosses a cut: of each value, by value id, the bytes that one device sends to the next stage."""
    made = {value for operation in graph.operations[:cut] for value in operation.outputs}
    read = {value for operation in graph.operations[cut:] for value in operation.inputs}
    kept = sharding.layouts(graph)
    crossing = sorted(made & read)
    return {value: graph.values[value].bytes // sharding.mesh.num_shards(kept[value].axes) for value in crossing}


def handed_over_bytes(graph: Graph, sharding: Sharding, cuts: Sequence[int]) -> list[int]:
    """Returns for each of some cuts the bytes that one device sends to the next stage: the sum of `handed_over`."""
    last = {value: operation.id for operation in graph.operations for value in operation.inputs}
    kept = sharding.layouts(graph)
    changes = np.zeros(len(graph.operations) + 2)
    for operation in graph.operations:
        for value in operation.outputs:
            if value in last:
                size = graph.values[value].bytes // sharding.mesh.num_shards(kept[value].axes)
                changes[operation.id + 1] += size
                changes[last[value] + 1] -= size
    return np.cumsum(changes)[list(cuts)].astype(int).tolist()


def balanced_cuts(
    seconds: Sequence[float],
    held_bytes: Sequence[float],
    num_stages: int,
    *,
    budget_bytes: float,
    handover_seconds: Sequence[float],
) -> tuple[int, ...] | None:
    """Returns the cuts between units that make the slowest stage fastest.

    Args:
        seconds: Of each unit, the stretch between two cut points.
        held_bytes: That a device holds for each unit.
        num_stages: How many stages to make; each has a unit at least.
        budget_bytes: Most that a stage may hold.
        handover_seconds: Of the values that cross the begin of each unit; of the first 0. A stage pays for what it
            is handed.

    Returns:
        num_stages + 1 positions among the units, from 0 to their number, or None if no stages hold so little.
    """
    num_units = len(seconds)
    if num_stages > num_units:
        return None
    time = np.concatenate([[0.0], np.cumsum(seconds)])
    held = np.concatenate([[0.0], np.cumsum(held_bytes)])
    best = np.full((num_stages + 1, num_units + 1), np.inf)
    cut = np.zeros((num_stages + 1, num_units + 1), np.int64)
    best[0, 0] = 0.0
    for stage in range(1, num_stages + 1):
        for end in range(stage, num_units + 1):
            begins = np.arange(stage - 1, end)
            own = time[end] - time[begins] + np.asarray(handover_seconds)[begins]
            own[held[end] - held[begins] > budget_bytes] = np.inf
            slowest = np.maximum(best[stage - 1, begins], own)
            first = int(np.argmin(slowest))
            best[stage, end], cut[stage, end] = slowest[first], begins[first]
    if not np.isfinite(best[num_stages, num_units]):
        return None
    cuts = [num_units]
    for stage in range(num_stages, 0, -1):
        cuts.append(int(cut[stage, cuts[-1]]))
    assert all(begin < end for end, begin in pairwise(cuts))
    return tuple(reversed(cuts))
