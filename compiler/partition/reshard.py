"""Reshards: how an array gets from one layout to another, by the cheapest sequence of steps.

The steps act on the minor axes of a dim: `slice` divides a dim over a further axis, each device keeping its part
(free); `all_gather` takes axes off a dim; `all_to_all` moves an axis from one dim to another; `all_reduce` finishes a
partial result, `reduce_scatter` finishes it and divides a dim; `mask` makes a whole array a partial sum (free);
`permute` exchanges two axes of the same size, each device taking the part of another.

The sequence is a shortest path over layouts in which a dim's axes are in the order of the mesh. A gather of several
axes off one dim, or an all-reduce over several axes, is one collective. Ties go to fewer steps.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy import sparse
from scipy.sparse import csgraph

from ..graph import item_bytes
from ..mesh import Collective, Layout, Mesh, Reduction
from ..target import Network
from .network import collective_seconds

__all__ = ["Step", "StepKind", "apply", "collectives", "matrix", "seconds", "steps"]

StepKind: TypeAlias = Literal["slice", "mask", "all_gather", "all_to_all", "all_reduce", "reduce_scatter", "permute"]


@dataclass(frozen=True)
class Step:
    """One step of a reshard, and the layout after it."""

    kind: StepKind
    axes: tuple[str, ...]  # of the mesh, major to minor; of a permute those whose places change
    after: Layout
    dim: int = -1  # that is divided, gathered or left
    to_dim: int = -1  # of an all_to_all: that is divided after
    reduction: Reduction = "sum"


_SUM, _NONE = -2, -1  # what a mesh axis does to an array, if it does not divide a dim
_State: TypeAlias = tuple[int, ...]  # of each mesh axis: the dim that it divides, or one of these two
_STEP_SECONDS = 1e-13  # of a step that is free: ties go to fewer steps


def steps(
    shape: tuple[int, ...], dtype: str, source: Layout, target: Layout, mesh: Mesh, network: Network
) -> tuple[Step, ...] | None:
    """Returns the cheapest steps from one layout to another, or None if there are none.

    Args:
        shape: Of the global array.
        dtype: Of its elements.
        source: Layout that it has.
        target: Layout that is wanted.
        mesh: The devices.
        network: What collectives cost.
    """
    if source == target:
        return ()
    first, source = _without_extremes(source, target)
    graph, distances, before = _paths(shape, item_bytes(dtype), mesh, _Hashed(network))
    begin, end = graph.number(source), graph.number(target)
    if begin is None or end is None or not np.isfinite(distances[begin, end]):
        return None
    backwards: list[Step] = []
    while end != begin:
        previous = int(before[begin, end])
        backwards.append(graph.steps[previous, end])
        end = previous
    return (*first, *reversed(backwards))


def seconds(shape: tuple[int, ...], dtype: str, source: Layout, target: Layout, mesh: Mesh, network: Network) -> float:
    """Returns the time of the cheapest steps from one layout to another; infinite if there are none."""
    return float(matrix(shape, dtype, (source,), (target,), mesh, network)[0, 0])


def matrix(
    shape: tuple[int, ...],
    dtype: str,
    sources: Sequence[Layout],
    targets: Sequence[Layout],
    mesh: Mesh,
    network: Network,
) -> np.ndarray:
    """Returns the seconds from each of some layouts to each of others, [sources, targets]; inf if there is no way."""
    size = item_bytes(dtype)
    graph, distances, _ = _paths(shape, size, mesh, _Hashed(network))
    out = np.full((len(sources), len(targets)), math.inf)
    ends = [graph.number(target) for target in targets]
    columns = [column for column, end in enumerate(ends) if end is not None]
    numbers = [end for end in ends if end is not None]
    for row, source in enumerate(sources):
        first, rest = _without_extremes(source, None)
        if (begin := graph.number(rest)) is not None:
            done = collectives(first, shape, dtype, mesh)
            out[row, columns] = distances[begin, numbers] + sum(
                collective_seconds(c.kind, c.bytes, c.num_devices, network) for c in done
            )
        out[row, [column for column, target in enumerate(targets) if target == source]] = 0.0
    out[out < 100 * _STEP_SECONDS] = 0.0
    return out


def collectives(sequence: Sequence[Step], shape: tuple[int, ...], dtype: str, mesh: Mesh) -> tuple[Collective, ...]:
    """Returns the collectives of some steps, as one device sees them."""
    found: list[Collective] = []
    for step in sequence:
        if step.kind != "slice" and step.kind != "mask":
            elements = math.prod(step.after.local_shape(shape, mesh))
            if elements:  # of an empty array nothing is sent
                found.append(Collective(step.kind, step.axes, mesh.num_shards(step.axes), elements, dtype))
    return tuple(found)


def apply(array: Array, sequence: Sequence[Step], mesh: Mesh) -> Array:
    """Carries out steps on one device's part of an array; only inside `shard_map`."""
    for step in sequence:
        array = _APPLY[step.kind](array, step, mesh)
    return array


