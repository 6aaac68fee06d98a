"""`plait convert`: a checkpoint of any kind as an orbax directory, for programs that train or restore in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Json
from .output import format_bytes, print_json, progress_bars

__all__ = ["convert"]

_DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Named model, hf: source, .gguf file or directory.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to be made.")],
    dtype: Annotated[Literal["f32", "bf16"], typer.Option(help="Of the weights in it.")] = "f32",
    json: Json = False,
) -> None:
    """Write a model as an orbax directory.

    A bundle file takes it as a source like any other checkpoint, and JAX programs restore it without plait. Weights
    that are stored in fewer bits are dequantized. The directory appears when it is complete.

    \b
    plait convert smollm2-135m -o smollm2 --dtype bf16
    plait convert hf:HuggingFaceTB/SmolLM2-360M-Instruct -o smollm2-360m
    """
    from ..models import registry
    from ..models.checkpoint import open_checkpoint
    from ..models.checkpoint.orbax import write_orbax

    with progress_bars() as bars:
        path = registry.resolve(
            source,
            base=Path(),
            progress=lambda done, total: bars.update(f"pull {source}", done, total, are_bytes=True),
        )
        checkpoint = open_checkpoint(path)
        write_orbax(
            output, checkpoint, dtype=_DTYPES[dtype], progress=lambda done, total: bars.update("read", done, total)
        )
    num_bytes = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    if json:
        print_json({"path": str(output), "bytes": num_bytes, "tensors": len(checkpoint.tensor_names), "dtype": dtype})
    else:
        print(f"wrote {output}: {len(checkpoint.tensor_names)} tensors, {format_bytes(num_bytes)}")
