"""From a problem to the smaller one that is really to be decided.

In turn, until nothing changes: strategies without a finite pair go; a node whose strategy a neighbour decides is folded
into it; edges that are sums of two terms go; nodes without memory and with at most two neighbours are eliminated; and
strategies go than which another one is never worse, in cost and memory (Goldstein's criterion, summed over neighbours).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from ..problem import Problem
from .memory import Rows, ShortOfMemory, memory_rows
from .network import Network
from .solution import Step

__all__ = ["presolve", "reduce"]

_MAX_FOLD_GROWTH = 2.0  # entries of edges after a fold, to those before
_MAX_ELIMINATION_GROWTH = 2.0  # entries of the edge that an elimination makes, to those of the edges that it removes
_MAX_ELIMINATED = 1 << 16  # entries of the table of an elimination
_MAX_COMPARED = 1 << 22  # entries of a comparison of strategies


def presolve(problem: Problem, deadline: float) -> tuple[Network, Rows]:
    """Returns what is left of a problem and the rows of its memory limit.

    Args:
        problem: The problem.
        deadline: Monotonic time after which nothing more is tried.

    Raises:
        Conflict: if finite costs contradict each other.
        ShortOfMemory: if the least usages exceed the limit.
    """
    network = Network.of_problem(problem)
    network.prune(range(problem.num_nodes))
    rows = _load(network, problem)
    reduce(network, rows, deadline)
    if len(rows.room) and rows.room.min() < -rows.slack:
        row = int(rows.room.argmin())
        raise ShortOfMemory(int(rows.times[row]), float((problem.usage_limit or 0.0) - rows.room[row]))
    np.maximum(rows.room, 0.0, out=rows.room)
    return network, rows


def reduce(network: Network, rows: Rows, deadline: float) -> None:
    """Reduces a network and the room of its rows, in place; the room may become negative.

    Raises:
        Conflict: if finite costs contradict each other.
    """
    _Reduction(network, rows, deadline).run()
    for node in network.nodes():
        network.settle(node, rows.room)


class _Reduction:
    """Two queues of nodes: what is cheap comes first, and strategies are compared where nothing cheap is left to do."""

    def __init__(self, network: Network, rows: Rows, deadline: float) -> None:
        self.network, self.rows, self.deadline = network, rows, deadline
        self.cheap, self.dear = deque(network.nodes()), deque(network.nodes())
        self.is_cheap, self.is_dear = set(self.cheap), set(self.dear)  # what the queues hold

    def run(self) -> None:
        """Reduces until nothing changes or time is up."""
        while (self.cheap or self.dear) and time.monotonic() < self.deadline:
            if self.cheap:
                node, reduce = self.cheap.popleft(), self._shrink
                self.is_cheap.discard(node)
            else:
                node, reduce = self.dear.popleft(), self._thin
                self.is_dear.discard(node)
            if self.network.alive[node]:
                reduce(node)

    def _shrink(self, node: int) -> None:
        network = self.network
        if len(network.labels[node]) == 1:
            network.settle(node, self.rows.room)
        neighbours = list(network.edges[node])
        if _can_eliminate(network, node):
            network.eliminate(node)
            self._look_again(neighbours)
            if len(neighbours) == 2:
                self._support(neighbours[0], neighbours[1:])
        elif (leader := _leader(network, node)) is not None:
            if _weight(network, node) > _weight(network, leader) and _leader(network, leader) == node:
                node, leader = leader, node
                neighbours = list(network.edges[node])
            known = set(network.edges[leader])
            network.fold(node, leader)
            self._look_again(neighbours)
            self._support(leader, [other for other in neighbours if other in known])

    def _support(self, node: int, neighbours: Sequence[int]) -> None:
        """Removes strategies that new costs of edges leave without a finite pair."""
        network = self.network
        for other in neighbours:
            costs = network.edges[node].get(other)
            if costs is not None and not (costs.min(axis=0).max() < np.inf and costs.min(axis=1).max() < np.inf):
                for changed in network.prune([node, other]):
                    self._look_again([changed, *network.edges[changed]])

    def _thin(self, node: int) -> None:
        network = self.network
        neighbours = list(network.edges[node])
        lost = [other for other in neighbours if network.split(node, other)]
        if lost:
            self._look_again([node, *lost])
        if _drop_dominated(network, node):
            self._look_again([node, *neighbours])

    def _look_again(self, nodes: Sequence[int]) -> None:
        for node in nodes:
            if node not in self.is_cheap:
                self.is_cheap.add(node)
                self.cheap.append(node)
            if node not in self.is_dear:
                self.is_dear.add(node)
                self.dear.append(node)


def _load(network: Network, problem: Problem) -> Rows:
    """Finds the rows and gives the nodes their loads; strategies that no room is left for go."""
    usages = [problem.usages[node][labels] for node, labels in enumerate(network.labels)]
    least, most = np.array([use.min() for use in usages]), np.array([use.max() for use in usages])
    rows = memory_rows(least, most, problem)
    pruned: list[int] = []
    for node, use in enumerate(usages):
        begin, end = int(rows.begin[node]), int(rows.end[node])
        if begin == end or most[node] == least[node]:
            continue
        network.loads[node] = {(begin, end): use - least[node]}
        too_large = use - least[node] > rows.room[begin:end].min() + rows.slack
        if too_large.any():
            network.costs[node] = np.where(too_large, np.inf, network.costs[node])
            pruned.append(node)
    if pruned:
        network.steps.append(Step("limit"))
        network.prune(pruned)
    return rows


def _can_eliminate(network: Network, node: int) -> bool:
    if network.loads[node]:
        return False
    if len(network.labels[node]) == 1:
        return True
    if len(network.edges[node]) != 2:
        return len(network.edges[node]) < 2
    (first, to_first), (second, to_second) = network.edges[node].items()
    entries = to_first.shape[1] * to_second.shape[1]
    is_new = second not in network.edges[first]
    is_larger = is_new and entries > _MAX_ELIMINATION_GROWTH * (to_first.size + to_second.size)
    return not is_larger and entries * len(to_first) <= _MAX_ELIMINATED


def _leader(network: Network, node: int) -> int | None:
    """A neighbour whose strategy decides the node's, if folding does not make the edges much larger."""
    num_strategies = len(network.labels[node])
    best: int | None = None
    for other, costs in network.edges[node].items():
        num_leading = len(network.labels[other])
        if num_leading < num_strategies:
            continue
        if best is not None and num_leading >= len(network.labels[best]):
            continue
        if np.count_nonzero(costs != np.inf) == num_leading and (costs != np.inf).any(axis=0).all():
            best = other
    if best is None or (len(network.labels[best]) > _MAX_FOLD_GROWTH * num_strategies and len(network.edges[node]) > 2):
        return None
    return best


