"""Checks a sharding against its definition, and by running it.

Shares no code with the solver. `check_sharding` holds the layouts against the rules; `verify_sharding` compiles the
sharded program for this machine's devices, compares its results with those of the unsharded one, and its collectives
with the ones that were predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array

from ...errors import VerificationError
from ..apply import input_shardings, predicted_collectives, sharded_function
from ..cut import cut
from ..jaxpr_reader import FlatEquation
from ..mesh import Layout, Mesh
from ..ops.sharding.rules import derive
from ..partition.plan import OperationSharding, Sharding
from ..target import Network
from ..trace import Traced
from .hlo import UNMERGED, collectives_in

__all__ = ["COMPILER_OPTIONS", "CollectiveCounts", "Verification", "check_sharding", "verify_sharding"]

# XLA would merge what the plan has apart, and what a function computes twice.
COMPILER_OPTIONS: dict[str, str | bool] = dict(UNMERGED)

CollectiveCounts: TypeAlias = dict[tuple[str, int], int]  # how many of each (kind, elements of a device's result)


@dataclass(frozen=True)
class Verification:
    """What running a sharded program showed."""

    difference: float  # largest |difference| of a result over that result's largest |value|
    smallest: float  # of the results' largest |values|; 0 if a result is all zeros and so shows nothing
    predicted: CollectiveCounts
    compiled: CollectiveCounts
    worst: int = 0  # position of the result that differs most

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
    if not all(0 <= value < len(graph.values) for value in sharding.shared):
        raise VerificationError(f"{graph.name}: a layout is shared by readers of a value that is not there")
    if set(sharding.constants) != {value.id for value in graph.values if value.kind == "constant"}:
        raise VerificationError(f"{graph.name}: the sharding has layouts of other constants than the graph's")
    for number, (flat, division) in enumerate(zip(traced.equations, sharding.operations, strict=True)):
        _check_division(flat, division, f"{graph.name}: operation {number} ({graph.operations[number].name})")
    pairs = [*zip(graph.inputs, sharding.inputs, strict=True), *sharding.shared.items()]
    pairs += zip(graph.outputs, sharding.outputs, strict=True)
    pairs += sharding.constants.items()
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


def _check_division(flat: FlatEquation, division: OperationSharding, where: str) -> None:
    """Checks that the layouts of an operation are those that its rule has for the axes of its factors."""
    rule = derive(flat.equation)
    counts = (len(division.axes), len(division.operands), len(division.results))
    if counts != (len(rule.sizes), len(rule.operands), len(rule.results)):
        raise VerificationError(f"{where} has another number of factors, operands or results: {counts}")
    held = [*zip(rule.operands, division.operands, strict=True), *zip(rule.results, division.results, strict=True)]
    for access, layout in held:
        wanted = rule.layout(access, division.axes)
        passed = set(layout.partial) - set(wanted.partial)
        if layout.dims != wanted.dims or not passed <= {(axis, "sum") for axis in division.passed}:
            raise VerificationError(f"{where} cannot have an operand or a result in layout {layout}")
    for axis in division.passed:
        zeros = {
            i for i, operand in enumerate(flat.operands) if not isinstance(operand, int) and not np.any(operand.val)
        }
        summed = {i for i, layout in enumerate(division.operands) if (axis, "sum") in layout.partial}
        if summed - zeros not in [each - zeros for each in rule.linear]:
            raise VerificationError(f"{where} does not pass on partial sums of its operands {sorted(summed)}")


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


def verify_sharding(
    traced: Traced,
    sharding: Sharding,
    arguments: Sequence[Array],
    network: Network,
    *,
    points: Sequence[int] | None = None,
) -> Verification:
    """Runs a sharded program and the unsharded one.

    Args:
        traced: The graph.
        sharding: How it is divided; its devices must be there.
        arguments: Flat inputs of the graph.
        network: That the reshards were chosen for.
        points: Operations before which pipeline stages begin, from 0 to their number; by default there is one stage.
            Each stage is a program of its own on devices of its own, and what it gives is copied to the next ones'.

    Raises:
        VerificationError: if the sharding breaks its definition, or an integer result differs.
        ConfigurationError: if this process has too few devices.
    """
    check_sharding(traced, sharding)
    graph, num_devices = traced.graph, sharding.mesh.num_devices
    stages = [(traced, sharding)]
    if points is not None and len(points) > 2:
        stages = [(stage.traced, stage.sharding or sharding) for stage in cut(traced, points, sharding)]
    values = dict(zip(graph.inputs, arguments, strict=True))
    predicted: Counter[tuple[str, int]] = Counter()
    compiled: Counter[tuple[str, int]] = Counter()
    for number, (stage, own) in enumerate(stages):
        run, sent = _compiled(
            stage, own, [values[value] for value in stage.graph.inputs], network, number * num_devices
        )
        compiled += sent
        predicted.update(
            (each.collective.kind, each.collective.elements) for each in predicted_collectives(stage, own, network)
        )
        values.update(zip(stage.graph.outputs, run(), strict=True))
    expected = jax.jit(jaxpr_as_fun(traced.jaxpr))(*arguments)
    difference, smallest, worst = _compared(traced, [values[value] for value in graph.outputs], expected)
    return Verification(difference, smallest, dict(predicted), dict(compiled), worst)


def _compiled(
    traced: Traced, sharding: Sharding, arguments: Sequence[Array], network: Network, first_device: int
) -> tuple[Callable[[], list[Array]], Counter[tuple[str, int]]]:
    """Compiles one stage; returns what runs it, and the collectives in its program."""
    shardings = input_shardings(sharding, first_device=first_device)
    function = sharded_function(traced, sharding, network, first_device=first_device)
    shapes = [
        jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=place)
        for value, place in zip(arguments, shardings, strict=True)
    ]
    compiled = jax.jit(function, in_shardings=shardings).lower(*shapes).compile(compiler_options=COMPILER_OPTIONS)
    counts: Counter[tuple[str, int]] = Counter()
    for found in collectives_in(compiled.as_text() or ""):
        counts[found.kind, found.elements] += found.count or 1

    def run() -> list[Array]:
        return compiled(*(jax.device_put(value, place) for value, place in zip(arguments, shardings, strict=True)))

    return run, counts


def _compared(traced: Traced, results: Sequence[Array], expected: Sequence[Array]) -> tuple[float, float, int]:
    """Returns the largest relative difference of a result, the smallest scale of one, and which differs most."""
    worst, smallest, most = 0.0, float("inf"), 0
    for position, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key):
            result, wanted = jax.random.key_data(result), jax.random.key_data(wanted)
        have, want = np.asarray(result), np.asarray(wanted)
        if not jnp.issubdtype(want.dtype, jnp.inexact):
            if not np.array_equal(have, want):
                raise VerificationError(f"{traced.graph.name}: result {position} differs from the unsharded one")
        elif want.size:
            difference, scale = _difference(have, want)
            smallest = min(smallest, scale)
            relative = difference / max(scale, float(jnp.finfo(want.dtype).tiny))
            worst, most = max((worst, most), (relative, position), key=lambda pair: pair[0])
    return worst, smallest, most


def _difference(have: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """Returns the largest |difference| and the largest finite |value|; what is not finite must be the same."""
    wide = np.complex128 if np.iscomplexobj(want) else np.float64
    have, want = have.astype(wide), want.astype(wide)
    finite = np.isfinite(want)
    if not np.array_equal(have[~finite], want[~finite], equal_nan=True):
        return float("inf"), 0.0
    if not finite.any():
        return 0.0, float("inf")
    return float(np.max(np.abs(have[finite] - want[finite]))), float(np.max(np.abs(want[finite])))
