"""Model configurations: the sizes and switches that determine a model's architecture.

Comes in: a checkpoint's metadata, read by `models.checkpoint`. Goes out: a frozen configuration from which the
modules in `llama.py` and `bert.py` are built, with or without weights. Round-trips through JSON for the bundle.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Literal, TypeAlias

from ..errors import ConfigurationError

__all__ = ["DecoderConfig", "EncoderConfig", "ModelConfig", "config_from_json", "config_to_json"]

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True)
class DecoderConfig:
    """A Llama-family decoder: RMS norm, rotary positions, grouped-query attention, gated SiLU feed-forward."""

    family: ClassVar[str] = "llama"

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = False

    @property
    def kv_values_per_token(self) -> int:
        """Number of K and V values that one token leaves in the cache, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size


@dataclass(frozen=True)
class EncoderConfig:
    """A BERT-family encoder: learned positions, post-layer norm, GELU feed-forward.

    `head` says what a forward pass yields: "embedding" pools the last hidden states into one normalized vector of
    `hidden_size`; "masked_lm" gives SPLADE's sparse vector of `vocab_size`, max over tokens of log1p(relu(logits)).
    """

    family: ClassVar[str] = "bert"

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    num_token_types: int = 2
    norm_epsilon: float = 1e-12
    head: Literal["embedding", "masked_lm"] = "embedding"

    @property
    def output_size(self) -> int:
        """Length of the vector that a forward pass yields for each sequence."""
        return self.hidden_size if self.head == "embedding" else self.vocab_size


ModelConfig: TypeAlias = DecoderConfig | EncoderConfig

_FAMILIES: dict[str, type[DecoderConfig] | type[EncoderConfig]] = {
    config.family: config for config in (DecoderConfig, EncoderConfig)
}


def config_to_json(config: ModelConfig) -> dict[str, Json]:
    """Returns the configuration as JSON, tagged with its family."""
    return {"family": config.family, **asdict(config)}


def config_from_json(data: dict[str, Json]) -> ModelConfig:
    """Returns the configuration that `config_to_json` wrote.

    Raises:
        ConfigurationError: if the family is unknown or a field is missing or superfluous.
    """
    values = dict(data)
    family = values.pop("family", None)
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ConfigurationError(f"unknown model family {family!r}; known: {', '.join(sorted(_FAMILIES))}")
    known = {field.name for field in fields(_FAMILIES[family])}
    if unknown := sorted(set(values) - known):
        raise ConfigurationError(f"{family} configuration has unknown fields: {', '.join(unknown)}")
    try:
        return _FAMILIES[family](**values)  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigurationError(f"{family} configuration is incomplete: {error}") from None
