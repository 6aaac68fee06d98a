"""`plait models`: what can be pulled, and what is here."""

from __future__ import annotations

from .options import Json
from .output import format_bytes, print_json, print_table

__all__ = ["models"]


def models(json: Json = False) -> None:
    """List the named models, and what is here.

    What the Hub's cache has follows, whichever tool put it there. Any other model is named by its path, a .gguf file
    or a Hugging Face directory, or as hf:ORG/NAME.

    \b
    plait models
    plait models --json
    """
    from ..models import hub, registry

    pulled = registry.pulled_models()
    cached = hub.cached_models()
    if json:
        named = [
            {
                "name": entry.model.name,
                "description": entry.model.description,
                "licence": entry.model.licence,
                "bytes": entry.model.size_bytes,
                "is_cached": entry.path is not None,
                "path": None if entry.path is None else str(entry.path),
            }
            for entry in pulled
        ]
        rest = {"description": "in the cache of the Hugging Face Hub", "licence": None}
        others = [
            {"name": model.source, **rest, "bytes": model.size_bytes, "is_cached": True, "path": str(model.path)}
            for model in cached
        ]
        print_json(named + others)
        return
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
