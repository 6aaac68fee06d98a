"""Mixtures of experts (Mixtral, Qwen3-MoE, gpt-oss, DeepSeek) in Flax NNX, and their named ops.

Comes in: `config.Experts` and a maker of parameters. Goes out: a module in the place of the feed-forward. The weights
of all experts are stacked, [experts, out, in], so that one op holds them and sharding their first dimension is expert
parallelism.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from .config import Activation, DecoderConfig, Experts, StoredForm
from .layers import ACTIVATIONS, MakeParameter, StoredWeight, clamped_swiglu, dequantize, linear
from .llama import FeedForward
from .named_ops import Option, named_op, wide

__all__ = ["MixtureOfExperts", "expert_activation", "moe", "moe_backward", "route", "weighted_experts"]


@named_op
def route(
    logits: Float[Array, "rows experts"],
    *selection_bias: Float[Array, " experts"],
    score: str,
    experts_per_token: int,
    normalizes: bool,
    scale: float,
    num_groups: int,
    groups_per_token: int,
) -> tuple[Float[Array, "rows chosen"], Int[Array, "rows chosen"]]:
    """Chooses the experts of each row; `config.Experts` says how. Returns their weights and their numbers."""
    scores = jax.nn.sigmoid(logits) if score == "sigmoid" else jax.nn.softmax(logits, axis=-1)
    eligible = scores
    for bias in selection_bias:
        eligible = eligible + bias.astype(eligible.dtype)
    if num_groups > 1:
        grouped = eligible.reshape(*eligible.shape[:-1], num_groups, -1)
        best = jnp.sum(jax.lax.top_k(grouped, 2)[0], axis=-1) if score == "sigmoid" else jnp.max(grouped, axis=-1)
        _, groups = jax.lax.top_k(best, groups_per_token)
        is_left = jnp.any(groups[..., None] == jnp.arange(num_groups), axis=-2)
        eligible = jnp.where(is_left[..., None], grouped, -jnp.inf).reshape(eligible.shape)
    _, chosen = jax.lax.top_k(eligible, experts_per_token)
    weights = jnp.take_along_axis(scores, chosen, axis=-1)
    if normalizes:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
    return weights * scale, chosen


def weighted_experts(
    x: Float[Array, "rows hidden"],
    weights: Float[Array, "rows chosen"],
    chosen: Int[Array, "rows chosen"],
    *arrays: Array,
    activation: Activation,
    has_bias: bool = False,
    form: StoredForm | str = "",
    dtype: str = "",
) -> Float[Array, "rows hidden"]:
    """Returns the weighted sum of each row's experts, each a gated feed-forward.

    Where rows choose no more experts than there are, each takes the weights of its own: no other weight is touched.
    Else rows are sorted by expert, so that each expert's products are one block of rows.

    Args:
        x: The rows.
        weights: Of each row's experts.
        chosen: Their numbers.
        *arrays: Of gate [experts, inner, hidden], up, down [experts, hidden, inner]: the weight, its scales if there
            is a stored form, its bias [experts, out] if there are biases.
        activation: Of the gate.
        has_bias: Whether there are biases.
        form: Stored form of the weights.
        dtype: What weights of a stored form are computed in.
    """
    experts = chosen.reshape(-1)
    size = len(arrays) // 3
    parts = [arrays[i * size : (i + 1) * size] for i in range(3)]
    num_experts = parts[0][0].shape[0]
    is_gathered = experts.size <= num_experts
    order = jnp.arange(experts.size) if is_gathered else jnp.argsort(experts, stable=True)
    experts = experts[order]
    counts = jnp.bincount(experts, length=num_experts)

    def product(rows: Array, part: tuple[Array, ...]) -> Array:
        held = tuple(array[experts] for array in part[: 2 if form else 1]) if is_gathered else part
        weight = dequantize(*held[:2], form=form, dtype=dtype) if form else held[0]
        rows = rows.astype(weight.dtype)
        if is_gathered:
            y = jnp.einsum("ri,roi->ro", rows, weight, preferred_element_type=wide(weight.dtype))
        else:
            y = jax.lax.ragged_dot_general(rows, weight, counts, _BY_EXPERT, preferred_element_type=wide(weight.dtype))
        return y + part[-1][experts].astype(y.dtype) if has_bias else y

    rows = x[order // chosen.shape[1]]
    inner = expert_activation(product(rows, parts[0]), product(rows, parts[1]), activation)
    out = product(inner, parts[2]) * weights.reshape(-1)[order][:, None]
    summed = jnp.zeros(out.shape, out.dtype).at[order].set(out).reshape(*chosen.shape, -1).sum(axis=1)
    return summed.astype(x.dtype)


_BY_EXPERT = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


def expert_activation(gate: Array, up: Array, activation: Activation) -> Array:
    """Returns the gated inner values of an expert."""
    return clamped_swiglu(gate, up) if activation == "clamped_swiglu" else ACTIVATIONS[activation](gate) * up


@named_op
def moe_backward(
    gradient: Float[Array, "rows hidden"],
    x: Float[Array, "rows hidden"],
    weights: Float[Array, "rows chosen"],
    chosen: Int[Array, "rows chosen"],
    *arrays: Array,
    activation: Activation,
    has_bias: bool = False,
) -> tuple[Array, ...]:
    """Returns the gradients of `moe`'s rows, weights and arrays.

    Nothing is kept for it but the operands: the experts' products are computed again.
    """

    def forward(x: Array, weights: Array, *arrays: Array) -> Array:
        return weighted_experts(x, weights, chosen, *arrays, activation=activation, has_bias=has_bias)

    _, pull_back = jax.vjp(forward, x, weights, *arrays)
    return pull_back(gradient)


def _gradients(gradient: Array, *operands: Array, **options: Option) -> tuple[Array | None, ...]:
    of_x, of_weights, *of_arrays = moe_backward(gradient, *operands, **options)
    return (of_x, of_weights, None, *of_arrays)  # the numbers of experts have none


@functools.partial(named_op, backward=_gradients)
def moe(
    x: Float[Array, "rows hidden"],
    weights: Float[Array, "rows chosen"],
    chosen: Int[Array, "rows chosen"],
    *arrays: Array,
    activation: Activation,
    has_bias: bool = False,
    form: StoredForm | str = "",
    dtype: str = "",
) -> Float[Array, "rows hidden"]:
    """Returns the weighted sum of each row's experts: `weighted_experts` says how."""
    return weighted_experts(
        x, weights, chosen, *arrays, activation=activation, has_bias=has_bias, form=form, dtype=dtype
    )


