"""`plait models`: what can be pulled, and what is here."""

from __future__ import annotations

from .options import Json
from .output import format_bytes, print_json, print_table

__all__ = ["models"]


def models(json: Json = False) -> None:
    """List the named models, and which are here.

    Any other model is named by its path: a .gguf file or a Hugging Face directory.

    \b
    plait models
    plait models --json
    """
    from ..models import registry

    pulled = registry.pulled_models()
    if json:
        print_json(
            [
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
        )
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
    print_table(["model ", "description ", "licence ", "size", "path "], rows)
