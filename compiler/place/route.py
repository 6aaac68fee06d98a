"""Which links each flow of a section takes.

A lane goes along its row, then along one column, then along another row: every choice of that column is as short as
any other way. Lanes are routed some at a time, the flows with most bytes first, each where links cost least; a link
costs more the busier it is. Then all are routed again, with the others where they are. A lane of HBM chooses
its port in the same way, near its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ..fuse.sections import Flow
from .grid import Grid, Ints
from .placement import Lane, Route, num_lanes

__all__ = ["Loads", "route"]

_ROUNDS = 2
_BATCHES = 4  # of a flow's lanes, at most: those of one batch do not see each other
_BATCH_LANES = 8  # of a batch, at least
_TURNS = 4  # stretches into which the columns that may be turned at divide the way
_PAIRED_AT_ONCE = 128  # lanes of which all pairings are compared
_PORT_ROWS = (-2, -1, 0, 1, 2)  # ports that are looked at, from a lane's row
_BUSY_WEIGHT = 4.0  # links that the busiest one counts as more than an idle one

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Loads:
    """Bytes of each link in one launch, in each direction; the outermost horizontal ones are the ports'."""

    horizontal: Floats  # [direction, row, link]: link i enters column i from the left
    vertical: Floats  # [direction, link, column]: link i leaves row i downwards

    @property
    def num_links(self) -> int:
        """Links, each direction on its own."""
        return self.horizontal.size + self.vertical.size

    @property
    def max_bytes(self) -> float:
        """Of the busiest link."""
        return max(float(self.horizontal.max(initial=0.0)), float(self.vertical.max(initial=0.0)))

    @property
    def total_bytes(self) -> float:
        """Of all links."""
        return float(self.horizontal.sum() + self.vertical.sum())


@dataclass(frozen=True)
class _Ways:
    """Lanes, or candidates for them: from (row, column) along the row to `turn`, along that column, along a row.

    All arrays have one shape.
    """

    row: Ints
    column: Ints
    turn: Ints
    end_row: Ints
    end_column: Ints

    def pick(self, index: Ints) -> _Ways:
        """Returns one of each lane's candidates."""
        lanes = np.arange(len(index))
        return _Ways(*(getattr(self, name)[lanes, index] for name in self.__dataclass_fields__))

    def lanes(self) -> Iterator[Lane]:
        """Yields each as its corners."""
        table = np.stack([self.row, self.column, self.turn, self.end_row, self.end_column], axis=1)
        for row, column, turn, end_row, end_column in table.tolist():
            corners = [(row, column)]
            if row == end_row:
                turn = end_column
            for corner in ((row, turn), (end_row, turn), (end_row, end_column)):
                if corner != corners[-1]:
                    corners.append(corner)
            yield tuple(corners)


class _Mesh:
    """Bytes on all links, kept as differences along each row and column."""

    def __init__(self, grid: Grid, busy_bytes: float) -> None:
        self.busy_bytes = busy_bytes
        self.horizontal = np.zeros((2, grid.rows, grid.columns + 2))
        self.vertical = np.zeros((2, grid.rows, grid.columns))

    def add(self, ways: _Ways, lane_bytes: float) -> None:
        """Adds lanes; negative bytes take them away."""
        for row, begin, end in ((ways.row, ways.column, ways.turn), (ways.end_row, ways.turn, ways.end_column)):
            back = (end < begin).astype(np.int64)
            np.add.at(self.horizontal, (back, row, np.minimum(begin, end) + 1), lane_bytes)
            np.add.at(self.horizontal, (back, row, np.maximum(begin, end) + 1), -lane_bytes)
        back = (ways.end_row < ways.row).astype(np.int64)
        np.add.at(self.vertical, (back, np.minimum(ways.row, ways.end_row), ways.turn), lane_bytes)
        np.add.at(self.vertical, (back, np.maximum(ways.row, ways.end_row), ways.turn), -lane_bytes)

    def loads(self) -> Loads:
        """Returns the bytes of each link."""
        horizontal = np.cumsum(self.horizontal, axis=2)[:, :, :-1]
        vertical = np.cumsum(self.vertical, axis=1)[:, :-1]
        return Loads(np.maximum(horizontal, 0.0), np.maximum(vertical, 0.0))

    def costs(self, ways: _Ways, lane_bytes: float) -> Floats:
        """Returns what candidates cost: links, busy ones weighted."""
        loads = self.loads()
        scale = max(loads.max_bytes + lane_bytes, self.busy_bytes)
        across = _sums(_weights((loads.horizontal + lane_bytes) / scale), 2)
        down = _sums(_weights((loads.vertical + lane_bytes) / scale), 1)
        total = np.zeros(ways.row.shape)
        for row, begin, end in ((ways.row, ways.column, ways.turn), (ways.end_row, ways.turn, ways.end_column)):
            back = (end < begin).astype(np.int64)
            total += np.abs(across[back, row, end + 1] - across[back, row, begin + 1])
        back = (ways.end_row < ways.row).astype(np.int64)
        return total + np.abs(down[back, ways.end_row, ways.turn] - down[back, ways.row, ways.turn])


def _weights(share: Floats) -> Floats:
    square = share * share
    return 1.0 + _BUSY_WEIGHT * square * square


def _sums(weights: Floats, axis: int) -> Floats:
    """Returns sums over the first links of each row or column, none of them included."""
    shape = list(weights.shape)
    shape[axis] += 1
    sums = np.zeros(shape)
    np.cumsum(weights, axis=axis, out=sums[:, :, 1:] if axis == 2 else sums[:, 1:])
    return sums


