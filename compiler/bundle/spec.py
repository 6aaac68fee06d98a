"""The bundle file (`agent.yaml`): what a user writes to get a bundle.

Comes in: YAML. Goes out: a `BundleSpec`, checked field by field. Sizes are written with units (`330MiB`), rates as
`2/s`. What a model's own files say (context length, pooling, end-of-text tokens) need not be repeated.

`copies`, `devices`, `configurations` and `routable` are for targets that are planned only (racks).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import pydantic
import yaml

from ...errors import ConfigurationError
from ...models.config import StoredForm
from ..mesh import Mesh
from .manifest import Route, Sampling

__all__ = [
    "PIPELINE",
    "BudgetSpec",
    "BundleSpec",
    "ModelSpec",
    "PairSpec",
    "ShapeSpec",
    "WeightForm",
    "parse_bytes",
    "read_documents",
    "read_spec",
    "to_spec",
]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # fit for a folder and for a URL

Name: TypeAlias = Annotated[str, pydantic.StringConstraints(pattern=_NAME, max_length=64)]
Dtype: TypeAlias = Literal["float32", "bfloat16"]
WeightForm: TypeAlias = Literal["dense", "stored"] | StoredForm

PIPELINE = "pipeline"  # the axis of a mesh along which layers are cut into stages
_MAX_DEVICES = 1024
_PLANNED_ONLY = ("copies", "devices", "configurations", "routable")  # fields of a model

_DTYPES: dict[str, Dtype] = {"f32": "float32", "fp32": "float32", "bf16": "bfloat16"}


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class BudgetSpec(_Strict):
    """Bytes that the bundle may use of each tier on each device; None is the target's capacity."""

    hbm: Annotated[pydantic.ByteSize, pydantic.Field(gt=0)] | None = None
    ddr: Annotated[pydantic.ByteSize, pydantic.Field(gt=0)] | None = None


class ShapeSpec(_Strict):
    """A context length and a batch size that a model is to be planned in."""

    sequence: Annotated[int, pydantic.Field(ge=16)]  # longest context, tokens
    batch: Annotated[int, pydantic.Field(ge=1, le=1024)]  # most sequences at once


class PairSpec(_Strict):
    """Two models of speculative decoding; where they are only planned, hot together or not at all."""

    draft: Name
    target: Name
    tokens: Annotated[int, pydantic.Field(ge=1, le=16)] = 4  # that the draft proposes at once


