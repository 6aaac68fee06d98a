"""An assignment and a bound of a sharding problem, checked against the definition.

Both read the contest's JSON itself, as `json.load` gives it, and share nothing with the solver or with its reader.
`evaluate` adds up costs and usages. `bound_from_duals` replays the steps of a certificate, each of which it checks on
the numbers (a step that would lose more than it may lowers the bound by what it can lose), and then takes the minima
that prices and messages leave. Whatever the dual values are, the result is a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import VerificationError

__all__ = ["Evaluation", "bound_from_duals", "evaluate"]

_INFINITE = 1e18
_SHARE = 1e-9  # of the limit, that sums of usages which are no integers may miss it by
_MOST_STRATEGIES = 1 << 24  # entries of a table that a step may ask for


@dataclass(frozen=True)
class Evaluation:
    """What an assignment costs and uses."""

    cost: float  # infinite if something forbidden is chosen
    usage: dict[int, float]  # by time at which it changes, until the next
    peak: float
    is_allowed: bool  # the cost is finite and the usage within the limit at every time


def evaluate(document: Mapping, assignment: Sequence[int]) -> Evaluation:
    """Returns what one strategy for each node costs and uses.

    Args:
        document: A problem's JSON.
        assignment: A strategy of each node.

    Raises:
        VerificationError: if the assignment is not one strategy for each node.
    """
    problem = document.get("problem", document)
    nodes, edges = problem["nodes"], problem["edges"]
    if len(assignment) != len(nodes["costs"]):
        raise VerificationError(
            f"{len(assignment)} strategies are given for {len(nodes['costs'])} nodes; give one each"
        )
    for node, (strategy, costs) in enumerate(zip(assignment, nodes["costs"], strict=True)):
        if not 0 <= strategy < len(costs):
            raise VerificationError(
                f"node {node} has {len(costs)} strategies, numbered from 0; {strategy} is none of them"
            )
    terms = [costs[strategy] for costs, strategy in zip(nodes["costs"], assignment, strict=True)]
    for (source, target), costs in zip(edges["nodes"], edges["costs"], strict=True):
        terms.append(costs[assignment[source] * len(nodes["costs"][target]) + assignment[target]])
    cost = math.inf if any(term >= _INFINITE for term in terms) else float(sum(terms))
    changes: dict[int, float] = {}
    for (begin, end), usages, strategy in zip(nodes["intervals"], nodes["usages"], assignment, strict=True):
        if begin < end:
            changes[begin] = changes.get(begin, 0) + usages[strategy]
            changes[end] = changes.get(end, 0) - usages[strategy]
    usage: dict[int, float] = {}
    level = 0
    for time in sorted(changes):
        level += changes[time]
        usage[time] = level
    peak, limit = max(usage.values(), default=0), problem.get("usage_limit")
    fits = limit is None or peak <= limit + (0 if isinstance(peak, int) else _SHARE * abs(limit))
    return Evaluation(cost, usage, peak, math.isfinite(cost) and fits)


def bound_from_duals(document: Mapping, certificate: Mapping) -> float:
    """Returns the cost that no allowed assignment goes below, from a certificate's dual values.

    Args:
        document: A problem's JSON.
        certificate: What `plait solve sharding --certificate` writes: `prices`, `steps` and `messages`.

    Raises:
        VerificationError: if a price is negative, or a step or message is of nothing that is there.
    """
    problem = document.get("problem", document)
    try:
        bound = _replay(problem, certificate)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise VerificationError(f"the certificate does not fit the problem ({type(error).__name__}: {error})") from None
    return math.ceil(bound - 1e-4) if _is_integral(problem) and abs(bound) < 1e11 else bound


def _replay(problem: Mapping, certificate: Mapping) -> float:
    replay = _Replay(problem)
    bound = replay.pay({int(time): float(price) for time, price in certificate["prices"].items()})
    steps = {"prune": replay.prune, "limit": replay.limit, "fold": replay.fold, "split": replay.split}
    for kind, *ids in certificate["steps"]:
        if kind == "eliminate":
            bound += replay.eliminate(*ids)
        elif kind == "drop":
            replay.drop(*ids)
        elif kind in steps:
            steps[kind](*ids)
        else:
            known = ", ".join((*steps, "eliminate", "drop"))
            raise VerificationError(f"the certificate has a step {kind!r}, which is none of {known}")
    return bound + replay.rest(certificate["messages"]) - replay.lost


def _is_integral(problem: Mapping) -> bool:
    """Whether every cost is an integer, so that a bound may be rounded up."""
    rows = [*problem["nodes"]["costs"], *problem["edges"]["costs"]]
    return all(isinstance(cost, int) for row in rows for cost in row)


class _Replay:
    """The problem with prices, as the steps change it."""

    def __init__(self, problem: Mapping) -> None:
        self.problem = problem
        self.lost = 0.0  # that steps may have cost the bound
        self.has_dropped = False
        self.costs: dict[int, np.ndarray] = {}
        self.labels: dict[int, list[int]] = {}
        self.tables: dict[int, dict[tuple[int, ...], np.ndarray]] = {}  # by node: tables over it and others, ascending
        for node, costs in enumerate(problem["nodes"]["costs"]):
            row = np.array(costs, float)
            self.costs[node] = np.where(row >= _INFINITE, np.inf, row)
            self.labels[node], self.tables[node] = list(range(len(costs))), {}
        for (source, target), costs in zip(problem["edges"]["nodes"], problem["edges"]["costs"], strict=True):
            table = np.array(costs, float).reshape(len(self.labels[source]), len(self.labels[target]))
            table = np.where(table >= _INFINITE, np.inf, table)
            if source == target:
                self.costs[source] = self.costs[source] + table.diagonal()
            else:
                self.add(
                    (source, target) if source < target else (target, source), table if source < target else table.T
                )

    def add(self, nodes: tuple[int, ...], table: np.ndarray) -> None:
        for node in nodes:
            known = self.tables[node].get(nodes)
            self.tables[node][nodes] = table if known is None else known + table

    def take(self, nodes: tuple[int, ...]) -> np.ndarray:
        if nodes not in self.tables.get(nodes[0], {}):
            raise VerificationError(f"the certificate uses an edge of nodes {list(nodes)}, which there is not")
        table, *_ = [self.tables[node].pop(nodes) for node in nodes]
        return table

    def pay(self, prices: Mapping[int, float]) -> float:
        """Charges memory to its nodes and returns what the limit is worth, which is taken off."""
        if any(not price >= 0 for price in prices.values()):
            raise VerificationError("the certificate has a negative price; prices are 0 or more")
        times = np.array(sorted(prices))
        total = np.concatenate(([0.0], np.cumsum([prices[time] for time in times.tolist()])))
        nodes = self.problem["nodes"]
        for node, ((begin, end), usages) in enumerate(zip(nodes["intervals"], nodes["usages"], strict=True)):
            price = total[np.searchsorted(times, end)] - total[np.searchsorted(times, begin)] if begin < end else 0.0
            self.costs[node] = self.costs[node] + price * np.array(usages, float)
        return -self.problem["usage_limit"] * float(total[-1]) if prices else 0.0

    def keep(self, node: int, kept: np.ndarray) -> None:
        self.labels[node] = [label for label, stays in zip(self.labels[node], kept.tolist(), strict=True) if stays]
        self.costs[node] = self.costs[node][kept]
        for nodes, table in list(self.tables[node].items()):
            smaller = np.compress(kept, table, axis=nodes.index(node))
            for other in nodes:
                self.tables[other][nodes] = smaller

    def prune(self) -> None:
        """Takes away what no finite cost is left for, until nothing changes."""
        suspects = set(self.labels)
        while suspects:
            node = suspects.pop()
            possible = np.isfinite(self.costs[node])
            for nodes, table in self.tables[node].items():
                others = tuple(axis for axis, other in enumerate(nodes) if other != node)
                possible &= np.isfinite(table.min(axis=others))
            if not possible.all():
                suspects |= {other for nodes in self.tables[node] for other in nodes} - {node}
                self.keep(node, possible)

    def limit(self) -> None:
        """Forbids what exceeds the limit even if all other nodes use the least they can."""
        nodes, limit = self.problem["nodes"], self.problem["usage_limit"]
        # What was dropped for its price may use less than what is left.
        if self.has_dropped or len(self.labels) < len(nodes["costs"]):
            raise VerificationError("the certificate looks at the limit after it took something away; that comes first")
        usages = [np.array(nodes["usages"][node], float)[labels] for node, labels in self.labels.items()]
        times = sorted({time for interval in nodes["intervals"] for time in interval})
        spans = np.searchsorted(times, nodes["intervals"])
        level = np.zeros(len(times))
        for usage, (begin, end) in zip(usages, spans.tolist(), strict=True):
            level[begin:end] += usage.min()
        for node, (usage, (begin, end)) in enumerate(zip(usages, spans.tolist(), strict=True)):
            if begin < end:
                most = (
                    limit
                    - level[begin:end].max()
                    + usage.min()
                    + (0 if (level % 1 == 0).all() else _SHARE * abs(limit))
                )
                self.costs[node] = np.where(usage > most, np.inf, self.costs[node])

    def fold(self, node: int, leader: int) -> None:
        pair = (min(node, leader), max(node, leader))
        table = self.take(pair) if pair[0] == leader else self.take(pair).T
        if (np.isfinite(table).sum(axis=1) != 1).any():
            raise VerificationError(f"the certificate folds node {node} into {leader}, which does not decide it")
        choice = np.isfinite(table).argmax(axis=1)
        self.costs[leader] = self.costs[leader] + self.costs.pop(node)[choice] + table.min(axis=1)
        for nodes in list(self.tables[node]):
            if len(nodes) != 2:
                raise VerificationError(f"the certificate folds node {node}, which is in a table of {len(nodes)} nodes")
            other = nodes[0] if nodes[1] == node else nodes[1]
            costs = (self.take(nodes).T if nodes[1] == node else self.take(nodes))[choice]
            self.add((leader, other) if leader < other else (other, leader), costs if leader < other else costs.T)
        del self.tables[node], self.labels[node]

    def split(self, source: int, target: int) -> None:
        pair = (min(source, target), max(source, target))
        table = self.take(pair) if pair[0] == source else self.take(pair).T
        rows, columns = table[:, 0], table[0] - table[0, 0]
        # What the terms say too much is lost, once.
        self.lost += max(0.0, -float((table - rows[:, None] - columns).min()))
        self.costs[source] = self.costs[source] + rows
        self.costs[target] = self.costs[target] + columns

    def eliminate(self, node: int) -> float:
        """Replaces a node by what it costs at best, and returns that if it has no neighbours."""
        costs = self.costs.pop(node)
        if len(self.labels[node]) == 1:
            for nodes in list(self.tables[node]):
                axis, table = nodes.index(node), self.take(nodes)
                self._add_reduced(tuple(other for other in nodes if other != node), table.take(0, axis=axis))
            del self.tables[node], self.labels[node]
            return float(costs[0])
        scope = sorted({other for nodes in self.tables[node] for other in nodes} - {node})
        shape = [len(self.labels[other]) for other in scope]
        if math.prod(shape) * len(costs) > _MOST_STRATEGIES:
            raise VerificationError(
                f"the certificate eliminates node {node} among {len(scope)} others; the table is too large"
            )
        joint = np.broadcast_to(costs, [*shape, len(costs)])
        for nodes in list(self.tables[node]):
            table = np.moveaxis(self.take(nodes), nodes.index(node), -1)
            sizes = [len(self.labels[other]) if other in nodes else 1 for other in scope]
            joint = joint + table.reshape([*sizes, len(costs)])
        del self.tables[node], self.labels[node]
        best = joint.min(axis=-1)
        if not scope:
            return float(best)
        self._add_reduced(tuple(scope), best)
        return 0.0

    def _add_reduced(self, nodes: tuple[int, ...], table: np.ndarray) -> None:
        if len(nodes) == 1:
            self.costs[nodes[0]] = self.costs[nodes[0]] + table
        else:
            self.add(nodes, table)

    def drop(self, node: int, worse: int, better: int) -> None:
        labels, self.has_dropped = self.labels[node], True
        first, second = labels.index(worse), labels.index(better)
        if first == second:
            raise VerificationError(f"the certificate drops strategy {worse} of node {node} in favour of itself")
        saved = float(self.costs[node][first] - self.costs[node][second])
        for nodes, table in self.tables[node].items():
            rows = table.take([first, second], axis=nodes.index(node))
            rows = np.moveaxis(rows, nodes.index(node), 0)
            possible = np.isfinite(rows[0])
            saved += float((rows[0][possible] - rows[1][possible]).min(initial=np.inf))
        self.lost += max(0.0, -saved)
        self.keep(node, np.arange(len(labels)) != first)

    def rest(self, messages: Sequence) -> float:
        """Sum of the minima of what is left, with messages."""
        total = 0.0
        for source, target, to_source, to_target in messages:
            pair = (min(source, target), max(source, target))
            table = self.take(pair) if pair[0] == source else self.take(pair).T
            ends = np.array(to_source, float), np.array(to_target, float)
            if (len(ends[0]), len(ends[1])) != table.shape or not np.isfinite(np.concatenate(ends)).all():
                raise VerificationError(
                    f"the certificate's message of nodes {source} and {target} does not fit the edge"
                )
            total += float((table - ends[0][:, None] - ends[1]).min())
            self.costs[source], self.costs[target] = self.costs[source] + ends[0], self.costs[target] + ends[1]
        total += sum(
            float(table.min()) for node in self.tables for nodes, table in self.tables[node].items() if nodes[0] == node
        )
        return total + sum(float(costs.min()) for costs in self.costs.values())
