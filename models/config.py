"""Model configurations: the sizes and switches that determine a model's architecture.

Comes in: a checkpoint's metadata or an entry of the zoo, read by `models.checkpoint`. Goes out: a frozen configuration
from which the modules in `decoder.py` and `bert.py` are built, with or without weights. Round-trips through JSON for
the bundle.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, TypeAlias

import pydantic

from ..errors import ConfigurationError

__all__ = [
    "Activation",
    "DecoderConfig",
    "EncoderConfig",
    "Experts",
    "Json",
    "LatentAttention",
    "ModelConfig",
    "Rope",
    "StoredForm",
    "StoredPart",
    "config_from_json",
    "config_to_json",
]

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Activation: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "relu", "clamped_swiglu"]
StoredForm: TypeAlias = Literal["fp8", "mxfp4", "q8_0", "q4_0", "int8"]  # `quantization.py` says what each is
StoredPart: TypeAlias = Literal["attention", "mlp", "experts"]

Size: TypeAlias = Annotated[int, pydantic.Field(gt=0)]
Count: TypeAlias = Annotated[int, pydantic.Field(ge=0)]
Factor: TypeAlias = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
FactorOrZero: TypeAlias = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]

_STRICT = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Rope:
    """Rotary positions: which values of a head turn, how fast, and what longer contexts than the trained one get.

    Sources: RoFormer (arXiv 2104.09864); Llama 3.1's scaling by wavelength; YaRN (arXiv 2309.00071).
    """

    __pydantic_config__ = _STRICT

    theta: Factor = 10_000.0
    size: Count = 0  # values of each head that turn, the first ones; 0 means all
    is_interleaved: bool = False  # pairs are (x[2i], x[2i + 1]) instead of (x[i], x[i + size / 2])
    scaling: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: Factor = 1.0
    original_positions: Count = 0  # of the training; llama3 and yarn
    low_frequency_factor: Factor = 1.0  # llama3
    high_frequency_factor: Factor = 4.0  # llama3
    beta_fast: Factor = 32.0  # yarn
    beta_slow: Factor = 1.0  # yarn
    truncates: bool = True  # yarn: whether the ramp between turning as trained and slower begins at whole pairs
    magnitude: Factor = 1.0  # yarn: factor on cosine and sine


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of the feed-forward.

    The router's scores are a softmax or a sigmoid of its logits. Where there are groups of experts, only those groups
    are left whose two best (softmax: whose best) scores are largest. Each token goes to the best experts that are
    left; a selection bias counts there, but not in the weights.
    """

    __pydantic_config__ = _STRICT

    num_experts: Size
    experts_per_token: Size
    intermediate_size: Size  # of each expert
    shared_intermediate_size: Count = 0  # of the experts that every token goes to, together; 0 if there are none
    dense_layers: tuple[Count, ...] = ()  # that have a plain feed-forward
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalizes: bool = True  # whether the weights of a token's experts sum to `scale`
    scale: Factor = 1.0
    num_groups: Size = 1
    groups_per_token: Size = 1
    has_router_bias: bool = False
    has_selection_bias: bool = False
    has_bias: bool = False  # in the experts' products
    activation: Activation = "silu"


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the cache holds one latent vector for all heads."""

    __pydantic_config__ = _STRICT

    query_rank: Size | None  # of the low-rank query; None for a full one
    latent_size: Size  # of the vector from which every head's keys and values are made
    rope_size: Size  # of the key that turns, shared by all heads
    nope_size: Size  # of each head's key that does not turn
    value_size: Size  # of each head


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder; the defaults are Llama: RMS norm, rotary positions, grouped-query attention, gated SiLU."""

    __pydantic_config__ = _STRICT

    family: ClassVar[str] = "decoder"

    num_layers: Size
    hidden_size: Size
    num_heads: Size
    num_kv_heads: Size
    head_size: Size
    intermediate_size: Size
    vocab_size: Size
    max_positions: Size
    architecture: str = "llama"  # name of the published family
    norm_epsilon: Factor = 1e-5
    tie_embeddings: bool = False

    rope: Rope | None = Rope()
    ropeless_layers: tuple[Count, ...] = ()
    has_alibi: bool = False  # a bias linear in the distance, by head (arXiv 2108.12409)
    window: Count = 0  # positions that a sliding layer sees, its own included; 0 if none slides
    sliding_layers: tuple[Count, ...] = ()
    sliding_rope: Rope | None = None  # of sliding layers, if it is another

    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_qk_norm: bool = False
    has_sinks: bool = False  # a logit of each head that takes weight from the context and gives nothing
    score_scale: FactorOrZero = 0.0  # of query-key products; 0 means head_size ** -0.5
    score_cap: FactorOrZero = 0.0  # cap * tanh(score / cap); 0 for none
    logit_cap: FactorOrZero = 0.0

    norm: Literal["rms", "rms_unit_offset", "layer"] = "rms"  # unit offset: times 1 + weight
    has_embedding_norm: bool = False
    has_post_norms: bool = False  # norms of what attention and feed-forward add
    residual: Literal["sequential", "parallel", "parallel_shared_norm"] = "sequential"
    embedding_scale: Factor = 1.0
    activation: Activation = "silu"
    is_gated: bool = True
    has_mlp_bias: bool = False

    experts: Experts | None = None
    latent: LatentAttention | None = None
    stored_form: StoredForm | None = None  # how the weights of the stored parts are kept; None: as dense arrays
    stored_parts: tuple[StoredPart, ...] = ()

    @property
    def cache_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(heads, size) of the two arrays that one token leaves in each layer's cache: keys and values, or MLA's
        latent vector and rotary key."""
        if self.latent is not None:
            return (1, self.latent.latent_size), (1, self.latent.rope_size)
        return (self.num_kv_heads, self.head_size), (self.num_kv_heads, self.head_size)

    @property
    def kv_values_per_token(self) -> int:
        """Number of values that one token leaves in the cache, over all layers."""
        return self.num_layers * sum(heads * size for heads, size in self.cache_shapes)

    @property
    def dense(self) -> DecoderConfig:
        """The same architecture with all weights as dense arrays."""
        return replace(self, stored_form=None, stored_parts=())

    def stored_as(self, form: StoredForm) -> DecoderConfig:
        """The same architecture with the weights of attention, feed-forward and experts in a stored form."""
        parts: tuple[StoredPart, ...] = ("attention", "mlp", "experts") if self.experts else ("attention", "mlp")
        return replace(self, stored_form=form, stored_parts=parts)

    def form_of(self, part: StoredPart) -> StoredForm | None:
        """Returns the form in which the weights of a part are stored, or None if they are dense."""
        return self.stored_form if part in self.stored_parts else None

    def has_experts(self, layer: int) -> bool:
        """Returns whether a layer's feed-forward is a mixture of experts."""
        return self.experts is not None and layer not in self.experts.dense_layers


