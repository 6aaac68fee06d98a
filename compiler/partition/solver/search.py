"""Search for a good assignment of a large core: descent, repair, and neighbourhoods decided by HiGHS.

Descent moves single nodes and the two of an edge to cheaper labels that fit. Where memory is exceeded, prices of the
rows rise until descent leaves them. Neighbourhoods are nodes around one that costs more than the bound says it must;
they are presolved like a whole problem and then decided, and grow as long as that is quick.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from .core import Core
from .graph import memory_of
from .kernels import Pairs, improve, improve_pairs
from .program import Program
from .restriction import restrict

__all__ = ["Search"]

_MAX_REPAIRS = 60
_PRICE_GROWTH = 1.5  # of full rows, from one repair to the next
_MAX_ROUNDS = 50  # of descent
_MARGIN = 1e-10  # of the cost: what a move must save


class Search:
    """Improves assignments of one core."""

    def __init__(self, core: Core, pairs: Pairs) -> None:
        self._core, self._pairs = core, pairs
        self._random = np.random.default_rng(0)
        near = np.split(pairs.near, pairs.near_first[1:-1])
        self.near = [edges.tolist() for edges in near]

    def polish(self, places: np.ndarray, prices: np.ndarray) -> np.ndarray | None:
        """Returns labels that fit, by repair and descent from the given ones, or None if repair does not succeed."""
        places = places.copy()
        if not self._repair(places, prices.copy()):
            return None
        self._descend(places, self._core.costs, self._core.room + self._core.slack, _MAX_ROUNDS)
        return places

    def _repair(self, places: np.ndarray, prices: np.ndarray) -> bool:
        core = self._core
        nowhere = np.full(len(core.room), np.inf)
        floor = 0.0
        for attempt in range(_MAX_REPAIRS):
            excess = core.usage(places) - core.room
            is_full = excess > core.slack
            if not is_full.any():
                return True
            if not floor:
                floor = self._price_floor(places)
            prices = np.where(is_full, np.maximum(prices * _PRICE_GROWTH, floor * _PRICE_GROWTH**attempt), prices)
            self._descend(places, core.priced(prices), nowhere, 2, has_pairs=False)
        return False

    def _price_floor(self, places: np.ndarray) -> float:
        """A low price of memory in one row: the cost now, over all memory that any label uses in any row."""
        core = self._core
        spans = np.repeat(core.load_end - core.load_begin, np.diff(core.load_first))
        total = float((core.sizes * spans).sum())
        return max(abs(core.cost(places)), 1e-300) / max(total, 1e-300)

    def _descend(
        self, places: np.ndarray, costs: np.ndarray, room: np.ndarray, num_rounds: int, *, has_pairs: bool = True
    ) -> None:
        core, memory = self._core, memory_of(self._core, places, room)
        margin = _MARGIN * abs(core.cost(places)) + 1e-300
        for _ in range(num_rounds):
            order = self._random.permutation(len(core.nodes))
            num_moves = improve(self._pairs, costs, memory, places, order, margin)
            order = self._random.permutation(len(core.source) if has_pairs else 0)
            num_moves += improve_pairs(self._pairs, costs, memory, places, order, margin)
            if not num_moves:
                return

    def neighbourhood(self, weights: np.ndarray, num_entries: int, allowed: np.ndarray) -> np.ndarray:
        """Returns nodes around one that is drawn by weight, as many as have about so many entries, ascending.

        Args:
            weights: [nodes].
            num_entries: Of the edges, between allowed labels.
            allowed: [labels].
        """
        core = self._core
        counts = np.maximum(np.add.reduceat(allowed.astype(np.int64), core.first[:-1]), 1)
        entries = (counts[core.source] * counts[core.target]).tolist()
        total = float(weights.sum())
        chances = weights / total if total > 0 else None
        found: dict[int, None] = {}
        queue: deque[int] = deque()
        size = 0
        while size < num_entries and len(found) < len(core.nodes):
            if not queue:
                queue.append(int(self._random.choice(len(core.nodes), p=chances)))
            node = queue.popleft()
            if node in found:
                size += 1  # so that drawing only known ones ends
                continue
            found[node] = None
            near = self.near[node]
            size += sum(entries[edge] for edge in near) // 2 + 1
            others = [int(core.source[edge] + core.target[edge]) - node for edge in near]
            self._random.shuffle(others)
            queue.extend(others[:20])
        return np.sort(np.array(list(found), np.int64))

    def decide(
        self, nodes: np.ndarray, places: np.ndarray, allowed: np.ndarray, deadline: float, tolerance: float
    ) -> tuple[np.ndarray | None, bool]:
        """Returns better labels for some nodes, if there are, and whether there certainly are no still better ones."""
        core = self._core
        part = restrict(core, self.near, nodes, places, allowed, deadline)
        if part is None:
            return None, True
        if not len(part.core.nodes):
            return part.expand(np.empty(0, np.int64)), True
        program = Program(part.core, num_threads=1)
        outcome, _ = program.relax(deadline)
        if outcome.status == "stopped" or outcome.bound > self._share(nodes, places) - tolerance:
            return None, outcome.status != "stopped"
        if outcome.places is None:
            outcome = program.decide(deadline, tolerance)
        better = None if outcome.places is None else part.expand(outcome.places)
        return better, outcome.status != "stopped"

    def _share(self, nodes: np.ndarray, places: np.ndarray) -> float:
        """What some nodes and their edges cost."""
        core = self._core
        touched = np.isin(core.source, nodes) | np.isin(core.target, nodes)
        width = core.num_labels[core.target]
        pairs = (core.entry[:-1] + places[core.source] * width + places[core.target])[touched]
        return float(core.costs[core.first[nodes] + places[nodes]].sum() + core.entries[pairs].sum())
