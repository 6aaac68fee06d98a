"""Every family in every phase on virtual devices: sharded programs against unsharded ones, and their collectives."""

from __future__ import annotations

from dataclasses import replace

import jax
import pytest

from plait.compiler.configuration import Configuration
from plait.compiler.mesh import Mesh
from plait.compiler.partition.search import partition
from plait.compiler.target import Compute, Network, Target, Tier
from plait.compiler.trace import trace_model
from plait.compiler.train import Training, trace_training
from plait.compiler.verify.inputs import random_inputs
from plait.compiler.verify.partition import verify_sharding
from plait.models.config import DecoderConfig, EncoderConfig, Experts, LatentAttention

_DENSE = DecoderConfig(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    intermediate_size=64,
    vocab_size=64,
    max_positions=64,
)
FAMILIES = {
    "llama": _DENSE,
    "gemma": replace(
        _DENSE,
        norm="rms_unit_offset",
        activation="gelu_tanh",
        has_post_norms=True,
        score_cap=50.0,
        window=8,
        sliding_layers=(0,),
        embedding_scale=5.0,
        logit_cap=30.0,
        tie_embeddings=True,
    ),
    "qwen3": replace(_DENSE, has_qk_norm=True, has_qkv_bias=True),
    "bloom": replace(
        _DENSE,
        norm="layer",
        has_alibi=True,
        rope=None,
        num_kv_heads=4,
        is_gated=False,
        has_mlp_bias=True,
        has_qkv_bias=True,
        has_output_bias=True,
        has_embedding_norm=True,
        activation="gelu_tanh",
    ),
    "falcon": replace(_DENSE, norm="layer", residual="parallel_shared_norm", is_gated=False, activation="gelu"),
    "mixtral": replace(_DENSE, experts=Experts(num_experts=4, experts_per_token=2, intermediate_size=32)),
    "gpt_oss": replace(
        _DENSE,
        has_sinks=True,
        has_qkv_bias=True,
        has_output_bias=True,
        experts=Experts(
            num_experts=4,
            experts_per_token=2,
            intermediate_size=32,
            has_bias=True,
            has_router_bias=True,
            activation="clamped_swiglu",
        ),
    ),
    "deepseek": replace(
        _DENSE,
        num_kv_heads=4,
        latent=LatentAttention(query_rank=16, latent_size=16, rope_size=8, nope_size=8, value_size=8),
        experts=Experts(
            num_experts=4,
            experts_per_token=2,
            intermediate_size=32,
            shared_intermediate_size=32,
            score="sigmoid",
            has_selection_bias=True,
        ),
    ),
    "bert": EncoderConfig(
        num_layers=2, hidden_size=32, num_heads=4, intermediate_size=64, vocab_size=64, max_positions=64
    ),
}
NETWORK = Network(latency_seconds=1e-7, bandwidth_bytes_per_s=1e9)
TARGET = Target(
    name="test",
    description="a slow device with a fast network, so that small models are divided",
    kind="tiered",
    num_devices=8,
    compute=Compute({"f32": 1e9}),
    tiers={"hbm": Tier(1 << 34, 1e9)},
    links={},
    source="made up",
    network=NETWORK,
)
MESHES = {"2": (2,), "4": (4,), "2x4": (2, 4), "2x2x2": (2, 2, 2)}
LIMITS = {"float64": 1e-9, "float32": 1e-5}


def traced_case(config, phase, dtype):
    if phase == "train":
        return trace_training(config, Configuration("train", 4, 16, 16), dtype, Training())
    return trace_model(config, Configuration(phase, 4, 1 if phase == "decode" else 16, 16), dtype)


CASES = [
    (family, phase)
    for family, config in FAMILIES.items()
    for phase in (("prefill", "decode", "train") if isinstance(config, DecoderConfig) else ("embed",))
]


# Each case on one mesh, in turn, and every mesh in one family; `make bench` runs them all.
MATRIX = [
    (family, phase, mesh)
    for number, (family, phase) in enumerate(CASES)
    for place, mesh in enumerate(MESHES)
    if place == number % len(MESHES) or (family, phase) == ("llama", "decode")
]


@pytest.mark.parametrize(("family", "phase", "mesh"), MATRIX, ids=["-".join(case) for case in MATRIX])
def test_a_sharded_step_computes_and_sends_what_its_plan_says(family, phase, mesh, sharding_table):
    verify_case(family, phase, MESHES[mesh], "float32" if mesh == "4" else "float64", sharding_table)


def verify_case(family, phase, mesh, dtype, add_row):
    """Plans one case, runs it on virtual devices, and compares results and collectives."""
    with jax.enable_x64(dtype == "float64"):
        traced = traced_case(FAMILIES[family], phase, dtype)
        wanted = Mesh(("x", "y", "z")[: len(mesh)], mesh)
        plan = partition(traced, TARGET, dtype=dtype, mesh=wanted, time_limit_seconds=5)
        seen = verify_sharding(traced, plan.sharding, random_inputs(traced.graph), NETWORK)
    add_row(family, phase, "x".join(map(str, mesh)), dtype, seen.difference, seen.num_collectives)
    assert seen.smallest > 0  # no result is all zeros: nothing would be compared
    assert seen.predicted == seen.compiled
    assert seen.difference <= LIMITS[dtype]
    assert plan.lower_bound <= plan.cost