class Router(nnx.Module):
    """Scores the experts for each row and chooses among them."""

    def __init__(self, hidden_size: int, experts: Experts, make: MakeParameter) -> None:
        self.weight = nnx.Param(make((experts.num_experts, hidden_size)))
        self.bias = nnx.Param(make((experts.num_experts,))) if experts.has_router_bias else None
        self.selection_bias = nnx.Param(make((experts.num_experts,))) if experts.has_selection_bias else None
        self.experts = experts

    def __call__(self, x: Float[Array, "rows hidden"]) -> tuple[Array, Array]:
        bias = () if self.bias is None else (self.bias[...],)
        selection_bias = () if self.selection_bias is None else (self.selection_bias[...],)
        return route(
            linear(x, self.weight[...], *bias).astype(wide(x.dtype)),
            *selection_bias,
            score=self.experts.score,
            experts_per_token=self.experts.experts_per_token,
            normalizes=self.experts.normalizes,
            scale=self.experts.scale,
            num_groups=self.experts.num_groups,
            groups_per_token=self.experts.groups_per_token,
        )


class StackedLinear(StoredWeight):
    """The products of all experts: a weight [experts, out, in] and an optional bias [experts, out]."""

    def __init__(
        self, shape: tuple[int, int, int], make: MakeParameter, *, bias: bool, form: StoredForm | None
    ) -> None:
        super().__init__(shape, make, form)
        self.bias = nnx.Param(make(shape[:2])) if bias else None

    @property
    def operands(self) -> tuple[Array, ...]:
        """Weight, scales and bias, as far as there are any."""
        return (*self.arrays, *(() if self.bias is None else (self.bias[...],)))


class MixtureOfExperts(nnx.Module):
    """The feed-forward of the experts that a router chooses for each token, and of those that all tokens share."""

    def __init__(self, config: DecoderConfig, make: MakeParameter) -> None:
        experts = config.experts
        assert experts is not None
        form = config.form_of("experts")
        up, down = (experts.intermediate_size, config.hidden_size), (config.hidden_size, experts.intermediate_size)
        self.router = Router(config.hidden_size, experts, make)
        self.gate = StackedLinear((experts.num_experts, *up), make, bias=experts.has_bias, form=form)
        self.up = StackedLinear((experts.num_experts, *up), make, bias=experts.has_bias, form=form)
        self.down = StackedLinear((experts.num_experts, *down), make, bias=experts.has_bias, form=form)
        shared = experts.shared_intermediate_size
        self.shared = FeedForward(config, shared, make) if shared else None
        self.activation: Activation = experts.activation
        self.has_bias = experts.has_bias

    def __call__(self, x: Float[Array, "batch new hidden"]) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(rows)
        arrays = (*self.gate.operands, *self.up.operands, *self.down.operands)
        options = {"has_bias": True} if self.has_bias else {}
        out = moe(rows, weights, chosen, *arrays, activation=self.activation, **options, **self.gate.options)
        out = out.reshape(x.shape)
        return out if self.shared is None else out + self.shared(x)