@dataclass(frozen=True)
class EncoderConfig:
    """A BERT-family encoder: learned positions, post-layer norm, plain feed-forward; BERT, RoBERTa, DistilBERT.

    `head` says what a forward pass yields: "embedding" pools the last hidden states into one normalized vector of
    `hidden_size`; "masked_lm" gives SPLADE's sparse vector of `vocab_size`, max over tokens of log1p(relu(logits));
    "classification" gives one logit for each of `labels`, from the first token.
    """

    __pydantic_config__ = _STRICT

    family: ClassVar[str] = "bert"

    num_layers: Size
    hidden_size: Size
    num_heads: Size
    intermediate_size: Size
    vocab_size: Size
    max_positions: Size  # tokens of the longest sequence
    num_token_types: Count = 2  # 0 if there is no embedding of them
    norm_epsilon: Factor = 1e-12
    head: Literal["embedding", "masked_lm", "classification"] = "embedding"
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    position_offset: Count = 0  # position of the first token
    pooling: Literal["mean", "cls"] = "mean"  # of an embedding
    labels: tuple[str, ...] = ()  # of a classifier
    classifier_activation: Literal["tanh", "relu"] = "tanh"
    is_multi_label: bool = False  # whether labels are independent of each other, not one of all
    separator_token_id: Count | None = None  # of a classifier: what comes after the first of these has token type 1

    @property
    def dense(self) -> EncoderConfig:
        """The same architecture with all weights as dense arrays, as an encoder's always are."""
        return self

    @property
    def output_size(self) -> int:
        """Length of the vector that a forward pass yields for each sequence."""
        sizes = {"embedding": self.hidden_size, "masked_lm": self.vocab_size, "classification": len(self.labels)}
        return sizes[self.head]


ModelConfig: TypeAlias = DecoderConfig | EncoderConfig

_FAMILIES: dict[str, type[DecoderConfig] | type[EncoderConfig]] = {
    config.family: config for config in (DecoderConfig, EncoderConfig)
}


@functools.cache
def _adapter(family: str) -> pydantic.TypeAdapter[ModelConfig]:
    return pydantic.TypeAdapter(_FAMILIES[family])


def config_to_json(config: ModelConfig) -> dict[str, Json]:
    """Returns the configuration as JSON, tagged with its family; fields at their defaults are left out."""
    return {"family": config.family, **_adapter(config.family).dump_python(config, mode="json", exclude_defaults=True)}


def config_from_json(data: dict[str, Json]) -> ModelConfig:
    """Returns the configuration that `config_to_json` wrote.

    Raises:
        ConfigurationError: if the family is unknown or a field is missing, superfluous or of the wrong type.
    """
    values = dict(data)
    family = values.pop("family", None)
    if not isinstance(family, str) or family not in _FAMILIES:
        raise ConfigurationError(f"unknown model family {family!r}; known: {', '.join(sorted(_FAMILIES))}")
    try:
        return _adapter(family).validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{family} configuration: {where}: {first['msg']}") from None
