"""What a legal graph is."""

from __future__ import annotations

from ...errors import VerificationError
from ..graph import Graph

__all__ = ["verify_graph"]


def verify_graph(graph: Graph) -> None:
    """Checks that ids are positions, and that every value is made once, before it is used.

    Raises:
        VerificationError: naming the first operation or value that breaks a rule.
    """
    for position, value in enumerate(graph.values):
        _require(value.id == position, graph, f"value {value.id} is at position {position}")
        _require(all(size >= 0 for size in value.shape), graph, f"value {value.id} has shape {value.shape}")
    made = {value.id for value in graph.values if value.kind == "constant"}
    _require(made.isdisjoint(graph.inputs), graph, "an input is a constant")
    made.update(graph.inputs)
    sizes = [graph.values[value].bytes for value in graph.inputs]
    is_read_right = len(sizes) == len(graph.input_bytes_read) and all(
        0 <= num_bytes <= size for num_bytes, size in zip(graph.input_bytes_read, sizes, strict=True)
    )
    _require(is_read_right, graph, f"{graph.input_bytes_read} bytes read of inputs of {sizes} bytes")
    for position, operation in enumerate(graph.operations):
        what = f"operation {operation.id} ({operation.name})"
        _require(operation.id == position, graph, f"{what} is at position {position}")
        _require(made.issuperset(operation.inputs), graph, f"{what} reads a value that is not there yet")
        _require(made.isdisjoint(operation.outputs), graph, f"{what} makes a value that is there already")
        _require(len(set(operation.outputs)) == len(operation.outputs), graph, f"{what} makes a value twice")
        made.update(operation.outputs)
        for output, operand in operation.updates:
            inside = output in operation.outputs and operand in operation.inputs
            _require(inside, graph, f"{what} updates a value that it does not read and write")
        costs = (operation.flops, operation.bytes_read, operation.bytes_written)
        _require(min(costs) >= 0, graph, f"{what} has a negative cost")
        _require(0 <= operation.product_flops <= operation.flops, graph, f"{what} has more product FLOPs than FLOPs")
        for body in operation.body:
            verify_graph(body)
    _require(made == set(range(len(graph.values))), graph, "a value is neither given nor made")
    _require(made.issuperset(graph.outputs), graph, "an output is never made")


def _require(holds: bool, graph: Graph, complaint: str) -> None:
    if not holds:
        raise VerificationError(f"graph {graph.name!r} is not legal: {complaint}")
