"""Which tiles each stage of a section has.

The memory units of a stage are a stretch of a curve that visits all of them in bands. Searched are the curve and the
order of the stages on it, by simulated annealing with a fixed number of steps; what is compared is an estimate of the
wire length: units of two stages paired by rank, in rows and in columns. Compute units then go to stages so that their
distances to the stage's nearest memory unit add up to the least. These distances do not influence where memory units
are: a stage that has nearly all compute units but few memory units reaches far.
"""

from __future__ import annotations

import math
import random

import numpy as np
from scipy.optimize import linear_sum_assignment

from .demand import Demand
from .grid import Grid, Ints

__all__ = ["compute_units", "memory_units"]

_SAMPLES = 16  # units of a stage that the estimate looks at
_STEPS = 900  # of annealing, in all
_NUM_CURVES = 3  # that are annealed, the best to begin with
_FIRST_TEMPERATURE = 0.02  # of the cost
_LAST_TEMPERATURE = 1e-4


def memory_units(demand: Demand, grid: Grid) -> list[tuple[Ints, ...]]:
    """Returns several choices of the memory units of all stages, each [unit, 2] along a curve, best first."""
    estimate = _Estimate(demand, grid)
    order = list(range(estimate.num_blocks))
    begun = sorted(grid.curves, key=lambda curve: estimate.cost(order, curve))[:_NUM_CURVES]
    found = sorted((_annealed(estimate, order, curve) for curve in begun), key=lambda each: each[0])
    return [estimate.units(order, curve) for _, order, curve in found]


def compute_units(demand: Demand, grid: Grid, pmus: tuple[Ints, ...]) -> tuple[tuple[Ints, ...], float]:
    """Returns compute units of each stage, and the mean links to the nearest memory unit of their stage."""
    units = np.concatenate(pmus).astype(np.int16)
    places = grid.pcus.astype(np.int16)
    links = np.abs(units[:, None, 0] - places[None, :, 0]) + np.abs(units[:, None, 1] - places[None, :, 1])
    nearest = np.minimum.reduceat(links, np.cumsum(demand.pmus) - demand.pmus, axis=0)
    owners = np.repeat(np.arange(len(pmus)), demand.pcus)
    _, chosen = linear_sum_assignment(nearest[owners])
    ends = np.cumsum(demand.pcus)
    pcus = tuple(grid.pcus[np.sort(chosen[end - count : end])] for end, count in zip(ends, demand.pcus, strict=True))
    return pcus, float(nearest[owners, chosen].mean())


class _Estimate:
    """The wire length of stages in some order on a curve; what is left free is one more block."""

    def __init__(self, demand: Demand, grid: Grid) -> None:
        self.demand, self.grid = demand, grid
        num_units = len(grid.curves[0])
        free = num_units - int(demand.pmus.sum())
        self.sizes = np.append(demand.pmus, free) if free else demand.pmus
        self.num_blocks = len(self.sizes)
        ranks = np.arange(_SAMPLES) * 2 + 1
        self.samples = ranks[None, :] * demand.pmus[:, None] // (2 * _SAMPLES)

    def begins(self, order: list[int]) -> Ints:
        """Returns where on the curve each block begins."""
        begins = np.empty(self.num_blocks, np.int64)
        sizes = self.sizes[order]
        begins[order] = np.cumsum(sizes) - sizes
        return begins

    def units(self, order: list[int], curve: Ints) -> tuple[Ints, ...]:
        """Returns the memory units of each stage."""
        begins = self.begins(order)[: len(self.demand.pmus)].tolist()
        return tuple(
            curve[begin : begin + count] for begin, count in zip(begins, self.demand.pmus.tolist(), strict=True)
        )

    def cost(self, order: list[int], curve: Ints) -> float:
        """Returns bytes times links, about."""
        demand = self.demand
        units = self.begins(order)[: len(demand.pmus), None] + self.samples
        rows, columns = np.sort(curve[units, 0]), np.sort(curve[units, 1])
        sources, targets = demand.sources, demand.targets
        links = np.abs(rows[sources] - rows[targets]) + np.abs(columns[sources] - columns[targets])
        inner = float(links.sum(axis=1) @ demand.inner_bytes)
        return (inner + float(self.grid.port_distance(columns).sum(axis=1) @ demand.hbm_bytes)) / _SAMPLES


def _annealed(estimate: _Estimate, order: list[int], curve: Ints) -> tuple[float, list[int], Ints]:
    """Returns the least cost found on a curve, its order and the curve."""
    chance = random.Random(0)
    cost = estimate.cost(order, curve)
    best, best_order = cost, order
    num_steps = _STEPS // _NUM_CURVES if len(order) > 1 else 0
    for step in range(num_steps):
        share = _FIRST_TEMPERATURE * (_LAST_TEMPERATURE / _FIRST_TEMPERATURE) ** (step / num_steps)
        moved = _moved(order, chance)
        moved_cost = estimate.cost(moved, curve)
        if moved_cost <= cost or chance.random() < math.exp((cost - moved_cost) / (share * best + 1e-30)):
            order, cost = moved, moved_cost
        if cost < best:
            best, best_order = cost, order
    return best, best_order, curve


def _moved(order: list[int], chance: random.Random) -> list[int]:
    """Returns an order with two blocks exchanged, or one elsewhere."""
    moved = list(order)
    first, second = chance.sample(range(len(order)), 2)
    if chance.random() < 0.5:
        moved[first], moved[second] = moved[second], moved[first]
    else:
        moved.insert(second, moved.pop(first))
    return moved
