"""Which tiles each stage of a section has.

The memory units of a stage are a stretch of a curve that visits all of them in bands. Searched are the curve and the
order of the stages on it, by simulated annealing with a fixed number of steps; what is compared is an estimate of the
wire length: units of two stages paired by rank, in rows and in columns. Compute units then go to stages so that their
distances to the stage's nearest memory unit add up to the least.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .demand import Demand
from .grid import Grid, Ints

__all__ = ["Arrangement", "arrange"]

_SAMPLES = 16  # units of a stage that the estimate looks at
_STEPS = 900  # of annealing, in all
_NUM_CURVES = 3  # that are annealed, the best to begin with
_FIRST_TEMPERATURE = 0.02  # of the cost
_LAST_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class Arrangement:
    """Tiles of each stage, [unit, 2], and how far compute units are from their memory."""

    pcus: tuple[Ints, ...]
    pmus: tuple[Ints, ...]  # in the order of the curve
    reach: float  # links, mean over compute units


def arrange(demand: Demand, grid: Grid) -> Arrangement:
    """Returns tiles for all stages of a section."""
    estimate = _Estimate(demand, grid)
    order = list(range(estimate.num_blocks))
    begun = sorted(range(len(grid.curves)), key=lambda curve: estimate.cost(order, grid.curves[curve]))
    best = min(
        (_annealed(estimate, order, grid.curves[curve]) for curve in begun[:_NUM_CURVES]),
        key=lambda found: found[0],
    )
    begins, curve = estimate.begins(best[1]), best[2]
    pmus = tuple(
        curve[begin : begin + count] for begin, count in zip(begins.tolist(), demand.pmus.tolist(), strict=False)
    )
    pcus, reach = _compute_units(demand, grid, pmus)
    return Arrangement(pcus, pmus, reach)


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


def _compute_units(demand: Demand, grid: Grid, pmus: tuple[Ints, ...]) -> tuple[tuple[Ints, ...], float]:
    """Returns compute units of each stage, and the mean distance to its nearest memory unit."""
    units = np.concatenate(pmus).astype(np.int16)
    places = grid.pcus.astype(np.int16)
    links = np.abs(units[:, None, 0] - places[None, :, 0]) + np.abs(units[:, None, 1] - places[None, :, 1])
    nearest = np.minimum.reduceat(links, np.cumsum(demand.pmus) - demand.pmus, axis=0)
    owners = np.repeat(np.arange(len(pmus)), demand.pcus)
    _, chosen = linear_sum_assignment(nearest[owners])
    ends = np.cumsum(demand.pcus)
    pcus = tuple(grid.pcus[np.sort(chosen[end - count : end])] for end, count in zip(ends, demand.pcus, strict=True))
    return pcus, float(nearest[owners, chosen].mean())
