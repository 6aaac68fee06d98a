from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from plait.cli.legality import legality
from plait.compiler.bundle.manifest import Manifest, TierBudget
from plait.compiler.bundle.placement import Placement, StagePlacement
from plait.compiler.bundle.reader import Bundle, open_bundle
from plait.compiler.target import load_target
from plait.runtime.residency import hbm_bytes


def with_room_for_one(bundle: Bundle, **pins: Literal["hbm", "ddr"]) -> Bundle:
    """The bundle's two decoders with room for one of them, and some of them pinned."""
    models = tuple(replace(model, pin=pins.get(model.name)) for model in bundle.manifest.models if model.kv)
    budget = TierBudget(hbm=max(hbm_bytes([model]) for model in models), ddr=bundle.manifest.budget.ddr)
    return replace(bundle, manifest=replace(bundle.manifest, models=models, budget=budget))


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "copy.plait")


def rewrite(path: Path, manifest: Manifest) -> None:
    (path / "manifest.json").write_text(manifest.to_json())


def test_a_bundle_that_fits_has_neither_errors_nor_switches(plait, tiny_bundle: Path, opened: Bundle) -> None:
    outcome = plait("check", tiny_bundle, "--digest", opened.manifest_digest, "--json")
    data = outcome.data
    assert set(data) == {"errors", "warnings", "levers", "utilization", "switch_seconds", "digest", "models"}
    assert data["models"]["chat"]["mesh"] == {}
    assert [device["weights_bytes"] for device in data["models"]["chat"]["devices"]] == [
        opened.manifest.models[0].weights_bytes
    ]
    assert (outcome.code, outcome.err, data["errors"], data["warnings"]) == (0, "", [], [])
    assert data["digest"] == opened.manifest_digest
    assert {seconds for row in data["switch_seconds"].values() for seconds in row.values()} == {0.0}
    assert data["utilization"]["hbm"]["demand_bytes"] == hbm_bytes(opened.manifest.models)
    text = plait("check", tiny_bundle).out
    assert "every model can be hot within the budget" in text
    assert opened.manifest_digest in text


def test_a_model_over_devices_is_shown_with_the_bytes_of_each(plait, copy: Path, opened: Bundle) -> None:
    chat, *others = opened.manifest.models
    stage = StagePlacement({}, (0, 1), weights_bytes=5 << 20, kv_bytes=3 << 20)
    over_two = replace(chat, placement=Placement({"tensor": 2}, ("tensor",), (stage,)), segments=())
    rewrite(copy, replace(opened.manifest, models=(over_two, *others)))
    data = plait("check", copy, "--json").data["models"]["chat"]
    assert (data["mesh"], data["stages"], len(data["devices"])) == ({"tensor": 2}, 1, 2)
    assert data["devices"][1]["weights_bytes"] == 5 << 20
    text = plait("check", copy).out
    (line,) = (line for line in text.splitlines() if "tensor=2" in line)
    assert line.split()[2:4] == ["0-1", "5.0"]


def test_a_switch_costs_what_the_link_takes(opened: Bundle) -> None:
    tight = with_room_for_one(opened)
    verdict = legality(tight)
    _, other = tight.manifest.models
    link = tight.manifest.target.link("ddr", "hbm")
    expected = link.latency_seconds + other.weights_bytes / link.bandwidth_bytes_per_s
    assert verdict.errors == ()
    assert verdict.switch_seconds["chat"]["other"] == pytest.approx(expected)
    assert verdict.switch_seconds["chat"]["chat"] == 0
    assert any("'chat' and 'other' cannot be hot at once" in warning for warning in verdict.warnings)
    assert verdict.utilization["hbm"].utilization > 1


def test_a_pinned_model_excludes_those_that_do_not_fit_beside_it(opened: Bundle) -> None:
    verdict = legality(with_room_for_one(opened, chat="hbm"))
    assert len(verdict.errors) == 1
    assert "model 'other' beside the pinned models needs" in verdict.errors[0]
    assert verdict.utilization["hbm"].pinned_bytes == hbm_bytes(opened.manifest.models[:1])


def test_budgets_beyond_the_machine_and_below_the_models_are_warned_of(opened: Bundle) -> None:
    budget = TierBudget(hbm=2**40, ddr=opened.manifest.models[0].weights_bytes)
    verdict = legality(replace(opened, manifest=replace(opened.manifest, budget=budget)))
    assert verdict.errors == ()
    assert "the hbm budget of 1.0 TiB is more than the 4.0 GiB that target 'cpu-tiered' has" in verdict.warnings
    assert any(warning.startswith("ddr does not hold all models at once") for warning in verdict.warnings)


def test_a_unified_target_switches_from_disk(opened: Bundle) -> None:
    tight = with_room_for_one(opened, other="ddr")
    target = load_target("cpu")
    verdict = legality(replace(tight, manifest=replace(tight.manifest, target=target)))
    weights_bytes = tight.manifest.models[1].weights_bytes
    expected = weights_bytes / target.link("disk", "hbm").bandwidth_bytes_per_s
    assert verdict.switch_seconds["chat"]["other"] == pytest.approx(expected)
    assert set(verdict.utilization) == {"hbm"}
    assert any("'other' is pinned to ddr, which target 'cpu' has not" in warning for warning in verdict.warnings)


def test_models_that_can_never_be_hot_are_errors(plait, copy: Path, opened: Bundle) -> None:
    rewrite(copy, replace(opened.manifest, budget=TierBudget(hbm=1000, ddr=2**30)))
    outcome = plait("check", copy, "--json")
    assert outcome.code == 2
    assert len(outcome.data["errors"]) == 3
    assert outcome.err.startswith("plait: 3 of the bundle's models can never be hot: model 'chat' needs")
    assert outcome.err.count("\n") == 1
    assert outcome.data["levers"]
    assert all(any(lever in error for error in outcome.data["errors"]) for lever in outcome.data["levers"])
    assert "error: model 'embed' needs" in plait("check", copy).out


def test_a_flipped_bit_is_found(plait, copy: Path) -> None:
    weights = copy / "models" / "chat" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    assert "'models/chat/weights.safetensors' is damaged or was changed" in plait("check", copy).complaint()


def test_a_truncated_file_is_found(plait, copy: Path) -> None:
    tokenizer = copy / "models" / "chat" / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes()[:-1])
    assert "'models/chat/tokenizer.json' is damaged" in plait("check", copy).complaint()


@pytest.mark.parametrize("digest", ["0" * 64, "f00"], ids=["another", "no digest"])
def test_a_digest_that_is_not_met_is_one_line(plait, tiny_bundle: Path, digest: str) -> None:
    assert "digest" in plait("check", tiny_bundle, "--digest", digest).complaint()


def test_what_is_no_bundle_is_one_line(plait, tmp_path: Path) -> None:
    assert "is not a plait bundle" in plait("check", tmp_path).complaint()
