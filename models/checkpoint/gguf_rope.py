"""The rotary positions of a GGUF file.

Comes in: the fields of an architecture (its metadata, the name of the architecture taken off) and the tensor of
frequency factors, if the file has one. Goes out: a `Rope`. Llama 3's scaling is in no field: the factor by which each
pair is slowed is, and only those that its formula gives for some trained length are taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, BeforeValidator, Field

from ...errors import CheckpointError, UnsupportedModelError
from ..config import Rope
from ..rope import rope_frequencies
from .contents import refuse, validated

__all__ = ["Factor", "Size", "rope_from_gguf", "with_frequency_factors"]


def _same_for_all_layers(value: object) -> object:
    if isinstance(value, list) and value:
        if any(item != value[0] for item in value):
            raise ValueError("it differs from layer to layer, which is not supported")
        return value[0]
    return value


def _as_written(value: object) -> object:
    """Returns the shortest number that is the same in f32, in which files have it: 1e-05, not 9.999999747378752e-06."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


Size: TypeAlias = Annotated[int, BeforeValidator(_same_for_all_layers), Field(gt=0, lt=1 << 31)]
Factor: TypeAlias = Annotated[float, BeforeValidator(_as_written), Field(gt=0, allow_inf_nan=False)]

_SUPPORTED = "rope scaling none, linear, yarn, and llama3's frequency factors"
_LLAMA3 = Rope(scaling="llama3", low_frequency_factor=1.0, high_frequency_factor=4.0)  # as all published ones have it


class _RopeFields(BaseModel):
    theta: Factor = Field(10_000.0, alias="rope.freq_base", gt=1)
    size: Size | None = Field(None, alias="rope.dimension_count")
    scaling: str = Field("linear", alias="rope.scaling.type")
    factor: float = Field(0.0, alias="rope.scaling.factor", ge=0, allow_inf_nan=False)
    older_factor: float = Field(0.0, alias="rope.scale_linear", ge=0, allow_inf_nan=False)
    original_positions: Size | None = Field(None, alias="rope.scaling.original_context_length")
    beta_fast: Factor = Field(32.0, alias="rope.scaling.yarn_beta_fast")
    beta_slow: Factor = Field(1.0, alias="rope.scaling.yarn_beta_slow")
    magnitude: Factor | None = Field(None, alias="rope.scaling.yarn_attn_factor")
    extra_magnitude: Factor = Field(1.0, alias="rope.scaling.attn_factor")
    extrapolation: float = Field(1.0, alias="rope.scaling.yarn_ext_factor")
    sections: list[int] = Field([], alias="rope.dimension_sections")


def rope_from_gguf(path: Path, fields: Mapping[str, object], *, head_size: int, max_positions: int) -> Rope:
    """Returns the rotary positions that the fields of an architecture describe.

    Raises:
        CheckpointError: if a field has no sensible value.
        UnsupportedModelError: if the scaling is none that plait computes.
    """
    values = validated(_RopeFields, fields, path)
    factor = values.factor or values.older_factor or 1.0
    unsupported = {
        f"rope scaling {values.scaling!r}": values.scaling not in ("none", "linear", "yarn"),
        f"a yarn extrapolation factor of {values.extrapolation}": values.extrapolation not in (-1.0, 1.0),
        "positions in several dimensions": any(values.sections),
    }
    refuse(path, unsupported, _SUPPORTED)
    if (size := values.size or head_size) > head_size or size % 2:
        raise CheckpointError(f"{path}: rope.dimension_count {size} is not an even part of heads of {head_size}")
    rope = Rope(theta=values.theta, size=0 if values.size in (None, head_size) else values.size)
    if values.scaling == "none" or factor == 1.0:
        return rope
    if values.scaling == "linear":
        return replace(rope, scaling="linear", factor=factor)
    magnitude = values.magnitude or 1.0 + 0.1 * math.log(max(factor, 1.0))
    return replace(
        rope,
        scaling="yarn",
        factor=factor,
        original_positions=values.original_positions or max_positions,
        beta_fast=values.beta_fast,
        beta_slow=values.beta_slow,
        magnitude=magnitude * values.extra_magnitude,
    )


def with_frequency_factors(path: Path, rope: Rope, size: int, factors: Float[np.ndarray, " pairs"]) -> Rope:
    """Returns rotary positions with Llama 3's scaling, of which a file has the factor that slows each pair.

    Args:
        path: The file, as messages name it.
        rope: Without scaling.
        size: Number of values of a head that turn.
        factors: What the frequency of each pair is divided by.

    Raises:
        UnsupportedModelError: if the factors are not those of Llama 3's formula.
    """
    if factors.shape == (size // 2,) and np.allclose(factors, 1.0):
        return rope
    frequencies = rope_frequencies(rope, size)
    is_plain = rope.scaling == "none" and factors.shape == frequencies.shape and bool(np.all(factors >= 1.0))
    scaled = replace(rope, scaling="llama3", factor=float(factors.max(initial=1.0)))
    if is_plain and np.isfinite(scaled.factor):
        scaled = replace(scaled, original_positions=_trained_length(frequencies, factors.astype(np.float64)))
        if np.allclose(frequencies / rope_frequencies(scaled, size), factors, rtol=1e-5):
            return scaled
    raise UnsupportedModelError(
        f"{path}: rope frequency factors other than llama3's are not supported; supported: {_SUPPORTED}"
    )


def _trained_length(frequencies: Float[np.ndarray, " pairs"], factors: Float[np.ndarray, " pairs"]) -> int:
    """Returns the number of positions for which Llama 3's formula gives such factors, if it does for any.

    A pair is kept if it turns at least four times within that length and slowed by the largest factor if at most
    once; in between the blend of both is linear in the turns, which gives the length away.
    """
    turns, largest = frequencies / (2 * math.pi), factors.max()
    low, high = _LLAMA3.low_frequency_factor, _LLAMA3.high_frequency_factor
    kept, slowed = factors == 1.0, factors == largest
    if (blended := ~(kept | slowed)).any():
        blend = (1 / factors[blended] - 1 / largest) / (1 - 1 / largest)
        return round(float(np.median((low + (high - low) * blend) / turns[blended])))
    shortest = np.max(high / turns[kept], initial=1.0)
    longest = np.min(low / turns[slowed], initial=float(1 << 30))
    power = 1 << math.floor(math.log2(longest))  # the length is not told apart, but it is usually a power of 2
    return power if power >= shortest else round(math.sqrt(shortest * longest))
