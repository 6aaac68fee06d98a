"""The train phase: a loss, its gradient and an optimizer's step as one graph.

Comes in: a decoder's configuration and the shapes. Goes out: a `Traced` whose function takes (parameters, optimizer
state, tokens [batch, sequence], lengths [batch]) and returns (parameters, optimizer state, loss). Parameters and
state are donated: each is updated in its place. Parameters keep their type; gradients are brought to f32 for the
optimizer, whose moments are f32.

There is no KV cache: every sequence begins at position 0, and attention writes into zeros that the graph makes itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import export
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, Float, Int

from ..errors import ConfigurationError
from ..models.config import DecoderConfig, ModelConfig
from ..models.decoder import Decoder, DecoderLayer
from ..models.family import ModelFunction, Parameters, build
from ..models.named_ops import named_op, wide
from .configuration import Configuration
from .lower import PLATFORMS
from .program import Program
from .trace import Traced, trace

__all__ = [
    "OPTIMIZERS",
    "Optimizer",
    "OptimizerState",
    "Training",
    "lower_training",
    "next_token_loss",
    "optimizer_state",
    "trace_training",
    "training_step",
]

Optimizer: TypeAlias = Literal["adamw", "sgd", "adafactor", "lion"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
OptimizerState: TypeAlias = dict[str, list[Array]]  # by parameter, the leaves of its optax state

_TRANSFORMATIONS = {"adamw": optax.adamw, "sgd": optax.sgd, "adafactor": optax.adafactor, "lion": optax.lion}


@dataclass(frozen=True)
class Training:
    """How a model is trained."""

    optimizer: Optimizer = "adamw"  # optax's, with its defaults
    learning_rate: float = 1e-4
    rematerializes: bool = False  # whether the backward pass computes each layer again instead of keeping it


@named_op
def optimize(
    parameter: Float[Array, ...], gradient: Float[Array, ...], *state: Array, optimizer: Optimizer, rate: float
) -> tuple[Array, ...]:
    """Returns a parameter and its optimizer state after one step, each in the place of the old one."""
    transformation = _TRANSFORMATIONS[optimizer](rate)
    dtype = wide(parameter.dtype)
    value = parameter.astype(dtype)
    before = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(transformation.init, value)), state)
    updates, after = transformation.update(gradient.astype(dtype), before, value)
    new = jax.tree.leaves((optax.apply_updates(value, updates), after))
    return tuple(_replace(old, updated) for old, updated in zip((parameter, *state), new, strict=True))


def _replace(old: Array, new: Array) -> Array:
    """Returns the new values in the buffer of the old ones: an update in place of all of it, as the tracer sees it."""
    return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0,) * old.ndim)


def optimizer_state(parameters: Parameters, optimizer: Optimizer) -> OptimizerState:
    """Returns the state of an optimizer before the first step: its moments are f32 whatever the parameters are."""
    return {name: _initial_state(value.shape, value.dtype, optimizer) for name, value in parameters.items()}


def _initial_state(shape: tuple[int, ...], dtype: jnp.dtype, optimizer: Optimizer) -> list[Array]:
    return jax.tree.leaves(_TRANSFORMATIONS[optimizer](1.0).init(jnp.zeros(shape, wide(dtype))))


def _abstract_state(parameters: Parameters, optimizer: Optimizer) -> dict[str, list[jax.ShapeDtypeStruct]]:
    kinds = {(value.shape, value.dtype) for value in parameters.values()}  # few: a model's layers are alike
    states = {kind: jax.eval_shape(functools.partial(_initial_state, *kind, optimizer)) for kind in kinds}
    return {name: states[value.shape, value.dtype] for name, value in parameters.items()}


def next_token_loss(
    model: ModelFunction,
    parameters: Parameters,
    tokens: Int[Array, "batch sequence"],
    lengths: Int[Array, " batch"],
    *,
    rematerializes: bool = False,
) -> Float[Array, ""]:
    """Returns the mean cross-entropy, in nats, of each token given those before it, over all sequences.

    Args:
        model: A decoder.
        parameters: Its parameters.
        tokens: [batch, sequence]; those from `lengths[b]` on are padding.
        lengths: Tokens of each sequence that count.
        rematerializes: Whether each layer is computed again for its gradient.
    """
    config, decoder = model.config, model.module(parameters)
    assert isinstance(config, DecoderConfig)
    assert isinstance(decoder, Decoder)
    batch, sequence = tokens.shape
    if rematerializes:
        decoder.layers = _rematerialized(decoder.layers)  # pyright: ignore[reportAttributeAccessIssue]  # alike in use
    dtype = decoder.embedding.weight.dtype
    zeros = tuple(jnp.zeros((batch, sequence, *shape), dtype) for shape in config.cache_shapes)
    cache = [(zeros[0], zeros[1])] * config.num_layers
    hidden, _ = decoder.hidden_states(tokens, jnp.zeros(batch, jnp.int32), cache)
    with jax.named_scope("loss"):
        targets = jnp.roll(tokens, -1, axis=1)
        losses = optax.softmax_cross_entropy_with_integer_labels(decoder.logits(hidden), targets)
        counts = jnp.arange(sequence) < lengths[:, None] - 1  # nothing follows the last token
        return jnp.sum(jnp.where(counts, losses, 0.0)) / jnp.maximum(jnp.sum(counts), 1)


class _Rematerialized(nnx.Module):
    """A layer that keeps its inputs only; the rest is computed again in the backward pass."""

    def __init__(self, run: Callable[..., tuple[Array, tuple[Array, Array]]], state: nnx.State) -> None:
        self.run = run
        self.state = nnx.data(state)

    def __call__(self, x: Array, start: Array, cache: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        return self.run(self.state, x, start, cache)


def _rematerialized(layers: Iterable[DecoderLayer]) -> nnx.List[_Rematerialized]:
    """Returns layers of which those of the same structure share one function, which JAX traces once."""
    split = [nnx.split(layer) for layer in layers]
    kinds = {graphdef for graphdef, _ in split}
    run = {graphdef: jax.checkpoint(functools.partial(_run_layer, graphdef)) for graphdef in kinds}
    return nnx.List([_Rematerialized(run[graphdef], state) for graphdef, state in split])


def _run_layer(
    graphdef: nnx.GraphDef[DecoderLayer], state: nnx.State, x: Array, start: Array, cache: tuple[Array, Array]
) -> tuple[Array, tuple[Array, Array]]:
    return nnx.merge(graphdef, state)(x, start, cache)


def training_step(model: ModelFunction, training: Training):
    """Returns the function (parameters, state, tokens, lengths) -> (parameters, state, loss) of one step."""

    def step(
        parameters: dict[str, Array],
        state: OptimizerState,
        tokens: Int[Array, "batch sequence"],
        lengths: Int[Array, " batch"],
    ) -> tuple[dict[str, Array], OptimizerState, Float[Array, ""]]:
        loss_of = functools.partial(next_token_loss, model, rematerializes=training.rematerializes)
        loss, gradients = jax.value_and_grad(loss_of)(parameters, tokens, lengths)
        new_parameters: dict[str, Array] = {}
        new_state: OptimizerState = {}
        with jax.named_scope("optimizer"):
            for name, parameter in parameters.items():
                options = {"optimizer": training.optimizer, "rate": training.learning_rate}
                updated, *leaves = optimize(parameter, gradients[name], *state[name], **options)
                new_parameters[name], new_state[name] = updated, leaves
        return new_parameters, new_state, loss

    return step


def trace_training(config: ModelConfig, configuration: Configuration, dtype: str, training: Training) -> Traced:
    """Traces one step of training.

    Args:
        config: The architecture, a decoder; all weights must be dense.
        configuration: Phase "train": each of `batch` sequences has `new_tokens` tokens.
        dtype: Of parameters and products, e.g. "bfloat16".
        training: Optimizer and what is kept for the backward pass.

    Raises:
        ConfigurationError: if the model is no decoder, or its weights have a stored form.
    """
    if not isinstance(config, DecoderConfig):
        raise ConfigurationError(f"a {config.family} model has no phase 'train'; decoders have it")
    if config.stored_form is not None:
        raise ConfigurationError(
            f"weights stored as {config.stored_form} cannot be trained: they have no gradient; use dense ones "
            "(--weights dense)"
        )
    model = build(config, dtype)
    state = _abstract_state(model.parameters, training.optimizer)
    tokens = jax.ShapeDtypeStruct((configuration.batch, configuration.new_tokens), jnp.int32)
    lengths = jax.ShapeDtypeStruct((configuration.batch,), jnp.int32)
    return trace(
        training_step(model, training),
        *(model.parameters, state, tokens, lengths),
        name=f"{config.architecture}/{configuration.id}",
        argument_kinds=("parameter", "state", "input", "input"),
    )


def lower_training(traced: Traced, configuration: Configuration) -> Program:
    """Returns a traced step of training as exported StableHLO; it overwrites parameters and optimizer state."""
    avals = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in traced.jaxpr.in_avals]
    arguments = jax.tree.unflatten(traced.in_tree, avals)

    def step(*arguments: object) -> object:
        flat = jaxpr_as_fun(traced.jaxpr)(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(traced.out_tree, flat)

    donated = (0, 1)
    exported = export.export(jax.jit(step, donate_argnums=donated), platforms=PLATFORMS)(*arguments)
    return Program(configuration, exported, donated)
