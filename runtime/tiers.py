"""The tiers' contents: the arrays of each model in each tier, and the copies that move them.

`copy` runs on the transfer thread and is the only place where weights move; what it makes belongs to nobody until the
engine thread takes it over. Copies between memory kinds are real, and paced where the target's link
says so: a copy then takes what the link would take, however fast this machine's memory is.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.bundle.reader import Bundle
from ..compiler.bundle.weights import MappedWeights
from ..compiler.executable import device_sharding
from ..compiler.lower import pool_shape
from ..compiler.paged_attention import pool_dtype
from ..compiler.target import Link, Target
from ..errors import ExecutionError
from ..models.config import DecoderConfig
from .arena import Arena, aligned_empty, padded
from .events import TierName, Transfer
from .parts import assemble, host_parts, shards

__all__ = ["Copier", "Moved", "TransferRecord"]

Tensor: TypeAlias = np.ndarray | jax.Array

_CHUNK_BYTES = 16 << 20  # tensors are copied in groups of about this size, each waited for and reported
_COPY_THREADS = 2  # one thread alone does not fill this machine's memory bus


@dataclass(frozen=True)
class TransferRecord:
    """What a finished transfer took."""

    model: str
    source: TierName
    destination: TierName
    num_bytes: int
    seconds: float  # from its start until the model can run, room for its KV pool included
    copy_seconds: float  # of that, spent copying weights rather than keeping the link's pace


class Block:
    """A model's tensors, one after the other in one piece of memory; the same places for the same tensors.

    Args:
        memory: Aligned bytes, [Block.num_bytes(tensors)] of u8.
        tensors: What it has room for; not copied.
    """

    def __init__(self, memory: np.ndarray, tensors: Mapping[str, Tensor]) -> None:
        self.memory = memory
        self.views: dict[str, np.ndarray] = {}
        self._ends: dict[str, int] = {}
        begin = 0
        for name, tensor in tensors.items():
            self.views[name] = memory[begin : begin + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
            begin = self._ends[name] = begin + padded(tensor.nbytes)

    @staticmethod
    def num_bytes(tensors: Mapping[str, Tensor]) -> int:
        """Returns the bytes that a block of these tensors takes."""
        return sum(padded(tensor.nbytes) for tensor in tensors.values())

    def span(self, first: str, last: str) -> tuple[int, int]:
        """Returns where the bytes of consecutive tensors are, half-open."""
        return self._ends[first] - padded(self.views[first].nbytes), self._ends[last]


@dataclass(frozen=True)
class Moved:
    """A model's arrays in one tier."""

    weights: list[dict[str, jax.Array]]  # of each stage, divided over its devices
    pools: list[jax.Array]  # KV pool of each layer, on the devices of its stage; only in hbm
    record: TransferRecord
    shapes: dict[str, tuple[int, ...]]  # of the whole tensors
    mapping: MappedWeights | None = None  # the file that the weights alias, on a unified target
    blocks: tuple[Block, ...] = ()  # of each device: memory of this process that its weights are views of
    arena: Arena | None = None  # that the blocks are pieces of

    def release(self) -> None:
        """Frees the memory at once, rather than with the last reference."""
        for array in (*(array for stage in self.weights for array in stage.values()), *self.pools):
            array.delete()
        self.weights.clear()
        self.pools.clear()
        if self.mapping is not None:
            self.mapping.close()
        if self.arena is not None:
            for block in self.blocks:
                self.arena.release(block.memory)


