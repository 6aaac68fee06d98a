"""Tracing: what becomes an operation, what it is called, where it is from, and what traffic it causes."""

import time

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun

from plait.compiler.configuration import Configuration
from plait.compiler.trace import trace, trace_model
from plait.compiler.verify.graph import verify_graph
from plait.errors import ConfigurationError
from plait.models.config import DecoderConfig, EncoderConfig
from plait.models.layers import linear, rms_norm

SMOLLM2 = DecoderConfig(
    num_layers=30,
    hidden_size=576,
    num_heads=9,
    num_kv_heads=3,
    head_size=64,
    intermediate_size=1536,
    vocab_size=49152,
    max_positions=8192,
    tie_embeddings=True,
)
LLAMA_405B = DecoderConfig(
    num_layers=126,
    hidden_size=16384,
    num_heads=128,
    num_kv_heads=8,
    head_size=128,
    intermediate_size=53248,
    vocab_size=128256,
    max_positions=131072,
)
MINILM = EncoderConfig(
    num_layers=6, hidden_size=384, num_heads=12, intermediate_size=1536, vocab_size=30522, max_positions=512
)


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def products_per_token(config):
    """Parameters that each token meets in a layer's products."""
    heads, kv_heads = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    attention = config.hidden_size * (2 * heads + 2 * kv_heads)
    return config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def linear_flops(graph):
    return sum(operation.flops for operation in graph.operations if operation.name == "linear")


@pytest.mark.parametrize(
    "configuration",
    [Configuration("decode", 8, 1, 2048), Configuration("prefill", 1, 64, 2048)],
    ids=lambda configuration: configuration.id,
)
def test_linear_flops_of_smollm2_are_two_a_token_and_parameter(configuration):
    graph = trace_model(SMOLLM2, configuration, "bfloat16").graph
    tokens = configuration.batch * configuration.new_tokens
    head = configuration.batch * SMOLLM2.hidden_size * SMOLLM2.vocab_size  # for the last token of each sequence
    assert linear_flops(graph) == 2 * (tokens * products_per_token(SMOLLM2) + head)
    assert graph.parameter_bytes == 2 * 134_515_008
    assert not graph.is_estimate
    verify_graph(graph)


def test_a_405b_model_traces_in_seconds():
    started = time.perf_counter()
    graph = trace_model(LLAMA_405B, Configuration("decode", 8, 1, 8192), "bfloat16").graph
    assert time.perf_counter() - started < 10
    assert graph.parameter_bytes == 2 * 405_853_388_800
    assert linear_flops(graph) == 2 * 8 * (products_per_token(LLAMA_405B) + 16384 * 128256)


def test_values_of_a_decoder_have_names_and_kinds():
    traced = trace_model(SMOLLM2, Configuration("decode", 2, 1, 64), "bfloat16")
    by_name = {value.name: value for value in (traced.graph.values[i] for i in traced.graph.inputs)}
    assert tuple(by_name) == traced.in_names
    assert by_name["layers.7.mlp.up.weight"].kind == "parameter"
    assert by_name["layers.7.mlp.up.weight"].shape == (1536, 576)
    assert by_name["cache.29.value"].kind == "cache"
    assert by_name["cache.29.value"].shape == (2, 64, 3, 64)
    assert by_name["start"].kind == "input"


def test_named_ops_are_single_operations_with_options_path_and_line():
    graph = trace_model(SMOLLM2, Configuration("decode", 2, 1, 64), "bfloat16").graph
    attention = [operation for operation in graph.operations if operation.name == "attention"]
    assert len(attention) == 30
    assert attention[3].options == {"scale": 0.125}
    assert attention[3].path == "layers.3/attention"
    assert attention[3].source.startswith("llama.py:")
    assert not attention[3].body


def test_attention_reads_the_cache_and_writes_the_new_tokens_into_it():
    batch, context, row = 2, 64, 3 * 64 * 2
    graph = trace_model(SMOLLM2, Configuration("decode", batch, 1, context), "bfloat16").graph
    attention = next(operation for operation in graph.operations if operation.name == "attention")
    query, new_rows, start = batch * 9 * 64 * 4, 2 * batch * 3 * 64 * 4, batch * 4
    assert attention.bytes_read == query + new_rows + start + 2 * batch * context * row
    assert attention.bytes_written == query + 2 * batch * row
    assert {graph.values[operand].name for _, operand in attention.updates} == {"cache.0.key", "cache.0.value"}


def test_embedding_reads_only_the_rows_it_returns():
    graph = trace_model(SMOLLM2, Configuration("decode", 2, 1, 64), "bfloat16").graph
    embedding = graph.operations[0]
    row = 576 * 2
    assert (embedding.name, embedding.bytes_read, embedding.bytes_written) == ("embedding", 2 * 4 + 2 * row, 2 * row)


def test_encoders_take_tokens_and_lengths():
    traced = trace_model(MINILM, Configuration("embed", 4, 32, 32), "float32")
    assert traced.in_names[-2:] == ("tokens", "lengths")
    layer = 4 * 384**2 + 2 * 384 * 1536
    biases = 5 * 384 + 1536
    assert linear_flops(traced.graph) == 4 * 32 * 6 * (2 * layer + biases)


