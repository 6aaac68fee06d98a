"""What a plan sends, what would remove it, and what other ways to divide it would cost: held against other plans."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive

from plait.compiler.apply import predicted_collectives
from plait.compiler.configuration import Configuration
from plait.compiler.mesh import Layout, Mesh
from plait.compiler.partition.explain import explain
from plait.compiler.partition.formulate import formulate
from plait.compiler.partition.links import links
from plait.compiler.partition.names import component_of, pattern_of
from plait.compiler.partition.pins import operation_names, resolve_pins
from plait.compiler.partition.search import partition
from plait.compiler.partition.skeleton import skeleton
from plait.compiler.target import Compute, Network, Target, Tier
from plait.compiler.trace import trace, trace_model
from plait.compiler.train import Training, trace_training
from plait.errors import ConfigurationError
from plait.models.config import DecoderConfig, Experts

LLAMA = DecoderConfig(
    num_layers=3,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    intermediate_size=64,
    vocab_size=64,
    max_positions=64,
)
MIXTRAL = replace(LLAMA, experts=Experts(num_experts=4, experts_per_token=2, intermediate_size=32))
TARGET = Target(
    name="test",
    description="a slow device with a fast network, so that small models are divided",
    kind="tiered",
    num_devices=8,
    compute=Compute({"f32": 1e9}),
    tiers={"hbm": Tier(1 << 34, 1e9)},
    links={},
    source="made up",
    network=Network(latency_seconds=1e-7, bandwidth_bytes_per_s=1e9),
)
GRID = Mesh(("x", "y"), (2, 4))


def planned(traced, mesh=GRID, pins=(), **options):
    """The plan of a graph, and the layouts that were given for it."""
    resolved = resolve_pins(traced.graph, pins, mesh)
    return partition(traced, TARGET, dtype="float32", mesh=mesh, pins=resolved, **options), resolved


def explained(traced, plan, pins, pattern=None, **options):
    return explain(traced, plan, TARGET, dtype="float32", pins=pins, pattern=pattern, **options)


def inputs_of(explanation):
    return [decision for decision in explanation.decisions if decision.kind != "operation"]


def step(config, phase):
    if phase == "train":
        return trace_training(config, Configuration("train", 4, 16, 16), "float32", Training())
    return trace_model(config, Configuration(phase, 4, 1 if phase == "decode" else 16, 16), "float32")


CASES = {
    "prefill": (LLAMA, "prefill", GRID, {}),
    "decode": (LLAMA, "decode", Mesh(("x",), (4,)), {}),
    "stages": (LLAMA, "decode", Mesh(("x",), (2,)), {"num_stages": 3}),
    "experts": (MIXTRAL, "prefill", Mesh(("x", "y"), (2, 2)), {}),
    "train": (replace(LLAMA, num_layers=2), "train", Mesh(("x",), (2,)), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_pin_that_removes_a_reshard_does_so_at_the_cost_that_is_promised(case):
    config, phase, mesh, options = CASES[case]
    traced = step(config, phase)
    plan, pins = planned(traced, mesh, **options)
    reshards = explained(traced, plan, pins, top=3).reshards
    promised = [(reshard, reshard.remedy) for reshard in reshards if reshard.remedy and reshard.remedy.pins]
    assert promised
    for reshard, remedy in promised:
        other, layouts = planned(traced, mesh, remedy.pins, **options)
        assert other.cost == pytest.approx(remedy.cost, rel=1e-9)
        assert other.cost >= plan.lower_bound * (1 - 1e-9)
        left = explained(traced, other, layouts, top=0).reshards
        assert (reshard.value, reshard.reader) not in [(each.value, each.reader) for each in left]
        sent = predicted_collectives(traced, other.sharding, TARGET.network)
        assert remedy.communication_seconds == pytest.approx(sum(each.seconds for each in sent))


@pytest.mark.parametrize("case", ["prefill", "experts", "train"])
def test_all_that_is_sent_is_listed_once(case):
    config, phase, mesh, options = CASES[case]
    traced = step(config, phase)
    plan, pins = planned(traced, mesh, **options)
    explanation = explained(traced, plan, pins, top=0)
    sent = predicted_collectives(traced, plan.sharding, TARGET.network)
    assert explanation.communication_seconds == pytest.approx(sum(each.seconds for each in sent))
    listed = Counter[str]()
    for reshard in explanation.reshards:
        listed.update({kind: reshard.count * count for kind, count in Counter(reshard.kinds).items()})
    assert listed == Counter(each.collective.kind for each in sent)
    seconds = [reshard.seconds for reshard in explanation.reshards]
    assert seconds == sorted(seconds, reverse=True)
    assert all(reshard.source or reshard.path for reshard in explanation.reshards)


def test_what_one_stage_hands_to_the_next_is_listed():
    traced = step(LLAMA, "prefill")
    plan, pins = planned(traced, Mesh(("x",), (2,)), num_stages=3)
    handed = [each for each in explained(traced, plan, pins, top=0).reshards if each.kinds == ("permute",)]
    assert sorted(each.reader for each in handed) == ["stage 2", "stage 3"]
    assert all(each.bytes > 0 and each.seconds > 0 for each in handed)


def test_what_an_operation_sends_inside_is_listed_with_what_a_plan_without_it_costs():
    traced = step(MIXTRAL, "prefill")
    exchanging = (("layers.*/mlp/moe", "x,-"), ("layers.*.mlp.gate.weight", "x,-,-"))
    plan, pins = planned(traced, Mesh(("x",), (4,)), exchanging)
    inside = [each for each in explained(traced, plan, pins).reshards if each.reader == "itself"]
    assert {each.value for each in inside} == {"layers.*/mlp/moe"}
    assert all(set(each.kinds) == {"all_to_all"} and each.count == 3 for each in inside)
    (remedy,) = [each.remedy for each in inside]
    assert remedy
    # The pin leaves rows divided: without the exchange every device needs all experts, which no other pin asks for.
    assert (remedy.pins, remedy.why) == ((), "no pins nearby remove it")
    assert remedy.cost is not None
    assert remedy.cost > plan.cost


def layers(x, up, down):
    for _ in range(2):
        x = x + jax.nn.relu(x @ up) @ down
    return jnp.sort(x, axis=1)


SHAPES = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((18, 32), (32, 64), (64, 32))]
KINDS = ("input", "parameter", "parameter")


@pytest.fixture(scope="module")
def small():
    """A small function on a mesh that does not divide all of it, and its plan."""
    traced = trace(layers, *SHAPES, argument_kinds=KINDS)
    plan, _ = planned(traced)
    return traced, plan


def test_each_layout_of_an_input_costs_what_a_plan_with_it_pinned_costs(small):
    traced, plan = small
    (decision,) = inputs_of(explained(traced, plan, {}, "up", limit=None))
    assert decision.num_strategies == len(decision.alternatives) == 9
    assert decision.num_asked == 8
    for other in decision.alternatives:
        pinned, _ = planned(traced, GRID, [("up", other.pin)])
        assert other.cost == pytest.approx(pinned.cost, rel=1e-9)
        assert other.cost >= plan.lower_bound * (1 - 1e-9)


def test_no_pinned_plan_is_better_than_the_strategies_that_its_pin_leaves(small):
    traced, plan = small
    decisions = explained(traced, plan, {}, "*dot_general*", limit=None).decisions
    assert decisions
    for decision in decisions:
        least: dict[str, float] = {}
        for other in decision.alternatives:
            if other.pin and other.cost is not None:
                least[other.pin] = min(other.cost, least.get(other.pin, other.cost))
        assert len(least) >= 4
        for axes, cost in least.items():
            pinned, _ = planned(traced, GRID, [(decision.name, axes)])
            assert cost == pytest.approx(pinned.cost, rel=1e-9)


def test_the_chosen_strategy_is_among_the_alternatives_and_none_is_better(small):
    traced, plan = small
    for decision in explained(traced, plan, {}, "*", limit=3).decisions:
        chosen = [other for other in decision.alternatives if other.is_chosen]
        assert chosen == [decision.chosen]
        assert len(decision.alternatives) <= 4
        known = [other.cost for other in decision.alternatives if other.cost is not None]
        assert known == sorted(known)
        assert min(known) >= plan.lower_bound * (1 - 1e-9)
        for other in decision.alternatives:
            if other.cost is not None and other.fixed_seconds is not None:
                assert other.cost <= other.fixed_seconds * (1 + 1e-9)


def test_what_cannot_be_divided_is_listed_with_the_reason(small):
    traced, plan = small
    (product, *_) = explained(traced, plan, {}, "*dot_general*").decisions
    assert ("result dim 0 (18)", ("y",), "18 does not divide by 4") in [
        (each.what, each.axes, each.why) for each in product.unavailable
    ]
    (sort,) = explained(traced, plan, {}, "sort").decisions
    assert "the operation mixes all of it" in {each.why for each in sort.unavailable}
    (x,) = inputs_of(explained(traced, plan, {}, "x"))
    assert [(each.what, each.why) for each in x.unavailable] == [("dim 0 (18)", "18 does not divide by 4")]


def test_an_operation_without_a_rule_says_so():
    riddle = Primitive("riddle")
    riddle.def_abstract_eval(lambda x: x)
    traced = trace(lambda x: riddle.bind(x * 2), SHAPES[0])
    plan, _ = planned(traced)
    (decision,) = explained(traced, plan, {}, "riddle").decisions
    assert [each.why for each in decision.unavailable] == ["no sharding rule for riddle"]
    assert decision.num_strategies == 1


def test_a_layout_that_memory_forbids_says_how_much_is_lacking(small):
    traced, _ = small
    plan, _ = planned(traced, budget_bytes=12_000)
    (decision,) = inputs_of(explained(traced, plan, {}, "up", limit=None))
    (entire,) = [other for other in decision.alternatives if other.pin == "-,-"]
    assert entire.cost is None
    assert entire.why.startswith("memory: ")
    assert entire.why.endswith(" over the budget")


def test_a_cheaper_strategy_that_loses_says_where():
    traced = trace(layers, *SHAPES, argument_kinds=KINDS)
    slow = replace(TARGET, network=Network(latency_seconds=1.0, bandwidth_bytes_per_s=1e6))
    plan = partition(traced, slow, dtype="float32", mesh=GRID)
    decisions = explain(traced, plan, slow, dtype="float32", pattern="down/dot_general*").decisions
    loses = [
        (decision, other)
        for decision in decisions
        for other in decision.alternatives
        if other.why.startswith("cheaper alone by")
    ]
    assert loses
    assert all(other.own_seconds < decision.chosen.own_seconds for decision, other in loses)
    assert all(other.cost is not None and other.cost > plan.cost for _, other in loses)


def test_a_part_of_a_name_is_enough_and_an_unknown_one_is_refused_with_the_closest(small):
    traced, plan = small
    model = step(LLAMA, "decode")
    names = {d.name for d in explained(model, planned(model)[0], {}, "mlp", limit=0).decisions}
    assert {"layers.*/mlp/linear#1", "layers.*.mlp.down.weight"} <= names
    with pytest.raises(
        ConfigurationError, match=r"pattern 'up/dot_generel' names no input and no operation; close: up/dot_g"
    ):
        explained(traced, plan, {}, "up/dot_generel")
    with pytest.raises(ConfigurationError, match=r"pattern 'z\*' names no input"):
        explained(traced, plan, {}, "z*")


def test_an_explanation_is_text_and_plain_data(small):
    traced, plan = small
    text = str(explained(traced, plan, {}))
    assert all(part in text for part in ("x=2 x y=4", "what was tried", "what is sent", "what would remove it"))
    assert "test_explain.py:" in text
    data = json.loads(json.dumps(explained(traced, plan, {}).to_dict()))
    assert data["cost"] == plan.cost
    assert data["reshards"][0]["remedy"]["pins"]
    assert "divided" in str(explained(traced, plan, {}, "up"))
    assert json.dumps(explained(traced, plan, {}, "up").to_dict())


def test_a_plan_of_another_graph_is_refused(small):
    _, plan = small
    other = trace(lambda x: jnp.sort(x * 2, axis=1), SHAPES[0])
    with pytest.raises(ConfigurationError, match=r"the plan is of \d+ operations, .* has 2; plan it again"):
        explained(other, plan, {})
    same_length = trace(lambda x, up, down: layers(x, down.T, up.T), *SHAPES, argument_kinds=KINDS)
    strange = replace(plan, sharding=replace(plan.sharding, inputs=(Layout((("y",), ())), *plan.sharding.inputs[1:])))
    assert same_length.graph.name
    with pytest.raises(ConfigurationError, match="as no rule does: it is not of this graph"):
        explained(small[0], strange, {})


def test_every_edge_of_a_problem_is_a_link():
    for config, phase in ((LLAMA, "train"), (MIXTRAL, "decode")):
        formulation = formulate(skeleton(step(config, phase)), GRID, TARGET, "float32")
        found = [link for made in formulation.skeleton.members for link in links(formulation, made)]
        pairs = {(link.source, link.target) for link in found}
        assert {(edge.source, edge.target) for edge in formulation.problem.edges} <= pairs


def test_names_of_layers_become_one_pattern():
    assert pattern_of(["layers.0/mlp/linear#2", "layers.10/mlp/linear#2"]) == "layers.*/mlp/linear#2"
    assert pattern_of(["w1"]) == "w1"
    assert pattern_of(["a[0]", "b[0]"]) == "a[[]0]"
    assert component_of("layers.12.mlp.w1.3") == "layers.*.mlp.w1.*"


def test_every_operation_has_a_name_of_its_own_that_pins_it_alone(small):
    traced, _ = small
    names = operation_names(traced.graph)
    assert len(set(names)) == len(names)
    for operation, name in zip(traced.graph.operations, names, strict=True):
        assert list(resolve_pins(traced.graph, [(name, "whole")], None)) == [operation.outputs[0]]


def test_a_plan_for_one_device_sends_nothing(small):
    traced, _ = small
    plan = partition(traced, TARGET, dtype="float32", num_devices=1)
    explanation = explained(traced, plan, {})
    assert explanation.reshards == ()
    assert "nothing is sent" in str(explanation)
    (decision,) = explained(traced, plan, {}, "up").decisions
    assert decision.alternatives == (decision.chosen,)
