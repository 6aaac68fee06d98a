"""A rack's plan as a machine: prices between the planned steps, by hand, and devices that hold the same."""

from __future__ import annotations

import dataclasses

import pytest

from plait.compiler.bundle.manifest import TierBudget
from plait.compiler.configuration import Configuration
from plait.compiler.rack.plan import (
    Budget,
    DeviceBytes,
    ModelPlan,
    RackPlan,
    Residency,
    Shortage,
    StepPlan,
    Switching,
    Window,
)
from plait.compiler.target import load_target
from plait.errors import ConfigurationError, DoesNotFitError
from plait.runtime.bench.arrivals import Arrival
from plait.runtime.events import Decode, Embed, EmbedEntry, Prefill, Sampling, SequenceEntry
from plait.runtime.simulation.rack import machine_of_plan
from plait.runtime.simulation.replay import replay

TARGET = load_target("sn40l-8")
RATE = TARGET.tiers["hbm"].sustained_bytes_per_s
TOKEN_BYTES = 1_000_000
WEIGHTS = int(RATE * 0.001)  # a millisecond to read
GREEDY = Sampling(0.0, 1.0, 0)


def model(name: str, steps: tuple[StepPlan, ...], windows: tuple[Window, ...], kv_tokens: int | None) -> ModelPlan:
    part = DeviceBytes(WEIGHTS, TOKEN_BYTES * (kv_tokens or 0), 1000)
    return ModelPlan(
        name=name,
        source="x",
        dtype="bfloat16",
        weights="stored",
        copies=sum(window.num_copies for window in windows),
        aliases=(),
        pin=None,
        is_routable=True,
        parameters=1,
        mesh={"tensor": 4},
        num_stages=1,
        windows=windows,
        devices=(part,) * 4,
        steps=steps,
        step_cost_seconds=0.0,
        step_lower_bound_seconds=0.0,
        requests_per_s=1.0,
        switch_seconds=0.0,
        kv_tokens=kv_tokens,
    )


CHAT = (
    StepPlan("", "decode", 4, 1, 1024, 0.010, 40.0, sequence_seconds=1.3e-4),
    StepPlan("", "prefill", 1, 1024, 1024, 0.040, 200.0),
)
EMBED = (StepPlan("", "embed", 8, 512, 512, 0.02, 80.0),)
PLAN = RackPlan(
    name="hand",
    target=TARGET,
    budget=Budget(hbm=64 << 30, ddr=1 << 40),
    models=(
        model("chat", CHAT, (Window(0, 1), Window(4, 1)), 4096),
        model("embed", EMBED, (Window(4, 1),), None),
    ),
    residency=Residency((), 0.0, 0.0, "optimal", 0.0, 0),
    switching=Switching({}, 0.0, 0.0, 0.0),
    traffic="assumed",
    copies_that_fit={},
    copies_without_reserve={},
)


def decode(num_sequences: int, start: int) -> Decode:
    entries = tuple(SequenceEntry(i, (1,), start, (), GREEDY, 0) for i in range(num_sequences))
    return Decode(1, "chat-0", Configuration("decode", num_sequences, 1, 1024), entries, 4)


def test_a_decode_step_leaves_out_the_cache_that_it_does_not_read() -> None:
    cost = machine_of_plan(PLAN).step_cost
    a_token, a_sequence = TOKEN_BYTES / RATE, CHAT[0].sequence_seconds
    assert cost(decode(4, 1023)).first == pytest.approx(0.010)
    fewer = (4 * 1024 - 2 * 501) * a_token + 2 * a_sequence
    assert cost(decode(2, 500)).first == pytest.approx(0.010 - fewer)
    assert cost(decode(2, 500)).growth == pytest.approx(2 * a_token)


def test_no_step_is_faster_than_its_weights_are_read() -> None:
    slow = dataclasses.replace(PLAN.models[0], steps=(dataclasses.replace(CHAT[0], seconds=0.0011), CHAT[1]))
    cost = machine_of_plan(dataclasses.replace(PLAN, models=(slow,))).step_cost
    assert cost(decode(1, 0)).first == pytest.approx(0.001)


def test_a_prefill_takes_its_share_of_the_planned_one() -> None:
    machine = machine_of_plan(PLAN)
    chat = machine.models[0]
    chunks = [p.configuration for p in chat.programs if p.configuration.phase == "prefill"]
    assert [shapes.new_tokens for shapes in chunks] == [64, 256, 1024]
    entry = SequenceEntry(1, (1,) * 64, 0, (), None, 0)
    times = [machine.step_cost(Prefill(1, "chat-0", shapes, (entry,))).first for shapes in chunks]
    alone = 0.010 - 4 * 1024 * TOKEN_BYTES / RATE - 3 * CHAT[0].sequence_seconds
    assert times == pytest.approx([max(0.0025, alone), 0.010, 0.040])
    rows = Configuration("embed", 8, 512, 512)
    assert machine.step_cost(Embed(1, "embed", rows, (EmbedEntry(1, 0, (1,)),))).first == pytest.approx(0.02)
    assert machine.step_watts is not None
    assert machine.step_watts(decode(2, 0)) == pytest.approx(4000.0)


def test_devices_that_hold_the_same_are_one_and_copies_are_dealt_out() -> None:
    machine = machine_of_plan(PLAN)
    assert [(entry.name, entry.num_devices) for entry in machine.models] == [("chat-0", 2), ("chat-1", 2), ("embed", 2)]
    held = [[share.weights_bytes for share in entry.shares] for entry in machine.models]
    assert held == [[WEIGHTS, 0], [0, WEIGHTS], [0, WEIGHTS]]


def test_all_models_are_warm_when_the_trace_begins() -> None:
    asked = [Arrival(float(at), name, 100, 5) for at, name in enumerate(("chat-0", "chat-1", "embed", "chat-0"))]
    found = replay(machine_of_plan(PLAN), asked)
    assert (found.begin_seconds, dict(found.arrivals)) == (0.0, {"warm": 3, "hot": 1})
    assert [outcome.reply.failure for outcome in found.run.outcomes] == [None] * 4


def test_what_does_not_fit_is_refused() -> None:
    short = Shortage("model 'chat'", ("chat",), "hbm", 0, 10, 5, (), ())
    with pytest.raises(DoesNotFitError, match=r"model 'chat' needs .* of hbm"):
        machine_of_plan(dataclasses.replace(PLAN, shortages=(short,)))
    with pytest.raises(ConfigurationError, match="bytes of ddr on a device, the budget is 5; raise --ddr"):
        machine_of_plan(PLAN, budget=TierBudget(64 << 30, 5))
