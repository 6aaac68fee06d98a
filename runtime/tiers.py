"""The tiers' contents: the arrays of each model in each tier, and the copies that move them.

`copy` runs on the transfer thread and is the only place where weights move; what it makes belongs to nobody until the
engine thread takes it into `TieredWeights`. Copies between memory kinds are real, and paced where the target's link
says so: a copy then takes what the link would take, however fast this machine's memory is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.bundle.reader import Bundle
from ..compiler.bundle.weights import MappedWeights
from ..compiler.executable import device_sharding
from ..compiler.implementations import pool_dtype
from ..compiler.lower import pool_shape
from ..compiler.target import Link, Target
from ..errors import ExecutionError
from ..models.config import DecoderConfig
from .arena import Arena, aligned_empty
from .events import TierName, Transfer

__all__ = ["Copier", "Moved", "TransferRecord"]

_CHUNK_BYTES = 16 << 20  # tensors are copied in groups of about this size, each waited for and reported


@dataclass(frozen=True)
class TransferRecord:
    """What a finished transfer took."""

    model: str
    source: TierName
    destination: TierName
    num_bytes: int
    seconds: float  # from its start until the model can run, room for its KV pool included
    copy_seconds: float  # of that, spent copying weights rather than keeping the link's pace


@dataclass(frozen=True)
class Moved:
    """A model's arrays in one tier."""

    weights: dict[str, jax.Array]
    pools: list[jax.Array]  # KV pool of each layer; only in hbm
    record: TransferRecord
    mapping: MappedWeights | None = None  # the file that the weights alias, on a unified target
    copies: dict[str, np.ndarray] = field(default_factory=dict)  # host memory of ours that the weights are views of
    arena: Arena | None = None  # that `copies` are pieces of

    def release(self) -> None:
        """Frees the memory at once, rather than with the last reference."""
        for array in (*self.weights.values(), *self.pools):
            array.delete()
        self.weights.clear()
        self.pools.clear()
        if self.mapping is not None:
            self.mapping.close()
        if self.arena is not None:
            for copy in self.copies.values():
                self.arena.release(copy)
        self.copies.clear()


class Copier:
    """Moves models between the tiers of a target.

    Args:
        bundle: Where weights come from.
        target: Its tiers and links.
        arena: Memory that stands in for the device's own; None where the device has some, or aliases files.
    """

    def __init__(self, bundle: Bundle, target: Target, arena: Arena | None) -> None:
        self._bundle = bundle
        self._target = target
        self._arena = arena

    def copy(
        self,
        transfer: Transfer,
        entry: ModelEntry,
        source: Moved | None,
        progress: Callable[[int], None],
    ) -> Moved:
        """Carries a transfer out.

        Args:
            transfer: What to move where.
            entry: The model.
            source: The model in the source tier; None where that is the disk.
            progress: Told the bytes that have arrived, now and then.

        Raises:
            BundleIntegrityError: if the file is not what the manifest says.
            ExecutionError: if the memory kinds are not those of the tiers.
        """
        began = time.perf_counter()
        kind = self._target.tiers[transfer.destination].memory_kind
        sharding = device_sharding(kind)
        mapping = self._bundle.map_weights(entry.name) if source is None else None
        tensors = _tensors(mapping, source)
        is_alias = mapping is not None and self._target.kind == "unified"
        arena = self._arena if transfer.destination == "hbm" and not is_alias else None
        pace = _Pace(self._target.link(transfer.source, transfer.destination), began)
        weights: dict[str, jax.Array] = {}
        copies: dict[str, np.ndarray] = {}
        for group, num_bytes in _groups(tensors):
            if not is_alias and (arena is not None or mapping is not None):
                for name, tensor in group.items():
                    memory = aligned_empty(tensor.nbytes) if arena is None else arena.allocate(tensor.nbytes)
                    group[name] = copies[name] = _copied(np.asarray(tensor), memory)
            weights |= jax.block_until_ready(jax.device_put(group, sharding))
            pace.moved(num_bytes)
            progress(pace.done_bytes)
        copy_seconds = time.perf_counter() - began - pace.slept_seconds
        if mapping is not None and not is_alias:
            mapping.close()
        pools = self.empty_pools(entry) if transfer.destination == "hbm" else []
        _check_memory_kind([*weights.values(), *pools], kind)
        seconds = time.perf_counter() - began
        record = TransferRecord(
            entry.name, transfer.source, transfer.destination, pace.done_bytes, seconds, copy_seconds
        )
        return Moved(weights, pools, record, mapping if is_alias else None, copies, arena)

    def empty_pools(self, entry: ModelEntry) -> list[jax.Array]:
        """Returns zeroed KV pools of a model in hbm, one a layer; none for an encoder."""
        config = entry.config
        if entry.kv is None or not isinstance(config, DecoderConfig):
            return []
        shape, dtype = pool_shape(config, entry.kv.num_blocks), pool_dtype(entry.kv.dtype)
        sharding = device_sharding(self._target.tiers["hbm"].memory_kind)
        return jax.block_until_ready([jnp.zeros(shape, dtype, device=sharding) for _ in range(config.num_layers)])


class _Pace:
    """Keeps a copy from being faster than its link."""

    def __init__(self, link: Link, began: float) -> None:
        self._link = link
        self._began = began
        self.done_bytes = 0
        self.slept_seconds = 0.0

    def moved(self, num_bytes: int) -> None:
        """Counts bytes that have arrived, and waits until the link would have moved all there are so far."""
        self.done_bytes += num_bytes
        if self._link.pace:
            due = self._began + self._link.latency_seconds + self.done_bytes / self._link.bandwidth_bytes_per_s
            wait = due - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
                self.slept_seconds += wait


def _tensors(mapping: MappedWeights | None, source: Moved | None) -> Mapping[str, np.ndarray | jax.Array]:
    if mapping is not None:
        return mapping
    assert source is not None, "a transfer comes from the disk or from a tier"
    return source.copies or source.weights  # asking a pinned_host array for its values would copy them once more


def _groups(
    tensors: Mapping[str, np.ndarray | jax.Array],
) -> Iterator[tuple[dict[str, np.ndarray | jax.Array], int]]:
    """Yields tensors in groups of about _CHUNK_BYTES, in order, with the bytes of each group."""
    group: dict[str, np.ndarray | jax.Array] = {}
    num_bytes = 0
    for name, tensor in tensors.items():
        group[name] = tensor
        num_bytes += tensor.nbytes
        if num_bytes >= _CHUNK_BYTES:
            yield group, num_bytes
            group, num_bytes = {}, 0
    if group:
        yield group, num_bytes


def _copied(values: np.ndarray, destination: np.ndarray) -> np.ndarray:
    """Copies values into memory of as many bytes and returns them there; JAX can take them over."""
    np.copyto(destination, values.reshape(-1).view(np.uint8))
    return destination.view(values.dtype).reshape(values.shape)


def _check_memory_kind(arrays: list[jax.Array], kind: str | None) -> None:
    """XLA runs a CPU program on arrays of any memory kind, so the tiers are only as true as this check."""
    for array in arrays:
        if array.sharding.memory_kind != kind:
            raise ExecutionError(f"an array arrived in memory {array.sharding.memory_kind!r} instead of {kind!r}")
