"""The decisions of a plan, taken over to another graph of the same structure.

Two graphs of one model differ in the number of layers, in sizes, and in the type that is computed in. Operations
correspond by path, name and order, inputs by name; a layer of the one stands for a layer of the other. Casts between
the two types are in one of the graphs only. What is taken over is held against the other graph's rules afterwards, by
`partition.check_sharding`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from ...errors import VerificationError
from ..graph import Graph, Operation
from ..mesh import Layout, whole
from ..ops.sharding.rule import Rule
from ..ops.sharding.rules import derive
from ..partition.plan import OperationSharding, Sharding
from ..partition.skeleton import tied_outputs
from ..trace import Traced

__all__ = ["kept_layers", "transferred"]

_LAYER = re.compile(r"\b(layers|cache)\.(\d+)")
_CAST = "convert_element_type"


def kept_layers(traced: Traced, sharding: Sharding, points: Sequence[int]) -> tuple[int, ...]:
    """Returns the layers that show all that a plan decides: of each stretch that is repeated, two repetitions.

    Layers are alike that compute the same, are divided alike and are in the same stage.

    Args:
        traced: The planned graph.
        sharding: How it is divided.
        points: Operations before which stages begin, from 0 to their number.
    """
    signatures: dict[int, list[Hashable]] = {}
    graph = traced.graph
    stages = [sum(operation >= point for point in points) for operation in range(len(graph.operations))]
    layouts = dict(zip(graph.inputs, sharding.inputs, strict=True)) | sharding.shared
    for operation, division in zip(graph.operations, sharding.operations, strict=True):
        for layer in _layers(operation.path):
            values = (*operation.inputs, *operation.outputs)
            held = tuple((graph.values[value].shape, layouts.get(value)) for value in values)
            place = _LAYER.sub(r"\1.*", operation.path)
            options = tuple(sorted(operation.options.items()))
            about = (place, operation.name, options, division, held, stages[operation.id])
            signatures.setdefault(layer, []).append(about)
    numbers: dict[Hashable, int] = {}
    kinds = [numbers.setdefault(tuple(signatures[layer]), len(numbers)) for layer in sorted(signatures)]
    return tuple(sorted(signatures)[place] for place in _without_repeats(kinds))


def _layers(text: str) -> set[int]:
    return {int(number) for _, number in _LAYER.findall(text)}


def _without_repeats(kinds: Sequence[int]) -> list[int]:
    """Returns the places of a sequence that are left when of each repeated stretch only two repetitions are."""
    kept: list[int] = []
    place = 0
    while place < len(kinds):
        period, repetitions = max(
            ((period, _repetitions(kinds[place:], period)) for period in range(1, len(kinds) - place + 1)),
            key=lambda found: (found[0] * found[1] if found[1] > 1 else 1, -found[0]),
        )
        period = period if repetitions > 1 else 1
        kept += range(place, place + period * min(repetitions, 2))
        place += period * repetitions
    return kept


def _repetitions(kinds: Sequence[int], period: int) -> int:
    matching = 0
    while matching + period < len(kinds) and kinds[matching] == kinds[matching + period]:
        matching += 1
    return matching // period + 1


def transferred(
    traced: Traced, sharding: Sharding, points: Sequence[int], other: Traced, layers: Sequence[int], dtype: str
) -> tuple[Sharding, tuple[int, ...]]:
    """Returns a plan's decisions for another graph, and where its stages begin there.

    Args:
        traced: The planned graph.
        sharding: How it is divided.
        points: Operations before which its stages begin, from 0 to their number.
        other: The other graph.
        layers: For each layer of the other graph the one that it stands for.
        dtype: That the planned graph was traced in, if the other one was traced in f32; else "float32".

    Raises:
        VerificationError: if the graphs are not of the same structure.
    """
    graph = traced.graph
    casts = {operation.id for operation in graph.operations if _is_cast(graph, operation, dtype)}
    known = _operations(graph, casts, range(1 << 20))
    pairs: dict[int, int] = {}  # operation of the other graph -> planned one
    for key, operation in _operations(other.graph, set(), layers).items():
        if key not in known:
            raise VerificationError(f"{graph.name} has no operation like {key} of {other.graph.name}")
        pairs[operation] = known[key]
    if len(set(pairs.values())) < len(pairs):
        raise VerificationError(f"{other.graph.name} has other operations than {graph.name}")
    for operation in other.graph.operations:
        origin = pairs[operation.id]
        counts = [
            (len(each.operands), len(each.results))
            for each in (other.equations[operation.id], traced.equations[origin])
        ]
        if counts[0] != counts[1]:
            raise VerificationError(f"{operation.path}/{operation.name} has other operands or results in another type")
    operations = tuple(
        _division(derive(traced.equations[pairs[i]].equation), derive(flat.equation), sharding.operations[pairs[i]])
        for i, flat in enumerate(other.equations)
    )
    inputs = _inputs(graph, sharding, other.graph, layers)
    behind_cast = {operation.inputs[0]: operation.outputs[0] for operation in graph.operations if operation.id in casts}
    shared: dict[int, Layout] = {}
    for operation in other.graph.operations:
        for value, origin in zip(operation.outputs, graph.operations[pairs[operation.id]].outputs, strict=True):
            layout = sharding.shared.get(origin) or sharding.shared.get(behind_cast.get(origin, -1))
            if layout is not None:
                shared[value] = layout
    stages = [sum(pairs[i] >= point for point in points[1:-1]) for i in range(len(operations))]
    if stages != sorted(stages) or len(set(stages)) < len(points) - 1:
        raise VerificationError(f"{other.graph.name} does not have the stages of {graph.name}")
    return (
        Sharding(
            mesh=sharding.mesh,
            inputs=tuple(inputs[value] for value in other.graph.inputs),
            constants={v.id: whole(len(v.shape)) for v in other.graph.values if v.kind == "constant"},
            operations=operations,
            shared=shared,
            outputs=_outputs(graph, sharding, other.graph, inputs),
        ),
        (*(stages.index(stage) for stage in range(len(points) - 1)), len(operations)),
    )


def _is_cast(graph: Graph, operation: Operation, dtype: str) -> bool:
    types = {graph.values[value].dtype for value in (*operation.inputs, *operation.outputs)}
    return operation.name == _CAST and dtype != "float32" and types == {dtype, "float32"}


def _operations(graph: Graph, casts: set[int], layers: Sequence[int]) -> dict[Hashable, int]:
    """Returns operations by what they are known by: path, name, what they update, and a number among those."""
    seen: Counter[Hashable] = Counter()
    known: dict[Hashable, int] = {}
    updates = {graph.outputs[position]: graph.values[value].name for position, value in tied_outputs(graph).items()}
    for operation in graph.operations:
        if operation.id in casts:
            continue
        updated = tuple(_renumbered(updates[value], layers) for value in operation.outputs if value in updates)
        key = (_renumbered(operation.path, layers), operation.name, updated)
        known[(*key, seen[key])] = operation.id
        seen[key] += 1
    return known


def _renumbered(name: str, layers: Sequence[int]) -> str:
    return _LAYER.sub(lambda found: f"{found[1]}.{layers[int(found[2])]}", name)


def _inputs(graph: Graph, sharding: Sharding, other: Graph, layers: Sequence[int]) -> dict[int, Layout]:
    names = {graph.values[v].name: layout for v, layout in zip(graph.inputs, sharding.inputs, strict=True)}
    layouts: dict[int, Layout] = {}
    for value in other.inputs:
        name = _renumbered(other.values[value].name, layers)
        if name not in names:
            raise VerificationError(f"{graph.name} has no input {name}")
        layouts[value] = names[name]
    return layouts


def _outputs(graph: Graph, sharding: Sharding, other: Graph, inputs: Mapping[int, Layout]) -> tuple[Layout, ...]:
    """Returns the layouts of the outputs: of what is updated in place its own, of the others in their order."""
    tied, new = tied_outputs(graph), tied_outputs(other)
    free = [layout for position, layout in enumerate(sharding.outputs) if position not in tied]
    if len(free) != len(other.outputs) - len(new):
        raise VerificationError(f"{other.name} has other results than {graph.name}")
    rest = iter(free)
    return tuple(inputs[new[position]] if position in new else next(rest) for position in range(len(other.outputs)))


def _division(planned: Rule, rule: Rule, division: OperationSharding) -> OperationSharding:
    """Returns a division with its axes given to the factors of another graph's rule, found where they appear."""
    axes: dict[int, tuple[str, ...]] = {}
    accesses = [*zip(planned.operands, rule.operands, strict=False), *zip(planned.results, rule.results, strict=False)]
    for old, new in accesses:
        for old_dim, new_dim in zip(old.dims, new.dims, strict=False):
            for place, factor in enumerate(new_dim):
                if place < len(old_dim):
                    axes.setdefault(factor, division.axes[old_dim[place]])
    return replace(division, axes=tuple(axes.get(factor, ()) for factor in range(len(rule.sizes))))
