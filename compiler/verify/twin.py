"""Verifying the plan of a compilation by running it on this machine's virtual devices.

A step that fits the machine is run as it is planned, but in f32, so that a difference is a defect and not a rounding;
only training in 16 bits, which keeps other values for the backward pass, is run in its own type.
Of a larger one a *narrow twin* is run: a few layers of each kind, in sizes of a few dozen, with the decisions of the
plan. Both show that the sharded program computes what the unsharded one does, and sends what was predicted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...errors import ConfigurationError, VerificationError
from ...models.config import ModelConfig
from ..apply import PlannedCollective, predicted_collectives
from ..configuration import Configuration
from ..graph import Graph
from ..partition.footprint import Footprints
from ..partition.plan import Sharding
from ..pipeline import Compilation
from ..trace import Traced, trace_model
from ..train import trace_training
from .inputs import random_inputs
from .narrow import narrowed
from .partition import Verification, check_sharding, verify_sharding
from .transfer import kept_layers, transferred

__all__ = ["MOST_BYTES", "MOST_FLOPS", "TOLERANCES", "PlanVerification", "verify_plan"]

# Of max|difference| / max|value| of a result, by the type that is run in; 16 bits round what is exchanged.
TOLERANCES: Mapping[str, float] = MappingProxyType({"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3})
MOST_BYTES = 4 << 30  # that a step may take on all virtual devices and once more unsharded
MOST_FLOPS = 2e11  # of a step

_DTYPE = "float32"


@dataclass(frozen=True)
class PlanVerification:
    """What running a plan, or its twin, showed."""

    is_twin: bool
    reason: str  # why a twin was run; empty if none was
    model: ModelConfig  # that was run
    configuration: Configuration
    dtype: str  # likewise
    layers: tuple[int, ...]  # of the planned model's layers those that were run
    num_devices: int  # of all stages
    num_stages: int
    seen: Verification
    wrong_result: str  # name of the result that differs most, with the operation that makes it
    wrong_collectives: tuple[str, ...]  # of which the program has another number than was predicted
    seconds: float

    @property
    def is_verified(self) -> bool:
        """Whether results are those of the unsharded step and collectives those that were predicted."""
        return self.seen.agrees and self.seen.difference <= self.tolerance and self.seen.smallest > 0

    @property
    def tolerance(self) -> float:
        """Largest difference that may be rounding."""
        return TOLERANCES[self.dtype]


def verify_plan(
    compilation: Compilation,
    *,
    is_twin: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> PlanVerification:
    """Runs a plan on virtual devices, which must be there (`executable.provide_devices`).

    Args:
        compilation: With its partition.
        is_twin: Whether to run a narrow twin though the step fits.
        progress: Told what is done.

    Raises:
        ConfigurationError: if nothing was partitioned, or this process has too few devices.
        VerificationError: if an integer result differs, or the plan has no twin.
    """
    plan = compilation.partition
    if plan is None:
        raise ConfigurationError("the plan divides nothing; compile it up to its stage 'partition'")
    begin = time.monotonic()
    traced = compilation.traced
    points = (*(stage.begin for stage in plan.stages), len(traced.graph.operations))
    reason = "it was asked for" if is_twin else _too_large(compilation)
    progress("tracing")
    made = _whole(compilation, points) if not reason else _twin(compilation, points)
    progress(f"running {made.traced.graph.name} on {plan.num_devices} virtual devices")
    network = compilation.target.network
    arguments = _arguments(made.traced.graph)
    seen = verify_sharding(made.traced, made.sharding, arguments, network, points=made.points)
    return PlanVerification(
        is_twin=bool(reason),
        reason=reason,
        model=made.model,
        configuration=made.configuration,
        dtype=made.dtype,
        layers=made.layers,
        num_devices=plan.num_devices,
        num_stages=len(plan.stages),
        seen=seen,
        wrong_result=_result_name(made.traced.graph, seen.worst),
        wrong_collectives=_wrong(seen, predicted_collectives(made.traced, made.sharding, network)),
        seconds=time.monotonic() - begin,
    )


@dataclass(frozen=True)
class _Made:
    """What is run."""

    model: ModelConfig
    configuration: Configuration
    dtype: str
    layers: tuple[int, ...]
    traced: Traced
    sharding: Sharding
    points: tuple[int, ...]


def _too_large(compilation: Compilation) -> str:
    """Says why a step is not run as it is, or nothing."""
    plan, graph = compilation.partition, compilation.traced.graph
    assert plan is not None
    if graph.flops > MOST_FLOPS:
        return f"a step takes {graph.flops:.2g} FLOPs, more than {MOST_FLOPS:.2g}"
    narrow = 1 if compilation.dtype == _DTYPE else 2  # of f32 over the type of weights
    held = Footprints(compilation.traced, plan.sharding).of().total * plan.mesh.num_devices
    needed = narrow * (held + sum(graph.values[value].bytes for value in graph.inputs))
    if needed > MOST_BYTES:
        return f"it takes {needed / 2**30:.3g} GiB in f32, sharded and unsharded; more than {MOST_BYTES >> 30}"
    return ""


def _trace(compilation: Compilation, model: ModelConfig, configuration: Configuration, dtype: str) -> Traced:
    if compilation.training is not None:
        return trace_training(model, configuration, dtype, compilation.training)
    return trace_model(model, configuration, dtype)


def _whole(compilation: Compilation, points: tuple[int, ...]) -> _Made:
    plan, model, configuration = compilation.partition, compilation.model, compilation.configuration
    assert plan is not None
    layers = tuple(range(model.num_layers))
    if compilation.dtype == _DTYPE:
        return _Made(model, configuration, _DTYPE, layers, compilation.traced, plan.sharding, points)
    return _transferred(compilation, points, model, configuration, layers)


def _transferred(
    compilation: Compilation,
    points: tuple[int, ...],
    model: ModelConfig,
    configuration: Configuration,
    layers: tuple[int, ...],
) -> _Made:
    """Returns the plan for another graph of its model, in f32 where that has the same operations.

    Raises:
        VerificationError: if the plan does not divide that graph.
    """
    plan, own = compilation.partition, compilation.dtype
    assert plan is not None

    def made(dtype: str) -> _Made:
        traced = _trace(compilation, model, configuration, dtype)
        cast_from = own if dtype == _DTYPE else _DTYPE
        found = transferred(compilation.traced, plan.sharding, points, traced, layers, cast_from)
        check_sharding(traced, found[0])
        return _Made(model, configuration, dtype, layers, traced, *found)

    try:
        return made(_DTYPE)
    except VerificationError:
        if compilation.training is None or own == _DTYPE:
            raise
        return made(own)


def _twin(compilation: Compilation, points: tuple[int, ...]) -> _Made:
    """Returns the narrowest twin whose sizes divide as the plan wants them to.

    Raises:
        VerificationError: if there is none.
    """
    plan = compilation.partition
    assert plan is not None
    layers = kept_layers(compilation.traced, plan.sharding, points)
    failed: VerificationError | None = None
    sizes = narrowed(compilation.model, compilation.configuration, layers, plan.mesh.num_devices)
    for model, configuration in sizes:
        try:
            return _transferred(compilation, points, model, configuration, layers)
        except VerificationError as error:
            failed = error
    raise VerificationError(f"the plan has no narrow twin: {failed}")


def _arguments(graph: Graph) -> list[Array]:
    """Returns random inputs; codes of stored weights and exponents of their scales are such as weights have."""
    rng = np.random.default_rng(1)
    arguments = random_inputs(graph)
    for place, value in enumerate(graph.inputs):
        about = graph.values[value]
        if about.kind == "parameter" and about.dtype in ("uint8", "int8"):
            low, high = (
                (120, 124) if about.name.endswith("scales") else (0, 256) if about.dtype == "uint8" else (-128, 128)
            )
            arguments[place] = jnp.asarray(rng.integers(low, high, about.shape), about.dtype)
    return arguments


def _result_name(graph: Graph, position: int) -> str:
    value = graph.outputs[position]
    maker = next((operation for operation in graph.operations if value in operation.outputs), None)
    place = f"{maker.path}/{maker.name} ({maker.source})" if maker else graph.values[value].name
    return f"result {position} of {place}"


def _wrong(seen: Verification, planned: tuple[PlannedCollective, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for kind, elements in sorted({*seen.predicted, *seen.compiled}):
        wanted, have = (counts.get((kind, elements), 0) for counts in (seen.predicted, seen.compiled))
        if wanted != have:
            first = next((p for p in planned if (p.collective.kind, p.collective.elements) == (kind, elements)), None)
            place = f", first at {first.path} ({first.source})" if first else ""
            found.append(f"{kind} of {elements} elements: {wanted} predicted, {have} in the program{place}")
    return tuple(found)
