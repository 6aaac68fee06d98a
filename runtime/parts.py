"""What each device has of a model's tensors, and the whole made of the parts again.

A model without a placement is whole on the first device. Otherwise each stage's devices have the stage's parameters,
divided as the placement says; a part is a view, so taking it copies nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

import jax
import numpy as np

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.bundle.placement import Placement
from ..errors import BundleIntegrityError

__all__ = ["assemble", "devices_of", "host_parts", "shards"]

_Device: TypeAlias = Hashable  # one of JAX's


def devices_of(entry: ModelEntry) -> list[_Device]:
    """Returns the devices of a model, in the order of its shares."""
    return jax.devices()[: entry.num_devices]


def host_parts(entry: ModelEntry, tensors: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
    """Returns of each device the parts of tensors that it has, as views of them.

    Raises:
        BundleIntegrityError: if the placement names a tensor that is not there, or divides it where it does not divide.
    """
    placement = entry.placement
    if placement is None:
        return [tensors]
    parts: list[Mapping[str, np.ndarray]] = []
    for number, stage in enumerate(placement.stages):
        indices = {name: _indices(entry.name, placement, number, name, tensors) for name in stage.parameters}
        for device in _stage_devices(entry, placement, number):
            parts.append({name: tensors[name][index[device]] for name, index in indices.items()})
    return parts


def shards(entry: ModelEntry, weights: Sequence[Mapping[str, jax.Array]]) -> list[Mapping[str, jax.Array]]:
    """Returns of each device its parts of the arrays of each stage, as arrays on that device."""
    if entry.placement is None:
        return list(weights)
    parts: list[Mapping[str, jax.Array]] = []
    for number, arrays in enumerate(weights):
        own = {name: {shard.device: shard.data for shard in a.addressable_shards} for name, a in arrays.items()}
        for device in _stage_devices(entry, entry.placement, number):
            parts.append({name: by_device[device] for name, by_device in own.items()})
    return parts


def assemble(
    entry: ModelEntry, parts: Sequence[Mapping[str, jax.Array]], shapes: Mapping[str, tuple[int, ...]], kind: str | None
) -> list[dict[str, jax.Array]]:
    """Returns the arrays of each stage from the parts on each device; they are taken over, not copied.

    Args:
        entry: The model.
        parts: Of each device, by name; some may be missing.
        shapes: Of the whole tensors.
        kind: Of the memory that the parts are in.
    """
    placement = entry.placement
    if placement is None:
        return [dict(parts[0])]
    size = placement.mesh.num_devices
    stages: list[dict[str, jax.Array]] = []
    for number, stage in enumerate(placement.stages):
        own = parts[number * size : (number + 1) * size]
        arrays: dict[str, jax.Array] = {}
        for name in own[0]:
            sharding = placement.sharding(number, stage.layout(name), kind)
            pieces = [part[name] for part in own]
            arrays[name] = jax.make_array_from_single_device_arrays(shapes[name], sharding, pieces)
        stages.append(arrays)
    return stages


def _stage_devices(entry: ModelEntry, placement: Placement, stage: int) -> list[_Device]:
    size = placement.mesh.num_devices
    return devices_of(entry)[stage * size : (stage + 1) * size]


def _indices(
    model: str, placement: Placement, stage: int, name: str, tensors: Mapping[str, np.ndarray]
) -> Mapping[_Device, tuple[slice, ...]]:
    if name not in tensors:
        raise BundleIntegrityError(f"model {model!r} places the parameter {name!r}, which its weight file has not")
    shape, layout = tensors[name].shape, placement.stages[stage].layout(name)
    if len(layout.dims) != len(shape) or not layout.fits(shape, placement.mesh):
        raise BundleIntegrityError(
            f"model {model!r} divides the parameter {name!r} as {layout} over {placement.mesh}; "
            f"its shape {list(shape)} does not divide so"
        )
    return placement.sharding(stage, layout).devices_indices_map(shape)
