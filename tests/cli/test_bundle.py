from __future__ import annotations

from pathlib import Path

import pytest

from plait.compiler.bundle.reader import open_bundle


def test_a_bundle_is_made_beside_its_file(plait, bundle_file: Path) -> None:
    outcome = plait("bundle", bundle_file)
    assert (outcome.code, outcome.err) == (0, "")
    built = open_bundle(bundle_file.parent / "small.plait")
    assert built.manifest_digest in outcome.out
    assert "embed-b1-t32-c32" in outcome.out
    assert "with all models hot, budget 8.0 GiB" in outcome.out


def test_a_bundle_beyond_its_budget_is_made_with_a_warning(plait, bundle_file: Path, tmp_path: Path) -> None:
    bundle_file.write_text(f"{bundle_file.read_text()}budget: {{hbm: 100KiB}}\n")
    outcome = plait("bundle", bundle_file, "-o", tmp_path / "other.plait", "--json")
    data = outcome.data
    built = open_bundle(tmp_path / "other.plait")
    assert (outcome.code, data["path"], data["digest"]) == (0, str(built.path), built.manifest_digest)
    assert data["models"][0]["weights_bytes"] == built.manifest.models[0].weights_bytes
    assert data["all_hot_hbm_bytes"] > data["budget"]["hbm"] == 102_400
    assert outcome.err == f"plait: warning: {data['errors'][0]}\n"
    assert "model 'embed' needs" in outcome.err


def test_weights_that_cannot_stay_as_they_are_stored_are_said_to_be_dense(plait, bundle_file: Path) -> None:
    bundle_file.write_text(bundle_file.read_text().replace("batch: 1", "batch: 1, weights: stored"))
    outcome = plait("bundle", bundle_file)
    assert outcome.code == 0
    assert "warning: model 'embed': its weights are dense; bert stores them in no form that is kept" in outcome.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: [", "is not YAML"),
        ("bundle: x\ntarget: cpu\n", "models: Field required"),
        ("bundle: x\ntarget: tpu\nmodels: {a: {source: bert}}", "unknown target 'tpu'"),
        ("bundle: x\ntarget: cpu\nmodels: {a: {source: nowhere}}", "no model 'nowhere'"),
        ("bundle: x\ntarget: cpu\nbudget: {hbm: lots}\nmodels: {a: {source: bert}}", "budget.hbm"),
        ("bundle: x\ntarget: cpu\nmodels: {a: {source: bert, kv_tokens: 64}}", "is an encoder and has no KV cache"),
        (
            "bundle: x\ntarget: cpu\nmodels: {a: {source: bert, mesh: {tensor: 0}}}",
            "models.a.mesh.tensor: Input should",
        ),
        ("bundle: x\ntarget: cpu\nmodels: {a: {source: bert, mesh: {x: 99, y: 99}}}", "a mesh of 9801 devices is more"),
        ("bundle: x\ntarget: cpu\nmodels: {a: {source: bert, mesh: {pipeline: 9}}}", "9 devices are needed"),
        ("bundle: x\ntarget: cpu\nmodels: {a: {source: bert, mesh: {pipeline: 7}}}", "does not make 7 pipeline stages"),
        ("bundle: x\ntarget: cpu\nmodels: {a: {source: bert}}\nroutes: {r: {models: [b]}}", "'b' is no model of"),
        ("bundle: x\ntarget: cpu\nmodels: {a: {source: bert}}\nroutes: {a: {models: [a]}}", "a model and a route"),
        (
            "bundle: x\ntarget: cpu\nmodels: {a: {source: bert}}\nroutes: {r: {models: [a], policy: any}}",
            "routes.r.policy: Input should be 'cheapest'",
        ),
    ],
    ids=[
        "YAML",
        "field",
        "target",
        "source",
        "bytes",
        "limits",
        "axis",
        "devices",
        "this machine",
        "stages",
        "route",
        "route of a name",
        "policy",
    ],
)
def test_a_wrong_bundle_file_is_one_line_and_leaves_nothing(plait, bundle_file: Path, text: str, says: str) -> None:
    bundle_file.write_text(text)
    assert says in plait("bundle", bundle_file).complaint()
    assert sorted(path.name for path in bundle_file.parent.iterdir()) == ["bert", "small.yaml"]


def test_a_missing_bundle_file_is_one_line(plait, tmp_path: Path) -> None:
    assert "No such file or directory" in plait("bundle", tmp_path / "no.yaml").complaint()
