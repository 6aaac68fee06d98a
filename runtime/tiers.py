"""The tiers' contents: the arrays of each model in each tier, and the copies that move them.

`copy` runs on the transfer thread and is the only place where weights move; what it makes belongs to nobody until the
engine thread takes it over. Copies between memory kinds are real, and paced where the target's link
says so: a copy then takes what the link would take, however fast this machine's memory is.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Sharding

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.bundle.reader import Bundle
from ..compiler.bundle.weights import MappedWeights
from ..compiler.executable import device_sharding
from ..compiler.kv_pool import zeroed_pools
from ..compiler.target import Target
from ..errors import ExecutionError
from ..models.config import DecoderConfig
from .arena import Arena, aligned_empty, padded
from .chunks import ChunkCopier, Pace, Tensor
from .events import TierName, Transfer
from .gaps import StepGaps
from .parts import assemble, host_parts, shards

__all__ = ["Copier", "Moved", "TransferRecord"]


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
        begin = 0
        for name, tensor in tensors.items():
            self.views[name] = memory[begin : begin + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
            begin += padded(tensor.nbytes)

    @staticmethod
    def num_bytes(tensors: Mapping[str, Tensor]) -> int:
        """Returns the bytes that a block of these tensors takes."""
        return sum(padded(tensor.nbytes) for tensor in tensors.values())


@dataclass(frozen=True)
class Moved:
    """A model's arrays in one tier, or those of its first segments that stayed in hbm."""

    weights: list[dict[str, jax.Array]]  # of each stage, divided over its devices
    pools: list[jax.Array]  # KV pool of each layer, on the devices of its stage; only in hbm
    record: TransferRecord
    shapes: dict[str, tuple[int, ...]]  # of the whole tensors
    mapping: MappedWeights | None = None  # the file that the weights alias, on a unified target
    blocks: tuple[tuple[Block, ...], ...] = ()  # of each device: memory of this process that its weights are views of
    arena: Arena | None = None  # that the blocks are pieces of

    @property
    def arrays(self) -> list[jax.Array]:
        """All arrays."""
        return [*(array for stage in self.weights for array in stage.values()), *self.pools]

    @property
    def views(self) -> list[dict[str, np.ndarray]]:
        """Each device's weights as this process sees them; empty where it does not."""
        return [{name: view for block in blocks for name, view in block.views.items()} for blocks in self.blocks]

    def release(self) -> None:
        """Frees the memory at once, rather than with the last reference."""
        self.keep(frozenset())
        if self.mapping is not None:
            self.mapping.close()

    def keep(self, names: Collection[str]) -> Moved:
        """Frees everything but the weights of these names, which are whole segments; returns what is left."""
        left = [{name: array for name, array in stage.items() if name in names} for stage in self.weights]
        for array in (*(a for stage in self.weights for name, a in stage.items() if name not in names), *self.pools):
            array.delete()
        self.weights.clear()
        self.pools.clear()
        kept: list[tuple[Block, ...]] = []
        for blocks in self.blocks:
            kept.append(tuple(block for block in blocks if not block.views.keys().isdisjoint(names)))
            for block in blocks:
                if self.arena is not None and block not in kept[-1]:
                    self.arena.release(block.memory)
        return replace(self, weights=left, pools=[], blocks=tuple(kept))


