"""Memory plans: by hand on small graphs, against the verifier on random ones, against XLA on real ones."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.core import jaxpr_as_fun

from plait.compiler.configuration import Configuration
from plait.compiler.graph import Graph, Operation, Value
from plait.compiler.memory import MemoryPlan, plan_memory
from plait.compiler.trace import trace, trace_model
from plait.compiler.verify.graph import verify_graph
from plait.compiler.verify.memory import verify_memory_plan
from plait.errors import ConfigurationError, VerificationError
from plait.models.config import DecoderConfig, EncoderConfig

DECODER = DecoderConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    intermediate_size=64,
    vocab_size=96,
    max_positions=64,
    tie_embeddings=True,
)
ENCODER = EncoderConfig(
    num_layers=2, hidden_size=16, num_heads=2, intermediate_size=24, vocab_size=32, max_positions=64
)


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def planned(function, *arguments, kinds=None):
    traced = trace(function, *arguments, argument_kinds=kinds)
    plan = plan_memory(traced)
    verify_memory_plan(plan, traced.graph)
    return plan


KIB = abstract(256)  # 1 KiB


def test_operands_and_result_of_an_operation_are_live_together():
    assert planned(lambda x: jnp.sum(jnp.sin(jnp.cos(x))), KIB).temporary_bytes == 2048


def test_a_result_is_no_temporary():
    plan = planned(lambda x: (jnp.sin(x), jnp.cos(x)), KIB)
    assert (plan.temporary_bytes, plan.output_bytes, plan.input_bytes) == (0, 2048, 1024)


def test_a_view_owns_no_bytes_and_keeps_its_buffer_alive():
    def function(x):
        view = jnp.sin(x).reshape(16, 16)
        return jnp.sum(jnp.cos(x)) + jnp.sum(view)

    assert planned(function, KIB).temporary_bytes == 2048 + 4


def test_a_cache_that_is_written_in_place_costs_nothing():
    def step(cache, row):
        return lax.dynamic_update_slice(cache, row, (0, 0)), jnp.sum(row)

    plan = planned(step, abstract(64, 4), abstract(1, 4), kinds=("cache", "input"))
    assert (plan.cache_bytes, plan.output_bytes, plan.temporary_bytes) == (1024, 4, 0)


def test_a_cache_that_is_read_after_it_was_written_is_copied():
    def step(cache, row):
        return lax.dynamic_update_slice(cache, row, (0, 0)), jnp.sum(cache)

    plan = planned(step, abstract(64, 4), abstract(1, 4), kinds=("cache", "input"))
    assert plan.output_bytes == 1024 + 4


def test_an_input_is_never_written_to():
    plan = planned(lambda x: jnp.sum(x.at[0].set(1.0)), KIB)
    assert plan.temporary_bytes == 1024 + 4  # the copy and the index


def test_a_loop_needs_its_body_beside_its_state():
    def loop(x):
        return jnp.sum(lax.scan(lambda c, _: (jnp.sin(jnp.cos(c)), None), jnp.tanh(x), None, length=4)[0])

    # The state, its successor, and the cosine between them.
    assert planned(loop, KIB).temporary_bytes == 3 * 1024


def test_a_loop_that_updates_its_state_in_place_holds_it_once():
    def loop(x):
        def body(index, state):
            return lax.dynamic_update_slice(state, jnp.ones(1), (index,))

        return jnp.sum(lax.fori_loop(0, 4, body, jnp.tanh(x)))

    assert planned(loop, KIB).temporary_bytes < 1024 + 64


def test_the_peak_is_named():
    traced = trace(lambda x: jnp.sum(jnp.sin(jnp.cos(x))), KIB)
    plan = plan_memory(traced)
    assert (plan.peak_operation, plan.peak_name) == (1, "sin")
    assert [(live.operation, live.bytes) for live in plan.largest] == [("cos", 1024), ("sin", 1024)]
    assert "temporaries peak at operation 1 (sin)" in plan.as_text()


MODELS = {
    "decode": (DECODER, Configuration("decode", 2, 1, 64)),
    "prefill": (DECODER, Configuration("prefill", 1, 16, 64)),
    "embed": (ENCODER, Configuration("embed", 2, 8, 8)),
}


@pytest.mark.parametrize(("config", "configuration"), MODELS.values(), ids=MODELS)
def test_plans_of_models_are_right(config, configuration):
    graph = trace_model(config, configuration, "bfloat16").graph
    plan = plan_memory(graph)
    verify_memory_plan(plan, graph)
    assert plan.parameter_bytes == graph.parameter_bytes
    assert MemoryPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("configuration", [MODELS["decode"][1], MODELS["prefill"][1]], ids=["decode", "prefill"])
def test_results_of_a_decoder_are_its_logits_alone(configuration):
    plan = plan_memory(trace_model(DECODER, configuration, "bfloat16"))
    assert plan.output_bytes == configuration.batch * 96 * 4
    assert plan.cache_bytes == configuration.batch * 64 * DECODER.kv_values_per_token * 2


@pytest.mark.parametrize(("config", "configuration"), MODELS.values(), ids=MODELS)
def test_arguments_and_results_agree_with_xla(config, configuration):
    traced = trace_model(config, configuration, "float32")
    plan = plan_memory(traced)
    arguments = jax.tree.unflatten(traced.in_tree, [abstract(*a.shape, dtype=a.dtype) for a in traced.jaxpr.in_avals])
    function = jax.jit(
        lambda *args: jaxpr_as_fun(traced.jaxpr)(*jax.tree.leaves(args)),
        donate_argnums=(4,) if plan.cache_bytes else (),
        keep_unused=True,
    )
    analysis = function.lower(*arguments).compile().memory_analysis()
    assert analysis is not None
    assert analysis.argument_size_in_bytes == plan.parameter_bytes + plan.cache_bytes + plan.input_bytes
    assert analysis.alias_size_in_bytes == plan.cache_bytes
    pointers = analysis.output_size_in_bytes - analysis.alias_size_in_bytes - plan.output_bytes
    assert 0 <= pointers <= 16 * (2 * config.num_layers + 1)  # XLA counts the table of the results


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"temporary_bytes": 1}, "temporary_bytes is 1, the graph says 2048"),
        ({"output_bytes": 0}, "output_bytes is 0, the graph says 4"),
        ({"peak_operation": 2}, "bytes are live at operation 2, not the peak of 2048"),
        ({"largest": ()}, None),
    ],
    ids=["temporaries", "outputs", "peak", "no list"],
)
def test_the_verifier_finds_a_wrong_figure(change, complaint):
    graph = trace(lambda x: jnp.sum(jnp.sin(jnp.cos(x))), KIB).graph
    wrong = replace(plan_memory(graph), **change)
    if complaint is None:
        verify_memory_plan(wrong, graph)
        return
    with pytest.raises(VerificationError, match=complaint):
        verify_memory_plan(wrong, graph)


def test_json_that_is_no_plan_is_refused():
    with pytest.raises(ConfigurationError, match="not a plait memory plan"):
        MemoryPlan.from_json('{"name": "x"}')


def test_an_empty_graph_has_no_peak():
    plan = plan_memory(Graph("empty", (), (), (), (), ()))
    assert (plan.total_bytes, plan.peak_operation) == (0, None)
    assert "total" in plan.as_text()


@st.composite
def graphs(draw, depth=1, kinds=("parameter", "state", "input", "cache", "constant")):
    """Small random graphs with views, updates, several results, unused values, loops and branches."""
    sizes = st.integers(1, 9)
    values = [
        Value(index, (draw(sizes),), "float32", draw(st.sampled_from(kinds)))
        for index in range(draw(st.integers(1, 4)))
    ]
    inputs = tuple(value.id for value in values if value.kind != "constant")
    operations = []
    for index in range(draw(st.integers(0, 7))):
        operands = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
        form = draw(st.sampled_from(["plain", "view", "update", "loop", "cond"]))
        shapes = [operands[0].shape] if form == "view" else [(draw(sizes),) for _ in range(draw(st.integers(1, 3)))]
        if form == "update":
            shapes = [operand.shape for operand in operands]
        outputs = [Value(len(values) + i, shape, "float32", "intermediate") for i, shape in enumerate(shapes)]
        nested = depth > 0 and form in ("loop", "cond")
        body_kinds = ("input", "intermediate") if form == "loop" else ("input",)
        body = draw(st.lists(graphs(depth - 1, body_kinds), min_size=1, max_size=2)) if nested else []
        operations.append(
            Operation(
                id=index,
                name=form,
                inputs=tuple(operand.id for operand in operands),
                outputs=tuple(output.id for output in outputs),
                flops=0,
                bytes_read=0,
                bytes_written=0,
                is_view=form == "view",
                updates=tuple((o.id, i.id) for o, i in zip(outputs, operands, strict=True)) if form == "update" else (),
                trip_count=2 if form == "loop" else None,
                body=tuple(body),
            )
        )
        values += outputs
    results = draw(st.lists(st.sampled_from([value.id for value in values]), min_size=1, max_size=3))
    return Graph("random", tuple(values), tuple(operations), inputs, tuple(results), (0,) * len(inputs))


@settings(deadline=None, max_examples=300)
@given(graph=graphs())
def test_plans_of_random_graphs_are_right(graph):
    verify_graph(graph)
    verify_memory_plan(plan_memory(graph), graph)