class Copier:
    """Moves models between the tiers of a target.

    Args:
        bundle: Where weights come from.
        target: Its tiers and links.
        arena: Memory that stands in for the devices' own; None where they have some, or alias files.
    """

    def __init__(self, bundle: Bundle, target: Target, arena: Arena | None) -> None:
        self._bundle = bundle
        self._target = target
        self._arena = arena
        self._copying = ThreadPoolExecutor(_COPY_THREADS, thread_name_prefix="plait-copy")

    def close(self) -> None:
        """Ends the copying threads."""
        self._copying.shutdown()

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
            progress: Told the bytes that have arrived on the fullest device, now and then.

        Raises:
            BundleIntegrityError: if the file is not what the manifest says.
            ExecutionError: if the memory kinds are not those of the tiers.
        """
        began = time.perf_counter()
        kind = self._target.tiers[transfer.destination].memory_kind
        mapping = self._bundle.map_weights(entry.name) if source is None else None
        is_alias = mapping is not None and self._target.kind == "unified"
        arena = self._arena if transfer.destination == "hbm" and not is_alias else None
        blocks: list[Block] = []
        pace = _Pace(self._target.link(transfer.source, transfer.destination), began)
        arrived: list[dict[str, jax.Array]] = []
        try:
            for number, tensors in enumerate(_parts(entry, mapping, source)):
                if arena is not None or (mapping is not None and not is_alias):
                    blocks.append(self._room_for(tensors, arena))
                held = source.blocks[number] if source is not None and source.blocks else None
                groups = self._arriving(tensors, blocks[number] if blocks else None, held)
                arrived.append(_take_over(groups, device_sharding(kind, number), pace, progress))
        except Exception:
            if arena is not None:
                for block in blocks:
                    arena.release(block.memory)
            raise
        copy_seconds = time.perf_counter() - began - pace.slept_seconds
        shapes = source.shapes if source is not None else {name: tensor.shape for name, tensor in mapping.items()}  # type: ignore[union-attr]
        weights = assemble(entry, arrived, shapes, kind)
        if mapping is not None and not is_alias:
            mapping.close()
        pools = self.empty_pools(entry) if transfer.destination == "hbm" else []
        _check_memory_kind([*(array for stage in weights for array in stage.values()), *pools], kind)
        seconds = time.perf_counter() - began
        record = TransferRecord(
            entry.name, transfer.source, transfer.destination, pace.done_bytes, seconds, copy_seconds
        )
        return Moved(weights, pools, record, shapes, mapping if is_alias else None, tuple(blocks), arena)

    @staticmethod
    def _room_for(tensors: Mapping[str, Tensor], arena: Arena | None) -> Block:
        num_bytes = Block.num_bytes(tensors)
        return Block(aligned_empty(num_bytes) if arena is None else arena.allocate(num_bytes), tensors)

    def _arriving(
        self, tensors: Mapping[str, Tensor], block: Block | None, source: Block | None
    ) -> Iterator[tuple[Mapping[str, Tensor], int]]:
        """Yields groups of tensors with their bytes, each copied while the one before is taken over by JAX.

        Args:
            tensors: What to move.
            block: Where to; None leaves the tensors where they are.
            source: Where they are, if that is a block as well.
        """
        ahead: deque[tuple[Mapping[str, Tensor], int, list[Future[None]]]] = deque()
        for group, num_bytes in _groups(tensors):
            copied = group if block is None else {name: block.views[name] for name in group}
            ahead.append((copied, num_bytes, [] if block is None else self._start_copy(group, block, source)))
            if len(ahead) > 1:
                yield _finished(*ahead.popleft())
        while ahead:
            yield _finished(*ahead.popleft())

    def _start_copy(self, group: Mapping[str, Tensor], block: Block, source: Block | None) -> list[Future[None]]:
        if source is None:
            return [self._copying.submit(_copy_tensors, group, block)]
        names = list(group)
        begin, end = block.span(names[0], names[-1])
        bounds = [begin + (end - begin) * part // _COPY_THREADS for part in range(_COPY_THREADS + 1)]
        return [
            self._copying.submit(np.copyto, block.memory[low:high], source.memory[low:high])
            for low, high in itertools.pairwise(bounds)
        ]

    def empty_pools(self, entry: ModelEntry) -> list[jax.Array]:
        """Returns zeroed KV pools of a model in hbm, one a layer; none for an encoder."""
        config = entry.config
        if entry.kv is None or not isinstance(config, DecoderConfig):
            return []
        shape, dtype = pool_shape(config, entry.kv.num_blocks), pool_dtype(entry.kv.dtype)
        where = self.pool_shardings(entry)
        return jax.block_until_ready([jnp.zeros(shape, dtype, device=sharding) for sharding in where])

    def pool_shardings(self, entry: ModelEntry) -> list[Sharding]:
        """Returns where the KV pool of each layer of a decoder is."""
        assert isinstance(entry.config, DecoderConfig), entry.name
        kind = self._target.tiers["hbm"].memory_kind
        if entry.placement is not None:
            return entry.placement.pool_shardings(kind)
        return [device_sharding(kind)] * entry.config.num_layers


class _Pace:
    """Keeps a copy from being faster than its link; every device has one of its own, and all begin together."""

    def __init__(self, link: Link, began: float) -> None:
        self._link = link
        self._began = began
        self._device_bytes = 0  # of the device whose turn it is
        self.done_bytes = 0  # of the fullest device so far
        self.slept_seconds = 0.0

    def next_device(self) -> None:
        """Begins to count another device's bytes."""
        self._device_bytes = 0

    def moved(self, num_bytes: int) -> None:
        """Counts bytes that have arrived, and waits until the link would have moved all there are so far."""
        self._device_bytes += num_bytes
        self.done_bytes = max(self.done_bytes, self._device_bytes)
        if self._link.pace:
            due = self._began + self._link.latency_seconds + self._device_bytes / self._link.bandwidth_bytes_per_s
            wait = due - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
                self.slept_seconds += wait


