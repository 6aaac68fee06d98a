"""A memory plan checked against its definition.

Who owns the buffer of a value is asked of each value on its own, and what is live is asked of each operation on its
own, by following its buffer from the first operation that touches it to the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

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
    loads = list(question.loads(keeps_outputs=False))
    kinds = [(graph.values[question.owner(value)].kind, graph.values[value].bytes) for value in graph.outputs]
    expected = {
        "parameter_bytes": _sum_of_kind(graph, "parameter"),
        "state_bytes": _sum_of_kind(graph, "state"),
        "cache_bytes": _sum_of_kind(graph, "cache"),
        "input_bytes": _sum_of_kind(graph, "input"),
        "constant_bytes": _sum_of_kind(graph, "constant"),
        "output_bytes": sum(size for kind, size in kinds if kind in ("input", "constant", "intermediate")),
        "rewritten_bytes": sum(size for kind, size in kinds if kind in ("parameter", "state")),
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
        self.results = frozenset(graph.outputs)
        self.producers = {value: operation for operation in graph.operations for value in operation.outputs}
        self.last_readers = {value: operation.id for operation in graph.operations for value in operation.inputs}
        self.owners = {value.id: value.id for value in graph.values if value.id not in self.producers}
        self.held = {value: [value] for value in self.owners}  # by buffer: the values that have been in it so far
        for operation in graph.operations:
            found = [(value, self._find_owner(value, operation)) for value in operation.outputs]
            for value, buffer in found:
                self.owners[value] = buffer
                self.held.setdefault(buffer, []).append(value)

    def owner(self, value: int) -> int:
        """Returns the value whose buffer this one is in."""
        return self.owners[value]

    def _find_owner(self, value: int, operation: Operation) -> int:
        if operation.is_view:
            return self.owner(operation.inputs[0])
        taken: set[int] = set()
        for output, operand in operation.updates:
            buffer = self.owner(operand)
            may = buffer not in taken and self.may_overwrite(operation, buffer)
            if may:
                taken.add(buffer)
            if output == value:
                return buffer if may else value
        return value

    def may_overwrite(self, operation: Operation, buffer: int) -> bool:
        """Whether nothing that has been in the buffer is needed once the operation is done."""
        if self.graph.values[buffer].kind in ("input", "constant"):
            return False
        return not any(
            value in self.results or self.last_readers.get(value, -1) > operation.id for value in self.held[buffer]
        )

    def loads(self, *, keeps_outputs: bool) -> Iterator[int]:
        """Yields the bytes of the intermediates that are live while each operation runs.

        Args:
            keeps_outputs: Whether the graph's results count.
        """
        results = {self.owner(value) for value in self.results}
        to_come = Counter(buffer for operation in self.graph.operations for buffer in self.buffers(operation))
        live: dict[int, int] = {}
        for operation in self.graph.operations:
            touched = self.buffers(operation)
            for buffer in touched & self.producers.keys():
                if keeps_outputs or buffer not in results:
                    live[buffer] = self.graph.values[buffer].bytes
            yield sum(live.values()) + self.load_of_body(operation)
            to_come.subtract(touched)
            for buffer in touched - results:
                if to_come[buffer] == 0:
                    live.pop(buffer, None)

    def buffers(self, operation: Operation) -> set[int]:
        """Returns the buffers that an operation reads or writes."""
        return {self.owner(value) for value in (*operation.inputs, *operation.outputs)}

    def load_of_body(self, operation: Operation) -> int:
        is_loop = operation.trip_count is not None
        copies = int(operation.options.get("shards", 1))
        peaks = [0]
        for body in operation.body:
            peaks += _Question(body).loads(keeps_outputs=is_loop)
        return copies * max(peaks)
