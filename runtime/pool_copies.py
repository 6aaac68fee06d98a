"""Copies of KV blocks: within a model's pools, out of them to memory of the host, and back.

A block is a row of every layer's pool. Copies go in groups of a fixed number of blocks, so that each kind is one
program for each pipeline stage, compiled ahead; a group that is not full is filled up with blocks out of range, which
are read as anything and written nowhere. A group's values are all that a copy needs in hbm beside the pools.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import jax
import numpy as np
from jax.sharding import Sharding

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.kv_pool import pool_dtype, pool_shape
from ..compiler.target import Link
from ..models.config import DecoderConfig

__all__ = ["GROUP_BLOCKS", "PoolCopier", "SavedBlock"]

SavedBlock: TypeAlias = tuple[np.ndarray, ...]  # of each layer: [block tokens, *entry]

GROUP_BLOCKS = 8  # a group takes as long, however many of its blocks are wanted


class PoolCopier:
    """Copies blocks of one model's pools.

    Args:
        entry: The model, a decoder.
        shardings: Of each layer's pool.
        link: Between ddr and hbm, whose pace copies keep if it says so; None where there is no ddr.
    """

    def __init__(self, entry: ModelEntry, shardings: Sequence[Sharding], link: Link | None) -> None:
        assert entry.kv is not None, entry.name
        assert isinstance(entry.config, DecoderConfig), entry.name
        self._num_blocks = entry.kv.num_blocks
        self._link = link
        shape, dtype = pool_shape(entry.config, entry.kv.num_blocks), pool_dtype(entry.kv.dtype)
        pools = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for sharding in shardings]
        rows = [jax.ShapeDtypeStruct((GROUP_BLOCKS, *shape[1:]), dtype, sharding=sharding) for sharding in shardings]
        stages = itertools.groupby(range(len(pools)), lambda layer: frozenset(shardings[layer].device_set))
        layers = [list(group) for _, group in stages]
        self._stages = [slice(group[0], group[-1] + 1) for group in layers]
        blocks = jax.ShapeDtypeStruct((GROUP_BLOCKS,), np.int32)
        self._copy = [_compiled(_copied, pools[stage], blocks, blocks) for stage in self._stages]
        with_ddr = self._stages if link is not None else []
        self._read = [_compiled(_rows, pools[stage], blocks) for stage in with_ddr]
        self._write = [_compiled(_written, pools[stage], blocks, rows[stage]) for stage in with_ddr]

    def copy(self, pools: list[jax.Array], copies: Sequence[tuple[int, int]]) -> None:
        """Copies blocks within the pools, each from its source to its destination; the pools are replaced in place."""
        for group in _groups(copies):
            sources, destinations = self._ids(s for s, _ in group), self._ids(d for _, d in group)
            for stage, program in zip(self._stages, self._copy, strict=True):
                pools[stage] = program(pools[stage], sources, destinations)

    def save(self, pools: list[jax.Array], blocks: Sequence[int], num_bytes: int) -> list[SavedBlock]:
        """Returns the contents of blocks.

        Args:
            pools: Of each layer; only read.
            blocks: Their ids.
            num_bytes: What the link is to move.
        """
        began = time.perf_counter()
        saved: list[SavedBlock] = []
        for group in _groups(blocks):
            ids = self._ids(group)
            stages = zip(self._stages, self._read, strict=True)
            layers = [np.asarray(rows) for stage, program in stages for rows in program(pools[stage], ids)]
            saved += [tuple(rows[index].copy() for rows in layers) for index in range(len(group))]
        self._keep_pace(began, num_bytes)
        return saved

    def load(
        self, pools: list[jax.Array], blocks: Sequence[int], contents: Sequence[SavedBlock], num_bytes: int
    ) -> None:
        """Writes contents to blocks; the pools are replaced in place.

        Args:
            pools: Of each layer; donated.
            blocks: Their ids.
            contents: Of each of them.
            num_bytes: What the link is to move.
        """
        began = time.perf_counter()
        for group in _groups(list(zip(blocks, contents, strict=True))):
            ids = self._ids(block for block, _ in group)
            values = [content for _, content in group]
            values += values[:1] * (GROUP_BLOCKS - len(group))
            rows = [np.stack(layer) for layer in zip(*values, strict=True)]
            for stage, program in zip(self._stages, self._write, strict=True):
                pools[stage] = program(pools[stage], ids, rows[stage])
        jax.block_until_ready(pools)
        self._keep_pace(began, num_bytes)

    def _ids(self, blocks: Iterable[int]) -> np.ndarray:
        ids = np.full(GROUP_BLOCKS, self._num_blocks, np.int32)
        listed = list(blocks)
        ids[: len(listed)] = listed
        return ids

    def _keep_pace(self, began: float, num_bytes: int) -> None:
        if self._link is not None and self._link.pace:
            seconds = self._link.latency_seconds + num_bytes / self._link.bandwidth_bytes_per_s
            time.sleep(max(0.0, began + seconds - time.perf_counter()))


def _compiled(function, pools: list[jax.ShapeDtypeStruct], *arguments) -> jax.stages.Compiled:
    """Returns a program whose results lie as the pools do, and which takes the pools over if it changes them."""
    shardings = [pool.sharding for pool in pools]
    donated = () if function is _rows else (0,)
    return jax.jit(function, donate_argnums=donated, out_shardings=shardings).lower(pools, *arguments).compile()


def _copied(pools: list[jax.Array], sources: jax.Array, destinations: jax.Array) -> list[jax.Array]:
    return _written(pools, destinations, _rows(pools, sources))


def _rows(pools: list[jax.Array], blocks: jax.Array) -> list[jax.Array]:
    return [pool.at[blocks].get(mode="clip") for pool in pools]


def _written(pools: list[jax.Array], blocks: jax.Array, rows: list[jax.Array]) -> list[jax.Array]:
    return [pool.at[blocks].set(values, mode="drop") for pool, values in zip(pools, rows, strict=True)]


def _groups(items: Sequence) -> Iterator[Sequence]:
    for first in range(0, len(items), GROUP_BLOCKS):
        yield items[first : first + GROUP_BLOCKS]
