"""A memory plan checked against its definition.

Who owns the buffer of a value is asked of each value on its own, and what is live is asked of each operation on its
own, by looking at the whole graph every time. `compiler.memory` does both in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import VerificationError
from ..graph import Graph, Operation
from ..memory import MemoryPlan

__all__ = ["verify_memory_plan"]


def verify_memory_plan(plan: MemoryPlan, graph: Graph) -> None:
    """Checks every figure of a memory plan.

    Raises:
        VerificationError: naming the figure, what the plan says and what the graph says.
    """
    question = _Question(graph)
    loads = [question.load(operation, keeps_outputs=False) for operation in graph.operations]
    expected = {
        "parameter_bytes": _sum_of_kind(graph, "parameter"),
        "cache_bytes": _sum_of_kind(graph, "cache"),
        "input_bytes": _sum_of_kind(graph, "input"),
        "constant_bytes": _sum_of_kind(graph, "constant"),
        "output_bytes": sum(
            graph.values[value].bytes for value in graph.outputs if graph.values[question.owner(value)].kind != "cache"
        ),
        "temporary_bytes": max(loads, default=0),
    }
    for name, num_bytes in expected.items():
        if getattr(plan, name) != num_bytes:
            raise VerificationError(
                f"memory plan of {graph.name!r} is wrong: {name} is {getattr(plan, name)}, the graph says {num_bytes}"
            )
    if plan.peak_operation is not None and loads[plan.peak_operation] != plan.temporary_bytes:
        raise VerificationError(
            f"memory plan of {graph.name!r} is wrong: {loads[plan.peak_operation]} bytes are live at operation "
            f"{plan.peak_operation}, not the peak of {plan.temporary_bytes}"
        )
    listed = sum(live.bytes for live in plan.largest)
    if listed > plan.temporary_bytes:
        raise VerificationError(
            f"memory plan of {graph.name!r} is wrong: it lists {listed} live bytes at a smaller peak"
        )


def _sum_of_kind(graph: Graph, kind: str) -> int:
    if kind == "constant":
        return sum(value.bytes for value in graph.values if value.kind == kind)
    return sum(graph.values[value].bytes for value in graph.inputs if graph.values[value].kind == kind)


class _Question:
    """What can be asked of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = {value: operation for operation in graph.operations for value in operation.outputs}
        self.known_owners: dict[int, int] = {}

    def owner(self, value: int) -> int:
        """Returns the value whose buffer this one is in."""
        if value not in self.known_owners:
            self.known_owners[value] = self._find_owner(value)
        return self.known_owners[value]

    def _find_owner(self, value: int) -> int:
        operation = self.producers.get(value)
        if operation is None:
            return value
        if operation.is_view:
            return self.owner(operation.inputs[0])
        taken: set[int] = set()
        for output, operand in operation.updates:
            buffer = self.owner(operand)
            may = buffer not in taken and self.may_overwrite(operation, operand)
            if may:
                taken.add(buffer)
            if output == value:
                return buffer if may else value
        return value

    def may_overwrite(self, operation: Operation, operand: int) -> bool:
        """Whether nothing that is in the operand's buffer is needed once the operation is done."""
        buffer = self.owner(operand)
        if self.graph.values[buffer].kind not in ("cache", "intermediate"):
            return False
        needed = set(self.graph.outputs)
        for later in self.graph.operations[operation.id + 1 :]:
            needed.update(later.inputs)
        return not any(self.exists_before(operation, value) and self.owner(value) == buffer for value in needed)

    def exists_before(self, operation: Operation, value: int) -> bool:
        producer = self.producers.get(value)
        return producer is None or producer.id < operation.id

    def load(self, operation: Operation, *, keeps_outputs: bool) -> int:
        """Returns the bytes of the intermediates that are live while the operation runs."""
        results = {self.owner(value) for value in self.graph.outputs}
        before = self.buffers(self.graph.operations[: operation.id + 1])
        after = self.buffers(self.graph.operations[operation.id :])
        live = (before & self.producers.keys()) & (after | results)
        if not keeps_outputs:
            live -= results
        return sum(self.graph.values[buffer].bytes for buffer in live) + self.load_of_body(operation)

    def buffers(self, operations: Sequence[Operation]) -> set[int]:
        """Returns the buffers that some operations read or write."""
        return {self.owner(value) for each in operations for value in (*each.inputs, *each.outputs)}

    def load_of_body(self, operation: Operation) -> int:
        is_loop = operation.trip_count is not None
        copies = int(operation.options.get("shards", 1))
        peaks = [0]
        for body in operation.body:
            question = _Question(body)
            peaks += [question.load(inner, keeps_outputs=is_loop) for inner in body.operations]
        return copies * max(peaks)
