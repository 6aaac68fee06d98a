"""Plans of bundles for racks: published switch times and counts, what does not fit, and plans that were changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from plait.compiler.bundle.spec import BundleSpec
from plait.compiler.rack.plan import DeviceBytes, RackPlan
from plait.compiler.rack.planner import plan_rack
from plait.compiler.rack.windows import place_windows
from plait.compiler.verify.residency import verify_rack_plan
from plait.errors import BundleIntegrityError, BundleVersionError, ConfigurationError, DoesNotFitError

GIB = 1 << 30
TRACE = Path(__file__).parents[3] / "shared" / "data" / "traces" / "multimodel_arrivals_a.csv"
LLAMA = {"source": "llama-2-7b"}


def planned(models: Mapping[str, Mapping[str, object]], target: str = "sn40l-8", **fields: object) -> RackPlan:
    plan = plan_rack(BundleSpec.model_validate({"bundle": "x", "target": target, "models": models, **fields}))
    verify_rack_plan(plan)
    return plan


@pytest.fixture(scope="module")
def experts() -> RackPlan:
    return planned({"expert": {**LLAMA, "copies": 850}})


@pytest.fixture(scope="module")
def routed() -> RackPlan:
    """A pinned router, experts that share HBM, and a model that is never hot."""
    models = {
        "router": {**LLAMA, "pin": "hbm"},
        "expert": {**LLAMA, "copies": 150},
        "cold": {**LLAMA, "pin": "ddr"},
    }
    return planned(models, traffic={"router": "9/s", "expert": "9/s"})


def test_a_switch_of_llama_2_7b_on_8_sockets_takes_13_5_ms(experts: RackPlan) -> None:
    assert experts.model("expert").switch_seconds == pytest.approx(13.5e-3, rel=0.01)  # V10
    assert experts.switching.seconds["expert"]["expert"] == experts.model("expert").switch_seconds


def test_a_switch_of_llama_31_8b_on_16_sockets_takes_10_ms() -> None:
    plan = planned({"chat": {"source": "llama-3.1-8b", "sequence": 1024}}, "sn40l-16")
    assert plan.model("chat").switch_seconds == pytest.approx(10e-3, rel=0.01)  # V11
    assert plan.residency_class("chat") == "hot"
    assert plan.switching.seconds["chat"]["chat"] == 0


def test_850_experts_fit_a_node_and_the_reserve_is_why_not_978(experts: RackPlan) -> None:
    assert experts.copies_that_fit == {"expert": 856}  # V14
    assert experts.copies_without_reserve == {"expert": 978}
    assert experts.shortages == ()
    assert experts.residency.num_variables == 3
    assert 30 < experts.num_hot("expert") < 40


def test_850_experts_fit_a_node_beside_their_router() -> None:
    plan = planned({"router": {**LLAMA, "pin": "hbm"}, "expert": {**LLAMA, "copies": 850}})
    assert plan.shortages == ()
    assert plan.copies_that_fit["expert"] == 855


def test_one_expert_more_does_not_fit_and_the_report_says_what_would(experts: RackPlan) -> None:
    del experts
    plan = planned({"expert": {**LLAMA, "copies": 857}})
    (short,) = plan.shortages
    assert plan.residency_class("expert") == "does not fit"
    assert short.demand_bytes - short.limit_bytes == short.error().shortfall_bytes > 0
    assert short.levers == (
        "keep 856 of the 857 copies of 'expert'",
        "store 'expert' in fewer bits (`weights: q4_0`)",
        "take a target of 9 such devices or more",
    )
    assert "of ddr, the budget is" in str(short.error())


def test_levers_make_it_fit() -> None:
    models = {"large": {"source": "llama-2-13b", "sequence": 256}, "small": {**LLAMA, "sequence": 256}}
    short = planned(models, budget={"ddr": "4GiB"}).shortages[0]
    assert short.models == ("small",)
    assert [name for name, _ in short.largest_terms] == ["large", "small"]
    assert short.levers == (
        "raise the ddr budget to 4.6 GiB a device, the target has 1.3 TiB",
        "store 'large' in fewer bits (`weights: q4_0`)",
        "leave out 'small'",
        "take a target of 10 such devices or more",
    )
    assert planned(models, budget={"ddr": "4.7GiB"}).shortages == ()
    large = {**models["large"], "weights": "q4_0"}
    assert planned({**models, "large": large}, budget={"ddr": "4GiB"}).shortages == ()


def test_classes_follow_pins_and_traffic(routed: RackPlan) -> None:
    classes = {model.name: routed.residency_class(model.name) for model in routed.models}
    assert classes == {"router": "pinned hot", "expert": "partly hot", "cold": "warm"}
    hot, warm = routed.num_hot("expert"), 150 - routed.num_hot("expert")
    each, seconds = 9 / 150, routed.model("expert").switch_seconds
    assert hot > 30
    assert routed.residency.cost == pytest.approx(warm * each * seconds)
    assert routed.switching.warm_requests_per_s == pytest.approx(warm * each)
    assert routed.switching.switches_per_s == pytest.approx(warm * each * (1 - 1 / warm))
    row = routed.switching.seconds["router"]
    assert row == {"router": 0, "expert": seconds, "cold": seconds}
    assert routed.residency.gap == pytest.approx(0, abs=1e-9)


def test_a_model_that_cannot_be_hot_beside_what_is_pinned_is_short_of_hbm() -> None:
    models = {"a": {**LLAMA, "pin": "hbm"}, "b": LLAMA}
    plan = planned(models, budget={"hbm": "3GiB"})
    (short,) = plan.shortages
    assert (short.tier, short.models, plan.residency_class("b")) == ("hbm", ("b",), "does not fit")
    assert any(lever.startswith("raise the hbm budget to") for lever in short.levers)
    assert short.levers[1:] == ("unpin 'a'", "store 'b' in fewer bits (`weights: q4_0`)", "leave out 'b'")
    assert planned({"a": LLAMA, "b": LLAMA}, budget={"hbm": "3GiB"}).shortages == ()
    with pytest.raises(DoesNotFitError, match="devices for"):
        planned({"b": LLAMA}, budget={"hbm": "1GiB"})


def test_models_of_speculative_decoding_are_hot_together() -> None:
    models = {
        "target": {**LLAMA, "sequence": 256},
        "draft": {"source": "llama-3.2-1b", "sequence": 256, "routable": False},
        "other": {**LLAMA, "sequence": 256},
        "third": {**LLAMA, "sequence": 256},
    }

    def plan_together() -> RackPlan:
        rates, pairs = {"target": "1/s", "other": "5/s", "third": "1/s"}, [{"draft": "draft", "target": "target"}]
        return planned(models, traffic=rates, budget={"hbm": "4GiB"}, speculative=pairs)

    plan = plan_together()
    assert [plan.residency_class(name) for name in models] == ["warm", "warm", "hot", "warm"]
    pair = next(group for group in plan.residency.groups if len(group.models) == 2)
    assert pair.switch_seconds > plan.model("target").switch_seconds
    assert plan.switching.seconds["other"]["target"] == pair.switch_seconds
    models["draft"]["pin"] = "hbm"  # then a switch brings the target alone
    plan = plan_together()
    assert plan.switching.seconds["other"]["target"] == plan.model("target").switch_seconds


def test_a_model_may_have_some_of_the_devices() -> None:
    plan = planned({"expert": {**LLAMA, "copies": 10, "sockets": 4}, "other": {**LLAMA, "mesh": {"tensor": 2}}})
    expert, other = plan.model("expert"), plan.model("other")
    assert [(each.first_device, each.num_copies) for each in expert.windows] == [(0, 5), (4, 5)]
    assert (expert.num_devices, other.num_devices) == (4, 2)
    assert len({held.weights_bytes for held in other.devices}) == 1
    assert expert.switch_seconds == pytest.approx(2 * 13.5e-3, rel=0.01)


def test_windows_are_where_least_is() -> None:
    part = DeviceBytes(10, 0, 0)
    windows = place_windows({"a": [part] * 2, "b": [part] * 2, "c": [part]}, {"a": 1, "b": 1, "c": 2}, 4)
    assert [each.first_device for name in "abc" for each in windows[name]] == [0, 2, 0, 1]
    assert place_windows({"a": [part] * 2}, {"a": 3}, 4)["a"][0].num_copies == 2


def test_configurations_share_one_layout_of_the_weights() -> None:
    shapes = [{"sequence": 1024, "batch": 1}, {"sequence": 512, "batch": 4}]
    plan = planned({"chat": {**LLAMA, "configurations": shapes}})
    model = plan.model("chat")
    assert [step.configuration for step in model.steps] == [
        "decode-b1-t1-c1024",
        "prefill-b1-t1024-c1024",
        "decode-b4-t1-c512",
        "prefill-b1-t512-c512",
    ]
    assert model.devices[0].kv_bytes * 8 == 2048 * 2 * 32 * 4096 * 2  # of the configuration with most tokens
    assert model.decode_seconds == max(step.seconds for step in model.steps if step.phase == "decode")


def test_encoders_have_no_kv_cache(tmp_path: Path) -> None:
    from tiny import write_tiny_bert

    write_tiny_bert(tmp_path / "bert")
    model = {"source": str(tmp_path / "bert"), "sequence": 32, "batch": 2, "devices": 2}
    plan = planned({"embed": model})
    assert (plan.model("embed").devices[0].kv_bytes, plan.model("embed").decode_seconds) == (0, None)
    with pytest.raises(ConfigurationError, match="is an encoder and has no KV cache"):
        planned({"embed": {**model, "kv_tokens": 64}})


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({"a": {**LLAMA, "devices": 9}}, "'a' wants 9 devices, target 'sn40l-8' has 8"),
        ({"a": {**LLAMA, "sequence": 8192}}, "has 4096 positions, 8192 are asked for"),
    ],
    ids=["devices", "positions"],
)
def test_what_a_model_cannot_have_is_refused(models: dict[str, dict[str, object]], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        planned(models)


@pytest.mark.skipif(not TRACE.is_file(), reason="the trace is not there")
def test_a_trace_decides_which_copies_are_hot() -> None:
    plan = planned({"expert": {**LLAMA, "copies": 87}}, traffic=str(TRACE))
    hot = [group.requests_per_s for group in plan.residency.groups if group.num_hot == group.num_copies]
    warm = [group.requests_per_s for group in plan.residency.groups if group.num_hot == 0]
    assert min(hot) >= max(warm)
    assert plan.switching.replayed_switches_per_s is not None
    assert 0 < plan.switching.replayed_switches_per_s <= plan.switching.warm_requests_per_s


def test_a_plan_goes_to_json_and_back(routed: RackPlan) -> None:
    assert RackPlan.from_json(routed.to_json()) == routed


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"{", BundleIntegrityError, "is no plan of a rack"),
        (b'{"version": 99}', BundleVersionError, "has version 99, this plait reads up to 2"),
        (b'{"version": 1, "format": "plait-rack-plan"}', BundleIntegrityError, "Field required"),
    ],
    ids=["JSON", "version", "fields"],
)
def test_a_damaged_plan_is_refused(data: bytes, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        RackPlan.from_json(data)


def _hot(plan: RackPlan, number: int, count: int) -> RackPlan:
    groups = list(plan.residency.groups)
    groups[number] = replace(groups[number], num_hot=count)
    return replace(plan, residency=replace(plan.residency, groups=tuple(groups)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plan: _hot(plan, 0, 0), "router is pinned to hbm and not hot"),
        (lambda plan: _hot(plan, 1, 151), "151 of 150 copies of expert are hot"),
        (lambda plan: _hot(plan, 2, 1), "cold is pinned to ddr and hot"),
        (lambda plan: _hot(plan, 1, 100), "its cost is"),
        (lambda plan: replace(plan, budget=replace(plan.budget, hbm=GIB)), "bytes in hbm, the budget is"),
        (lambda plan: replace(plan, budget=replace(plan.budget, ddr=GIB)), "bytes in ddr, the budget is"),
        (lambda plan: replace(plan, models=plan.models[1:]), "does not say of each model how many copies fit"),
        (
            lambda plan: replace(plan, residency=replace(plan.residency, lower_bound=plan.residency.cost * 2)),
            "is beyond its cost",
        ),
        (
            lambda plan: replace(plan, models=(replace(plan.models[0], switch_seconds=1.0), *plan.models[1:])),
            "a switch to 'router' does not take 1.0 s",
        ),
        (
            lambda plan: replace(plan, models=(replace(plan.models[0], copies=2), *plan.models[1:])),
            "'router' has 2 copies, its windows others",
        ),
    ],
    ids=["pin hbm", "count", "pin ddr", "cost", "hbm", "ddr", "model", "bound", "switch", "copies"],
)
def test_the_verifier_finds_what_was_changed(routed: RackPlan, change, says: str) -> None:
    verify_rack_plan(routed)
    with pytest.raises(BundleIntegrityError, match=says):
        verify_rack_plan(change(routed))
