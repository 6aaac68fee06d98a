"""One pipeline stage of a traced graph: a stretch of its operations as a graph of its own.

Comes in: a `Traced`, perhaps with its `Sharding`, and where to cut. Goes out: the same for one stage, value ids kept:
its inputs are those inputs of the whole that it reads and the values that earlier stages hand it; its outputs what it
hands to later stages, and those outputs of the whole that it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .graph import Graph, Operation
from .mesh import Layout
from .partition.plan import Sharding
from .trace import Traced

__all__ = ["StageCut", "cut", "one_stage"]


@dataclass(frozen=True)
class StageCut:
    """One stage."""

    traced: Traced  # graph, equations and constants are the stage's own; the jaxpr is that of the whole
    sharding: Sharding | None  # None if the stage runs on one device
    takes: tuple[int, ...]  # values that earlier stages hand it
    gives: tuple[int, ...]  # values that it hands to later stages, then the result of the whole if it makes that


def one_stage(traced: Traced, sharding: Sharding | None = None) -> StageCut:
    """Returns the whole as one stage."""
    (stage,) = cut(traced, (0, len(traced.graph.operations)), sharding)
    return stage


def cut(traced: Traced, points: Sequence[int], sharding: Sharding | None = None) -> tuple[StageCut, ...]:
    """Returns the stages between consecutive points.

    Args:
        traced: A graph whose first output is its result; the others are caches that it updates.
        points: Operations before which to cut, from 0 to their number.
        sharding: How the whole is divided over one stage's devices; None for stages of one device each.
    """
    return tuple(_stage(traced, begin, end, sharding) for begin, end in pairwise(points))


def _stage(traced: Traced, begin: int, end: int, sharding: Sharding | None) -> StageCut:
    graph = traced.graph
    result, *caches = graph.outputs
    operations = graph.operations[begin:end]
    made = {value for operation in operations for value in operation.outputs}
    read = _values_read(operations)
    takes = tuple(sorted(value for value in read - made - set(graph.inputs) if value not in traced.constants))
    read_later = _values_read(graph.operations[end:])
    handed_on = sorted(value for value in made & read_later if value != result)
    gives = (*handed_on, *((result,) if result in made else ()))
    idle = () if begin else set(graph.inputs) - _values_read(graph.operations)  # nobody reads them: the first has them
    inputs = (*(value for value in graph.inputs if value in read or value in idle), *takes)
    outputs = (*gives, *(value for value in caches if value in made))
    reads = dict(zip(graph.inputs, graph.input_bytes_read, strict=True))
    part = Graph(
        graph.name,
        tuple(replace(value, kind="input") if value.id in takes else value for value in graph.values),
        tuple(replace(operation, id=number) for number, operation in enumerate(operations)),
        inputs,
        outputs,
        input_bytes_read=tuple(reads.get(value, graph.values[value].bytes) for value in inputs),
    )
    stage = replace(
        traced,
        graph=part,
        equations=traced.equations[begin:end],
        constants={value: content for value, content in traced.constants.items() if value in read},
    )
    return StageCut(stage, _stage_sharding(graph, part, sharding, begin, end), takes, gives)


def _values_read(operations: Sequence[Operation]) -> set[int]:
    return {value for operation in operations for value in operation.inputs}


def _stage_sharding(graph: Graph, part: Graph, sharding: Sharding | None, begin: int, end: int) -> Sharding | None:
    """Returns the part of a sharding that is a stage's; what is handed over is complete, never a partial result."""
    if sharding is None:
        return None
    kept = sharding.layouts(graph)
    layouts = dict(zip(graph.inputs, sharding.inputs, strict=True))
    final = dict(zip(graph.outputs, sharding.outputs, strict=True))
    handed = {value for value in part.inputs if value not in layouts}
    return Sharding(
        mesh=sharding.mesh,
        inputs=tuple(layouts[value] if value in layouts else Layout(kept[value].dims) for value in part.inputs),
        constants=sharding.constants,
        operations=sharding.operations[begin:end],
        shared={value: layout for value, layout in sharding.shared.items() if value not in handed},
        outputs=tuple(final[value] if value in final else Layout(kept[value].dims) for value in part.outputs),
    )
