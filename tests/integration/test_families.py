"""Decoders of every kind from checkpoint to answer: bundled together, against the dense model of the same weights."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_files import write_decoder
from decoder_zoo import CASES

from plait.compiler.bundle.build import build_bundle
from plait.compiler.bundle.spec import BundleSpec
from plait.models.checkpoint import open_checkpoint
from plait.models.config import DecoderConfig
from plait.models.family import build
from plait.models.quantization import dequantize_values, quantize
from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams

# Windows of 16 tokens, experts, sinks, latents, biases by distance; and how the weights are kept.
MODELS = {
    "mistral_window": "q8_0",
    "gemma2": "dense",
    "bloom": "dense",
    "mixtral": "dense",
    "gpt_oss": "stored",
    "deepseek_v3": "dense",
}
NUM_PROMPT_TOKENS = 40
NUM_NEW_TOKENS = 24


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("families")
    for name in MODELS:
        write_decoder(CASES[name], directory / name, "published")
    models = {
        name: {"source": name, "weights": weights, "sequence": 96, "batch": 2, "kv_tokens": 192}
        for name, weights in MODELS.items()
    }
    spec = BundleSpec.model_validate({"bundle": "families", "target": "cpu", "models": models})
    return build_bundle(spec, directory / "families.plait", base=directory).path


def greedy(bundle: Path, name: str, prompt: list[int]) -> list[int]:
    """Returns the answer of the dense model, computed as its definition says."""
    checkpoint = open_checkpoint(bundle.parent / name)
    config = checkpoint.config.dense
    assert isinstance(config, DecoderConfig)
    parameters = {tensor: jnp.asarray(checkpoint.read(tensor)) for tensor in checkpoint.tensor_names}
    if MODELS[name] == "q8_0":
        stored = build(config.stored_as("q8_0"), "float32").parameters
        for tensor in parameters:
            if f"{tensor.removesuffix('weight')}scales" in stored:
                values, scales = map(jnp.asarray, quantize(np.asarray(parameters[tensor]), "q8_0"))
                parameters[tensor] = dequantize_values(values, scales, "q8_0", "float32")
    step = jax.jit(build(config, "float32").__call__)
    cache = [tuple(jnp.zeros((1, 96, *shape)) for shape in config.cache_shapes)] * config.num_layers
    tokens = list(prompt)
    logits, cache = step(parameters, np.array([tokens]), np.zeros(1, np.int32), np.array([len(tokens)]), cache)
    while len(tokens) < NUM_PROMPT_TOKENS + NUM_NEW_TOKENS:
        tokens.append(int(jnp.argmax(logits[0])))
        start = np.array([len(tokens) - 1], np.int32)
        logits, cache = step(parameters, np.array([tokens[-1:]]), start, np.ones(1, np.int32), cache)
    return tokens[len(prompt) :]


def test_models_of_every_kind_answer_as_their_dense_forms_do(bundle: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=NUM_NEW_TOKENS)
    with Runtime(bundle) as runtime:
        for name in MODELS:
            prompt = np.random.default_rng(7).integers(3, 128, NUM_PROMPT_TOKENS).tolist()
            answer = runtime.complete(name, prompt, params)
            expected = greedy(bundle, name, prompt)
            if 2 in expected:  # ends the answer
                expected = expected[: expected.index(2) + 1]
            assert list(answer.token_ids) == expected[: len(answer.token_ids)], name
            assert len(answer.token_ids) >= len(expected) - 1, name


def test_stored_forms_take_fewer_bytes(bundle: Path) -> None:
    with Runtime(bundle) as runtime:
        assert {status.name for status in runtime.models()} == set(MODELS)
    for name, weights in MODELS.items():
        written = (bundle / "models" / name / "weights.safetensors").stat().st_size
        config = open_checkpoint(bundle.parent / name).config.dense
        dense = sum(np.prod(leaf.shape) * 4 for leaf in build(config, "float32").parameters.values())
        assert (written < dense) == (weights != "dense"), name
