"""The graph as data: totals, text, JSON, networkx, and what makes it illegal."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import networkx as nx
import pytest

from plait.compiler.configuration import Configuration
from plait.compiler.graph import Graph, Operation, Value
from plait.compiler.trace import trace, trace_model
from plait.compiler.verify.graph import verify_graph
from plait.errors import ConfigurationError, VerificationError
from plait.models.config import DecoderConfig, EncoderConfig

GOLDEN = Path(__file__).parents[1] / "golden"

DECODER = DecoderConfig(
    num_layers=2,
    hidden_size=16,
    num_heads=4,
    num_kv_heads=2,
    head_size=4,
    intermediate_size=24,
    vocab_size=32,
    max_positions=64,
    tie_embeddings=True,
)
ENCODER = EncoderConfig(
    num_layers=1, hidden_size=16, num_heads=2, intermediate_size=24, vocab_size=32, max_positions=64, head="masked_lm"
)


def without_source(graph: Graph) -> Graph:
    def strip(operation: Operation) -> Operation:
        return replace(operation, source="", body=tuple(map(without_source, operation.body)))

    return replace(graph, operations=tuple(map(strip, graph.operations)))


def loops(x, weights):
    def step(carry, weight):
        return jax.lax.cond(carry[0, 0] > 0, lambda a: a @ weight, jnp.sin, carry), jnp.sum(carry)

    return jax.lax.fori_loop(0, 3, lambda _, a: a * 2.0, jax.lax.scan(step, x, weights)[0])


GRAPHS = {
    "decode": lambda: trace_model(DECODER, Configuration("decode", 2, 1, 64), "bfloat16").graph,
    "prefill": lambda: trace_model(DECODER, Configuration("prefill", 1, 16, 64), "float32").graph,
    "embed": lambda: trace_model(ENCODER, Configuration("embed", 2, 8, 8), "float32").graph,
    "loops": lambda: trace(loops, jnp.ones((4, 4)), jnp.ones((5, 4, 4))).graph,
}


@pytest.fixture(params=GRAPHS.values(), ids=list(GRAPHS))
def graph(request):
    return request.param()


@pytest.mark.parametrize("name", GRAPHS)
def test_text_is_the_golden_one(name, pytestconfig):
    text = without_source(GRAPHS[name]()).as_text()
    path = GOLDEN / f"graph_{name}.txt"
    if pytestconfig.getoption("--update-golden", default=False):
        path.write_text(text)
    assert text == path.read_text()


def test_json_round_trip(graph):
    assert Graph.from_json(graph.to_json()) == graph


EXTRA_FIELD = '{"name":"","values":[],"operations":[],"inputs":[],"outputs":[],"input_bytes_read":[],"extra":1}'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "top level: Invalid JSON"),
        ('{"name": "x"}', "values: Field required"),
        (EXTRA_FIELD, "extra: Unexpected keyword"),
    ],
    ids=["no JSON", "missing fields", "unknown field"],
)
def test_json_that_is_no_graph_is_refused(text, complaint):
    with pytest.raises(ConfigurationError, match=f"not a plait graph: {complaint}"):
        Graph.from_json(text)


def test_traced_graphs_are_legal(graph):
    verify_graph(graph)


def test_networkx_view_follows_the_flow_of_data(graph):
    view = graph.to_networkx()
    assert nx.is_directed_acyclic_graph(view)
    assert sum(data["flops"] for _, data in view.nodes(data=True) if "flops" in data) == graph.flops
    sources = {identifier for (kind, identifier), degree in view.in_degree if kind == "value" and degree == 0}
    assert sources == {value.id for value in graph.values if value.kind == "constant"} | set(graph.inputs)


def test_totals_are_sums_over_operations():
    values = (Value(0, (2, 3), "float32", "parameter", "w"), Value(1, (6,), "bfloat16", "intermediate"))
    operations = (Operation(0, "a", (0,), (1,), flops=5, bytes_read=24, bytes_written=12, is_estimate=True),)
    graph = Graph("g", values, operations, (0,), (1,), (12,))
    assert (graph.flops, graph.parameter_bytes, graph.bytes_accessed) == (5, 24, 36)
    assert graph.is_estimate
    assert values[1].bytes == 12


ADD = Operation(0, "add", (0,), (1,), flops=1, bytes_read=4, bytes_written=4)
LEGAL = Graph(
    "g", (Value(0, (1,), "float32", "input"), Value(1, (1,), "float32", "intermediate")), (ADD,), (0,), (1,), (4,)
)

ILLEGAL = {
    "reads what is not there": (replace(LEGAL, operations=(replace(ADD, inputs=(1,)),)), "reads a value that is not"),
    "makes an input": (replace(LEGAL, operations=(replace(ADD, outputs=(0,)),)), "makes a value that is there"),
    "makes it twice": (replace(LEGAL, operations=(replace(ADD, outputs=(1, 1)),)), "makes a value twice"),
    "ids out of order": (replace(LEGAL, operations=(replace(ADD, id=7),)), "is at position 0"),
    "negative cost": (replace(LEGAL, operations=(replace(ADD, flops=-1),)), "negative cost"),
    "never made": (replace(LEGAL, operations=(), outputs=(0,)), "neither given nor made"),
    "foreign update": (replace(LEGAL, operations=(replace(ADD, updates=((1, 1),)),)), "does not read and write"),
}


@pytest.mark.parametrize(("illegal", "complaint"), ILLEGAL.values(), ids=ILLEGAL)
def test_an_illegal_graph_is_named(illegal, complaint):
    verify_graph(LEGAL)
    with pytest.raises(VerificationError, match=complaint):
        verify_graph(illegal)
