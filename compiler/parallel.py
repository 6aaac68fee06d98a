"""`plait.partition`: a plan for any JAX function over a mesh, and the function that runs it.

Comes in: a function over pytrees or a Flax NNX module, with abstract arguments. Goes out: a `Plan`: what is divided
how, with its lower bound; the jitted program of the plan, whose collectives are the plan's own; and shardings for a
`jax.jit` of one's own, in which XLA chooses the collectives.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ..errors import ConfigurationError
from .apply import PlannedCollective, predicted_collectives, sharded_function
from .bundle.spec import parse_bytes
from .files import write_files
from .graph import Graph, ValueKind
from .mesh import Mesh
from .ops.sharding.rules import derive
from .partition import search
from .partition.explain import Explanation, explain
from .partition.formulate import Pins
from .partition.pins import parse_mesh, resolve_pins
from .partition.result import OBJECTIVES, Objective, Partition, Status
from .signature import Signature, trace_call
from .target import Target, load_target
from .text import Table, format_bytes, format_seconds
from .trace import AbstractArgument, Traced
from .verify.inputs import random_inputs
from .verify.partition import Verification, verify_sharding

__all__ = ["MeshLike", "PinAxes", "Plan", "PlannedFunction", "partition"]

MeshLike: TypeAlias = int | str | Sequence[int] | Mapping[str, int] | Mesh | jax.sharding.Mesh | AbstractMesh
PinAxes: TypeAlias = str | PartitionSpec | Sequence[str | Sequence[str] | None]

_AXES = "xyzw"  # of a mesh without names
_MAX_SHOWN = 40  # inputs in the text
_LARGE_CONSTANTS = 1 << 20  # bytes of a closure that are worth a word
_LEVERS = {
    "devices": "use at least {devices} devices (mesh=...)",
    "parameter": "keep the parameters in a smaller type",
    "state": "use an optimizer that keeps less",
    "cache": "use a smaller batch or context",
    "input": "use a smaller batch",
    "intermediate": "use a smaller batch, or compute again instead of keeping (jax.checkpoint)",
}


def partition(
    function: Callable[..., object],
    *abstract_args: AbstractArgument,
    mesh: MeshLike | None = None,
    budget: int | str | None = None,
    target: str | Path | Target = "cpu",
    objective: Objective = "latency",
    pins: Mapping[str, PinAxes] = MappingProxyType({}),
    argument_kinds: Sequence[ValueKind] | None = None,
    time_limit_seconds: float = 60.0,
) -> Plan:
    """Plans a function over a mesh.

    Args:
        function: Any JAX function over pytrees; or a Flax NNX module or a method of one, which then is the first
            argument of what is planned. Static arguments are bound with `functools.partial`.
        *abstract_args: What it is called with: pytrees of arrays or `jax.ShapeDtypeStruct`, and NNX modules (also of
            `nnx.eval_shape`). Values are not looked at.
        mesh: `{"data": 2, "tensor": 4}`, `(2, 4)`, `"2x4"`, a `jax.sharding.Mesh`, whose devices are used, or a number
            of devices, for which all shapes of up to three axes are tried; by default all devices of the target, or
            of this process if the target has one.
        budget: What each device may hold, in bytes or as "24GiB"; by default the memory of the target's devices.
        target: What devices compute, hold and send in a second: a name of `plait targets`, a TOML file or a target.
        objective: "latency" (of a step), "throughput" or "memory" (of the fullest device).
        pins: Layouts that are given: by a glob over the names of inputs and operations, the axes of each dim, as
            "tensor,-", ("tensor", None), a `PartitionSpec`, or "whole".
        argument_kinds: "parameter", "state", "cache" or "input" of each argument, by default inputs: it decides what
            counts as read from memory and how it is reported. A module's parameters are parameters.
        time_limit_seconds: Of the search.

    Raises:
        ConfigurationError: if the mesh, a pin or an option is none, or nothing can be planned with them.
        DoesNotFitError: if no plan keeps the budget; it says what is short and what would help.
        TargetError: if there is no such target.
    """
    if objective not in OBJECTIVES:
        raise ConfigurationError(f"objective {objective!r} is none; use {', '.join(OBJECTIVES)}")
    if not time_limit_seconds > 0:
        raise ConfigurationError(f"time_limit_seconds {time_limit_seconds} leaves no time; give more than 0")
    machine = target if isinstance(target, Target) else load_target(target)
    given = _read_mesh(mesh, machine)
    signature = trace_call(function, abstract_args, argument_kinds)
    traced = signature.traced
    dtype = _computed_in(traced.graph)
    fixed = _resolve(traced.graph, pins, given)
    capacity = machine.tiers["hbm"].capacity_bytes if given.num_devices > 1 else None
    found = search.partition(
        traced,
        machine,
        dtype=dtype,
        num_devices=given.num_devices,
        mesh=given.mesh,
        num_stages=1,
        budget_bytes=capacity if budget is None else parse_bytes(budget),
        objective=objective,
        pins=fixed,
        time_limit_seconds=time_limit_seconds,
        levers=_LEVERS,
    )
    return Plan(signature, found, machine, dtype, fixed, given.devices)


@dataclass(frozen=True)
class Plan:
    """How a function is laid over a mesh, and how good that is."""

    signature: Signature
    partition: Partition
    target: Target
    dtype: str  # that most products are computed in
    pins: Pins  # layouts that were given, by value id
    given_devices: jax.sharding.Mesh | None = None  # by default the first ones of this process

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.signature.name

    @property
    def traced(self) -> Traced:
        """The graph that was planned, and its jaxpr."""
        return self.signature.traced

    @property
    def mesh(self) -> Mesh:
        """The mesh; of one that was given, without axes of size 1."""
        return self.partition.mesh

    @property
    def cost(self) -> float:
        """Seconds of a step by the cost model: work and communication."""
        return self.partition.cost

    @property
    def lower_bound(self) -> float:
        """Seconds below which no plan on this mesh comes that treats repeated layers alike."""
        return self.partition.lower_bound

    @property
    def gap(self) -> float:
        """How far the cost may be from the best possible, relative to it."""
        return self.partition.gap

    @property
    def status(self) -> Status:
        """Whether the plan is proven "optimal" on its mesh, or "feasible"."""
        return self.partition.status

    @property
    def seconds(self) -> float:
        """Seconds that the search took."""
        return self.partition.seconds

    @functools.cached_property
    def collectives(self) -> tuple[PlannedCollective, ...]:
        """What the program of `jit` sends, in order, with the line that asks for it."""
        return predicted_collectives(self.traced, self.partition.sharding, self.target.network)

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """What every device computes or holds alike because it cannot be divided, and why."""
        reasons = Counter(derive(flat.equation).note for flat in self.traced.equations)
        found = [f"{reason} ({count} of them)" for reason, count in sorted(reasons.items()) if reason]
        closed_over = sum(value.bytes for value in self.traced.graph.values if value.kind == "constant")
        if closed_over >= _LARGE_CONSTANTS:
            found.append(
                f"{self.name} closes over {format_bytes(closed_over)} that every device holds whole; pass them as "
                "arguments to have them divided"
            )
        return tuple(found)

    @property
    def shardings(self) -> tuple[PyTree, ...]:
        """Shardings in pytrees like the arguments, for `jax.jit(function, in_shardings=plan.shardings)`.

        In a jit of one's own XLA's propagation chooses all other layouts and the collectives, not the plan.

        Raises:
            ConfigurationError: if this process has fewer devices than the mesh.
        """
        devices = self._devices()
        return self.signature.like_arguments([layout.sharding(devices) for layout in self.partition.sharding.inputs])

    def jit(self) -> PlannedFunction:
        """Returns the function, jitted, sharded as planned, with the plan's collectives.

        It takes and returns what the function does; arguments may lie anywhere. Planned from a module, it takes the
        module first and writes into it what the call changes.

        Raises:
            ConfigurationError: if this process has fewer devices than the mesh.
        """
        devices, sharding = self._devices(), self.partition.sharding
        function = sharded_function(self.traced, sharding, self.target.network, devices=devices)

        def flat_function(*arrays: Array) -> list[Array]:
            return function(*arrays)

        flat_function.__name__ = self.name
        inputs = tuple(layout.sharding(devices) for layout in sharding.inputs)
        outputs = [layout.sharding(devices) for layout in sharding.outputs]
        jitted = jax.jit(flat_function, in_shardings=inputs, out_shardings=outputs)
        return PlannedFunction(self.signature, inputs, jitted)

    def verify(self, *arguments: object, seed: int = 0) -> Verification:
        """Compiles and runs the plan, and compares it with the unsharded function and with what it says it sends.

        Args:
            *arguments: As of the function; random ones if there are none.
            seed: Of the random ones.

        Raises:
            VerificationError: if an integer result differs.
            ConfigurationError: if this process has too few devices, or the arguments don't fit.
        """
        given = bool(arguments) or not self.signature.arguments
        flat = self.signature.flat(arguments) if given else random_inputs(self.traced.graph, seed=seed)
        arrays = [jnp.asarray(leaf) for leaf in flat]
        return verify_sharding(self.traced, self.partition.sharding, arrays, self.target.network)

    def explain(self, pattern: str | None = None) -> Explanation:
        """Returns why the plan is as it is: all reshards, or the choices for what a pattern names.

        Raises:
            ConfigurationError: if the pattern names nothing.
        """
        return explain(self.traced, self.partition, self.target, dtype=self.dtype, pins=self.pins, pattern=pattern)

    def as_text(self) -> str:
        """Returns the plan for people: cost and bound, layouts of the inputs, what is sent."""
        return "\n".join(self._lines())

    __str__ = as_text

    def _lines(self) -> Iterator[str]:
        plan = self.partition
        limit = "" if plan.budget_bytes is None else f" of {format_bytes(plan.budget_bytes)}"
        yield f"{self.name} on {self.mesh} of target {self.target.name}"
        yield (
            f"step {format_seconds(plan.cost)}, {plan.status} (lower bound {format_seconds(plan.lower_bound)}, "
            f"gap {plan.gap:.1%}); fullest device {format_bytes(plan.device_bytes)}{limit}; "
            f"found in {format_seconds(plan.seconds)}"
        )
        yield ""
        yield self._inputs().as_text()
        yield ""
        if self.collectives:
            yield self._sent().as_text()
        else:
            yield "nothing is sent"
        yield from (f"note: {note}" for note in self.notes)

    def _inputs(self) -> Table:
        rows = [
            (about["name"], f"{about['dtype']}{about['shape']}", str(layout))
            for about, layout in zip(self._input_facts(), self.partition.sharding.inputs, strict=True)
        ]
        more = f" (the first {_MAX_SHOWN} of {len(rows)})" if len(rows) > _MAX_SHOWN else ""
        return Table(f"inputs{more}", ("name ", "shape ", "layout "), tuple(map(_cells, rows[:_MAX_SHOWN])))

    def _sent(self) -> Table:
        total: Counter[tuple[str, str, int, str]] = Counter()
        seconds: Counter[tuple[str, str, int, str]] = Counter()
        for planned in self.collectives:
            sent = planned.collective
            key = (sent.kind, "*".join(sent.axes), sent.elements, planned.source)
            total[key] += 1
            seconds[key] += planned.seconds  # type: ignore[assignment]
        rows = [
            (kind, axes, str(count), str(elements), format_seconds(seconds[kind, axes, elements, source]), source)
            for (kind, axes, elements, source), count in total.items()
        ]
        heads = ("sent ", "over ", "times", "elements", "seconds", "asked for by ")
        return Table(f"collectives: {len(self.collectives)}", heads, tuple(rows))

    def _input_facts(self) -> list[dict[str, object]]:
        graph = self.traced.graph
        return [
            {
                "name": graph.values[value].name,
                "dtype": graph.values[value].dtype,
                "shape": [*graph.values[value].shape],
            }
            for value in graph.inputs
        ]

    def to_json(self) -> str:
        """Returns the plan as JSON text."""
        data = {
            "function": self.name,
            "target": self.target.name,
            "dtype": self.dtype,
            "mesh": self.mesh.shape,
            "cost": self.cost,
            "lower_bound": self.lower_bound,
            "gap": self.gap,
            "status": self.status,
            "seconds": self.seconds,
            "inputs": [
                {**about, "layout": [list(axes) for axes in layout.dims]}
                for about, layout in zip(self._input_facts(), self.partition.sharding.inputs, strict=True)
            ],
            "collectives": [
                {
                    "kind": planned.collective.kind,
                    "axes": list(planned.collective.axes),
                    "elements": planned.collective.elements,
                    "dtype": planned.collective.dtype,
                    "bytes": planned.collective.bytes,
                    "seconds": planned.seconds,
                    "path": planned.path,
                    "source": planned.source,
                }
                for planned in self.collectives
            ],
            "notes": list(self.notes),
            "partition": self.partition.to_dict(),
        }
        return json.dumps(data, indent=1)

    def save(self, directory: str | Path) -> list[Path]:
        """Writes plan.json, plan.txt, graph.json and graph.txt; returns their paths.

        Raises:
            ConfigurationError: if the directory cannot be written.
        """
        graph = self.traced.graph
        return write_files(
            Path(directory),
            {
                "plan.json": self.to_json().encode(),
                "plan.txt": self.as_text().encode(),
                "graph.json": graph.to_json().encode(),
                "graph.txt": graph.as_text().encode(),
            },
        )

    def _devices(self) -> jax.sharding.Mesh:
        return self.mesh.devices() if self.given_devices is None else self.given_devices


@dataclass(frozen=True)
class PlannedFunction:
    """A function as its plan has it, called as the function is."""

    signature: Signature
    shardings: tuple[NamedSharding, ...]  # of each array of the arguments
    jitted: jax.stages.Wrapped  # of flat arrays

    def __call__(self, *arguments: object) -> PyTree:
        """Runs it; arguments are brought to where they are planned to be.

        Raises:
            ConfigurationError: if they don't have the shapes and types that were planned for.
        """
        arrays = jax.device_put(self.signature.flat(arguments), list(self.shardings))
        return self.signature.result(self.jitted(*arrays), arguments)

    def lower(self, *arguments: object) -> jax.stages.Lowered:
        """Returns its program, not yet compiled; of the planned shapes if no arguments are given."""
        return self.jitted.lower(*self.signature.flat(arguments or self.signature.arguments))


@dataclass(frozen=True)
class _GivenMesh:
    num_devices: int
    mesh: Mesh | None  # None: any shape of so many devices
    devices: jax.sharding.Mesh | None  # that were given
    dropped: frozenset[str]  # axes of size 1


def _read_mesh(mesh: MeshLike | None, target: Target) -> _GivenMesh:
    if mesh is None:
        mesh = target.num_devices if target.num_devices > 1 else len(jax.devices())
    if isinstance(mesh, int) and not isinstance(mesh, bool) and mesh >= 1:
        return _GivenMesh(mesh, None, None, frozenset())
    if isinstance(mesh, jax.sharding.Mesh):
        given = _named_mesh(mesh.axis_names, mesh.devices.shape)
        kept = given.mesh
        assert kept is not None
        devices = jax.sharding.Mesh(
            mesh.devices.reshape(kept.sizes), kept.axes, axis_types=(AxisType.Auto,) * len(kept.axes)
        )
        return _GivenMesh(given.num_devices, kept, devices, given.dropped)
    if isinstance(mesh, AbstractMesh):
        return _named_mesh(mesh.axis_names, mesh.axis_sizes)
    if isinstance(mesh, Mesh):
        return _named_mesh(mesh.axes, mesh.sizes)
    if isinstance(mesh, str):
        parsed = parse_mesh(mesh)
        return _named_mesh(parsed.axes, parsed.sizes)
    if isinstance(mesh, Mapping):
        return _named_mesh(tuple(mesh), tuple(mesh.values()))
    if isinstance(mesh, list | tuple) and len(mesh) <= len(_AXES):
        return _named_mesh(tuple(_AXES[: len(mesh)]), tuple(mesh))
    raise ConfigurationError(
        f"mesh {mesh!r} is none: give a number of devices, sizes as (2, 4) (up to four) or '2x4', named ones as "
        "{'data': 2, 'tensor': 4}, or a jax.sharding.Mesh"
    )


def _named_mesh(names: Sequence[object], sizes: Sequence[object]) -> _GivenMesh:
    shape = dict(zip(names, sizes, strict=True))
    good = all(isinstance(name, str) and name.isidentifier() for name in names)
    if not good or not all(isinstance(size, int) and size >= 1 for size in sizes) or not shape:
        raise ConfigurationError(f"mesh {shape} is none: axes are named by words and have sizes of 1 and more")
    kept = {str(name): int(str(size)) for name, size in shape.items() if size != 1}
    mesh = Mesh(tuple(kept), tuple(kept.values()))
    return _GivenMesh(mesh.num_devices, mesh, None, frozenset(map(str, shape)) - kept.keys())


def _resolve(graph: Graph, pins: Mapping[str, PinAxes], given: _GivenMesh) -> Pins:
    texts = [(pattern, _pin_text(axes, given.dropped)) for pattern, axes in pins.items()]
    if given.mesh is None and any(text != "whole" for _, text in texts):
        raise ConfigurationError(
            f"pins name axes, so the mesh must have names: mesh={{'x': {given.num_devices}}}, not {given.num_devices}"
        )
    return resolve_pins(graph, texts, given.mesh)


def _pin_text(axes: PinAxes, dropped: frozenset[str]) -> str:
    """Returns axes as a pin's text has them, without those of size 1."""
    if isinstance(axes, str):
        dims = axes.split(",") if axes else []
        parts = [() if dim == "-" else dim.split("*") for dim in dims]
    else:
        parts = [() if dim is None else (dim,) if isinstance(dim, str) else tuple(dim) for dim in axes]
    kept = [[axis for axis in part if axis not in dropped] for part in parts]
    return ",".join("*".join(part) or "-" for part in kept) or "whole"


def _computed_in(graph: Graph) -> str:
    """Returns the type in which most of the work is done: that of the first operands, weighted by FLOPs."""
    work: Counter[str] = Counter()
    for operation in graph.operations:
        types = [graph.values[value].dtype for value in operation.inputs]
        inexact = [dtype for dtype in types if "float" in dtype or "complex" in dtype]
        if inexact:
            work[inexact[0]] += max(operation.product_flops, 1)
    return work.most_common(1)[0][0] if work else "float32"


def _cells(row: tuple[object, ...]) -> tuple[str, ...]:
    return tuple(map(str, row))
