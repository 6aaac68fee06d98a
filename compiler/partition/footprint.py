"""What each device of a sharded graph holds, from live ranges, operation by operation.

Counted are one device's parts of the inputs, at all times; of every result from the operation that makes it to its
last use, in the layout in which it is kept; and, while an operation runs, the parts of its operands that were brought
to another layout for it. Views and updates in place take no memory of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ..graph import Graph, ValueKind
from ..mesh import Layout, Mesh
from ..trace import Traced
from .plan import Sharding
from .skeleton import buffer_roots

__all__ = ["Footprint", "Footprints"]


@dataclass(frozen=True)
class Footprint:
    """Bytes that one device of a stage holds."""

    parameters: int
    state: int  # an optimizer's
    cache: int
    inputs: int  # and constants
    temporaries: int  # at the moment when all are most
    peak_operation: int  # the operation at that moment

    @property
    def total(self) -> int:
        """Most that is held at any moment."""
        return self.parameters + self.state + self.cache + self.inputs + self.temporaries


class Footprints:
    """What one device holds of a sharded graph, for any stretch of it.

    The moments are looked at once: a stretch holds at each of its operations what the whole graph holds then.
    """

    def __init__(self, traced: Traced, sharding: Sharding) -> None:
        """Takes a graph and how it is divided."""
        self._graph, self._mesh = traced.graph, sharding.mesh
        self._kept = sharding.layouts(traced.graph)
        self._loads = _loads(traced, sharding, self._kept)

    def of(self, begin: int = 0, end: int | None = None) -> Footprint:
        """Returns what a device holds that runs the operations [begin, end), by default all that there are."""
        end = len(self._loads) if end is None else end
        sizes = self._input_bytes(begin, end)
        peak = max(range(begin, end), key=self._loads.__getitem__, default=begin)
        return Footprint(
            parameters=sizes["parameter"],
            state=sizes["state"],
            cache=sizes["cache"],
            inputs=sizes["input"] + sizes["constant"],
            temporaries=self._loads[peak] if begin < end else 0,
            peak_operation=peak,
        )

    def stored_bytes(self, points: Sequence[int]) -> list[int]:
        """Returns for each stretch between consecutive operations the bytes of the inputs that it reads."""
        return [sum(self._input_bytes(begin, end).values()) for begin, end in pairwise(points)]

    def _input_bytes(self, begin: int, end: int) -> dict[ValueKind, int]:
        """Returns the bytes of the inputs that operations read, by kind; what none reads belongs to the whole graph."""
        graph = self._graph
        sizes: dict[ValueKind, int] = defaultdict(int)
        read = {value for operation in graph.operations[begin:end] for value in operation.inputs}
        if begin == 0 and end == len(graph.operations):
            read.update(graph.inputs)
        for value in read:
            if graph.values[value].kind != "intermediate":
                sizes[graph.values[value].kind] += _part(graph, value, self._kept[value], self._mesh)
        return sizes


def _part(graph: Graph, value: int, layout: Layout, mesh: Mesh) -> int:
    return graph.values[value].bytes // mesh.num_shards(layout.axes)


def _loads(traced: Traced, sharding: Sharding, kept: dict[int, Layout]) -> list[int]:
    """Returns what is held while each operation runs, inputs aside."""
    graph = traced.graph
    changes = [0] * (len(graph.operations) + 1)
    for first, behind, size in _buffers(graph, sharding, kept):
        changes[first] += size
        changes[behind] -= size
    return [load + _brought(traced, sharding, kept, i) for i, load in enumerate(accumulate(changes[:-1]))]


def _buffers(graph: Graph, sharding: Sharding, kept: dict[int, Layout]) -> Iterator[tuple[int, int, int]]:
    """Yields (first operation, behind the last, bytes) of each buffer."""
    roots = buffer_roots(graph)
    behind = {roots.get(value, value): op.id + 1 for op in graph.operations for value in op.inputs}
    behind.update((roots.get(value, value), len(graph.operations)) for value in graph.outputs)
    for operation in graph.operations:
        first = operation.id
        for value, made in zip(operation.outputs, sharding.operations[first].results, strict=True):
            if value in roots:
                continue
            yield first, behind.get(value, first + 1), _part(graph, value, kept[value], sharding.mesh)
            if kept[value] != made:
                yield first, first + 1, _part(graph, value, made, sharding.mesh)


def _brought(traced: Traced, sharding: Sharding, kept: dict[int, Layout], operation: int) -> int:
    """Returns the bytes of operands that are brought to another layout for one operation."""
    total = 0
    graph = traced.graph
    wanted = sharding.operations[operation].operands
    for operand, layout in zip(traced.equations[operation].operands, wanted, strict=True):
        if not isinstance(operand, int):
            continue
        if kept[operand].dims != layout.dims:
            total += _part(graph, operand, layout, sharding.mesh)
    return total
