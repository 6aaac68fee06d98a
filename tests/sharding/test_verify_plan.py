"""Plans run on virtual devices: as they are, as narrow twins, in stages; and what a wrong one looks like."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from plait.compiler.configuration import Configuration, Phase
from plait.compiler.mesh import Mesh
from plait.compiler.partition import reshard
from plait.compiler.pipeline import Compilation, Parallelism, compile_model, configuration_for
from plait.compiler.subject import read_subject
from plait.compiler.target import load_target
from plait.compiler.train import Training
from plait.compiler.verify.narrow import narrowed
from plait.compiler.verify.transfer import kept_layers
from plait.compiler.verify.twin import verify_plan
from plait.models.config import DecoderConfig
from plait.models.family import build
from plait.models.zoo import catalog

RACK = load_target("sn40l-16")


def planned(
    source: str | DecoderConfig, phase: Phase, batch: int = 1, sequence: int = 512, dtype: str = "bfloat16", **wanted
) -> Compilation:
    model = read_subject(source, base=Path()).config if isinstance(source, str) else source
    return compile_model(
        model,
        configuration_for(model, phase=phase, batch=batch, sequence=sequence),
        dtype=dtype,
        target=RACK,
        training=Training("sgd") if phase == "train" else None,
        parallelism=Parallelism(**{"num_devices": 8, **wanted}),
        stop_after="partition",
    )


TWINS: dict[str, tuple[str, Phase, int, dict]] = {
    "dense, decode": ("llama-3.1-70b", "decode", 1, {}),
    "experts, prefill": ("mixtral-8x7b", "prefill", 1, {}),
    "experts stored in 4 bits": ("gpt-oss-20b", "decode", 16, {}),
    "stages": ("llama-3.2-3b", "decode", 4, {"num_stages": 4}),
}


@pytest.mark.parametrize("case", TWINS, ids=list(TWINS))
def test_a_large_plan_is_verified_as_a_narrow_twin(case) -> None:
    name, phase, batch, wanted = TWINS[case]
    compilation = planned(name, phase, batch, **wanted)
    found = verify_plan(compilation)
    assert found.is_twin
    assert found.is_verified
    assert found.seen.num_collectives > 0
    assert len(found.layers) < compilation.model.num_layers
    assert found.dtype == "float32"


def test_training_in_16_bits_is_run_in_16_bits() -> None:
    pins = (("layers.*.mlp.up.weight", "x,y"),)
    compilation = planned(tiny.LLAMA_CONFIG, "train", 8, 64, mesh=Mesh(("x", "y"), (2, 2)), pins=pins)
    found = verify_plan(compilation, is_twin=True)
    assert (found.is_twin, found.is_verified, found.dtype) == (True, True, "bfloat16")
    assert found.seen.num_collectives > 0


def test_a_small_plan_is_run_itself_in_f32() -> None:
    compilation = planned("minilm-l6", "embed", 4, 64, num_devices=4)
    found = verify_plan(compilation)
    assert (found.is_twin, found.dtype, found.is_verified) == (False, "float32", True)
    assert found.layers == tuple(range(6))


def test_what_is_sent_wrong_is_found(monkeypatch) -> None:
    apply = reshard.apply
    monkeypatch.setattr(reshard, "apply", lambda array, steps, mesh: 1.01 * apply(array, steps, mesh))
    found = verify_plan(planned("llama-3.2-1b", "decode"))
    assert found.seen.agrees
    assert not found.is_verified
    assert found.seen.difference > 1e-3
    assert "decoder.py:" in found.wrong_result or "llama.py:" in found.wrong_result


def test_of_repeated_layers_two_of_each_kind_and_stage_are_kept() -> None:
    compilation = planned("gemma-3-27b", "decode")
    plan = compilation.partition
    assert plan is not None
    end = len(compilation.traced.graph.operations)
    assert kept_layers(compilation.traced, plan.sharding, (0, end)) == (*range(12), 60, 61)  # every sixth sees all
    staged = kept_layers(compilation.traced, plan.sharding, (0, end // 2, end))
    assert 14 < len(staged) < 40


@pytest.mark.parametrize("name", catalog.names())
def test_a_narrow_model_divides_over_as_many_devices(name: str) -> None:
    model = read_subject(name, base=Path()).config
    assert isinstance(model, DecoderConfig)
    wide = Configuration("prefill", 4, 512, 2048)
    for some in (replace(model, num_layers=4), replace(model, num_layers=4).dense):
        small, shapes = list(narrowed(some, wide, range(4), 16))[-1]
        assert (shapes.batch, shapes.new_tokens, shapes.context) == (4, 16, 48)
        new = build(small, "float32").parameters
        for path, old in build(some, "float32").parameters.items():
            for size, narrow in zip(old.shape, new[path].shape, strict=True):
                assert (size == 1) == (narrow == 1)
                assert narrow <= size
                assert narrow % math.gcd(size, 16) == 0, (path, old.shape, new[path].shape)
        assert sum(math.prod(value.shape) for value in new.values()) < 4e8
