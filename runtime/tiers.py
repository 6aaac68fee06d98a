"""The tiers' contents: the arrays of each model in each tier, and the copies that move them.

`copy` runs on the transfer thread and is the only place where weights move; what it makes belongs to nobody until the
engine thread takes it into `TieredWeights`. Copies between memory kinds are real, and paced where the target's link
says so: a copy then takes what the link would take, however fast this machine's memory is.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

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
from .events import TierName, Transfer

__all__ = ["Copier", "Moved", "TransferRecord", "reserve_memory"]

_CHUNK_BYTES = 16 << 20  # tensors are copied in groups of about this size: one dispatch, one progress report
_ALIGNMENT = 64  # bytes; JAX takes over an aligned buffer without a copy


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
    mapping: MappedWeights | None  # the file that the weights alias, on a unified target
    record: TransferRecord

    def release(self) -> None:
        """Frees the memory at once, rather than with the last reference."""
        for array in (*self.weights.values(), *self.pools):
            array.delete()
        self.weights.clear()
        self.pools.clear()
        if self.mapping is not None:
            self.mapping.close()


class Copier:
    """Moves models between the tiers of a target."""

    def __init__(self, bundle: Bundle, target: Target) -> None:
        self._bundle = bundle
        self._target = target

    def copy(
        self,
        transfer: Transfer,
        entry: ModelEntry,
        source: Mapping[str, jax.Array] | None,
        progress: Callable[[int], None],
    ) -> Moved:
        """Carries a transfer out.

        Args:
            transfer: What to move where.
            entry: The model.
            source: Its arrays in the source tier; None where that is the disk.
            progress: Told the bytes that have arrived, now and then.

        Raises:
            BundleIntegrityError: if the file is not what the manifest says.
            ExecutionError: if the memory kinds are not those of the tiers.
        """
        began = time.perf_counter()
        kind = self._target.tiers[transfer.destination].memory_kind
        sharding = device_sharding(kind)
        mapping = self._bundle.map_weights(entry.name) if source is None else None
        is_alias = mapping is not None and self._target.kind == "unified"
        tensors = self._host_tensors(mapping, is_alias=is_alias) if mapping is not None else (source or {}).items()
        pace = _Pace(self._target.link(transfer.source, transfer.destination), began)
        weights: dict[str, jax.Array] = {}
        for group in _groups(tensors):
            arrived = jax.block_until_ready(jax.device_put(group, sharding))
            pace.moved(sum(array.nbytes for array in arrived.values()))
            progress(pace.done_bytes)
            weights |= arrived
        copy_seconds = time.perf_counter() - began - pace.slept_seconds
        if mapping is not None and not is_alias:
            mapping.close()
        pools = _pools(entry, kind) if transfer.destination == "hbm" else []
        _check_memory_kind([*weights.values(), *pools], kind)
        seconds = time.perf_counter() - began
        record = TransferRecord(
            entry.name, transfer.source, transfer.destination, pace.done_bytes, seconds, copy_seconds
        )
        return Moved(weights, pools, mapping if is_alias else None, record)

    @staticmethod
    def _host_tensors(mapping: MappedWeights, *, is_alias: bool) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the tensors of a mapped file: the mapped pages themselves, or copies of them in memory of our own."""
        for name in mapping:
            yield name, mapping[name] if is_alias else _aligned_copy(mapping[name])


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


def reserve_memory(num_bytes: int) -> None:
    """Makes so much memory ready for fast copies, as an accelerator's allocator holds a pool.

    The C library would hand each evicted model's pages back, and the next one would arrive at the speed of page
    faults, many times slower than the copy itself. So freed memory stays with the process from here on, and its pages
    are touched once beforehand. Does nothing without glibc.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_arena_max, 1)
    np.ones(num_bytes, np.uint8)


def _groups(
    tensors: Iterable[tuple[str, np.ndarray | jax.Array]],
) -> Iterator[dict[str, np.ndarray | jax.Array]]:
    """Yields tensors in groups of about _CHUNK_BYTES, in order."""
    group: dict[str, np.ndarray | jax.Array] = {}
    for name, tensor in tensors:
        group[name] = tensor
        if sum(member.nbytes for member in group.values()) >= _CHUNK_BYTES:
            yield group
            group = {}
    if group:
        yield group


def _aligned_copy(values: np.ndarray) -> np.ndarray:
    """Returns a copy in memory of its own that a pinned_host array can take over."""
    raw = np.empty(values.nbytes + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    copy = raw[offset : offset + values.nbytes].view(values.dtype).reshape(values.shape)
    np.copyto(copy, values)
    return copy


def _pools(entry: ModelEntry, memory_kind: str | None) -> list[jax.Array]:
    config = entry.config
    if entry.kv is None or not isinstance(config, DecoderConfig):
        return []
    shape, dtype = pool_shape(config, entry.kv.num_blocks), pool_dtype(entry.kv.dtype)
    sharding = device_sharding(memory_kind)
    return jax.block_until_ready([jnp.zeros(shape, dtype, device=sharding) for _ in range(config.num_layers)])


def _check_memory_kind(arrays: list[jax.Array], kind: str | None) -> None:
    """XLA runs a CPU program on arrays of any memory kind, so the tiers are only as true as this check."""
    for array in arrays:
        if array.sharding.memory_kind != kind:
            raise ExecutionError(f"an array arrived in memory {array.sharding.memory_kind!r} instead of {kind!r}")
