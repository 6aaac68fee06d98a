"""What a KV pool is: the shape and type of a layer's, how it lies over a mesh, and zeroed ones."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from ..models.config import DecoderConfig
from .configuration import BLOCK_TOKENS
from .mesh import Layout

__all__ = ["pool_dtype", "pool_layout", "pool_shape", "zeroed_pools"]


def pool_shape(config: DecoderConfig, num_blocks: int) -> tuple[int, ...]:
    """Returns the shape of one layer's KV pool: [blocks, keys and values, kv heads, block tokens, head size].

    A latent cache has one entry, latent vector and rotary key side by side, in the place of keys and values.

    Args:
        config: The model.
        num_blocks: A number, or the dimension that stands for it while a program is exported.
    """
    (heads, size), (_, second_size) = config.cache_shapes
    parts, size = (2, size) if config.latent is None else (1, size + second_size)
    return (num_blocks, parts, heads, BLOCK_TOKENS, size)


def pool_dtype(dtype: str) -> jnp.dtype:
    """Returns the type in which a KV pool of `dtype` is stored: bf16 as its bits, for XLA would rewrite whole pools."""
    return jnp.dtype(jnp.uint16 if dtype == "bfloat16" else dtype)


def pool_layout(head_axes: tuple[str, ...]) -> Layout:
    """Returns how a KV pool lies over a mesh whose axes `head_axes` divide its heads."""
    return Layout(((), (), head_axes, (), ()))


def zeroed_pools(
    config: DecoderConfig, num_blocks: int, dtype: str, shardings: Sequence[Sharding | None]
) -> list[jax.Array]:
    """Returns zeroed KV pools; they may be still under way.

    Args:
        config: The model.
        num_blocks: Of each pool.
        dtype: Of keys and values.
        shardings: Of each layer's pool; None is the default device.
    """
    shape, stored = pool_shape(config, num_blocks), pool_dtype(dtype)
    stages = [(sharding, len(list(layers))) for sharding, layers in itertools.groupby(shardings)]
    return [pool for sharding, count in stages for pool in _zeros(shape, stored, sharding, count)()]


@functools.cache
def _zeros(
    shape: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding | None, count: int
) -> Callable[[], list[jax.Array]]:
    """Returns a program for all layers of a stage: to begin one for each would take longer than the zeros."""
    return jax.jit(lambda: [jnp.zeros(shape, dtype) for _ in range(count)], out_shardings=sharding)
