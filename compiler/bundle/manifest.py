"""The manifest: the plan of a bundle as data, and the digests of its files.

What the runtime charges, runs and answers from is all in here. Written by `writer.py`, read by `reader.py`; the types
below bound every number, and `consistency.py` checks that the parts agree. Unknown fields are an error: a manifest with
fields of a newer format has a newer version number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal, TypeAlias

import pydantic
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from ...errors import BundleIntegrityError, BundleVersionError, ModelNotFoundError
from ...models.config import DecoderConfig, EncoderConfig, config_from_json, config_to_json
from ..configuration import Configuration
from ..product_form import ProductForm
from ..target import Target
from .placement import DeviceShare, Placement
from .segments import Segment, segment_ends

__all__ = [
    "FORMAT_VERSION",
    "Accuracy",
    "Canary",
    "FileEntry",
    "KVPlan",
    "Manifest",
    "ModelEntry",
    "ProgramEntry",
    "Route",
    "Sampling",
    "SpeculativePair",
    "StageProgram",
    "TierBudget",
]

FORMAT_VERSION = 6
_OLDEST_VERSION = 4  # that is read: what has come since may be left out

_STRICT = pydantic.ConfigDict(extra="forbid")

Capability: TypeAlias = Literal["chat", "completion", "embedding", "sparse_embedding", "classification", "score"]
Sha256: TypeAlias = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Amount: TypeAlias = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Name: TypeAlias = Annotated[str, pydantic.StringConstraints(min_length=1)]


@dataclass(frozen=True)
class FileEntry:
    """Size and digests of one file of the bundle."""

    __pydantic_config__ = _STRICT

    size_bytes: NonNegativeInt
    sha256: Sha256  # of the whole file
    chunk_sha256: tuple[Sha256, ...]  # of each CHUNK_BYTES of it, the last one shorter


@dataclass(frozen=True)
class KVPlan:
    """The KV pool of a decoder: blocks of tokens, one array per layer."""

    __pydantic_config__ = _STRICT

    block_tokens: PositiveInt
    num_blocks: PositiveInt
    bytes_per_token: PositiveInt  # K and V of all layers
    dtype: str

    @property
    def pool_bytes(self) -> int:
        """Bytes of the whole pool."""
        return self.block_tokens * self.num_blocks * self.bytes_per_token


@dataclass(frozen=True)
class StageProgram:
    """The exported program of one pipeline stage."""

    __pydantic_config__ = _STRICT

    file: str
    temporary_bytes: NonNegativeInt  # of a device: XLA's buffer assignment on the machine that made the bundle
    output_bytes: NonNegativeInt  # of a device: results that are not donated arguments
    donated: tuple[NonNegativeInt, ...]  # positions of the arguments that the program may overwrite
    takes: tuple[NonNegativeInt, ...] = ()  # ids of the values that earlier stages hand it
    gives: tuple[NonNegativeInt, ...] = ()  # ids of those that it hands on; the last one's last is the result

    @property
    def workspace_bytes(self) -> int:
        """Bytes that a step needs on each device of the stage beside weights and KV."""
        return self.temporary_bytes + self.output_bytes


@dataclass(frozen=True)
class ProgramEntry:
    """One configuration, as an exported program for each stage, and what it costs to run."""

    __pydantic_config__ = _STRICT

    configuration: Configuration
    stages: Annotated[tuple[StageProgram, ...], pydantic.Field(min_length=1)]
    flops: NonNegativeInt  # of one step, as traced
    predicted_temporary_bytes: NonNegativeInt  # of a device, from the graph's live ranges, before compilation
    step_seconds: Amount  # measured when the bundle was made

    @property
    def workspace_bytes(self) -> int:
        """Most bytes that a step needs on any device beside weights and KV: temporaries and results."""
        return max(stage.workspace_bytes for stage in self.stages)


@dataclass(frozen=True)
class Sampling:
    """A model's own defaults, used where a request says nothing."""

    __pydantic_config__ = _STRICT

    temperature: Amount = 1.0
    top_p: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True)
