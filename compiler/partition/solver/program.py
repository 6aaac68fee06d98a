"""The core as a linear program and as a mixed-integer one, solved by HiGHS.

Besides a variable for each label there is one for each pair of labels of an edge, whose sums over either side are the
labels (the local polytope: the strongest of the usual formulations, and often tight). Memory rows come in when a
solution breaks them; most of thousands never do.
"""

from __future__ import annotations

import atexit
import threading
import time
from dataclasses import dataclass
from typing import Literal

import highspy
import numpy as np
from scipy import sparse

from .core import Core, ranges
from .dual import Dual

__all__ = ["Outcome", "Program"]

_ROWS_AT_ONCE = 40
_TOLERANCE = 1e-9  # of HiGHS, for rows
_ROOM_SCALE = 1e3  # of the room of a row, as HiGHS sees it: so it is kept to one part in 10^12
_COST_SCALE = 1e6  # of the largest cost, as HiGHS sees it: its tolerances are absolute
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 0.5  # by which HiGHS may miss its limit before it is told to stop, and then before it is left alone
_END_SECONDS = 60.0  # that the end of the process waits for it


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run of HiGHS found."""

    status: Literal["optimal", "infeasible", "stopped"]
    places: np.ndarray | None  # [nodes], the label of each node by place; None if there is none in all rows
    bound: float  # that no solution goes below; -inf if unknown


class _Quiet(highspy.Highs):
    """HiGHS, which otherwise says its name on standard output when it is made."""

    def enableCallbacks(self) -> None:  # noqa: N802
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()


class Program:
    """The program of a core, which grows by rows."""

    def __init__(self, core: Core, num_threads: int = 0) -> None:
        self._core = core
        self._rows: list[int] = []
        self._row_scales: list[float] = []
        self._highs = _Quiet()
        self._highs.HandleUserInterrupt = True
        self._is_lost = False  # whether a run went on beyond its limit
        self._highs.setOptionValue("threads", num_threads)
        self._highs.setOptionValue("primal_feasibility_tolerance", _TOLERANCE)
        self._highs.setOptionValue("mip_feasibility_tolerance", _TOLERANCE)
        costs = _column_costs(core)
        self._scale = _COST_SCALE / max(float(np.abs(costs).max(initial=0.0)), 1e-300)
        self._highs.passModel(_model(core, costs * self._scale))

    def relax(self, deadline: float) -> tuple[Outcome, Dual | None]:
        """Solves the linear program with all rows; the dual is there if the program was solved.

        Args:
            deadline: Monotonic time.
        """
        core, dual = self._core, None
        while True:
            status = self._run(deadline)
            if status != "optimal":
                return Outcome(status, None, -np.inf), dual
            dual = self._dual()
            labels = self._labels()
            if not self._add_rows(self._fractional_usage(labels), 1e-8):
                places = _largest(core, labels)
                is_integral = labels[core.first[:-1] + places].min(initial=1.0) > 1 - 1e-6
                return Outcome("optimal", places if is_integral else None, self._objective()), dual

    def decide(self, deadline: float, tolerance: float) -> Outcome:
        """Solves the mixed-integer program.

        Args:
            deadline: Monotonic time.
            tolerance: Cost that a better solution would have to save at least.
        """
        core, highs = self._core, self._highs
        highs.changeColsIntegrality(len(core.costs), *_integrality(core))
        highs.setOptionValue("mip_rel_gap", 0.0)
        highs.setOptionValue("mip_abs_gap", tolerance * self._scale)
        bound = -np.inf
        while True:
            status = self._run(deadline)
            if status == "infeasible":
                return Outcome(status, None, np.inf)
            if self._is_lost:
                return Outcome("stopped", None, bound)
            info = highs.getInfo()
            bound = max(bound, info.mip_dual_bound / self._scale + core.constant)
            if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
                return Outcome("stopped", None, bound)
            places = _largest(core, self._labels())
            if not self._add_rows(core.usage(places), 0.0):
                return Outcome(status, places if core.fits(places) else None, bound)
            if status == "stopped":
                return Outcome(status, None, bound)

    def _run(self, deadline: float) -> Literal["optimal", "infeasible", "stopped"]:
        left = deadline - time.monotonic()
        if left <= 0 or self._is_lost:
            return "stopped"
        self._highs.setOptionValue("time_limit", self._highs.getRunTime() + left)
        # In a thread of its own, so that Ctrl-C is heard here and that nothing waits for a run that misses its limit.
        thread = threading.Thread(target=self._highs.run, daemon=True)
        thread.start()
        try:
            while thread.is_alive() and time.monotonic() < deadline + _GRACE_SECONDS:
                thread.join(_POLL_SECONDS)
        finally:
            if thread.is_alive():
                self._highs.cancelSolve()
                # A process that ends while HiGHS runs aborts.
                atexit.register(thread.join, _END_SECONDS)
        thread.join(_GRACE_SECONDS)
        if thread.is_alive():
            self._is_lost = True
            return "stopped"
        status = self._highs.getModelStatus()
        if status == highspy.HighsModelStatus.kOptimal:
            return "optimal"
        return "infeasible" if status == highspy.HighsModelStatus.kInfeasible else "stopped"

    def _labels(self) -> np.ndarray:
        return np.array(self._highs.getSolution().col_value)[: len(self._core.costs)]

    def _objective(self) -> float:
        return self._highs.getInfo().objective_function_value / self._scale + self._core.constant

    def _fractional_usage(self, labels: np.ndarray) -> np.ndarray:
        core = self._core
        if not len(core.load_node):
            return np.zeros(len(core.room))
        return core.level(np.add.reduceat(core.sizes * labels[core.load_label], core.load_first[:-1]))

    def _add_rows(self, usage: np.ndarray, tolerance: float) -> bool:
        """Adds the worst of the rows that a usage breaks, one of each stretch, and says whether it breaks any."""
        excess = usage - self._core.room
        broken = np.flatnonzero(excess > self._core.slack + tolerance * usage)
        broken = np.setdiff1d(broken, self._rows)
        if not len(broken):
            return False
        stretches = np.split(broken, np.flatnonzero(np.diff(broken) > 1) + 1)
        worst = sorted((int(rows[excess[rows].argmax()]) for rows in stretches), key=lambda row: -excess[row])
        for row in worst[:_ROWS_AT_ONCE]:
            self._add_row(row)
        return True

    def _add_row(self, row: int) -> None:
        core = self._core
        sizes: dict[int, float] = {}
        for load in np.flatnonzero((core.load_begin <= row) & (row < core.load_end)).tolist():
            begin = int(core.first[core.load_node[load]])
            for place, size in enumerate(core.sizes[core.load_first[load] : core.load_first[load + 1]].tolist()):
                sizes[begin + place] = sizes.get(begin + place, 0.0) + size
        values = np.array(list(sizes.values()))
        room, kept = float(core.room[row]), values > 0
        scale = max(room, float(values.max()) * 1e-6) / _ROOM_SCALE
        columns = np.array(list(sizes), np.int32)[kept]
        self._highs.addRow(-highspy.kHighsInf, room / scale, len(columns), columns, values[kept] / scale)
        self._rows.append(row)
        self._row_scales.append(scale)

    def _dual(self) -> Dual:
        core = self._core
        values = np.array(self._highs.getSolution().row_dual) / self._scale
        num_edge_rows = int((core.num_labels[core.source] + core.num_labels[core.target]).sum())
        begin = len(core.nodes)
        prices = np.zeros(len(core.room))
        for row, scale, value in zip(self._rows, self._row_scales, values[begin + num_edge_rows :], strict=True):
            prices[row] = max(-float(value), 0.0) / scale
        return Dual(prices, values[begin : begin + num_edge_rows])


def _largest(core: Core, labels: np.ndarray) -> np.ndarray:
    pieces = np.split(labels, core.first[1:-1])
    return np.array([int(piece.argmax()) for piece in pieces], np.int64)


def _integrality(core: Core) -> tuple[np.ndarray, np.ndarray]:
    columns = np.arange(len(core.costs), dtype=np.int32)
    return columns, np.full(len(columns), int(highspy.HighsVarType.kInteger), np.uint8)


def _column_costs(core: Core) -> np.ndarray:
    return np.concatenate((core.costs, core.entries[np.isfinite(core.entries)]))


def _model(core: Core, costs: np.ndarray) -> highspy.HighsLp:
    """Rows: one for each node, then for each edge those of its source's labels and of its target's."""
    matrix = _matrix(core)
    model = highspy.HighsLp()
    num_rows = len(core.nodes) + int((core.num_labels[core.source] + core.num_labels[core.target]).sum())
    model.num_row_, model.num_col_ = num_rows, len(costs)
    model.col_cost_, model.col_lower_, model.col_upper_ = costs, np.zeros(len(costs)), np.ones(len(costs))
    one = np.zeros(num_rows)
    one[: len(core.nodes)] = 1.0
    model.row_lower_, model.row_upper_ = one, one
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_ = np.asarray(matrix.indptr, np.int32)
    model.a_matrix_.index_ = np.asarray(matrix.indices, np.int32)
    model.a_matrix_.value_ = np.asarray(matrix.data, np.float64)
    return model


def _matrix(core: Core) -> sparse.csc_matrix:
    counts = core.num_labels
    source_counts, target_counts = counts[core.source], counts[core.target]
    edge = np.repeat(np.arange(len(core.source)), np.diff(core.entry))
    source_place, target_place = np.divmod(np.arange(len(core.entries)) - core.entry[edge], target_counts[edge])
    begin = len(core.nodes) + np.concatenate(([0], np.cumsum(source_counts + target_counts)))
    is_finite = np.isfinite(core.entries)
    pair = len(core.costs) + np.arange(int(is_finite.sum()))
    source_row = (begin[edge] + source_place)[is_finite]
    target_row = (begin[edge] + source_counts[edge] + target_place)[is_finite]
    label = [ranges(core.first[core.source], source_counts), ranges(core.first[core.target], target_counts)]
    label_row = [ranges(begin[:-1], source_counts), ranges(begin[:-1] + source_counts, target_counts)]
    rows = np.concatenate([np.repeat(np.arange(len(core.nodes)), counts), source_row, target_row, *label_row])
    columns = np.concatenate([np.arange(len(core.costs)), pair, pair, *label])
    values = np.ones(len(rows))
    values[len(core.costs) + 2 * len(pair) :] = -1.0
    shape = (int(begin[-1]), len(core.costs) + len(pair))
    return sparse.csc_matrix((values, (rows, columns)), shape=shape)
