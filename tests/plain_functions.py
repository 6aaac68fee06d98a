"""Plain JAX functions of all kinds, as users write them, with their abstract arguments."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from plait.compiler.target import Compute, Network, Target, Tier

__all__ = ["FUNCTIONS", "TARGET", "abstract", "layer", "layer_parameters", "mlp", "mlp_parameters"]

TARGET = Target(
    name="test",
    description="a slow device with a fast network, so that small functions are divided",
    kind="tiered",
    num_devices=8,
    compute=Compute({"f32": 1e9}),
    tiers={"hbm": Tier(1 << 34, 1e9)},
    links={},
    source="made up",
    network=Network(latency_seconds=1e-7, bandwidth_bytes_per_s=1e9),
)


def abstract(*shape, dtype=None):
    return jax.ShapeDtypeStruct(shape, dtype or jnp.result_type(float))


def indices(*shape):
    return abstract(*shape, dtype=jnp.int32)


def random_key():
    return jax.eval_shape(lambda: jax.random.key(0))


def mlp(params, x):
    return jax.nn.gelu(x @ params["up"] + params["bias"]) @ params["down"]


def mlp_parameters():
    return {"up": abstract(16, 32), "bias": abstract(32), "down": abstract(32, 16)}


def attention(params, x):
    query, key, value = (jnp.einsum("bsd,dhk->bhsk", x, params[name]) for name in ("query", "key", "value"))
    scores = jnp.einsum("bhsk,bhtk->bhst", query, key) / query.shape[-1] ** 0.5
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bshk,hkd->bsd", jnp.einsum("bhst,bhtk->bshk", weights, value), params["out"])


def rms_norm(x, scale):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def layer(params, x):
    """A pre-norm transformer layer."""
    x = x + attention(params, rms_norm(x, params["norm"]))
    return x + jax.nn.silu(rms_norm(x, params["norm_mlp"]) @ params["up"]) @ params["down"]


def layer_parameters(*stacked):
    shapes = dict.fromkeys(("query", "key", "value"), (16, 4, 4))
    shapes |= {"out": (4, 4, 16), "norm": (16,), "norm_mlp": (16,), "up": (16, 32), "down": (32, 16)}
    return {name: abstract(*stacked, *shape) for name, shape in shapes.items()}


def scanned_layers(params, x):
    return lax.scan(lambda h, own: (layer(own, h), None), x, params)[0]


def loss_of(function):
    return lambda params, *rest: jnp.mean(function(params, *rest) ** 2)


def train_step(params, state, x, labels):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(mlp(params, x), labels).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


def optimizer_state():
    return jax.eval_shape(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init, mlp_parameters())


def convolution(kernel, x, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    made = lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=groups)
    return lax.reduce_window(jax.nn.relu(made), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def experts(params, x):
    weights, chosen = lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
    share = jnp.einsum("tke,tk->te", jax.nn.one_hot(chosen, 4), weights)
    hidden = jax.nn.silu(jnp.einsum("td,edf->etf", x, params["up"]))
    return jnp.einsum("etd,te->td", jnp.einsum("etf,efd->etd", hidden, params["down"]), share)


def recurrence(params, x):
    def cell(h, row):
        h = jnp.tanh(row @ params["in"] + h @ params["own"])
        return h, h

    return lax.scan(cell, jnp.zeros((x.shape[0], 16), x.dtype), jnp.swapaxes(x, 0, 1))[1]


def decode(params, cache, x, position):
    query, key = ((x @ params[name]).reshape(4, 4, 4) for name in ("query", "key"))
    cache = lax.dynamic_update_slice_in_dim(cache, key[:, None], position, axis=1)
    scores = jnp.einsum("bhk,bthk->bht", query, cache)
    weights = jax.nn.softmax(jnp.where(jnp.arange(8) <= position, scores, -1e9))
    return jnp.einsum("bht,bthk->bhk", weights, cache).reshape(4, 16), cache


def lookups(i, w):
    return (
        *(jnp.take(w, i, axis=0), w[i], w[i, i % 8], jnp.take_along_axis(w, i[:, None] % 8, axis=1)),
        *(w[:, 2], w[..., ::2], w[::-1], lax.dynamic_slice_in_dim(w, i[0], 4), jax.nn.one_hot(i, 16) @ w),
        *(w.at[i].get(mode="clip"), w.at[i].get(mode="fill", fill_value=7.0)),
    )


def updates(i, w, u):
    return (
        *(w.at[i].set(u), w.at[i].add(u), w.at[i].max(u), w.at[i].mul(u), w.at[3].set(1.0), w.at[:, 1].add(2.0)),
        *(lax.dynamic_update_slice_in_dim(w, u, i[0], axis=0), jax.ops.segment_sum(u, i, num_segments=8)),
    )


def orders(x):
    return (
        *(jnp.sort(x), jnp.argsort(x, axis=0), *lax.top_k(x, 4), jnp.argmax(x, -1), jnp.argmin(x, 0)),
        *(jnp.cumsum(x, 0), jnp.cumprod(x, 1), lax.cummax(x, axis=0), jnp.where(x > 0, x, 0.0)),
        *((x > 0).sum(), jnp.any(x > 0, 1), jnp.nonzero(x > 0, size=4), jnp.median(x, axis=1)),
    )


def shapes(x):
    return (
        *(x.reshape(4, 2, 16), x.reshape(-1), x.T, jnp.concatenate([x, x], 1), jnp.stack([x, x]), jnp.split(x, 2, 1)),
        *(jnp.pad(x, 1), jnp.repeat(x, 2, 0), jnp.tile(x, (2, 2)), jnp.roll(x, 1, 0), jnp.flip(x, 0), x[None]),
        *(jnp.diff(x), jnp.triu(x), jnp.eye(8) + x[:, :8], jnp.arange(16.0) + x, jnp.outer(x[0], x[1])),
    )


def decompositions(x):
    positive = x @ jnp.swapaxes(x, -1, -2) + 4 * jnp.eye(4)
    return jnp.linalg.cholesky(positive), jnp.linalg.solve(positive, x), jnp.abs(jnp.fft.rfft(x)), jnp.linalg.norm(x)


def randomness(key, x):
    key, own, other = jax.random.split(key, 3)
    noise = jax.vmap(lambda k, row: row + jax.random.uniform(k, row.shape))(jax.random.split(own, 8), x)
    kept = jax.random.bernoulli(jax.random.fold_in(other, 3), 0.5, x.shape)
    old = jax.random.normal(jax.random.PRNGKey(1), x.shape)
    return key, noise, jnp.where(kept, x / 0.5, 0.0) + old, jax.random.categorical(other, x)


def branches(flag, x):
    one = lax.cond(flag, lambda x: jnp.sin(x) @ x.T, lambda x: x @ x.T, x)
    other = lax.switch(jnp.argmax(x[0]) % 3, [lambda x: x, lambda x: x * 2, lambda x: -x], x)
    return one, other


def loops(w, x):
    fixed = lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w[i]), x)
    counted = lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, c[1] * 1.5 + 1), (0, x))
    return fixed, counted, lax.map(lambda row: jnp.tanh(row @ w[0]), x), lax.associative_scan(jnp.add, x, axis=1)


def masked_product(w, x):
    return jnp.where(
        x[:, :1] > 0, jax.jit(lambda h, low: jnp.maximum(h, low) + jnp.where(h > 0, h, 7.0))(x @ w, -1.0), 5.0
    )


def plain_results(x, y, scale, empty):
    made = jnp.tanh(x)
    return x, made, made, {"y": (y, None), "empty": empty}, 3.0, scale * x, jnp.concatenate([x, empty]), jnp.int32(2)


def second_derivative(w, x, direction):
    return jax.jvp(jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2)), (w,), (direction,))[1]


# Each returns a function and its arguments: floats are of the precision in force.
FUNCTIONS: dict[str, Callable[[], tuple[Callable[..., object], tuple[object, ...]]]] = {
    "mlp": lambda: (mlp, (mlp_parameters(), abstract(8, 16))),
    "vmap": lambda: (jax.vmap(mlp, in_axes=(None, 0)), (mlp_parameters(), abstract(4, 8, 16))),
    "layer": lambda: (layer, (layer_parameters(), abstract(4, 8, 16))),
    "layer gradient": lambda: (jax.value_and_grad(loss_of(layer)), (layer_parameters(), abstract(4, 8, 16))),
    "scan": lambda: (scanned_layers, (layer_parameters(3), abstract(4, 8, 16))),
    "scan gradient": lambda: (jax.grad(loss_of(scanned_layers)), (layer_parameters(2), abstract(4, 8, 16))),
    "train step": lambda: (train_step, (mlp_parameters(), optimizer_state(), abstract(8, 16), indices(8))),
    "convolution": lambda: (convolution, (abstract(3, 3, 4, 8), abstract(4, 8, 8, 4))),
    "convolution gradient": lambda: (
        jax.grad(loss_of(convolution), argnums=(0, 1)),
        (abstract(3, 3, 4, 8), abstract(4, 8, 8, 4)),
    ),
    "convolution by groups": lambda: (
        lambda k, x: convolution(k, x, groups=4),
        (abstract(3, 3, 1, 8), abstract(4, 8, 8, 4)),
    ),
    "experts gradient": lambda: (
        jax.grad(loss_of(experts)),
        ({"router": abstract(16, 4), "up": abstract(4, 16, 32), "down": abstract(4, 32, 16)}, abstract(8, 16)),
    ),
    "recurrence gradient": lambda: (
        jax.grad(loss_of(recurrence)),
        ({"in": abstract(8, 16), "own": abstract(16, 16)}, abstract(4, 6, 8)),
    ),
    "decode": lambda: (
        decode,
        ({name: abstract(16, 16) for name in ("query", "key")}, abstract(4, 8, 4, 4), abstract(4, 16), indices()),
    ),
    "lookups": lambda: (lookups, (indices(16), abstract(16, 8))),
    "updates": lambda: (updates, (indices(4), abstract(16, 8), abstract(4, 8))),
    "orders": lambda: (orders, (abstract(8, 16),)),
    "shapes": lambda: (shapes, (abstract(8, 16),)),
    "decompositions": lambda: (decompositions, (abstract(4, 4, 4),)),
    "randomness": lambda: (randomness, (random_key(), abstract(8, 16))),
    "branches": lambda: (branches, (abstract(dtype=bool), abstract(8, 16))),
    "loops": lambda: (loops, (abstract(4, 16, 16), abstract(8, 16))),
    "masked product": lambda: (masked_product, (abstract(16, 16), abstract(8, 16))),
    "plain results": lambda: (plain_results, (abstract(8, 16), abstract(3), 2.0, abstract(0, 16))),
    "second derivative": lambda: (second_derivative, (abstract(16, 16), abstract(8, 16), abstract(16, 16))),
}
