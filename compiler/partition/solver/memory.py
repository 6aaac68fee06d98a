"""The memory limit as rows: the live sets that can exceed it, each once.

Between two neighbouring times at which an interval begins or ends, the live set is the same; and a live set that is
part of another with no more room says nothing new. What is left are rows, in the order of time, and every node is live
in a contiguous range of them. The least usage of each node is taken off the room of its rows once and for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..problem import Problem

__all__ = ["Rows", "ShortOfMemory", "memory_rows", "usage_slack"]

_TOLERANCE = 1e-9  # of the limit: what a sum of floats may miss it by


@dataclass(frozen=True, eq=False)
class Rows:
    """The live sets that can exceed the limit."""

    times: np.ndarray  # [rows], a time at which the live set is the row's
    room: np.ndarray  # [rows], what the limit leaves over the least usages
    begin: np.ndarray  # [nodes], first row in which the node is live
    end: np.ndarray  # [nodes], row behind the last
    slack: float  # by which a sum may exceed the room


class ShortOfMemory(Exception):  # noqa: N818  # a finding, not a failure
    """The least usages exceed the limit."""

    def __init__(self, moment: int, demand: float) -> None:
        super().__init__(f"short of memory at time {moment}")
        self.moment = moment
        self.demand = demand  # least usage at that time


def usage_slack(problem: Problem) -> float:
    """Returns by how much a sum of usages may miss the limit: by nothing if they are integers."""
    is_exact = all((usages == np.floor(usages)).all() for usages in problem.usages)
    return 0.0 if is_exact or problem.usage_limit is None else _TOLERANCE * abs(problem.usage_limit)


def memory_rows(least: np.ndarray, most: np.ndarray, problem: Problem) -> Rows:
    """Returns the rows of a problem's memory limit.

    Args:
        least: [nodes], the least usage of each node among its strategies that are left.
        most: [nodes], the most.
        problem: The problem.

    Raises:
        ShortOfMemory: if the least usages exceed the limit.
    """
    spans, limit = np.array(problem.intervals, np.int64).reshape(-1, 2), problem.usage_limit
    if limit is None or not len(spans):
        return _rows(np.empty(0, np.int64), np.empty(0), spans, 0.0)
    times, slack = np.unique(spans), usage_slack(problem)
    begin, end = np.searchsorted(times, spans[:, 0]), np.searchsorted(times, spans[:, 1])
    room = limit - _level(begin, end, least, len(times))
    if room.min() < -slack:
        raise ShortOfMemory(int(times[int(room.argmin())]), float(limit - room.min()))
    excess, varies = _level(begin, end, most - least, len(times)), most > least
    kept = _maximal(begin[varies], end[varies], room, excess > room + slack)
    return _rows(times[kept], np.maximum(room[kept], 0.0), spans, slack)


def _rows(times: np.ndarray, room: np.ndarray, spans: np.ndarray, slack: float) -> Rows:
    begin = np.searchsorted(times, spans[:, 0])
    return Rows(times, room, begin, np.maximum(begin, np.searchsorted(times, spans[:, 1])), slack)


def _level(begin: np.ndarray, end: np.ndarray, sizes: np.ndarray, num_times: int) -> np.ndarray:
    """Sum of the sizes that are live from each time to the next."""
    steps = np.zeros(num_times + 1)
    np.add.at(steps, begin, sizes)
    np.add.at(steps, end, -sizes)
    # Differences leave crumbs where everything has ended; sums of integers are exact.
    return np.cumsum(steps)[:num_times]


def _maximal(begin: np.ndarray, end: np.ndarray, room: np.ndarray, can_exceed: np.ndarray) -> np.ndarray:
    """Times of live sets that are in no other one with no more room, by comparing neighbours until none is."""
    begins = np.concatenate(([0], np.cumsum(np.bincount(begin, minlength=len(room) + 1))))
    ends = np.concatenate(([0], np.cumsum(np.bincount(end, minlength=len(room) + 1))))
    kept: list[int] = []
    for time in np.flatnonzero(can_exceed).tolist():
        while kept:
            grows = ends[time + 1] == ends[kept[-1] + 1]  # nothing ended on the way: the former is part of this one
            shrinks = begins[time + 1] == begins[kept[-1] + 1]
            if grows and room[time] <= room[kept[-1]]:
                kept.pop()
                continue
            if not (shrinks and room[kept[-1]] <= room[time]):
                kept.append(time)
            break
        else:
            kept.append(time)
    return np.array(kept, np.int64)
