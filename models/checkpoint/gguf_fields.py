"""The fields of a GGUF file's metadata from which configurations are made, as typed values within sane limits.

Comes in: the metadata of an architecture, its name taken off. Goes out: `Fields` and what some architectures have
beside them. Rotary positions are in `gguf_rope.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from .gguf_reader import GGUFFiles
from .gguf_rope import Factor, Size

__all__ = ["ExpertFields", "Fields", "GGUFDescription", "LatentFields"]


class Fields(BaseModel):
    """What all architectures have."""

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
        """Layers of the model itself."""
        return self.num_blocks - self.num_predicting_blocks

    @property
    def head_size(self) -> int:
        """Values of each head's keys."""
        return self.key_length or self.hidden_size // self.num_heads


class ExpertFields(BaseModel):
    """What those with a mixture of experts have."""

    num_experts: Size = Field(alias="expert_count", lt=1 << 16)
    per_token: Size = Field(alias="expert_used_count")
    intermediate_size: Size | None = Field(None, alias="expert_feed_forward_length")
    num_shared: int = Field(0, alias="expert_shared_count", ge=0, lt=1 << 16)
    scale: float = Field(0.0, alias="expert_weights_scale", ge=0, allow_inf_nan=False)
    normalizes: bool = Field(False, alias="expert_weights_norm")
    gating: int | None = Field(None, alias="expert_gating_func")
    num_groups: int = Field(0, alias="expert_group_count", ge=0, lt=1 << 16)
    groups_per_token: int = Field(0, alias="expert_group_used_count", ge=0)


class LatentFields(BaseModel):
    """What those with latent attention have."""

    query_rank: Size | None = Field(None, alias="attention.q_lora_rank")
    latent_size: Size = Field(alias="attention.kv_lora_rank")
    rope_size: Size = Field(alias="rope.dimension_count")
    key_size: Size | None = Field(None, alias="attention.key_length_mla")  # older files have them as the plain lengths
    value_size: Size | None = Field(None, alias="attention.value_length_mla")
    log_multiplier: float = Field(0.0, alias="rope.scaling.yarn_log_multiplier", ge=0, le=10)


@dataclass(frozen=True)
class GGUFDescription:
    """A file as far as its configuration is made from it."""

    path: Path
    architecture: str
    fields: Mapping[str, object]  # those of the architecture, its name taken off
    values: Fields
    files: GGUFFiles

    @property
    def layers(self) -> range:
        """Numbers of the layers."""
        return range(self.values.num_layers)
