"""A sharding problem on its way to a smaller one: nodes, the strategies they have left, merged edges, loads.

Every operation keeps the optimal cost. What it removed can be told again for any assignment of what is left (`decode`)
and is written down as a step of the certificate, which `verify/sharding.py` replays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np

from ..problem import INFINITE_COST, Problem
from .solution import Step

__all__ = ["Conflict", "Loads", "Network"]

Loads: TypeAlias = dict[tuple[int, int], np.ndarray]  # by range of rows: memory of each strategy left


class Conflict(Exception):  # noqa: N818  # a finding, not a failure
    """No assignment has a finite cost: a node has no strategy left."""

    def __init__(self, node: int, neighbours: tuple[int, ...]) -> None:
        super().__init__(f"node {node} has no strategy left")
        self.node = node
        self.neighbours = neighbours


@dataclass(frozen=True, eq=False)
class _Removed:
    node: int
    labels: np.ndarray  # its strategies by number
    table: np.ndarray  # [strategies of neighbours..., strategies]: what each costs; only finite ones are taken
    neighbours: tuple[int, ...]
    neighbour_labels: tuple[np.ndarray, ...]


class Network:
    """The working state.

    Attributes:
        labels: Strategies left of each node, by their number in the problem.
        costs: Of each node, [strategies left].
        edges: `edges[i][j]` are the costs of a pair, [strategies of i, strategies of j], `edges[j][i]` its transpose.
        loads: Of each node: memory that depends on its strategy, by range of rows.
        steps: What was done, in order.
        constant: Cost of what was removed, whatever is chosen.
    """

    def __init__(self, costs: Sequence[np.ndarray]) -> None:
        self.labels = [np.arange(row.size) for row in costs]
        self.costs = list(costs)
        self.edges: list[dict[int, np.ndarray]] = [{} for _ in costs]
        self.loads: list[Loads] = [{} for _ in costs]
        self.alive = [True] * len(costs)
        self.steps: list[Step] = []
        self.constant = 0.0
        self._removed: list[_Removed] = []

    @classmethod
    def of_problem(cls, problem: Problem) -> Self:
        """Returns a problem without its loads; parallel edges are one, edges of a node with itself are its own cost."""
        network = cls([np.where(costs >= INFINITE_COST, np.inf, costs) for costs in problem.costs])
        for edge in problem.edges:
            costs = np.where(edge.costs >= INFINITE_COST, np.inf, edge.costs)
            if edge.source == edge.target:
                network.costs[edge.source] = network.costs[edge.source] + costs.diagonal()
            else:
                network.add_edge(edge.source, edge.target, costs)
        return network

    def nodes(self) -> list[int]:
        """Returns the nodes that are left."""
        return [node for node, is_left in enumerate(self.alive) if is_left]

    def add_edge(self, source: int, target: int, costs: np.ndarray) -> None:
        """Adds costs of a pair to what the edge costs already."""
        if target in self.edges[source]:
            costs = self.edges[source][target] + costs
        self.edges[source][target] = costs
        self.edges[target][source] = costs.T

    def settle(self, node: int, room: np.ndarray) -> None:
        """Takes what a node uses whatever its strategy off the room of its rows."""
        for (begin, end), sizes in list(self.loads[node].items()):
            least = sizes.min()
            room[begin:end] -= least
            self.loads[node][begin, end] = sizes - least
            if sizes.max() == least:
                del self.loads[node][begin, end]

    def split(self, source: int, target: int) -> bool:
        """Removes an edge whose cost is a sum of one term for each node, and says whether it was one."""
        costs = self.edges[source][target]
        if not np.isfinite(costs).all():
            return False
        rows, columns = costs[:, 0], costs[0] - costs[0, 0]
        if not np.array_equal(costs, rows[:, None] + columns):
            return False
        self.costs[source] = self.costs[source] + rows
        self.costs[target] = self.costs[target] + columns
        self.drop_edge(source, target)
        self.steps.append(Step("split", source, target))
        return True

    def drop_edge(self, source: int, target: int) -> None:
        """Removes an edge."""
        del self.edges[source][target], self.edges[target][source]

    def keep(self, node: int, kept: np.ndarray) -> None:
        """Removes the strategies of a node that are not kept, without a word in the certificate."""
        self.labels[node] = self.labels[node][kept]
        self.costs[node] = self.costs[node][kept]
        self.loads[node] = {span: sizes[kept] for span, sizes in self.loads[node].items()}
        for neighbour, costs in list(self.edges[node].items()):
            self.edges[node][neighbour] = costs[kept]
            self.edges[neighbour][node] = self.edges[node][neighbour].T

    def prune(self, nodes: Iterable[int]) -> set[int]:
        """Removes what is in no pair of finite cost, beginning at some nodes, and returns the nodes that changed.

        Raises:
            Conflict: if a node has no strategy left.
        """
        queue = deque(node for node in nodes if self.alive[node])
        queued, changed = set(queue), set()
        while queue:
            node = queue.popleft()
            queued.discard(node)
            possible = np.isfinite(self.costs[node])
            for costs in self.edges[node].values():
                possible &= (costs != np.inf).any(axis=1)
            if possible.all():
                continue
            if not possible.any():
                raise Conflict(node, tuple(self.edges[node]))
            self.keep(node, possible)
            changed.add(node)
            for neighbour in self.edges[node]:
                if neighbour not in queued:
                    queued.add(neighbour)
                    queue.append(neighbour)
        if changed:
            self.steps.append(Step("prune"))
        return changed

    def fold(self, follower: int, leader: int) -> None:
        """Removes a node whose strategy the leader's decides."""
        table = self.edges[leader][follower]
        choice = np.isfinite(table).argmax(axis=1)
        self._remember(follower, (leader,), table)
        self.costs[leader] = self.costs[leader] + self.costs[follower][choice] + table[np.arange(len(choice)), choice]
        for span, sizes in self.loads[follower].items():
            self.loads[leader][span] = self.loads[leader].get(span, 0.0) + sizes[choice]
        self.drop_edge(leader, follower)
        for neighbour, costs in list(self.edges[follower].items()):
            self.add_edge(leader, neighbour, costs[choice])
        self._take_away(follower, Step("fold", follower, leader))

    def eliminate(self, node: int) -> None:
        """Removes a node without loads, so that its neighbours cost what it would cost at best.

        It has one strategy, or at most two neighbours.
        """
        if len(self.labels[node]) == 1:
            self._settle_only(node)
            return
        neighbours = tuple(self.edges[node])
        table = self.joint(node, neighbours)
        self._remember(node, neighbours, table)
        best = table.min(axis=-1)
        self._take_away(node, Step("eliminate", node))
        if len(neighbours) == 1:
            self.costs[neighbours[0]] = self.costs[neighbours[0]] + best
        elif neighbours:
            self.add_edge(neighbours[0], neighbours[1], best)
        else:
            self.constant += float(best)

    def drop(self, node: int, strategy: int, better: int) -> None:
        """Removes a strategy than which another one is never worse; both as places in `labels[node]`."""
        labels = self.labels[node]
        self.steps.append(Step("drop", node, first=int(labels[strategy]), second=int(labels[better])))
        self.keep(node, np.arange(len(labels)) != strategy)

    def joint(self, node: int, neighbours: Sequence[int]) -> np.ndarray:
        """Returns what a node costs with its neighbours, [strategies of neighbours..., strategies of node]."""
        table = self.costs[node]
        for place, neighbour in enumerate(neighbours):
            costs = self.edges[neighbour][node]
            table = table + costs.reshape(len(costs), *[1] * (len(neighbours) - place - 1), -1)
        return table

    def decode(self, assignment: dict[int, int]) -> list[int]:
        """Returns a strategy of each node of the problem, by number, from those of the nodes that are left."""
        result = dict(assignment)
        for removed in reversed(self._removed):
            pairs = zip(removed.neighbours, removed.neighbour_labels, strict=True)
            place = tuple(int(np.searchsorted(labels, result[node])) for node, labels in pairs)
            result[removed.node] = int(removed.labels[int(removed.table[place].argmin())])
        return [result[node] for node in range(len(self.alive))]

    def _settle_only(self, node: int) -> None:
        self._remember(node, (), self.costs[node])
        self.constant += float(self.costs[node][0])
        for neighbour, costs in self.edges[node].items():
            self.costs[neighbour] = self.costs[neighbour] + costs[0]
        self._take_away(node, Step("eliminate", node))

    def _remember(self, node: int, neighbours: tuple[int, ...], table: np.ndarray) -> None:
        labels = tuple(self.labels[neighbour] for neighbour in neighbours)
        self._removed.append(_Removed(node, self.labels[node], table, neighbours, labels))

    def _take_away(self, node: int, step: Step) -> None:
        for neighbour in list(self.edges[node]):
            self.drop_edge(node, neighbour)
        self.alive[node] = False
        self.steps.append(step)
