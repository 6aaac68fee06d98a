from __future__ import annotations

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
    assert facts["weights"].strip() == "216.6 KiB"  # 110,912 parameters
    assert facts["KV cache"].strip() == "32.0 KiB"
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
        (["--phase", "embed"], "a llama model has no phase 'embed'"),
        (["--sequence", "100000"], "the model has 512 positions"),
        (["--batch", "0"], "batch is at least 1"),
        (["--phase", "prefill", "--sequence", "8", "--new-tokens", "9"], "new_tokens 9 must be between 1 and"),
        (["--target", "tpu"], "unknown target 'tpu'"),
        (["--stop-after", "trace", "-o", "/dev/null/plan"], "cannot write /dev/null/plan: Not a directory"),
    ],
    ids=["phase", "sequence", "batch", "new tokens", "target", "output"],
)
def test_what_cannot_be_compiled_is_one_line(plait, llama: Path, options: list[str], says: str) -> None:
    assert says in plait("compile", llama, *options).complaint()


def test_an_unknown_model_is_one_line(plait) -> None:
    assert "no model 'nowhere'" in plait("compile", "nowhere").complaint()