def _slice(array: Array, step: Step, mesh: Mesh) -> Array:
    size = array.shape[step.dim] // mesh.num_shards(step.axes)
    return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(step.axes) * size, size, step.dim)


def _mask(array: Array, step: Step, mesh: Mesh) -> Array:
    del mesh
    return jnp.where(jax.lax.axis_index(step.axes) == 0, array, jnp.zeros_like(array))


def _all_gather(array: Array, step: Step, mesh: Mesh) -> Array:
    del mesh
    return jax.lax.all_gather(array, step.axes, axis=step.dim, tiled=True)


def _all_to_all(array: Array, step: Step, mesh: Mesh) -> Array:
    del mesh
    return jax.lax.all_to_all(array, step.axes, split_axis=step.to_dim, concat_axis=step.dim, tiled=True)


def _all_reduce(array: Array, step: Step, mesh: Mesh) -> Array:
    del mesh
    return {"sum": jax.lax.psum, "max": jax.lax.pmax, "min": jax.lax.pmin}[step.reduction](array, step.axes)


def _reduce_scatter(array: Array, step: Step, mesh: Mesh) -> Array:
    del mesh
    return jax.lax.psum_scatter(array, step.axes, scatter_dimension=step.dim, tiled=True)


def _permute(array: Array, step: Step, mesh: Mesh) -> Array:
    size = mesh.shape[step.axes[0]]
    pairs = [(i * size + j, j * size + i) for i in range(size) for j in range(size)]
    return jax.lax.ppermute(array, step.axes, pairs)


_APPLY: MappingProxyType[StepKind, Callable[[Array, Step, Mesh], Array]] = MappingProxyType(
    {
        "slice": _slice,
        "mask": _mask,
        "all_gather": _all_gather,
        "all_to_all": _all_to_all,
        "all_reduce": _all_reduce,
        "reduce_scatter": _reduce_scatter,
        "permute": _permute,
    }
)


def _without_extremes(source: Layout, target: Layout | None) -> tuple[tuple[Step, ...], Layout]:
    """Finishes partial maxima and minima, which no other step knows of; returns the steps and the layout after."""
    first: list[Step] = []
    for reduction in ("max", "min"):
        axes = tuple(axis for axis, how in source.partial if how == reduction)
        if axes and source != target:
            source = Layout(source.dims, tuple(pair for pair in source.partial if pair[1] != reduction))
            first.append(Step("all_reduce", axes, source, reduction=reduction))
    return tuple(first), source


@dataclass(frozen=True)
class _LayoutGraph:
    """All layouts of arrays of one rank over a mesh, and the steps between them."""

    numbers: dict[Layout, int]
    steps: dict[tuple[int, int], Step]
    begins: np.ndarray  # of each step, the layout before
    ends: np.ndarray
    parts: np.ndarray  # of each layout, into how many parts it divides each dim: [layouts, rank]
    latency_seconds: np.ndarray  # of each step
    seconds_per_byte: np.ndarray  # of each step, by the bytes of the global array

    def number(self, layout: Layout) -> int | None:
        """Returns the number of a layout, or None if its axes are not in the order of the mesh."""
        return self.numbers.get(layout)


