"""From a skeleton and a mesh to a sharding problem, and from its answer back to a `Sharding`.

Nodes are the groups of inputs and operations, the values that several operations read, and the outputs; strategies are
layouts of a value or divisions of an operation. A node's cost is the time its operations take on one device, with what
they communicate inside; an edge's is the time of the reshards between the two. Its use of memory is what one device
holds of its results while they live, of inputs always. All is summed over the members of the groups, so the cost of an
assignment is that of the whole graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np

from ...errors import ConfigurationError
from ..cost import operation_seconds
from ..graph import KEY_IMPLEMENTATIONS, Value
from ..mesh import Layout, Mesh, whole
from ..ops.sharding.division import Division
from ..ops.sharding.rules import internal_collectives
from ..target import Target
from .caches import num_appended
from .network import collective_seconds
from .plan import OperationSharding, Sharding
from .problem import Edge, Problem
from .reshard import matrix
from .skeleton import Made, OperationGroup, Skeleton
from .strategies import input_layouts, operation_strategies

__all__ = [
    "Formulation",
    "Node",
    "NodeKind",
    "Pins",
    "copy_seconds",
    "division_seconds",
    "formulate",
    "stored_bytes",
]

NodeKind: TypeAlias = Literal["input", "operation", "shared", "output"]

Pins: TypeAlias = Mapping[int, Sequence[Layout]]  # layouts that a value may have, by value id


@dataclass(frozen=True)
class Node:
    """A decision."""

    kind: NodeKind
    made: Made  # an operation's has result 0
    layouts: tuple[Layout, ...]  # of an operation none
    divisions: tuple[OperationSharding, ...] = ()  # of an operation

    def results(self, result: int | None) -> tuple[Layout, ...]:
        """Returns the layout of a result, or of the value itself, in each strategy."""
        return self.layouts or tuple(division.results[result or 0] for division in self.divisions)


@dataclass(frozen=True)
class Formulation:
    """A sharding problem with what its nodes and strategies mean."""

    skeleton: Skeleton
    mesh: Mesh
    nodes: tuple[Node, ...]
    problem: Problem

    def sharding(self, assignment: Sequence[int]) -> Sharding:
        """Returns what an assignment of strategies to nodes decides."""
        graph, skeleton = self.skeleton.traced.graph, self.skeleton
        layouts: dict[str, dict[int, Layout]] = {"input": {}, "shared": {}, "output": {}}
        divisions: dict[int, OperationSharding] = {}
        for node, strategy in zip(self.nodes, assignment, strict=True):
            if node.kind == "operation":
                divisions[node.made.group] = node.divisions[strategy]
            else:
                layouts[node.kind].update(dict.fromkeys(skeleton.members[node.made], node.layouts[strategy]))
        inputs = layouts["input"]
        return Sharding(
            mesh=self.mesh,
            inputs=tuple(inputs[value] for value in graph.inputs),
            constants={value.id: whole(len(value.shape)) for value in graph.values if value.kind == "constant"},
            operations=tuple(divisions[group] for group in skeleton.merged.group_of_operation),
            shared=layouts["shared"],
            outputs=tuple(
                inputs[skeleton.tied_outputs[position]]
                if position in skeleton.tied_outputs
                else layouts["output"].get(value) or inputs.get(value) or whole(len(graph.values[value].shape))
                for position, value in enumerate(graph.outputs)
            ),
        )


def formulate(
    skeleton: Skeleton,
    mesh: Mesh,
    target: Target,
    dtype: str,
    *,
    budget_bytes: int | None = None,
    pins: Pins = MappingProxyType({}),
) -> Formulation:
    """Returns the sharding problem of a graph on a mesh.

    Args:
        skeleton: The graph's groups.
        mesh: The devices.
        target: What they compute, read and send in a second.
        dtype: That products are computed in.
        budget_bytes: What one device may hold at any time; no limit by default.
        pins: Layouts that inputs or results may have, by value id; a result has its layout where it is made.

    Raises:
        ConfigurationError: if a pin leaves a value no layout.
    """
    nodes = _nodes(skeleton, mesh, pins)
    index: dict[tuple[NodeKind, Made], int] = {(node.kind, node.made): i for i, node in enumerate(nodes)}
    costs = [_node_costs(node, skeleton, mesh, target, dtype) for node in nodes]
    usages = [_node_usages(node, skeleton, mesh) for node in nodes]
    edges = _edges(skeleton, nodes, index, mesh, target)
    num_times = len(skeleton.groups) + 1
    intervals = [_node_interval(node, skeleton, num_times) for node in nodes]
    names = tuple(_label(node, skeleton) for node in nodes)
    return Formulation(skeleton, mesh, nodes, Problem(costs, usages, intervals, edges, budget_bytes, names))


def _nodes(skeleton: Skeleton, mesh: Mesh, pins: Pins) -> tuple[Node, ...]:
    layouts: dict[tuple[int, ...], tuple[Layout, ...]] = {}
    nodes: list[Node] = []
    for group in range(len(skeleton.input_groups)):
        made = Made(group, None)
        shape, is_key = skeleton.values[made].shape, skeleton.values[made].dtype in KEY_IMPLEMENTATIONS
        if shape not in layouts:
            layouts[shape] = input_layouts(shape, mesh)
        known = (whole(len(shape)),) if is_key else layouts[shape]
        nodes.append(Node("input", made, _allowed(known, skeleton, made, pins)))
    wanted: dict[Made, dict[Layout, None]] = defaultdict(dict)
    for number, group in enumerate(skeleton.groups):
        divisions = _pinned_divisions(operation_strategies(group.rule, mesh), skeleton, number, pins)
        node = Node("operation", Made(number, 0), (), divisions)
        nodes.append(node)
        for result in range(len(group.rule.results)):
            wanted[Made(number, result)].update(dict.fromkeys(node.results(result)))
    divisions_of = {node.made.group: node.divisions for node in nodes if node.kind == "operation"}
    for read in skeleton.reads:
        wanted[read.made].update((division.operands[read.operand], None) for division in divisions_of[read.group])
    nodes += [Node("shared", made, tuple(wanted[made])) for made in skeleton.shared]
    for made in skeleton.free_outputs:
        if not made.is_input:
            complete = tuple(dict.fromkeys(layout for layout in wanted[made] if not layout.partial))
            rank = len(skeleton.values[made].shape)
            nodes.append(Node("output", made, complete or (whole(rank),)))
    return tuple(nodes)


def _allowed(layouts: tuple[Layout, ...], skeleton: Skeleton, made: Made, pins: Pins) -> tuple[Layout, ...]:
    for value in skeleton.members[made]:
        if value in pins:
            layouts = tuple(layout for layout in layouts if layout in pins[value])
    if not layouts:
        raise _no_layout(skeleton.values[made], "")
    return layouts


def _pinned_divisions(
    divisions: tuple[OperationSharding, ...], skeleton: Skeleton, number: int, pins: Pins
) -> tuple[OperationSharding, ...]:
    for operation in skeleton.groups[number].members:
        for result, value in enumerate(skeleton.traced.graph.operations[operation].outputs):
            if value in pins:
                divisions = tuple(d for d in divisions if d.results[result] in pins[value])
    if not divisions:
        operation = skeleton.groups[number].representative
        raise _no_layout(skeleton.values[Made(number, 0)], f" where {operation.path or operation.name} makes it")
    return divisions


def _no_layout(value: Value, where: str) -> ConfigurationError:
    shape = f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return ConfigurationError(
        f"no layout of {value.name or 'a value'} {shape} is left{where}: a pin asks for one that does not divide or "
        "that its operation cannot give; `plait explain` lists those that there are"
    )


def _node_costs(node: Node, skeleton: Skeleton, mesh: Mesh, target: Target, dtype: str) -> np.ndarray:
    if node.kind != "operation":
        return np.zeros(len(node.layouts))
    group = skeleton.groups[node.made.group]
    seconds = [division_seconds(group, division, mesh, target, dtype) for division in node.divisions]
    return len(group.members) * np.array(seconds)


def division_seconds(
    group: OperationGroup, division: OperationSharding, mesh: Mesh, target: Target, dtype: str
) -> float:
    """Returns the time that one operation of a group takes on each device, divided so, in seconds.

    Work is divided over all axes of its operands' factors. Bytes are those of weights, caches and optimizer state, at
    most what the operation looks at of them: other operands are taken to stay on chip. Keys and values that join caches
    come on top.
    """
    num_parts = mesh.num_shards(working_axes(group, division))
    stored = stored_bytes(group, None, mesh)
    share = stored_bytes(group, division, mesh) / stored if stored else 0.0
    operation = group.representative
    moved = min(stored, operation.bytes_read) * share
    seconds = operation_seconds(operation.flops / num_parts, moved, dtype, target)
    seconds += target.compute.append_seconds * num_appended(group.caches, division, mesh)
    inside = internal_collectives(group.equation, Division(group.rule, mesh, division.axes))
    return seconds + sum(collective_seconds(c.kind, c.bytes, mesh.num_shards(c.axes), target.network) for c in inside)


def working_axes(group: OperationGroup, division: OperationSharding) -> tuple[str, ...]:
    """Returns the axes over which the work is divided: of factors that an operand has, or any if there is none."""
    read = {factor for access in group.rule.operands for dim in access.dims for factor in dim}
    factors = read or range(len(division.axes))
    return tuple(dict.fromkeys(axis for factor in factors for axis in division.axes[factor]))


def stored_bytes(group: OperationGroup, division: OperationSharding | None, mesh: Mesh) -> float:
    """Returns the bytes of weights, caches and state that one device reads; undivided without a division."""
    total = 0.0
    for position in group.stored_operands:
        parts = mesh.num_shards(division.operands[position].axes) if division else 1
        total += group.operand_bytes[position] / parts
    return total


def _node_usages(node: Node, skeleton: Skeleton, mesh: Mesh) -> np.ndarray:
    """Returns what one device holds, in bytes; a result that is shared is charged where it is shared."""
    if node.kind == "output":
        return np.zeros(len(node.layouts))
    if node.kind != "operation":
        value = skeleton.values[node.made]
        count = len(skeleton.members[node.made]) if node.kind == "input" else _live(skeleton, node.made)
        return np.array([count * value.bytes / mesh.num_shards(layout.axes) for layout in node.layouts])
    usages = np.zeros(len(node.divisions))
    for result in range(len(skeleton.groups[node.made.group].rule.results)):
        made = Made(node.made.group, result)
        if made not in skeleton.shared_set:
            size = _live(skeleton, made) * skeleton.values[made].bytes
            usages += [size / mesh.num_shards(layout.axes) for layout in node.results(result)]
    return usages


def _live(skeleton: Skeleton, made: Made) -> int:
    return skeleton.intervals[made][2] if made in skeleton.intervals else 0


def _node_interval(node: Node, skeleton: Skeleton, num_times: int) -> tuple[int, int]:
    if node.kind == "input":
        return 0, num_times
    if node.kind == "shared":
        return skeleton.intervals.get(node.made, (0, 0, 0))[:2]
    if node.kind == "output":
        return 0, 0
    group = node.made.group
    own = [Made(group, result) for result in range(len(skeleton.groups[group].rule.results))]
    spans = [skeleton.intervals[made] for made in own if made in skeleton.intervals and made not in skeleton.shared_set]
    return (min(span[0] for span in spans), max(span[1] for span in spans)) if spans else (group, group + 1)


def _edges(
    skeleton: Skeleton, nodes: tuple[Node, ...], index: dict[tuple[NodeKind, Made], int], mesh: Mesh, target: Target
) -> list[Edge]:
    edges: list[Edge] = []

    def source(made: Made) -> tuple[int, tuple[Layout, ...]]:
        if ("shared", made) in index:
            number = index["shared", made]
            return number, nodes[number].layouts
        number = index["input", made] if made.is_input else index["operation", Made(made.group, 0)]
        return number, nodes[number].results(made.result)

    def add(made: Made, target_node: int, wanted: Sequence[Layout], count: int, *, is_shared: bool = False) -> None:
        number, given = source(made)
        if is_shared:
            number = index["operation", Made(made.group, 0)]
            given = nodes[number].results(made.result)
        costs = _reshard_matrix(skeleton.values[made], given, wanted, mesh, target)
        if made.is_input:
            costs = costs + _copy_matrix(skeleton.values[made], given, wanted, mesh, target)
        if costs.any():
            edges.append(Edge(number, target_node, count * costs))

    for made in skeleton.shared:
        number = index["shared", made]
        add(made, number, nodes[number].layouts, len(skeleton.members[made]), is_shared=True)
    for read in skeleton.reads:
        number = index["operation", Made(read.group, 0)]
        add(read.made, number, [division.operands[read.operand] for division in nodes[number].divisions], read.count)
    for made, count in skeleton.free_outputs.items():
        if not made.is_input:
            number = index["output", made]
            add(made, number, nodes[number].layouts, count)
    for (made, input_made), count in skeleton.tied.items():
        number = index["input", input_made]
        add(made, number, nodes[number].layouts, count)
    return edges


def _reshard_matrix(
    value: Value, given: Sequence[Layout], wanted: Sequence[Layout], mesh: Mesh, target: Target
) -> np.ndarray:
    """Returns the seconds from each given layout to each wanted one, computed once for each that differ."""
    rows = {layout: i for i, layout in enumerate(dict.fromkeys(given))}
    columns = {layout: i for i, layout in enumerate(dict.fromkeys(wanted))}
    seconds = matrix(value.shape, value.dtype, tuple(rows), tuple(columns), mesh, target.network)
    return seconds[np.ix_([rows[layout] for layout in given], [columns[layout] for layout in wanted])]


def _copy_matrix(
    value: Value, given: Sequence[Layout], wanted: Sequence[Layout], mesh: Mesh, target: Target
) -> np.ndarray:
    differs = np.array([[source != layout for layout in wanted] for source in given])
    return differs * np.array([copy_seconds(value, layout, mesh, target) for layout in wanted])


def copy_seconds(value: Value, wanted: Layout, mesh: Mesh, target: Target) -> float:
    """Returns the time to copy a device's part of an input, or of a weight, out of what it holds.

    What lies in memory in one layout and is read in another is read, written and read again, even if nothing is sent.
    Without this a device might as well hold all of a weight of which it uses a part.
    """
    moved = 2 * value.bytes / mesh.num_shards(wanted.axes)
    return moved / target.tiers["hbm"].bandwidth_bytes_per_s


def _label(node: Node, skeleton: Skeleton) -> str:
    if node.kind == "input":
        value = skeleton.values[node.made]
        return value.name or f"input {value.id}"
    operation = skeleton.groups[node.made.group].representative
    place = f"{operation.path}/{operation.name}" if operation.path else operation.name
    return place if node.kind == "operation" else f"{place} ({node.kind})"
