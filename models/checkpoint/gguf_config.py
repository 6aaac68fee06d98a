"""The configuration of a model from the metadata of its GGUF file, by architecture.

Comes in: a file's metadata and its tensors. Goes out: a `DecoderConfig`. What the presence of a tensor says (biases,
norms, tied embeddings, which layers have experts) is read off the names; the rest is metadata, and what that leaves
to the architecture is written down in `gguf_families.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, Field

from ...errors import CheckpointError, UnsupportedModelError
from ..config import DecoderConfig, Experts, Rope
from .contents import refuse, validated
from .gguf_families import FAMILIES
from .gguf_fields import ExpertFields, Fields, GGUFDescription
from .gguf_reader import GGUFFiles
from .gguf_rope import rope_from_gguf, with_frequency_factors

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
    values = validated(Fields, fields, path)
    if not 0 < values.num_layers <= len(files.names):  # before anything of that number is made
        raise CheckpointError(f"{path}: its metadata has {values.num_layers} layers, it has {len(files.names)} tensors")
    if values.head_size < 1:
        raise CheckpointError(f"{path}: {values.num_heads} heads do not divide a hidden size of {values.hidden_size}")
    file = GGUFDescription(path, architecture, fields, values, files)
    return FAMILIES[architecture](file, _plain(file, num_tokens))


def architecture_of(path: Path, metadata: Mapping[str, object]) -> str:
    """Returns the name of a GGUF file's architecture; raises UnsupportedModelError if it is none that plait reads."""
    architecture = validated(_General, metadata, path).architecture
    if architecture not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise UnsupportedModelError(
            f"{path}: GGUF architecture {architecture!r} is not supported; supported: {supported}"
        )
    return architecture


def _plain(file: GGUFDescription, num_tokens: int) -> DecoderConfig:
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


def _rope(file: GGUFDescription) -> Rope:
    values, files = file.values, file.files
    rope = rope_from_gguf(file.path, file.fields, head_size=values.head_size, max_positions=values.max_positions)
    if "rope_freqs.weight" not in files.names:
        return rope
    return with_frequency_factors(file.path, rope, rope.size or values.head_size, files.read("rope_freqs.weight"))


def _experts(file: GGUFDescription) -> Experts:
    own, names = validated(ExpertFields, file.fields, file.path), file.files.names
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
