"""The memory plan of one graph: bytes of weights, optimizer state, caches, inputs, results and temporaries.

Comes in: a graph. Goes out: a `MemoryPlan`. An intermediate is live from the operation that makes it up to, not
including, the operation after its last use: the half-open range [made, last use + 1). Buffers, not values, are
counted: a view is its operand's buffer, and an update (a new token's keys in a cache, a weight in training) is written
into its operand's buffer if nothing reads the old content afterwards and the buffer is no input's and no constant's;
else it is a copy.
Inside a named op nothing is counted, its internals stay on chip. A loop adds what its body needs at its own peak, the
new state included, which exists beside the old; a branch writes its results where the operation's results are.

`verify.memory.verify_memory_plan` checks a plan from this definition.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import pydantic

from ...errors import ConfigurationError
from ..graph import Graph, Operation, ValueKind
from ..trace import Traced

__all__ = ["LiveValue", "MemoryPlan", "plan_memory"]

_NUM_LARGEST = 5
_KEPT: tuple[ValueKind, ...] = ("parameter", "state", "cache")  # what a step is given to update

_STRICT = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class LiveValue:
    """An intermediate that is live at the peak."""

    __pydantic_config__ = _STRICT

    value: int | None  # id; None for what the body of a loop or branch needs
    bytes: int
    operation: str  # name of the operation that makes it
    path: str


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one execution of a graph needs."""

    __pydantic_config__ = _STRICT

    name: str  # of the graph
    parameter_bytes: int
    state_bytes: int  # of an optimizer
    cache_bytes: int
    input_bytes: int
    constant_bytes: int
    output_bytes: int  # results that are not parameters, state or caches updated in place
    rewritten_bytes: int  # parameters and state that are updated in place; counted above already
    temporary_bytes: int  # most bytes of intermediates that are live at once; results are not among them
    peak_operation: int | None  # id of the first operation at which that is so; None if there are no operations
    peak_name: str  # and its name
    largest: tuple[LiveValue, ...]  # the largest intermediates that are live there, largest first

    @property
    def total_bytes(self) -> int:
        """All of it."""
        held = self.parameter_bytes + self.state_bytes + self.cache_bytes + self.input_bytes + self.constant_bytes
        return held + self.output_bytes + self.temporary_bytes

    def as_text(self) -> str:
        """Returns a table of the bytes, and what is live at the peak."""
        kinds = ("parameter", "state", "cache", "input", "constant", "output", "temporary", "total")
        lines = [f"{kind:<10} {getattr(self, f'{kind}_bytes'):>20,} bytes" for kind in kinds]
        if self.peak_operation is not None:
            lines.append(f"temporaries peak at operation {self.peak_operation} ({self.peak_name}):")
        lines += [f"  {live.bytes:>18,} bytes  {live.operation}  {live.path}".rstrip() for live in self.largest]
        return "\n".join([f"memory of {self.name}", *lines]) + "\n"

    def to_json(self) -> str:
        """Returns the plan as JSON text."""
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> MemoryPlan:
        """Reads what `to_json` wrote.

        Raises:
            ConfigurationError: if it is no memory plan; the message says where it departs from one.
        """
        try:
            return _adapter().validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "top level"
            raise ConfigurationError(f"not a plait memory plan: {where}: {first['msg']}") from None


@functools.cache
def _adapter() -> pydantic.TypeAdapter[MemoryPlan]:
    return pydantic.TypeAdapter(MemoryPlan)


def plan_memory(traced: Traced | Graph) -> MemoryPlan:
    """Plans the memory of a graph.

    Returns:
        Bytes by what they are for. Parameters, caches, inputs and constants are counted whether used or not.
    """
    graph = traced if isinstance(traced, Graph) else traced.graph
    owners = _owners(graph)
    results = {owners[value] for value in graph.outputs}
    ranges = {buffer: span for buffer, span in _live_ranges(graph, owners).items() if buffer not in results}
    returned = Counter[ValueKind]()
    for value in graph.outputs:
        returned[graph.values[owners[value]].kind] += graph.values[value].bytes
    loads = _loads(graph, ranges)
    peak = loads.index(max(loads)) if loads else None
    given = [*(graph.values[value] for value in graph.inputs), *(v for v in graph.values if v.kind == "constant")]
    by_kind = Counter[ValueKind]()
    for value in given:
        by_kind[value.kind] += value.bytes
    return MemoryPlan(
        name=graph.name,
        parameter_bytes=by_kind["parameter"],
        state_bytes=by_kind["state"],
        cache_bytes=by_kind["cache"],
        input_bytes=by_kind["input"],
        constant_bytes=by_kind["constant"],
        output_bytes=sum(num_bytes for kind, num_bytes in returned.items() if kind not in _KEPT),
        rewritten_bytes=returned["parameter"] + returned["state"],
        temporary_bytes=max(loads, default=0),
        peak_operation=peak,
        peak_name="" if peak is None else graph.operations[peak].name,
        largest=() if peak is None else _largest(graph, ranges, peak),
    )


