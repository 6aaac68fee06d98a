"""The fields of config.json that decoder families share, as typed values within sane limits, and rotary positions.

Comes in: config.json of an architecture; fields that it lacks have the defaults that transformers gives them. Goes
out: `DecoderFields`, from which `hf_dense.py` and `hf_experts.py` make each family's configuration. Sizes are bounded,
so a damaged file is refused before a model of its size is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

from pydantic import BaseModel, Field

from ...errors import CheckpointError, UnsupportedModelError
from ..config import Activation, DecoderConfig, Rope
from .contents import refuse, validated

__all__ = [
    "ACTIVATIONS",
    "Count",
    "DecoderFields",
    "Layers",
    "Positions",
    "Positive",
    "Size",
    "Theta",
    "activation",
    "yarn_magnitude",
]

Size: TypeAlias = Annotated[int, Field(gt=0, le=2**24)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=2**24)]
Layers: TypeAlias = Annotated[int, Field(gt=0, le=1024)]
Positions: TypeAlias = Annotated[int, Field(gt=0, le=2**31 - 1)]
Positive: TypeAlias = Annotated[float, Field(gt=0, le=1e6)]
Theta: TypeAlias = Annotated[float, Field(gt=1, le=1e18)]
_Weight: TypeAlias = Annotated[float, Field(ge=0, le=1e3)]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_ROPE_TYPES = "default, linear, llama3, yarn"
_FULL, _SLIDING = "full_attention", "sliding_attention"


class _RopeFields(BaseModel):
    rope_theta: Theta | None = None
    rope_type: str | None = None
    type: str | None = None  # what older files call rope_type
    partial_rotary_factor: Positive | None = None
    factor: Positive | None = None
    original_max_position_embeddings: Positions | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    attention_factor: Positive | None = None
    mscale: _Weight | None = None
    mscale_all_dim: _Weight | None = None
    truncate: bool = True


class DecoderFields(BaseModel):
    """What most families have; the defaults are those of Llama."""

    default_theta: ClassVar[float] = 10_000.0
    architecture: ClassVar[str] = "llama"

    vocab_size: Size = 32_000
    hidden_size: Size = 4096
    intermediate_size: Size = 11_008
    num_hidden_layers: Layers = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_act: str = "silu"
    max_position_embeddings: Positions = 2048
    rms_norm_eps: Positive = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: Positions | None = None
    layer_types: list[str] | None = None
    rope_theta: Theta | None = None
    rope_parameters: dict[str, object] | None = None  # where transformers 5 writes them
    rope_scaling: dict[str, object] | None = None  # where older versions did
    partial_rotary_factor: Positive | None = None
    original_max_position_embeddings: Positions | None = None

    def config(self, what: Path) -> DecoderConfig:
        """Returns the configuration of the family.

        Args:
            what: The file, as messages name it.

        Raises:
            UnsupportedModelError: if the model's code would do something that plait's doesn't.
            CheckpointError: if fields contradict each other.
        """
        return self.common(what, head_size=self.head_size(what))

    def head_size(self, what: Path) -> int:
        """Returns the values of each head; without a field of it, the heads share the hidden size evenly."""
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"{what}: its {self.num_attention_heads} heads do not divide evenly: hidden_size is {self.hidden_size}"
            )
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def common(self, what: Path, *, head_size: int) -> DecoderConfig:
        """Returns what follows from the fields above, by Llama's rules."""
        return DecoderConfig(
            num_layers=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads or self.num_attention_heads,
            head_size=head_size,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            max_positions=self.max_position_embeddings,
            architecture=self.architecture,
            norm_epsilon=self.rms_norm_eps,
            tie_embeddings=self.tie_word_embeddings,
            rope=self.rope(what),
            has_qkv_bias=self.attention_bias,
            has_output_bias=self.attention_bias,
            has_mlp_bias=self.mlp_bias,
            activation=activation(what, self.hidden_act),
        )

    def layers_of_type(self, what: Path, kind: str) -> tuple[int, ...]:
        """Returns the layers that `layer_types` gives a type, none if it is not there."""
        types = self.layer_types or []
        if types and len(types) != self.num_hidden_layers:
            raise CheckpointError(
                f"{what}: layer_types names {len(types)} layers, num_hidden_layers is {self.num_hidden_layers}"
            )
        if other := sorted({*types} - {_FULL, _SLIDING}):
            raise UnsupportedModelError(
                f"{what}: layers of type {other[0]!r} not supported; supported: {_FULL}, {_SLIDING}"
            )
        return tuple(layer for layer, name in enumerate(types) if name == kind)

    def rope(self, what: Path, kind: str = _FULL) -> Rope:
        """Returns the rotary positions of the layers of a type."""
        fields = self.rope_fields(what, kind)
        theta = fields.rope_theta or self.rope_theta or self.default_theta
        original = fields.original_max_position_embeddings or self.original_max_position_embeddings
        partial = fields.partial_rotary_factor or self.partial_rotary_factor or 1.0
        refuse(what, {f"rotary positions over {partial} of each head": partial != 1.0}, "over all of it")
        return _rope(what, fields, theta, original or self.max_position_embeddings)

    def rope_fields(self, what: Path, kind: str = _FULL) -> _RopeFields:
        """Returns the parameters of the layers of a type, whether or not they are written for each type."""
        given: Mapping[str, object] = self.rope_scaling or self.rope_parameters or {}
        if _FULL in given or _SLIDING in given:
            nested = given.get(kind)
            given = nested if isinstance(nested, dict) else {}
        return validated(_RopeFields, given, what)


