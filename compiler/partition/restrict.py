"""Sharding problems with less to choose from: what pins, forced strategies and forbidden reshards leave.

They are cut out of one `Formulation`, so that many can be solved in the time that making one takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...errors import ConfigurationError
from ..mesh import Layout, whole
from ..target import Network
from .formulate import Formulation, Node, Pins
from .links import Link, sends
from .plan import Sharding
from .problem import INFINITE_COST, Edge
from .skeleton import Made

__all__ = ["assignment", "pinned", "restricted", "without"]

_Allowed = Mapping[int, Sequence[int]]  # strategies that a node may have; all if it is not there


def assignment(formulation: Formulation, sharding: Sharding) -> tuple[int, ...]:
    """Returns the strategy that each node has in a sharding.

    Raises:
        ConfigurationError: if a node has no such strategy.
    """
    skeleton = formulation.skeleton
    graph = skeleton.traced.graph
    inputs = dict(zip(graph.inputs, sharding.inputs, strict=True))
    pairs = enumerate(zip(graph.outputs, sharding.outputs, strict=True))
    outputs = {value: layout for position, (value, layout) in pairs if position not in skeleton.tied_outputs}
    layouts = {"input": inputs, "shared": sharding.shared, "output": outputs}

    def strategy(node: Node) -> int:
        if node.kind == "operation":
            first = skeleton.groups[node.made.group].members[0]
            return node.divisions.index(sharding.operations[first])
        known = layouts[node.kind]
        return node.layouts.index(next(known[value] for value in skeleton.members[node.made] if value in known))

    found: list[int] = []
    for number, node in enumerate(formulation.nodes):
        try:
            found.append(strategy(node))
        except (ValueError, StopIteration):
            raise ConfigurationError(
                f"the plan divides {formulation.problem.name(number)} as no rule does: it is not of this graph, or "
                "made with other pins; plan it again"
            ) from None
    return tuple(found)


def restricted(formulation: Formulation, allowed: _Allowed) -> Formulation:
    """Returns the problem in which some nodes have a part of their strategies only."""
    problem = formulation.problem
    kept = {node: np.asarray(strategies, np.int64) for node, strategies in allowed.items()}

    def of_node(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [row[kept[node]] if node in kept else row for node, row in enumerate(rows)]

    def of_edge(edge: Edge) -> Edge:
        costs = edge.costs
        if edge.source in kept:
            costs = costs[kept[edge.source]]
        if edge.target in kept:
            costs = costs[:, kept[edge.target]]
        return edge if costs is edge.costs else Edge(edge.source, edge.target, costs)

    nodes = tuple(_part(node, allowed.get(i)) for i, node in enumerate(formulation.nodes))
    edges = [of_edge(edge) for edge in problem.edges]
    smaller = replace(problem, costs=of_node(problem.costs), usages=of_node(problem.usages), edges=edges)
    return replace(formulation, nodes=nodes, problem=smaller)


def _part(node: Node, kept: Sequence[int] | None) -> Node:
    if kept is None:
        return node
    if node.kind == "operation":
        return replace(node, divisions=tuple(node.divisions[i] for i in kept))
    return replace(node, layouts=tuple(node.layouts[i] for i in kept))


def pinned(formulation: Formulation, pins: Pins) -> Formulation | None:
    """Returns the problem that `formulate` would make with further pins, or None if they leave a value no layout."""
    allowed: dict[int, list[int]] = {}
    for number, node in enumerate(formulation.nodes):
        if node.kind in ("input", "operation"):
            kept = _kept(formulation, node, pins)
            if not kept:
                return None
            if len(kept) < len(formulation.problem.costs[number]):
                allowed[number] = kept
    if allowed:
        allowed.update(_still_wanted(restricted(formulation, allowed)))
    return restricted(formulation, allowed)


def _kept(formulation: Formulation, node: Node, pins: Pins) -> list[int]:
    """Returns the strategies of an input or an operation that pins leave."""
    skeleton = formulation.skeleton
    if node.kind == "input":
        wanted = [pins[value] for value in skeleton.members[node.made] if value in pins]
        return [i for i, layout in enumerate(node.layouts) if all(layout in layouts for layouts in wanted)]
    operations = skeleton.traced.graph.operations
    results = [
        (result, pins[value])
        for member in skeleton.groups[node.made.group].members
        for result, value in enumerate(operations[member].outputs)
        if value in pins
    ]
    return [
        i
        for i, division in enumerate(node.divisions)
        if all(division.results[result] in layouts for result, layouts in results)
    ]


def _still_wanted(formulation: Formulation) -> dict[int, list[int]]:
    """Returns which layouts of shared values and outputs an operation still makes or wants."""
    skeleton = formulation.skeleton
    wanted: dict[Made, set[Layout]] = defaultdict(set)
    divisions = {node.made.group: node.divisions for node in formulation.nodes if node.kind == "operation"}
    for group, of_group in divisions.items():
        for result in range(len(skeleton.groups[group].rule.results)):
            wanted[Made(group, result)].update(division.results[result] for division in of_group)
    for read in skeleton.reads:
        wanted[read.made].update(division.operands[read.operand] for division in divisions[read.group])
    left: dict[int, list[int]] = {}
    for number, node in enumerate(formulation.nodes):
        if node.kind in ("shared", "output"):
            kept = [i for i, layout in enumerate(node.layouts) if layout in wanted[node.made]]
            entire = [i for i, layout in enumerate(node.layouts) if layout == whole(len(layout.dims))]
            left[number] = kept or entire
    return left


def without(formulation: Formulation, forbidden: Iterable[Link], network: Network) -> Formulation:
    """Returns the problem in which nothing may be sent on some links."""
    edges = list(formulation.problem.edges)
    for link in forbidden:
        costs = np.where(sends(formulation, link, network), INFINITE_COST, 0.0)
        edges.append(Edge(link.source, link.target, costs))
    return replace(formulation, problem=replace(formulation.problem, edges=edges))
