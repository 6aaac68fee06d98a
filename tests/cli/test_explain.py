from __future__ import annotations

from pathlib import Path

import pytest

MODEL = "smollm2-360m"  # of the zoo
OPTIONS = ("--phase", "prefill", "--sequence", "512", "--mesh", "2x2", "--stop-after", "partition")


@pytest.fixture
def plan(plait, tmp_path: Path) -> Path:
    """The plan of a model on a mesh, saved."""
    outcome = plait("compile", MODEL, *OPTIONS, "-o", tmp_path / "plan")
    assert outcome.code == 0
    return tmp_path / "plan"


def reshards_of(plait, plan: Path):
    return plait("explain", plan, "--top", "0", "--json").data["reshards"]


def test_the_pins_that_it_names_remove_the_reshard_at_the_cost_that_it_names(plait, plan, tmp_path) -> None:
    data = plait("explain", plan, "--top", "3", "--json").data
    promised = [reshard for reshard in data["reshards"] if reshard["remedy"] and reshard["remedy"]["pins"]]
    assert promised
    for number, reshard in enumerate(promised):
        pins = [text for pattern, axes in reshard["remedy"]["pins"] for text in ("--pin", f"{pattern}={axes}")]
        other = tmp_path / f"other-{number}"
        made = plait("compile", MODEL, *OPTIONS, *pins, "-o", other, "--json").data
        assert made["partition"]["cost"] == pytest.approx(reshard["remedy"]["cost"], rel=1e-9)
        left = [(each["value"], each["reader"]) for each in reshards_of(plait, other)]
        assert (reshard["value"], reshard["reader"]) not in left


def test_reshards_are_told_to_people_with_their_lines_and_what_removes_them(plait, plan) -> None:
    outcome = plait("explain", plan, "--top", "1")
    assert (outcome.code, outcome.err) == (0, "")
    assert "x=2 x y=2" in outcome.out
    assert "decoder.py:" in outcome.out
    assert "total" in outcome.out.split("what would remove it")[1]


def test_a_pattern_tells_of_each_decision_that_it_names(plait, plan) -> None:
    out = plait("explain", plan, "layers.*.mlp.down.weight").out
    assert "layers.*.mlp.down.weight x32: parameter" in out
    assert "whole on every device" in out
    (decision,) = plait("explain", plan, "layers.*.mlp.down.weight", "--all", "--json").data["decisions"]
    assert len(decision["alternatives"]) == decision["num_strategies"]


def test_an_unknown_name_is_one_line_with_the_closest(plait, plan) -> None:
    complaint = plait("explain", plan, "layers.0.mlp.dawn.weight").complaint()
    assert "pattern 'layers.0.mlp.dawn.weight' names no input and no operation; close: layers." in complaint


def test_a_plan_that_divides_nothing_has_nothing_to_explain(plait, tmp_path) -> None:
    plait("compile", MODEL, "--stop-after", "plan_memory", "-o", tmp_path / "plan")
    assert "divides nothing; compile it up to its stage 'partition'" in plait("explain", tmp_path / "plan").complaint()
    assert "divides nothing" in plait("diff", tmp_path / "plan", tmp_path / "plan").complaint()


def test_two_plans_differ_where_a_pin_was_set(plait, plan, tmp_path) -> None:
    pin = ("--pin", "layers.*.mlp.down.weight=-,x*y")
    plait("compile", MODEL, *OPTIONS, *pin, "-o", tmp_path / "pinned")
    data = plait("diff", plan, tmp_path / "pinned", "--json").data
    names = [component["name"] for component in data["components"]]
    assert "layers.*.mlp.down.weight" in names
    assert data["after"]["cost"] >= data["before"]["cost"]
    text = plait("diff", plan, tmp_path / "pinned").out
    assert "layers.*.mlp.down.weight" in text
    assert "fullest device" in text
    assert "all components are the same" in plait("diff", plan, plan).out
