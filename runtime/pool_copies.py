"""Copies of KV blocks: within a model's pools, out of them to memory of the host, and back.

A block is a row of every layer's pool. Copies go in groups of a fixed number of blocks, so that each kind is one
program for each pipeline stage, compiled ahead; a group that is not full is filled up with blocks out of range, which
are read as anything and written nowhere. A block alone, as what many prompts begin with often is, has programs of its
own, which take a quarter to a half less. A group's values are all that a copy needs in hbm beside the pools. A saved
block is one piece of memory: many small ones amid what a copy needs for a moment would have the C library give that
back to the system, and the next copy would take page faults.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Sharding

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.kv_pool import pool_dtype, pool_shape
from ..compiler.target import Link
from ..models.config import DecoderConfig

__all__ = ["GROUP_BLOCKS", "PoolCopier"]

GROUP_BLOCKS = 8  # a group takes as long, however many of its blocks are wanted


@dataclass(frozen=True)
class _Programs:
    """What copies a group of blocks, a program for each stage."""

    num_blocks: int
    copy: Sequence[jax.stages.Compiled]
    read: Sequence[jax.stages.Compiled]  # none where there is no ddr
    write: Sequence[jax.stages.Compiled]  # likewise

    @classmethod
    def of(cls, stages: Sequence[Sequence[jax.ShapeDtypeStruct]], num_blocks: int, *, with_ddr: bool) -> _Programs:
        """Returns the programs for the pools of some stages."""
        ids = jax.ShapeDtypeStruct((num_blocks,), np.int32)
        rows = [
            [jax.ShapeDtypeStruct((num_blocks, *p.shape[1:]), p.dtype, sharding=p.sharding) for p in pools]
            for pools in stages
        ]
        copy = [_compiled(_copied, pools, ids, ids) for pools in stages]
        if not with_ddr:
            return cls(num_blocks, copy, (), ())
        read = [_compiled(_rows, pools, ids) for pools in stages]
        write = [_compiled(_written, pools, ids, part) for pools, part in zip(stages, rows, strict=True)]
        return cls(num_blocks, copy, read, write)


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
        self._saved_shape, self._dtype = (len(shardings), *shape[1:]), dtype
        pools = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for sharding in shardings]
        stages = itertools.groupby(range(len(pools)), lambda layer: frozenset(shardings[layer].device_set))
        layers = [list(group) for _, group in stages]
        self._stages = [slice(group[0], group[-1] + 1) for group in layers]
        parts = [pools[stage] for stage in self._stages]
        self._programs = {size: _Programs.of(parts, size, with_ddr=link is not None) for size in (1, GROUP_BLOCKS)}

    def copy(self, pools: list[jax.Array], copies: Sequence[tuple[int, int]]) -> None:
        """Copies blocks within the pools, one after the other; the pools are replaced in place.

        Args:
            pools: Of each layer; donated.
            copies: Sources and destinations. A source can be what was written before.
        """
        for group in _independent(copies):
            programs = self._programs_for(group)
            sources, destinations = (self._ids(programs, blocks) for blocks in zip(*group, strict=True))
            for stage, program in zip(self._stages, programs.copy, strict=True):
                pools[stage] = program(pools[stage], sources, destinations)

    @property
    def saved_bytes(self) -> int:
        """What a saved block takes: its rows of all layers."""
        return math.prod(self._saved_shape) * self._dtype.itemsize

    def save(
        self, pools: list[jax.Array], blocks: Sequence[int], contents: Sequence[np.ndarray], num_bytes: int
    ) -> None:
        """Reads the contents of blocks.

        Args:
            pools: Of each layer; only read.
            blocks: Their ids.
            contents: Where those of each go, [saved_bytes] of u8.
            num_bytes: What the link is to move.
        """
        began = time.perf_counter()
        for group in _groups(list(zip(blocks, contents, strict=True))):
            programs = self._programs_for(group)
            ids = self._ids(programs, [block for block, _ in group])
            stages = zip(self._stages, programs.read, strict=True)
            layers = [np.asarray(rows) for stage, program in stages for rows in program(pools[stage], ids)]
            for index, (_, content) in enumerate(group):
                for row, rows in zip(self._rows_of(content), layers, strict=True):
                    row[...] = rows[index]
        self._keep_pace(began, num_bytes)

    def load(
        self, pools: list[jax.Array], blocks: Sequence[int], contents: Sequence[np.ndarray], num_bytes: int
    ) -> None:
        """Writes contents to blocks; the pools are replaced in place.

        Args:
            pools: Of each layer; donated.
            blocks: Their ids.
            contents: Of each of them, as `save` left it.
            num_bytes: What the link is to move.
        """
        began = time.perf_counter()
        for group in _groups(list(zip(blocks, contents, strict=True))):
            programs = self._programs_for(group)
            ids = self._ids(programs, [block for block, _ in group])
            values = [self._rows_of(content) for _, content in group]
            values += values[:1] * (programs.num_blocks - len(group))
            rows = [np.stack(layer) for layer in zip(*values, strict=True)]
            for stage, program in zip(self._stages, programs.write, strict=True):
                pools[stage] = program(pools[stage], ids, rows[stage])
        jax.block_until_ready(pools)
        self._keep_pace(began, num_bytes)

    def _rows_of(self, saved: np.ndarray) -> np.ndarray:
        return saved.view(self._dtype).reshape(self._saved_shape)

    def _programs_for(self, group: Sequence) -> _Programs:
        return self._programs[1 if len(group) == 1 else GROUP_BLOCKS]

    def _ids(self, programs: _Programs, blocks: Sequence[int]) -> np.ndarray:
        ids = np.full(programs.num_blocks, self._num_blocks, np.int32)
        ids[: len(blocks)] = blocks
        return ids

    def _keep_pace(self, began: float, num_bytes: int) -> None:
        if self._link is not None and self._link.pace:
            seconds = self._link.latency_seconds + num_bytes / self._link.bandwidth_bytes_per_s
            time.sleep(max(0.0, began + seconds - time.perf_counter()))


def _compiled(function, pools: Sequence[jax.ShapeDtypeStruct], *arguments) -> jax.stages.Compiled:
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


def _independent(copies: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
    """Yields groups of copies, in order: a group reads all that it copies before it writes any of it.

    >>> list(_independent([(1, 2), (3, 1), (2, 4), (5, 4)]))
    [[(1, 2), (3, 1)], [(2, 4)], [(5, 4)]]
    """
    group: list[tuple[int, int]] = []
    for source, destination in copies:
        written = [to for _, to in group]
        if len(group) == GROUP_BLOCKS or source in written or destination in written:
            yield group
            group = []
        group.append((source, destination))
    if group:
        yield group


def _groups(items: Sequence) -> Iterator[Sequence]:
    for first in range(0, len(items), GROUP_BLOCKS):
        yield items[first : first + GROUP_BLOCKS]
