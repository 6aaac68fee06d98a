"""What joins caches in a step: keys and values of single heads, which a target may charge for one by one."""

from __future__ import annotations

from typing import TypeAlias

from ..graph import Graph, Operation
from ..mesh import Mesh
from .plan import OperationSharding

__all__ = ["CacheResults", "cache_results", "num_appended"]

CacheResults: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]  # position among an operation's results, and shape


def cache_results(graph: Graph, operation: Operation) -> CacheResults:
    """Returns the results of an operation that are a decoder's caches with something added.

    Those are (batch, context, heads, head); of what other functions keep, nothing is known.
    """
    values = graph.values
    written = [result for result, operand in operation.updates if values[operand].kind == "cache"]
    return tuple(
        (operation.outputs.index(result), values[result].shape) for result in written if len(values[result].shape) == 4
    )


def num_appended(results: CacheResults, division: OperationSharding, mesh: Mesh) -> float:
    """Returns how many keys and values of a head one device adds to caches, of all sequences but one."""
    count = 0.0
    for position, shape in results:
        batch, _, heads, _ = division.results[position].local_shape(shape, mesh)
        count += batch * heads * (1 - 1 / shape[0])
    return count
