"""The train phase: numerics against plain JAX and optax, FLOPs against closed forms, memory against XLA."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxpr_as_fun

from plait.compiler.configuration import Configuration
from plait.compiler.memory import plan_memory
from plait.compiler.pipeline import compile_model
from plait.compiler.target import load_target
from plait.compiler.trace import trace_model
from plait.compiler.train import (
    OPTIMIZERS,
    Training,
    lower_training,
    next_token_loss,
    optimizer_state,
    trace_training,
    training_step,
)
from plait.compiler.verify.graph import verify_graph
from plait.compiler.verify.memory import verify_memory_plan
from plait.errors import ConfigurationError
from plait.models.config import DecoderConfig, EncoderConfig, Experts, LatentAttention, Rope
from plait.models.family import build

BATCH, SEQUENCE = 2, 6
CONFIGURATION = Configuration("train", BATCH, SEQUENCE, SEQUENCE)
LENGTHS = np.array([6, 4], np.int32)

LLAMA = DecoderConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    intermediate_size=48,
    vocab_size=64,
    max_positions=64,
    tie_embeddings=True,
)
MIXTRAL = replace(LLAMA, tie_embeddings=False, experts=Experts(4, 2, 24))
MLA = replace(
    MIXTRAL,
    num_kv_heads=4,
    head_size=12,
    latent=LatentAttention(query_rank=16, latent_size=16, rope_size=4, nope_size=8, value_size=8),
    rope=Rope(is_interleaved=True),
    experts=Experts(
        4, 2, 24, shared_intermediate_size=24, dense_layers=(0,), score="sigmoid", scale=2.5, has_selection_bias=True
    ),
)
FAMILIES = {"llama": LLAMA, "mixtral": MIXTRAL, "mla": MLA}


jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles sooner


def random_parameters(config, dtype=jnp.float32):
    generator = np.random.default_rng(0)
    drawn = {
        name: generator.normal(0.0, parameter.shape[-1] ** -0.5, parameter.shape)
        for name, parameter in build(config, dtype).parameters.items()
    }
    return {name: jnp.asarray(value + (value.ndim == 1 and "norm" in name), dtype) for name, value in drawn.items()}


def random_tokens(num=SEQUENCE):
    return jnp.asarray(np.random.default_rng(1).integers(0, 64, (BATCH, num)), jnp.int32)


def loss_by_prefixes(model, parameters, tokens, lengths):
    """The mean over all next tokens, each predicted by a prefill of what comes before it."""
    cache = [tuple(jnp.zeros((*tokens.shape, *shape)) for shape in model.config.cache_shapes)] * model.config.num_layers

    def losses_after(num):
        logits, _ = model(parameters, tokens, jnp.zeros(BATCH, jnp.int32), jnp.full(BATCH, num), cache)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, num, None], axis=1)[:, 0]
        return jnp.where(num < lengths, -picked, 0.0)

    losses = jax.lax.map(losses_after, jnp.arange(1, tokens.shape[1]))
    return jnp.sum(losses) / np.sum(lengths - 1)


def run_traced(traced, *arguments):
    return jax.tree.unflatten(traced.out_tree, jit(jaxpr_as_fun(traced.jaxpr))(*jax.tree.leaves(arguments)))


@functools.cache
def expected_step(family):
    """Loss, gradients and updated parameters of one step with AdamW, from `loss_by_prefixes` and optax."""
    model, parameters = build(FAMILIES[family], jnp.float32), random_parameters(FAMILIES[family])
    loss_of = functools.partial(loss_by_prefixes, model, tokens=random_tokens(), lengths=LENGTHS)
    loss, gradients = jit(jax.value_and_grad(loss_of))(parameters)
    optimizer = optax.adamw(1e-2)
    updates, _ = jit(optimizer.update)(gradients, optimizer.init(parameters), parameters)
    updated = {name: value + updates[name] for name, value in parameters.items()}
    return jax.device_get((loss, gradients, updated))  # kept, so no arrays of JAX's: other tests count those


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rematerializes", [False, True], ids=["keeps", "rematerializes"])
def test_a_traced_step_is_the_gradient_and_optax(family: str, rematerializes: bool) -> None:
    training = Training(learning_rate=1e-2, rematerializes=rematerializes)
    parameters = random_parameters(FAMILIES[family])
    traced = trace_training(FAMILIES[family], CONFIGURATION, "float32", training)
    state = optimizer_state(parameters, "adamw")
    updated, _, loss = run_traced(traced, parameters, state, random_tokens(), LENGTHS)
    expected_loss, gradients, expected = expected_step(family)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for name, value in expected.items():
        # Adam's first step has the size of the rate wherever a gradient isn't nearly zero: compare there.
        is_clear = np.abs(gradients[name]) > 1e-5
        np.testing.assert_allclose(np.where(is_clear, updated[name] - value, 0), 0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_loss_by_prefixes(family: str) -> None:
    model = build(FAMILIES[family], jnp.float32)
    gradients = jit(jax.grad(functools.partial(next_token_loss, model)))(
        random_parameters(FAMILIES[family]), random_tokens(), LENGTHS
    )
    for name, expected in expected_step(family)[1].items():
        np.testing.assert_allclose(gradients[name], expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_loss_falls(optimizer) -> None:
    training = Training(optimizer=optimizer, learning_rate={"sgd": 0.3, "adafactor": 0.03}.get(optimizer, 3e-3))
    model, parameters = build(LLAMA, jnp.float32), random_parameters(LLAMA)
    step = jit(training_step(model, training), donate_argnums=(0, 1))
    state = optimizer_state(parameters, optimizer)
    losses = []
    for _ in range(20):
        parameters, state, loss = step(parameters, state, random_tokens(), LENGTHS)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


def test_moments_are_f32_and_parameters_keep_their_type() -> None:
    traced = trace_training(LLAMA, CONFIGURATION, "bfloat16", Training())
    kinds = {"parameter": set(), "state": set()}
    for value in (traced.graph.values[value] for value in traced.graph.inputs):
        if value.kind in kinds and value.shape:
            kinds[value.kind].add(value.dtype)
    assert kinds == {"parameter": {"bfloat16"}, "state": {"float32"}}
    parameters = random_parameters(LLAMA, jnp.bfloat16)
    updated, _, _ = run_traced(traced, parameters, optimizer_state(parameters, "adamw"), random_tokens(), LENGTHS)
    assert {value.dtype for value in updated.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_step_computes_three_times_the_products_of_the_forward_pass(config) -> None:
    sequence = 64
    shape = Configuration("train", 1, sequence, sequence)
    graph = trace_training(config, shape, "float32", Training()).graph
    forward = trace_model(config, Configuration("prefill", 1, sequence, sequence), "float32").graph
    head = 2 * config.hidden_size * config.vocab_size * (sequence - 1)  # a prefill's is for the last token alone
    again = sum(op.product_flops for op in forward.operations if op.name == "moe")  # for the experts' gradient
    assert graph.product_flops == pytest.approx(3 * (forward.product_flops + head) + again, rel=0.02)
    verify_graph(graph)


def test_products_of_a_dense_step_are_six_a_parameter_and_attention() -> None:
    sequence, config = 64, LLAMA
    graph = trace_training(config, Configuration("train", 3, sequence, sequence), "float32", Training()).graph
    layer = config.hidden_size * (2 * 32 + 2 * 16) + 3 * config.hidden_size * config.intermediate_size
    parameters = config.num_layers * layer + config.hidden_size * config.vocab_size
    attention = config.num_layers * 4 * sequence * config.num_heads * config.head_size
    assert graph.product_flops == 3 * sequence * (6 * parameters + 3 * attention)


def test_rematerializing_computes_more_and_keeps_less() -> None:
    shape = Configuration("train", 1, 64, 64)
    plain, again = (
        plan_and_graph(LLAMA, shape, Training(rematerializes=rematerializes)) for rematerializes in (False, True)
    )
    assert 1.1 < again[1].product_flops / plain[1].product_flops < 4 / 3
    assert again[0].temporary_bytes < 0.8 * plain[0].temporary_bytes


def plan_and_graph(config, configuration, training):
    traced = trace_training(config, configuration, "float32", training)
    plan = plan_memory(traced)
    verify_memory_plan(plan, traced.graph)
    return plan, traced.graph


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_and_state_are_updated_in_place(optimizer) -> None:
    training = Training(optimizer=optimizer)
    plan, graph = plan_and_graph(LLAMA, CONFIGURATION, training)
    assert plan.parameter_bytes == graph.parameter_bytes
    assert plan.output_bytes == 4  # the loss
    assert plan.rewritten_bytes == plan.parameter_bytes + plan.state_bytes
    traced = trace_training(LLAMA, CONFIGURATION, "float32", training)
    exported = lower_training(traced, CONFIGURATION).exported
    abstract = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in exported.in_avals]
    arguments, _ = jax.tree.unflatten(exported.in_tree, abstract)
    compiled = jax.jit(exported.call, donate_argnums=(0, 1)).lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.alias_size_in_bytes == plan.rewritten_bytes


def test_zeros_for_the_cache_are_no_input() -> None:
    _, graph = plan_and_graph(LLAMA, CONFIGURATION, Training())
    assert {graph.values[value].kind for value in graph.inputs} == {"parameter", "state", "input"}
    assert not [value for value in graph.values if value.kind == "constant" and value.bytes > 256]


def test_an_exported_step_is_the_step() -> None:
    training = Training()
    compilation = compile_model(
        LLAMA, CONFIGURATION, dtype="float32", target=load_target("cpu"), training=training, stop_after="lower"
    )
    assert compilation.program is not None
    assert compilation.program.donated == (0, 1)
    parameters = random_parameters(LLAMA)
    arguments = (parameters, optimizer_state(parameters, "adamw"), random_tokens(), jnp.asarray(LENGTHS))
    updated, _, loss = compilation.program.exported.call(*arguments)
    expected, _, expected_loss = jit(training_step(build(LLAMA, jnp.float32), training))(*arguments)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(updated[name], value, atol=1e-5)


def test_stored_weights_and_encoders_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"weights stored as q8_0 cannot be trained.*--weights dense"):
        trace_training(LLAMA.stored_as("q8_0"), CONFIGURATION, "float32", Training())
    encoder = EncoderConfig(
        num_layers=1, hidden_size=32, num_heads=4, intermediate_size=48, vocab_size=64, max_positions=64
    )
    with pytest.raises(ConfigurationError, match="a bert model has no phase 'train'; decoders have it"):
        trace_training(encoder, CONFIGURATION, "float32", Training())
    with pytest.raises(ConfigurationError, match="a decoder model has no phase 'train'"):
        trace_model(LLAMA, CONFIGURATION, "float32")