class Canary:
    """What a model answers to a few tokens, if its weights are whole."""

    __pydantic_config__ = _STRICT

    prompt: Annotated[tuple[NonNegativeInt, ...], pydantic.Field(min_length=1)]
    tokens: tuple[NonNegativeInt, ...] = ()  # of a decoder: its greedy answer, as far as that is clear
    values: tuple[tuple[NonNegativeInt, float], ...] = ()  # of an encoder: some of its vector's, by position


@dataclass(frozen=True)
class Accuracy:
    """How a model of stored weights differs from the dense one, over the tokens of a text that the latter wrote."""

    __pydantic_config__ = _STRICT

    positions: PositiveInt
    kl_divergence: NonNegativeFloat  # nats, mean: of its distributions over the next token from the dense model's
    same_token: NonNegativeFloat  # share of positions where both find the same token likeliest


@dataclass(frozen=True)
class ModelEntry:
    """One model of the bundle."""

    __pydantic_config__ = _STRICT

    name: Name
    aliases: tuple[Name, ...]
    source: str  # as written in the bundle file
    capabilities: tuple[Capability, ...]
    architecture: dict[str, pydantic.JsonValue]  # `models.config.config_to_json`
    dtype: str  # of the weights
    sequence: PositiveInt  # longest context in tokens
    batch: PositiveInt  # most sequences at once
    pin: Literal["hbm", "ddr"] | None  # tier the model never leaves
    weights: str  # safetensors file
    weights_bytes: PositiveInt
    kv: KVPlan | None
    programs: Annotated[tuple[ProgramEntry, ...], pydantic.Field(min_length=1)]
    tokenizer: str  # tokenizer.json
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    eos_token_ids: tuple[NonNegativeInt, ...]
    sampling: Sampling = field(default_factory=Sampling)
    placement: Placement | None = None  # None: whole on the first device
    products: tuple[ProductForm, ...] = ()  # in which form products of a few rows were fastest where it was made
    canary: Canary | None = None
    accuracy: Accuracy | None = None  # None: the weights are those of the source, or it was not measured
    segments: tuple[Segment, ...] = ()  # of the weights, in the order in which they come to hbm; empty: all at once

    @property
    def config(self) -> DecoderConfig | EncoderConfig:
        """The architecture as a configuration."""
        return config_from_json(dict(self.architecture))

    @staticmethod
    def architecture_of(config: DecoderConfig | EncoderConfig) -> dict[str, pydantic.JsonValue]:
        """The JSON form of a configuration that `config` reads back."""
        return config_to_json(config)  # type: ignore[return-value]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV pool; 0 for an encoder."""
        return self.kv.pool_bytes if self.kv else 0

    @property
    def num_devices(self) -> int:
        """Devices that the model needs."""
        return 1 if self.placement is None else self.placement.num_devices

    @cached_property
    def shares(self) -> tuple[DeviceShare, ...]:
        """What each of its devices holds."""
        if self.placement is None:
            return (DeviceShare(self.weights_bytes, self.kv_bytes, self.workspace_bytes),)
        return tuple(
            DeviceShare(
                stage.weights_bytes, stage.kv_bytes, max(p.stages[number].workspace_bytes for p in self.programs)
            )
            for number, stage in enumerate(self.placement.stages)
            for _ in range(self.placement.mesh.num_devices)
        )

    @cached_property
    def segment_ends(self) -> tuple[tuple[int, ...], ...]:
        """Bytes on each device of no segment of the weights, of the first, of the first two, up to all of them."""
        whole = tuple(share.weights_bytes for share in self.shares)
        return segment_ends(self.segments, self.num_devices) if self.segments else ((0,) * len(whole), whole)

    @property
    def num_segments(self) -> int:
        """Parts in which the weights leave hbm."""
        return len(self.segment_ends) - 1

    @property
    def workspace_bytes(self) -> int:
        """Most bytes that any one step needs on a device beside weights and KV: temporaries and results."""
        return max(program.workspace_bytes for program in self.programs)

    @property
    def resident_bytes(self) -> int:
        """Bytes in hbm of the fullest device while the model is hot, without the workspace."""
        return max(share.resident_bytes for share in self.shares)

    @property
    def moved_bytes(self) -> int:
        """Bytes of weights that the fullest device gets when the model comes to a tier; devices load side by side."""
        return self.missing_bytes[0]

    @cached_property
    def missing_bytes(self) -> tuple[int, ...]:
        """Bytes of weights that the device gets that gets most, if it has no segment, the first, the first two."""
        whole = self.segment_ends[-1]
        return tuple(max(map(int.__sub__, whole, held)) for held in self.segment_ends)


