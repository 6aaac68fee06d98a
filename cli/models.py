"""`plait models`: what can be pulled, what is here, and what can be planned without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Json
from .output import format_bytes, format_count, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models.hub import CachedModel
    from ..models.registry import PulledModel
    from ..models.zoo.catalog import ZooEntry

__all__ = ["models"]


def models(json: Json = False) -> None:
    """List the named models, what is here, and the zoo.

    Named models have weights to pull; what the Hub's cache has follows, whichever tool put it there. Models of the zoo
    are configurations, for plait compile. Any other model is named by its path, a .gguf file or a Hugging Face
    directory, or as hf:ORG/NAME.

    \b
    plait models
    plait models --json
    """
    from ..models import hub, registry
    from ..models.zoo import catalog

    pulled, cached, zoo = registry.pulled_models(), hub.cached_models(), catalog.entries()
    if json:
        print_json([*map(_named_json, pulled), *map(_cached_json, cached), *map(_zoo_json, zoo)])
    else:
        _print_models(pulled, cached)
        _print_zoo(zoo)


def _named_json(entry: PulledModel) -> dict[str, object]:
    return {
        "kind": "named",
        "name": entry.model.name,
        "description": entry.model.description,
        "licence": entry.model.licence,
        "bytes": entry.model.size_bytes,
        "is_cached": entry.path is not None,
        "path": None if entry.path is None else str(entry.path),
    }


def _cached_json(model: CachedModel) -> dict[str, object]:
    return {
        "kind": "hub",
        "name": model.source,
        "description": "in the cache of the Hugging Face Hub",
        "licence": None,
        "bytes": model.size_bytes,
        "is_cached": True,
        "path": str(model.path),
    }


def _zoo_json(entry: ZooEntry) -> dict[str, object]:
    return {
        "kind": "zoo",
        "name": entry.name,
        "description": entry.description,
        "licence": entry.licence,
        "source": entry.source,
        "parameters": entry.published_parameters,
    }


def _print_models(pulled: Sequence[PulledModel], cached: Sequence[CachedModel]) -> None:
    rows = [
        (
            entry.model.name,
            entry.model.description,
            entry.model.licence,
            format_bytes(entry.model.size_bytes),
            f"not here: plait pull {entry.model.name}" if entry.path is None else entry.path,
        )
        for entry in pulled
    ]
    rows += [
        (model.source, "of the Hugging Face Hub", "", format_bytes(model.size_bytes), model.path) for model in cached
    ]
    print_table(["model ", "description ", "licence ", "size", "path "], rows)


def _print_zoo(zoo: Sequence[ZooEntry]) -> None:
    rows = [
        (entry.name, entry.description, entry.licence, format_count(entry.published_parameters), entry.source)
        for entry in zoo
    ]
    columns = ["zoo ", "description ", "licence ", "parameters", "source "]
    print_table(columns, rows, title="\nplanned by plait compile, without weights:")
