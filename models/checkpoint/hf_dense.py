"""Configurations of decoders whose every layer has a plain feed-forward, from the fields of their config.json.

Comes in: config.json of Llama, SmolLM3, Mistral, Qwen 2 and 3, Phi-3, Bloom or Falcon; Gemma is in `hf_gemma.py`. Goes
out: a `DecoderConfig`. Each class has the defaults that transformers gives fields that a file lacks; the modelling
code there is the definition of what a field means.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import AliasChoices, Field

from ...errors import CheckpointError
from ..config import DecoderConfig, Rope
from .contents import refuse
from .hf_fields import DecoderFields, Layers, Positions, Positive, Size, activation

__all__ = [
    "BloomFields",
    "FalconFields",
    "LlamaFields",
    "MistralFields",
    "Phi3Fields",
    "Qwen2Fields",
    "Qwen3Fields",
    "SmolLM3Fields",
    "all_sliding",
]


def all_sliding(config: DecoderConfig, window: int | None) -> DecoderConfig:
    """Returns the configuration with a window in every layer, if there is one."""
    return config if window is None else replace(config, window=window, sliding_layers=tuple(range(config.num_layers)))


class LlamaFields(DecoderFields):
    """Llama 1 to 3, SmolLM, and many that took their code."""


class SmolLM3Fields(DecoderFields):
    """Llama without rotary positions in every n-th layer."""

    default_theta: ClassVar[float] = 2_000_000.0
    architecture: ClassVar[str] = "smollm3"

    vocab_size: Size = 128_256
    hidden_size: Size = 2048
    num_hidden_layers: Layers = 36
    num_attention_heads: Size = 16
    num_key_value_heads: Size | None = 4
    max_position_embeddings: Positions = 32_768
    tie_word_embeddings: bool = True
    use_sliding_window: bool = False
    no_rope_layers: list[int] | None = None  # 0 in the layers without
    no_rope_layer_interval: Size = 4

    def config(self, what: Path) -> DecoderConfig:
        num_layers = self.num_hidden_layers
        has_rope = self.no_rope_layers or [(layer + 1) % self.no_rope_layer_interval for layer in range(num_layers)]
        if len(has_rope) != num_layers:
            raise CheckpointError(f"{what}: no_rope_layers names {len(has_rope)} layers, there are {num_layers}")
        ropeless = tuple(layer for layer, flag in enumerate(has_rope) if not flag)
        window = self.sliding_window if self.use_sliding_window else None
        sliding = ropeless if self.layer_types is None else self.layers_of_type(what, "sliding_attention")
        config = replace(super().config(what), ropeless_layers=ropeless)
        return config if window is None else replace(config, window=window, sliding_layers=sliding)


class MistralFields(DecoderFields):
    """Llama with a window in every layer."""

    architecture: ClassVar[str] = "mistral"

    intermediate_size: Size = 14_336
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Positions = 131_072
    sliding_window: Positions | None = 4096

    def config(self, what: Path) -> DecoderConfig:
        refuse(what, {"biases": self.attention_bias or self.mlp_bias}, "Mistral without biases")
        return all_sliding(super().config(what), self.sliding_window)


class _QwenFields(DecoderFields):
    vocab_size: Size = 151_936
    intermediate_size: Size = 22_016
    num_key_value_heads: Size | None = 32
    max_position_embeddings: Positions = 32_768
    use_sliding_window: bool = False
    sliding_window: Positions | None = 4096
    max_window_layers: int = 28

    def config(self, what: Path) -> DecoderConfig:
        refuse(what, {"biases of the feed-forward": self.mlp_bias}, "Qwen without them")
        config, window = super().config(what), self.sliding_window if self.use_sliding_window else None
        sliding = self.layers_of_type(what, "sliding_attention")
        if self.layer_types is None:
            sliding = tuple(range(max(0, self.max_window_layers), self.num_hidden_layers))
        return config if window is None else replace(config, window=window, sliding_layers=sliding)


class Qwen2Fields(_QwenFields):
    """Qwen 2 and 2.5: biases of query, key and value."""

    architecture: ClassVar[str] = "qwen2"

    def config(self, what: Path) -> DecoderConfig:
        return replace(super().config(what), has_qkv_bias=True, has_output_bias=False)


class Qwen3Fields(_QwenFields):
    """Qwen 3: norms of query and key."""

    architecture: ClassVar[str] = "qwen3"

    head_dim: Size | None = 128

    def config(self, what: Path) -> DecoderConfig:
        return replace(super().config(what), has_qk_norm=True)


class Phi3Fields(DecoderFields):
    """Phi-3 with plain rotary positions."""

    architecture: ClassVar[str] = "phi3"

    vocab_size: Size = 32_064
    hidden_size: Size = 3072
    intermediate_size: Size = 8192
    max_position_embeddings: Positions = 4096
    rms_norm_eps: Positive = 1e-5

    def config(self, what: Path) -> DecoderConfig:
        refuse(what, {"biases": self.attention_bias or self.mlp_bias}, "Phi-3 without biases")
        return all_sliding(super().config(what), self.sliding_window)

    def rope(self, what: Path, kind: str = "full_attention") -> Rope:
        fields = self.rope_fields(what, kind)
        name = fields.rope_type or fields.type or "default"
        refuse(what, {f"rope type {name!r}": name != "default"}, "default")
        partial = fields.partial_rotary_factor or self.partial_rotary_factor or 1.0
        size = int(self.head_size(what) * partial)
        if not 0 < size <= self.head_size(what) or size % 2:
            raise CheckpointError(f"{what}: partial_rotary_factor {partial} leaves {size} values of a head to turn")
        theta = fields.rope_theta or self.rope_theta or self.default_theta
        return Rope(theta=theta, size=0 if size == self.head_size(what) else size)


class BloomFields(DecoderFields):
    """Bloom: scores that fall with the distance, layer norms, biases everywhere, no gate."""

    architecture: ClassVar[str] = "bloom"

    vocab_size: Size = 250_880
    hidden_size: Size = Field(64, validation_alias=AliasChoices("n_embed", "hidden_size"))
    num_hidden_layers: Layers = Field(2, validation_alias=AliasChoices("n_layer", "num_hidden_layers"))
    num_attention_heads: Size = Field(8, validation_alias=AliasChoices("n_head", "num_attention_heads"))
    max_position_embeddings: Positions = Field(
        2048, validation_alias=AliasChoices("seq_length", "max_position_embeddings")
    )
    layer_norm_epsilon: Positive = 1e-5
    tie_word_embeddings: bool = True
    apply_residual_connection_post_layernorm: bool = False

    def config(self, what: Path) -> DecoderConfig:
        refuse(
            what,
            {"a residual stream of normed values": self.apply_residual_connection_post_layernorm},
            "apply_residual_connection_post_layernorm false",
        )
        size = self.model_copy(update={"head_dim": None}).head_size(what)
        return replace(
            self.common(what, head_size=size),
            num_kv_heads=self.num_attention_heads,
            intermediate_size=4 * self.hidden_size,
            rope=None,
            has_alibi=True,
            has_qkv_bias=True,
            has_output_bias=True,
            has_mlp_bias=True,
            norm="layer",
            norm_epsilon=self.layer_norm_epsilon,
            has_embedding_norm=True,
            activation="gelu_tanh",
            is_gated=False,
        )


class FalconFields(DecoderFields):
    """Falcon: attention and feed-forward side by side, of one norm or of two."""

    architecture: ClassVar[str] = "falcon"

    vocab_size: Size = 65_024
    hidden_size: Size = Field(4544, validation_alias=AliasChoices("n_embed", "hidden_size"))
    num_attention_heads: Size = 71
    num_kv_heads: Size | None = None
    num_ln_in_parallel_attn: int | None = None
    layer_norm_epsilon: Positive = 1e-5
    alibi: bool | None = False
    new_decoder_architecture: bool | None = False
    multi_query: bool | None = True
    parallel_attn: bool | None = True
    bias: bool | None = False
    ffn_hidden_size: Size | None = None
    activation: str = "gelu"
    tie_word_embeddings: bool = True

    def config(self, what: Path) -> DecoderConfig:
        unsupported = {
            "alibi": bool(self.alibi),
            "the new architecture without parallel attention": self._is_new and not self.parallel_attn,
            f"{self.num_ln_in_parallel_attn} norms before parallel attention": self._num_norms not in (1, 2)
            or (self._num_norms == 2 and not self._is_new),
        }
        refuse(what, unsupported, "Falcon with rotary positions, one norm, or two in the new architecture")
        bias = bool(self.bias)
        return replace(
            self.common(what, head_size=self.head_size(what)),
            num_kv_heads=self._kv_heads,
            intermediate_size=self.ffn_hidden_size or 4 * self.hidden_size,
            has_qkv_bias=bias,
            has_output_bias=bias,
            has_mlp_bias=bias,
            norm="layer",
            norm_epsilon=self.layer_norm_epsilon,
            residual=("parallel_shared_norm" if self._num_norms == 1 else "parallel")
            if self.parallel_attn
            else "sequential",
            activation=activation(what, self.activation),
            is_gated=False,
        )

    @property
    def _is_new(self) -> bool:
        return bool(self.new_decoder_architecture)

    @property
    def _num_norms(self) -> int:
        default = 2 if self._is_new else 1
        return default if self.num_ln_in_parallel_attn is None else self.num_ln_in_parallel_attn

    @property
    def _kv_heads(self) -> int:
        if self._is_new:
            return self.num_kv_heads or self.num_attention_heads
        return 1 if self.multi_query else self.num_attention_heads
