"""Meshes of devices, and how an array is laid over one.

A `Mesh` is named axes with their sizes; a `Layout` says, for each dim of an array, over which mesh axes it is divided,
and over which axes the array is a partial result that is still to be combined. A dim over several axes is divided by
the first one first (major), as `jax.sharding.PartitionSpec` has it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..errors import ConfigurationError
from .graph import item_bytes

__all__ = ["Collective", "CollectiveKind", "Layout", "Mesh", "Reduction", "whole"]

Reduction: TypeAlias = Literal["sum", "max", "min"]
CollectiveKind: TypeAlias = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "permute"]


@dataclass(frozen=True)
class Mesh:
    """Named axes of devices, the first one major."""

    axes: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        """Number of devices."""
        return math.prod(self.sizes)

    @functools.cached_property
    def shape(self) -> dict[str, int]:
        """Size of each axis."""
        return dict(zip(self.axes, self.sizes, strict=True))

    def num_shards(self, axes: tuple[str, ...]) -> int:
        """Number of parts that these axes make of a dim."""
        shape = self.shape
        return math.prod(shape[axis] for axis in axes)

    def devices(self, first: int = 0) -> jax.sharding.Mesh:
        """Returns the mesh over this machine's devices from number `first` on.

        Raises:
            ConfigurationError: if the machine has not so many.
        """
        have = jax.devices()
        if len(have) < first + self.num_devices:
            raise ConfigurationError(
                f"the plan needs {first + self.num_devices} devices and this process has {len(have)}; set "
                f"JAX_NUM_CPU_DEVICES={first + self.num_devices} to run on virtual CPU devices"
            )
        return jax.make_mesh(
            self.sizes,
            self.axes,
            axis_types=(AxisType.Auto,) * len(self.axes),
            devices=have[first : first + self.num_devices],
        )

    def __str__(self) -> str:
        return " x ".join(f"{axis}={size}" for axis, size in self.shape.items()) or "one device"


@dataclass(frozen=True)
class Layout:
    """How an array lies over a mesh."""

    dims: tuple[tuple[str, ...], ...]  # of each dim, the axes that divide it, major to minor
    partial: tuple[tuple[str, Reduction], ...] = ()  # axes over which it is still to be combined, sorted

    @functools.cached_property
    def axes(self) -> tuple[str, ...]:
        """All axes that divide a dim."""
        return tuple(axis for dim in self.dims for axis in dim)

    def local_shape(self, shape: tuple[int, ...], mesh: Mesh) -> tuple[int, ...]:
        """Returns the shape of one device's part; every dim must divide."""
        return tuple(_divided(size, mesh.num_shards(axes)) for size, axes in zip(shape, self.dims, strict=True))

    def fits(self, shape: tuple[int, ...], mesh: Mesh) -> bool:
        """Whether every dim divides over its axes."""
        return all(size % mesh.num_shards(axes) == 0 for size, axes in zip(shape, self.dims, strict=True))

    def partition_spec(self) -> PartitionSpec:
        """Returns it as JAX has it; partial results have no name there."""
        return PartitionSpec(*(axes if len(axes) > 1 else axes[0] if axes else None for axes in self.dims))

    def sharding(self, mesh: jax.sharding.Mesh) -> NamedSharding:
        """Returns it as a sharding over devices."""
        return NamedSharding(mesh, self.partition_spec())

    def as_text(self) -> str:
        """Returns it in a few characters, as files have it: `x*y,-|sum:z`, `()` for a scalar."""
        dims = ",".join("*".join(axes) or "-" for axes in self.dims) or "()"
        return "|".join((dims, *(f"{reduction}:{axis}" for axis, reduction in self.partial)))

    @staticmethod
    def from_text(text: str) -> Layout:
        """Reads what `as_text` returns.

        Raises:
            ValueError: if it is no layout.
        """
        dims, *partial = text.split("|")
        parts = [] if dims == "()" else [() if dim == "-" else tuple(dim.split("*")) for dim in dims.split(",")]
        pairs = [part.partition(":") for part in partial]
        names = [axis for part in parts for axis in part] + [axis for _, _, axis in pairs]
        if not all(map(str.isidentifier, names)) or any(how not in get_args(Reduction) for how, _, _ in pairs):
            raise ValueError(f"{text!r} is no layout: write axes or - for each dim, as x*y,-|sum:z")
        return Layout(tuple(parts), tuple((axis, cast(Reduction, how)) for how, _, axis in pairs))

    def __str__(self) -> str:
        return "".join(self._parts()) or "[]"

    def _parts(self) -> Iterator[str]:
        yield "[" + ", ".join("*".join(axes) or "-" for axes in self.dims) + "]"
        for axis, reduction in self.partial:
            yield f" {reduction} over {axis}"


@dataclass(frozen=True)
class Collective:
    """A collective as one device sees it."""

    kind: CollectiveKind
    axes: tuple[str, ...]  # mesh axes of its group
    num_devices: int  # in its group
    elements: int  # of one device's result
    dtype: str

    @property
    def bytes(self) -> int:
        """Size of the larger of one device's operand and result: what the cost is counted on."""
        held = self.elements * item_bytes(self.dtype)
        return held * self.num_devices if self.kind == "reduce_scatter" else held


def whole(num_dims: int) -> Layout:
    """Returns the layout of an array that every device holds in full."""
    return Layout(((),) * num_dims)


def _divided(size: int, parts: int) -> int:
    assert size % parts == 0, (size, parts)
    return size // parts