@dataclass
class _Batch:
    """Lanes of one flow that are routed at once: their candidates, and which was chosen."""

    flow: int
    lane_bytes: float
    candidates: _Ways
    chosen: _Ways | None = None


def route(
    flows: Sequence[Flow], sizes: Sequence[float], pmus: Sequence[Ints], grid: Grid, busy_bytes: float
) -> tuple[tuple[Route, ...], Loads]:
    """Returns the routes of all flows, and the bytes of each link.

    Args:
        flows: Of a section.
        sizes: Bytes of each in one launch.
        pmus: Memory units of its stages, each [unit, 2].
        grid: The chip's.
        busy_bytes: From what the busiest link carries on, load counts in full.
    """
    mesh = _Mesh(grid, busy_bytes)
    batches = [
        batch
        for number, (flow, size) in enumerate(zip(flows, sizes, strict=True))
        for batch in _batches(number, flow, size, pmus, grid)
    ]
    batches.sort(key=lambda batch: -batch.lane_bytes)
    for _ in range(_ROUNDS):
        for batch in batches:
            if batch.chosen is not None:
                mesh.add(batch.chosen, -batch.lane_bytes)
            best = np.argmin(mesh.costs(batch.candidates, batch.lane_bytes), axis=1)
            batch.chosen = batch.candidates.pick(best)
            mesh.add(batch.chosen, batch.lane_bytes)
    lanes: list[list[Lane]] = [[] for _ in flows]
    exact = _Mesh(grid, busy_bytes)  # without what rounding left while lanes came and went
    for batch in batches:
        assert batch.chosen is not None
        lanes[batch.flow] += batch.chosen.lanes()
        exact.add(batch.chosen, batch.lane_bytes)
    routes = (
        Route(flow.source, flow.target, size, tuple(sorted(ways)))
        for flow, size, ways in zip(flows, sizes, lanes, strict=True)
    )
    return tuple(routes), exact.loads()


def _batches(number: int, flow: Flow, size: float, pmus: Sequence[Ints], grid: Grid) -> Iterator[_Batch]:
    source = pmus[flow.source] if flow.source is not None else None
    target = pmus[flow.target] if flow.target is not None else None
    count = num_lanes(
        None if source is None else len(source),
        None if target is None else len(target),
    )
    if source is not None and target is not None:
        candidates = _between(*_paired(_spread(source, count), _spread(target, count)))
    elif source is not None:
        candidates = _to_ports(_spread(source, count), grid, is_read=False)
    elif target is not None:
        candidates = _to_ports(_spread(target, count), grid, is_read=True)
    else:
        return
    num_batches = min(_BATCHES, 1 + count // _BATCH_LANES)
    for batch in range(num_batches):
        part = _Ways(*(getattr(candidates, name)[batch::num_batches] for name in candidates.__dataclass_fields__))
        yield _Batch(number, size / count, part)


def _spread(units: Ints, count: int) -> Ints:
    """Returns as many units as there are lanes, spread evenly over a stage's."""
    return units[(2 * np.arange(count) + 1) * len(units) // (2 * count)]


def _paired(sources: Ints, targets: Ints) -> tuple[Ints, Ints]:
    """Returns both so ordered that the ways between them are short in sum: shortest if they are few."""
    both = [_paired_along(sources, targets, axis) for axis in ((0, 1) if len(sources) > _PAIRED_AT_ONCE else (0,))]
    return min(both, key=lambda pair: int(np.abs(pair[0] - pair[1]).sum()))


def _paired_along(sources: Ints, targets: Ints, axis: int) -> tuple[Ints, Ints]:
    """Pairs the first with the first along an axis, some at a time, and these optimally."""
    sources = sources[np.argsort(sources[:, axis], kind="stable")]
    targets = targets[np.argsort(targets[:, axis], kind="stable")]
    order = np.arange(len(sources))
    for begin in range(0, len(sources), _PAIRED_AT_ONCE):
        part = slice(begin, begin + _PAIRED_AT_ONCE)
        links = np.abs(sources[part, None] - targets[None, part]).sum(axis=2)
        order[part] = begin + linear_sum_assignment(links)[1]
    return sources, targets[order]


def _between(sources: Ints, targets: Ints) -> _Ways:
    steps = np.arange(_TURNS + 1)
    begin, end = sources[:, 1, None], targets[:, 1, None]
    turn = begin + (end - begin) * steps // _TURNS
    row, end_row = sources[:, 0, None], targets[:, 0, None]
    return _Ways(*np.broadcast_arrays(row, begin, turn, end_row, end))


def _to_ports(units: Ints, grid: Grid, *, is_read: bool) -> _Ways:
    """Candidates from or to ports of both sides and some rows, that turn beside the port, halfway or at the unit."""
    port_row = np.clip(units[:, 0, None, None, None] + np.array(_PORT_ROWS)[:, None, None], 0, grid.rows - 1)
    edge = np.array([0, grid.columns - 1])[None, None, :, None]
    port_column = np.array([-1, grid.columns])[None, None, :, None]
    row, column = units[:, 0, None, None, None], units[:, 1, None, None, None]
    turn = edge + (column - edge) * np.arange(3) // 2
    shape = np.broadcast_shapes(port_row.shape, turn.shape)
    flat = [np.broadcast_to(each, shape).reshape(len(units), -1) for each in (port_row, port_column, turn, row, column)]
    port_row, port_column, turn, row, column = flat
    if is_read:
        return _Ways(port_row, port_column, turn, row, column)
    return _Ways(row, column, turn, port_row, port_column)
