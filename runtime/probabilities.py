"""From a classifier's logits to probabilities."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

__all__ = ["probabilities"]


def probabilities(
    logits: Float[np.ndarray, "inputs labels"], *, are_independent: bool
) -> Float[np.ndarray, "inputs labels"]:
    """Returns f32 probabilities: a sigmoid of each logit if labels are independent, else a softmax of each row."""
    exact = logits.astype(np.float64)
    if are_independent:
        return np.exp(-np.logaddexp(0.0, -exact)).astype(np.float32)
    weights = np.exp(exact - exact.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
