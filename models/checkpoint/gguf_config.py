"""The configuration of a model from the metadata of its GGUF file, by architecture.

Comes in: a file's metadata and its tensors. Goes out: a `DecoderConfig`. What the presence of a tensor says (biases,
norms, tied embeddings, which layers have experts) is read off the names; the rest is metadata, and what that leaves
to the architecture is written down here. Where llama.cpp computes otherwise than the published model (whole pairs in
gpt-oss's YaRN, no sliding window in Phi-3, the best two experts of a group in DeepSeek-V2), the model is followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, Field

from ...errors import CheckpointError, UnsupportedModelError
from ..config import DecoderConfig, Experts, LatentAttention, Rope
from .contents import refuse, validated
from .gguf_reader import GGUFFiles
from .gguf_rope import Factor, Size, rope_from_gguf, with_frequency_factors

__all__ = ["architecture_of", "config_from_gguf"]

_PUBLISHED = {"gpt-oss": "gpt_oss", "qwen3moe": "qwen3_moe"}  # families that GGUF calls otherwise
_SIGMOID = 2  # of `expert_gating_func`; 1 is a softmax over all experts, 3 over the chosen ones, which is the same
_GATING = (None, 1, _SIGMOID, 3)

# Fields that change what a model computes in ways that no supported architecture does.
_ALTERING = (
    "attention.clamp_kqv",
    "attention.scale",
    "attention.temperature_scale",
    "embedding_scale",
    "expert_group_scale",
    "logit_scale",
    "pooling_type",
    "residual_scale",
    "rope.scaling.alpha",
    "router_logit_softcapping",
    "swiglu_clamp_exp",
)


class _General(BaseModel):
    architecture: str = Field(alias="general.architecture")


class _Fields(BaseModel):
    num_blocks: Size = Field(alias="block_count")
    num_predicting_blocks: int = Field(0, alias="nextn_predict_layers", ge=0)  # the last ones, which nothing needs
    max_positions: Size = Field(alias="context_length")
    hidden_size: Size = Field(alias="embedding_length")
    intermediate_size: Size | None = Field(None, alias="feed_forward_length")
    vocab_size: Size | None = None
    num_heads: Size = Field(alias="attention.head_count")
    num_kv_heads: Size | None = Field(None, alias="attention.head_count_kv")
    key_length: Size | None = Field(None, alias="attention.key_length")
    value_length: Size | None = Field(None, alias="attention.value_length")
    rms_epsilon: Factor | None = Field(None, alias="attention.layer_norm_rms_epsilon")
    layer_epsilon: Factor | None = Field(None, alias="attention.layer_norm_epsilon")
    window: int = Field(0, alias="attention.sliding_window", ge=0, lt=1 << 31)
    window_pattern: Size | list[bool] | None = Field(None, alias="attention.sliding_window_pattern")
    sliding_theta: Factor | None = Field(None, alias="rope.freq_base_swa", gt=1)
    score_cap: Factor | None = Field(None, alias="attn_logit_softcapping")
    logit_cap: Factor | None = Field(None, alias="final_logit_softcapping")

    @property
    def num_layers(self) -> int:
        return self.num_blocks - self.num_predicting_blocks

    @property
    def head_size(self) -> int:
        return self.key_length or self.hidden_size // self.num_heads


class _ExpertFields(BaseModel):
    num_experts: Size = Field(alias="expert_count", lt=1 << 16)
    per_token: Size = Field(alias="expert_used_count")
    intermediate_size: Size | None = Field(None, alias="expert_feed_forward_length")
    num_shared: int = Field(0, alias="expert_shared_count", ge=0, lt=1 << 16)
    scale: float = Field(0.0, alias="expert_weights_scale", ge=0, allow_inf_nan=False)
    normalizes: bool = Field(False, alias="expert_weights_norm")
    gating: int | None = Field(None, alias="expert_gating_func")
    num_groups: int = Field(0, alias="expert_group_count", ge=0, lt=1 << 16)
    groups_per_token: int = Field(0, alias="expert_group_used_count", ge=0)


class _LatentFields(BaseModel):
    query_rank: Size | None = Field(None, alias="attention.q_lora_rank")
    latent_size: Size = Field(alias="attention.kv_lora_rank")
    rope_size: Size = Field(alias="rope.dimension_count")
    key_size: Size | None = Field(None, alias="attention.key_length_mla")  # older files have them as the plain lengths
    value_size: Size | None = Field(None, alias="attention.value_length_mla")
    log_multiplier: float = Field(0.0, alias="rope.scaling.yarn_log_multiplier", ge=0, le=10)


@dataclass(frozen=True)
class _File:
    """What the configuration is made from."""

    path: Path
    architecture: str
    fields: Mapping[str, object]  # those of the architecture, its name taken off
    values: _Fields
    files: GGUFFiles

    @property
    def layers(self) -> range:
        return range(self.values.num_layers)


def config_from_gguf(path: Path, metadata: Mapping[str, object], files: GGUFFiles, *, num_tokens: int) -> DecoderConfig:
    """Returns the configuration of a GGUF file's model, its weights dense.

    Args:
        path: The file, as messages name it.
        metadata: All of it.
        files: Its tensors; only frequency factors are read.
        num_tokens: Of its tokenizer; the size of the vocabulary, if no field says so.

    Raises:
        UnsupportedModelError: if the architecture or something about it is not supported.
        CheckpointError: if a field is missing or has no sensible value.
    """
    architecture = architecture_of(path, metadata)
    prefix = f"{architecture}."
    fields = {name.removeprefix(prefix): value for name, value in metadata.items() if name.startswith(prefix)}
    refuse(path, {f"{prefix}{name} {fields.get(name)}": bool(fields.get(name)) for name in _ALTERING}, "files without")
    values = validated(_Fields, fields, path)
    if not 0 < values.num_layers <= len(files.names):  # before anything of that number is made
        raise CheckpointError(f"{path}: its metadata has {values.num_layers} layers, it has {len(files.names)} tensors")
    if values.head_size < 1:
        raise CheckpointError(f"{path}: {values.num_heads} heads do not divide a hidden size of {values.hidden_size}")
    file = _File(path, architecture, fields, values, files)
    return _ARCHITECTURES[architecture](file, _plain(file, num_tokens))


def architecture_of(path: Path, metadata: Mapping[str, object]) -> str:
    """Returns the name of a GGUF file's architecture; raises UnsupportedModelError if it is none that plait reads."""
    architecture = validated(_General, metadata, path).architecture
    if architecture not in _ARCHITECTURES:
        supported = ", ".join(_ARCHITECTURES)
        raise UnsupportedModelError(
            f"{path}: GGUF architecture {architecture!r} is not supported; supported: {supported}"
        )
    return architecture


