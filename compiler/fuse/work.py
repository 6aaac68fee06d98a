"""What one device does of each operation of a partitioned graph: FLOPs, buffers read and written, collectives.

Comes in: a graph's skeleton and its sharding. Goes out: a `Work` an operation. Buffers, not values, are read and
written: a view is its operand's buffer, and an update is written where the old content was. Between kernels an
intermediate has the plan's type at most: f32 is what it is accumulated in, inside.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jax.extend.core import JaxprEqn

from ...models.named_ops import parse_op_name
from ..apply import predicted_collectives
from ..graph import Graph, Operation, Value, item_bytes
from ..jaxpr_reader import Argument, read_jaxpr
from ..mesh import Mesh
from ..ops.arrays import called_jaxpr
from ..ops.sharding.rule import Access
from ..partition.formulate import working_axes
from ..partition.plan import OperationSharding, Sharding
from ..partition.skeleton import OperationGroup, Skeleton, buffer_roots
from ..target import Target

__all__ = ["Kernel", "Touch", "Work", "works_of"]

_WRITERS = ("dynamic_update_slice", "scatter")  # a cache is written by a kernel of its own, unfused
_MASKS = ("select_n",)  # and so is a mask applied


@dataclass(frozen=True)
class Touch:
    """A buffer that is read or written."""

    buffer: int  # id of the value that owns it
    bytes: float  # of this device's part, at most what is looked at


@dataclass(frozen=True)
class Kernel:
    """A part of an operation that is launched on its own if nothing is fused."""

    flops: float
    product_flops: float
    bytes: float  # read and written


@dataclass(frozen=True)
class Work:
    """What one device does of one operation."""

    operation: int
    name: str
    path: str
    flops: float
    product_flops: float
    reads: tuple[Touch, ...]
    writes: tuple[Touch, ...]
    weights_bytes: float  # of parameters, caches and state: what all rows read, and so has to stay
    waits_for: tuple[int, ...]  # buffers that it needs whole before it can begin
    is_accumulated: bool  # its result is there only when all rows have gone through
    rows: int  # of its first result: its leading dims
    iterations: int  # independent ones: the first dim of a result of three or more dims
    network_seconds: float  # that it waits for collectives
    network_bytes: float  # that it sends
    kernels: tuple[Kernel, ...]  # if nothing is fused; none of a view

    @property
    def is_view(self) -> bool:
        """Whether nothing is computed or moved."""
        return not self.kernels


def works_of(skeleton: Skeleton, sharding: Sharding, target: Target, dtype: str) -> tuple[Work, ...]:
    """Returns the work of each operation of a graph, in order.

    Args:
        skeleton: The graph's groups.
        sharding: How it is divided.
        target: Gives the network.
        dtype: That the model is computed in.
    """
    return tuple(_Works(skeleton, sharding, target, dtype).all())


class _Works:
    """Goes through the operations of one graph."""

    def __init__(self, skeleton: Skeleton, sharding: Sharding, target: Target, dtype: str) -> None:
        self.skeleton, self.sharding, self.mesh = skeleton, sharding, sharding.mesh
        self.graph = skeleton.traced.graph
        self.roots = buffer_roots(self.graph)
        self.item_bytes = item_bytes(dtype)
        self.kernels: dict[int, tuple[Kernel, ...]] = {}  # by group
        self.network: dict[int, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        makers = {value: operation.id for operation in self.graph.operations for value in operation.outputs}
        for planned in predicted_collectives(skeleton.traced, sharding, target.network):
            value = planned.value if planned.value is not None else -1
            place = planned.operation if planned.operation is not None else makers.get(value, 0)
            seconds, sent = self.network[place]
            self.network[place] = seconds + planned.seconds, sent + planned.collective.bytes

    def all(self) -> Iterator[Work]:
        for operation in self.graph.operations:
            group = self.skeleton.groups[self.skeleton.merged.group_of_operation[operation.id]]
            yield self.work(operation, group, self.sharding.operations[operation.id])

    def work(self, operation: Operation, group: OperationGroup, division: OperationSharding) -> Work:
        num_parts = self.mesh.num_shards(working_axes(group, division))
        reads = tuple(self.reads(operation, group, division))
        writes = tuple(self.writes(operation, division))
        waits, is_accumulated = self.barriers(operation, group)
        rows, iterations = _rows(self.graph.values[operation.outputs[0]], division, self.mesh)
        seconds, sent = self.network[operation.id]
        kernels = () if operation.is_view else self.unfused(operation, group, num_parts, reads, writes)
        return Work(
            operation=operation.id,
            name=operation.name,
            path=operation.path,
            flops=operation.flops / num_parts,
            product_flops=operation.product_flops / num_parts,
            reads=reads if kernels else (),
            writes=writes if kernels else (),
            weights_bytes=self.staying(operation, group, division, reads),
            waits_for=waits,
            is_accumulated=is_accumulated,
            rows=rows,
            iterations=iterations,
            network_seconds=seconds,
            network_bytes=sent,
            kernels=kernels,
        )

    def root(self, value: int) -> int:
        return self.roots.get(value, value)

    def is_stored(self, value: int) -> bool:
        return self.graph.values[self.root(value)].kind in ("parameter", "cache", "state")

    def bytes(self, value: Value, axes: tuple[str, ...]) -> float:
        """Bytes of one device's part; an intermediate has the plan's type at most."""
        size = value.bytes
        if value.kind == "intermediate" and "float" in value.dtype:
            size = value.num_elements * min(item_bytes(value.dtype), self.item_bytes)
        return size / self.mesh.num_shards(axes)

    def reads(self, operation: Operation, group: OperationGroup, division: OperationSharding) -> Iterator[Touch]:
        stored = sum(group.operand_bytes[position] for position in group.stored_operands)
        share = min(1.0, operation.bytes_read / stored) if stored else 1.0
        seen: set[int] = set()
        flat = self.skeleton.traced.equations[operation.id]
        for operand, layout in zip(flat.operands, division.operands, strict=True):
            if not isinstance(operand, int) or self.root(operand) in seen:
                continue
            seen.add(self.root(operand))
            size = self.bytes(self.graph.values[operand], layout.axes)
            yield Touch(self.root(operand), size * share if self.is_stored(operand) else size)

    def staying(
        self, operation: Operation, group: OperationGroup, division: OperationSharding, reads: Sequence[Touch]
    ) -> float:
        """Returns the bytes of stored operands that have to stay: all but what only the rows at hand read.

        A dim that the result has too, other than as its last, passes by with the rows: the sequences of a cache.
        """
        sizes = {touch.buffer: touch.bytes for touch in reads}
        passing = {factor for dim in group.rule.results[0].dims[:-1] for factor in dim}
        total = 0.0
        flat = self.skeleton.traced.equations[operation.id]
        for operand, access in zip(flat.operands, group.rule.operands, strict=True):
            if not isinstance(operand, int) or not self.is_stored(operand):
                continue
            parts = 1.0
            for factor in (factor for dim in access.dims for factor in dim if factor in passing):
                parts *= group.rule.sizes[factor] / self.mesh.num_shards(division.axes[factor])
            total += sizes.get(self.root(operand), 0.0) * (2 / parts if parts > 1 else 1.0)
        return total

    def writes(self, operation: Operation, division: OperationSharding) -> Iterator[Touch]:
        updated = {output for output, _ in operation.updates}
        own = sum(self.graph.values[value].bytes for value in operation.outputs if value not in updated)
        whole = sum(self.graph.values[value].bytes for value in updated) or 1
        share = min(1.0, max(0, operation.bytes_written - own) / whole)  # of an update: its new rows
        for value, layout in zip(operation.outputs, division.results, strict=True):
            size = self.bytes(self.graph.values[value], layout.axes)
            yield Touch(self.root(value), size * share if value in updated else size)

    def barriers(self, operation: Operation, group: OperationGroup) -> tuple[tuple[int, ...], bool]:
        """Returns the buffers that an operation needs whole, and whether its own result comes only at the end.

        A dim other than the last of an operand is streamed unless it is summed away or mixed. If the results keep
        none of such dims, the operation takes rows as they come and adds up, as the gradient of a weight does; else it
        has to look at all rows of that operand for each row of another, as attention does.
        """
        kept = {factor for access in group.rule.results for dim in access.dims for factor in dim}
        flat = self.skeleton.traced.equations[operation.id]
        waits: list[int] = []
        streams = False
        for operand, access in zip(flat.operands, group.rule.operands, strict=True):
            if not isinstance(operand, int) or self.is_stored(operand):
                continue
            mixed, passed = _leading(access, kept, group.rule.sizes)
            streams |= passed
            if mixed:
                waits.append(self.root(operand))
        return (tuple(dict.fromkeys(waits)), False) if streams else ((), bool(waits))

    def unfused(
        self,
        operation: Operation,
        group: OperationGroup,
        num_parts: int,
        reads: Sequence[Touch],
        writes: Sequence[Touch],
    ) -> tuple[Kernel, ...]:
        """Returns the kernels of an operation; index arithmetic has none, address generators do it."""
        values = self.graph.values
        if not operation.flops and not any(_is_inexact(values[value]) for value in operation.outputs):
            return ()
        index = self.skeleton.merged.group_of_operation[operation.id]
        if index not in self.kernels:
            inner = tuple(_inner_kernels(group.equation, operation, num_parts, self.item_bytes))
            moved = sum(touch.bytes for touch in (*reads, *writes))
            whole = Kernel(operation.flops / num_parts, operation.product_flops / num_parts, moved)
            self.kernels[index] = inner if len(inner) > 1 else (whole,)
        return self.kernels[index]


def _leading(access: Access, kept: set[int], sizes: tuple[int, ...]) -> tuple[bool, bool]:
    """Returns whether a dim other than the last is summed away or mixed, and whether one passes to the results."""
    factors = [factor for dim in access.dims[:-1] for factor in dim if sizes[factor] > 1]
    return any(factor not in kept for factor in factors), any(factor in kept for factor in factors)


def _is_inexact(value: Value) -> bool:
    return value.dtype.startswith(("float", "bfloat", "complex"))


def _rows(value: Value, division: OperationSharding, mesh: Mesh) -> tuple[int, int]:
    layout = division.results[0]
    shape = [size // mesh.num_shards(axes) for size, axes in zip(value.shape, layout.dims, strict=True)]
    return max(1, math.prod(shape[:-1])), max(1, shape[0]) if len(shape) > 2 else 1


def _inner_kernels(equation: JaxprEqn, operation: Operation, num_parts: int, plan_item_bytes: int) -> Iterator[Kernel]:
    """Yields the kernels of a named op or of a loop's body: products, writes of caches, masks, and what is between."""
    body = called_jaxpr(equation)
    if operation.body:
        for graph in operation.body:
            for _ in range(operation.trip_count or 1):
                yield from _kernels_of(graph, num_parts, plan_item_bytes)
    elif body is not None and parse_op_name(str(equation.params.get("name", ""))):
        arguments = [Argument()] * len(equation.invars)
        yield from _kernels_of(read_jaxpr(body, operation.name, arguments).graph, num_parts, plan_item_bytes)


