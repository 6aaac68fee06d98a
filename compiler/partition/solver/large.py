"""Large cores: dual ascent for the bound, with search from what it rounds to; then search alone until time is up."""

from __future__ import annotations

import itertools
import time

import numpy as np

from .ascent import Ascent
from .best import Best, Progress
from .core import Core
from .dual import Dual
from .graph import pairs_of
from .search import Search

__all__ = ["solve_large"]

_ASCENT_SHARE = 0.35  # of the time
_PASSES_AT_ONCE = 40
_ROUNDING_PAUSE = 4.0  # times the time that one took
_SETTLING_PASSES = 20
_MAX_WHOLE = 400_000  # entries that are decided as a whole, before they are reduced
_CLOSED = 0.7  # share of the gap that must be left before the whole is tried again
_WHOLE_RESERVE = 0.3  # of the time, for neighbourhoods after that
_FIRST_ENTRIES = 12_000  # of a neighbourhood
_QUICK_SECONDS, _SLOW_SECONDS = 2.0, 8.0  # of a decision
_GROWTH, _SHRINKAGE = 1.25, 0.7  # of neighbourhoods after quick and slow ones
_SPREAD = 1e-3  # of the weight of drawing a node that all have
_WIDE_LABELS = (
    24  # of a node on average: from there on whole neighbourhoods have few nodes, so that labels are left out
)
_MOST_LABELS = (4, 8, 16, 1 << 30)  # of a node then, the most promising ones: in turn


def solve_large(core: Core, best: Best, deadline: float, progress: Progress) -> Dual:
    """Improves the best assignment and bound until time is up or they meet; returns the dual values.

    Args:
        core: The core.
        best: Is given what is found.
        deadline: Monotonic time.
        progress: Is told about it.
    """
    pairs = pairs_of(core)
    ascent, search = Ascent(core, pairs), Search(core, pairs)
    climb_until = time.monotonic() + _ASCENT_SHARE * (deadline - time.monotonic())
    next_rounding = 0.0
    while time.monotonic() < climb_until and not best.is_optimal and not ascent.is_done:
        ascent.climb(best.cost, _PASSES_AT_ONCE)
        if (begin := time.monotonic()) >= next_rounding:
            _round(ascent, search, best)
            next_rounding = time.monotonic() + _ROUNDING_PAUSE * (time.monotonic() - begin)
        progress("bounding", best.cost, best.bound)
    ascent.restore(_SETTLING_PASSES)
    _round(ascent, search, best)
    if best.places is not None and not best.is_optimal:
        _explore(core, ascent, search, best, deadline, progress)
    return ascent.dual()


def _round(ascent: Ascent, search: Search, best: Best) -> None:
    best.prove(ascent.bound)
    places = search.polish(ascent.round(), ascent.prices)
    if places is not None:
        best.offer(places)


def _explore(core: Core, ascent: Ascent, search: Search, best: Best, deadline: float, progress: Progress) -> None:
    excess = ascent.reduced_costs()
    everything, ranks = np.arange(len(core.nodes)), _ranks(core, excess)
    is_wide = len(core.costs) > _WIDE_LABELS * len(core.nodes)
    sizes = dict.fromkeys(_MOST_LABELS if is_wide else _MOST_LABELS[-1:], float(_FIRST_ENTRIES))
    turns, whole_gap = itertools.cycle(sizes), np.inf
    while time.monotonic() < deadline and not best.is_optimal and best.places is not None:
        # What costs more than the gap above the bound is in no better assignment.
        gap = best.cost - best.bound
        allowed = excess <= gap + 1e-9 * abs(best.cost)
        is_whole = gap < _CLOSED * whole_gap and _num_entries(core, allowed) <= _MAX_WHOLE
        most = next(turns)
        chosen = allowed if is_whole else allowed & (ranks < most)
        if is_whole:
            nodes, limit, whole_gap = everything, deadline - _WHOLE_RESERVE * (deadline - time.monotonic()), gap
        else:
            nodes = search.neighbourhood(_weights(core, excess, best.places), int(sizes[most]), chosen)
            limit = min(time.monotonic() + _SLOW_SECONDS, deadline)
        begin = time.monotonic()
        places, is_done = search.decide(nodes, best.places, chosen, limit, best.tolerance)
        if places is not None:
            best.offer(places)
        if is_done and len(nodes) == len(everything) and chosen.sum() == allowed.sum():
            best.prove(best.cost)
        elif not is_whole:
            is_quick = time.monotonic() - begin < _QUICK_SECONDS
            sizes[most] *= _SHRINKAGE if not is_done else _GROWTH if is_quick else 1.0
        progress("improving", best.cost, best.bound)


def _ranks(core: Core, excess: np.ndarray) -> np.ndarray:
    """Returns of each label how many of its node are more promising."""
    node = np.repeat(np.arange(len(core.nodes)), core.num_labels)
    order = np.lexsort((excess, node))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - core.first[node[order]]
    return ranks


def _weights(core: Core, excess: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How readily a node is drawn: by how much more its label costs than the bound says it must."""
    weights = np.maximum(excess[core.first[:-1] + places], 0.0)
    return weights + _SPREAD * max(float(weights.max()), 1e-300)


def _num_entries(core: Core, allowed: np.ndarray) -> int:
    """Entries of the edges if only allowed labels are kept."""
    counts = np.add.reduceat(allowed.astype(np.int64), core.first[:-1])
    return int((counts[core.source] * counts[core.target]).sum())
