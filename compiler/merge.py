"""Products that share their input, as one: their weights are stored one after the other, as one tensor.

On a CPU every product is a library call that takes both cores, and two that run side by side hinder each other: query,
key and value as one product, and gate and up, halve the time of a decode step. The graph stays as it is; what changes
is the form in which the weights are stored, and that each of the products is a slice of the merged one, which XLA then
computes once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from .graph import Graph, Operation

__all__ = ["Merge", "MergedPart", "find_merges", "merge_specs", "merge_tensors"]


@dataclass(frozen=True)
class Merge:
    """Parameters that are stored as one, along their first dimension."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]  # of their first dimensions

    @property
    def name(self) -> str:
        """Of the tensor that holds them all."""
        return "+".join(self.names)

    def parts(self, whole: jax.Array) -> dict[str, MergedPart]:
        """Returns the parameters, as parts of the tensor."""
        ends = np.cumsum(self.sizes).tolist()
        return {
            name: MergedPart(whole, end - size, end)
            for name, size, end in zip(self.names, self.sizes, ends, strict=True)
        }


@dataclass(frozen=True)
class MergedPart:
    """A parameter as a slice of the tensor that holds it and others; only `linear` can look into it."""

    whole: jax.Array
    begin: int
    end: int


def find_merges(graph: Graph) -> tuple[Merge, ...]:
    """Returns the weights, scales and biases of all products that share their input and that nothing else uses.

    Weights are dense, or stored as `int8`, whose scales are of a row each.
    """
    uses = Counter(value for operation in graph.operations for value in operation.inputs)
    sharing: dict[tuple[object, ...], list[Operation]] = defaultdict(list)
    for operation in graph.operations:
        if operation.name != "linear" or operation.options.get("form", "int8") != "int8":
            continue
        x, *parameters = operation.inputs
        values = [graph.values[parameter] for parameter in parameters]
        if all(value.kind == "parameter" and uses[value.id] == 1 for value in values):
            forms = tuple((value.dtype, value.shape[1:]) for value in values)
            sharing[x, forms].append(operation)
    merges: list[Merge] = []
    for operations in sharing.values():
        if len(operations) > 1:
            columns = zip(*(operation.inputs[1:] for operation in operations), strict=True)
            merges += [_merge(graph, column) for column in columns]
    return tuple(merges)


def merge_specs(
    specs: Mapping[str, tuple[tuple[int, ...], np.dtype]], merges: Sequence[Merge]
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shapes and types by name, of merged tensors in the place of their first parts."""
    first = {merge.names[0]: merge for merge in merges}
    later = {name for merge in merges for name in merge.names[1:]}
    merged: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for name, (shape, dtype) in specs.items():
        if name in first:
            merged[first[name].name] = ((sum(first[name].sizes), *shape[1:]), dtype)
        elif name not in later:
            merged[name] = (shape, dtype)
    return merged


def merge_tensors(
    tensors: Iterable[tuple[str, np.ndarray]], merges: Sequence[Merge]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields tensors as they come, merged ones when their last part has come."""
    merge_of = {name: merge for merge in merges for name in merge.names}
    waiting: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name, values in tensors:
        merge = merge_of.get(name)
        if merge is None:
            yield name, values
            continue
        parts = waiting[merge.name]
        parts[name] = values
        if len(parts) == len(merge.names):
            yield merge.name, np.concatenate([parts[part] for part in merge.names])
            del waiting[merge.name]


def _merge(graph: Graph, parameters: Sequence[int]) -> Merge:
    values = [graph.values[parameter] for parameter in parameters]
    return Merge(tuple(value.name for value in values), tuple(value.shape[0] for value in values))
