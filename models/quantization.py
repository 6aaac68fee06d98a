"""Stored forms: weights kept in fewer bits than they are computed in.

| form | values | scales |
|---|---|---|
| `fp8` | float8_e4m3fn [..., out, in] | f32 [..., out / 128, in / 128], one a block (DeepSeek-V3) |
| `mxfp4` | uint8 [..., out, in / 2], two e2m1 each | uint8 [..., out, in / 32], exponents of 2 (OCP MX) |
| `q8_0` | int8 [..., out, in] | f16 [..., out, in / 32] (GGUF) |
| `q4_0` | uint8 [..., out, in / 2], two 4-bit each | f16 [..., out, in / 32] (GGUF) |
| `int8` | int8 [..., out, in] | f32 [..., out, 1], one a row |

In a block of 32, the low halves of the 16 bytes are the first 16 values in GGUF's forms; in `mxfp4` neighbours share a
byte, as in Hugging Face files. A weight of a stored form is two arrays, values and scales, and both are parameters of
the graph: its bytes are the stored ones, the FLOPs those of the products that the dequantized values enter.
`quantize` writes each form from f32 values; a value that came from the same form is kept exactly, but for
fp8, whose scales are taken from the files (`Checkpoint.read_stored`).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import ConfigurationError
from .config import StoredForm

__all__ = ["FP8_BLOCK", "StoredArray", "dequantize_values", "quantize", "stored_arrays"]

FP8_BLOCK = 128  # rows and columns that share a scale
_BLOCK = 32  # values of a row that share a scale in the other forms
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_FP8_LARGEST = 448.0


@dataclass(frozen=True)
class StoredArray:
    """Shape and type of one of the arrays of a stored weight."""

    shape: tuple[int, ...]
    dtype: jnp.dtype


def stored_arrays(form: StoredForm, shape: tuple[int, ...]) -> tuple[StoredArray, StoredArray]:
    """Returns shape and type of the values and scales of a weight [..., out, in].

    Raises:
        ConfigurationError: if its rows do not divide into the form's blocks.
    """
    *rest, rows, columns = shape
    if form not in ("fp8", "int8") and columns % _BLOCK:
        raise ConfigurationError(
            f"a weight of {list(shape)} cannot be stored as {form}: its rows of {columns} values do not divide into "
            f"blocks of {_BLOCK}; use int8, fp8 or dense"
        )
    if form == "int8":
        return StoredArray(shape, jnp.dtype(jnp.int8)), StoredArray((*rest, rows, 1), jnp.dtype(jnp.float32))
    if form == "fp8":
        blocks = (*rest, -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
        return StoredArray(shape, jnp.dtype(jnp.float8_e4m3fn)), StoredArray(blocks, jnp.dtype(jnp.float32))
    scales = (*rest, rows, columns // _BLOCK)
    halves = (*rest, rows, columns // 2)
    if form == "mxfp4":
        return StoredArray(halves, jnp.dtype(jnp.uint8)), StoredArray(scales, jnp.dtype(jnp.uint8))
    if form == "q8_0":
        return StoredArray(shape, jnp.dtype(jnp.int8)), StoredArray(scales, jnp.dtype(jnp.float16))
    return StoredArray(halves, jnp.dtype(jnp.uint8)), StoredArray(scales, jnp.dtype(jnp.float16))


def dequantize_values(values: Array, scales: Array, form: StoredForm, dtype: DTypeLike) -> Float[Array, "... out in"]:
    """Returns the weight that values and scales stand for, in `dtype`."""
    if form == "fp8":
        rows, columns = values.shape[-2:]
        wide = jnp.repeat(jnp.repeat(scales, FP8_BLOCK, axis=-2)[..., :rows, :], FP8_BLOCK, axis=-1)[..., :columns]
        return (values.astype(jnp.float32) * wide).astype(dtype)
    if form == "int8":
        return (values.astype(jnp.float32) * scales).astype(dtype)
    factors = _exponents(scales) if form == "mxfp4" else scales.astype(jnp.float32)
    blocks = _unpacked(values, form).reshape(*scales.shape, _BLOCK) * factors[..., None]
    return blocks.reshape(*scales.shape[:-1], -1).astype(dtype)


def _exponents(scales: Array) -> Array:
    """2 ** (scale - 127), exact: the exponent bits of an f32; 2 ** -127 is a subnormal and becomes 2 ** -126."""
    bits = jnp.maximum(scales.astype(jnp.uint32), 1) << 23
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _unpacked(values: Array, form: StoredForm) -> Float[Array, "... out in"]:
    if form == "q8_0":
        return values.astype(jnp.float32)
    low, high = values & 0xF, values >> 4
    if form == "mxfp4":
        return jnp.asarray(_E2M1)[jnp.stack([low, high], axis=-1)].reshape(*values.shape[:-1], -1)
    halves = (part.reshape(*values.shape[:-1], -1, _BLOCK // 2) for part in (low, high))
    return jnp.concatenate([half.astype(jnp.float32) - 8 for half in halves], axis=-1)


def quantize(weight: Float[np.ndarray, "... out in"], form: StoredForm) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values and scales nearest to a weight, in the shapes of `stored_arrays`."""
    if form == "fp8":
        return _quantize_fp8(weight)
    if form == "int8":
        return _quantize_rows(weight.astype(np.float32))
    blocks = weight.astype(np.float32).reshape(*weight.shape[:-1], -1, _BLOCK)
    return {"mxfp4": _quantize_mxfp4, "q8_0": _quantize_q8, "q4_0": _quantize_q4}[form](blocks)


