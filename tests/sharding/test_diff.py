"""Two plans side by side: totals, and the components in which they differ."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from plait.compiler.apply import predicted_collectives
from plait.compiler.configuration import Configuration, Phase
from plait.compiler.mesh import Mesh
from plait.compiler.partition.difference import Planned, difference
from plait.compiler.partition.pins import resolve_pins
from plait.compiler.partition.search import partition
from plait.compiler.target import Compute, Network, Target, Tier
from plait.compiler.trace import trace_model
from plait.models.config import DecoderConfig

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


def planned(name, *, config=LLAMA, phase: Phase = "decode", mesh=(4,), pins=(), **options) -> Planned:
    traced = trace_model(config, Configuration(phase, 4, 1 if phase == "decode" else 16, 16), "float32")
    over = Mesh(("x", "y")[: len(mesh)], mesh)
    layouts = resolve_pins(traced.graph, pins, over)
    plan = partition(traced, TARGET, dtype="float32", mesh=over, pins=layouts, **options)
    return Planned(name, traced, plan, TARGET, "float32")


@pytest.fixture(scope="module")
def plan() -> Planned:
    return planned("a")


def test_a_plan_does_not_differ_from_itself(plan):
    found = difference(plan, plan)
    assert found.changes == ()
    assert "all components are the same" in str(found)


def test_a_pin_shows_where_it_was_set_and_what_it_costs(plan):
    other = planned("b", pins=[("layers.*.mlp.down.weight", "whole")])
    found = difference(plan, other)
    changes = {change.name: change for change in found.changes}
    weight = changes["layers.*.mlp.down.weight"]
    assert weight.before
    assert weight.after
    assert (weight.before.count, weight.after.count) == (3, 3)
    assert weight.after.bytes == 3 * 64 * 32 * 4
    assert weight.before.bytes == weight.after.bytes / 4
    assert weight.after.layouts == {"": "[-, -]"}
    assert "layers.*/mlp" in changes
    assert "embedding.weight" not in changes
    before, after = (
        sum(c.seconds for c in side if c) for side in zip(*((c.before, c.after) for c in found.changes), strict=True)
    )
    assert after - before == pytest.approx(other.partition.cost - plan.partition.cost, rel=1e-6)


def test_the_largest_change_is_first(plan):
    found = difference(plan, planned("b", mesh=(2, 2), phase="prefill"))
    sizes = [
        abs((c.after.seconds if c.after else 0.0) - (c.before.seconds if c.before else 0.0)) for c in found.changes
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_collectives_are_counted_by_kind(plan):
    other = planned("b", mesh=(2,), num_stages=3)
    found = difference(plan, other)
    for side, sent in zip((plan, other), found.sent, strict=True):
        listed = predicted_collectives(side.traced, side.partition.sharding, TARGET.network)
        num_handovers = len(side.partition.stages) - 1
        assert sum(each.count for each in sent.values()) == len(listed) + num_handovers
        inside = sum(each.bytes for kind, each in sent.items() if kind != "permute")
        assert inside == sum(each.collective.bytes for each in listed if each.collective.kind != "permute")
    assert found.sent[1]["permute"].count >= 2
    assert "3 stages of x=2" in str(found)


def test_plans_of_different_models_are_compared_by_names(plan):
    wide = replace(LLAMA, num_layers=5, has_qk_norm=True)
    found = difference(plan, planned("b", config=wide))
    changes = {change.name: change for change in found.changes}
    only = [change for change in found.changes if change.before is None]
    assert [change.name for change in only] == [n for n in changes if "query_norm" in n or "key_norm" in n]
    down = changes["layers.*.mlp.down.weight"]
    assert down.before
    assert down.after
    assert (down.before.count, down.after.count) == (3, 5)


def test_a_difference_is_plain_data(plan):
    data = json.loads(json.dumps(difference(plan, planned("b", mesh=(2, 2))).to_dict()))
    assert data["before"]["mesh"] == {"x": 4}
    assert data["after"]["mesh"] == {"x": 2, "y": 2}
    assert data["components"]