class ModelSpec(_Strict):
    """One model of the bundle file; None is the model's or plait's default."""

    source: str
    dtype: Dtype = "float32"  # that the model is computed in
    weights: WeightForm = "dense"  # how the products' weights are kept: in dtype, as in the source, or in another form
    sequence: Annotated[int, pydantic.Field(ge=16)] | None = None  # longest context, tokens
    batch: Annotated[int, pydantic.Field(ge=1, le=1024)] | None = None  # most sequences at once
    kv_tokens: Annotated[int, pydantic.Field(ge=16)] | None = None  # room of the KV pool, all sequences together
    aliases: tuple[Name, ...] = ()
    pin: Literal["hbm", "ddr"] | None = None
    sampling: Sampling | None = None
    mesh: dict[Name, Annotated[int, pydantic.Field(ge=1, le=1024)]] = {}  # devices by axis; "pipeline" counts stages
    copies: Annotated[int, pydantic.Field(ge=1, le=1_000_000)] = 1  # models of these shapes, each with its own weights
    devices: Annotated[
        int | None,
        pydantic.Field(ge=1, le=_MAX_DEVICES, validation_alias=pydantic.AliasChoices("devices", "sockets")),
    ] = None  # that the model is divided over; all of the target's by default
    configurations: tuple[ShapeSpec, ...] = ()  # instead of one sequence and batch
    routable: bool = True  # whether requests ask for it by itself

    @pydantic.field_validator("dtype", mode="before")
    @classmethod
    def _long_name(cls, value: object) -> object:
        return _DTYPES.get(value, value) if isinstance(value, str) else value

    @property
    def stage_mesh(self) -> Mesh:
        """The mesh of one stage: all axes but "pipeline", those of one device left out."""
        shape = {axis: size for axis, size in self.mesh.items() if axis != PIPELINE and size > 1}
        return Mesh(tuple(shape), tuple(shape.values()))

    @property
    def num_stages(self) -> int:
        """Pipeline stages, one after the other on devices of their own."""
        return self.mesh.get(PIPELINE, 1)

    @property
    def num_devices(self) -> int:
        """Devices of all stages."""
        return self.stage_mesh.num_devices * self.num_stages

    @pydantic.model_validator(mode="after")
    def _mesh_has_a_size(self) -> ModelSpec:
        if self.num_devices > _MAX_DEVICES:
            raise ValueError(f"a mesh of {self.num_devices} devices is more than the {_MAX_DEVICES} that are possible")
        if self.mesh and self.devices not in (None, self.num_devices):
            raise ValueError(
                f"the mesh has {self.num_devices} devices, `devices` says {self.devices}; give one of them"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _one_way_to_say_shapes(self) -> ModelSpec:
        if self.configurations and (self.sequence is not None or self.batch is not None):
            raise ValueError("give either `configurations` or `sequence` and `batch`")
        return self


class BundleSpec(_Strict):
    """A bundle file."""

    bundle: Name
    target: str
    budget: BudgetSpec = BudgetSpec()
    models: Annotated[dict[Name, ModelSpec], pydantic.Field(min_length=1)]
    traffic: dict[str, float] | str | None = None  # requests per second by model, or the path of a trace
    workflows: dict[Name, tuple[str, ...]] = {}
    routes: dict[Name, Route] = {}
    speculative: tuple[PairSpec, ...] = ()

    @pydantic.field_validator("traffic", mode="before")
    @classmethod
    def _rates(cls, value: object) -> object:
        return {name: _rate(rate) for name, rate in value.items()} if isinstance(value, dict) else value

    @pydantic.model_validator(mode="after")
    def _names_are_known(self) -> BundleSpec:
        names = [name for model, spec in self.models.items() for name in (model, *spec.aliases)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the name {twice[0]!r} is given to two models")
        if taken := [name for name in self.routes if name in names or self.copy_named(name) is not None]:
            raise ValueError(f"the name {taken[0]!r} is given to a model and a route")
        used = [step for steps in self.workflows.values() for step in steps]
        used += [name for route in self.routes.values() for name in route.models]
        used += list(self.traffic) if isinstance(self.traffic, dict) else []
        used += [name for pair in self.speculative for name in (pair.draft, pair.target)]
        if unknown := sorted(name for name in set(used) - set(names) if self.copy_named(name) is None):
            raise ValueError(f"{unknown[0]!r} is no model of this bundle; models: {', '.join(names)}")
        return self

    @pydantic.model_validator(mode="after")
    def _one_draft_each(self) -> BundleSpec:
        targets = [self.name_of(pair.target) for pair in self.speculative]
        if twice := sorted({name for name in targets if targets.count(name) > 1}):
            raise ValueError(f"model {twice[0]!r} is the target of two pairs; it can have one draft")
        if alone := [pair.draft for pair in self.speculative if self.name_of(pair.draft) == self.name_of(pair.target)]:
            raise ValueError(f"model {alone[0]!r} is its own draft; name another model, which may have the same source")
        return self

    def name_of(self, name: str) -> str:
        """Returns the model of a name or alias; a name of no model is returned as it is."""
        return next((model for model, spec in self.models.items() if name in spec.aliases), name)

    def copy_named(self, name: str) -> tuple[str, int] | None:
        """Returns the model and the number of the copy called `MODEL-NUMBER`, from 0; None if there is none."""
        model, _, number = name.rpartition("-")
        is_copy = model in self.models and number.isdecimal() and int(number) < self.models[model].copies
        return (model, int(number)) if is_copy and self.models[model].copies > 1 else None

    def check_runnable(self) -> None:
        """Checks that nothing is asked for that can be planned, but not run.

        Raises:
            ConfigurationError: naming the first field.
        """
        fields = [f"models.{name}.{field}" for name, model in self.models.items() for field in _used(model)]
        if fields:
            raise ConfigurationError(
                f"{fields[0]} is for targets that are only planned, such as sn40l-16; target {self.target!r} runs"
            )


def parse_bytes(text: str | int) -> int:
    """Returns a number of bytes from text such as `330MiB`, `2GB` or `1048576`.

    Raises:
        ConfigurationError: if it is none, or not positive.
    """
    try:
        size = int(pydantic.TypeAdapter(pydantic.ByteSize).validate_python(text))
    except pydantic.ValidationError:
        size = 0
    if size <= 0:
        raise ConfigurationError(f"{text!r} is no size in bytes; write for example 330MiB, 2GB or 1048576")
    return size


def read_spec(path: str | Path) -> BundleSpec:
    """Reads a bundle file.

    Raises:
        ConfigurationError: naming the field that is wrong.
    """
    documents = read_documents(path)
    return to_spec(documents[0] if len(documents) == 1 else documents, Path(path))


def read_documents(path: str | Path) -> list[object]:
    """Returns the YAML documents of a file.

    Raises:
        ConfigurationError: if it cannot be read, or is not YAML.
    """
    path = Path(path)
    try:
        return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"cannot read bundle file {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def to_spec(data: object, path: Path) -> BundleSpec:
    """Returns a bundle file's content as a spec.

    Args:
        data: As YAML has it.
        path: Of the file, for messages.

    Raises:
        ConfigurationError: naming the field that is wrong.
    """
    try:
        return BundleSpec.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        found = f" (found {first['input']!r})" if where and not isinstance(first["input"], dict) else ""
        raise ConfigurationError(f"{path}: {where + ': ' if where else ''}{first['msg']}{found}") from None


def _used(model: ModelSpec) -> list[str]:
    return [field for field in _PLANNED_ONLY if getattr(model, field) != ModelSpec.model_fields[field].default]


def _rate(text: object) -> object:
    """Returns requests per second from `2/s`, `30/min` or a number; anything else is left to the validator."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*/\s*(s|min|h)\s*", text) if isinstance(text, str) else None
    if match is None:
        return text
    try:
        return float(match[1]) / {"s": 1, "min": 60, "h": 3600}[match[2]]
    except ValueError:
        return text
