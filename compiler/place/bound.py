"""A wire length that no placement of a section goes below.

All memory units of a stage have their share of a flow. Around a unit, 8 others are 2 links away, 16 are 4 away, 8 n are
2 n away: a unit with several lanes has not all their ends beside it. And beside the ports are as many units as there
are rows: the stages that move most bytes a unit to and from HBM get the nearest. The former is of flows between
stages, the latter of flows with HBM, so that the sum is a bound as well.
"""

from __future__ import annotations

import numpy as np

from .demand import Demand
from .grid import Grid

__all__ = ["wire_bound"]


def wire_bound(demand: Demand, grid: Grid) -> float:
    """Returns the bytes times links that a launch needs at least."""
    return _inner_bound(demand) + _hbm_bound(demand, grid)


def _inner_bound(demand: Demand) -> float:
    pmus = np.stack([demand.pmus[demand.sources], demand.pmus[demand.targets]])
    smaller = pmus.min(axis=0)
    bytes_links = 0.0
    for lanes, hubs, size in zip(demand.inner_lanes.tolist(), smaller.tolist(), demand.inner_bytes, strict=True):
        bytes_links += float(size) / lanes * _nearest(lanes, hubs)
    return bytes_links


def _nearest(num_lanes: int, num_hubs: int) -> int:
    """Returns the links of lanes to different units from hubs that share them."""
    links, left, step = 0, num_lanes, 2
    while left > 0:
        near = min(left, 4 * step * num_hubs)
        links, left, step = links + near * step, left - near, step + 2
    return links


def _hbm_bound(demand: Demand, grid: Grid) -> float:
    distances = np.sort(grid.port_distance(grid.curves[0][:, 1]))
    order = np.argsort(-demand.hbm_bytes / demand.pmus, kind="stable")
    lane_bytes = np.repeat((demand.hbm_bytes / demand.pmus)[order], demand.pmus[order])
    return float(lane_bytes @ distances[: len(lane_bytes)])
