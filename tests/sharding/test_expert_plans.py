"""Plans beside those that experts write down: Megatron's, ZeRO's, expert parallelism, data parallelism."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from plait.compiler.apply import predicted_collectives
from plait.compiler.configuration import Configuration
from plait.compiler.graph import ValueKind
from plait.compiler.mesh import Layout, Mesh
from plait.compiler.partition.result import Partition
from plait.compiler.partition.search import partition
from plait.compiler.subject import read_subject
from plait.compiler.target import load_target
from plait.compiler.trace import Traced, trace, trace_model
from plait.compiler.train import Training, trace_training
from plait.errors import DoesNotFitError
from plait.models.config import DecoderConfig

TARGET = load_target("sn40l-16")
MESH = Mesh(("x",), (4,))
NUM_HEADS, HEAD_SIZE = 8, 128
SIZE = NUM_HEADS * HEAD_SIZE
# Megatron's: heads and the inner size of the MLP divided, so that each half of a layer ends in one sum
MEGATRON = {
    "query": ((), ("x",), ()),
    "key": ((), ("x",), ()),
    "value": ((), ("x",), ()),
    "output": (("x",), (), ()),
    "up": ((), ("x",)),
    "down": (("x",), ()),
}


def normalized(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def layer(x: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
    """A transformer layer over [batch, tokens, size], in plain JAX."""
    heads = [jnp.einsum("bsd,dhk->bhsk", normalized(x), weights[name]) for name in ("query", "key", "value")]
    scores = jnp.einsum("bhsk,bhtk->bhst", heads[0], heads[1]) / HEAD_SIZE**0.5
    is_past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    attended = jnp.einsum("bhst,bhtk->bhsk", jax.nn.softmax(jnp.where(is_past, scores, -1e9)), heads[2])
    x = x + jnp.einsum("bhsk,hkd->bsd", attended, weights["output"])
    return x + jax.nn.gelu(normalized(x) @ weights["up"]) @ weights["down"]


def forward(layers: Sequence[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    for weights in layers:
        x = layer(x, weights)
    return x


def loss(layers: Sequence[dict[str, jax.Array]], x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((forward(layers, x) - y) ** 2)


def traced(function: Callable[..., object], num_layers: int, batch: int, num_tokens: int) -> Traced:
    shapes = {
        "query": (SIZE, NUM_HEADS, HEAD_SIZE),
        "key": (SIZE, NUM_HEADS, HEAD_SIZE),
        "value": (SIZE, NUM_HEADS, HEAD_SIZE),
        "output": (NUM_HEADS, HEAD_SIZE, SIZE),
        "up": (SIZE, 4 * SIZE),
        "down": (4 * SIZE, SIZE),
    }
    weights = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    x = jax.ShapeDtypeStruct((batch, num_tokens, SIZE), jnp.float32)
    inputs = (x,) if function is forward else (x, x)
    kinds: tuple[ValueKind, ...] = ("parameter", *("input" for _ in inputs))
    return trace(function, [weights] * num_layers, *inputs, name="layers", argument_kinds=kinds)


def planned(graph: Traced, mesh: Mesh = MESH, **options: object) -> Partition:
    return partition(graph, TARGET, dtype="float32", mesh=mesh, **options)  # pyright: ignore[reportArgumentType]


def collectives(graph: Traced, plan: Partition) -> Counter[str]:
    found = predicted_collectives(graph, plan.sharding, TARGET.network)
    return Counter(str(planned.collective.kind) for planned in found)


def num_sums(graph: Traced, plan: Partition) -> int:
    """All-reduces, whole or as the reduce-scatter that is half of one."""
    found = collectives(graph, plan)
    return found["all_reduce"] + found["reduce_scatter"]


def stored(graph: Traced, plan: Partition) -> dict[str, Layout]:
    """The layout of each input, by name."""
    pairs = zip(graph.graph.inputs, plan.sharding.inputs, strict=True)
    return {graph.graph.values[value].name: layout for value, layout in pairs}


def megatron(graph: Traced) -> Partition:
    """The best plan with weights where Megatron has them and whole activations between the halves of layers."""
    values = graph.graph.values
    pins = {v: (Layout(MEGATRON[values[v].name.split(".")[-1]]),) for v in graph.graph.inputs if "." in values[v].name}
    return planned(graph, pins=pins)


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize(
    ("function", "count"),
    [
        pytest.param(forward, lambda layers: 2 * layers, id="inference"),
        pytest.param(jax.grad(loss), lambda layers: 4 * layers - 1, id="training"),
    ],
)
def test_a_plan_costs_no_more_than_megatron_s_and_sums_as_often(
    function: Callable[..., object], count: Callable[[int], int], num_layers: int
) -> None:
    graph = traced(function, num_layers, batch=1, num_tokens=8)
    found, expert = planned(graph), megatron(graph)
    assert num_sums(graph, expert) == count(num_layers)
    assert num_sums(graph, found) <= count(num_layers)
    assert found.cost <= expert.cost * (1 + 1e-9)
    assert found.status == "optimal"


@pytest.mark.parametrize("mesh", [Mesh(("x",), (2,)), MESH, Mesh(("x",), (8,))], ids=str)
@pytest.mark.parametrize(("batch", "num_tokens"), [(1, 1), (1, 512), (8, 64)])
def test_no_shape_of_input_makes_a_plan_dearer_than_megatron_s(mesh: Mesh, batch: int, num_tokens: int) -> None:
    graph = traced(forward, 2, batch, num_tokens)
    values = graph.graph.values
    pins = {v: (Layout(MEGATRON[values[v].name.split(".")[-1]]),) for v in graph.graph.inputs if "." in values[v].name}
    assert planned(graph, mesh).cost <= planned(graph, mesh, pins=pins).cost * (1 + 1e-9)


def test_small_weights_and_many_sequences_are_divided_over_the_batch() -> None:
    graph = traced(forward, 2, batch=64, num_tokens=512)
    plan = planned(graph)
    assert not collectives(graph, plan)
    layouts = stored(graph, plan)
    assert not any(layout.axes for name, layout in layouts.items() if "." in name)
    assert plan.sharding.outputs[0].dims[0] == ("x",)


def test_training_on_many_sequences_only_sums_gradients() -> None:
    graph = traced(jax.grad(loss), 2, batch=64, num_tokens=512)
    plan = planned(graph)
    assert num_sums(graph, plan) == sum(collectives(graph, plan).values()) == 2 * len(MEGATRON)


_TRAINED = DecoderConfig(
    num_layers=4,
    hidden_size=512,
    num_heads=4,
    num_kv_heads=4,
    head_size=128,
    intermediate_size=2048,
    vocab_size=512,
    max_positions=64,
)


def test_weights_gradients_and_state_are_divided_where_memory_is_short() -> None:
    training = Training(rematerializes=True)
    graph = trace_training(_TRAINED, Configuration("train", 512, 16, 16), "float32", training)
    free = planned(graph)
    assert free.stages[0].footprint.parameters == graph.graph.parameter_bytes  # data parallel
    with pytest.raises(DoesNotFitError, match=r"needs .* of hbm") as least:
        planned(graph, budget_bytes=1)
    short = planned(graph, budget_bytes=int(1.15 * least.value.demand_bytes))
    assert short.device_bytes <= 1.15 * least.value.demand_bytes < free.device_bytes
    assert free.cost <= short.cost < 1.5 * free.cost
    held = short.stages[0].footprint
    num_state_bytes = sum(value.bytes for value in graph.graph.values if value.kind == "state")
    assert held.parameters < 0.5 * graph.graph.parameter_bytes
    assert held.state < 0.3 * num_state_bytes
    found = collectives(graph, short)
    assert found["all_gather"] >= len(MEGATRON) * _TRAINED.num_layers  # of weights, before they are used
    assert found["reduce_scatter"] >= len(MEGATRON) * _TRAINED.num_layers  # of gradients


def test_experts_are_divided_and_tokens_sent_to_them() -> None:
    config = read_subject("deepseek-r1", base=Path()).config
    assert isinstance(config, DecoderConfig)
    small = replace(config, num_layers=5)
    graph = trace_model(small, Configuration("prefill", 1, 4096, 4096), "bfloat16")
    plan = partition(graph, TARGET, dtype="bfloat16", mesh=Mesh(("x", "y"), (4, 4)))
    layouts = stored(graph, plan)
    assert layouts["layers.4.mlp.gate.weight"].dims[0] == ("x", "y")
    moe = [i for i, each in enumerate(graph.graph.operations) if each.name == "moe"]
    sent = predicted_collectives(graph, plan.sharding, TARGET.network)
    inside = Counter(each.operation for each in sent if each.collective.kind == "all_to_all" and each.value is None)
    assert {operation: inside[operation] for operation in moe} == dict.fromkeys(
        moe, 3
    )  # rows and what they are, and back