class _Hashed:
    """A network as a key: equal networks are one."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.text = repr(network)

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.text == other.text


@functools.lru_cache(maxsize=4096)
def _paths(
    shape: tuple[int, ...], item_bytes: int, mesh: Mesh, network: _Hashed
) -> tuple[_LayoutGraph, np.ndarray, np.ndarray]:
    """Returns the layouts, the seconds between any two, and on the way from one to each other the one before it."""
    graph = _layout_graph(len(shape), mesh, network)
    costs = graph.latency_seconds + graph.seconds_per_byte * math.prod(shape) * item_bytes
    fits = (np.array(shape, np.int64) % graph.parts == 0).all(axis=1)
    is_possible = fits[graph.begins] & fits[graph.ends]
    size = len(graph.numbers)
    weights = sparse.csr_matrix(
        (costs[is_possible], (graph.begins[is_possible], graph.ends[is_possible])), shape=(size, size)
    )
    distances, before = csgraph.dijkstra(weights, return_predecessors=True)
    distances[~fits] = math.inf
    return graph, distances, before


@functools.lru_cache(maxsize=256)
def _layout_graph(rank: int, mesh: Mesh, network: _Hashed) -> _LayoutGraph:
    states = list(itertools.product((_SUM, _NONE, *range(rank)), repeat=len(mesh.axes)))
    layouts = {state: _layout(state, rank, mesh) for state in states}
    numbers = {layouts[state]: i for i, state in enumerate(states)}
    parts = np.array([[mesh.num_shards(axes) for axes in layout.dims] for layout in layouts.values()], np.int64)
    found: dict[tuple[int, int], Step] = {}
    for state in states:
        for kind, axes, after, dim, to_dim in _moves(state, rank, mesh):
            step = Step(kind, axes, layouts[after], dim, to_dim)
            found[numbers[layouts[state]], numbers[layouts[after]]] = step
    begins = np.array([begin for begin, _ in found], np.int64)
    ends = np.array([end for _, end in found], np.int64)
    held = 1.0 / parts.reshape(len(states), rank).prod(axis=1)  # share of the global array on one device
    larger = np.maximum(held[begins], held[ends]) if found else np.zeros(0)
    terms = [_latency_and_rate(step, mesh, network.network) for step in found.values()]
    latency = np.array([term[0] for term in terms]) + _STEP_SECONDS
    rate = np.array([term[1] for term in terms]) * larger
    return _LayoutGraph(numbers, found, begins, ends, parts.reshape(len(states), rank), latency, rate)


def _latency_and_rate(step: Step, mesh: Mesh, network: Network) -> tuple[float, float]:
    """Returns the seconds of a step for no bytes, and for each byte of the larger of operand and result."""
    if step.kind == "slice" or step.kind == "mask":
        return 0.0, 0.0
    num_devices = mesh.num_shards(step.axes)
    latency = collective_seconds(step.kind, 0, num_devices, network)
    return latency, collective_seconds(step.kind, 1, num_devices, network) - latency


def _layout(state: _State, rank: int, mesh: Mesh) -> Layout:
    dims = tuple(tuple(axis for axis, at in zip(mesh.axes, state, strict=True) if at == dim) for dim in range(rank))
    partial = tuple(sorted((axis, "sum") for axis, at in zip(mesh.axes, state, strict=True) if at == _SUM))
    return Layout(dims, partial)  # type: ignore[arg-type]


_Move: TypeAlias = tuple[StepKind, tuple[str, ...], _State, int, int]  # kind, axes, state after, dim, to_dim


def _moves(state: _State, rank: int, mesh: Mesh) -> Iterator[_Move]:
    """Yields the steps from a layout."""
    yield from _moves_of_dims(state, rank, mesh)
    partial = [axis for axis, at in enumerate(state) if at == _SUM]
    for count in range(1, len(partial) + 1):
        for axes in itertools.combinations(partial, count):
            yield "all_reduce", _names(axes, mesh), _changed(state, axes, _NONE), -1, -1
    for one, other in itertools.combinations(range(len(state)), 2):
        if mesh.sizes[one] == mesh.sizes[other] and _stays_in_order(state, one, other):
            exchanged = list(state)
            exchanged[one], exchanged[other] = state[other], state[one]
            yield "permute", _names([one, other], mesh), tuple(exchanged), -1, -1


def _changed(state: _State, axes: Sequence[int], to: int) -> _State:
    return tuple(to if axis in axes else at for axis, at in enumerate(state))


def _names(axes: Sequence[int], mesh: Mesh) -> tuple[str, ...]:
    return tuple(mesh.axes[axis] for axis in axes)


def _stays_in_order(state: _State, one: int, other: int) -> bool:
    """Whether two axes can be exchanged: they do not divide one dim, nor does an axis between them divide theirs."""
    dims = {at for at in (state[one], state[other]) if at >= 0}
    return bool(dims) and state[one] != state[other] and dims.isdisjoint(state[one + 1 : other])


def _moves_of_dims(state: _State, rank: int, mesh: Mesh) -> Iterator[_Move]:
    """Yields the steps that divide or gather dims; they act on a dim's minor axes."""
    of_dim = [[axis for axis, at in enumerate(state) if at == dim] for dim in range(rank)]
    last = [axes[-1] if axes else -1 for axes in of_dim]
    for dim, axes in enumerate(of_dim):
        for begin in range(len(axes)):
            yield "all_gather", _names(axes[begin:], mesh), _changed(state, axes[begin:], _NONE), dim, -1
        for to_dim in range(rank):
            if axes and to_dim != dim and last[to_dim] < axes[-1]:
                yield "all_to_all", _names(axes[-1:], mesh), _changed(state, axes[-1:], to_dim), dim, to_dim
    for axis, at in enumerate(state):
        for dim in range(rank):
            if at < 0 and last[dim] < axis:
                yield (
                    "slice" if at == _NONE else "reduce_scatter",
                    _names([axis], mesh),
                    _changed(state, [axis], dim),
                    dim,
                    -1,
                )
        if at == _NONE:
            yield "mask", _names([axis], mesh), _changed(state, [axis], _SUM), -1, -1
