"""What a KV pool is: the shape and type of a layer's, and how it lies over a mesh."""

from __future__ import annotations

import jax.numpy as jnp

from ..models.config import DecoderConfig
from .configuration import BLOCK_TOKENS
from .mesh import Layout

__all__ = ["pool_dtype", "pool_layout", "pool_shape"]


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