def _parts(entry: ModelEntry, mapping: MappedWeights | None, source: Moved | None) -> Sequence[Mapping[str, Tensor]]:
    """Returns of each device what it is to get, where that is now."""
    if mapping is not None:
        return host_parts(entry, mapping)
    assert source is not None, "a transfer comes from the disk or from a tier"
    return [block.views for block in source.blocks] if source.blocks else shards(entry, source.weights)


def _take_over(
    groups: Iterator[tuple[Mapping[str, Tensor], int]],
    sharding: SingleDeviceSharding,
    pace: _Pace,
    progress: Callable[[int], None],
) -> dict[str, jax.Array]:
    """Returns one device's arrays of the groups of tensors that arrive."""
    arrays: dict[str, jax.Array] = {}
    pace.next_device()
    for group, num_bytes in groups:
        arrays |= jax.block_until_ready(jax.device_put(group, sharding))
        pace.moved(num_bytes)
        progress(pace.done_bytes)
    return arrays


def _groups(
    tensors: Mapping[str, Tensor],
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Yields tensors in groups of about _CHUNK_BYTES, in order, with the bytes of each group."""
    group: dict[str, Tensor] = {}
    num_bytes = 0
    for name, tensor in tensors.items():
        group[name] = tensor
        num_bytes += tensor.nbytes
        if num_bytes >= _CHUNK_BYTES:
            yield group, num_bytes
            group, num_bytes = {}, 0
    if group:
        yield group, num_bytes


def _copy_tensors(group: Mapping[str, Tensor], block: Block) -> None:
    for name, tensor in group.items():
        values = np.asarray(tensor).reshape(-1).view(np.uint8)
        np.copyto(block.views[name].reshape(-1).view(np.uint8), values)


def _finished(
    group: Mapping[str, Tensor], num_bytes: int, copies: list[Future[None]]
) -> tuple[Mapping[str, Tensor], int]:
    for copy in copies:
        copy.result()
    return group, num_bytes


def _check_memory_kind(arrays: list[jax.Array], kind: str | None) -> None:
    """XLA runs a CPU program on arrays of any memory kind, so the tiers are only as true as this check."""
    for array in arrays:
        if array.sharding.memory_kind != kind:
            raise ExecutionError(f"an array arrived in memory {array.sharding.memory_kind!r} instead of {kind!r}")
