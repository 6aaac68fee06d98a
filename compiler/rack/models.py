"""One model of a bundle for a rack: over which devices it is divided, what each holds, what its steps take.

Comes in: a model of the bundle file and a target. Goes out: a `Planned`. The busiest configuration is planned first,
a decode step for a decoder; the others keep its layouts of weights and caches. Unless the bundle file says otherwise a
model goes over all devices of the target (TP8 over a node, TP16 over a rack), in one stage, on the best mesh of them;
weights are as the source stores them, what is computed is as it was published.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigurationError, DoesNotFitError, PlaitError
from ...models.config import DecoderConfig, ModelConfig
from ..bundle.spec import ModelSpec, ShapeSpec
from ..configuration import Configuration
from ..fuse import fuse
from ..mesh import Layout, Mesh
from ..partition.formulate import Pins
from ..partition.pins import layouts_of
from ..partition.result import Partition
from ..partition.search import candidate_meshes, partition
from ..partition.skeleton import skeleton
from ..schedule import schedule
from ..subject import ModelSizes, model_sizes, read_subject, with_weights
from ..target import Target
from ..trace import Traced, trace_model
from .plan import DeviceBytes, StepPlan

__all__ = ["Planned", "plan_model"]

_DECODER_SHAPE, _ENCODER_SHAPE = ShapeSpec(sequence=4096, batch=1), ShapeSpec(sequence=4096, batch=8)  # at most
_PREFILL_TOKENS = 4096  # of a prompt that are computed in one step, at most
_LARGE_SHARE = 1e-4  # of a model: a parameter of so many bytes is divided over as many devices as it can be
_MAX_AXES = 2  # of a mesh of our choosing
_TIME_LIMIT_SECONDS = 15.0  # for the partition of one mesh
_LEVERS = {
    "devices": "use at least {devices} devices (`devices`, or a larger target)",
    "parameter": "store the weights in fewer bits (`weights: q4_0`)",
    "state": "leave the model out",
    "cache": "lower `batch` or `sequence`",
    "input": "lower `batch` or `sequence`",
    "intermediate": "lower `batch` or `sequence`",
}


@dataclass(frozen=True)
class Planned:
    """A model as planned, before it is known where its copies go."""

    config: ModelConfig
    dtype: str
    weights: str
    sizes: ModelSizes
    mesh: Mesh  # of one stage
    num_stages: int
    devices: tuple[DeviceBytes, ...]
    kv_tokens: int | None  # that the caches of `devices` hold; None for an encoder
    steps: tuple[StepPlan, ...]
    cost_seconds: float
    lower_bound_seconds: float


def plan_model(
    name: str,
    spec: ModelSpec,
    target: Target,
    *,
    base: Path,
    budget_bytes: int,
    progress: Callable[[str], None],
) -> Planned:
    """Plans every configuration of a model.

    Args:
        name: Of the model in its bundle.
        spec: What the bundle file says of it.
        target: The machine.
        base: What a relative source is relative to.
        budget_bytes: Of HBM on each device.
        progress: Told what is done.

    Raises:
        ConfigurationError: if the model does not divide so, or its limits don't fit it.
        DoesNotFitError: if a device cannot hold its part even alone.
    """
    said = spec.model_fields_set
    subject = read_subject(spec.source, base=base)
    weights = spec.weights if "weights" in said else "stored"
    config = with_weights(subject.config, weights)
    dtype = spec.dtype if "dtype" in said else subject.dtype
    if spec.kv_tokens is not None and not isinstance(config, DecoderConfig):
        raise ConfigurationError(f"model {name!r} is an encoder and has no KV cache; leave `kv_tokens` out")
    shapes = _shapes(name, spec, config)
    task = _Task(name, config, dtype, target, budget_bytes, progress)
    steps = tuple(dict.fromkeys(step for shape in shapes for step in _steps(config, shape)))
    busiest = max(steps, key=lambda step: (step.phase != "prefill", step.batch * step.context))
    first = task.best(busiest, _meshes(name, spec, target), spec.num_stages)
    planned = {step: first if step == busiest else task.like(step, first) for step in steps}
    kv_tokens = spec.kv_tokens or max(shape.batch * shape.sequence for shape in shapes)
    return Planned(
        config=config,
        dtype=dtype,
        weights=weights,
        sizes=model_sizes(config, dtype),
        mesh=first.plan.mesh,
        num_stages=len(first.plan.stages),
        devices=_devices(first, tuple(planned.values()), kv_tokens),
        kv_tokens=kv_tokens if isinstance(config, DecoderConfig) else None,
        steps=tuple(task.time(each) for each in planned.values()),
        cost_seconds=first.plan.cost,
        lower_bound_seconds=first.plan.lower_bound,
    )


def _shapes(name: str, spec: ModelSpec, config: ModelConfig) -> tuple[ShapeSpec, ...]:
    """Returns the context lengths and batch sizes of a model, as asked for or by default."""
    usual = _DECODER_SHAPE if isinstance(config, DecoderConfig) else _ENCODER_SHAPE
    sequence = min(usual.sequence, config.max_positions) if spec.sequence is None else spec.sequence
    asked = spec.configurations or (ShapeSpec(sequence=sequence, batch=spec.batch or usual.batch),)
    for shape in asked:
        if shape.sequence > config.max_positions:
            raise ConfigurationError(
                f"model {name!r} has {config.max_positions} positions, {shape.sequence} are asked for; lower `sequence`"
            )
    return asked


def _steps(config: ModelConfig, shape: ShapeSpec) -> Iterator[Configuration]:
    """Yields what one shape is served in: decode and the prefill of a prompt, or for an encoder the one step."""
    if isinstance(config, DecoderConfig):
        yield Configuration("decode", shape.batch, 1, shape.sequence)
        yield Configuration("prefill", 1, min(shape.sequence, _PREFILL_TOKENS), shape.sequence)
    else:
        yield Configuration("embed", shape.batch, shape.sequence, shape.sequence)


def _meshes(name: str, spec: ModelSpec, target: Target) -> tuple[Mesh, ...]:
    """Returns the meshes of one stage that are to be tried.

    Raises:
        ConfigurationError: if the target has too few devices.
    """
    count = spec.num_devices if spec.mesh else spec.devices or target.num_devices
    if count > target.num_devices:
        raise ConfigurationError(
            f"model {name!r} wants {count} devices, target {target.name!r} has {target.num_devices}"
        )
    return (spec.stage_mesh,) if spec.mesh else tuple(m for m in candidate_meshes(count) if len(m.axes) <= _MAX_AXES)


@dataclass(frozen=True)
class _Step:
    """A configuration as traced, and its partition."""

    configuration: Configuration
    traced: Traced
    plan: Partition


@dataclass(frozen=True)
class _Task:
    """What is the same for all configurations of a model."""

    name: str
    config: ModelConfig
    dtype: str
    target: Target
    budget_bytes: int
    progress: Callable[[str], None]

    def best(self, configuration: Configuration, meshes: Sequence[Mesh], num_stages: int) -> _Step:
        """Returns a configuration on the mesh where its step takes least."""
        traced = self._trace(configuration)
        plans: list[Partition] = []
        failed: list[PlaitError] = []
        for mesh in meshes:
            try:
                plans.append(self._partition(traced, mesh, num_stages, _dividing_pins(traced, mesh)))
            except (DoesNotFitError, ConfigurationError) as error:
                failed.append(error)
        if not plans:
            raise min(failed, key=_shortfall)
        return _Step(configuration, traced, min(plans, key=lambda plan: (plan.cost, plan.device_bytes)))

    def like(self, configuration: Configuration, other: _Step) -> _Step:
        """Returns a configuration with weights and caches laid out as another one has them."""
        traced = self._trace(configuration)
        pins = layouts_of(traced, other.traced, other.plan)
        return _Step(configuration, traced, self._partition(traced, other.plan.mesh, len(other.plan.stages), pins))

    def time(self, step: _Step) -> StepPlan:
        """Returns what a step takes, its operations fused into sections."""
        shapes = step.configuration
        sections = fuse(skeleton(step.traced), step.plan.sharding, self.target, self.dtype)
        timed = schedule(step.traced, step.plan, sections, self.target, self.dtype, configuration=shapes)
        return StepPlan(
            configuration=shapes.id,
            phase=shapes.phase,
            batch=shapes.batch,
            new_tokens=shapes.new_tokens,
            context=shapes.context,
            seconds=timed.seconds,
            joules=timed.joules,
            sequence_seconds=(timed.host_seconds + timed.append_seconds) / max(1, shapes.batch - 1),
        )

    def _trace(self, configuration: Configuration) -> Traced:
        self.progress(f"{self.name}: {configuration.id}")
        return trace_model(self.config, configuration, self.dtype)

    def _partition(self, traced: Traced, mesh: Mesh, num_stages: int, pins: Pins) -> Partition:
        return partition(
            traced,
            self.target,
            dtype=self.dtype,
            mesh=mesh,
            num_stages=num_stages,
            budget_bytes=self.budget_bytes,
            pins=pins,
            time_limit_seconds=_TIME_LIMIT_SECONDS,
            levers=_LEVERS,
        )


def _shortfall(error: PlaitError) -> float:
    return error.shortfall_bytes if isinstance(error, DoesNotFitError) else math.inf


def _devices(first: _Step, steps: Sequence[_Step], kv_tokens: int) -> tuple[DeviceBytes, ...]:
    """Returns what each device holds: weights and workspace as the step with most, caches of so many tokens."""
    shapes = first.configuration
    stages = zip(*(step.plan.stages for step in steps), strict=True)
    held: list[DeviceBytes] = []
    for own, of_all in zip(first.plan.stages, stages, strict=True):
        feet = [stage.footprint for stage in of_all]
        device = DeviceBytes(
            weights_bytes=max(foot.parameters for foot in feet),
            kv_bytes=-(-own.footprint.cache * kv_tokens // (shapes.batch * shapes.context)),
            workspace_bytes=max(foot.temporaries + foot.inputs for foot in feet),
        )
        held += [device] * first.plan.mesh.num_devices
    return tuple(held)


def _dividing_pins(traced: Traced, mesh: Mesh) -> dict[int, tuple[Layout, ...]]:
    """Allows all but small parameters the layouts that divide them over most devices.

    A step is faster by up to a tenth with a few of them whole on several devices: rows of a vocabulary, projections of
    few KV heads. But other models could be where the second one is, and a switch would copy both.
    """
    graph = traced.graph
    large = _LARGE_SHARE * graph.parameter_bytes
    pins: dict[int, tuple[Layout, ...]] = {}
    for value in (graph.values[value] for value in graph.inputs):
        if value.kind == "parameter" and value.bytes >= large:
            layouts = list(_layouts(value.shape, mesh))
            most = max(mesh.num_shards(layout.axes) for layout in layouts)
            pins[value.id] = tuple(layout for layout in layouts if mesh.num_shards(layout.axes) == most)
    return pins


def _layouts(shape: tuple[int, ...], mesh: Mesh) -> Iterator[Layout]:
    """Yields every layout of an array: each axis of the mesh divides one dim, or none."""
    for dims in itertools.product(range(-1, len(shape)), repeat=len(mesh.axes)):
        chosen = tuple(
            tuple(axis for axis, dim in zip(mesh.axes, dims, strict=True) if dim == i) for i in range(len(shape))
        )
        if Layout(chosen).fits(shape, mesh):
            yield Layout(chosen)