def activation(what: Path, name: str) -> Activation:
    """Returns an activation by the name that transformers has for it."""
    refuse(what, {f"activation {name!r}": name not in ACTIVATIONS}, ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """Returns YaRN's factor on scores, 0.1 * mscale * ln(factor) + 1, for contexts `factor` times as long."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _rope(what: Path, fields: _RopeFields, theta: float, original_positions: int) -> Rope:
    kind = fields.rope_type or fields.type or "default"
    refuse(what, {f"rope type {kind!r}": kind not in _ROPE_TYPES.split(", ")}, _ROPE_TYPES)
    if kind == "default":
        return Rope(theta=theta)
    factor = _needed(what, kind, "factor", fields.factor)
    if kind == "linear":
        return Rope(theta=theta, scaling="linear", factor=factor)
    if kind == "llama3":
        low = _needed(what, kind, "low_freq_factor", fields.low_freq_factor)
        high = _needed(what, kind, "high_freq_factor", fields.high_freq_factor)
        if low >= high:
            raise CheckpointError(f"{what}: low_freq_factor is {low}, it must be below high_freq_factor, {high}")
        return Rope(
            theta=theta,
            scaling="llama3",
            factor=factor,
            original_positions=original_positions,
            low_frequency_factor=low,
            high_frequency_factor=high,
        )
    return Rope(
        theta=theta,
        scaling="yarn",
        factor=factor,
        original_positions=original_positions,
        beta_fast=fields.beta_fast or 32.0,
        beta_slow=fields.beta_slow or 1.0,
        truncates=fields.truncate,
        magnitude=_magnitude(fields, factor),
    )


def _magnitude(fields: _RopeFields, factor: float) -> float:
    if fields.attention_factor is not None:
        return fields.attention_factor
    if fields.mscale and fields.mscale_all_dim:
        return yarn_magnitude(factor, fields.mscale) / yarn_magnitude(factor, fields.mscale_all_dim)
    return yarn_magnitude(factor)


def _needed(what: Path, kind: str, name: str, value: float | None) -> float:
    if value is None:
        raise CheckpointError(f"{what}: rope type {kind!r} needs {name}, which is not there")
    return value
