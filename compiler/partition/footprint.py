"""What each device of a sharded graph holds, from live ranges, operation by operation.

Counted are one device's parts of the inputs, at all times; of every result from the operation that makes it to its
last use, in the layout in which it is kept; and, while an operation runs, the parts of its operands that were brought
to another layout for it. Views and updates in place take no memory of their own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate

from ..graph import Graph, ValueKind
from ..mesh import Layout, Mesh
from ..trace import Traced
from .plan import Sharding
from .skeleton import buffer_roots

__all__ = ["Footprint", "footprint"]


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


def footprint(traced: Traced, sharding: Sharding, begin: int = 0, end: int | None = None) -> Footprint:
    """Returns what one device holds that runs the operations [begin, end) of a graph.

    Args:
        traced: The graph.
        sharding: How it is divided.
        begin: First operation.
        end: Behind the last one; by default all that there are.
    """
    graph = traced.graph
    end = len(graph.operations) if end is None else end
    kept = sharding.layouts(graph)
    sizes = _input_bytes(graph, sharding, kept, begin, end)
    changes = [0] * (end - begin + 1)
    for first, last, size in _buffers(graph, sharding, kept, begin, end):
        changes[first - begin] += size
        changes[last - begin] -= size
    loads = list(accumulate(changes[:-1]))
    loads = [load + _brought(traced, sharding, kept, begin + i) for i, load in enumerate(loads)]
    peak = max(range(len(loads)), key=loads.__getitem__, default=0)
    return Footprint(
        parameters=sizes["parameter"],
        state=sizes["state"],
        cache=sizes["cache"],
        inputs=sizes["input"] + sizes["constant"],
        temporaries=loads[peak] if loads else 0,
        peak_operation=begin + peak,
    )


def _part(graph: Graph, value: int, layout: Layout, mesh: Mesh) -> int:
    return graph.values[value].bytes // mesh.num_shards(layout.axes)


def _input_bytes(
    graph: Graph, sharding: Sharding, kept: dict[int, Layout], begin: int, end: int
) -> dict[ValueKind, int]:
    """Returns the bytes of the inputs that the operations read, by kind; an input that none reads is everywhere."""
    sizes: dict[ValueKind, int] = defaultdict(int)
    read = {value for operation in graph.operations[begin:end] for value in operation.inputs}
    if begin == 0 and end == len(graph.operations):
        read.update(graph.inputs)
    for value in read & {*graph.inputs, *sharding.constants}:
        sizes[graph.values[value].kind] += _part(graph, value, kept[value], sharding.mesh)
    return sizes


def _buffers(
    graph: Graph, sharding: Sharding, kept: dict[int, Layout], begin: int, end: int
) -> list[tuple[int, int, int]]:
    """Returns (first, behind the last, bytes) of each buffer that lives in [begin, end)."""
    roots = buffer_roots(graph)
    last: dict[int, int] = {}
    for operation in graph.operations[begin:end]:
        for value in operation.inputs:
            last[roots.get(value, value)] = operation.id + 1
    later = {value for operation in graph.operations[end:] for value in operation.inputs} | set(graph.outputs)
    last.update((roots.get(value, value), end) for value in later)
    buffers: list[tuple[int, int, int]] = []
    for operation in graph.operations[:end]:
        for value, made in zip(operation.outputs, sharding.operations[operation.id].results, strict=True):
            if value in roots or (value not in last and operation.id < begin):
                continue
            first, behind = max(operation.id, begin), last.get(value, operation.id + 1)
            layout = kept[value]
            buffers.append((first, max(behind, first + 1), _part(graph, value, layout, sharding.mesh)))
            if layout != made and operation.id >= begin:
                buffers.append((first, first + 1, _part(graph, value, made, sharding.mesh)))
    return [buffer for buffer in buffers if buffer[1] > begin]


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