@dataclass(frozen=True)
class SpeculativePair:
    """A model whose next tokens another one, of the same vocabulary, proposes."""

    __pydantic_config__ = _STRICT

    draft: Name
    target: Name
    tokens: PositiveInt  # that are proposed at once


@dataclass(frozen=True)
class TierBudget:
    """Bytes that the bundle may use of each tier, on each device."""

    __pydantic_config__ = _STRICT

    hbm: PositiveInt
    ddr: NonNegativeInt


@dataclass(frozen=True)
class Route:
    """Models that can stand for each other, and how the one that answers is chosen."""

    __pydantic_config__ = _STRICT

    models: Annotated[tuple[Name, ...], pydantic.Field(min_length=1)]  # by name or alias, the preferred one first
    policy: Literal["cheapest"] = "cheapest"


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle but the bytes of its files."""

    __pydantic_config__ = _STRICT

    name: Name
    target: Target
    budget: TierBudget
    models: tuple[ModelEntry, ...]
    files: dict[str, FileEntry]  # by path relative to the bundle, with "/" between parts
    versions: dict[str, str]  # of plait, jax and jaxlib that made it
    workflows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)  # names for models that can stand for each other
    traffic: dict[str, Amount] | str | None = None  # requests per second by model, or the path of a trace
    speculative: tuple[SpeculativePair, ...] = ()  # by the models' own names; a target has one draft
    format: Literal["plait-bundle"] = "plait-bundle"
    version: PositiveInt = FORMAT_VERSION

    @property
    def num_devices(self) -> int:
        """Devices that the bundle needs."""
        return max((model.num_devices for model in self.models), default=1)

    def model(self, name: str) -> ModelEntry:
        """Returns the model of that name or alias.

        Raises:
            ModelNotFoundError: if the bundle has none; the message lists those it has.
        """
        for model in self.models:
            if name == model.name or name in model.aliases:
                return model
        known = ", ".join(model.name for model in self.models)
        raise ModelNotFoundError(f"bundle {self.name!r} has no model {name!r}; it has: {known}")

    def to_json(self) -> str:
        """Returns the manifest as JSON text, stable for equal content."""
        return _ADAPTER.dump_json(self, indent=1).decode() + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Manifest:
        """Reads a manifest.

        Raises:
            BundleVersionError: if it is in a newer or an older format.
            BundleIntegrityError: if it is no manifest at all, or not a well-formed one.
        """
        try:
            header = _HEADER.validate_json(text, strict=True)
        except pydantic.ValidationError:
            raise BundleIntegrityError("manifest.json is damaged: it is not a plait bundle manifest") from None
        if not _OLDEST_VERSION <= header.version <= FORMAT_VERSION:
            remedy = "upgrade plait" if header.version > FORMAT_VERSION else "bundle its models again"
            raise BundleVersionError(
                f"bundle has format version {header.version}, this plait reads {_OLDEST_VERSION} to {FORMAT_VERSION}; "
                f"{remedy}"
            )
        try:
            return _ADAPTER.validate_json(text, strict=True)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleIntegrityError(f"manifest.json is damaged: {where}: {first['msg']}") from None


@dataclass(frozen=True)
class _Header:
    format: Literal["plait-bundle"]
    version: int


_ADAPTER = pydantic.TypeAdapter(Manifest)
_HEADER = pydantic.TypeAdapter(_Header)
