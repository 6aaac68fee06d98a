"""What is compiled: the model that a source names, in the form that its weights are kept in, and its sizes.

Comes in: a source: an entry of the zoo, a named model, `hf:ORG/NAME`, or the path of a config.json, a directory with
one, an orbax directory or a .gguf file. Goes out: a `Subject`. Weights are not read; where there is a config.json, they
need not be there.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from pydantic import RootModel

from ..errors import ConfigurationError
from ..models import registry
from ..models.checkpoint import open_checkpoint
from ..models.checkpoint.contents import ORBAX_DESCRIPTION
from ..models.checkpoint.files import read_fields
from ..models.checkpoint.hf_config import config_from_huggingface
from ..models.checkpoint.huggingface import read_config
from ..models.config import DecoderConfig, ModelConfig, StoredForm
from ..models.family import build
from ..models.hub import is_hub_source
from ..models.zoo import catalog

__all__ = ["ModelSizes", "Subject", "Weights", "model_sizes", "read_subject", "with_weights"]

Weights: TypeAlias = Literal["stored", "dense"] | StoredForm

_HALF_TYPES = ("bfloat16", "float16")
_EXPERT = re.compile(r"layers\.(\d+)\.mlp\.(gate|up|down)\.\w+")


@dataclass(frozen=True)
class Subject:
    """A model to be compiled."""

    config: ModelConfig
    dtype: str  # to compute in unless told otherwise: "bfloat16" if it was published in 16 bits, else "float32"


@dataclass(frozen=True)
class ModelSizes:
    """Numbers that follow from a model's configuration alone."""

    parameters: int  # numbers that were trained; scales of stored forms are none
    active_parameters: int  # all but those of the experts that a token does not go to; embedding and head are in
    weight_bytes: int  # as they are stored, scales included
    kv_bytes_per_token: int  # of all layers; 0 for an encoder


def read_subject(source: str, *, base: Path, progress: registry.Progress | None = None) -> Subject:
    """Returns the model that a source names; a named model is pulled if need be.

    Args:
        source: As the module says.
        base: What a relative path is relative to.
        progress: Told how far a download is.

    Raises:
        ConfigurationError: if there is no such model.
        ModelError: if it is there and cannot be read.
    """
    if source in catalog.names():
        fields = catalog.entry(source).config
        return Subject(config_from_huggingface(fields, Path(f"{source}.json")), _published_dtype(fields))
    _check_exists(source, base)
    path = registry.resolve_config(source, base=base, progress=progress)
    if (path / ORBAX_DESCRIPTION).is_file():
        return Subject(open_checkpoint(path).config, "float32")
    file = path / "config.json" if path.is_dir() else path
    if file.suffix != ".json":
        return Subject(open_checkpoint(path).config, "float32")
    config = read_config(file)
    return Subject(config, _published_dtype(read_fields(RootModel[dict[str, object]], file).root))


def _check_exists(source: str, base: Path) -> None:
    is_path = (base / Path(source).expanduser()).exists()
    if is_path or source in registry.NAMED_MODELS or is_hub_source(source):
        return
    known = [*registry.NAMED_MODELS, *catalog.names()]
    close = difflib.get_close_matches(source.lower(), known, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    raise ConfigurationError(
        f"no model {source!r}: {guess or 'it is no path; '}the models with a name are {', '.join(known)}, "
        "one of the Hub is written hf:ORG/NAME, any other is a path"
    )


def _published_dtype(fields: dict[str, object]) -> str:
    return "bfloat16" if fields.get("dtype", fields.get("torch_dtype")) in _HALF_TYPES else "float32"


def with_weights(config: ModelConfig, weights: Weights) -> ModelConfig:
    """Returns a model with its weights kept in another form.

    Args:
        config: The model.
        weights: "stored" leaves it as it is, "dense" makes every weight an array of the type it is computed in, a
            stored form is that of all products of the layers.

    Raises:
        ConfigurationError: if the model is an encoder, whose weights are dense.
    """
    if weights == "stored":
        return config
    if isinstance(config, DecoderConfig):
        return config.dense if weights == "dense" else config.stored_as(weights)
    if weights != "dense":
        raise ConfigurationError(f"weights stored as {weights} are for decoders, not for a {config.family} model")
    return config


def model_sizes(config: ModelConfig, dtype: str) -> ModelSizes:
    """Returns the sizes of a model.

    Args:
        config: The model.
        dtype: Of dense weights and of the KV cache.
    """
    parameters = build(config, dtype).parameters
    sizes = {name: _num_values(parameter) for name, parameter in parameters.items() if not name.endswith(".scales")}
    is_decoder = isinstance(config, DecoderConfig)
    return ModelSizes(
        parameters=sum(sizes.values()),
        active_parameters=sum(_active(name, size, config) for name, size in sizes.items()),
        weight_bytes=sum(math.prod(parameter.shape) * parameter.dtype.itemsize for parameter in parameters.values()),
        kv_bytes_per_token=config.kv_values_per_token * jnp.dtype(dtype).itemsize if is_decoder else 0,
    )


def _num_values(parameter: jax.ShapeDtypeStruct) -> int:
    """Returns how many weights an array holds: of a stored form with 4 bits two in a byte."""
    return math.prod(parameter.shape) * (2 if parameter.dtype == jnp.uint8 else 1)


def _active(name: str, size: int, config: ModelConfig) -> int:
    """Returns how many values of a parameter one token meets."""
    match = _EXPERT.fullmatch(name)
    if match is None or not isinstance(config, DecoderConfig) or not config.has_experts(int(match[1])):
        return size
    assert config.experts is not None
    return size * config.experts.experts_per_token // config.experts.num_experts
