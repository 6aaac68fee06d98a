"""The catalog of the zoo: well-known models by name, as their publishers configured them; no weights.

Comes in: the JSON files beside this one. Goes out: `ZooEntry`s, whose `config` is what a model's config.json says and
`checkpoint.hf_config.config_from_huggingface` reads. A name is the name of a file.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources

import pydantic

from ...errors import ConfigurationError

__all__ = ["ZooEntry", "entries", "entry", "names"]


@dataclass(frozen=True)
class ZooEntry:
    """A model of the zoo."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    name: str
    description: str
    source: str  # repository on the Hugging Face Hub, ORG/NAME
    licence: str
    published_parameters: int  # as the publisher states them
    published_counts: str  # what that number counts
    config: dict[str, object]  # fields of config.json
    active_parameters: int | None = None  # of one token, as the publisher states them; None if it states none


@functools.cache
def names() -> tuple[str, ...]:
    """Returns the names of all entries, sorted."""
    files = resources.files(__package__ or "").iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


def entry(name: str) -> ZooEntry:
    """Returns the entry of a name.

    Raises:
        ConfigurationError: if there is none.
    """
    if name not in names():
        raise ConfigurationError(f"no model {name!r} in the zoo; it has {', '.join(names())}")
    text = (resources.files(__package__ or "") / f"{name}.json").read_text(encoding="utf-8")
    return _adapter().validate_python({"name": name, **json.loads(text)})


def entries() -> tuple[ZooEntry, ...]:
    """Returns all entries, sorted by name."""
    return tuple(entry(name) for name in names())


@functools.cache
def _adapter() -> pydantic.TypeAdapter[ZooEntry]:
    return pydantic.TypeAdapter(ZooEntry)
