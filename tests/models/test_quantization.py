"""Stored forms against the gguf library's dequantization, and against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_files import write_decoder
from decoder_zoo import CASES

from plait.errors import ConfigurationError
from plait.models.checkpoint import open_checkpoint
from plait.models.config import StoredForm
from plait.models.family import build
from plait.models.quantization import FP8_BLOCK, dequantize_values, quantize, stored_arrays

FORMS: tuple[StoredForm, ...] = get_args(StoredForm)
# Half a step between neighbours, as a share of the largest value of a block (fp8: of each value; 3 bits of mantissa).
LARGEST_ERRORS = {"fp8": 2**-4, "mxfp4": 1 / 4, "q8_0": 0.51 / 127, "q4_0": 0.51 / 8 * 2, "int8": 0.51 / 127}


def random_weight(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def restored(weight: np.ndarray, form: StoredForm) -> np.ndarray:
    values, scales = map(jnp.asarray, quantize(weight, form))
    return np.asarray(dequantize_values(values, scales, form, "float32"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(8, 64), (3, 130, 160)], ids=["matrix", "experts, ragged"])
def test_arrays_have_the_shapes_and_types_that_are_planned(form: StoredForm, shape: tuple[int, ...]) -> None:
    arrays = quantize(random_weight(shape), form)
    assert [(a.shape, a.dtype) for a in arrays] == [(s.shape, s.dtype) for s in stored_arrays(form, shape)]


@pytest.mark.parametrize("form", FORMS)
def test_no_value_moves_by_more_than_half_a_step(form: StoredForm) -> None:
    weight = random_weight((256, 256))
    error = np.abs(restored(weight, form) - weight)
    block = 256 if form == "int8" else 32
    largest = np.abs(weight) if form == "fp8" else np.abs(weight.reshape(256, -1, block)).max(-1).repeat(block, -1)
    subnormal = np.abs(weight).max() / 448 * 2**-9 if form == "fp8" else 0.0
    assert np.all(error <= LARGEST_ERRORS[form] * largest + subnormal)


@pytest.mark.parametrize("form", ["mxfp4", "q8_0", "q4_0", "int8"])
def test_what_came_from_a_form_is_kept_exactly_by_it(form: StoredForm) -> None:
    once = restored(random_weight((64, 128), seed=3) * 10.0 ** np.arange(-3, 1).repeat(32), form)
    np.testing.assert_array_equal(restored(once, form), once)


@pytest.mark.parametrize(
    ("form", "kind"),
    [("q8_0", gguf.GGMLQuantizationType.Q8_0), ("q4_0", gguf.GGMLQuantizationType.Q4_0)],
    ids=["q8_0", "q4_0"],
)
def test_blocks_mean_what_gguf_says(form: StoredForm, kind: gguf.GGMLQuantizationType) -> None:
    packed = gguf.quants.quantize(random_weight((16, 96)), kind)
    blocks = packed.reshape(16, 3, -1)
    scales = blocks[..., :2].copy().view(np.float16)[..., 0]
    values = blocks[..., 2:].reshape(16, -1)
    values = values.view(np.int8) if form == "q8_0" else values
    ours = dequantize_values(jnp.asarray(values), jnp.asarray(scales), form, "float32")
    np.testing.assert_array_equal(np.asarray(ours), gguf.quants.dequantize(packed, kind))


def test_mxfp4_means_what_the_standard_says() -> None:
    codes = np.arange(32, dtype=np.uint8).reshape(1, 16, 2) % 16
    values = codes[..., 0] | (codes[..., 1] << 4)
    scales = np.array([[129]], np.uint8)  # 2 ** 2
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    expected = 4.0 * np.array([*magnitudes, *(-m for m in magnitudes)] * 2, np.float32)
    ours = dequantize_values(jnp.asarray(values), jnp.asarray(scales), "mxfp4", "float32")
    np.testing.assert_array_equal(np.asarray(ours)[0], expected)


def test_fp8_scales_are_of_blocks_with_ragged_edges() -> None:
    weight = np.ones((FP8_BLOCK + 2, FP8_BLOCK + 1), np.float32)
    weight[FP8_BLOCK:] *= 1000.0
    values, scales = quantize(weight, "fp8")
    np.testing.assert_allclose(scales, [[1 / 448, 1 / 448], [1000 / 448, 1000 / 448]], rtol=1e-6)
    np.testing.assert_allclose(restored(weight, "fp8"), weight, rtol=1e-6)
    assert float(values.astype(np.float32).max()) == 448.0


@pytest.mark.parametrize(("name", "form"), [("deepseek_fp8", "fp8"), ("gpt_oss", "mxfp4")], ids=["fp8", "mxfp4"])
def test_weights_of_files_in_a_form_stay_exactly_what_they_are(tmp_path: Path, name: str, form: StoredForm) -> None:
    checkpoint = open_checkpoint(write_decoder(CASES[name], tmp_path, "published"))
    parameters = build(checkpoint.config, "float32").parameters
    stored = [f"{tensor.removesuffix('scales')}weight" for tensor in parameters if tensor.endswith("scales")]
    assert stored
    for tensor in stored:
        arrays = checkpoint.read_stored(tensor, form)
        assert [(a.shape, a.dtype) for a in arrays] == [
            (parameters[part].shape, parameters[part].dtype)
            for part in (tensor, f"{tensor.removesuffix('weight')}scales")
        ]
        restored = dequantize_values(jnp.asarray(arrays[0]), jnp.asarray(arrays[1]), form, "float32")
        np.testing.assert_array_equal(np.asarray(restored), checkpoint.read(tensor), err_msg=tensor)


def test_dense_weights_are_stored_in_any_form(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_decoder(CASES["llama2"], tmp_path, "saved"))
    tensor = "layers.0.mlp.up.weight"
    for form in FORMS:
        for array, expected in zip(
            checkpoint.read_stored(tensor, form), quantize(checkpoint.read(tensor), form), strict=True
        ):
            np.testing.assert_array_equal(array, expected)


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"\[4, 48\] cannot be stored as q8_0: .* blocks of 32; use int8, fp8"):
        stored_arrays("q8_0", (4, 48))
