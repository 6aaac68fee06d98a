"""The stages from end to end: what they are told, what they hand on, and what a step is charged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from plait.compiler.configuration import Configuration, Phase
from plait.compiler.pipeline import STAGES, compile_model, configuration_for
from plait.compiler.subject import Weights, read_subject, with_weights
from plait.compiler.target import load_target
from plait.errors import ConfigurationError

CPU = load_target("cpu")


def compile_zoo(name: str, phase: Phase = "decode", weights: Weights = "stored", batch: int = 1, sequence: int = 512):
    config = with_weights(read_subject(name, base=Path()).config, weights)
    configuration = configuration_for(config, phase=phase, batch=batch, sequence=sequence)
    return compile_model(config, configuration, dtype="bfloat16", target=CPU, stop_after="partition")


def test_stages_run_in_order_and_stop_where_told() -> None:
    heard = []
    compilation = compile_model(
        tiny.LLAMA_CONFIG,
        Configuration("decode", 1, 1, 64),
        dtype="float32",
        target=CPU,
        stop_after="plan_memory",
        progress=heard.append,
    )
    assert tuple(heard) == STAGES[:2]
    assert compilation.memory is not None
    assert compilation.cost is compilation.partition is compilation.program is None


@pytest.mark.parametrize(
    ("phase", "new_tokens", "expected"),
    [
        ("decode", None, Configuration("decode", 2, 1, 64)),
        ("prefill", None, Configuration("prefill", 2, 64, 64)),
        ("prefill", 16, Configuration("prefill", 2, 16, 64)),
        ("train", None, Configuration("train", 2, 64, 64)),
    ],
    ids=["decode", "prefill", "chunk", "train"],
)
def test_a_phase_and_a_length_mean_a_configuration(phase, new_tokens, expected: Configuration) -> None:
    found = configuration_for(tiny.LLAMA_CONFIG, phase=phase, batch=2, sequence=64, new_tokens=new_tokens)
    assert found == expected


def test_an_encoder_has_one_phase() -> None:
    assert configuration_for(tiny.BERT_CONFIG, phase="embed", batch=1, sequence=8).id == "embed-b1-t8-c8"
    with pytest.raises(ConfigurationError, match="a bert model has no phase 'train'; it has embed"):
        configuration_for(tiny.BERT_CONFIG, phase="train", batch=1, sequence=8)


def test_a_mixture_is_charged_the_experts_that_it_reads() -> None:
    one, many = compile_zoo("mixtral-8x7b"), compile_zoo("mixtral-8x7b", batch=16)
    assert one.cost is not None
    assert many.cost is not None
    rate = CPU.tiers["hbm"].bandwidth_bytes_per_s
    assert one.cost.memory_seconds == pytest.approx(2 * one.sizes.active_parameters / rate, rel=0.03)
    assert many.cost.memory_seconds == pytest.approx(many.sizes.weight_bytes / rate, rel=0.03)


def test_stored_weights_move_fewer_bytes_and_compute_at_the_same_peak() -> None:
    dense, stored = compile_zoo("llama-3.2-1b"), compile_zoo("llama-3.2-1b", weights="q4_0")
    assert dense.cost is not None
    assert stored.cost is not None
    assert stored.cost.compute_seconds == pytest.approx(dense.cost.compute_seconds, rel=1e-3)
    assert stored.cost.memory_seconds < 0.5 * dense.cost.memory_seconds


def test_a_training_step_writes_what_it_updates() -> None:
    compilation = compile_zoo("smollm2-360m", phase="train", batch=1, sequence=64)
    assert compilation.cost is not None
    moved = 2 * (2 + 8) * compilation.sizes.parameters  # bf16 parameters and two f32 moments, read and written
    assert compilation.cost.memory_seconds == pytest.approx(moved / CPU.tiers["hbm"].bandwidth_bytes_per_s, rel=0.01)


def test_the_plan_as_json_says_what_a_token_costs() -> None:
    compilation = compile_zoo("smollm2-360m", phase="prefill", batch=3, sequence=128)
    model = json.loads(compilation.to_json())["model"]
    graph = compilation.traced.graph
    assert model["per_token"]["flops"] == graph.product_flops / (3 * 128)
    assert model["per_token"]["attention_flops"] == 4 * 128 * 15 * 64 * 32
    assert graph.flops > graph.product_flops
