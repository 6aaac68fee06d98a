"""Bundles for racks on the command line: planned, checked, refused where programs are needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "rack.yaml"
FILE = "bundle: small\ntarget: sn40l-8\nmodels: {expert: {source: llama-2-7b, sequence: 256, copies: %d}}\n"


@pytest.fixture
def rack_file(tmp_path: Path) -> Path:
    file = tmp_path / "rack.yaml"
    file.write_text(FILE % 150)
    return file


def test_a_rack_gets_a_plan_that_is_checked_and_never_run(plait, rack_file: Path) -> None:
    outcome = plait("bundle", rack_file)
    assert (outcome.code, outcome.err) == (0, "")
    made = rack_file.parent / "small.plait"
    assert [path.name for path in made.iterdir()] == ["manifest.json"]
    assert "expert x 150" in outcome.out
    assert "13.5 ms" in outcome.out
    data = json.loads((made / "manifest.json").read_bytes())
    assert (data["format"], data["version"], data["plan_only"]) == ("plait-rack-plan", 2, True)
    checked = plait("check", made)
    assert (checked.code, checked.err) == (0, "")
    assert "856 fit in ddr, 150 asked for" in checked.out
    assert "without the 192.0 GiB of each device's ddr that the target reserves, 978" in checked.out
    assert "every model can be hot within the budget" in checked.out
    for command in (["serve", made], ["run", made, "expert", "hello"], ["chat", made]):
        assert "is plan-only: " in plait(*command).complaint()
    assert plait("bundle", rack_file).code == 0  # replaces it


def test_json_has_what_the_tables_say(plait, rack_file: Path) -> None:
    made = rack_file.parent / "other.plait"
    bundled = plait("bundle", rack_file, "-o", made, "--json").data
    checked = plait("check", made, "--digest", bundled["digest"], "--json").data
    assert bundled["models"] == checked["models"]
    assert set(checked["utilization"]) == {"ddr", "hbm_resident", "host"}
    assert 0 < checked["utilization"]["hbm_resident"]["utilization"] <= 1
    assert checked["errors"] == checked["levers"] == checked["shortages"] == []
    expert = checked["models"]["expert"]
    assert (expert["copies_that_fit"], expert["residency"]) == (856, "partly hot")
    assert checked["residency"]["gap"] == pytest.approx(0, abs=1e-9)
    assert "digest" in plait("check", made, "--digest", "0" * 64).complaint()


def test_a_plan_that_was_changed_is_refused(plait, rack_file: Path) -> None:
    plait("bundle", rack_file)
    manifest = rack_file.parent / "small.plait" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"num_hot": ', '"num_hot": 9'))
    assert "contradicts itself" in plait("check", manifest.parent).complaint()


def test_what_does_not_fit_is_refused_and_check_says_what_would(plait, rack_file: Path) -> None:
    rack_file.write_text(FILE % 900)
    complaint = plait("bundle", rack_file).complaint()
    assert "of ddr, the budget is" in complaint
    assert "keep 856 of the 900 copies of 'expert'" in complaint
    assert not (rack_file.parent / "small.plait").exists()
    outcome = plait("check", rack_file, "--json")
    assert outcome.code == 2
    assert "Bundle exceeds memory constraints" in outcome.err
    (short,) = outcome.data["shortages"]
    assert short["unit"] == "bytes"
    assert short["shortfall_bytes"] == short["demand_bytes"] - short["limit_bytes"] > 0
    assert short["largest_terms"][0][0] == "900 copies of expert"
    assert outcome.data["levers"] == list(short["levers"])
    assert outcome.data["models"]["expert"]["residency"] == "does not fit"
    text = plait("check", rack_file).out
    assert "lever: keep 856 of the 900 copies of 'expert'" in text


def test_the_example_is_planned_and_short_of_ddr_with_32_gib(plait, tmp_path: Path) -> None:
    data = plait("bundle", EXAMPLE, "-o", tmp_path / "rack.plait", "--json").data
    assert {name: model["residency"] for name, model in data["models"].items()} == {
        "reason": "hot",
        "agent": "hot",
        "chat": "hot",
        "embed": "hot",
        "guard": "pinned hot",
    }
    assert plait("check", tmp_path / "rack.plait").code == 0
    cut = tmp_path / "cut.yaml"
    cut.write_text(EXAMPLE.read_text() + "budget: {ddr: 32GiB}\n")
    outcome = plait("check", cut, "--json")
    assert outcome.code == 2
    assert [lever.split(" (")[0] for lever in outcome.data["levers"][1:3]] == [
        "store 'reason' and 'chat' in fewer bits",
        "leave out 'reason'",
    ]


def test_a_bundle_of_sambastack_is_planned_for_a_named_target(plait, tmp_path: Path) -> None:
    file = tmp_path / "modelbundle.yaml"
    file.write_text(
        "apiVersion: sambanova.ai/v1alpha1\nkind: ModelBundle\nmetadata: {name: mb}\nspec:\n  modelConfigs:\n"
        "  - {model: meta-llama-3-2-1b-instruct:1, batchingConfig: {1k: {batch_sizes: [1, 2]}}}\n"
    )
    assert "names no target" in plait("bundle", file).complaint()
    data = plait("bundle", file, "--target", "sn40l-8", "--json").data
    model = data["models"]["meta-llama-3-2-1b-instruct"]
    assert {step["configuration"] for step in model["steps"]} >= {"decode-b1-t1-c1024", "decode-b2-t1-c1024"}
    assert (tmp_path / "mb.plait").is_dir()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (FILE.replace("sn40l-8", "cpu") % 2, "models.expert.copies is for targets that are only planned"),
        (FILE % 2 + "speculative: [{draft: expert, target: nobody}]\n", "'nobody' is no model of this bundle"),
        (FILE % 2 + "traffic: {expert-2: 1/s}\n", "'expert-2' is no model of this bundle"),
        (FILE % 2 + "traffic: nowhere.csv\n", "cannot read trace"),
        ("bundle: x\ntarget: sn40l-8\nmodels: {a: {source: bert, mesh: {x: 2}, devices: 4}}", "`devices` says 4"),
    ],
    ids=["runs", "pair", "copy", "trace", "devices"],
)
def test_a_wrong_file_is_one_line(plait, rack_file: Path, text: str, says: str) -> None:
    rack_file.write_text(text)
    assert says in plait("bundle", rack_file).complaint()


def test_a_file_for_a_target_that_runs_is_not_checked(plait, bundle_file: Path) -> None:
    assert "which runs: make the bundle, and check that" in plait("check", bundle_file).complaint()


def test_something_else_is_not_overwritten(plait, rack_file: Path, tiny_bundle: Path) -> None:
    complaint = plait("bundle", rack_file, "-o", tiny_bundle).complaint()
    assert "refusing to overwrite" in complaint
