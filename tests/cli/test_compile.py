from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from plait.compiler.graph import Graph


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_llama(tmp_path_factory.mktemp("llama"))


def test_the_summary_says_what_it_computes_needs_and_takes(plait, llama: Path) -> None:
    outcome = plait("compile", llama, "--batch", "2", "--sequence", "64", "--dtype", "bf16")
    assert (outcome.code, outcome.err) == (0, "")
    facts = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    assert facts["configuration"].strip() == "decode-b2-t1-c64 bf16 on cpu"
    assert facts["parameters"].strip() == "110.9k, 110.9k active"
    assert facts["FLOPs a token"].strip() == "217 kFLOP in products, 15.1% of it attention"
    assert facts["weights"].strip() == "216.6 KiB, a step reads 180.9 KiB"  # 2 of 288 rows of the embedding
    assert facts["KV cache"].strip() == "32.0 KiB, 256 B a token"
    assert "program" not in facts
    assert "bound by launch" in facts["step"]
    assert "optimal" in facts["partition"]
    assert "gap 0.0%" in facts["partition"]


def test_plan_graph_and_program_are_saved(plait, llama: Path, tmp_path: Path) -> None:
    options = ["--phase", "prefill", "--sequence", "64", "--new-tokens", "16"]
    data = plait("compile", llama, *options, "-o", tmp_path / "out", "--graph", "--json").data
    assert data["configuration"]["id"] == "prefill-b1-t16-c64"
    assert data["partition"]["status"] == "optimal"
    assert len(data["operations"]) == data["graph"]["operations"]
    assert {Path(file).name for file in data["files"]} == {
        "plan.json",
        "graph.json",
        "graph.txt",
        "program.stablehlo",
    }
    assert Graph.from_json((tmp_path / "out" / "graph.json").read_bytes()).flops == data["graph"]["flops"]


@pytest.mark.parametrize("form", ["directory", "file"])
def test_a_configuration_without_weights_is_enough(plait, llama: Path, tmp_path: Path, form: str) -> None:
    fields = json.loads((llama / "config.json").read_text()) | {"dtype": "bfloat16"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(fields))
    data = plait("compile", file if form == "file" else tmp_path, "--sequence", "64", "--json").data
    assert data["model"]["parameters"] == 110_912
    assert data["dtype"] == "bfloat16"


def test_an_entry_of_the_zoo_is_planned_by_its_name(plait) -> None:
    data = plait("compile", "gpt-oss-20b", "--phase", "decode", "--sequence", "512", "--json").data
    model = data["model"]
    assert model["parameters"] == 20_914_757_184
    assert model["active_parameters"] == 4_187_440_704
    assert model["weight_bytes"] == data["graph"]["parameter_bytes"] == data["memory"]["parameter_bytes"]
    assert model["kv_bytes_per_token"] == 24 * 2 * 8 * 64 * 2
    assert model["per_token"]["flops"] == data["graph"]["product_flops"]
    assert 0 < model["per_token"]["attention_flops"] < model["per_token"]["flops"]
    assert data["graph"]["parameter_bytes_read"] < 0.3 * model["weight_bytes"]  # 4 of 32 experts
    assert (data["dtype"], data["training"], data["program_bytes"]) == ("bfloat16", None, None)


@pytest.mark.parametrize(("weights", "bytes_per_weight"), [("dense", 2), ("q8_0", 1 + 2 / 32), ("q4_0", 0.5 + 2 / 32)])
def test_weights_are_planned_in_the_form_that_is_asked_for(plait, weights: str, bytes_per_weight: float) -> None:
    data = plait("compile", "smollm2-360m", "--weights", weights, "--stop-after", "trace", "--json").data
    dense = 49152 * 960 + (2 * 32 + 1) * 960  # the embedding and the norms stay as they are
    expected = 2 * dense + bytes_per_weight * (361_821_120 - dense)
    assert data["model"]["weight_bytes"] == expected
    assert data["model"]["parameters"] == 361_821_120


def test_training_is_planned_with_its_optimizer(plait, llama: Path) -> None:
    options = ["--phase", "train", "--batch", "2", "--sequence", "16"]
    outcome = plait("compile", llama, *options, "--optimizer", "lion")
    facts = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    assert facts["configuration"].strip() == "train-b2-t16-c16 f32 on cpu"
    assert facts["optimizer"].strip() == "lion, 433.3 KiB of state"  # one f32 moment, and counts
    data = plait("compile", llama, *options, "--remat", "--json").data
    assert data["training"] == {"optimizer": "adamw", "learning_rate": 0.0001, "rematerializes": True}
    assert data["memory"]["rewritten_bytes"] == data["memory"]["parameter_bytes"] + data["memory"]["state_bytes"]
    assert data["memory"]["output_bytes"] == 4


