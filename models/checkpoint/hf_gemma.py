"""Configurations of Gemma 1, 2 and 3 from the fields of their config.json.

Comes in: config.json, of Gemma 3 that of the text model. Goes out: a `DecoderConfig`. Each class has the defaults that
transformers gives fields that a file lacks; the modelling code there is the definition of what a field means.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ..config import DecoderConfig, Rope
from .contents import refuse
from .hf_fields import DecoderFields, Layers, Positions, Positive, Size, Theta, activation

__all__ = ["Gemma2Fields", "Gemma3Fields", "GemmaFields"]


class GemmaFields(DecoderFields):
    """Gemma: norms times 1 + weight, scaled embeddings, a gate of GELU."""

    architecture: ClassVar[str] = "gemma"

    vocab_size: Size = 256_000
    hidden_size: Size = 3072
    intermediate_size: Size = 24_576
    num_hidden_layers: Layers = 28
    num_attention_heads: Size = 16
    num_key_value_heads: Size | None = 16
    head_dim: Size | None = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: Positions = 8192
    tie_word_embeddings: bool = True
    use_bidirectional_attention: bool | None = None

    def config(self, what: Path) -> DecoderConfig:
        refuse(what, {"bidirectional attention": bool(self.use_bidirectional_attention)}, "causal attention")
        refuse(what, {"biases of the feed-forward": self.mlp_bias}, "Gemma without them")
        config = super().config(what)
        # The first release says "gelu" and means the approximation.
        gate = "gelu_tanh" if self.hidden_act == "gelu" else config.activation
        return replace(config, norm="rms_unit_offset", embedding_scale=self.hidden_size**0.5, activation=gate)


class Gemma2Fields(GemmaFields):
    """Gemma 2: alternating windows, capped scores and logits, norms after attention and feed-forward."""

    architecture: ClassVar[str] = "gemma2"
    default_pattern: ClassVar[int] = 2  # every n-th layer sees everything

    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: Layers = 26
    num_attention_heads: Size = 8
    num_key_value_heads: Size | None = 4
    hidden_activation: str = "gelu_pytorch_tanh"
    query_pre_attn_scalar: Positive = 256
    sliding_window: Positions | None = 4096
    sliding_window_pattern: Size | None = None
    final_logit_softcapping: Positive | None = 30.0
    attn_logit_softcapping: Positive | None = 50.0

    def config(self, what: Path) -> DecoderConfig:
        pattern = self.sliding_window_pattern or self.default_pattern
        sliding = tuple(layer for layer in range(self.num_hidden_layers) if (layer + 1) % pattern)
        if self.layer_types is not None:
            sliding = self.layers_of_type(what, "sliding_attention")
        return replace(
            super().config(what),
            activation=activation(what, self.hidden_activation),
            has_post_norms=True,
            score_scale=self.query_pre_attn_scalar**-0.5,
            score_cap=self.attn_logit_softcapping or 0.0,
            logit_cap=self.final_logit_softcapping or 0.0,
            window=self.sliding_window or 0,
            sliding_layers=sliding if self.sliding_window else (),
        )


class Gemma3Fields(Gemma2Fields):
    """Gemma 3's text model: norms of query and key, and other rotary positions where there is a window."""

    architecture: ClassVar[str] = "gemma3"
    default_theta: ClassVar[float] = 1_000_000.0
    default_pattern: ClassVar[int] = 6

    vocab_size: Size = 262_208
    max_position_embeddings: Positions = 131_072
    final_logit_softcapping: Positive | None = None
    attn_logit_softcapping: Positive | None = None
    rope_local_base_freq: Theta = 10_000.0

    def config(self, what: Path) -> DecoderConfig:
        return replace(super().config(what), has_qk_norm=True, sliding_rope=self._sliding_rope(what))

    def _sliding_rope(self, what: Path) -> Rope:
        """Returns the positions in layers with a window: scaled only if the file says so of just those layers."""
        nested = self.rope_scaling or self.rope_parameters or {}
        if "sliding_attention" not in nested:
            return Rope(theta=self.rope_local_base_freq)
        fields = self.model_copy(update={"rope_theta": self.rope_local_base_freq})
        return fields.rope(what, "sliding_attention")
