"""The bundle file (`agent.yaml`): what a user writes to get a bundle.

Comes in: YAML. Goes out: a `BundleSpec`, checked field by field. Sizes are written with units (`330MiB`), rates as
`2/s`. What a model's own files say (context length, pooling, end-of-text tokens) need not be repeated.
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
from .manifest import Sampling

__all__ = ["PIPELINE", "BudgetSpec", "BundleSpec", "ModelSpec", "WeightForm", "parse_bytes", "read_spec"]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # fit for a folder and for a URL

Name: TypeAlias = Annotated[str, pydantic.StringConstraints(pattern=_NAME, max_length=64)]
Dtype: TypeAlias = Literal["float32", "bfloat16"]
WeightForm: TypeAlias = Literal["dense", "stored"] | StoredForm

PIPELINE = "pipeline"  # the axis of a mesh along which layers are cut into stages
_MAX_DEVICES = 1024

_DTYPES: dict[str, Dtype] = {"f32": "float32", "fp32": "float32", "bf16": "bfloat16"}


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class BudgetSpec(_Strict):
    """Bytes that the bundle may use of each tier on each device; None is the target's capacity."""

    hbm: Annotated[pydantic.ByteSize, pydantic.Field(gt=0)] | None = None
    ddr: Annotated[pydantic.ByteSize, pydantic.Field(gt=0)] | None = None


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
        return self


class BundleSpec(_Strict):
    """A bundle file."""

    bundle: Name
    target: str
    budget: BudgetSpec = BudgetSpec()
    models: Annotated[dict[Name, ModelSpec], pydantic.Field(min_length=1)]
    traffic: dict[str, float] | str | None = None  # requests per second by model, or the path of a trace
    workflows: dict[Name, tuple[str, ...]] = {}

    @pydantic.field_validator("traffic", mode="before")
    @classmethod
    def _rates(cls, value: object) -> object:
        return {name: _rate(rate) for name, rate in value.items()} if isinstance(value, dict) else value

    @pydantic.model_validator(mode="after")
    def _names_are_known(self) -> BundleSpec:
        names = [name for model, spec in self.models.items() for name in (model, *spec.aliases)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the name {twice[0]!r} is given to two models")
        used = [step for steps in self.workflows.values() for step in steps]
        used += list(self.traffic) if isinstance(self.traffic, dict) else []
        if unknown := sorted(set(used) - set(names)):
            raise ValueError(f"{unknown[0]!r} is no model of this bundle; models: {', '.join(names)}")
        return self


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
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"cannot read bundle file {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return BundleSpec.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        found = f" (found {first['input']!r})" if where and not isinstance(first["input"], dict) else ""
        raise ConfigurationError(f"{path}: {where + ': ' if where else ''}{first['msg']}{found}") from None


def _rate(text: object) -> object:
    """Returns requests per second from `2/s`, `30/min` or a number; anything else is left to the validator."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*/\s*(s|min|h)\s*", text) if isinstance(text, str) else None
    if match is None:
        return text
    try:
        return float(match[1]) / {"s": 1, "min": 60, "h": 3600}[match[2]]
    except ValueError:
        return text
