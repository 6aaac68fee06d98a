"""`plait run`: one question, one answer."""

from __future__ import annotations

import json as json_text
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError
from .options import BundlePath, HbmBytes, Json, MaxTokens, Seed, System, Temperature, TopP, check_text, sampling_params
from .output import print_json, progress_bars

if TYPE_CHECKING:
    from ..compiler.bundle.manifest import ModelEntry
    from ..compiler.bundle.reader import Bundle
    from ..runtime.engine import Prompt, Runtime, TextOrPair
    from ..runtime.request import SamplingParams

__all__ = ["load_runtime", "run"]


def run(
    bundle: BundlePath,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name or alias of a model of the bundle.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question or text; - reads standard input.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    system: System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Go on with the text as it is, without the chat template.")
    ] = False,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Score how well the text answers this; for rerankers and classifiers of pairs."
        ),
    ] = None,
    hbm: HbmBytes = None,
    json: Json = False,
) -> None:
    """Ask a model of a bundle one question.

    The answer alone is printed, as it comes. An embedding model prints its vector as JSON; a sparse one its tokens and
    their weights, the heaviest first; a classifier or reranker its labels and their probabilities.

    \b
    plait run agent.plait chat "What is the capital of France?" --temperature 0
    plait run agent.plait chat "Once upon a time" --raw --max-tokens 50 --seed 7
    plait run agent.plait embed "a passage" --json
    plait run agent.plait rank "Paris is the capital." --query "What is the capital of France?"
    """
    from ..compiler.bundle.reader import open_bundle

    opened = open_bundle(bundle)
    entry = opened.manifest.model(model)  # before programs are loaded
    text = check_text("prompt", _read_stdin() if prompt == "-" else prompt)
    is_classifier = bool({"classification", "score"} & set(entry.capabilities))
    if query is not None and not is_classifier:
        raise ConfigurationError(f"--query is for rerankers and classifiers; model {entry.name!r} is neither")
    if entry.kv is None:
        asked = None if query is None else check_text("query", query)
        with load_runtime(opened, hbm) as runtime:
            if is_classifier:
                _classify(runtime, entry, text if asked is None else (asked, text), as_object=json)
            else:
                _embed(runtime, entry, text, as_object=json)
        return
    question = _prompt(entry, text, None if system is None else check_text("system message", system), raw=raw)
    with load_runtime(opened, hbm) as runtime:
        _generate(runtime, entry, question, sampling_params(max_tokens, temperature, top_p, seed), as_object=json)


def load_runtime(bundle: Bundle, hbm: str | None) -> Runtime:
    """Returns a runtime of a bundle, showing how far its programs are loaded."""
    from ..runtime.engine import Runtime

    with progress_bars() as bars:
        return Runtime(bundle, hbm=hbm, progress=lambda done, total: bars.update("load programs", done, total))


def _read_stdin() -> str:
    return sys.stdin.buffer.read().decode(errors="surrogateescape")


def _prompt(entry: ModelEntry, text: str, system: str | None, *, raw: bool) -> Prompt:
    if raw:
        if system is not None:
            raise ConfigurationError("--system has no effect on a --raw prompt; leave one of them out")
        return text
    if entry.chat_template is None:
        raise ConfigurationError(f"model {entry.name!r} has no chat template; say --raw to go on with the text")
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": text}]


def _generate(runtime: Runtime, entry: ModelEntry, prompt: Prompt, params: SamplingParams, *, as_object: bool) -> None:
    if as_object:
        print_json({"model": entry.name, **asdict(runtime.complete(entry.name, prompt, params))})
        return
    for piece in runtime.stream(entry.name, prompt, params):
        print(piece, end="", flush=True)
    print(flush=True)


def _embed(runtime: Runtime, entry: ModelEntry, text: str, *, as_object: bool) -> None:
    import asyncio

    result = asyncio.run(runtime.embed_async(entry.name, [text]))
    vector = [float(value) for value in result.vectors[0]]
    is_sparse = "sparse_embedding" in entry.capabilities
    embedding = _heaviest(runtime.bundle, entry, vector) if is_sparse else vector
    if as_object:
        print_json({"model": entry.name, "embedding": embedding, "usage": asdict(result.usage)})
    else:
        print(json_text.dumps(embedding, ensure_ascii=False), flush=True)


def _classify(runtime: Runtime, entry: ModelEntry, item: TextOrPair, *, as_object: bool) -> None:
    result = runtime.classify(entry.name, [item])
    labels = dict(zip(result.labels, result.probabilities[0].tolist(), strict=True))
    if as_object:
        print_json({"model": entry.name, "labels": labels, "usage": asdict(result.usage)})
    else:
        print(json_text.dumps(labels, ensure_ascii=False), flush=True)


def _heaviest(bundle: Bundle, entry: ModelEntry, vector: list[float]) -> list[tuple[str | int, float]]:
    """Returns the tokens that weigh anything, the heaviest first."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(bundle.read_bytes(entry.tokenizer).decode())
    present = sorted(((weight, token_id) for token_id, weight in enumerate(vector) if weight != 0), reverse=True)
    return [(tokenizer.id_to_token(token_id) or token_id, weight) for weight, token_id in present]