def _weight(network: Network, node: int) -> int:
    """What has to be rewritten when a node is folded."""
    return len(network.edges[node]) + len(network.loads[node])


def _drop_dominated(network: Network, node: int) -> bool:
    """Removes strategies that are never better than another one."""
    num = len(network.labels[node])
    widest = max((len(network.labels[other]) for other in network.edges[node]), default=1)
    if num * num * widest > _MAX_COMPARED or num * num * len(network.edges[node]) > _MAX_COMPARED:
        return False
    # never_worse[a, b]: how much more a costs than b at least
    more = network.costs[node][:, None] - network.costs[node]
    for sizes in network.loads[node].values():
        more[sizes[:, None] < sizes] = -np.inf
    np.fill_diagonal(more, -np.inf)
    with np.errstate(invalid="ignore"):
        for costs in network.edges[node].values():
            more += np.fmin.reduce(costs[:, None, :] - costs[None, :, :], axis=-1)
    return _drop(network, node, more)


def _drop(network: Network, node: int, more: np.ndarray) -> bool:
    labels = network.labels[node]
    gone: set[int] = set()
    for worse, better in np.argwhere(more >= 0).tolist():
        if worse not in gone and better not in gone:
            gone.add(worse)
            places = np.searchsorted(network.labels[node], [labels[worse], labels[better]])
            network.drop(node, int(places[0]), int(places[1]))
    return bool(gone)
