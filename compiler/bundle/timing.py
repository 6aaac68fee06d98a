"""What a step takes: a bundle's programs run on zeros while it is built."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from ...models.config import DecoderConfig
from ..configuration import BLOCK_TOKENS, Configuration
from ..executable import Executable
from ..kv_pool import zeroed_pools
from .manifest import KVPlan
from .place import PlacedModel
from .placement import Placement

__all__ = ["empty_pools", "place_weights", "time_step"]

_MOST_RUNS, _MOST_SECONDS = 6, 1.5  # of a step that is timed: as many as begin in the time, and two at least


def place_weights(weights: Mapping[str, np.ndarray], placement: Placement | None) -> list[dict[str, jax.Array]]:
    """Returns the weights of each stage on its devices."""
    if placement is None:
        return [{name: jax.device_put(values) for name, values in weights.items()}]
    return [
        {
            name: jax.device_put(weights[name], placement.sharding(number, stage.layout(name)))
            for name in stage.parameters
        }
        for number, stage in enumerate(placement.stages)
    ]


def empty_pools(placed: PlacedModel, kv: KVPlan | None) -> list[jax.Array]:
    """Returns empty KV pools of all layers, each on the devices of its stage; none for an encoder."""
    config, placement = placed.config, placed.placement
    if kv is None or not isinstance(config, DecoderConfig):
        return []
    where = [None] * config.num_layers if placement is None else placement.pool_shardings()
    return zeroed_pools(config, kv.num_blocks, placed.dtype, where)


def time_step(
    executable: Executable,
    shapes: Configuration,
    parameters: Sequence[dict[str, jax.Array]],
    pools: list[jax.Array],
) -> float:
    """Runs a step on zeros and returns its seconds, with half of the context filled.

    The least of several runs: what else a machine does only ever adds to one, and how prompts are cut into chunks is
    decided by these seconds for good.
    """
    inputs = {
        "tokens": np.zeros((shapes.batch, shapes.new_tokens), np.int32),
        "lengths": np.full((shapes.batch,), shapes.new_tokens, np.int32),
    }
    if pools:
        inputs["start"] = np.full((shapes.batch,), max(0, shapes.context // 2 - shapes.new_tokens), np.int32)
        inputs["tables"] = np.zeros((shapes.batch, -(-shapes.context // BLOCK_TOKENS)), np.int32)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < _MOST_RUNS and sum(seconds) < _MOST_SECONDS):
        began = time.perf_counter()
        result, pools = executable(parameters, inputs, pools)
        jax.block_until_ready(result)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
