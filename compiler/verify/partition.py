"""Checks a sharding against its definition, and by running it.

Shares no code with the solver. `check_sharding` holds the layouts against the rules; `verify_sharding` compiles the
sharded program for this machine's devices, compares its results with those of the unsharded one, and its collectives
with the ones that were predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array

from ...errors import VerificationError
from ..apply import input_shardings, predicted_collectives, sharded_function
from ..mesh import Layout, Mesh
from ..partition.plan import Sharding
from ..target import Network
from ..trace import Traced
from .hlo import collectives_in

__all__ = ["COMPILER_OPTIONS", "CollectiveCounts", "Verification", "check_sharding", "verify_sharding"]

# XLA would merge what the plan has apart.
COMPILER_OPTIONS: dict[str, str | bool] = {
    "xla_disable_hlo_passes": "all-reduce-combiner,cpu-all-reduce-combiner,all-gather-combiner"
}

CollectiveCounts: TypeAlias = dict[tuple[str, int], int]  # how many of each (kind, elements of a device's result)


@dataclass(frozen=True)
class Verification:
    """What running a sharded program showed."""

    difference: float  # largest |difference| of a result over that result's largest |value|
    smallest: float  # of the results' largest |values|; 0 if a result is all zeros and so shows nothing
    predicted: CollectiveCounts
    compiled: CollectiveCounts

    @property
    def agrees(self) -> bool:
        """Whether the compiled program sends what was predicted, and nothing else."""
        return self.predicted == self.compiled

    @property
    def num_collectives(self) -> int:
        """Collectives in the compiled program."""
        return sum(self.compiled.values())


def check_sharding(traced: Traced, sharding: Sharding) -> None:
    """Checks that every layout can be had and that everything has one.

    Raises:
        VerificationError: if not; the message names the first value that is wrong.
    """
    graph, mesh = traced.graph, sharding.mesh
    counts = (len(sharding.inputs), len(sharding.operations), len(sharding.outputs))
    if counts != (len(graph.inputs), len(graph.operations), len(graph.outputs)):
        raise VerificationError(f"{graph.name}: the sharding is of another graph: {counts} inputs, operations, outputs")
    pairs = [*zip(graph.inputs, sharding.inputs, strict=True), *sharding.shared.items()]
    pairs += zip(graph.outputs, sharding.outputs, strict=True)
    for flat, division in zip(traced.equations, sharding.operations, strict=True):
        held = zip(flat.operands, division.operands, strict=True)
        pairs += [(operand, layout) for operand, layout in held if isinstance(operand, int)]
        pairs += zip(flat.results, division.results, strict=True)
    for value, layout in pairs:
        _check_layout(graph.values[value].shape, layout, mesh, f"{graph.name}: value {value}")
    for value, layout in (
        *zip(graph.inputs, sharding.inputs, strict=True),
        *zip(graph.outputs, sharding.outputs, strict=True),
    ):
        if layout.partial:
            raise VerificationError(f"{graph.name}: value {value} is partial where the program begins or ends")


def _check_layout(shape: tuple[int, ...], layout: Layout, mesh: Mesh, where: str) -> None:
    used = [*(axis for dim in layout.dims for axis in dim), *(axis for axis, _ in layout.partial)]
    if len(layout.dims) != len(shape) or len(set(used)) < len(used) or not set(used) <= set(mesh.axes):
        raise VerificationError(f"{where} {list(shape)} cannot have layout {layout} on {mesh}")
    for size, axes in zip(shape, layout.dims, strict=True):
        parts = 1
        for axis in axes:
            parts *= mesh.sizes[mesh.axes.index(axis)]
        if size % parts:
            raise VerificationError(f"{where} {list(shape)}: {size} does not divide over {'*'.join(axes)} of {mesh}")


def verify_sharding(traced: Traced, sharding: Sharding, arguments: Sequence[Array], network: Network) -> Verification:
    """Runs a sharded program and the unsharded one.

    Args:
        traced: The graph.
        sharding: How it is divided; its devices must be there.
        arguments: Flat inputs of the graph.
        network: That the reshards were chosen for.

    Raises:
        VerificationError: if the sharding breaks its definition, or an integer result differs.
        ConfigurationError: if this process has too few devices.
    """
    check_sharding(traced, sharding)
    shardings = input_shardings(sharding)
    function = jax.jit(sharded_function(traced, sharding, network), in_shardings=shardings)
    compiled = function.lower(*arguments).compile(compiler_options=COMPILER_OPTIONS)
    placed = [jax.device_put(value, place) for value, place in zip(arguments, shardings, strict=True)]
    results = compiled(*placed)
    expected = jax.jit(jaxpr_as_fun(traced.jaxpr))(*arguments)
    compiled_counts: Counter[tuple[str, int]] = Counter()
    for found in collectives_in(compiled.as_text() or ""):
        compiled_counts[found.kind, found.elements] += found.count or 1
    predicted = Counter(
        (planned.collective.kind, planned.collective.elements)
        for planned in predicted_collectives(traced, sharding, network)
    )
    difference, smallest = _compared(traced, results, expected)
    return Verification(difference, smallest, dict(predicted), dict(compiled_counts))


def _compared(traced: Traced, results: Sequence[Array], expected: Sequence[Array]) -> tuple[float, float]:
    """Returns the largest relative difference of a result, and the smallest scale of one."""
    worst, smallest = 0.0, float("inf")
    for position, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        have, want = np.asarray(result), np.asarray(wanted)
        if not np.issubdtype(want.dtype, np.inexact):
            if not np.array_equal(have, want):
                raise VerificationError(f"{traced.graph.name}: result {position} differs from the unsharded one")
        elif want.size:
            scale = float(np.max(np.abs(want)))
            smallest = min(smallest, scale)
            worst = max(worst, float(np.max(np.abs(have - want))) / max(scale, float(np.finfo(want.dtype).tiny)))
    return worst, smallest
