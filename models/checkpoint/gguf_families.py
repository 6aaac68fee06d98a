"""What each architecture of GGUF is, beyond what metadata and the names of tensors say.

Comes in: a file's description and the configuration that they give whatever the architecture. Goes out: that of the
architecture. Where llama.cpp computes otherwise than the published model (whole pairs in gpt-oss's YaRN, no sliding
window in Phi-3, the best two experts of a group in DeepSeek-V2), the model is followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ...errors import CheckpointError
from ..config import DecoderConfig, LatentAttention, Rope
from .contents import refuse, validated
from .gguf_fields import GGUFDescription, LatentFields

__all__ = ["FAMILIES"]


def _llama(file: GGUFDescription, config: DecoderConfig) -> DecoderConfig:
    """Llama, Mistral, Mixtral, Qwen: the weights of the chosen experts sum to 1, a window is that of all layers."""
    values = file.values
    refuse(
        file.path, {"keys and values of different sizes": values.value_length not in (None, config.head_size)}, "equal"
    )
    return replace(
        config,
        architecture="mixtral" if config.experts and config.architecture == "llama" else config.architecture,
        window=values.window,
        sliding_layers=tuple(file.layers) if values.window else (),
        experts=config.experts and replace(config.experts, normalizes=True),
        logit_cap=values.logit_cap or 0.0,
    )


def _smollm3(file: GGUFDescription, config: DecoderConfig) -> DecoderConfig:
    return replace(_llama(file, config), ropeless_layers=tuple(file.layers[3::4]))


def _sliding(file: GGUFDescription, config: DecoderConfig, *, every: int, window: int = 0) -> DecoderConfig:
    """Lets all but every so manieth layer slide, or those that the file says."""
    size, pattern = file.values.window or window, file.values.window_pattern or every
    if isinstance(pattern, list):
        layers = tuple(layer for layer, slides in zip(file.layers, pattern, strict=False) if slides)
    else:
        layers = tuple(layer for layer in file.layers if layer % pattern < pattern - 1)
    return replace(config, window=size, sliding_layers=layers if size else ())


def _gemma(file: GGUFDescription, config: DecoderConfig) -> DecoderConfig:
    """Gemma; the 1 that its norms add to their weights is in the weights of the file."""
    return replace(
        _llama(file, config),
        activation="gelu_tanh",
        embedding_scale=config.hidden_size**0.5,
        window=0,
        sliding_layers=(),
    )


def _gemma2(file: GGUFDescription, config: DecoderConfig) -> DecoderConfig:
    values, gemma = file.values, _sliding(file, _gemma(file, config), every=2, window=4096)
    return replace(
        gemma,
        score_cap=values.score_cap or 50.0,
        logit_cap=values.logit_cap or 30.0,
        score_scale=_gemma_scale(config, largest=46),
    )


def _gemma3(file: GGUFDescription, config: DecoderConfig) -> DecoderConfig:
    return replace(
        _sliding(file, _gemma(file, config), every=6),
        sliding_rope=Rope(theta=file.values.sliding_theta or 10_000.0),
        score_scale=_gemma_scale(config, largest=62),
    )


def _gemma_scale(config: DecoderConfig, *, largest: int) -> float:
    """Returns the factor on scores; the models of 27 billion parameters, known by their layers, have another."""
    size = config.hidden_size // config.num_heads if config.num_layers == largest else config.head_size
    return size**-0.5


def _gpt_oss(file: GGUFDescription, config: DecoderConfig) -> DecoderConfig:
    if config.experts is None or config.rope is None:
        raise CheckpointError(f"{file.path}: gpt-oss.expert_count: Field required")
    return replace(
        _sliding(file, config, every=2),
        rope=replace(config.rope, truncates=False),
        experts=replace(config.experts, normalizes=True, activation="clamped_swiglu"),
    )


def _bloom(file: GGUFDescription, config: DecoderConfig) -> DecoderConfig:
    return replace(config, rope=None, has_alibi=True, activation="gelu_tanh", is_gated=False)


def _falcon(file: GGUFDescription, config: DecoderConfig) -> DecoderConfig:
    has_two_norms = "blk.0.attn_norm_2.weight" in file.files.names
    residual = "parallel" if has_two_norms else "parallel_shared_norm"
    return replace(config, activation="gelu", is_gated=False, residual=residual)


def _deepseek2(file: GGUFDescription, config: DecoderConfig) -> DecoderConfig:
    """DeepSeek-V2, V3 and R1; the fields describe the cache as that of one head, or in older files all heads."""
    own = validated(LatentFields, file.fields, file.path)
    key_size = own.key_size or config.head_size
    value_size = own.value_size or file.values.value_length or 0
    if key_size <= own.rope_size or value_size <= 0:
        raise CheckpointError(
            f"{file.path}: heads of {key_size} with {own.rope_size} that turn and values of {value_size} make no sense"
        )
    rope = replace(config.rope or Rope(), size=0, is_interleaved=True)
    stretch = 1.0 + own.log_multiplier * math.log(max(rope.factor, 1.0))  # the field is a tenth of `mscale_all_dim`
    is_stretched = rope.scaling == "yarn" and own.log_multiplier > 0
    return replace(
        config,
        architecture="deepseek_v3" if config.experts and config.experts.score == "sigmoid" else "deepseek_v2",
        num_kv_heads=config.num_heads,
        head_size=key_size,
        rope=replace(rope, magnitude=1.0) if is_stretched else rope,
        score_scale=key_size**-0.5 * stretch**2 if is_stretched else 0.0,
        has_qkv_bias="blk.0.attn_q_a.bias" in file.files.names,
        latent=LatentAttention(
            query_rank=own.query_rank,
            latent_size=own.latent_size,
            rope_size=own.rope_size,
            nope_size=key_size - own.rope_size,
            value_size=value_size,
        ),
    )


FAMILIES: dict[str, Callable[[GGUFDescription, DecoderConfig], DecoderConfig]] = {
    "llama": _llama,
    "smollm3": _smollm3,
    "qwen2": _llama,
    "qwen3": _llama,
    "qwen3moe": _llama,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _llama,
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
    "bloom": _bloom,
    "falcon": _falcon,
}
