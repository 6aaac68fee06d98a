"""Sampling: from logits to a token.

Runs on the host, per sequence. A draw depends on the logits, the seed and the position in the answer, and on nothing
else: not on what shares the batch, and not on how often a sequence was computed anew.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from .events import Sampling

__all__ = ["sample"]


def sample(logits: Float[np.ndarray, " vocab"], sampling: Sampling, position: int) -> int:
    """Returns the next token.

    Args:
        logits: f32 logits, [vocab].
        sampling: Temperature (0 takes the most likely token), top-p and seed.
        position: Number of tokens of the answer before this one.
    """
    if sampling.temperature == 0.0:
        return int(np.argmax(logits))
    with np.errstate(over="ignore"):  # next to no temperature: all but the most likely are infinitely far
        weights = np.exp((logits - np.max(logits)).astype(np.float64) / sampling.temperature)
    kept, kept_weights = _nucleus(weights, sampling.top_p)
    uniform = np.random.Generator(np.random.Philox(key=sampling.seed, counter=position)).random()
    cumulative = np.cumsum(kept_weights)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(kept[min(index, len(kept) - 1)])


def _nucleus(weights: np.ndarray, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fewest most likely tokens whose share is at least `top_p`, and their weights."""
    if top_p >= 1.0:
        return np.arange(len(weights)), weights  # sorting a vocabulary takes longer than all the rest
    order = np.argsort(-weights, kind="stable")
    cumulative = np.cumsum(weights[order])
    count = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
    return order[:count], weights[order[:count]]
