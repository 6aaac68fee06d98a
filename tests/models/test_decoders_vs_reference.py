"""Tiny decoders of each family against transformers' logits, from Hugging Face directories and llama.cpp's GGUFs.

The references are made by `tests/oracle/make_decoder_references.py`. Three prompts of 5, 64 and 96 tokens are one batch
here, padded on the right; eight given tokens follow, a step each. Windows have 16 tokens, original contexts 32.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_case import NUM_DECODE_TOKENS, PROMPT_LENGTHS
from decoder_files import write_decoder
from decoder_zoo import CASES

from plait.models.checkpoint import Checkpoint, open_checkpoint
from plait.models.config import DecoderConfig
from plait.models.decoder import Decoder, KVCache
from plait.models.family import build

GOLDEN = Path(__file__).parents[1] / "golden" / "decoders"
TOLERANCE = 1e-4  # max|difference| / max|reference|
SMALLEST_MARGIN = 1e-3  # of a router, far above what f32 rounding moves: no token goes to other experts by chance
CONTEXT_TOKENS = 112
CHUNK_TOKENS = 32


class Reader:
    """A decoder in f32, reading the batch of prompts in chunks of one size and then a token a step."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert isinstance(checkpoint.config, DecoderConfig)
        self.config = checkpoint.config.dense
        self.model = build(self.config, jnp.float32)
        self.parameters = {name: jnp.asarray(checkpoint.read(name)) for name in checkpoint.tensor_names}

    def empty_cache(self) -> KVCache:
        keys, values = ((len(PROMPT_LENGTHS), CONTEXT_TOKENS, *shape) for shape in self.config.cache_shapes)
        return [(jnp.zeros(keys), jnp.zeros(values)) for _ in range(self.config.num_layers)]

    @partial(jax.jit, static_argnums=0)
    def step(self, parameters, tokens, start, cache):
        """Returns the logits after each new token, [batch, new, vocab], and the extended cache."""
        model = self.model.module(parameters)
        assert isinstance(model, Decoder)
        hidden, cache = model.hidden_states(tokens, start, cache)
        return model.logits(hidden), cache

    def prefill(self, tokens: np.ndarray, chunk_tokens: int) -> tuple[np.ndarray, KVCache]:
        cache, parts = self.empty_cache(), []
        for start in range(0, tokens.shape[1], chunk_tokens):
            starts = np.full(len(tokens), start)
            rows, cache = self.step(self.parameters, tokens[:, start : start + chunk_tokens], starts, cache)
            parts.append(rows)
        return np.concatenate(parts, axis=1), cache

    def decode(self, tokens: np.ndarray, starts: np.ndarray, cache: KVCache) -> np.ndarray:
        steps = []
        for index in range(tokens.shape[1]):
            rows, cache = self.step(self.parameters, tokens[:, index : index + 1], starts + index, cache)
            steps.append(rows)
        return np.concatenate(steps, axis=1)


def _prompts(reference: np.lib.npyio.NpzFile) -> tuple[np.ndarray, np.ndarray]:
    """Returns the prompts, padded to the longest, [batch, longest], and the tokens of the steps, [batch, steps]."""
    rows = [reference[f"tokens_{length}"] for length in PROMPT_LENGTHS]
    prompts = np.zeros((len(rows), max(PROMPT_LENGTHS)), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        prompt[: len(row) - NUM_DECODE_TOKENS] = row[:-NUM_DECODE_TOKENS]
    return prompts, np.stack([row[-NUM_DECODE_TOKENS:] for row in rows])


def _distance(logits: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


def _check(source: tuple[str, str], directory: Path) -> None:
    """Checks prefill in chunks, of a directory also in one piece, and the steps after it, against the reference."""
    name, form = source
    path = write_decoder(CASES[name], directory, "saved") if form == "saved" else GOLDEN / f"{name}.{form}.gguf"
    reference, prefix = np.load(GOLDEN / f"{name}.npz"), "q8_0_" if form == "q8_0" else ""
    reader = Reader(open_checkpoint(path))
    prompts, given = _prompts(reference)
    for chunk_tokens in (CHUNK_TOKENS, max(PROMPT_LENGTHS)) if form == "saved" else (CHUNK_TOKENS,):
        prefilled, cache = reader.prefill(prompts, chunk_tokens)
        decoded = reader.decode(given, np.array(PROMPT_LENGTHS), cache)
        for row, length in enumerate(PROMPT_LENGTHS):
            positions = reference[f"positions_{length}"]
            assert _distance(prefilled[row, positions], reference[f"{prefix}prefill_{length}"]) < TOLERANCE, length
            assert _distance(decoded[row], reference[f"{prefix}decode_{length}"]) < TOLERANCE, length


def _of_family(family: str) -> pytest.MarkDecorator:
    cases = [case for case in CASES.values() if case.family == family]
    sources = [(case.name, form) for case in cases for form in ("saved", *case.gguf_types)]
    return pytest.mark.parametrize("source", sources, ids=lambda source: "-".join(source))


@_of_family("llama")
def test_llama_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("smollm3")
def test_smollm3_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("mistral")
def test_mistral_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("qwen2")
def test_qwen2_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("qwen3")
def test_qwen3_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("gemma")
def test_gemma_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("gemma2")
def test_gemma2_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("gemma3_text")
def test_gemma3_text_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("phi3")
def test_phi3_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("mixtral")
def test_mixtral_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("qwen3_moe")
def test_qwen3_moe_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("gpt_oss")
def test_gpt_oss_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("deepseek_v2")
def test_deepseek_v2_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("deepseek_v3")
def test_deepseek_v3_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("bloom")
def test_bloom_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@_of_family("falcon")
def test_falcon_vs_reference(source: tuple[str, str], tmp_path: Path):
    _check(source, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_published_form_is_the_same_model_as_the_saved_one(name: str, tmp_path: Path):
    saved = open_checkpoint(write_decoder(CASES[name], tmp_path / "saved", "saved"))
    published = open_checkpoint(write_decoder(CASES[name], tmp_path / "published", "published"))
    assert published.config.dense == saved.config.dense
    for tensor in saved.tensor_names:
        np.testing.assert_array_equal(published.read(tensor), saved.read(tensor), err_msg=tensor)


def test_every_family_of_the_zoo_is_tested():
    assert {f"test_{case.family}_vs_reference" for case in CASES.values()} <= set(globals())


def test_no_router_of_the_references_is_near_a_tie():
    notes = json.loads((GOLDEN / "about.json").read_text(encoding="utf-8"))["cases"]
    margins = {name: note["router_margin"] for name, note in notes.items() if "router_margin" in note}
    assert set(margins) == {name for name, case in CASES.items() if "num_experts_per_tok" in case.config}
    assert min(margins.values()) > SMALLEST_MARGIN
