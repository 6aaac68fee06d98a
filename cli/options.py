"""Arguments and options that several commands share, and how they become what the library takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from ..runtime.request import SamplingParams

__all__ = [
    "BundlePath",
    "HbmBytes",
    "Json",
    "MaxTokens",
    "PlanPath",
    "Seed",
    "System",
    "Temperature",
    "TopP",
    "WeightsForm",
    "check_text",
    "is_bundle",
    "sampling_params",
]

BundlePath: TypeAlias = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that `plait bundle` made.")]
PlanPath: TypeAlias = Annotated[
    Path, typer.Argument(metavar="PLAN", help="Directory that `plait compile -o` made, or its plan.json.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")]
HbmBytes: TypeAlias = Annotated[
    str | None,
    typer.Option("--hbm", metavar="BYTES", help="Bytes of hbm to use, e.g. 330MiB; the bundle's budget by default."),
]
MaxTokens: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Most tokens of an answer; until the context is full by default.")
]
Temperature: TypeAlias = Annotated[
    float | None, typer.Option(min=0, metavar="T", help="0 takes the likeliest token; the model's own by default.")
]
TopP: TypeAlias = Annotated[
    float | None,
    typer.Option("--top-p", min=0, max=1, metavar="P", help="Draw from the likeliest tokens that make up this share."),
]
Seed: TypeAlias = Annotated[int | None, typer.Option(min=0, metavar="S", help="Makes the draws repeatable.")]
WeightsForm: TypeAlias = Annotated[
    Literal["stored", "dense", "fp8", "mxfp4", "q8_0", "q4_0", "int8"],
    typer.Option(help="Form of the layers' weights; by default as the model stores them."),
]
System: TypeAlias = Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")]


def is_bundle(path: Path) -> bool:
    """Returns whether a path is what `plait bundle` makes, rather than a plan of `plait compile`."""
    return (path / "manifest.json").is_file()


def sampling_params(
    max_tokens: int | None, temperature: float | None, top_p: float | None, seed: int | None
) -> SamplingParams:
    """Returns the options as sampling parameters."""
    from ..runtime.request import SamplingParams

    return SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)


def check_text(what: str, text: str) -> str:
    """Returns a text from the command line.

    Raises:
        ConfigurationError: if it was not UTF-8, which Python marks by lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"the {what} is not UTF-8 text; convert it, e.g. with iconv") from None
    return text