@pytest.mark.parametrize(
    ("config", "phase", "complaint"),
    [(SMOLLM2, "embed", "decoder model has no phase 'embed'"), (MINILM, "decode", "bert model has no phase 'decode'")],
    ids=["decoder", "encoder"],
)
def test_a_phase_of_another_kind_of_model_is_refused(config, phase, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        trace_model(config, Configuration(phase, 1, 1, 16), "float32")


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigurationError, match="unknown dtype 'float7'"):
        trace_model(MINILM, Configuration("embed", 1, 1, 1), "float7")


def test_the_traced_jaxpr_is_the_function():
    traced = trace(lambda tree: {"y": tree["a"] @ tree["b"]}, {"a": abstract(2, 3), "b": abstract(3, 4)})
    a, b = jnp.ones((2, 3)), jnp.full((3, 4), 2.0)
    flat = jaxpr_as_fun(traced.jaxpr)(a, b)
    result = jax.tree.unflatten(traced.out_tree, flat)
    assert jnp.array_equal(result["y"], a @ b)
    assert jax.tree.unflatten(traced.in_tree, (a, b)) == ({"a": a, "b": b},)


def test_arguments_of_any_function_are_named_by_path():
    def function(params, x, *rest):
        return params["dense"][0] @ x + rest[0]

    arguments = ({"dense": [abstract(2, 3)]}, abstract(3), abstract(2))
    assert trace(function, *arguments).in_names == ("params.dense.0", "x", "args.2")
    traced = trace(function, *arguments, argument_kinds=("parameter", "input", "input"), name="mine")
    assert traced.in_names == ("dense.0", "x", "args.2")
    assert traced.graph.name == "mine"
    assert traced.graph.operations[0].path == "dense.0"


def test_argument_kinds_must_fit_the_arguments():
    with pytest.raises(ConfigurationError, match="1 argument_kinds for 2 arguments"):
        trace(jnp.add, abstract(2), abstract(2), argument_kinds=["input"])


def double_sine(x):
    return jnp.sin(x) * 2.0


scaled = jax.jit(double_sine)


def test_source_is_the_innermost_line_of_the_users_code():
    graph = trace(lambda x: scaled(x), abstract(3)).graph
    line = double_sine.__code__.co_firstlineno + 1
    assert [operation.source for operation in graph.operations] == [f"test_trace.py:{line}"] * 2


def test_paths_of_inlined_calls_extend_the_callers():
    @jax.jit
    def inner(x):
        with jax.named_scope("inner"):
            return jnp.sin(x)

    def outer(x):
        with jax.named_scope("outer"):
            return lax.scan(lambda carry, _: (inner(carry), None), x, None, length=2)[0]

    (loop,) = trace(outer, abstract(3)).graph.operations
    assert loop.path == "outer"
    assert loop.body[0].operations[0].path == "outer/inner"


def test_equal_calls_of_a_jitted_function_are_counted_each():
    assert trace(lambda x: scaled(scaled(x)), abstract(5)).graph.flops == 4 * 5


def test_named_ops_are_found_in_users_functions():
    def function(x, weight):
        return linear(rms_norm(x, jnp.ones(4), epsilon=1e-6), weight)

    graph = trace(function, abstract(2, 4), abstract(3, 4)).graph
    assert [operation.name for operation in graph.operations][-2:] == ["rms_norm", "linear"]
    assert graph.operations[-1].flops == 2 * 2 * 4 * 3


# A dynamic slice also reads its index, which JAX has made non-negative: compare 1, add 4, select 9 bytes.
TRAFFIC = {
    "every operand once": (lambda x: x * x, 64 + 64),
    "slice": (lambda x: x[:1], 16 + 16),
    "dynamic slice": (lambda x: lax.dynamic_slice_in_dim(x, jnp.int32(1), 1), 16 + 16 + 4 + 14),
    "reshape": (lambda x: x.reshape(16), 0),
    "transpose that moves": (lambda x: x.T, 64 + 64),
    "transpose of a column": (lambda x: x.reshape(1, 16).T, 0),
    "broadcast": (lambda x: jnp.broadcast_to(x, (3, 4, 4)), 64 + 3 * 64),
    "update in place": (lambda x: lax.dynamic_update_slice(x, jnp.ones((1, 4)), (0, 0)), 16 + 16 + 16),
    "scan": (lambda x: lax.scan(lambda c, row: (c + row, None), x[0] * 0, x)[0], 16 * 2 + 16 * 2 + 4 * 48),
}


@pytest.mark.parametrize(("function", "expected"), TRAFFIC.values(), ids=TRAFFIC)
def test_traffic_follows_the_stated_convention(function, expected):
    assert trace(function, abstract(4, 4)).graph.bytes_accessed == expected


def test_a_random_key_is_one_element_that_takes_the_bytes_of_its_words():
    graph = trace(lambda key: jax.random.normal(key, (3,)), jax.eval_shape(lambda: jax.random.key(0))).graph
    assert graph.values[graph.inputs[0]].bytes == 8
    assert (graph.values[graph.inputs[0]].shape, graph.values[graph.inputs[0]].dtype) == ((), "key<fry>")


def test_a_returned_literal_and_a_returned_argument_are_values():
    graph = trace(lambda x: (x, 3.0), abstract(2)).graph
    assert [graph.values[value].kind for value in graph.outputs] == ["input", "constant"]
    verify_graph(graph)


def test_solvers_are_inlined():
    graph = trace(jnp.linalg.solve, abstract(8, 8), abstract(8)).graph
    assert {"lu", "triangular_solve"} <= {operation.name for operation in graph.operations}
    assert graph.is_estimate
