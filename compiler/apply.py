"""Applying a sharding: the function of one device, with every collective explicit.

Comes in: a `Traced` and a `Sharding` of it. Goes out: a function over global arrays, whose body runs inside
`jax.shard_map` and evaluates the equations of the graph on local parts; and, from the same walk without arrays, the
collectives that it will send. A value is brought from the layout it is made in to its shared layout, if it has one,
and from there to each layout that its readers want, once. What no output depends on is neither computed nor sent, for
XLA would remove it. `verify.partition.verify_sharding` holds both against the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jax.sharding import NamedSharding
from jaxtyping import Array

from ..errors import VerificationError
from .graph import KEY_IMPLEMENTATIONS, Operation
from .liveness import live_operands
from .mesh import Collective, Layout, whole
from .ops.sharding.division import Division
from .ops.sharding.rules import derive, evaluate, internal_collectives
from .partition import reshard
from .partition.network import collective_seconds
from .partition.plan import Sharding
from .target import Network
from .trace import Traced

__all__ = [
    "Implementations",
    "PlannedCollective",
    "input_shardings",
    "local_function",
    "predicted_collectives",
    "sharded_function",
]

Implementations: TypeAlias = Mapping[str, Callable[..., object]]

_T = TypeVar("_T")


@dataclass(frozen=True)
class PlannedCollective:
    """A collective that a sharded program sends, and what it is for."""

    collective: Collective
    seconds: float
    operation: int | None  # that reads the value, first if it is brought to its shared layout; None if it is an output
    value: int | None  # that is brought to another layout; None for what an operation sends inside
    path: str  # Flax path of that operation, or of the one that made the output
    source: str  # its line
    made: Layout | None = None  # that the value is brought from; None for what an operation sends inside
    wanted: Layout | None = None  # that it is brought to, of which this may be one step


def sharded_function(
    traced: Traced,
    sharding: Sharding,
    network: Network,
    *,
    implementations: Implementations = MappingProxyType({}),
    first_device: int = 0,
    devices: jax.sharding.Mesh | None = None,
) -> Callable[..., list[Array]]:
    """Returns the sharded form of a traced function.

    Args:
        traced: The function.
        sharding: How its graph is divided.
        network: What reshards cost: it decides between ways to do the same.
        implementations: Of named ops, to be run in the place of their definitions.
        first_device: Number of the first device of the mesh.
        devices: The mesh over devices of one's own, by default this process's from the first one on.

    Returns:
        A function of flat global arrays that gives flat global arrays; jit it with `input_shardings`.

    Raises:
        ConfigurationError: if this process has too few devices.
    """
    return jax.shard_map(
        local_function(traced, sharding, network, implementations=implementations),
        mesh=devices or sharding.mesh.devices(first_device),
        in_specs=tuple(layout.partition_spec() for layout in sharding.inputs),
        out_specs=[layout.partition_spec() for layout in sharding.outputs],
        check_vma=False,
    )


def local_function(
    traced: Traced,
    sharding: Sharding,
    network: Network,
    *,
    implementations: Implementations = MappingProxyType({}),
) -> Callable[..., list[Array]]:
    """Returns what one device computes: a function of its parts of the inputs, only to be called in `shard_map`.

    Args:
        traced: The function.
        sharding: How its graph is divided.
        network: What reshards cost.
        implementations: Of named ops, to be run in the place of their definitions.
    """

    def on_one_device(*parts: Array) -> list[Array]:
        device = _Evaluation(traced, sharding, network, implementations)
        return _Walk(traced, sharding, device).run(parts)

    return on_one_device


def input_shardings(sharding: Sharding, *, first_device: int = 0) -> tuple[NamedSharding, ...]:
    """Returns the shardings that the arguments of the sharded function have."""
    mesh = sharding.mesh.devices(first_device)
    return tuple(layout.sharding(mesh) for layout in sharding.inputs)


def predicted_collectives(traced: Traced, sharding: Sharding, network: Network) -> tuple[PlannedCollective, ...]:
    """Returns every collective that the sharded form of a traced function sends, in order.

    Args:
        traced: The function.
        sharding: How its graph is divided.
        network: Gives their times.
    """
    prediction = _Prediction(traced, sharding, network)
    _Walk(traced, sharding, prediction).run((None,) * len(sharding.inputs))
    return tuple(prediction.collectives)


@dataclass(frozen=True)
class _Reshard:
    """A value on its way from one layout to another."""

    value: int
    source: Layout
    target: Layout
    operation: int | None  # that asks for it; None if an output does


class _Device(Protocol[_T]):
    """Does what the walk says, on arrays or on paper."""

    def constant(self, value: int) -> _T:
        """Returns a constant, whole."""
        ...

    def filler(self, value: int, layout: Layout) -> _T:
        """Returns something in the place of an operand that nothing depends on."""
        ...

    def literal(self, literal: Literal) -> _T:
        """Returns a scalar."""
        ...

    def bring(self, array: _T, move: _Reshard) -> _T:
        """Brings a value to another layout."""
        ...

    def compute(self, operation: int, operands: Sequence[_T]) -> Sequence[_T]:
        """Computes one operation on its operands in the layouts that it wants."""
        ...


@dataclass
class _Walk(Generic[_T]):
    """Goes through the operations in order and holds each value in each layout that it has been brought to."""

    traced: Traced
    sharding: Sharding
    device: _Device[_T]
    kept: dict[int, Layout] = field(default_factory=dict)  # the layout from which readers are served, by value id
    held: dict[int, dict[Layout, _T]] = field(default_factory=dict)

    def run(self, inputs: Sequence[_T]) -> list[_T]:
        """Returns the outputs in their layouts, from the inputs in theirs."""
        graph, sharding = self.traced.graph, self.sharding
        for value, layout, array in zip(graph.inputs, sharding.inputs, inputs, strict=True):
            self.keep(value, layout, array)
        for value, layout in sharding.constants.items():
            self.keep(value, whole(len(layout.dims)), self.device.constant(value))
            self.move(value, layout, None)
        for operation, operands in enumerate(live_operands(self.traced)):
            if operands is not None:
                self.step(operation, operands)
        return [self.get(value, layout, None) for value, layout in zip(graph.outputs, sharding.outputs, strict=True)]

    def step(self, operation: int, is_live: Sequence[bool]) -> None:
        """Computes an operation; nothing depends on the operands that are not flagged."""
        flat, division = self.traced.equations[operation], self.sharding.operations[operation]
        operands = [
            self.device.literal(operand)
            if isinstance(operand, Literal)
            else self.get(operand, layout, operation)
            if live
            else self.device.filler(operand, layout)
            for operand, layout, live in zip(flat.operands, division.operands, is_live, strict=True)
        ]
        results = self.device.compute(operation, operands)
        for value, layout, array in zip(flat.results, division.results, results, strict=True):
            self.keep(value, layout, array)

    def keep(self, value: int, layout: Layout, array: _T) -> None:
        """Takes in a new value. It moves to its shared layout when it is first read, if ever."""
        self.kept[value] = layout
        self.held[value] = {layout: array}

    def move(self, value: int, layout: Layout, operation: int | None) -> None:
        """Brings a value to another layout for good."""
        if self.kept[value] != layout:
            self.keep(value, layout, self.get(value, layout, operation, is_shared=True))

    def get(self, value: int, layout: Layout, operation: int | None, *, is_shared: bool = False) -> _T:
        """Returns a value in a layout."""
        if not is_shared and value in self.sharding.shared:
            self.move(value, self.sharding.shared[value], operation)
        copies = self.held[value]
        if layout not in copies:
            source = self.kept[value]
            copies[layout] = self.device.bring(copies[source], _Reshard(value, source, layout, operation))
        return copies[layout]


@dataclass(frozen=True)
class _Base:
    """What both devices know."""

    traced: Traced
    sharding: Sharding
    network: Network

    def steps(self, move: _Reshard) -> tuple[reshard.Step, ...]:
        """Returns the cheapest steps of a move."""
        value = self.traced.graph.values[move.value]
        steps = reshard.steps(value.shape, value.dtype, move.source, move.target, self.sharding.mesh, self.network)
        if steps is None:
            raise VerificationError(
                f"the sharding of {self.traced.graph.name!r} brings value {move.value} {value.dtype}{list(value.shape)}"
                f" from {move.source} to {move.target}, which no collectives do; plan it again"
            )
        return steps

    def division(self, operation: int) -> Division:
        """Returns how an operation is divided."""
        rule = derive(self.traced.equations[operation].equation)
        return Division(rule, self.sharding.mesh, self.sharding.operations[operation].axes)


@dataclass(frozen=True)
class _Evaluation(_Base):
    """Computes on the parts of one device, inside `shard_map`."""

    implementations: Implementations

    def constant(self, value: int) -> Array:
        return jnp.asarray(self.traced.constants[value])

    def filler(self, value: int, layout: Layout) -> Array:
        about = self.traced.graph.values[value]
        shape = layout.local_shape(about.shape, self.sharding.mesh)
        if about.dtype in KEY_IMPLEMENTATIONS:
            return jax.random.split(jax.random.key(0, impl=KEY_IMPLEMENTATIONS[about.dtype]), shape)
        return jnp.zeros(shape, about.dtype)

    def literal(self, literal: Literal) -> Array:
        return jnp.asarray(literal.val, dtype=literal.aval.dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def bring(self, array: Array, move: _Reshard) -> Array:
        steps = self.steps(move)
        with jax.named_scope(f"reshard {move.value}"):
            # XLA knows what the sum of zeros is and would leave the collective out; all that it must not know.
            return reshard.apply(jax.lax.optimization_barrier(array), steps, self.sharding.mesh)

    def compute(self, operation: int, operands: Sequence[Array]) -> Sequence[Array]:
        about = self.traced.graph.operations[operation]
        equation = self.traced.equations[operation].equation
        with jax.named_scope(about.path or about.name):
            return evaluate(equation, operands, self.division(operation), self.implementations)


@dataclass(frozen=True)
class _Prediction(_Base):
    """Notes what would be sent."""

    collectives: list[PlannedCollective] = field(default_factory=list)

    def constant(self, value: int) -> None:
        del value

    def filler(self, value: int, layout: Layout) -> None:
        del value, layout

    def literal(self, literal: Literal) -> None:
        del literal

    def bring(self, array: None, move: _Reshard) -> None:
        del array
        value = self.traced.graph.values[move.value]
        found = reshard.collectives(self.steps(move), value.shape, value.dtype, self.sharding.mesh)
        self.note(found, move.operation, move)

    def compute(self, operation: int, operands: Sequence[None]) -> Sequence[None]:
        del operands
        flat = self.traced.equations[operation]
        self.note(internal_collectives(flat.equation, self.division(operation)), operation, None)
        return [None] * len(flat.results)

    def note(self, found: Sequence[Collective], operation: int | None, move: _Reshard | None) -> None:
        value, made, wanted = (move.value, move.source, move.target) if move else (None, None, None)
        about = self.about(operation, value)
        path, source = (about.path, about.source) if about else ("", "")
        for collective in found:
            time = collective_seconds(collective.kind, collective.bytes, collective.num_devices, self.network)
            self.collectives.append(PlannedCollective(collective, time, operation, value, path, source, made, wanted))

    def about(self, operation: int | None, value: int | None) -> Operation | None:
        """Returns the operation that is to blame: the one that asks, or the one that made an output."""
        operations = self.traced.graph.operations
        if operation is not None:
            return operations[operation]
        return next((maker for maker in operations if value in maker.outputs), None)
