"""Mixtures of experts against their definition, row by row, and against the dense model that equal experts make."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plait.models.checkpoint import open_checkpoint
from plait.models.config import DecoderConfig, Experts
from plait.models.family import build
from plait.models.moe import moe, route

NUM_EXPERTS = 8
DEFAULTS = {"score": "softmax", "experts_per_token": 2, "normalizes": True, "scale": 1.0}
UNGROUPED = {"num_groups": 1, "groups_per_token": 1}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


# With 2 of 8 experts a row: 3 rows choose fewer experts than there are, 40 rows more.
@pytest.mark.parametrize("num_rows", [1, 3, 40])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "biases"])
def test_each_row_gets_the_weighted_sum_of_its_experts(num_rows: int, has_bias: bool) -> None:
    x, shares = random(num_rows, 16), np.abs(random(num_rows, 2, seed=1))
    chosen = np.stack([np.random.default_rng(row).permutation(NUM_EXPERTS)[:2] for row in range(num_rows)])
    gate, up, down = random(8, 24, 16, seed=2), random(8, 24, 16, seed=3), random(8, 16, 24, seed=4)
    biases = [random(8, size, seed=5) * has_bias for size in (24, 24, 16)]
    expected = np.zeros_like(x)
    for row in range(num_rows):
        for share, expert in zip(shares[row], chosen[row], strict=True):
            inner = silu(gate[expert] @ x[row] + biases[0][expert]) * (up[expert] @ x[row] + biases[1][expert])
            expected[row] += share * (down[expert] @ inner + biases[2][expert])
    pairs = zip((gate, up, down), biases, strict=True)
    arrays = [a for pair in pairs for a in pair] if has_bias else [gate, up, down]
    ours = moe(x, shares, chosen, *arrays, activation="silu", has_bias=has_bias)
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=1e-4, atol=1e-4)


def test_softmax_weights_of_the_best_experts_sum_to_one() -> None:
    logits = random(5, NUM_EXPERTS)
    weights, chosen = route(logits, **DEFAULTS, **UNGROUPED)
    best = np.argsort(-logits, axis=-1)[:, :2]
    np.testing.assert_array_equal(np.asarray(chosen), best)
    scores = np.exp(np.take_along_axis(logits, best, -1))
    np.testing.assert_allclose(np.asarray(weights), scores / scores.sum(-1, keepdims=True), rtol=1e-5)


def test_without_normalization_weights_are_the_softmax_over_all() -> None:
    logits = random(5, NUM_EXPERTS)
    weights, chosen = route(logits, **{**DEFAULTS, "normalizes": False, "scale": 2.0}, **UNGROUPED)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 2 * np.take_along_axis(softmax, np.asarray(chosen), -1)
    np.testing.assert_allclose(np.asarray(weights), expected, rtol=1e-5)


def test_a_selection_bias_chooses_but_does_not_weigh() -> None:
    logits, bias = np.zeros((1, NUM_EXPERTS), np.float32), np.zeros(NUM_EXPERTS, np.float32)
    bias[[3, 6]] = 1.0
    weights, chosen = route(logits, bias, **{**DEFAULTS, "score": "sigmoid"}, **UNGROUPED)
    assert sorted(np.asarray(chosen)[0]) == [3, 6]
    np.testing.assert_allclose(np.asarray(weights), [[0.5, 0.5]])


def test_only_the_best_groups_are_eligible() -> None:
    # Groups of two; the best expert of all, 0, is in a group whose second one is poor.
    logits = np.array([[3.0, -9.0, 1.0, 1.1, -5.0, -5.0, 2.0, 0.9]], np.float32)
    options = {**DEFAULTS, "score": "sigmoid", "num_groups": 4, "groups_per_token": 2}
    _, chosen = route(logits, **options)
    assert sorted(np.asarray(chosen)[0]) == [3, 6]


def with_equal_experts(config: DecoderConfig, parameters: dict[str, jax.Array]) -> tuple[DecoderConfig, dict]:
    """Puts 4 copies of each feed-forward, behind a random router, in its place."""
    mixture = replace(config, experts=Experts(4, 2, config.intermediate_size), architecture="mixtral")
    made: dict[str, jax.Array] = {}
    for index, (name, leaf) in enumerate(build(mixture, "float32").parameters.items()):
        if name.endswith("router.weight"):
            made[name] = jnp.asarray(random(*leaf.shape, seed=index))
        else:
            made[name] = jnp.broadcast_to(parameters[name], leaf.shape)
    return mixture, made


@pytest.mark.weights
def test_a_mixture_of_identical_experts_gives_the_dense_models_logits(smollm2) -> None:
    checkpoint = open_checkpoint(smollm2)
    dense = checkpoint.config.dense
    assert isinstance(dense, DecoderConfig)
    parameters = {name: jnp.asarray(checkpoint.read(name)) for name in checkpoint.tensor_names}
    mixture, copies = with_equal_experts(dense, parameters)
    tokens = np.random.default_rng(0).integers(0, dense.vocab_size, (1, 13))
    logits = []
    for config, weights in ((dense, parameters), (mixture, copies)):
        model = jax.jit(build(config, "float32").__call__)
        shapes = [(1, 16, *shape) for shape in config.cache_shapes]
        cache = [tuple(jnp.zeros(shape) for shape in shapes)] * config.num_layers
        prefill, cache = model(weights, tokens[:, :12], jnp.array([0]), jnp.array([12]), cache)
        decode, _ = model(weights, tokens[:, 12:], jnp.array([12]), jnp.array([1]), cache)
        logits.append(np.stack([prefill, decode]))
    assert np.abs(logits[1] - logits[0]).max() <= 1e-5 * np.abs(logits[0]).max()
