"""Where a model is on several devices, as data of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pydantic
from jax.sharding import Sharding
from pydantic import NonNegativeInt, PositiveInt

from ..executable import mesh_sharding
from ..kv_pool import pool_layout
from ..mesh import Layout, Mesh

__all__ = ["DeviceShare", "Placement", "StagePlacement"]

_STRICT = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class StagePlacement:
    """What each device of one pipeline stage holds of a model."""

    __pydantic_config__ = _STRICT

    parameters: dict[str, tuple[tuple[str, ...], ...]]  # by name: of each dim, the mesh axes that divide it
    layers: tuple[NonNegativeInt, ...]  # whose KV pools it has, ascending
    weights_bytes: NonNegativeInt  # on each device
    kv_bytes: NonNegativeInt  # on each device

    def layout(self, parameter: str) -> Layout:
        """Returns how a parameter lies over the stage's devices."""
        return Layout(self.parameters[parameter])


@dataclass(frozen=True)
class Placement:
    """How a model lies over several devices: stages, one after the other, each on a mesh of its own.

    Stage s of a mesh of n devices has the devices s * n to s * n + n - 1. All configurations of the model share it.
    """

    __pydantic_config__ = _STRICT

    mesh_shape: dict[str, PositiveInt]  # size by axis, major to minor, of one stage; empty for one device
    pool_axes: tuple[str, ...]  # mesh axes that divide the KV heads of every pool
    stages: Annotated[tuple[StagePlacement, ...], pydantic.Field(min_length=1)]

    @property
    def mesh(self) -> Mesh:
        """The mesh of one stage."""
        return Mesh(tuple(self.mesh_shape), tuple(self.mesh_shape.values()))

    @property
    def num_devices(self) -> int:
        """Devices of all stages."""
        return self.mesh.num_devices * len(self.stages)

    @property
    def pool_layout(self) -> Layout:
        """How a KV pool lies over the devices of its stage."""
        return pool_layout(self.pool_axes)

    def sharding(self, stage: int, layout: Layout, memory_kind: str | None = None) -> Sharding:
        """Returns how an array of this layout lies over the devices of a stage, in a memory of this kind."""
        first = stage * self.mesh.num_devices
        return mesh_sharding(self.mesh, layout.partition_spec(), memory_kind, first)

    def pool_shardings(self, memory_kind: str | None = None) -> list[Sharding]:
        """Returns how the KV pool of each layer lies over the devices of its stage."""
        stages = enumerate(self.stages)
        return [self.sharding(i, self.pool_layout, memory_kind) for i, stage in stages for _ in stage.layers]


@dataclass(frozen=True)
class DeviceShare:
    """Bytes of a model on one device while it is hot."""

    weights_bytes: int
    kv_bytes: int
    workspace_bytes: int  # most that any step needs, which co-resident models share

    @property
    def resident_bytes(self) -> int:
        """Bytes that stay: weights and KV pools."""
        return self.weights_bytes + self.kv_bytes