def _plain(file: _File, num_tokens: int) -> DecoderConfig:
    """Returns what metadata and the names of tensors say, whatever the architecture."""
    values, names = file.values, file.files.names
    epsilon = values.rms_epsilon or values.layer_epsilon
    if epsilon is None:
        raise CheckpointError(f"{file.path}: {file.architecture}.attention.layer_norm_rms_epsilon: Field required")
    experts = _experts(file) if file.fields.get("expert_count") else None
    return DecoderConfig(
        num_layers=values.num_layers,
        hidden_size=values.hidden_size,
        num_heads=values.num_heads,
        num_kv_heads=values.num_kv_heads or values.num_heads,
        head_size=values.head_size,
        intermediate_size=values.intermediate_size or (experts.intermediate_size if experts else 0),
        vocab_size=values.vocab_size or num_tokens,
        max_positions=values.max_positions,
        architecture=_PUBLISHED.get(file.architecture, file.architecture),
        norm_epsilon=epsilon,
        tie_embeddings="output.weight" not in names,
        rope=_rope(file),
        has_qkv_bias="blk.0.attn_q.bias" in names or "blk.0.attn_qkv.bias" in names,
        has_output_bias="blk.0.attn_output.bias" in names,
        has_qk_norm="blk.0.attn_q_norm.weight" in names,
        has_sinks="blk.0.attn_sinks.weight" in names,
        norm="layer" if "output_norm.bias" in names else "rms",
        has_embedding_norm="token_embd_norm.weight" in names,
        has_post_norms="blk.0.post_ffw_norm.weight" in names,
        has_mlp_bias="blk.0.ffn_up.bias" in names,
        experts=experts,
    )


def _rope(file: _File) -> Rope:
    values, files = file.values, file.files
    rope = rope_from_gguf(file.path, file.fields, head_size=values.head_size, max_positions=values.max_positions)
    if "rope_freqs.weight" not in files.names:
        return rope
    return with_frequency_factors(file.path, rope, rope.size or values.head_size, files.read("rope_freqs.weight"))