def _quantize_fp8(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    *rest, rows, columns = weight.shape
    padding = [(0, 0)] * len(rest) + [(0, -rows % FP8_BLOCK), (0, -columns % FP8_BLOCK)]
    padded = np.pad(weight.astype(np.float32), padding)
    tall, wide = padded.shape[-2] // FP8_BLOCK, padded.shape[-1] // FP8_BLOCK
    blocks = padded.reshape(*rest, tall, FP8_BLOCK, wide, FP8_BLOCK)
    scales = _nonzero(np.abs(blocks).max(axis=(-3, -1)) / _FP8_LARGEST)
    values = (blocks / scales[..., :, None, :, None]).reshape(padded.shape)[..., :rows, :columns]
    return values.astype(jnp.float8_e4m3fn), scales.astype(np.float32)


def _quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = _nonzero(np.abs(weight).max(axis=-1, keepdims=True) / 127)
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)


def _quantize_mxfp4(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest = np.abs(blocks).max(axis=-1)
    exponents = np.ceil(np.log2(_nonzero(largest) / 6.0))  # so that no value is cut off
    scales = np.where(largest > 0, np.clip(exponents + 127, 1, 254), 127).astype(np.uint8)
    scaled = np.ldexp(blocks, 127 - scales.astype(np.int32)[..., None])
    steps = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)  # half-way between neighbours
    codes = np.searchsorted(steps, np.abs(scaled)).astype(np.uint8) | (np.signbit(scaled).astype(np.uint8) << 3)
    codes = codes.reshape(*blocks.shape[:-2], -1)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scales


def _quantize_q8(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = (np.abs(blocks).max(axis=-1) / 127).astype(np.float16)
    values = np.rint(blocks / _nonzero(scales.astype(np.float32))[..., None])
    return np.clip(values, -127, 127).astype(np.int8).reshape(*blocks.shape[:-2], -1), scales


def _quantize_q4(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    scales = (extreme / -8).astype(np.float16)
    codes = np.clip(np.rint(blocks / _nonzero(scales.astype(np.float32))[..., None]) + 8, 0, 15).astype(np.uint8)
    packed = codes[..., : _BLOCK // 2] | (codes[..., _BLOCK // 2 :] << 4)
    return packed.reshape(*blocks.shape[:-2], -1), scales


def _nonzero(scales: np.ndarray) -> np.ndarray:
    return np.where(scales == 0, 1.0, scales)
