"""The graph as Google's Model Explorer reads it: a GraphCollection of JSON.

Nodes are operations, and the values that come from outside; a node's namespace is its Flax path, so that layers fold.
Attributes say in which section and launch an operation runs, how it is divided, what it computes and where it is from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TypeAlias

from ..graph import Operation, Value
from ..text import format_bytes, format_flops, format_seconds
from .inspection import Inspection

__all__ = ["model_explorer_graph", "model_explorer_json"]

Attribute: TypeAlias = dict[str, str]
Node: TypeAlias = dict[str, object]


def model_explorer_json(seen: Inspection) -> bytes:
    """Returns the collection as a JSON file."""
    return json.dumps({"label": seen.name, "graphs": [model_explorer_graph(seen)]}).encode()


def model_explorer_graph(seen: Inspection) -> dict[str, object]:
    """Returns the graph: its id, and its nodes in the order in which they run."""
    graph = seen.compilation.traced.graph
    layouts = seen.partition.sharding.layouts(graph)
    made = {value: operation for operation in graph.operations for value in operation.outputs}
    given = [value for value in graph.values if value.id not in made]
    nodes: list[Node] = [_input_node(value, str(layouts.get(value.id, ""))) for value in given]
    nodes += [_operation_node(seen, operation, made) for operation in graph.operations]
    return {"id": seen.name, "nodes": nodes}


def _input_node(value: Value, layout: str) -> Node:
    name = value.name or f"{value.kind} {value.id}"
    *module, label = name.split(".")
    return {
        "id": f"value {value.id}",
        "label": label,
        "namespace": "/".join(module),
        "incomingEdges": [],
        "attrs": [_attribute("kind", value.kind), _attribute("layout", layout), *_shape(value)],
        "outputsMetadata": [_metadata(0, value, layout)],
    }


def _operation_node(seen: Inspection, operation: Operation, made: dict[int, Operation]) -> Node:
    graph = seen.compilation.traced.graph
    division = seen.partition.sharding.operations[operation.id]
    results = zip(operation.outputs, division.results, strict=True)
    return {
        "id": f"operation {operation.id}",
        "label": operation.name,
        "namespace": operation.path,
        "incomingEdges": [_edge(value, number, made.get(value)) for number, value in enumerate(operation.inputs)],
        "attrs": list(_attributes(seen, operation)),
        "outputsMetadata": [
            _metadata(number, graph.values[value], str(layout)) for number, (value, layout) in enumerate(results)
        ],
    }


def _edge(value: int, position: int, maker: Operation | None) -> dict[str, str]:
    return {
        "sourceNodeId": f"value {value}" if maker is None else f"operation {maker.id}",
        "sourceNodeOutputId": "0" if maker is None else str(maker.outputs.index(value)),
        "targetNodeInputId": str(position),
    }


def _attributes(seen: Inspection, operation: Operation) -> Iterator[Attribute]:
    work, division = seen.mapped.works[operation.id], seen.partition.sharding.operations[operation.id]
    number = seen.launch_of_operation.get(operation.id)
    if number is not None:
        section = seen.sections.sections[seen.sections.launches[number].section]
        yield _attribute("section", str(section.id))
        yield _attribute("launch", str(number))
        yield _attribute("section is bound by", section.bound)
    yield _attribute("results are divided", ", ".join(map(str, division.results)))
    yield _attribute("operands are divided", ", ".join(map(str, division.operands)))
    yield _attribute("FLOPs", format_flops(operation.flops))
    yield _attribute("FLOPs of a device", format_flops(work.flops))
    if work.network_seconds:
        yield _attribute("collectives", format_seconds(work.network_seconds))
    if operation.source:
        yield _attribute("line", operation.source)
    for name, option in operation.options.items():
        yield _attribute(name, str(option))


def _attribute(key: str, value: str) -> Attribute:
    return {"key": key, "value": value}


def _shape(value: Value) -> tuple[Attribute, ...]:
    shape = f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return _attribute("shape", shape), _attribute("bytes", format_bytes(value.bytes))


def _metadata(number: int, value: Value, layout: str) -> dict[str, object]:
    return {"id": str(number), "attrs": [*_shape(value), _attribute("layout", layout)]}
