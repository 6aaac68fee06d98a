"""`plait pull`: models into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from .options import Json
from .output import format_bytes, print_json, print_table, progress_bars

__all__ = ["pull"]


def pull(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Names of `plait models`, or hf:ORG/NAME[@REVISION][:FILE.gguf]."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Pull all named models.")] = False,
    json: Json = False,
) -> None:
    """Download named models or models of the Hub, once.

    What is in the cache already needs no network. Named models are checked against their digests, and a download that
    was cut goes on where it stopped. Of the Hugging Face Hub only what plait reads is fetched, never a pickle, into the
    Hub's own cache (HF_HOME), and files that are complete are kept when a pull is cut; HF_TOKEN opens what is gated.

    \b
    plait pull smollm2-135m minilm-l6
    plait pull hf:HuggingFaceTB/SmolLM2-135M-Instruct
    plait pull --all
    """
    from ..models import hub, registry

    chosen = list(dict.fromkeys(sources or ())) or (list(registry.NAMED_MODELS) if everything else [])
    for source in chosen:
        if hub.is_hub_source(source):
            hub.HubModel.parse(source)  # nothing is pulled if one of them cannot be
        elif source not in registry.NAMED_MODELS:
            raise ConfigurationError(
                f"no named model {source!r}; the named models are {', '.join(registry.NAMED_MODELS)}, "
                "and one of the Hub is written hf:ORG/NAME"
            )
    if not chosen or (sources and everything):
        raise ConfigurationError(
            f"name models to pull or say --all: {', '.join(registry.NAMED_MODELS)}, or hf:ORG/NAME"
        )
    paths = {}
    with progress_bars() as bars:
        for source in chosen:
            paths[source] = registry.resolve(
                source,
                base=Path(),
                progress=lambda done, total, name=source: bars.update(f"pull {name}", done, total, are_bytes=True),
            )
    sizes = {source: _size_bytes(path) for source, path in paths.items()}
    if json:
        print_json([{"name": source, "bytes": sizes[source], "path": str(paths[source])} for source in chosen])
    else:
        rows = [(source, format_bytes(sizes[source]), paths[source]) for source in chosen]
        print_table(["model ", "size", "path "], rows)


def _size_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