def _kernels_of(graph: Graph, num_parts: int, plan_item_bytes: int) -> Iterator[Kernel]:
    between: list[Operation] = []
    for operation in graph.operations:
        if operation.product_flops or operation.name in _WRITERS:
            if any(each.flops for each in between):  # conversions and transposes alone belong to what reads them
                yield _kernel(graph, between, num_parts, plan_item_bytes)
            between = []
            yield _kernel(graph, [operation], num_parts, plan_item_bytes)
        elif not operation.is_view:
            between.append(operation)
            if operation.name in _MASKS and _is_inexact(graph.values[operation.outputs[0]]):
                yield _kernel(graph, between, num_parts, plan_item_bytes)
                between = []
    if any(each.flops for each in between):
        yield _kernel(graph, between, num_parts, plan_item_bytes)


def _kernel(graph: Graph, operations: Sequence[Operation], num_parts: int, plan_item_bytes: int) -> Kernel:
    inside = {operation.id for operation in operations}
    roots = buffer_roots(graph)
    made = {roots.get(value, value) for operation in operations for value in operation.outputs}
    outside = [value for each in graph.operations if each.id not in inside for value in each.inputs]
    later = {roots.get(value, value) for value in (*outside, *graph.outputs)}
    read = {roots.get(value, value) for operation in operations for value in operation.inputs} - made
    values = [graph.values[value] for value in (*read, *(made & later))]
    moved = sum(value.num_elements * min(item_bytes(value.dtype), plan_item_bytes) for value in values)
    if operations[0].name in _WRITERS:
        moved = operations[0].bytes_read + operations[0].bytes_written
    flops = sum(operation.flops for operation in operations)
    products = sum(operation.product_flops for operation in operations)
    return Kernel(flops / num_parts, products / num_parts, moved / num_parts)
