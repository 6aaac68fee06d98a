from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plait.models.layers import (
    attention,
    embedding,
    layer_norm,
    linear,
    normalize,
    rms_norm,
    rope,
    self_attention,
    vocabulary_max,
)
from plait.models.named_ops import parse_op_name

assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def jitted_names(function: Callable[..., object], *arguments: object) -> list[str]:
    equations = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
    return [equation.params["name"] for equation in equations if "name" in equation.params]


@pytest.mark.parametrize(
    ("op", "arguments", "options"),
    [
        (linear, [(2, 3), (4, 3)], {}),
        (rms_norm, [(2, 3), (3,)], {"epsilon": 1e-05}),
        (layer_norm, [(2, 3), (3,), (3,)], {"epsilon": 1e-12}),
        (rope, [(1, 2, 1, 4), (1, 2)], {"theta": 100_000.0}),
    ],
    ids=["linear", "rms_norm", "layer_norm", "rope"],
)
def test_name_of_a_traced_op_gives_back_its_options(
    op: Callable[..., object], arguments: list[tuple[int, ...]], options: dict[str, float]
):
    names = jitted_names(lambda *arrays: op(*arrays, **options), *(jnp.ones(shape) for shape in arguments))
    assert [parse_op_name(name) for name in names] == [(op.__name__, options)]


@pytest.mark.parametrize("name", ["main", "silu", "linears", "rms_norm[", "<lambda>"])
def test_other_names_are_no_named_ops(name: str):
    assert parse_op_name(name) is None


def test_calls_with_equal_options_share_one_compilation():
    x, weight = jnp.ones((2, 3)), jnp.ones(3)
    first = jax.make_jaxpr(lambda: rms_norm(x, weight, epsilon=1e-3))()
    second = jax.make_jaxpr(lambda: rms_norm(x, weight, epsilon=1e-3))()
    assert first.jaxpr.eqns[0].params["jaxpr"] is second.jaxpr.eqns[0].params["jaxpr"]


def test_linear_is_a_product_with_rows_of_weights():
    x, weight, bias = values(2, 5, 3), values(4, 3, seed=1), values(4, seed=2)
    assert_close(linear(x, weight, bias), x @ weight.T + bias)


def test_linear_keeps_the_dtype_of_its_input():
    x = jnp.ones((2, 3), jnp.float32)
    assert linear(x, jnp.ones((4, 3), jnp.bfloat16)).dtype == jnp.float32


def test_embedding_takes_rows():
    table = values(7, 3)
    np.testing.assert_array_equal(embedding(jnp.array([[6, 0]]), table), table[[[6, 0]]])


def test_rms_norm_scales_to_unit_root_mean_square():
    x = 100 * values(4, 64)
    normed = np.asarray(rms_norm(x, np.ones(64, np.float32), epsilon=1e-6))
    np.testing.assert_allclose(np.sqrt(np.mean(normed**2, axis=-1)), 1.0, rtol=1e-5)


def test_layer_norm_shifts_and_scales():
    normed = np.asarray(layer_norm(3 + values(4, 64), np.full(64, 2.0), np.ones(64), epsilon=1e-12))
    np.testing.assert_allclose(normed.mean(axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(normed.std(axis=-1), 2.0, rtol=1e-5)


def test_rope_rotates_each_pair_by_its_own_angle():
    size, theta = 8, 10_000.0
    x, positions = values(2, 3, 2, size), np.array([[0, 1, 2], [5, 6, 900]])
    expected = np.empty_like(x)
    for index in np.ndindex(2, 3, 2):
        for pair in range(size // 2):
            angle = positions[index[:2]] * theta ** (-2 * pair / size)
            turned = complex(x[index][pair], x[index][pair + size // 2]) * np.exp(1j * angle)
            expected[index][pair], expected[index][pair + size // 2] = turned.real, turned.imag
    np.testing.assert_allclose(rope(x, positions, theta=theta), expected, atol=1e-4)


def test_rope_makes_products_depend_on_the_distance_alone():
    query, key = values(1, 1, 1, 16), values(1, 1, 1, 16, seed=1)

    def product(query_position: int, key_position: int) -> float:
        turned = (
            rope(query, jnp.array([[query_position]]), theta=1e4),
            rope(key, jnp.array([[key_position]]), theta=1e4),
        )
        return float(jnp.vdot(*turned))

    assert product(3, 1) == pytest.approx(product(40, 38), rel=1e-4)


def softmax_mix(query: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """Attention of one query vector over rows of keys and values."""
    scores = np.array([scale * float(np.dot(query, key)) for key in keys])
    weights = np.exp(scores - scores.max())
    return np.sum([w * value for w, value in zip(weights / weights.sum(), values, strict=True)], axis=0)


def test_attention_is_the_naive_loop_over_the_extended_cache():
    batch, new, context, heads, kv_heads, size = 2, 3, 8, 4, 2, 4
    start = np.array([2, 5])
    query = values(batch, new, heads, size)
    key, value = values(batch, new, kv_heads, size, seed=1), values(batch, new, kv_heads, size, seed=2)
    keys, cached = values(batch, context, kv_heads, size, seed=3), values(batch, context, kv_heads, size, seed=4)
    out, new_keys, new_values = attention(query, key, value, keys, cached, start, scale=0.5)
    for b in range(batch):
        keys[b, start[b] : start[b] + new], cached[b, start[b] : start[b] + new] = key[b], value[b]
    np.testing.assert_array_equal(new_keys, keys)
    np.testing.assert_array_equal(new_values, cached)
    for b, n, head in np.ndindex(batch, new, heads):
        seen, group = slice(start[b] + n + 1), head // (heads // kv_heads)
        expected = softmax_mix(query[b, n, head], keys[b, seen, group], cached[b, seen, group], 0.5)
        assert_close(out[b, n, head], expected)


def test_attention_drops_what_is_past_the_end_of_the_cache():
    new = values(1, 3, 1, 4)
    cache = np.zeros((1, 4, 1, 4), np.float32)
    _, keys, _ = attention(new, new, new, cache, cache, np.array([3]), scale=1.0)
    np.testing.assert_array_equal(keys[0, :, 0], [*np.zeros((3, 4)), new[0, 0, 0]])


def test_self_attention_sees_each_sequence_up_to_its_length():
    query, key, value = (values(2, 5, 2, 4, seed=seed) for seed in range(3))
    lengths = np.array([5, 2])
    out = self_attention(query, key, value, lengths, scale=0.5)
    for b, n, head in np.ndindex(2, 5, 2):
        seen = slice(lengths[b])
        expected = softmax_mix(query[b, n, head], key[b, seen, head], value[b, seen, head], 0.5)
        assert_close(out[b, n, head], expected)


def test_vocabulary_max_is_the_largest_of_each_entry_over_valid_tokens():
    x, weight, bias, lengths = values(3, 4, 5), values(6, 5, seed=1), values(6, seed=2), np.array([4, 1, 0])
    vectors = np.asarray(vocabulary_max(x, weight, bias, lengths))
    assert vectors.shape == (3, 6)
    for b in range(3):
        logits = [weight @ token + bias for token in x[b, : lengths[b]]]
        expected = np.max([np.log1p(np.maximum(row, 0)) for row in logits], axis=0) if logits else np.zeros(6)
        assert_close(vectors[b], expected)


def test_normalize_leaves_a_zero_row_zero():
    rows = np.asarray(normalize(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)))
    assert_close(rows, [[0.6, 0.8], [0.0, 0.0]])
