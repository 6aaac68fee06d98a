"""Configurations of mixtures of experts, from the fields of their config.json.

Comes in: config.json of Mixtral, Qwen3-MoE, gpt-oss, DeepSeek V2 or V3 and R1. Goes out: a `DecoderConfig`. Each class
has the defaults that transformers gives fields that a file lacks; the modelling code there is the definition of what
a field means.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import AliasChoices, Field, PositiveInt

from ..config import DecoderConfig, Experts, LatentAttention
from .contents import refuse
from .hf_dense import all_sliding
from .hf_fields import Count, DecoderFields, Layers, Positions, Positive, Size, activation, yarn_magnitude

__all__ = ["DeepseekV2Fields", "DeepseekV3Fields", "GptOssFields", "MixtralFields", "Qwen3MoeFields"]


class MixtralFields(DecoderFields):
    """Mixtral: Mistral with experts in every layer."""

    default_theta: ClassVar[float] = 1_000_000.0
    architecture: ClassVar[str] = "mixtral"

    intermediate_size: Size = 14_336
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Positions = 131_072
    rms_norm_eps: Positive = 1e-5
    num_experts_per_tok: Size = 2
    num_local_experts: Size = Field(8, validation_alias=AliasChoices("num_local_experts", "num_experts"))

    def config(self, what: Path) -> DecoderConfig:
        refuse(what, {"biases": self.attention_bias or self.mlp_bias}, "Mixtral without biases")
        config = super().config(what)
        experts = Experts(
            num_experts=self.num_local_experts,
            experts_per_token=self.num_experts_per_tok,
            intermediate_size=self.intermediate_size,
            activation=config.activation,
        )
        return all_sliding(replace(config, experts=experts), self.sliding_window)


class Qwen3MoeFields(DecoderFields):
    """Qwen 3 with experts in all layers but a few."""

    architecture: ClassVar[str] = "qwen3_moe"

    vocab_size: Size = 151_936
    hidden_size: Size = 2048
    intermediate_size: Size = 6144
    num_hidden_layers: Layers = 24
    num_key_value_heads: Size | None = 4
    max_position_embeddings: Positions = 32_768
    use_sliding_window: bool = False
    sliding_window: Positions | None = 4096
    decoder_sparse_step: PositiveInt = 1
    moe_intermediate_size: Size = 768
    num_experts_per_tok: Size = 8
    num_experts: Count = Field(128, validation_alias=AliasChoices("num_experts", "num_local_experts"))
    norm_topk_prob: bool = False
    mlp_only_layers: list[int] | None = None

    def config(self, what: Path) -> DecoderConfig:
        refuse(what, {"biases of the feed-forward": self.mlp_bias}, "Qwen without them")
        config = replace(super().config(what), has_qk_norm=True)
        experts = Experts(
            num_experts=self.num_experts,
            experts_per_token=self.num_experts_per_tok,
            intermediate_size=self.moe_intermediate_size,
            dense_layers=tuple(layer for layer in range(self.num_hidden_layers) if self._is_dense(layer)),
            normalizes=self.norm_topk_prob,
            activation=config.activation,
        )
        config = replace(config, experts=experts if self.num_experts else None)
        return all_sliding(config, self.sliding_window if self.use_sliding_window else None)

    def _is_dense(self, layer: int) -> bool:
        return layer in (self.mlp_only_layers or ()) or (layer + 1) % self.decoder_sparse_step != 0


_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class GptOssFields(DecoderFields):
    """gpt-oss: attention sinks, alternating windows, clamped SwiGLU, biases everywhere."""

    default_theta: ClassVar[float] = 150_000.0
    architecture: ClassVar[str] = "gpt_oss"

    vocab_size: Size = 201_088
    hidden_size: Size = 2880
    intermediate_size: Size = 2880
    num_hidden_layers: Layers = 36
    num_attention_heads: Size = 64
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 64
    max_position_embeddings: Positions = 131_072
    rms_norm_eps: Positive = 1e-5
    attention_bias: bool = True
    sliding_window: Positions | None = 128
    rope_parameters: dict[str, object] | None = _GPT_OSS_ROPE
    num_local_experts: Size = Field(128, validation_alias=AliasChoices("num_local_experts", "num_experts"))
    num_experts_per_tok: Size = 4
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0

    def config(self, what: Path) -> DecoderConfig:
        unsupported = {
            f"swiglu_limit {self.swiglu_limit}": self.swiglu_limit != 7.0,
            f"swiglu_alpha {self.swiglu_alpha}": self.swiglu_alpha != 1.702,
        }
        refuse(what, unsupported, "gpt-oss's 7.0 and 1.702")
        sliding = self.layers_of_type(what, "sliding_attention")
        if self.layer_types is None:
            sliding = tuple(range(0, self.num_hidden_layers, 2))
        experts = Experts(
            num_experts=self.num_local_experts,
            experts_per_token=self.num_experts_per_tok,
            intermediate_size=self.intermediate_size,
            has_router_bias=True,
            has_bias=True,
            activation="clamped_swiglu",
        )
        return replace(
            super().config(what),
            has_sinks=True,
            window=self.sliding_window or 0,
            sliding_layers=sliding if self.sliding_window else (),
            experts=experts,
        )


class DeepseekV2Fields(DecoderFields):
    """DeepSeek V2: latent attention, experts of a softmax's scores, some that all tokens share."""

    architecture: ClassVar[str] = "deepseek_v2"
    moe_methods: ClassVar[tuple[str, ...]] = ("greedy", "group_limited_greedy")
    scoring: ClassVar[str] = "softmax"

    vocab_size: Size = 102_400
    moe_intermediate_size: Size = 1407
    n_routed_experts: Size = Field(64, validation_alias=AliasChoices("n_routed_experts", "num_experts"))
    n_shared_experts: Count = 2
    num_experts_per_tok: Size
    routed_scaling_factor: Positive = 1.0
    first_k_dense_replace: Count = 0
    moe_layer_freq: int = 1
    n_group: Size | None = None
    topk_group: Size | None = None
    topk_method: str | None = "greedy"
    scoring_func: str | None = None
    norm_topk_prob: bool | None = False
    q_lora_rank: Size | None = 1536
    kv_lora_rank: Size = 512
    qk_nope_head_dim: Size = 128
    qk_rope_head_dim: Size = 64
    v_head_dim: Size = 128
    rope_interleave: bool | None = True

    def config(self, what: Path) -> DecoderConfig:
        unsupported = {
            f"moe_layer_freq {self.moe_layer_freq}": self.moe_layer_freq != 1,
            f"choice of experts by {self.topk_method!r}": self.topk_method not in (None, *self.moe_methods),
            f"scores by {self.scoring_func!r}": self.scoring_func not in (None, self.scoring),
            "biases of the feed-forward": self.mlp_bias,
            # The norms of latents have this epsilon whatever the file says.
            f"rms_norm_eps {self.rms_norm_eps}": self.rms_norm_eps != 1e-6,
        }
        supported = f"{', '.join(self.moe_methods)}; {self.scoring}; moe_layer_freq 1; no biases; rms_norm_eps 1e-06"
        refuse(what, unsupported, supported)
        self.check_routing(what)
        config = self.common(what, head_size=self.qk_nope_head_dim + self.qk_rope_head_dim)
        latent = LatentAttention(
            query_rank=self.q_lora_rank,
            latent_size=self.kv_lora_rank,
            rope_size=self.qk_rope_head_dim,
            nope_size=self.qk_nope_head_dim,
            value_size=self.v_head_dim,
        )
        assert config.rope is not None
        return replace(
            config,
            num_kv_heads=self.num_attention_heads,
            latent=latent,
            rope=replace(config.rope, is_interleaved=self._is_interleaved),
            score_scale=self._score_scale(what),
            experts=self.experts(what),
        )

    def check_routing(self, what: Path) -> None:
        """Refuses what the published code and transformers' do differently."""
        refuse(what, {"normalized weights of experts": bool(self.norm_topk_prob)}, "norm_topk_prob false")

    def experts(self, what: Path) -> Experts:
        """Returns the experts."""
        is_grouped = self.topk_method != "greedy"
        return Experts(
            num_experts=self.n_routed_experts,
            experts_per_token=self.num_experts_per_tok,
            intermediate_size=self.moe_intermediate_size,
            shared_intermediate_size=self.n_shared_experts * self.moe_intermediate_size,
            dense_layers=tuple(range(min(self.first_k_dense_replace, self.num_hidden_layers))),
            normalizes=bool(self.norm_topk_prob),
            scale=self.routed_scaling_factor,
            num_groups=(self.n_group or 1) if is_grouped else 1,
            groups_per_token=(self.topk_group or 1) if is_grouped else 1,
            activation=activation(what, self.hidden_act),
        )

    @property
    def _is_interleaved(self) -> bool:
        return bool(self.rope_interleave)

    def _score_scale(self, what: Path) -> float:
        """Returns the factor on scores, raised for YaRN if the file says for which dimensions."""
        fields, scale = self.rope_fields(what), (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        is_scaled = (fields.rope_type or fields.type or "default") != "default"
        if is_scaled and fields.mscale_all_dim and fields.factor:
            scale *= yarn_magnitude(fields.factor, fields.mscale_all_dim) ** 2
        return scale


class DeepseekV3Fields(DeepseekV2Fields):
    """DeepSeek V3 and R1: experts by sigmoid scores, chosen with a bias that keeps them evenly loaded."""

    architecture: ClassVar[str] = "deepseek_v3"
    moe_methods: ClassVar[tuple[str, ...]] = ("noaux_tc",)
    scoring: ClassVar[str] = "sigmoid"

    vocab_size: Size = 129_280
    hidden_size: Size = 7168
    intermediate_size: Size = 18_432
    num_hidden_layers: Layers = 61
    num_attention_heads: Size = 128
    max_position_embeddings: Positions = 4096
    moe_intermediate_size: Size = 2048
    n_routed_experts: Size = Field(256, validation_alias=AliasChoices("n_routed_experts", "num_local_experts"))
    n_shared_experts: Count = 1
    num_experts_per_tok: Size = 8
    routed_scaling_factor: Positive = 2.5
    first_k_dense_replace: Count = 3
    n_group: Size | None = 8
    topk_group: Size | None = 4
    topk_method: str | None = "noaux_tc"
    norm_topk_prob: bool | None = True

    def check_routing(self, what: Path) -> None:
        del what  # normalized or not, both are done alike

    def experts(self, what: Path) -> Experts:
        return replace(super().experts(what), score="sigmoid", has_selection_bias=True)