def test_it_stops_where_it_is_told_to(plait, llama: Path) -> None:
    data = plait("compile", llama, "--sequence", "64", "--stop-after", "trace", "--json").data
    assert data["memory"] is data["cost"] is data["partition"] is data["program_bytes"] is None
    facts = plait("compile", llama, "--sequence", "64", "--stop-after", "plan_memory", "--graph").out
    assert "llama.py:" in facts
    assert "temporaries" in facts
    assert "partition" not in facts


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--phase", "embed"], "a decoder model has no phase 'embed'"),
        (["--sequence", "100000"], "the model has 512 positions"),
        (["--batch", "0"], "batch is at least 1"),
        (["--phase", "prefill", "--sequence", "8", "--new-tokens", "9"], "new_tokens 9 must be between 1 and"),
        (["--phase", "decode", "--new-tokens", "9"], "new_tokens 9 is for prefill"),
        (["--phase", "train", "--weights", "q8_0"], "weights stored as q8_0 cannot be trained"),
        (["--remat"], "--optimizer and --remat are for phase train, not decode"),
        (["--target", "tpu"], "unknown target 'tpu'"),
        (["--stop-after", "trace", "-o", "/dev/null/plan"], "cannot write /dev/null/plan: Not a directory"),
    ],
    ids=["phase", "sequence", "batch", "new tokens", "decode", "stored", "remat", "target", "output"],
)
def test_what_cannot_be_compiled_is_one_line(plait, llama: Path, options: list[str], says: str) -> None:
    assert says in plait("compile", llama, *options).complaint()


def test_an_unknown_model_is_one_line_with_the_names_and_the_closest(plait) -> None:
    complaint = plait("compile", "deepseek-r2").complaint()
    assert "no model 'deepseek-r2': did you mean deepseek-r1?" in complaint
    assert all(name in complaint for name in ("smollm2-135m", "bloom-176b", "hf:ORG/NAME"))
    assert "no model 'nowhere': it is no path; the models" in plait("compile", "nowhere").complaint()


MESH = ("--phase", "prefill", "--batch", "2", "--sequence", "64", "--mesh", "2x2", "--target", "sn40l-16")


def test_a_divided_step_is_reported_by_component_with_its_memory_and_what_was_tried(plait, llama: Path) -> None:
    pins = ("--pin", "layers.*.mlp.down.weight=-,x*y")
    outcome = plait("compile", llama, *MESH, *pins, "--budget", "1GiB")
    assert (outcome.code, outcome.err) == (0, "")
    lines = {line.split("  ")[0].strip() or line.strip().split("  ")[0]: line for line in outcome.out.splitlines()}
    assert "[-, x*y]" in lines["layers.*.mlp.down.weight"]
    assert "1 all_gather" in lines["layers.*/mlp"]
    assert "the fullest device holds, of 1.0 GiB" in outcome.out
    assert "optimal" in lines["1 x (x=2 x y=2)"]


def test_a_step_of_one_device_has_no_tables(plait, llama: Path) -> None:
    assert "tried" not in plait("compile", llama, "--sequence", "64").out


@pytest.mark.parametrize("options", [(), ("--budget", "64MiB"), ("--pin", "layers.*.mlp.up.weight=whole")], ids=str)
def test_the_exported_problem_has_the_plan_s_cost(plait, llama: Path, tmp_path: Path, options) -> None:
    file = tmp_path / "problem.json.gz"
    data = plait("compile", llama, *MESH, *options, "--export-problem", file, "--json").data
    solved = plait("solve", "sharding", file, "--time-limit", "5", "--json").data
    assert solved["status"] == data["partition"]["status"] == "optimal"
    assert solved["verified"]
    assert solved["cost"] == pytest.approx(data["partition"]["cost"], rel=1e-9)


def test_no_program_of_one_device_is_made_for_a_plan_over_several(plait, llama: Path, tmp_path: Path) -> None:
    data = plait("compile", llama, "--sequence", "64", "--mesh", "2", "-o", tmp_path / "plan", "--json").data
    assert {Path(file).name for file in data["files"]} == {"plan.json", "graph.json", "graph.txt"}
    complaint = plait("compile", llama, "--target", "sn40l-16", "--stop-after", "lower").complaint()
    assert "target 'sn40l-16' is for plans only" in complaint
