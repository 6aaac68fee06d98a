from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plait.models.checkpoint import Checkpoint, open_checkpoint
from plait.models.config import DecoderConfig
from plait.models.decoder import Decoder, KVCache
from plait.models.family import build
from plait.runtime.chat_template import ChatTemplate
from plait.runtime.tokenizer import Tokenizer

pytestmark = pytest.mark.weights

TOLERANCE = 1e-4  # max|difference| / max|reference|
CONTEXT = 192
REFERENCE = np.load(Path(__file__).parents[1] / "golden" / "reference_smollm2.npz")
PROMPTS = ("capital", "harbour")


class Reader:
    """SmolLM2 in f32, compiled for a prompt and for a step."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert isinstance(checkpoint.config, DecoderConfig)
        self.config = checkpoint.config
        self.model = build(checkpoint.config, jnp.float32)
        self.parameters = {name: jnp.asarray(checkpoint.read(name)) for name in checkpoint.tensor_names}

    def empty_cache(self) -> KVCache:
        shape = (1, CONTEXT, self.config.num_kv_heads, self.config.head_size)
        return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(self.config.num_layers)]

    @partial(jax.jit, static_argnums=0)
    def all_logits(self, parameters, tokens, start, cache):
        """Returns the logits after each new token, [new, vocab], and the extended cache."""
        model = self.model.module(parameters)
        assert isinstance(model, Decoder)
        hidden, cache = model.hidden_states(tokens[None], start, cache)
        return model.logits(hidden)[0], cache

    def read(self, tokens: np.ndarray, start: int, cache: KVCache) -> tuple[np.ndarray, KVCache]:
        logits, cache = self.all_logits(self.parameters, jnp.asarray(tokens), jnp.array([start]), cache)
        return np.asarray(logits), cache


@pytest.fixture(scope="module")
def checkpoint(smollm2: Path) -> Checkpoint:
    return open_checkpoint(smollm2)


@pytest.fixture(scope="module")
def reader(checkpoint: Checkpoint) -> Reader:
    return Reader(checkpoint)


@pytest.fixture(scope="module", params=PROMPTS)
def run(request: pytest.FixtureRequest, reader: Reader) -> tuple[str, np.ndarray]:
    """The prompt's name, and our logits at its positions and at 32 steps fed with the reference's tokens."""
    name = request.param
    prompt, greedy = REFERENCE[f"{name}_prompt_ids"], REFERENCE[f"{name}_greedy_ids"]
    rows, cache = reader.read(prompt, 0, reader.empty_cache())
    parts = [rows]
    for step, token in enumerate(greedy):
        rows, cache = reader.read(np.array([token]), len(prompt) + step, cache)
        parts.append(rows)
    return name, np.concatenate(parts)


def test_logits_agree_with_the_reference_in_prefill_and_decode(run: tuple[str, np.ndarray]):
    name, logits = run
    reference = REFERENCE[f"{name}_logits"]
    assert len(reference) == len(REFERENCE[f"{name}_prompt_ids"]) + 32
    difference = np.abs(logits[:, REFERENCE["vocabulary_ids"]] - reference).max(axis=1)
    assert (difference / REFERENCE[f"{name}_max_abs_logit"]).max() < TOLERANCE


def test_largest_logits_agree_with_the_reference(run: tuple[str, np.ndarray]):
    name, logits = run
    np.testing.assert_allclose(np.abs(logits).max(axis=1), REFERENCE[f"{name}_max_abs_logit"], rtol=TOLERANCE)
    np.testing.assert_array_equal(logits.argmax(axis=1), REFERENCE[f"{name}_argmax"])


def test_greedy_tokens_are_those_of_the_reference(run: tuple[str, np.ndarray]):
    name, logits = run
    prompt = len(REFERENCE[f"{name}_prompt_ids"])
    np.testing.assert_array_equal(logits.argmax(axis=1)[prompt - 1 : -1], REFERENCE[f"{name}_greedy_ids"])


def test_prompt_in_two_chunks_gives_the_logits_of_the_whole(reader: Reader, run: tuple[str, np.ndarray]):
    name, logits = run
    prompt = REFERENCE[f"{name}_prompt_ids"]
    first, cache = reader.read(prompt[:16], 0, reader.empty_cache())
    second, _ = reader.read(prompt[16:], 16, cache)
    chunked = np.concatenate([first, second])
    assert np.abs(chunked - logits[: len(prompt)]).max() / np.abs(chunked).max() < TOLERANCE


def test_template_and_tokenizer_give_the_reference_prompt_and_answer(checkpoint: Checkpoint):
    assert checkpoint.chat_template is not None
    template = ChatTemplate(checkpoint.chat_template, bos_token=checkpoint.bos_token, eos_token=checkpoint.eos_token)
    tokenizer = Tokenizer(checkpoint.tokenizer_json)
    ids = template.encode([{"role": "user", "content": "What is the capital of France?"}], tokenizer)
    assert ids == REFERENCE["capital_prompt_ids"].tolist()
    greedy = REFERENCE["capital_greedy_ids"].tolist()
    end = next(index for index, token in enumerate(greedy) if token in checkpoint.eos_token_ids)
    assert tokenizer.decode(greedy[:end]) == "The capital of France is Paris."
