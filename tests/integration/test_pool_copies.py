"""Copies of KV blocks on a real model's pools, against the same copies made one after the other in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import SingleDeviceSharding

import plait
from plait.compiler.kv_pool import pool_dtype, pool_shape
from plait.compiler.target import Link
from plait.models.config import DecoderConfig
from plait.runtime.pool_copies import GROUP_BLOCKS, PoolCopier

NUM_BLOCKS = 6  # few, so that copies meet
BLOCKS = st.integers(0, NUM_BLOCKS - 1)


@cache
def copier_of(bundle: Path) -> tuple[PoolCopier, list[np.ndarray]]:
    """A copier of a bundle's decoder, and pools with something in each block."""
    entry = plait.load(bundle).manifest.model("chat")
    assert entry.kv is not None
    assert isinstance(entry.config, DecoderConfig)
    entry = replace(entry, kv=replace(entry.kv, num_blocks=NUM_BLOCKS))
    shape, dtype = pool_shape(entry.config, NUM_BLOCKS), pool_dtype(entry.kv.dtype)  # type: ignore[union-attr]
    generator = np.random.default_rng(0)
    pools = [generator.normal(size=shape).astype(dtype) for _ in range(entry.config.num_layers)]  # type: ignore[union-attr]
    shardings = [SingleDeviceSharding(jax.devices()[0])] * len(pools)
    return PoolCopier(entry, shardings, Link(1e9, 0.0)), pools


def on_device(pools: Sequence[np.ndarray]) -> list[jax.Array]:
    return [jax.device_put(pool.copy()) for pool in pools]


@settings(max_examples=100, deadline=None)
@given(copies=st.lists(st.tuples(BLOCKS, BLOCKS), max_size=3 * GROUP_BLOCKS))
def test_copies_are_made_one_after_the_other(tiny_bundle: Path, copies: list[tuple[int, int]]) -> None:
    """What one copy has written, the next one may copy on: the first answer has gone, and its block is another's."""
    copier, before = copier_of(tiny_bundle)
    pools, expected = on_device(before), [pool.copy() for pool in before]
    copier.copy(pools, copies)
    for source, destination in copies:
        for pool in expected:
            pool[destination] = pool[source]
    for pool, wanted in zip(pools, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(pool), wanted)


@pytest.mark.parametrize("blocks", [[3], [5, 0], [4, 1, 0, 2, 5, 3]])
def test_what_is_saved_is_loaded_to_other_blocks(tiny_bundle: Path, blocks: list[int]) -> None:
    copier, before = copier_of(tiny_bundle)
    saved = [np.empty(copier.saved_bytes, np.uint8) for _ in blocks]
    copier.save(on_device(before), blocks, saved, 0)
    pools = on_device([np.zeros_like(pool) for pool in before])
    others = [(block + 2) % NUM_BLOCKS for block in blocks]
    copier.load(pools, others, saved, 0)
    for pool, old in zip(pools, before, strict=True):
        np.testing.assert_array_equal(np.asarray(pool)[others], old[blocks])
        assert not np.asarray(pool)[[b for b in range(NUM_BLOCKS) if b not in others]].any()