def _owners(graph: Graph) -> list[int]:
    """Returns, for each value, the value that owns its buffer."""
    owners = list(range(len(graph.values)))
    last_use = _last_uses(graph)
    needed_until = list(last_use)  # by owner: last use of any value in its buffer
    for operation in graph.operations:
        pairs = [(operation.outputs[0], operation.inputs[0])] if operation.is_view else operation.updates
        for output, operand in pairs:
            owner = owners[operand]
            kind = graph.values[owner].kind
            is_writable = (kind == "intermediate" or kind in _KEPT) and needed_until[owner] <= operation.id
            if operation.is_view or is_writable:
                owners[output] = owner
                # At least one past the operation, so that a second update of the same operation makes a copy.
                needed_until[owner] = max(needed_until[owner], last_use[output], operation.id + (not operation.is_view))
    return owners


def _last_uses(graph: Graph) -> list[int]:
    """Returns, for each value, the last operation that reads it; past the last one for results, -1 for unused ones."""
    last_use = [-1] * len(graph.values)
    for operation in graph.operations:
        for value in operation.inputs:
            last_use[value] = operation.id
    for value in graph.outputs:
        last_use[value] = len(graph.operations)
    return last_use


def _live_ranges(graph: Graph, owners: list[int]) -> dict[int, tuple[int, int]]:
    """Returns the half-open range of operations at which each buffer made by an operation is live."""
    last_use = _last_uses(graph)
    ranges: dict[int, tuple[int, int]] = {}
    for operation in graph.operations:
        for value in operation.outputs:
            end = max(last_use[value], operation.id) + 1
            owner = owners[value]
            if owner == value:
                ranges[value] = (operation.id, end)
            elif owner in ranges:
                begin, old_end = ranges[owner]
                ranges[owner] = (begin, max(old_end, end))
    return ranges


def _loads(graph: Graph, ranges: dict[int, tuple[int, int]]) -> list[int]:
    """Returns the live bytes at each operation."""
    changes = [0] * (len(graph.operations) + 2)
    for buffer, (begin, end) in ranges.items():
        changes[begin] += graph.values[buffer].bytes
        changes[min(end, len(graph.operations))] -= graph.values[buffer].bytes
    return [
        load + _body_bytes(operation) for load, operation in zip(accumulate(changes), graph.operations, strict=False)
    ]


def _body_bytes(operation: Operation) -> int:
    """Most bytes that the bodies of an operation need at once, on all shards."""
    peaks = (_body_peak(body, is_loop=operation.trip_count is not None) for body in operation.body)
    return int(operation.options.get("shards", 1)) * max(peaks, default=0)


def _body_peak(body: Graph, *, is_loop: bool) -> int:
    owners = _owners(body)
    ranges = _live_ranges(body, owners)
    if not is_loop:
        results = {owners[value] for value in body.outputs}
        ranges = {buffer: span for buffer, span in ranges.items() if buffer not in results}
    return max(_loads(body, ranges), default=0)


def _largest(graph: Graph, ranges: dict[int, tuple[int, int]], peak: int) -> tuple[LiveValue, ...]:
    live = sorted(_live_values(graph, ranges, peak), key=lambda value: -value.bytes)
    return tuple(live[:_NUM_LARGEST])


def _live_values(graph: Graph, ranges: dict[int, tuple[int, int]], peak: int) -> Iterator[LiveValue]:
    for buffer, (begin, end) in ranges.items():
        if begin <= peak < end:
            maker = graph.operations[begin]
            yield LiveValue(buffer, graph.values[buffer].bytes, maker.name, maker.path)
    operation = graph.operations[peak]
    if num_bytes := _body_bytes(operation):
        yield LiveValue(None, num_bytes, f"body of {operation.name}", operation.path)
