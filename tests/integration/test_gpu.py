"""The runtime on a GPU: `make test-gpu`, skipped where JAX sees none.

The oracle is the dense model, computed by plain `jax.jit` on the CPU of the same machine.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from decoder_variants import empty_cache
from tiny import LLAMA_CONFIG, build_tiny_bundle

import plait
from plait.models.checkpoint import open_checkpoint
from plait.models.family import build
from plait.runtime.engine import Runtime
from plait.runtime.request import Completion, SamplingParams

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX sees no GPU")

TOLERANCE = 0.02  # of a logarithm of a probability: products of f32 may be rounded to TF32
FEW = SamplingParams(max_tokens=12, temperature=0, logprobs=0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `tiny.plait` and what it is made of are."""
    directory = tmp_path_factory.mktemp("gpu")
    build_tiny_bundle(directory, target="gpu")
    return directory


def check_against_dense(source: Path, prompt: list[int], answer: Completion) -> None:
    """Checks the logarithm of each token's probability."""
    checkpoint = open_checkpoint(source)
    model = build(LLAMA_CONFIG, "float32")
    tokens = jnp.asarray([*prompt, *answer.token_ids], jnp.int32)
    with jax.default_device(jax.devices("cpu")[0]):
        parameters = {name: jnp.asarray(checkpoint.read(name)) for name in model.parameters}
        cache = empty_cache(LLAMA_CONFIG, len(tokens), "float32")
        for index, scored in enumerate(answer.logprobs):
            length = len(prompt) + index
            arguments = tokens[None, :length], jnp.array([0]), jnp.array([length]), cache
            logits, _ = jax.jit(model.__call__)(parameters, *arguments)
            expected = jax.nn.log_softmax(logits[0])[tokens[length]]
            assert abs(float(expected) - scored.drawn.logprob) < TOLERANCE


def test_answers_are_those_of_the_dense_model_after_switches(directory: Path) -> None:
    path = directory / "tiny.plait"
    models = plait.load(path).manifest.models
    room_for_one = max(entry.resident_bytes + entry.workspace_bytes for entry in models)
    with Runtime(path, hbm=room_for_one) as runtime:
        for _ in range(2):
            for name, source in (("chat", "llama-0"), ("other", "llama-1")):
                prompt = runtime.tokenize(name, "The cat sat on the mat")
                check_against_dense(directory / source, prompt, runtime.complete(name, "The cat sat on the mat", FEW))
        assert [r.model for r in runtime.transfers() if r.destination == "hbm"][-4:] == ["chat", "other"] * 2
        assert all(use.measured_bytes <= use.budget_bytes for use in runtime.tier_uses())


def test_answers_computed_at_once_are_those_of_the_dense_model(directory: Path) -> None:
    prompts = [f"The cat number {index}" for index in range(6)]
    with Runtime(directory / "tiny.plait") as runtime:

        async def together() -> list[Completion]:
            return await asyncio.gather(*(runtime.complete_async("chat", prompt, FEW) for prompt in prompts))

        for prompt, answer in zip(prompts, asyncio.run(together()), strict=True):
            check_against_dense(directory / "llama-0", runtime.tokenize("chat", prompt), answer)