def _experts(file: _File) -> Experts:
    own, names = validated(_ExpertFields, file.fields, file.path), file.files.names
    refuse(file.path, {f"expert gating function {own.gating}": own.gating not in _GATING}, "softmax and sigmoid")
    size = own.intermediate_size or file.values.intermediate_size or 0
    dense = tuple(layer for layer in file.layers if f"blk.{layer}.ffn_gate_inp.weight" not in names)
    block = f"blk.{next((layer for layer in file.layers if layer not in dense), 0)}"
    has_selection_bias = f"{block}.exp_probs_b.bias" in names
    return Experts(
        num_experts=own.num_experts,
        experts_per_token=own.per_token,
        intermediate_size=size,
        shared_intermediate_size=size * own.num_shared,
        dense_layers=dense,
        # Files of DeepSeek-V3 that do not say so are known by their selection bias.
        score="sigmoid" if own.gating == _SIGMOID or (own.gating is None and has_selection_bias) else "softmax",
        normalizes=own.normalizes,
        scale=own.scale or 1.0,
        num_groups=max(own.num_groups, 1),
        groups_per_token=max(own.groups_per_token, 1),
        has_router_bias=f"{block}.ffn_gate_inp.bias" in names,
        has_selection_bias=has_selection_bias,
        has_bias=f"{block}.ffn_up_exps.bias" in names,
    )


def _llama(file: _File, config: DecoderConfig) -> DecoderConfig:
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


def _smollm3(file: _File, config: DecoderConfig) -> DecoderConfig:
    return replace(_llama(file, config), ropeless_layers=tuple(file.layers[3::4]))


def _sliding(file: _File, config: DecoderConfig, *, every: int, window: int = 0) -> DecoderConfig:
    """Lets all but every so manieth layer slide, or those that the file says."""
    size, pattern = file.values.window or window, file.values.window_pattern or every
    if isinstance(pattern, list):
        layers = tuple(layer for layer, slides in zip(file.layers, pattern, strict=False) if slides)
    else:
        layers = tuple(layer for layer in file.layers if layer % pattern < pattern - 1)
    return replace(config, window=size, sliding_layers=layers if size else ())


def _gemma(file: _File, config: DecoderConfig) -> DecoderConfig:
    """Gemma; the 1 that its norms add to their weights is in the weights of the file."""
    return replace(
        _llama(file, config),
        activation="gelu_tanh",
        embedding_scale=config.hidden_size**0.5,
        window=0,
        sliding_layers=(),
    )


def _gemma2(file: _File, config: DecoderConfig) -> DecoderConfig:
    values, gemma = file.values, _sliding(file, _gemma(file, config), every=2, window=4096)
    return replace(
        gemma,
        score_cap=values.score_cap or 50.0,
        logit_cap=values.logit_cap or 30.0,
        score_scale=_gemma_scale(config, largest=46),
    )


def _gemma3(file: _File, config: DecoderConfig) -> DecoderConfig:
    return replace(
        _sliding(file, _gemma(file, config), every=6),
        sliding_rope=Rope(theta=file.values.sliding_theta or 10_000.0),
        score_scale=_gemma_scale(config, largest=62),
    )


def _gemma_scale(config: DecoderConfig, *, largest: int) -> float:
    """Returns the factor on scores; the models of 27 billion parameters, known by their layers, have another."""
    size = config.hidden_size // config.num_heads if config.num_layers == largest else config.head_size
    return size**-0.5


def _gpt_oss(file: _File, config: DecoderConfig) -> DecoderConfig:
    if config.experts is None or config.rope is None:
        raise CheckpointError(f"{file.path}: gpt-oss.expert_count: Field required")
    return replace(
        _sliding(file, config, every=2),
        rope=replace(config.rope, truncates=False),
        experts=replace(config.experts, normalizes=True, activation="clamped_swiglu"),
    )


def _bloom(file: _File, config: DecoderConfig) -> DecoderConfig:
    return replace(config, rope=None, has_alibi=True, activation="gelu_tanh", is_gated=False)


def _falcon(file: _File, config: DecoderConfig) -> DecoderConfig:
    has_two_norms = "blk.0.attn_norm_2.weight" in file.files.names
    residual = "parallel" if has_two_norms else "parallel_shared_norm"
    return replace(config, activation="gelu", is_gated=False, residual=residual)


def _deepseek2(file: _File, config: DecoderConfig) -> DecoderConfig:
    """DeepSeek-V2, V3 and R1; the fields describe the cache as that of one head, or in older files all heads."""
    own = validated(_LatentFields, file.fields, file.path)
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


_ARCHITECTURES: dict[str, Callable[[_File, DecoderConfig], DecoderConfig]] = {
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
