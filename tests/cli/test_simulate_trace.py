"""`plait simulate trace`: a bundle's and a rack's figures, equal for equal input, and one line for what is wrong."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from plait import load
from plait.runtime.residency import hbm_bytes

GOLDEN = Path(__file__).parents[1] / "golden"
RACK = "bundle: small\ntarget: sn40l-8\nmodels: {chat: {source: llama-3.2-1b, sequence: 512, batch: 4, copies: 3}}\n"
SHORT = ("--input-tokens", 20, "--output-tokens", 8)


@pytest.mark.parametrize("arguments", [[], ["request"], ["trace"]], ids=["simulate", "request", "trace"])
def test_help_is_the_golden_text(plait, arguments: list[str], monkeypatch, request) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = plait("simulate", *arguments, "--help")
    golden = GOLDEN / f"help_{'_'.join(['simulate', *arguments])}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(outcome.out)
    assert (outcome.code, outcome.out) == (0, golden.read_text())


def timeless(data: dict[str, object]) -> dict[str, object]:
    """Returns a report without what depends on this machine's speed."""
    return {name: value for name, value in data.items() if name not in ("wall_seconds", "times_real_time")}


def test_equal_input_gives_equal_figures(plait, tiny_bundle: Path) -> None:
    def run(seed: int) -> dict[str, object]:
        return timeless(
            plait("simulate", "trace", tiny_bundle, "--rate", 50, "--limit", 100, *SHORT, "--seed", seed, "--json").data
        )

    assert run(3) == run(3)
    assert run(3)["ttft_seconds"] != run(4)["ttft_seconds"]


def test_models_that_do_not_fit_together_are_switched(plait, tiny_bundle: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp,model\n" + "".join(f"{number},{'xy'[number % 2]}\n" for number in range(10)))
    models = load(tiny_bundle).manifest.models
    least = max(hbm_bytes([model]) for model in models)
    assert hbm_bytes(models[:2]) > least
    options = ("--trace", trace, *SHORT, "--hbm", least, "--slo", "ttft=60", "--json")
    data = plait("simulate", "trace", tiny_bundle, *options).data
    assert (data["answered"], data["output_tokens"], data["slo"]["attainment"]) == (10, 80, 1.0)
    assert data["switches"] >= 9  # the scheduler learns whose turn is next: its model may be hot before it is asked
    assert data["moved_bytes"].keys() == {"ddr->hbm"}
    assert 0 < data["moved_bytes"]["ddr->hbm"] <= data["switches"] * models[0].moved_bytes  # layers that fit stay
    assert (sum(data["arrivals"].values()), data["arrivals"]["cold"]) == (10, 0)
    assert data["simulated_seconds"] >= 9.0
    slow = plait("simulate", "trace", tiny_bundle, *options, "--link", "1MB").data
    assert slow["queue_switch_seconds"]["p99"] > data["queue_switch_seconds"]["p99"] + 0.3


def test_an_encoder_can_be_asked_and_a_prompt_too_long_fails(plait, tiny_bundle: Path) -> None:
    options = ("--model", "embed", "--model", "assistant", "--rate", 5, "--limit", 10, "--input-tokens", 60)
    data = plait("simulate", "trace", tiny_bundle, *options, "--json").data
    assert {name: each["answered"] for name, each in data["models"].items()} == {"chat": 5, "embed": 5}
    data = plait("simulate", "trace", tiny_bundle, *options, "--scale", 2, "--json").data
    assert data["failures"] == {"HTTP 400 context_length_exceeded": 10}
    data = plait(
        "simulate", "trace", tiny_bundle, *options, "--scale", 2, "--max-input", 30, "--max-output", 9, "--json"
    )
    assert (data.data["answered"], data.data["output_tokens"]) == (10, 45)


def test_a_timeline_has_every_step(plait, tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "time.json"
    outcome = plait(
        "simulate", "trace", tiny_bundle, "--rate", 5, "--limit", 6, *SHORT, "--perfetto", file, "--warm-up"
    )
    assert outcome.code == 0
    assert "latencies of whole answers" in outcome.out
    events = json.loads(file.read_bytes())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} >= {"chat", "other", "steps", "transfers"}
    steps = [event for event in events if event["ph"] == "X" and event["tid"] == 1]
    assert sum(event["name"] == "prefill" for event in steps) >= 6
    ends = sorted((event["ts"], event["ts"] + event["dur"]) for event in steps)
    assert all(end <= begin + 1e-6 for (_, end), (begin, _) in itertools.pairwise(ends))


def test_a_rack_is_planned_and_its_copies_are_asked_in_turn(plait, tmp_path: Path) -> None:
    file = tmp_path / "rack.yaml"
    file.write_text(RACK)
    data = plait("simulate", "trace", file, "--rate", 20, "--limit", 30, *SHORT, "--json").data
    assert sorted(data["models"]) == ["chat-0", "chat-1", "chat-2"]
    assert (data["answered"], data["costs"], data["joules_source"]) == (30, "steps as planned", "modelled")
    assert data["joules"] >= 8 * 350 * data["simulated_seconds"] * 0.999
    assert plait("bundle", file).code == 0
    made = tmp_path / "small.plait"
    again = plait("simulate", "trace", made, "--rate", 20, "--limit", 30, *SHORT, "--json").data
    assert timeless(again) == timeless(data)
    assert "is of target 'sn40l-8'" in plait("simulate", "trace", made, "--rate", 1, "--target", "sn40l").complaint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --trace or --rate"),
        (("--rate", 1, "--trace", "x.csv"), "give --trace or --rate"),
        (("--rate", 0), "--rate is 0: it must be above 0"),
        (("--rate", 1, "--speed", "inf"), "--speed is inf"),
        (("--rate", 1, "--names", 2), "--names is for a trace"),
        (("--trace", "none.csv"), "cannot read trace none.csv"),
        (("--rate", 1, "--model", "nobody"), "tiny has no model 'nobody'; it has: chat, other, embed"),
        (("--rate", 1, "--slo", "itl=1"), "--slo 'itl=1'"),
        (("--rate", 1, "--hbm", "1MiB"), "needs .* of hbm"),
        (("--rate", 1, "--link", "fast"), "'fast'"),
        (("--rate", 1, "--target", "sn40l-8"), "has no link disk->ddr"),
    ],
    ids=["nothing", "both", "rate", "speed", "names", "trace", "model", "slo", "hbm", "link", "target"],
)
def test_what_is_wrong_is_one_line(plait, tiny_bundle: Path, options, message) -> None:
    assert re.search(message, plait("simulate", "trace", tiny_bundle, *options).complaint())


def test_what_is_no_bundle_is_one_line(plait, tmp_path: Path, bundle_file: Path) -> None:
    assert "is not a plait bundle" in plait("simulate", "trace", tmp_path, "--rate", 1).complaint()
    assert "make the bundle with `plait bundle" in plait("simulate", "trace", bundle_file, "--rate", 1).complaint()
