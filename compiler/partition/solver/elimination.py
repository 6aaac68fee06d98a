"""Exact minimization without memory, by eliminating nodes one after another (bucket elimination).

What a node costs at best, for every choice of its neighbours, becomes a table over these; that is cheap while tables
are small, which depends on the order. Nodes whose table is smallest go first.
"""

from __future__ import annotations

import math

import numpy as np

from .core import Core

__all__ = ["elimination_order", "minimize"]

_MAX_TABLE = 1 << 23  # entries
_MAX_TOTAL = 1 << 26  # entries of all tables


def elimination_order(core: Core) -> list[int] | None:
    """Returns an order in which all nodes can be eliminated, or None if the tables get too large."""
    counts = core.num_labels.tolist()
    neighbours: list[set[int]] = [set() for _ in counts]
    for source, target in zip(core.source.tolist(), core.target.tolist(), strict=True):
        neighbours[source].add(target)
        neighbours[target].add(source)
    sizes = [_table_size(counts, node, near) for node, near in enumerate(neighbours)]
    left, order, total = set(range(len(counts))), [], 0.0
    while left:
        node = min(left, key=sizes.__getitem__)
        total += sizes[node]
        if sizes[node] > _MAX_TABLE or total > _MAX_TOTAL:
            return None
        left.discard(node)
        order.append(node)
        for other in neighbours[node]:
            neighbours[other] |= neighbours[node]
            neighbours[other] -= {other, node}
        for other in neighbours[node]:
            sizes[other] = _table_size(counts, other, neighbours[other])
    return order


def _table_size(counts: list[int], node: int, neighbours: set[int]) -> float:
    return float(counts[node]) * math.prod(float(counts[other]) for other in neighbours)


def minimize(core: Core, order: list[int], costs: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the labels, by place, at which the core is cheapest without memory, and what they cost.

    Args:
        core: The core.
        order: In which nodes are eliminated.
        costs: Of the labels, [labels].
    """
    tables: dict[int, list[tuple[tuple[int, ...], np.ndarray]]] = {
        node: [((node,), costs[core.first[node] : core.first[node + 1]])] for node in order
    }
    for edge, (source, target) in enumerate(zip(core.source.tolist(), core.target.tolist(), strict=True)):
        table = ((source, target), core.edge_costs(edge))
        tables[source].append(table)
        tables[target].append(table)
    total, best = core.constant, {}
    for node in order:
        scope = sorted({other for nodes, _ in tables[node] for other in nodes} - {node})
        joint = np.zeros(1)
        for nodes, table in tables.pop(node):
            joint = joint + _aligned(nodes, table, [*scope, node])
        best[node] = scope, joint.argmin(axis=-1)
        for other in scope:
            tables[other] = [table for table in tables[other] if node not in table[0]]
        message = (tuple(scope), joint.min(axis=-1))
        for other in scope:
            tables[other].append(message)
        total += 0.0 if scope else float(message[1])
    places = np.zeros(len(order), np.int64)
    for node in reversed(order):
        scope, choice = best[node]
        places[node] = choice[tuple(places[scope])]
    return places, total


def _aligned(nodes: tuple[int, ...], table: np.ndarray, scope: list[int]) -> np.ndarray:
    """A table with an axis for each node of a scope, in its order."""
    places = [scope.index(node) for node in nodes]
    axes = np.argsort(places)
    shape = [1] * len(scope)
    for axis in axes:
        shape[places[axis]] = table.shape[axis]
    return table.transpose(axes).reshape(shape)
