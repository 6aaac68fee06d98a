"""Small decoders of every kind, with random weights."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from plait.models.config import DecoderConfig, Experts, LatentAttention, ModelConfig, Rope
from plait.models.family import build
from plait.models.quantization import quantize

SMALL = DecoderConfig(
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=96,
    vocab_size=128,
    max_positions=512,
    tie_embeddings=True,
)
MIXTURE = Experts(num_experts=8, experts_per_token=2, intermediate_size=32)
VARIANTS = {
    "sliding, sinks": replace(SMALL, window=40, sliding_layers=(0,), has_sinks=True),
    "capped, unit offset": replace(SMALL, score_cap=3.0, logit_cap=5.0, norm="rms_unit_offset", has_post_norms=True),
    "alibi, layer norms": replace(SMALL, rope=None, has_alibi=True, norm="layer", is_gated=False, activation="gelu"),
    "experts": replace(SMALL, experts=replace(MIXTURE, shared_intermediate_size=48, has_selection_bias=True)),
    "experts with biases": replace(
        SMALL,
        experts=replace(MIXTURE, has_bias=True, has_router_bias=True, activation="clamped_swiglu"),
    ),
    "latent": replace(SMALL, latent=LatentAttention(None, 32, 8, 16, 24), rope=Rope(is_interleaved=True)),
    "mxfp4 experts": replace(SMALL, experts=MIXTURE, stored_form="mxfp4", stored_parts=("experts",)),
    "fp8": replace(
        SMALL,
        latent=LatentAttention(32, 32, 8, 16, 24),
        experts=replace(MIXTURE, dense_layers=(0,), score="sigmoid", num_groups=4, groups_per_token=2),
        stored_form="fp8",
        stored_parts=("attention", "mlp", "experts"),
    ),
    "q8_0": replace(SMALL, stored_form="q8_0", stored_parts=("attention", "mlp")),
    "q4_0": replace(SMALL, stored_form="q4_0", stored_parts=("attention", "mlp")),
}


def random_parameters(config: ModelConfig, dtype: str, seed: int = 0) -> dict[str, jax.Array]:
    """Returns seeded weights; norms around one; those of stored forms quantized."""
    generator = np.random.default_rng(seed)
    stored = build(config, dtype).parameters
    parameters: dict[str, jax.Array] = {}
    for name, leaf in build(config.dense, dtype).parameters.items():
        values = generator.standard_normal(leaf.shape) * 0.1 + name.endswith("norm.weight")
        scales = f"{name.removesuffix('weight')}scales"
        if scales in stored:
            parameters[name], parameters[scales] = map(jnp.asarray, quantize(values, config.stored_form))  # type: ignore[union-attr]
        else:
            parameters[name] = jnp.asarray(values, dtype)
    return parameters


def empty_cache(config: DecoderConfig, context: int, dtype: str) -> list[tuple[jax.Array, jax.Array]]:
    """Returns a dense cache of one sequence."""
    key, value = (jnp.zeros((1, context, *shape), dtype) for shape in config.cache_shapes)
    return [(key, value)] * config.num_layers