class Copier:
    """Moves models between the tiers of a target.

    Args:
        bundle: Where weights come from.
        target: Its tiers and links.
        arena: Memory that stands in for the devices' own; None where they have some, or alias files.
        gaps: Between steps, for copies into the arena.
    """

    def __init__(self, bundle: Bundle, target: Target, arena: Arena | None, gaps: StepGaps) -> None:
        self._bundle = bundle
        self._target = target
        self._arena = arena
        self._gaps = gaps
        self._chunks = ChunkCopier()

    def close(self) -> None:
        """Ends the copying threads."""
        self._chunks.close()

    def copy(
        self,
        transfer: Transfer,
        entry: ModelEntry,
        source: Moved | None,
        progress: Callable[[int], None],
        kept: Moved | None = None,
    ) -> Moved:
        """Carries a transfer out.

        Args:
            transfer: What to move where.
            entry: The model.
            source: The model in the source tier; None where that is the disk.
            progress: Told after each chunk how many bytes have arrived on the fullest device. What it raises ends the
                transfer, and what has arrived is freed.
            kept: What the destination has of the model; a part of the result unless the transfer fails.

        Raises:
            BundleIntegrityError: if the file is not what the manifest says.
            ExecutionError: if the memory kinds are not those of the tiers.
        """
        began = time.perf_counter()
        kind = self._target.tiers[transfer.destination].memory_kind
        pace = Pace(self._target.link(transfer.source, transfer.destination), began)
        with contextlib.ExitStack() as on_failure:
            mapping = self._bundle.map_weights(entry.name) if source is None else None
            is_alias = mapping is not None and self._target.kind == "unified"
            arena = self._arena if transfer.destination == "hbm" and not is_alias else None
            blocks: list[tuple[Block, ...]] = []
            arrived: list[dict[str, jax.Array]] = []
            on_failure.callback(_free, arrived, blocks, arena, mapping)
            for number, tensors in enumerate(_missing(_parts(entry, mapping, source), kept)):
                arrived.append({})
                views: dict[str, np.ndarray] | None = None
                if arena is not None or (mapping is not None and not is_alias):
                    blocks.append(tuple(_blocks(entry, tensors, arena)))
                    views = {name: view for block in blocks[number] for name, view in block.views.items()}
                pace.next_device()
                sharding = device_sharding(kind, number)
                stands_in = arena is not None and source is not None and pace.is_kept
                within = (lambda: self._gaps.chunk(pace.due)) if stands_in else None
                with contextlib.closing(self._chunks.copy(tensors, views, transfer.chunk_bytes, within)) as chunks:
                    for whole, num_bytes in chunks:
                        arrived[number] |= _put(whole, sharding)
                        pace.moved(num_bytes)
                        progress(pace.done_bytes)
            copy_seconds = time.perf_counter() - began - pace.slept_seconds
            shapes = source.shapes if source is not None else {name: tensor.shape for name, tensor in mapping.items()}  # type: ignore[union-attr]
            weights = assemble(entry, arrived, shapes, kind)
            pools = self.empty_pools(entry) if transfer.destination == "hbm" else []
            _check_memory_kind([*(array for stage in weights for array in stage.values()), *pools], kind)
            on_failure.pop_all()
        if mapping is not None and not is_alias:
            mapping.close()
        if kept is not None:
            weights = [before | new for before, new in zip(kept.weights, weights, strict=True)]
            blocks = [(*before, *new) for before, new in zip(kept.blocks, blocks, strict=True)]
        seconds = time.perf_counter() - began
        record = TransferRecord(
            entry.name, transfer.source, transfer.destination, pace.done_bytes, seconds, copy_seconds
        )
        return Moved(weights, pools, record, shapes, mapping if is_alias else None, tuple(blocks), arena)

    def empty_pools(self, entry: ModelEntry) -> list[jax.Array]:
        """Returns zeroed KV pools of a model in hbm, one a layer; none for an encoder."""
        config = entry.config
        if entry.kv is None or not isinstance(config, DecoderConfig):
            return []
        pools = zeroed_pools(config, entry.kv.num_blocks, entry.kv.dtype, self.pool_shardings(entry))
        return jax.block_until_ready(pools)

    def pool_shardings(self, entry: ModelEntry) -> list[Sharding]:
        """Returns where the KV pool of each layer of a decoder is."""
        assert isinstance(entry.config, DecoderConfig), entry.name
        kind = self._target.tiers["hbm"].memory_kind
        if entry.placement is not None:
            return entry.placement.pool_shardings(kind)
        return [device_sharding(kind)] * entry.config.num_layers


def _put(tensors: Mapping[str, Tensor], sharding: Sharding) -> Mapping[str, jax.Array]:
    """Returns tensors as arrays of a device; those in memory that stands in for it are taken over, not copied.

    While JAX is at it, each of the arrays counts several times among the live ones: so not too many at once.
    """
    if any(isinstance(tensor, jax.Array) for tensor in tensors.values()):  # a callback's result stays where it is
        return jax.block_until_ready(jax.device_put(tensors, sharding))
    return jax.block_until_ready({name: _array(tensor, sharding) for name, tensor in tensors.items()})


def _array(tensor: Tensor, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(tensor.shape, sharding, lambda _: tensor)  # two thirds of `device_put`'s time


def _parts(entry: ModelEntry, mapping: MappedWeights | None, source: Moved | None) -> Sequence[Mapping[str, Tensor]]:
    """Returns of each device what it is to get, where that is now."""
    if mapping is not None:
        return host_parts(entry, mapping)
    assert source is not None, "a transfer comes from the disk or from a tier"
    return source.views or shards(entry, source.weights)


def _missing(parts: Sequence[Mapping[str, Tensor]], kept: Moved | None) -> list[Mapping[str, Tensor]]:
    """Returns of each device the tensors that it has not."""
    known = {name for stage in kept.weights for name in stage} if kept is not None else ()
    return [{name: tensor for name, tensor in part.items() if name not in known} for part in parts]


def _blocks(entry: ModelEntry, tensors: Mapping[str, Tensor], arena: Arena | None) -> Iterator[Block]:
    """Yields memory for some tensors of a model on one device, a block for each segment."""
    for names in [segment.tensors for segment in entry.segments] or [tuple(tensors)]:
        held = {name: tensors[name] for name in names if name in tensors}
        if held:
            num_bytes = Block.num_bytes(held)
            yield Block(aligned_empty(num_bytes) if arena is None else arena.allocate(num_bytes), held)


def _free(
    arrived: Sequence[Mapping[str, jax.Array]],
    blocks: Sequence[Sequence[Block]],
    arena: Arena | None,
    mapping: MappedWeights | None,
) -> None:
    """Gives back what a transfer has that does not end well."""
    for array in (array for arrays in arrived for array in arrays.values()):
        array.delete()
    if arena is not None:
        for block in itertools.chain.from_iterable(blocks):
            arena.release(block.memory)
    if mapping is not None:
        mapping.close()


def _check_memory_kind(arrays: list[jax.Array], kind: str | None) -> None:
    """XLA runs a CPU program on arrays of any memory kind, so the tiers are only as true as this check."""
    for array in arrays:
        if array.sharding.memory_kind != kind:
            raise ExecutionError(f"an array arrived in memory {array.sharding.memory_kind!r} instead of {kind!r}")
