"""Random inputs of a graph, for running a sharded program against the unsharded one without a model's weights."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..graph import KEY_IMPLEMENTATIONS, Graph, Value

__all__ = ["random_inputs"]

_SCALE = 0.1  # of weights and activations: products of narrow layers stay near 1


def random_inputs(graph: Graph, *, seed: int = 0) -> list[Array]:
    """Returns inputs in which nothing is idle: sequences have several tokens, tokens are of the vocabulary.

    Args:
        graph: Of a step; a plain function's integers are drawn from 0 and 1.
        seed: Of the random numbers.

    Returns:
        An array for each input of the graph.
    """
    return list(_drawn(graph, np.random.default_rng(seed)))


def _drawn(graph: Graph, rng: np.random.Generator) -> Iterator[Array]:
    values = [graph.values[value] for value in graph.inputs]
    bounds = _bounds(values)
    for value in values:
        if value.dtype in KEY_IMPLEMENTATIONS:
            seed = int(rng.integers(1 << 31))
            yield jax.random.split(jax.random.key(seed, impl=KEY_IMPLEMENTATIONS[value.dtype]), value.shape)
            continue
        dtype = jnp.dtype(value.dtype)
        if dtype == jnp.bool_:
            drawn = rng.integers(0, 2, value.shape)
        elif jnp.issubdtype(dtype, jnp.integer):
            low, high = bounds.get(value.name, (0, 1))
            drawn = rng.integers(low, high + 1, value.shape)
        elif value.kind == "state":
            drawn = np.abs(rng.normal(size=value.shape)) * _SCALE + 0.01  # second moments are not negative
        else:
            drawn = rng.normal(size=value.shape) * _SCALE
        yield jnp.asarray(drawn, value.dtype)


def _bounds(values: list[Value]) -> dict[str, tuple[int, int]]:
    """Returns the least and the greatest of what a model's integer inputs can be, by name."""
    shapes = {value.name: value.shape for value in values}
    if "tokens" not in shapes or len(shapes["tokens"]) != 2:
        return {}
    sequence = shapes["tokens"][1]
    contexts = [value.shape[1] for value in values if value.kind == "cache"]
    vocabularies = [value.shape[0] for value in values if value.kind == "parameter" and "embedding" in value.name]
    return {
        "tokens": (0, max(vocabularies, default=2) - 1),
        "lengths": ((sequence + 1) // 2, sequence),
        "start": (0, min(contexts, default=sequence) - sequence),
    }
