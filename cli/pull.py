"""`plait pull`: named models into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ConfigurationError
from .options import Json
from .output import format_bytes, print_json, print_table, progress_bars

__all__ = ["pull"]


def pull(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Names of `plait models`.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Pull all named models.")] = False,
    json: Json = False,
) -> None:
    """Download named models, once.

    Each file is checked against its digest. A download that was cut goes on where it stopped; what is in the cache
    already needs no network.

    \b
    plait pull smollm2-135m minilm-l6
    plait pull --all
    """
    from ..models import registry

    chosen = list(dict.fromkeys(names or ())) or (list(registry.NAMED_MODELS) if everything else [])
    if unknown := [name for name in chosen if name not in registry.NAMED_MODELS]:
        raise ConfigurationError(
            f"no named model {unknown[0]!r}; the named models are {', '.join(registry.NAMED_MODELS)}"
        )
    if not chosen or (names and everything):
        raise ConfigurationError(f"name models to pull or say --all: {', '.join(registry.NAMED_MODELS)}")
    paths = {}
    with progress_bars() as bars:
        for name in chosen:
            paths[name] = registry.pull(
                name, progress=lambda done, total, name=name: bars.update(f"pull {name}", done, total, are_bytes=True)
            )
    sizes = {name: registry.NAMED_MODELS[name].size_bytes for name in chosen}
    if json:
        print_json([{"name": name, "bytes": sizes[name], "path": str(paths[name])} for name in chosen])
    else:
        print_table(["model ", "size", "path "], [(name, format_bytes(sizes[name]), paths[name]) for name in chosen])
