"""How fast rotary positions turn: the frequencies of `config.Rope`, with the scalings for longer contexts.

Comes in: a `Rope` and the size of a head. Goes out: the angle by which each pair of values turns per position,
computed in f64 when a model is traced. Sources: RoFormer (arXiv 2104.09864), position interpolation (arXiv
2306.15595), Llama 3.1's scaling by wavelength, YaRN (arXiv 2309.00071).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from .config import Rope

__all__ = ["rope_frequencies"]


def rope_frequencies(rope: Rope, size: int) -> Float[np.ndarray, " pairs"]:
    """Returns the radians per position of each pair of values, [size / 2].

    Args:
        rope: Base and scaling.
        size: Number of values that turn.
    """
    frequencies = rope.theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "llama3":
        frequencies = _llama3(frequencies, rope)
    elif rope.scaling == "yarn":
        frequencies = _yarn(frequencies, rope, size)
    return frequencies


def _llama3(frequencies: np.ndarray, rope: Rope) -> np.ndarray:
    """Slows long wavelengths by the factor, keeps short ones, and blends in between."""
    turns = rope.original_positions * frequencies / (2 * math.pi)  # within the trained context
    blend = (turns - rope.low_frequency_factor) / (rope.high_frequency_factor - rope.low_frequency_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return (1 - blend) * frequencies / rope.factor + blend * frequencies


def _yarn(frequencies: np.ndarray, rope: Rope, size: int) -> np.ndarray:
    """Slows pairs that turn less than beta_slow times within the trained context, keeps those above beta_fast."""

    def pair_of(num_turns: float) -> float:
        return size * math.log(rope.original_positions / (num_turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncates:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    ramp = (np.arange(size // 2) - first) / max(last - first, 0.001)
    slowed = np.clip(ramp, 0.0, 1.0)
    return frequencies * (slowed / rope.factor + 1 - slowed)
