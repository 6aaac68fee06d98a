"""`plait chat`: a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError, RequestError
from .options import BundlePath, HbmBytes, MaxTokens, Seed, System, Temperature, TopP, check_text, sampling_params
from .output import note
from .run import load_runtime

if TYPE_CHECKING:
    from ..compiler.bundle.manifest import Manifest, ModelEntry
    from ..runtime.engine import Runtime
    from ..runtime.request import SamplingParams

__all__ = ["chat"]


def chat(
    bundle: BundlePath,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Name or alias; the first chat model by default.")
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    system: System = None,
    hbm: HbmBytes = None,
) -> None:
    """Talk with a model of a bundle.

    It remembers what was said. /clear forgets the conversation, /exit or the end of input ends it. Questions may come
    through a pipe, one a line.

    \b
    plait chat agent.plait
    plait chat agent.plait chat --system "Answer in one sentence."
    plait chat agent.plait < questions.txt
    """
    from ..compiler.bundle.reader import open_bundle

    opened = open_bundle(bundle)
    entry = _chat_model(opened.manifest, model)
    opening = [] if system is None else [{"role": "system", "content": check_text("system message", system)}]
    params = sampling_params(max_tokens, temperature, top_p, seed)
    with load_runtime(opened, hbm) as runtime:
        _converse(runtime, entry.name, opening, params)


def _chat_model(manifest: Manifest, name: str | None) -> ModelEntry:
    able = [model for model in manifest.models if "chat" in model.capabilities]
    entry = manifest.model(name) if name is not None else next(iter(able), None)
    if entry is None or entry not in able:
        known = ", ".join(model.name for model in able) or "none"
        what = "the bundle has no model" if entry is None else f"{entry.name!r} is not a model"
        raise ConfigurationError(f"{what} to chat with; chat models: {known}")
    return entry


def _converse(runtime: Runtime, model: str, opening: list[dict[str, str]], params: SamplingParams) -> None:
    messages = list(opening)
    for question in _questions():
        if question == "/exit":
            return
        if question == "/clear":
            messages = list(opening)
            continue
        messages.append({"role": "user", "content": question})
        try:
            answer = _answer(runtime, model, messages, params)
        except RequestError as error:  # e.g. the conversation no longer fits
            messages.pop()
            note(f"{error}; /clear begins anew")
            continue
        messages.append({"role": "assistant", "content": answer})


def _answer(runtime: Runtime, model: str, messages: list[dict[str, str]], params: SamplingParams) -> str:
    pieces = []
    for piece in runtime.stream(model, messages, params):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print(flush=True)
    return "".join(pieces)


def _questions() -> Iterator[str]:
    """Yields the lines of standard input that say something, asking for them on a terminal."""
    if not sys.stdin.isatty():
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401 - gives `input` editing and history

    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line:
            yield line
