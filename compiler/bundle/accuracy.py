"""What stored weights cost: the model as it will run, against the dense model of the same checkpoint.

The dense model writes a text, drawn from its own probabilities, and at each of its tokens the two distributions over
the next one are compared. So it needs neither a tokenizer nor a corpus, and the text is one that the model knows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax

from ...models.checkpoint import Checkpoint
from ...models.config import DecoderConfig
from ...models.family import build
from ..configuration import Configuration
from ..executable import Executable
from .manifest import Accuracy
from .step_inputs import step_inputs

__all__ = ["measure_accuracy"]

_POSITIONS = 64
_SEED = 11


def measure_accuracy(
    checkpoint: Checkpoint,
    dtype: str,
    executables: Mapping[Configuration, Executable],
    parameters: Sequence[dict[str, jax.Array]],
    pools: list[jax.Array],
) -> Accuracy | None:
    """Compares a decoder of stored weights with the dense one.

    Args:
        checkpoint: Where the dense weights are read from.
        dtype: That both compute in.
        executables: The programs of the model as it is stored.
        parameters: Its weights of each stage, on their devices.
        pools: Its empty KV pools; donated.

    Returns:
        None where the dense weights don't fit the free memory beside the stored ones.
    """
    config = checkpoint.config
    assert isinstance(config, DecoderConfig)
    model = build(config.dense, dtype)
    dense_bytes = sum(value.size * value.dtype.itemsize for value in model.parameters.values())
    if dense_bytes > _free_bytes() // 2:
        return None
    weights = {name: jnp.asarray(checkpoint.read(name).astype(p.dtype)) for name, p in model.parameters.items()}
    shapes = min((each for each in executables if each.phase == "decode"), key=lambda each: each.batch)
    positions = min(_POSITIONS, shapes.context)
    cache = [
        tuple(jnp.zeros((1, positions, *size), dtype) for size in config.cache_shapes) for _ in range(config.num_layers)
    ]
    step = jax.jit(model.__call__, donate_argnums=4)
    generator = np.random.default_rng(_SEED)
    token, divergences, agreed = 0, [], 0
    for position in range(positions):
        one = jnp.full((1, 1), token, jnp.int32)
        dense, cache = step(weights, one, jnp.full((1,), position), jnp.ones((1,), jnp.int32), cache)
        stored, pools = executables[shapes](parameters, step_inputs(shapes, [token], position), pools)
        ours, theirs = (np.asarray(log_softmax(each[0].astype(jnp.float32))) for each in (stored, dense))
        divergences.append(float(np.sum(np.exp(theirs) * (theirs - ours))))
        agreed += int(ours.argmax() == theirs.argmax())
        token = int(np.argmax(theirs + generator.gumbel(size=theirs.shape)))
    return Accuracy(positions, max(0.0, float(np.mean(divergences))), agreed / positions)


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
